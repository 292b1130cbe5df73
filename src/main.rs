//! The `elektron` binary.
fn main() {}
