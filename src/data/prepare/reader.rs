//! The thread that reads: it passes by text whose shards are there and hands on the rest, cut into shards.
//!
//! A file's shards form a chain of SHA-256 hashes: a shard is named by the hash before it and the one after its text.
//! The reader hashes as it goes. Where shards begin with its hash it *follows* them: if the hash at their end is theirs
//! too, the text is the same and the shard is taken, else it goes back and *emits* that text to be tokenized.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::index::{Index, Stamp, hex, reading};
use super::{LONG_DOCUMENT, Spec};
use crate::data::rounds::{Round, round_bytes, stopped};
use crate::data::shard::{Header, Link, Shard};
use crate::data::source::{Paragraph, TextSource};
use crate::fsutil::sorted_entries;
use crate::{Error, Result};

/// Paragraphs after which a shard ends like one of enough text.
const SHARD_PARAGRAPHS: u64 = 4 << 20;

/// A shard that is there.
pub(super) struct Found {
    pub(super) shard: Shard,
    pub(super) name: String,
    pub(super) stamp: Stamp,
}

/// What became of a source file.
pub(super) struct FileEnd {
    pub(super) file: usize,
    /// What the index shall know: this reading, and the file before it was opened. Nothing if it knows, or if the
    /// file's times are too young.
    pub(super) known_as: Option<(String, Stamp)>,
    /// Whether all its shards were there.
    pub(super) reused: bool,
}

/// In the order of the text.
pub(super) enum Message {
    Found(Box<Found>),
    Round(Round),
    /// A shard ends here.
    Cut(Box<Header>),
    FileEnd(FileEnd),
}

/// The name of a shard.
pub(super) fn shard_name(start: &Link, end: &Link) -> String {
    format!("{}-{}.tokens", hex(&start[..8]), hex(&end[..8]))
}

/// Names of the shards that begin at one place: by the paragraphs read at their end and whether the file ends there, and
/// by the hash at their end.
type Beginning = BTreeMap<(u64, bool), HashMap<Link, String>>;
type Shards = HashMap<Link, Beginning>;

fn list(dir: &Path) -> Result<Shards> {
    let mut shards = Shards::new();
    for path in sorted_entries(dir)?.iter().filter(|path| path.extension().is_some_and(|e| e == "tokens")) {
        // A shard of another version, or one that is damaged, is as if it were not there.
        if let Ok(header) = Header::read(path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let here = shards.entry(header.start).or_default();
            here.entry((header.read, header.last)).or_default().insert(header.end, name);
        }
    }
    Ok(shards)
}

pub(super) struct Reader<'a> {
    source: &'a TextSource,
    dir: &'a Path,
    index: &'a Index,
    spec: Spec,
    /// The shards that lie there, once they are asked for.
    shards: Option<Shards>,
    /// With the bytes of source files that lie behind.
    sender: SyncSender<(Message, u64)>,
    /// Bytes of the files before this one, and of this one.
    behind: u64,
    size: u64,
    /// The source's count when this file was opened.
    opened_at: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        source: &'a TextSource,
        dir: &'a Path,
        index: &'a Index,
        spec: Spec,
        sender: SyncSender<(Message, u64)>,
    ) -> Self {
        Self { source, dir, index, spec, shards: None, sender, behind: 0, size: 0, opened_at: 0 }
    }

    /// Reads every file; `settings` is where chains begin.
    pub(super) fn run(mut self, settings: Link) -> Result<()> {
        let mut start = settings;
        for (file, path) in self.source.files().iter().enumerate() {
            let end = self.file(file, path, start)?;
            // What is a duplicate depends on everything before.
            start = if self.spec.dedup.compares() { end } else { settings };
        }
        Ok(())
    }

    fn file(&mut self, file: usize, path: &Path, start: Link) -> Result<Link> {
        let (now, stamp) = (SystemTime::now(), Stamp::of(path)?);
        let reading = reading(path, self.source, &start);
        (self.size, self.opened_at) = (stamp.size, self.source.bytes_read());
        let known = match self.index.shards(&reading, &stamp) {
            Some(names) => self.known(names, &start)?,
            None => None,
        };
        let settled = stamp.settled(now);
        let (end, reused, known_as) = match known {
            Some(found) => {
                let end = found.last().map_or(start, |last| last.shard.header().end);
                found.into_iter().try_for_each(|found| self.send(Message::Found(Box::new(found))))?;
                (end, true, None)
            }
            None => {
                let (end, reused) = Walk::new(self, start)?.run(path)?;
                (end, reused, settled.then_some((reading, stamp)))
            }
        };
        (self.behind, self.size) = (self.behind + stamp.size, 0);
        self.send(Message::FileEnd(FileEnd { file, known_as, reused }))?;
        Ok(end)
    }

    /// The shards of a whole file, if they are whole and follow each other.
    fn known(&self, names: &[String], start: &Link) -> Result<Option<Vec<Found>>> {
        let (mut all, mut at, mut whole) = (Vec::new(), *start, false);
        for name in names {
            let Some(found) = self.open(name)? else { return Ok(None) };
            let header = found.shard.header();
            if header.start != at {
                return Ok(None);
            }
            (at, whole) = (header.end, header.last);
            all.push(found);
        }
        Ok(whole.then_some(all))
    }

    /// A shard that is whole; one that is damaged is removed.
    fn open(&self, name: &str) -> Result<Option<Found>> {
        match self.index.open(self.dir, name) {
            Ok((shard, stamp)) => Ok(Some(Found { shard, name: name.to_owned(), stamp })),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(Error::File { path, .. }) => {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                Ok(None)
            }
            // The disk, or too many maps: no fault of the shard's.
            Err(error) => Err(error),
        }
    }

    fn send(&self, message: Message) -> Result<()> {
        let read = self.source.bytes_read().saturating_sub(self.opened_at).min(self.size);
        self.sender.send((message, self.behind + read)).map_err(|_| stopped())
    }
}

/// The way through one file.
struct Walk<'a, 'b> {
    reader: &'a mut Reader<'b>,
    /// The shard that is followed or emitted: where it began and how much is read of it.
    place: Header,
    /// Paragraphs of the file before the shard.
    from: u64,
    /// Paragraphs of the file read in this pass.
    passed: u64,
    hash: Sha256,
    /// Whether shards may hold the text from here on; else it is emitted.
    following: bool,
    round: Round,
    round_bytes: u64,
    /// Bytes of the document so far.
    document: u64,
    go_back: bool,
    reused: bool,
}

impl<'a, 'b> Walk<'a, 'b> {
    fn new(reader: &'a mut Reader<'b>, start: Link) -> Result<Self> {
        if reader.shards.is_none() {
            reader.shards = Some(list(reader.dir)?);
        }
        let mut walk = Self {
            reader,
            place: Header::default(),
            from: 0,
            passed: 0,
            hash: Sha256::new(),
            following: false,
            round: Round::default(),
            round_bytes: round_bytes(),
            document: 0,
            go_back: false,
            reused: true,
        };
        walk.begin_shard(start);
        Ok(walk)
    }

    /// Reads the file, again where shards that were followed prove to hold other text. Returns the end of the chain and
    /// whether every shard was there.
    fn run(mut self, path: &Path) -> Result<(Link, bool)> {
        loop {
            self.reader.opened_at = self.reader.source.bytes_read();
            let source = self.reader.source;
            let read = source.read_file(path, &mut |p| self.paragraph(p)).and_then(|()| self.end(path));
            if !std::mem::take(&mut self.go_back) {
                return read.map(|()| (self.place.start, self.reused));
            }
            self.passed = 0;
            self.document = 0;
            self.place = Header { start: self.place.start, read: self.from, ..Header::default() };
            self.hash = Sha256::new_with_prefix(self.place.start);
            self.following = false;
        }
    }

    fn begin_shard(&mut self, start: Link) {
        self.from = self.place.read;
        self.place = Header { start, read: self.from, ..Header::default() };
        self.hash = Sha256::new_with_prefix(start);
        self.following = self.shards_here().is_some();
    }

    /// The shards that begin where this one began.
    fn shards_here(&self) -> Option<&Beginning> {
        self.reader.shards.as_ref()?.get(&self.place.start)
    }

    fn paragraph(&mut self, p: Paragraph<'_>) -> Result<()> {
        let bytes = p.text.len() as u64 + 1;
        if self.passed >= self.from {
            if self.following {
                self.follow(false)?;
            }
            // A pair stays together.
            let may_end = p.opens_document || !p.pair && self.document > LONG_DOCUMENT;
            if !self.following && may_end {
                self.cut_or_flush()?;
            }
            self.hash.update([u8::from(p.opens_document) | u8::from(p.pair) << 1]);
            self.hash.update(bytes.to_le_bytes());
            self.hash.update(p.text);
            self.place.read += 1;
            self.place.bytes += bytes;
            if !self.following {
                self.round.push(p);
            }
        }
        self.passed += 1;
        self.document = bytes + if p.opens_document { 0 } else { self.document };
        Ok(())
    }

    /// The hash at this place. The end of a file is a part of it: text after it would belong to the last document.
    fn link(&self, last: bool) -> Link {
        let mut hash = self.hash.clone();
        hash.update([0xff, u8::from(last)]);
        hash.finalize().into()
    }

    /// Takes the shard that ends here, if it holds the text that was read. An error, to go back, if none can any more.
    fn follow(&mut self, last: bool) -> Result<()> {
        let place = (self.place.read, last);
        if let Some(ends) = self.shards_here().and_then(|shards| shards.get(&place)) {
            let link = self.link(last);
            let found = ends.get(&link).map(|name| self.reader.open(name)).transpose()?.flatten();
            if let Some(found) = found {
                self.reader.send(Message::Found(Box::new(found)))?;
                self.begin_shard(link);
                return Ok(());
            }
        }
        let furthest = self.shards_here().and_then(|shards| shards.last_key_value());
        if last || furthest.is_none_or(|(&end, _)| end <= place) {
            self.go_back = true;
            return Err(stopped());
        }
        Ok(())
    }

    fn cut_or_flush(&mut self) -> Result<()> {
        let paragraphs = self.place.read - self.from;
        if self.place.bytes >= self.reader.spec.shard_bytes || paragraphs >= SHARD_PARAGRAPHS {
            self.cut(false)?;
        } else if self.round.bytes() >= self.round_bytes {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        match self.round.len() {
            0 => Ok(()),
            _ => self.reader.send(Message::Round(std::mem::take(&mut self.round))),
        }
    }

    fn cut(&mut self, last: bool) -> Result<()> {
        self.flush()?;
        self.reused = false;
        let end = self.link(last);
        self.reader.send(Message::Cut(Box::new(Header { end, last, ..self.place })))?;
        self.begin_shard(end);
        Ok(())
    }

    fn end(&mut self, path: &Path) -> Result<()> {
        if self.passed < self.from {
            return Err(Error::file(path, "this file was changed while it was read: start again"));
        }
        if self.passed == 0 {
            // Without text there is no shard.
            return Ok(());
        }
        // A shard of text is always open here: one ends only before a paragraph.
        if self.following { self.follow(true) } else { self.cut(true) }
    }
}
