//! The cache of `huggingface_hub`, in its own layout:
//!
//! ```text
//! models--owner--name/
//!   refs/main                       the commit that `main` was when it was fetched
//!   blobs/<etag>                    contents, each once; `<etag>.incomplete` while it is fetched
//!   snapshots/<commit>/<file>       links to blobs (copies where links are not to be had)
//!   .no_exist/<commit>/<file>       empty: the model has no such file
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::{ModelName, Part};
use crate::fsutil::{create_dir, write_atomic};
use crate::model::hf::{WEIGHTS, WEIGHTS_INDEX, shard_names};
use crate::{Error, Result};

/// Settings files of a tokenizer, which not every model has; config.json names the class if no
/// other file does.
pub(super) const TOKENIZER_SETTINGS: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"];

/// All that the cache has of one model.
#[derive(Clone, Debug)]
pub struct Repository {
    dir: PathBuf,
}

/// One commit of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    dir: PathBuf,
    absent: PathBuf,
}

impl Repository {
    /// Of a model, whether it is there or not.
    pub fn new(cache: &Path, name: &ModelName) -> Self {
        let folder = format!("models--{}", name.repository().replace('/', "--"));
        Self { dir: cache.join(folder) }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The snapshot of a branch, a tag or a commit.
    pub fn find(&self, revision: &str) -> Option<Snapshot> {
        let itself = self.snapshot(revision);
        if !revision.contains('/') && itself.dir.is_dir() {
            return Some(itself);
        }
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        let commit = commit.trim();
        is_plain(commit).then(|| self.snapshot(commit)).filter(|snapshot| snapshot.dir.is_dir())
    }

    /// The snapshot of a commit.
    pub fn snapshot(&self, commit: &str) -> Snapshot {
        let dir = |kind: &str| self.dir.join(kind).join(commit);
        Snapshot { dir: dir("snapshots"), absent: dir(".no_exist") }
    }

    /// Where a content lies.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Remembers which commit a branch or a tag is.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        create_dir(path.parent().unwrap_or(&self.dir))?;
        write_atomic(&path, |out| out.write_all(commit.as_bytes()))
    }
}

impl Snapshot {
    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a file is there, and not only the name of one.
    pub fn has(&self, file: &str) -> bool {
        self.dir.join(file).is_file()
    }

    /// The first file that `part` needs and that is not here. Whether there are settings of the tokenizer matters
    /// only to who `can_ask` for them.
    pub fn missing(&self, part: Part, can_ask: bool) -> Result<Option<String>> {
        let missing = |file: &str| Ok(Some(file.to_owned()));
        match part {
            Part::Model if !self.has("config.json") => missing("config.json"),
            Part::Model if self.has(WEIGHTS) => Ok(None),
            Part::Model if self.has(WEIGHTS_INDEX) => {
                let shards = shard_names(&self.dir.join(WEIGHTS_INDEX))?;
                Ok(shards.into_iter().find(|file| !self.has(file)))
            }
            Part::Model => missing(WEIGHTS),
            Part::Tokenizer
                if self.has("vocab.json") != self.has("merges.txt") && !self.has_whole_vocabulary() =>
            {
                missing(if self.has("vocab.json") { "merges.txt" } else { "vocab.json" })
            }
            Part::Tokenizer if !self.has("vocab.json") && !self.has_whole_vocabulary() => {
                missing("tokenizer.json")
            }
            Part::Tokenizer => {
                let unknown = |file: &&&str| !self.has(file) && !self.absent.join(file).is_file();
                Ok(TOKENIZER_SETTINGS.iter().find(unknown).filter(|_| can_ask).map(|&file| file.to_owned()))
            }
        }
    }

    /// Whether the snapshot has one of the files that are a vocabulary on their own.
    fn has_whole_vocabulary(&self) -> bool {
        self.has("tokenizer.json") || self.has("vocab.txt")
    }

    /// Remembers that the model has no such file.
    pub fn set_absent(&self, file: &str) -> Result<()> {
        create_dir(&self.absent)?;
        write_atomic(&self.absent.join(file), |_| Ok(()))
    }

    /// Gives a content its name, in one step.
    pub fn link(&self, blob: &Path, file: &str) -> Result<()> {
        create_dir(&self.dir)?;
        let path = self.dir.join(file);
        let etag = blob.file_name().unwrap_or_default();
        let fresh = self.dir.join(format!(".{file}-{}", std::process::id()));
        let linked = link(&Path::new("../../blobs").join(etag), blob, &fresh);
        let moved = linked.and_then(|()| fs::rename(&fresh, &path));
        if moved.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        moved.map_err(Error::io("link", path))
    }
}

#[cfg(unix)]
fn link(relative: &Path, _: &Path, fresh: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, fresh)
}

/// Elsewhere links need privileges.
#[cfg(not(unix))]
fn link(_: &Path, blob: &Path, fresh: &Path) -> std::io::Result<()> {
    fs::copy(blob, fresh).map(|_| ())
}

/// Whether a name from a file or from a server may become that of a file.
pub(super) fn is_plain(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}
