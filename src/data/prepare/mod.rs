//! Text to shards at any size: in constant memory, in parallel, continued after a kill, nothing tokenized twice.
//!
//! ```text
//!  reader thread            │ this thread, all cores          │ writer thread
//!  source → follow or emit ─┼→ duplicates? → tokenize ────────┼→ shards, index
//!               bounded channel of rounds          bounded channel of tokens
//! ```
//!
//! Every source file becomes shards of about [`Spec::shard_bytes`] of text. A shard appears whole or not at all, so what
//! a kill costs is one shard's work. The next run reads the text again up to where shards end and checks by their hashes
//! that it is the same text (`reader.rs`); files that have not changed since are not even read (`index.rs`). Where shards
//! end is decided by the text alone, so a continued preparation writes the same bytes as one that was never stopped.

mod index;
mod reader;
mod writer;

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use self::index::{Index, Stamp, reading};
use self::reader::{Message, Reader};
use self::writer::{Output, write};
use super::dedup::{Dedup, Deduplicator};
use super::rounds::{AHEAD, Round, join, stopped};
use super::shard::{Dataset, Link, VERSION};
use super::shard_writer::UNFINISHED;
use super::source::TextSource;
use super::tokenizer::Tokenizer;
use crate::fsutil::{create_dir, sorted_entries};
use crate::{Error, Result};

/// A longer document may be cut, and is not compared with others: memory would not be bounded.
pub const LONG_DOCUMENT: u64 = 4 << 20;

/// How text is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Which documents are dropped.
    pub dedup: Dedup,
    /// Text after which a shard ends, at the end of a document: what a kill costs at most.
    pub shard_bytes: u64,
}

impl Default for Spec {
    fn default() -> Self {
        Self { dedup: Dedup::None, shard_bytes: 256 << 20 }
    }
}

/// How far `prepare` is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Source files finished.
    pub files: usize,
    /// Source files in all.
    pub files_total: usize,
    /// Files whose text was tokenized before.
    pub files_reused: usize,
    /// Shards that were there.
    pub shards_reused: usize,
    /// Bytes of source files behind, compressed where they are.
    pub source_bytes: u64,
    /// Bytes of source files in all.
    pub source_total: u64,
    /// Of those behind, what was tokenized in this run.
    pub source_done: u64,
    /// Text tokenized in this run, decompressed.
    pub bytes: u64,
    /// Seconds since the first of it.
    pub seconds: f64,
    /// Whether another process prepares into the same directory and is waited for.
    pub waiting: bool,
}

impl Progress {
    /// Text tokenized in a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }

    /// Seconds until everything is tokenized at the rate so far.
    pub fn seconds_left(&self) -> f64 {
        let left = self.source_total.saturating_sub(self.source_bytes) as f64;
        left * self.seconds / (self.source_done as f64).max(1.0)
    }
}

/// Tokenizes every file of `source` into `dir`, or finds it there.
pub fn prepare(
    source: &TextSource,
    tokenizer: &Tokenizer,
    dir: &Path,
    spec: &Spec,
    mut progress: impl FnMut(Progress),
) -> Result<Dataset> {
    create_dir(dir)?;
    let size = |path| fs::metadata(path).map(|m| m.len()).map_err(Error::io("read", path));
    let sizes = source.files().iter().map(size).collect::<Result<Vec<u64>>>()?;
    let mut state =
        Progress { files_total: sizes.len(), source_total: sizes.iter().sum(), ..Progress::default() };
    let _lock = lock(dir, || progress(Progress { waiting: true, ..state }));
    let settings = settings(tokenizer, spec.dedup)?;
    let index = Index::load(dir);
    std::thread::scope(|scope| {
        let (to_us, messages) = sync_channel(AHEAD);
        let (to_writer, outputs) = sync_channel(AHEAD);
        let reader = Reader::new(source, dir, &index, *spec, to_us);
        let reader = scope.spawn(move || reader.run(settings));
        let index = &index;
        let writer = scope.spawn(move || write(source, dir, tokenizer, index, &outputs));
        let start = Instant::now();
        let mut stage = Stage { tokenizer, spec, dedup: Deduplicator::new(spec.dedup), to_writer, start };
        let tokenized = stage.run(&messages, &mut state, &mut progress);
        // The channels close, so that no thread waits for another.
        drop((stage, messages));
        let (read, written) = (join(reader), join(writer));
        // A thread that was left alone says so; the cause is further down the line.
        let shards = written?;
        tokenized?;
        read?;
        source.check_text()?;
        Ok(Dataset::new(shards))
    })
}

/// The shards of every file of `source`, where all of them are known to be in `dir` without reading
/// the text; nothing is tokenized, and nothing in `dir` changes.
pub fn find(source: &TextSource, tokenizer: &Tokenizer, dir: &Path, dedup: Dedup) -> Option<Dataset> {
    let index = Index::load(dir);
    let settings = settings(tokenizer, dedup).ok()?;
    let (mut start, mut shards) = (settings, Vec::new());
    for path in source.files() {
        let names = index.shards(&reading(path, source, &start), &Stamp::of(path).ok()?)?;
        let (mut end, mut is_whole) = (start, false);
        for name in names {
            let (shard, _) = index.open(dir, name).ok()?;
            let header = *shard.header();
            if header.start != end {
                return None;
            }
            (end, is_whole) = (header.end, header.last);
            shards.push(shard);
        }
        if !is_whole {
            return None;
        }
        start = if dedup.compares() { end } else { settings };
    }
    Some(Dataset::new(shards))
}

/// Where every chain begins: what decides the tokens besides the text.
fn settings(tokenizer: &Tokenizer, dedup: Dedup) -> Result<Link> {
    let mut key = Sha256::new();
    key.update(VERSION.to_le_bytes());
    key.update(tokenizer.hash()?);
    key.update(dedup.name());
    Ok(key.finalize().into())
}

/// Keeps other processes out of the directory and clears away what a killed one left. Where files cannot be locked, or
/// not written, there is no lock.
fn lock(dir: &Path, waiting: impl FnOnce()) -> Option<File> {
    let file = File::options().create(true).append(true).open(dir.join(".lock")).ok()?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            waiting();
            file.lock().ok()?;
        }
        Err(TryLockError::Error(_)) => return None,
    }
    for path in sorted_entries(dir).ok()? {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
            let _ = fs::remove_file(path);
        }
    }
    Some(file)
}

/// The middle of the pipeline.
struct Stage<'a> {
    tokenizer: &'a Tokenizer,
    spec: &'a Spec,
    dedup: Deduplicator,
    to_writer: SyncSender<Output>,
    start: Instant,
}

impl Stage<'_> {
    fn run(
        &mut self,
        messages: &Receiver<(Message, u64)>,
        state: &mut Progress,
        progress: &mut impl FnMut(Progress),
    ) -> Result<()> {
        for (message, source_bytes) in messages {
            let output = match message {
                Message::Found(found) => {
                    state.shards_reused += 1;
                    if state.bytes == 0 {
                        self.start = Instant::now();
                    }
                    self.recall(found.shard.keys());
                    Output::Found(found)
                }
                Message::Round(round) => {
                    let bytes = round.bytes();
                    let output = self.tokenize(&round)?;
                    state.bytes += bytes;
                    state.source_done += source_bytes.saturating_sub(state.source_bytes);
                    output
                }
                Message::Cut(place) => Output::Cut(place),
                Message::FileEnd(end) => {
                    state.files += 1;
                    state.files_reused += usize::from(end.reused);
                    Output::FileEnd(end)
                }
            };
            state.source_bytes = source_bytes;
            state.seconds = self.start.elapsed().as_secs_f64();
            self.to_writer.send(output).map_err(|_| stopped())?;
            progress(*state);
        }
        Ok(())
    }

    fn recall(&mut self, keys: impl Iterator<Item = u64>) {
        if self.spec.dedup.compares() {
            self.dedup.recall(&keys.collect::<Vec<_>>());
        }
    }

    fn tokenize(&mut self, round: &Round) -> Result<Output> {
        let (mut keys, mut dropped, mut long) = (Vec::new(), 0, 0);
        let mut keep: Vec<usize> = (0..round.len()).collect();
        if self.spec.dedup.compares() {
            keep.clear();
            let documents = round.documents();
            let of = |document: &std::ops::Range<usize>| {
                let bytes: u64 = document.clone().map(|i| round.text(i).len() as u64 + 1).sum();
                let comparable = round.opens(document.start) && bytes <= LONG_DOCUMENT;
                comparable.then(|| self.dedup.keys(document.clone().map(|i| round.text(i))))
            };
            // In parallel, but decided in the order of the text.
            let compared: Vec<Option<Vec<u64>>> = documents.par_iter().map(of).collect();
            for (document, compared) in documents.into_iter().zip(compared) {
                match compared {
                    Some(new) if self.dedup.admit(&new) => keys.extend(new),
                    Some(_) => {
                        dropped += 1;
                        continue;
                    }
                    None => long += u64::from(round.opens(document.start)),
                }
                keep.extend(document);
            }
        }
        let encode = |&i: &usize| Ok((self.tokenizer.encode(round.text(i))?, round.marks(i)));
        let paragraphs = keep.par_iter().map(encode).collect::<Result<Vec<_>>>()?;
        Ok(Output::Tokens { paragraphs, keys, dropped, long })
    }
}
