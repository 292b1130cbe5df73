//! The sizes in Arrow's messages, checked before anything is allocated for them.
//!
//! A file is `ARROW1`, two bytes, a stream, a footer, its length and `ARROW1`. A stream is a chain
//! of messages, each behind its length, and each followed by its body. Where a body is compressed,
//! every buffer in it begins with its size once decompressed:
//!
//! ```text
//! [ffffffff] length i32,
//! metadata (flatbuffer: buffers { offset, length }, bodyLength),
//! body { size i64, bytes }…
//! ```

use std::ops::Range;

use arrow_ipc::{CompressionType, Message, MessageHeader, RecordBatch, root_as_message};

/// Begins and ends the file format.
const MAGIC: &[u8] = b"ARROW1";
/// Before a message's length; old versions did without.
const CONTINUES: &[u8] = &[0xff; 4];
/// The largest buffer of compressed data: texts of a batch whose offsets have 32 bits have half as
/// many again.
const MAX_BUFFER_BYTES: i64 = 1 << 30;

/// Where the stream is in a file of either format.
pub(super) fn stream_of(file: &[u8]) -> Result<Range<usize>, String> {
    if !file.starts_with(MAGIC) {
        return Ok(0..file.len());
    }
    let inner = file.strip_suffix(MAGIC).filter(|rest| rest.len() > 12).ok_or("its end is missing")?;
    let (inner, length) = inner.split_at(inner.len() - 4);
    let footer = length.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
    let end = inner.len().checked_sub(footer as usize).filter(|&end| end >= 8);
    Ok(8..end.ok_or("its footer is longer than the file")?)
}

/// A problem, if a compressed buffer is not what it can be.
pub(super) fn check_buffers(mut stream: &[u8]) -> Result<(), String> {
    loop {
        stream = stream.strip_prefix(CONTINUES).unwrap_or(stream);
        let Some((length, rest)) = stream.split_first_chunk::<4>() else { return Ok(()) };
        let length = u32::from_le_bytes(*length) as usize;
        // Damage that the reader finds as well is its to name.
        let Some((metadata, rest)) = rest.split_at_checked(length).filter(|_| length > 0) else {
            return Ok(());
        };
        let Ok(message) = root_as_message(metadata) else { return Ok(()) };
        let body =
            usize::try_from(message.bodyLength()).ok().and_then(|length| rest.split_at_checked(length));
        let Some((body, rest)) = body else { return Ok(()) };
        if let Some(batch) = batch_of(message) {
            check_batch(batch, body)?;
        }
        stream = rest;
    }
}

fn batch_of(message: Message<'_>) -> Option<RecordBatch<'_>> {
    match message.header_type() {
        MessageHeader::RecordBatch => message.header_as_record_batch(),
        MessageHeader::DictionaryBatch => message.header_as_dictionary_batch()?.data(),
        _ => None,
    }
}

fn check_batch(batch: RecordBatch<'_>, body: &[u8]) -> Result<(), String> {
    let Some(compression) = batch.compression() else { return Ok(()) };
    let codec = compression.codec();
    if codec != CompressionType::LZ4_FRAME && codec != CompressionType::ZSTD {
        return Err(format!("its compression {codec:?} is not known: LZ4 and Zstandard are"));
    }
    for buffer in batch.buffers().into_iter().flatten() {
        let start = usize::try_from(buffer.offset()).ok();
        let range = start.zip(usize::try_from(buffer.length()).ok().filter(|&length| length > 0));
        let bytes = range.and_then(|(start, length)| body.get(start..start.checked_add(length)?));
        let Some((size, _)) = bytes.and_then(|bytes| bytes.split_first_chunk::<8>()) else { continue };
        let size = i64::from_le_bytes(*size);
        if size > MAX_BUFFER_BYTES {
            let limit = MAX_BUFFER_BYTES >> 20;
            return Err(format!("a buffer of {size} bytes; {limit} MiB are the most: write smaller batches"));
        }
    }
    Ok(())
}
