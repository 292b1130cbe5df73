//! Plain text: a paragraph a line.

use std::io::{BufRead, Read};
use std::path::Path;

use super::{Document, MAX_RECORD_BYTES};
use crate::{Error, Result};

pub(super) fn read(path: &Path, input: impl BufRead, document: &mut Document<'_>) -> Result<()> {
    for_each_line(path, input, |_, line| document.line(line))
}

/// Lines with their numbers, counted from 1, without their ends.
pub(super) fn for_each_line(
    path: &Path,
    mut input: impl BufRead,
    mut f: impl FnMut(u64, &str) -> Result<()>,
) -> Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut input).take(MAX_RECORD_BYTES).read_until(b'\n', &mut line).map_err(|e| {
            Error::line(
                path,
                number,
                format!("reading failed ({e}): the file may be cut short; copy it again"),
            )
        })?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_RECORD_BYTES && line.last() != Some(&b'\n') {
            let limit = MAX_RECORD_BYTES >> 20;
            return Err(Error::line(
                path,
                number,
                format!("this line is longer than {limit} MiB: break it up"),
            ));
        }
        let text = std::str::from_utf8(&line).map_err(|e| {
            let at = e.valid_up_to();
            Error::line(
                path,
                number,
                format!("byte {at} of this line is not UTF-8: convert the file to UTF-8"),
            )
        })?;
        let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
        f(number, text)?;
    }
    Ok(())
}
