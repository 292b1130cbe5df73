//! Tokenized text on disk: one memory-mapped shard for each source file, made once and reused while nothing changed.
//!
//! ```text
//! header (128 bytes) │ tokens (u16 or u32 each) │ paragraph ends (u64 each, top bit: opens a document)
//! ```
//!
//! A shard's name holds a hash of everything it depends on: format version, tokenizer, columns, the file's content.
//! Paragraphs are stored without \[CLS\] and \[SEP\]; [`super::pack`] adds them, so every way of packing reads the same
//! shards. Sizes in a header are checked against the file before use.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use memmap2::Mmap;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::source::TextSource;
use super::tokenizer::Tokenizer;
use crate::fsutil::{create_dir, write_atomic};
use crate::model::hf::map_file;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"ELKSHARD";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
const OPENS_DOCUMENT: u64 = 1 << 63;
/// Text tokenized at once: enough to keep every core busy, little enough to bound memory.
const BATCH_BYTES: usize = 4 << 20;

/// How far `prepare` is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Source files finished.
    pub files: usize,
    /// Source files in all.
    pub files_total: usize,
    /// Text tokenized in this run, decompressed.
    pub bytes: u64,
    /// Seconds spent on it.
    pub seconds: f64,
    /// Files whose shards were reused.
    pub reused: usize,
}

/// One source file's tokens.
pub struct Shard {
    path: PathBuf,
    /// The mapped file's own number, which another file of the same name does not have.
    identity: Option<u64>,
    map: Mmap,
    wide: bool,
    tokens: usize,
    paragraphs: usize,
    documents: usize,
}

/// All shards of a corpus, in the order of its files.
pub struct Dataset {
    shards: Vec<Shard>,
    /// First paragraph of each shard, and the total.
    first: Vec<usize>,
}

/// Tokenizes every file of `source` into `dir`, or finds it there.
pub fn prepare(
    source: &TextSource,
    tokenizer: &Tokenizer,
    dir: &Path,
    mut progress: impl FnMut(Progress),
) -> Result<Dataset> {
    create_dir(dir)?;
    let tokenizer_hash = tokenizer.hash()?;
    let wide = tokenizer.vocab_size() > 1 << 16;
    let mut state = Progress { files_total: source.files().len(), ..Progress::default() };
    let start = Instant::now();
    let mut shards = Vec::new();
    for file in source.files() {
        let source_hash = hash_file(file)?;
        let path = dir.join(shard_name(file, &tokenizer_hash, &source_hash, source.columns()));
        // A shard that is damaged is made again, as one that is missing.
        let shard = match path.is_file().then(|| Shard::open(&path)) {
            Some(Ok(shard)) => {
                state.reused += 1;
                shard
            }
            _ => {
                let hashes = [tokenizer_hash, source_hash];
                write_shard(source, file, tokenizer, wide, hashes, &path, &mut |bytes| {
                    state.bytes += bytes;
                    state.seconds = start.elapsed().as_secs_f64();
                    progress(state);
                })?;
                Shard::open(&path)?
            }
        };
        shards.push(shard);
        state.files += 1;
        state.seconds = start.elapsed().as_secs_f64();
        progress(state);
    }
    Ok(Dataset::new(shards))
}

fn hash_file(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut block).map_err(Error::io("read", path))?;
        if read == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&block[..read]);
    }
}

fn shard_name(file: &Path, tokenizer: &[u8; 32], source: &[u8; 32], columns: &[String]) -> PathBuf {
    let mut key = Sha256::new();
    key.update(VERSION.to_le_bytes());
    key.update(tokenizer);
    key.update(source);
    // The same bytes are other paragraphs under another ending.
    key.update(file.file_name().unwrap_or_default().as_encoded_bytes());
    for column in columns {
        key.update(column.as_bytes());
        key.update([0]);
    }
    let digest: String = key.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("{digest}.tokens"))
}

/// Text gathered for one parallel round.
#[derive(Default)]
struct Round {
    texts: Vec<(String, bool)>,
    bytes: usize,
}

fn write_shard(
    source: &TextSource,
    file: &Path,
    tokenizer: &Tokenizer,
    wide: bool,
    hashes: [[u8; 32]; 2],
    path: &Path,
    tick: &mut dyn FnMut(u64),
) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    // Tokens go to an unnamed file first, because the header, which stands before them, holds their number.
    let mut tokens_file = tempfile::tempfile_in(dir).map_err(Error::io("create a file in", dir))?;
    let mut ends: Vec<u64> = Vec::new();
    let (mut total, mut documents) = (0u64, 0u64);
    let mut round = Round::default();
    let mut opens = false;
    let mut flush = |round: &mut Round| -> Result<()> {
        let encode = |(text, opens): &(String, bool)| Ok((tokenizer.encode(text)?, *opens));
        let encoded: Vec<(Vec<u32>, bool)> = round.texts.par_iter().map(encode).collect::<Result<_>>()?;
        let mut bytes = Vec::new();
        for (ids, starts) in encoded {
            opens |= starts;
            if ids.is_empty() {
                continue;
            }
            match wide {
                true => ids.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes())),
                false => ids.iter().for_each(|&id| bytes.extend_from_slice(&(id as u16).to_le_bytes())),
            }
            total += ids.len() as u64;
            documents += u64::from(opens);
            ends.push(total | if opens { OPENS_DOCUMENT } else { 0 });
            opens = false;
        }
        tokens_file.write_all(&bytes).map_err(Error::io("write tokens in", dir))?;
        tick(round.bytes as u64);
        *round = Round::default();
        Ok(())
    };
    source.read_file(file, &mut |p| {
        round.bytes += p.text.len() + 1;
        round.texts.push((p.text.to_owned(), p.opens_document));
        if round.bytes >= BATCH_BYTES { flush(&mut round) } else { Ok(()) }
    })?;
    flush(&mut round)?;

    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&(if wide { 4u32 } else { 2 }).to_le_bytes());
    for count in [total, ends.len() as u64, documents] {
        header.extend_from_slice(&count.to_le_bytes());
    }
    header.extend_from_slice(&hashes.concat());
    header.resize(HEADER_BYTES, 0);
    tokens_file.seek(SeekFrom::Start(0)).map_err(Error::io("read tokens in", dir))?;
    let width = if wide { 4 } else { 2 };
    write_atomic(path, |out| {
        out.write_all(&header)?;
        std::io::copy(&mut tokens_file, out)?;
        // Paragraph ends are read as u64 and must be aligned.
        out.write_all(&vec![0; (total as usize * width).next_multiple_of(8) - total as usize * width])?;
        ends.iter().try_for_each(|end| out.write_all(&end.to_le_bytes()))
    })
}

impl Shard {
    /// Maps a shard; an error if it is not whole.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        let damaged = |what: &str| {
            Error::file(path, format!("this shard is damaged ({what}): delete it, it is made again"))
        };
        if map.len() < HEADER_BYTES || &map[..8] != MAGIC {
            return Err(damaged("no header"));
        }
        let word = |at: usize| u32::from_le_bytes([map[at], map[at + 1], map[at + 2], map[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let (version, width) = (word(8), word(12));
        if version != VERSION || !matches!(width, 2 | 4) {
            return Err(damaged("another version"));
        }
        let (tokens, paragraphs, documents) = (long(16), long(24), long(32));
        let token_bytes =
            tokens.checked_mul(u64::from(width)).and_then(|bytes| bytes.checked_next_multiple_of(8));
        let expected = token_bytes
            .zip(paragraphs.checked_mul(8))
            .and_then(|(a, b)| a.checked_add(b)?.checked_add(HEADER_BYTES as u64));
        if expected != Some(map.len() as u64) {
            return Err(damaged("its length is not what its header says"));
        }
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let shard = Self {
            path: path.to_path_buf(),
            identity: identity(&metadata),
            map,
            wide: width == 4,
            tokens: tokens as usize,
            paragraphs: paragraphs as usize,
            documents: documents as usize,
        };
        let last = if shard.paragraphs == 0 { 0 } else { shard.end(shard.paragraphs - 1) };
        if last != shard.tokens {
            return Err(damaged("its paragraphs do not end where its tokens do"));
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

    fn raw_end(&self, paragraph: usize) -> u64 {
        let width = if self.wide { 4 } else { 2 };
        let at = HEADER_BYTES + (self.tokens * width).next_multiple_of(8) + 8 * paragraph;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.map[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    /// Tokens up to and with a paragraph.
    pub fn end(&self, paragraph: usize) -> usize {
        ((self.raw_end(paragraph) & !OPENS_DOCUMENT) as usize).min(self.tokens)
    }

    fn opens_document(&self, paragraph: usize) -> bool {
        self.raw_end(paragraph) & OPENS_DOCUMENT != 0
    }

    /// Where a paragraph's tokens lie.
    fn span(&self, paragraph: usize) -> std::ops::Range<usize> {
        let start = if paragraph == 0 { 0 } else { self.end(paragraph - 1) };
        start..self.end(paragraph).max(start)
    }

    /// Appends the tokens of a range.
    fn copy(&self, range: std::ops::Range<usize>, to: &mut Vec<u32>) {
        let width = if self.wide { 4 } else { 2 };
        let bytes = &self.map[HEADER_BYTES + range.start * width..HEADER_BYTES + range.end * width];
        match self.wide {
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
        let mut first = vec![0];
        for shard in &shards {
            first.push(first[first.len() - 1] + shard.paragraphs);
        }
        Self { shards, first }
    }

    /// Paragraphs in all.
    pub fn paragraphs(&self) -> usize {
        self.first[self.shards.len()]
    }

    /// Documents in all.
    pub fn documents(&self) -> usize {
        self.shards.iter().map(|shard| shard.documents).sum()
    }

    /// Tokens in all, without special tokens.
    pub fn tokens(&self) -> usize {
        self.shards.iter().map(|shard| shard.tokens).sum()
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
        let mut start = 0;
        for shard in &self.shards {
            let end = start + shard.tokens + 2 * shard.paragraphs;
            if end > tokens.start && start < tokens.end {
                shard.check()?;
            }
            start = end;
        }
        Ok(())
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

    /// Appends tokens `from..` of a paragraph, `most` at the most.
    pub fn copy_paragraph(&self, paragraph: usize, from: usize, most: usize, to: &mut Vec<u32>) {
        let (shard, local) = self.locate(paragraph);
        let span = shard.span(local);
        let start = (span.start + from).min(span.end);
        shard.copy(start..(start.saturating_add(most)).min(span.end), to);
    }

    /// The paragraph that holds token `at` of the stream in which every paragraph stands as \[CLS\] … \[SEP\], and how
    /// far into it `at` is.
    pub(super) fn framed_position(&self, mut at: usize) -> Option<(usize, usize)> {
        for (index, shard) in self.shards.iter().enumerate() {
            let framed = shard.tokens + 2 * shard.paragraphs;
            if at >= framed {
                at -= framed;
                continue;
            }
            let end = |p: usize| shard.end(p) + 2 * (p + 1);
            let (mut low, mut high) = (0, shard.paragraphs);
            while low < high {
                let middle = (low + high) / 2;
                if end(middle) > at { high = middle } else { low = middle + 1 }
            }
            let start = if low == 0 { 0 } else { end(low - 1) };
            return Some((self.first[index] + low, at - start));
        }
        None
    }
}
