//! One shard as it is written: tokens go to disk as they come, the rest follows when it is closed, and it appears under
//! its name only when it is whole and on disk.

use std::hash::Hasher;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use twox_hash::xxhash3_64::Hasher as Checksum;

use super::rounds::Marks;
use super::shard::{HEADER_BYTES, Header, OPENS_DOCUMENT, Unknown, frequency_words};
use crate::fsutil::AtomicFile;
use crate::{Error, Result};

/// Names of unfinished shards begin so.
pub(super) const UNFINISHED: &str = ".writing-shard-";

/// Memory besides the buffer: 8 bytes per paragraph, the keys of the shard and 8 bytes per token of
/// the vocabulary, so a shard has a bounded number of each.
pub(super) struct ShardWriter {
    out: BufWriter<AtomicFile>,
    checksum: Checksum,
    header: Header,
    ends: Vec<u64>,
    keys: Vec<u64>,
    /// How often each token occurs, up to the highest id.
    counts: Vec<u64>,
    /// Whether the next paragraph that has tokens opens a document.
    opens: bool,
    block: Vec<u8>,
}

impl ShardWriter {
    /// A shard that will be in `dir`; its name is decided at its end. `unknown` is the id of the
    /// unknown token.
    pub(super) fn create(dir: &Path, wide: bool, unknown: u32) -> Result<Self> {
        // The header, which stands first, says how much follows: its place is filled at the end.
        let mut out = BufWriter::with_capacity(1 << 20, AtomicFile::create(dir, UNFINISHED)?);
        out.write_all(&[0; HEADER_BYTES]).map_err(Error::io("write a shard in", dir))?;
        let unknown = Some(Unknown { id: unknown, tokens: 0 });
        let header = Header { wide, unknown, ..Header::default() };
        let (ends, keys, counts, block) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { out, checksum: Checksum::new(), header, ends, keys, counts, opens: false, block })
    }

    /// Adds a paragraph. One without tokens, unless it is a text of a pair, is not stored: if it opens a
    /// document, the next paragraph does.
    pub(super) fn paragraph(&mut self, ids: &[u32], marks: Marks) -> std::io::Result<()> {
        self.opens |= marks.opens;
        self.header.pairs |= marks.pair;
        if ids.is_empty() && !marks.pair {
            return Ok(());
        }
        self.block.clear();
        match self.header.wide {
            true => ids.iter().for_each(|id| self.block.extend_from_slice(&id.to_le_bytes())),
            false => ids.iter().for_each(|&id| self.block.extend_from_slice(&(id as u16).to_le_bytes())),
        }
        self.header.tokens += ids.len() as u64;
        if let Some(unknown) = &mut self.header.unknown {
            unknown.tokens += ids.iter().filter(|&&id| id == unknown.id).count() as u64;
        }
        for &id in ids {
            let id = id as usize;
            if id >= self.counts.len() {
                self.counts.resize(id + 1, 0);
            }
            self.counts[id] += 1;
        }
        self.header.documents += u64::from(self.opens);
        self.ends.push(self.header.tokens | if self.opens { OPENS_DOCUMENT } else { 0 });
        self.opens = false;
        self.checksum.write(&self.block);
        self.out.write_all(&self.block)
    }

    /// Adds what deduplication has to remember of this text.
    pub(super) fn deduplicated(&mut self, keys: &[u64], dropped: u64, long: u64) {
        self.keys.extend_from_slice(keys);
        self.header.dropped += dropped;
        self.header.long += long;
    }

    /// Closes the shard under `path`; `place` has its place in the source.
    pub(super) fn finish(mut self, path: &Path, place: &Header) -> Result<()> {
        let frequencies = self.frequencies();
        let header = Header {
            frequencies: frequencies.len() as u64,
            paragraphs: self.ends.len() as u64,
            keys: self.keys.len() as u64,
            read: place.read,
            bytes: place.bytes,
            last: place.last,
            start: place.start,
            end: place.end,
            ..self.header
        };
        self.write_rest(header, &frequencies).map_err(Error::io("write", path))?;
        let file = self.out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
        file.commit_as(path)
    }

    /// The section that says how often each token occurs, if it takes fewer bytes than the tokens,
    /// which else are as quickly counted.
    fn frequencies(&self) -> Vec<u64> {
        let occurring = self.counts.iter().enumerate().filter(|&(_, &count)| count > 0);
        let words: Vec<u64> = occurring.flat_map(|(id, &count)| frequency_words(id as u32, count)).collect();
        if (8 * words.len() as u64) < self.header.tokens * self.header.width() { words } else { Vec::new() }
    }

    fn write_rest(&mut self, mut header: Header, frequencies: &[u64]) -> std::io::Result<()> {
        let token_bytes = header.tokens * header.width();
        let padding = (token_bytes.next_multiple_of(8) - token_bytes) as usize;
        let mut put = |bytes: &[u8]| {
            self.checksum.write(bytes);
            self.out.write_all(bytes)
        };
        put(&[0; 8][..padding])?;
        let words = self.ends.iter().chain(&self.keys).chain(frequencies);
        words.into_iter().try_for_each(|word| put(&word.to_le_bytes()))?;
        header.checksum = self.checksum.finish();
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header.to_bytes())
    }
}
