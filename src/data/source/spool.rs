//! Pipes as named inputs: `<(zcat a.gz)`, `/dev/stdin`, a FIFO. Text is read more than once (its
//! size, its vocabulary, its tokens), while a pipe can be read only once: its content is copied to
//! a file first.
//!
//! The name of the copy contains the name of the pipe, so that messages can name what the user
//! gave.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::format_of;
use crate::fsutil::{create_dir, write_atomic};
use crate::{Error, Result};

/// Begins the names of copies.
const PREFIX: &str = "pipe-";
/// Replaces the slashes in the name of a pipe (U+2215).
const SLASH: &str = "∕";
/// Ends the name of a copy of plain text whose pipe has no ending.
const TEXT: &str = ".pipe.txt";
/// The most bytes of a pipe's name within the name of its copy.
const MAX_NAME_BYTES: usize = 200;

/// A pipe and the file that its content is copied to.
#[derive(Debug)]
pub struct Spooled {
    from: PathBuf,
    to: PathBuf,
    is_kept: bool,
}

impl Spooled {
    /// What the user gave.
    pub fn name(&self) -> &Path {
        &self.from
    }

    /// Whether the copy that an earlier process made is read instead of the pipe.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Copies everything that the pipe gives, unless an earlier copy is read.
    pub fn copy(&self) -> Result<()> {
        if self.is_kept {
            return Ok(());
        }
        let mut from: Box<dyn io::Read> = match self.from == Path::new("-") {
            true => Box::new(io::stdin().lock()),
            false => Box::new(File::open(&self.from).map_err(Error::io("read", &self.from))?),
        };
        create_dir(self.to.parent().unwrap_or(Path::new(".")))?;
        write_atomic(&self.to, |out| io::copy(&mut from, out).map(|_| ()))
    }
}

/// Replaces the pipes among `paths` by files in `dir`, and returns what must be copied before these
/// are read. With `again`, a copy that already exists is kept, since the pipe of the process that
/// made it no longer exists.
pub fn spool(paths: &mut [PathBuf], dir: &Path, again: bool) -> Result<Vec<Spooled>> {
    let mut all = Vec::new();
    for path in paths {
        let to = dir.join(name_of(path));
        let is_kept = again && to.is_file();
        if is_kept || is_pipe(path)? {
            let from = std::mem::replace(path, to.clone());
            // A pipe that is named twice is copied once.
            if !all.iter().any(|known: &Spooled| known.to == to) {
                all.push(Spooled { from, to, is_kept });
            }
        }
    }
    Ok(all)
}

/// What the user gave: the pipe, if `path` is the copy of one.
pub fn given_name(path: &Path) -> PathBuf {
    pipe_of(path).unwrap_or_else(|| path.to_path_buf())
}

/// The place of a copy whose directory was moved to `dir`; `None` if `path` is no copy.
pub fn moved_copy(path: &Path, dir: &Path) -> Option<PathBuf> {
    pipe_of(path).and(path.file_name()).map(|name| dir.join(name))
}

/// The pipe that a file is the copy of.
pub(super) fn pipe_of(copy: &Path) -> Option<PathBuf> {
    let name = copy.file_name()?.to_str()?;
    let (_, encoded) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let pipe = PathBuf::from(encoded.strip_suffix(TEXT).unwrap_or(encoded).replace(SLASH, "/"));
    (name_of(&pipe) == name).then_some(pipe)
}

/// An error that names the pipe, where it named the copy.
pub(super) fn name_pipe(error: Error) -> Error {
    match error {
        Error::Line { path, line, problem } => Error::line(given_name(&path), line, problem),
        Error::File { path, problem } => Error::file(given_name(&path), problem),
        other => other,
    }
}

/// The name of the copy: a hash that makes it unique and the name of the pipe. The copy is plain
/// text, unless the name of the pipe says otherwise.
fn name_of(pipe: &Path) -> String {
    let hash: String =
        Sha256::digest(pipe.as_os_str().as_encoded_bytes())[..4].iter().map(|b| format!("{b:02x}")).collect();
    let mut name = pipe.to_string_lossy().replace('/', SLASH);
    if name.len() > MAX_NAME_BYTES {
        name = pipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    let ending = if format_of(pipe).is_some() { "" } else { TEXT };
    format!("{PREFIX}{hash}-{name}{ending}")
}

/// Whether a path is to be read like a pipe. Devices, of which some never end, are refused.
fn is_pipe(path: &Path) -> Result<bool> {
    if path == Path::new("-") {
        return Ok(true);
    }
    let Ok(metadata) = fs::metadata(path) else { return Ok(false) };
    if metadata.is_dir() {
        return Ok(false);
    }
    if metadata.is_file() {
        // Standard input may be a file, whose name is not known.
        let descriptor = ["/dev/stdin", "/dev/fd/", "/proc/self/fd/"];
        return Ok(path.to_str().is_some_and(|path| descriptor.iter().any(|d| path.starts_with(d))));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() || kind.is_socket() {
            return Ok(true);
        }
        let terminal = || File::open(path).is_ok_and(|file| file.is_terminal());
        if kind.is_char_device() && (path == Path::new("/dev/null") || terminal()) {
            return Ok(true);
        }
    }
    Err(Error::file(path, "this is a device, not text: name a file, a folder, a glob or a pipe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_pipe_that_is_named_twice_is_copied_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = ["-", "a.txt", "-", "/dev/null"].map(PathBuf::from);
        let pipes = spool(&mut paths, dir.path(), false).unwrap();
        assert_eq!(pipes.iter().map(Spooled::name).collect::<Vec<_>>(), ["-", "/dev/null"].map(Path::new));
        assert_eq!(paths[1], Path::new("a.txt"));
        assert!(paths[0] == paths[2] && paths[0].starts_with(dir.path()));
    }

    #[test]
    fn the_name_of_a_copy_gives_the_name_of_its_pipe() {
        for (pipe, format) in [("-", ".txt"), ("/dev/fd/63", ".txt"), ("q/p.jsonl.gz", ".jsonl.gz")] {
            let copy = Path::new("pipes").join(name_of(Path::new(pipe)));
            assert_eq!(given_name(&copy), Path::new(pipe));
            assert!(copy.to_str().unwrap().ends_with(format), "{}", copy.display());
        }
        for other in ["pipe-12345678-a.txt", "pipe-a.txt", "a.txt", "pipes/a.pipe.txt"] {
            assert_eq!(pipe_of(Path::new(other)), None);
        }
        let long = format!("/{}/p.txt", "directory/".repeat(40));
        assert!(name_of(Path::new(&long)).len() < 255);
    }
}
