//! What the targets have in common: the table of formats that the test suite uses too.

// Bounds and seeds are the suite's.
#[allow(dead_code)]
#[path = "../tests/hostile/formats.rs"]
mod formats;

/// Reads `bytes` as a file of the format `name`. Errors are what hostile files shall give; panics are what is looked for.
pub fn feed(name: &str, bytes: &[u8]) {
    let _ = formats::feed(name, bytes);
}
