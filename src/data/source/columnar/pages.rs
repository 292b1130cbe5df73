//! The sizes in Parquet's page headers, checked before anything is allocated for them.
//!
//! A column chunk is a chain of pages, each behind a header in Thrift's compact protocol:
//!
//! ```text
//! PageHeader {
//!     2: uncompressed_page_size i32,
//!     3: compressed_page_size i32,
//!     7: DictionaryPageHeader { 1: num_values i32 },
//!     8: DataPageHeaderV2 {
//!         5: definition_levels_byte_length i32, 6: repetition_levels_byte_length i32, …
//!     },
//!     …
//! }
//! ```
//!
//! A field is a byte (distance from the last field's number, type) and a value; 0 ends a struct.

use std::io::{Read, copy, sink};

use parquet::arrow::ProjectionMask;
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;

/// Writers aim at pages of 1 MiB; some write a row group in one.
const MAX_PAGE_BYTES: i64 = 256 << 20;
/// Structs within structs; the format has three.
const MAX_DEPTH: usize = 8;

/// A problem, if a page of a column of `mask` is not what it can be.
pub(super) fn check_pages(
    file: &[u8],
    metadata: &ParquetMetaData,
    mask: &ProjectionMask,
) -> Result<(), String> {
    for group in metadata.row_groups() {
        for (_, chunk) in group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf)) {
            let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
            let end = start.checked_add(chunk.compressed_size());
            let range = usize::try_from(start).ok().zip(end.and_then(|end| usize::try_from(end).ok()));
            let bytes = range.and_then(|(start, end)| file.get(start..end));
            let brotli = matches!(chunk.compression(), Compression::BROTLI(_));
            check_chunk(bytes.ok_or("a column is outside the file")?, brotli)?;
        }
    }
    Ok(())
}

fn check_chunk(mut bytes: &[u8], brotli: bool) -> Result<(), String> {
    while !bytes.is_empty() {
        let header = Header::read(&mut bytes).ok_or("a page has no whole header")?;
        let Header { uncompressed, compressed, dictionary_values, levels } = header;
        let compressed = usize::try_from(compressed).ok().filter(|&size| size <= bytes.len());
        let compressed = compressed.ok_or("a page is longer than its column")?;
        if !(0..=MAX_PAGE_BYTES).contains(&uncompressed) {
            let limit = MAX_PAGE_BYTES >> 20;
            return Err(format!(
                "a page of {uncompressed} bytes; {limit} MiB are the most: write smaller pages"
            ));
        }
        // A text in a dictionary takes four bytes at least, those of its length.
        if !(0..=uncompressed / 4).contains(&dictionary_values) {
            return Err(format!("a dictionary of {dictionary_values} texts in {uncompressed} bytes"));
        }
        let (page, rest) = bytes.split_at(compressed);
        let levels = usize::try_from(levels).unwrap_or(usize::MAX);
        if brotli && exceeds(page.get(levels..).unwrap_or_default(), uncompressed as u64) {
            return Err(format!("a page has more than the {uncompressed} bytes that its header says"));
        }
        bytes = rest;
    }
    Ok(())
}

/// Whether Brotli decompresses to more than `most` bytes. The reader would take all of it, and a
/// few bytes of Brotli can become gigabytes; other compressions cannot, or are read to the size in
/// the header.
fn exceeds(page: &[u8], most: u64) -> bool {
    let decoder = brotli_decompressor::Decompressor::new(page, 1 << 16);
    // Damage is the reader's to name.
    copy(&mut decoder.take(most + 1), &mut sink()).is_ok_and(|read| read > most)
}

#[derive(Default)]
struct Header {
    uncompressed: i64,
    compressed: i64,
    dictionary_values: i64,
    /// Bytes before what is compressed.
    levels: i64,
}

impl Header {
    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut header = Self::default();
        fields(bytes, 0, &mut |path, value| match path {
            [2] => header.uncompressed = value,
            [3] => header.compressed = value,
            [7, 1] => header.dictionary_values = value,
            [8, 5 | 6] => header.levels = header.levels.saturating_add(value.max(0)),
            _ => {}
        })?;
        Some(header)
    }
}

/// Calls `found` with the numbers of a struct's integers, outermost first, and their values.
fn fields(bytes: &mut &[u8], depth: usize, found: &mut dyn FnMut(&[i64], i64)) -> Option<()> {
    let mut number = 0;
    loop {
        let byte = take(bytes, 1)?[0];
        if byte == 0 {
            return Some(());
        }
        number = match byte >> 4 {
            0 => zigzag(bytes)?,
            distance => number + i64::from(distance),
        };
        match byte & 15 {
            12 if depth < MAX_DEPTH => {
                fields(bytes, depth + 1, &mut |path, value| {
                    // Nothing deeper is of interest.
                    if let [inner] = path {
                        found(&[number, *inner], value);
                    }
                })?;
            }
            5 | 6 => found(&[number], zigzag(bytes)?),
            kind => skip(bytes, kind, depth)?,
        }
    }
}

fn skip(bytes: &mut &[u8], kind: u8, depth: usize) -> Option<()> {
    match kind {
        // A field's truth is in its type.
        1 | 2 => {}
        3 => drop(take(bytes, 1)?),
        4..=6 => drop(varint(bytes)?),
        7 => drop(take(bytes, 8)?),
        8 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            take(bytes, length)?;
        }
        12 if depth < MAX_DEPTH => fields(bytes, depth + 1, &mut |_, _| {})?,
        // A page header has no lists and no maps.
        _ => return None,
    }
    Some(())
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

fn zigzag(bytes: &mut &[u8]) -> Option<i64> {
    let value = varint(bytes)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut Vec<u8>, value: i64) {
        let mut value = (value << 1 ^ value >> 63) as u64;
        while value >= 128 {
            bytes.push(value as u8 | 128);
            value >>= 7;
        }
        bytes.push(value as u8);
    }

    /// A dictionary page of `body` bytes whose header says other things.
    fn page(uncompressed: i64, compressed: i64, values: i64, body: usize) -> Vec<u8> {
        let mut bytes = vec![0x15];
        put(&mut bytes, 2);
        for size in [uncompressed, compressed] {
            bytes.push(0x15);
            put(&mut bytes, size);
        }
        bytes.extend([0x4c, 0x15]);
        put(&mut bytes, values);
        bytes.extend([0, 0]);
        bytes.extend(vec![7; body]);
        bytes
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let chain = [page(40, 20, 10, 20), page(8, 8, 0, 8)].concat();
        assert_eq!(check_chunk(&chain, false), Ok(()));
        let refuse = |bytes: &[u8], word: &str| {
            let problem = check_chunk(bytes, false).unwrap_err();
            assert!(problem.contains(word), "`{word}` is not in: {problem}");
        };
        refuse(&page(1 << 30, 20, 10, 20), "256 MiB");
        refuse(&page(-1, 20, 0, 20), "page of -1");
        refuse(&page(40, 21, 10, 20), "longer");
        refuse(&page(40, -1, 10, 20), "longer");
        refuse(&page(40, i64::MAX, 10, 20), "longer");
        refuse(&page(40, 20, 11, 20), "dictionary of 11");
        refuse(&page(40, 20, i64::from(i32::MAX), 20), "dictionary");
        refuse(&chain[..chain.len() - 9], "whole header");
        refuse(&[0x1c; 100], "whole header");
        refuse(&[0x19, 0xf5, 0xff, 0xff, 0xff, 0x7f], "whole header");
        refuse(&[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "whole header");
    }

    /// 100,000 zeros in 13 bytes, by `pyarrow.Codec("brotli")`.
    #[test]
    fn brotli_may_not_give_more_than_it_says() {
        let zeros = b"[\x9f\x86\x01@\x02 \x1e\x0b$\xcb/\x00";
        for (says, fits) in [(100_000, true), (99_999, false), (4, false)] {
            let bytes = [&page(says, zeros.len() as i64, 0, 0)[..], zeros].concat();
            assert_eq!(check_chunk(&bytes, true).is_ok(), fits, "{says}");
        }
    }
}
