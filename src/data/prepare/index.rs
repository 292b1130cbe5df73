//! What is known without reading: which shards hold a source file's text, and which shards were found whole.
//!
//! `index.jsonl` lies beside the shards. It is a cache: any line of it may be lost, then the text or the shard is read
//! again (not tokenized again). A line counts while the file it speaks of has the same size, times and inode as then; it
//! is written only when the file had been left alone for two seconds before it was read, because times are coarse: a
//! change within the same tick would not show.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::shard::{Link, Shard};
use crate::data::source::{Reading, TextSource};
use crate::fsutil::write_atomic;
use crate::{Error, Result};

/// A file whose times are younger may change again without showing it.
const SETTLED: Duration = Duration::from_secs(2);
/// Lines that no longer count and are kept all the same.
const STALE_LINES: usize = 1000;

/// By what a file is known to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    /// When anything of it was changed, the times included (Unix).
    changed: u64,
    inode: u64,
}

impl Stamp {
    pub(super) fn of(path: &Path) -> Result<Self> {
        Ok(Self::from_metadata(&fs::metadata(path).map_err(Error::io("read", path))?))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
        let modified = metadata.modified().map_or(0, since);
        #[cfg(unix)]
        let (changed, inode) = {
            use std::os::unix::fs::MetadataExt;
            ((metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec()) as u64, metadata.ino())
        };
        #[cfg(not(unix))]
        let (changed, inode) = (modified, 0);
        Self { size: metadata.len(), modified, changed, inode }
    }

    /// Whether a change after `now` must show.
    pub(super) fn settled(&self, now: SystemTime) -> bool {
        let latest = UNIX_EPOCH + Duration::from_nanos(self.modified.max(self.changed));
        now.duration_since(latest).is_ok_and(|age| age > SETTLED)
    }
}

/// Which reading of which file: everything that decides its chain of shards besides its content.
pub(super) fn reading(path: &Path, source: &TextSource, start: &Link) -> String {
    let mut key = Sha256::new();
    key.update(start);
    if source.reading() == Reading::Whole {
        key.update(b"whole");
    }
    let columns = source.columns();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    for part in
        std::iter::once(path.as_os_str().as_encoded_bytes()).chain(columns.iter().map(|c| c.as_bytes()))
    {
        key.update((part.len() as u64).to_le_bytes());
        key.update(part);
    }
    hex(&key.finalize()[..16])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// A source file was read whole: its shards.
    Read { reading: String, stamp: Stamp, shards: Vec<String> },
    /// A shard's content was read, or written.
    Whole { shard: String, stamp: Stamp },
}

/// The lines that count.
#[derive(Default)]
pub(super) struct Index {
    read: HashMap<String, (Stamp, Vec<String>)>,
    whole: HashMap<String, Stamp>,
    /// Whether the last line was cut short.
    torn: bool,
}

impl Index {
    fn path(dir: &Path) -> PathBuf {
        dir.join("index.jsonl")
    }

    /// Reads it; what cannot be read is as if it were not there.
    pub(super) fn load(dir: &Path) -> Self {
        let mut index = Self::default();
        let text = fs::read(Self::path(dir)).unwrap_or_default();
        index.torn = text.last().is_some_and(|&byte| byte != b'\n');
        let mut lines = 0;
        for line in text.split(|&byte| byte == b'\n') {
            lines += 1;
            match serde_json::from_slice(line) {
                Ok(Line::Read { reading, stamp, shards }) => {
                    index.read.insert(reading, (stamp, shards));
                }
                Ok(Line::Whole { shard, stamp }) => {
                    index.whole.insert(shard, stamp);
                }
                Err(_) => {}
            }
        }
        if lines > 2 * (index.read.len() + index.whole.len()) + STALE_LINES {
            // A failure leaves the long file, which serves as well.
            let _ = index.rewrite(dir);
        }
        index
    }

    fn rewrite(&self, dir: &Path) -> Result<()> {
        write_atomic(&Self::path(dir), |out| {
            for (reading, (stamp, shards)) in &self.read {
                let (reading, shards) = (reading.clone(), shards.clone());
                append(out, &Line::Read { reading, stamp: *stamp, shards })?;
            }
            for (shard, stamp) in &self.whole {
                append(out, &Line::Whole { shard: shard.clone(), stamp: *stamp })?;
            }
            Ok(())
        })
    }

    /// The shards of a reading, if the file is the same.
    pub(super) fn shards(&self, reading: &str, stamp: &Stamp) -> Option<&[String]> {
        let (then, shards) = self.read.get(reading)?;
        (then == stamp).then_some(shards)
    }

    /// Opens a shard; one that is not known to be whole is read first.
    pub(super) fn open(&self, dir: &Path, name: &str) -> Result<(Shard, Stamp)> {
        let path = dir.join(name);
        let stamp = Stamp::of(&path)?;
        if self.whole.get(name) != Some(&stamp) {
            Shard::verify(&path)?;
        }
        Ok((Shard::open(&path)?, stamp))
    }
}

fn append(out: &mut dyn Write, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    out.write_all(&text)
}

/// Adds lines.
pub(super) struct IndexWriter<'a> {
    dir: &'a Path,
    index: &'a Index,
    file: Option<File>,
    /// Whole shards whose times are too young to be trusted.
    young: Vec<(String, Stamp)>,
}

impl<'a> IndexWriter<'a> {
    pub(super) fn new(dir: &'a Path, index: &'a Index) -> Self {
        // Shards may be read where nothing can be written.
        let mut file = File::options().create(true).append(true).open(Index::path(dir)).ok();
        if index.torn
            && let Some(file) = &mut file
        {
            let _ = file.write_all(b"\n");
        }
        Self { dir, index, file, young: Vec::new() }
    }

    fn line(&mut self, line: &Line) {
        // Without the line the next run reads more.
        if self.file.as_mut().is_some_and(|file| append(file, line).is_err()) {
            self.file = None;
        }
    }

    /// A shard was whole when it had this stamp.
    pub(super) fn whole(&mut self, shard: String, stamp: Stamp) {
        if self.index.whole.get(&shard) != Some(&stamp) {
            self.young.push((shard, stamp));
        }
    }

    /// A file was read to its end; `stamp` is of before it was opened.
    pub(super) fn read(&mut self, path: &Path, reading: String, stamp: Stamp, shards: Vec<String>) {
        if Stamp::of(path).is_ok_and(|now| now == stamp) {
            self.line(&Line::Read { reading, stamp, shards });
        }
    }

    /// Writes down the shards that have not changed and now would show it if they did.
    pub(super) fn settle(&mut self) {
        let now = SystemTime::now();
        let (settled, young): (Vec<_>, Vec<_>) =
            self.young.drain(..).partition(|(_, stamp)| stamp.settled(now));
        self.young = young;
        for (shard, stamp) in settled {
            if Stamp::of(&self.dir.join(&shard)).is_ok_and(|now| now == stamp) {
                self.line(&Line::Whole { shard, stamp });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_trusted_when_they_are_old() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = Stamp::of(file.path()).unwrap();
        let latest = UNIX_EPOCH + Duration::from_nanos(stamp.modified.max(stamp.changed));
        assert!(!stamp.settled(latest) && !stamp.settled(latest + SETTLED));
        assert!(stamp.settled(latest + SETTLED + Duration::from_nanos(1)));
        assert!(!stamp.settled(latest - Duration::from_secs(9)), "a time in the future says nothing");
        // Who sets an old time changes the time of the change.
        file.as_file().set_modified(UNIX_EPOCH).unwrap();
        assert_ne!(Stamp::of(file.path()).unwrap(), stamp);
    }
}
