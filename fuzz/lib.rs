//! What the targets have in common: the table of formats that the test suite uses too.

#[path = "../tests/hostile/formats.rs"]
mod formats;

/// Reads `bytes` as a file of the format `name`. Errors are what hostile files shall give; panics are what is looked for.
pub fn feed(name: &str, bytes: &[u8]) {
    let _ = formats::feed(name, bytes);
}
