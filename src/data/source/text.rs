//! Plain text: a paragraph per line.

use std::io::BufRead;
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
    let (mut line, mut before, mut number) = (Vec::new(), End::Feed, 0);
    loop {
        line.clear();
        number += 1;
        let end = read_line(&mut input, &mut line).map_err(|e| {
            Error::line(
                path,
                number,
                format!("reading failed ({e}): the file may be cut short; copy it again"),
            )
        })?;
        match end {
            End::Text => return Ok(()),
            // `\r\r\n`, left by a conversion that was done twice, is one end.
            End::Both if line.is_empty() && before == End::Return => {
                before = end;
                continue;
            }
            End::Feed | End::Return | End::Both => before = end,
            End::TooLong => {
                let limit = MAX_RECORD_BYTES >> 20;
                let problem = format!("this line is longer than {limit} MiB: break it up");
                return Err(Error::line(path, number, problem));
            }
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
}

/// How reading a line ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// `\n`, or the end of the text.
    Feed,
    /// `\r` alone, as old Mac files have it.
    Return,
    /// `\r\n`.
    Both,
    TooLong,
    /// There was no further line.
    Text,
}

/// Appends a line without its end.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<End> {
    let mut any = false;
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(if any { End::Feed } else { End::Text });
        }
        any = true;
        let found = memchr::memchr2(b'\n', b'\r', bytes);
        let end = found.unwrap_or(bytes.len());
        line.extend_from_slice(&bytes[..end]);
        let byte = found.map(|at| bytes[at]);
        input.consume(end + usize::from(found.is_some()));
        if line.len() as u64 >= MAX_RECORD_BYTES {
            return Ok(End::TooLong);
        }
        match byte {
            None => {}
            Some(b'\r') if input.fill_buf()?.first() == Some(&b'\n') => {
                input.consume(1);
                return Ok(End::Both);
            }
            Some(b'\r') => return Ok(End::Return),
            Some(_) => return Ok(End::Feed),
        }
    }
}
