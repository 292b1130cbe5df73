//! Messages for the user: notes and warnings on standard error.
//!
//! A message that cannot be written (a closed pipe, a full disk, a closed descriptor) never ends a
//! run: `eprintln!` would panic there, so the crate denies it and uses [`note!`](crate::note).

use std::fmt;
use std::io::Write;

/// Writes one line to standard error, and ignores a failure to do so.
pub fn note(message: fmt::Arguments<'_>) {
    // One call for the whole line, so that lines of several threads or processes do not mix.
    let _ = std::io::stderr().write_all(format!("{message}\n").as_bytes());
}

/// As `eprintln!`, except that a message that cannot be written is dropped instead of a panic.
#[macro_export]
macro_rules! note {
    ($($message:tt)*) => { $crate::console::note(format_args!($($message)*)) };
}
