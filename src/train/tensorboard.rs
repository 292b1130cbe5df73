//! The log as TensorBoard reads it: `events.out.tfevents.*` beside `metrics.jsonl`.
//!
//! A file is a sequence of records, each `length: u64 | masked CRC-32C of it | bytes | masked CRC-32C of them`; the bytes
//! are an `Event` message of protocol buffers with a handful of fields, written here by hand:
//!
//! ```text
//! Event   { 1: wall_time double, 2: step varint, 3: file_version | 5: Summary | 7: SessionLog }
//! Summary { 1: Value { 1: tag string, 2: simple_value float } … }     SessionLog { 1: status varint, START = 1 }
//! ```
//!
//! A run that goes on writes a new file, which opens with a session's START at its first step: from there on
//! TensorBoard forgets what older files say, so that no step is shown twice.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::sink::Sink;
use crate::fsutil::sorted_entries;
use crate::{Error, Result};

const PREFIX: &str = "events.out.tfevents.";

/// An event file.
pub struct Events(Sink);

impl Events {
    /// A new file in `dir`, for steps after `step`.
    pub fn create(dir: &Path, step: u64) -> Self {
        // If the directory cannot be read, creating the file fails too, with a warning.
        let before = files(dir).unwrap_or_default();
        // TensorBoard reads files in the order of their names: also two of one second, also if the clock was set back.
        let newest = before.last().and_then(|p| name(p)?[PREFIX.len()..].split('.').next()?.parse().ok());
        let second = newest.unwrap_or(0).max(now() as u64);
        let path = dir.join(format!("{PREFIX}{second:010}.{:05}.elektron", before.len()));
        let open = {
            let path = path.clone();
            move || File::create_new(&path).map_err(Error::io("create", &path))
        };
        let mut events = Self(Sink::new(path, open));
        events.write(&[event(0), bytes(3, b"brain.Event:2")].concat());
        if !before.is_empty() {
            events.write(&[event(step + 1), bytes(7, &[0x08, 0x01])].concat());
        }
        events
    }

    /// Values of one step; what is not finite is left out.
    pub fn scalars<'a>(&mut self, step: u64, values: impl Iterator<Item = (&'a str, f64)>) {
        let mut summary = Vec::new();
        for (tag, value) in values.filter(|(_, value)| value.is_finite()) {
            let mut inner = bytes(1, tag.as_bytes());
            inner.push(0x15);
            inner.extend((value as f32).to_le_bytes());
            summary.extend(bytes(1, &inner));
        }
        self.write(&[event(step), bytes(5, &summary)].concat());
    }

    fn write(&mut self, message: &[u8]) {
        self.0.add(&record(message));
    }

    /// Writes what had to wait.
    pub fn flush(&mut self) {
        self.0.flush();
    }

    /// As [`Events::flush`], for the last time, with a warning about what could not be written.
    pub fn close(&mut self) {
        self.0.close();
    }
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Time and step, with which every event begins.
fn event(step: u64) -> Vec<u8> {
    let mut out = vec![0x09];
    out.extend(now().to_le_bytes());
    out.push(0x10);
    varint(&mut out, step);
    out
}

/// A field of bytes: string or message.
fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(&mut out, value.len() as u64);
    out.extend(value);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(message);
    out.extend(masked(crc32c(message)).to_le_bytes());
    out
}

/// Rotated and shifted, because a checksum over data that hold their checksum is weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's, of some hundred bytes a line: bit by bit is fast enough.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// The event files of a run, oldest first.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(sorted_entries(dir)?.into_iter().filter(|p| name(p).is_some_and(|n| n.starts_with(PREFIX))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4.
    #[test]
    fn checksums_as_published() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (bytes, want) in [
            (vec![0; 32], 0x8a91_36aa),
            (vec![0xff; 32], 0x62a8_ab43),
            (ascending, 0x46dd_794e),
            (descending, 0x113f_db5c),
            (b"123456789".to_vec(), 0xe306_9283),
        ] {
            assert_eq!(crc32c(&bytes), want);
        }
    }
}
