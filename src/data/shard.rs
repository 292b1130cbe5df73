//! Tokenized text on disk: memory-mapped shards of bounded size, several for a large source file.
//!
//! ```text
//! header (256 bytes) │ tokens (u16 or u32 each) │ paragraph ends (u64 each, top bit: opens a document)
//!                    │ keys of the documents for deduplication (u64 words)
//!                    │ how often each token occurs (u64 words: id in the upper half, count in the lower)
//! ```
//!
//! The shards of a file form a chain: each is named by two hashes, of everything before it and of everything up to its
//! end (see [`super::prepare`]), so its name says what text it holds, wherever that text came from.
//! Paragraphs are stored without \[CLS\] and \[SEP\]; [`super::pack`] adds them, so every way of packing reads the same
//! shards. [`Shard::open`] checks the header against its own checksum and the file's length; [`Shard::verify`] reads the
//! whole content against the checksum in the header.

mod header;

use std::fs::File;
use std::hash::Hasher;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use twox_hash::xxhash3_64::Hasher as Checksum;

use crate::model::hf::map_file;
use crate::{Error, Result};
pub(super) use header::{HEADER_BYTES, Header, Link, OPENS_DOCUMENT, Unknown, VERSION};

/// A stretch of one source file's tokens.
pub struct Shard {
    path: PathBuf,
    /// The mapped file's own number, which another file of the same name does not have.
    identity: Option<u64>,
    map: Mmap,
    header: Header,
    /// Where its paragraph ends begin.
    ends_at: usize,
}

/// All shards of a corpus, in the order of its text.
pub struct Dataset {
    shards: Vec<Shard>,
    /// First paragraph of each shard, and the total.
    first: Vec<usize>,
    /// Tokens before each shard, and the total.
    tokens: Vec<usize>,
    /// Tokens before each shard if every text or pair is framed, and the total.
    framed: Vec<usize>,
    /// Whether any shard holds pairs.
    pairs: bool,
}

/// Words that say how often a token occurs: several where 32 bits do not hold the count.
pub(super) fn frequency_words(id: u32, count: u64) -> impl Iterator<Item = u64> {
    let most = u64::from(u32::MAX);
    let parts = (0..count.div_ceil(most)).map(move |part| most.min(count - part * most));
    parts.map(move |part| u64::from(id) << 32 | part)
}

fn unpack_frequency(word: u64) -> (u32, u64) {
    ((word >> 32) as u32, word & u64::from(u32::MAX))
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::file(path, format!("this shard is damaged ({what}): delete it, it is made again"))
}

impl Shard {
    /// Maps a shard; an error if it is not whole. Its content is not read: see [`Self::verify`].
    pub fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        let header = Header::from_bytes(&map).map_err(|what| damaged(path, what))?;
        if header.file_bytes() != Some(map.len() as u64) {
            return Err(damaged(path, "its length is not what its header says"));
        }
        let ends_at = header.ends_at().unwrap_or_default() as usize;
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let shard = Self { path: path.to_path_buf(), identity: identity(&metadata), map, header, ends_at };
        let last = shard.paragraphs().checked_sub(1).map_or(0, |last| shard.end(last));
        if last != shard.tokens() {
            return Err(damaged(path, "its paragraphs do not end where its tokens do"));
        }
        Ok(shard)
    }

    /// An error if the mapped file was cut short since: reading beyond its end would end the process. A file that was
    /// deleted or replaced does no harm, since the map keeps the old one alive.
    fn check(&self) -> Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(now) if identity(&now) != self.identity => Ok(()),
            Ok(now) if now.len() < self.map.len() as u64 => Err(Error::file(
                &self.path,
                format!(
                    "this shard was cut short while it was read, from {} to {} bytes: it is made again when the run is \
                     resumed",
                    self.map.len(),
                    now.len()
                ),
            )),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("read", &self.path)(e)),
            _ => Ok(()),
        }
    }

    /// Reads a shard's content against its checksum, at the speed of the disk. It is read, not mapped: a file that is
    /// cut short meanwhile is an error here.
    pub fn verify(path: &Path) -> Result<()> {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let header = Header::read_from(&mut file, path)?;
        let mut block = vec![0; 1 << 20];
        let mut checksum = Checksum::new();
        loop {
            match file.read(&mut block).map_err(Error::io("read", path))? {
                0 => break,
                read => checksum.write(&block[..read]),
            }
        }
        let length = file.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
        if header.file_bytes() != Some(length) || checksum.finish() != header.checksum {
            return Err(damaged(path, "its content was changed"));
        }
        Ok(())
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    fn tokens(&self) -> usize {
        self.header.tokens as usize
    }

    fn paragraphs(&self) -> usize {
        self.header.paragraphs as usize
    }

    fn long(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.map[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    fn raw_end(&self, paragraph: usize) -> u64 {
        self.long(self.ends_at + 8 * paragraph)
    }

    /// Keys of its documents, for deduplication.
    pub(super) fn keys(&self) -> impl Iterator<Item = u64> {
        let at = self.ends_at + 8 * self.paragraphs();
        (0..self.header.keys as usize).map(move |key| self.long(at + 8 * key))
    }

    /// Tokens up to and with a paragraph.
    pub fn end(&self, paragraph: usize) -> usize {
        ((self.raw_end(paragraph) & !OPENS_DOCUMENT) as usize).min(self.tokens())
    }

    fn opens_document(&self, paragraph: usize) -> bool {
        self.raw_end(paragraph) & OPENS_DOCUMENT != 0
    }

    /// Whether a paragraph is the second text of a pair.
    fn is_second(&self, paragraph: usize) -> bool {
        self.header.pairs && paragraph % 2 == 1
    }

    /// How many special tokens its first `paragraphs` paragraphs have: \[CLS\] … \[SEP\], but … \[SEP\] for
    /// the second text of a pair.
    fn frames(&self, paragraphs: usize) -> usize {
        let seconds = if self.header.pairs { paragraphs / 2 } else { 0 };
        2 * paragraphs - seconds
    }

    /// Where a paragraph's tokens lie.
    fn span(&self, paragraph: usize) -> Range<usize> {
        let start = if paragraph == 0 { 0 } else { self.end(paragraph - 1) };
        start..self.end(paragraph).max(start)
    }

    /// How many of its tokens have this id: stored in the header for the unknown token, else counted.
    fn count(&self, id: u32) -> u64 {
        match self.header.unknown {
            Some(unknown) if unknown.id == id => unknown.tokens,
            _ => {
                let bytes = &self.map[HEADER_BYTES..][..self.tokens() * self.header.width() as usize];
                let equal = |width: usize| {
                    let id = &id.to_le_bytes()[..width];
                    bytes.chunks_exact(width).filter(|token| *token == id).count()
                };
                let fits = self.header.wide || id <= u32::from(u16::MAX);
                if fits { equal(self.header.width() as usize) as u64 } else { 0 }
            }
        }
    }

    /// Adds how often each token occurs to `counts`, which has an entry for each id of the
    /// vocabulary.
    fn add_frequencies(&self, counts: &mut [u64]) {
        if self.header.frequencies == 0 {
            return self.add_counts(0..self.tokens(), counts);
        }
        let at = self.ends_at + 8 * (self.paragraphs() + self.header.keys as usize);
        for word in (0..self.header.frequencies as usize).map(|word| self.long(at + 8 * word)) {
            let (id, count) = unpack_frequency(word);
            if let Some(sum) = counts.get_mut(id as usize) {
                *sum += count;
            }
        }
    }

    /// Adds how often each token occurs in a range of tokens.
    fn add_counts(&self, range: Range<usize>, counts: &mut [u64]) {
        let width = self.header.width() as usize;
        let bytes = &self.map[HEADER_BYTES + range.start * width..HEADER_BYTES + range.end * width];
        let mut add = |id: usize| {
            // Training refuses ids beyond the vocabulary.
            if let Some(count) = counts.get_mut(id) {
                *count += 1;
            }
        };
        match self.header.wide {
            true => {
                bytes.chunks_exact(4).for_each(|b| add(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize))
            }
            false => bytes.chunks_exact(2).for_each(|b| add(usize::from(u16::from_le_bytes([b[0], b[1]])))),
        }
    }

    /// Appends the tokens of a range.
    fn copy(&self, range: Range<usize>, to: &mut Vec<u32>) {
        let width = self.header.width() as usize;
        let bytes = &self.map[HEADER_BYTES + range.start * width..HEADER_BYTES + range.end * width];
        match self.header.wide {
            true => to.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            false => to.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])))),
        }
    }
}

/// What tells a file from another of the same name, where the system has such a thing.
fn identity(metadata: &std::fs::Metadata) -> Option<u64> {
    #[cfg(unix)]
    {
        Some(std::os::unix::fs::MetadataExt::ino(metadata))
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

impl Dataset {
    /// Of shards in order.
    pub fn new(shards: Vec<Shard>) -> Self {
        let (mut first, mut tokens, mut framed) = (vec![0], vec![0], vec![0]);
        for (i, shard) in shards.iter().enumerate() {
            first.push(first[i] + shard.paragraphs());
            tokens.push(tokens[i] + shard.tokens());
            framed.push(framed[i] + shard.tokens() + shard.frames(shard.paragraphs()));
        }
        let pairs = shards.iter().any(|shard| shard.header.pairs);
        Self { shards, first, tokens, framed, pairs }
    }

    /// Paragraphs in all.
    pub fn paragraphs(&self) -> usize {
        self.first[self.shards.len()]
    }

    /// Documents in all.
    pub fn documents(&self) -> usize {
        self.sum(|header| header.documents) as usize
    }

    /// Documents that were dropped as duplicates.
    pub fn dropped(&self) -> usize {
        self.sum(|header| header.dropped) as usize
    }

    /// Documents that were too long to be compared with others.
    pub fn too_long(&self) -> usize {
        self.sum(|header| header.long) as usize
    }

    /// Bytes of text, that of dropped documents included.
    pub fn text_bytes(&self) -> u64 {
        self.sum(|header| header.bytes)
    }

    /// Shards in all.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    fn sum(&self, of: impl Fn(&Header) -> u64) -> u64 {
        self.shards.iter().map(|shard| of(&shard.header)).sum()
    }

    /// Tokens in all, without special tokens.
    pub fn tokens(&self) -> usize {
        self.tokens[self.shards.len()]
    }

    /// Adds the hashes of the texts of all shards to `hash`.
    pub(super) fn digest(&self, hash: &mut Sha256) {
        for shard in &self.shards {
            hash.update(shard.header.start);
            hash.update(shard.header.end);
        }
    }

    /// How many tokens are the unknown token, whose id this is.
    pub fn unknown(&self, id: u32) -> u64 {
        self.shards.iter().map(|shard| shard.count(id)).sum()
    }

    /// How often each token of a vocabulary occurs.
    pub(super) fn frequencies(&self, vocab_size: usize) -> Vec<u64> {
        let none = || vec![0; vocab_size];
        let add = |mut counts: Vec<u64>, shard: &Shard| {
            shard.add_frequencies(&mut counts);
            counts
        };
        let sum = |mut a: Vec<u64>, b: Vec<u64>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        };
        self.shards.par_iter().fold(none, add).reduce(none, sum)
    }

    /// Adds how often each token occurs in some paragraphs.
    pub(super) fn add_counts(&self, paragraphs: Range<usize>, counts: &mut [u64]) {
        for (shard, &first) in self.shards.iter().zip(&self.first) {
            let local = paragraphs.start.max(first)..paragraphs.end.min(first + shard.paragraphs());
            if !local.is_empty() {
                let (from, to) = (shard.span(local.start - first), shard.span(local.end - 1 - first));
                shard.add_counts(from.start..to.end.max(from.start), counts);
            }
        }
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.map.len() as u64).sum()
    }

    fn locate(&self, paragraph: usize) -> (&Shard, usize) {
        let shard = self.first.partition_point(|&first| first <= paragraph) - 1;
        (&self.shards[shard], paragraph - self.first[shard])
    }

    /// An error if a shard that holds some of these paragraphs was cut short.
    pub(super) fn check(&self, paragraphs: std::ops::Range<usize>) -> Result<()> {
        let first = self.first.partition_point(|&first| first <= paragraphs.start).saturating_sub(1);
        let last = self.first.partition_point(|&first| first < paragraphs.end).min(self.shards.len());
        self.shards[first.min(last)..last].iter().try_for_each(Shard::check)
    }

    /// An error if a shard that holds some of these tokens of the framed stream was cut short.
    pub(super) fn check_framed(&self, tokens: std::ops::Range<usize>) -> Result<()> {
        let first = self.framed.partition_point(|&start| start <= tokens.start).saturating_sub(1);
        let last = self.framed.partition_point(|&start| start < tokens.end).min(self.shards.len());
        self.shards[first.min(last)..last].iter().try_for_each(Shard::check)
    }

    /// Tokens of a paragraph.
    pub fn paragraph_len(&self, paragraph: usize) -> usize {
        let (shard, local) = self.locate(paragraph);
        shard.span(local).len()
    }

    /// Whether a paragraph opens a document.
    pub fn opens_document(&self, paragraph: usize) -> bool {
        let (shard, local) = self.locate(paragraph);
        shard.opens_document(local)
    }

    /// Whether a paragraph is the second text of a pair, whose first is the one before it.
    pub fn is_second(&self, paragraph: usize) -> bool {
        let (shard, local) = self.locate(paragraph);
        shard.is_second(local)
    }

    /// Whether any shard holds pairs.
    pub fn has_pairs(&self) -> bool {
        self.pairs
    }

    /// Tokens in all if every text or pair is framed.
    pub fn framed(&self) -> usize {
        self.framed[self.shards.len()]
    }

    /// Tokens before a paragraph, without special tokens.
    pub(super) fn tokens_before(&self, paragraph: usize) -> usize {
        match paragraph < self.paragraphs() {
            true => {
                let index = self.first.partition_point(|&first| first <= paragraph) - 1;
                self.tokens[index] + self.shards[index].span(paragraph - self.first[index]).start
            }
            false => self.tokens(),
        }
    }

    /// Appends tokens `from..` of a paragraph, `most` at the most.
    pub fn copy_paragraph(&self, paragraph: usize, from: usize, most: usize, to: &mut Vec<u32>) {
        let (shard, local) = self.locate(paragraph);
        let span = shard.span(local);
        let start = (span.start + from).min(span.end);
        shard.copy(start..(start.saturating_add(most)).min(span.end), to);
    }

    /// The paragraph that holds token `at` of the stream in which every text is written as
    /// \[CLS\] … \[SEP\] and every pair as \[CLS\] … \[SEP\] … \[SEP\], and how far into it `at` is.
    pub(super) fn framed_position(&self, at: usize) -> Option<(usize, usize)> {
        let index = self.framed.partition_point(|&before| before <= at) - 1;
        let (shard, at) = (self.shards.get(index)?, at - self.framed[index]);
        let end = |p: usize| shard.end(p) + shard.frames(p + 1);
        let (mut low, mut high) = (0, shard.paragraphs());
        while low < high {
            let middle = (low + high) / 2;
            if end(middle) > at { high = middle } else { low = middle + 1 }
        }
        let start = if low == 0 { 0 } else { end(low - 1) };
        Some((self.first[index] + low, at - start))
    }
}
