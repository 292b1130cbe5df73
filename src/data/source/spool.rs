//! Pipes as named inputs: `<(zcat a.gz)`, `/dev/stdin`, a FIFO. Text is read more than once (its size, its
//! vocabulary, its tokens), a pipe can be read once: its content is copied to a file first.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::format_of;
use crate::fsutil::{create_dir, write_atomic};
use crate::{Error, Result};

/// A pipe and the file that its content is copied to.
#[derive(Debug)]
pub struct Spooled {
    from: PathBuf,
    to: PathBuf,
}

impl Spooled {
    /// Copies everything that the pipe gives.
    pub fn copy(&self) -> Result<()> {
        let mut from: Box<dyn io::Read> = match self.from == Path::new("-") {
            true => Box::new(io::stdin().lock()),
            false => Box::new(File::open(&self.from).map_err(Error::io("read", &self.from))?),
        };
        create_dir(self.to.parent().unwrap_or(Path::new(".")))?;
        write_atomic(&self.to, |out| io::copy(&mut from, out).map(|_| ()))
    }
}

/// Replaces the pipes among `paths` by files in `dir`, and returns what must be copied before these are read. With
/// `again` a copy that is there already is taken, since the pipe of an earlier run is gone.
pub fn spool(paths: &mut [PathBuf], dir: &Path, again: bool) -> Result<Vec<Spooled>> {
    let mut all = Vec::new();
    for path in paths {
        let to = dir.join(name_of(path));
        if again && to.is_file() {
            *path = to;
        } else if is_pipe(path)? {
            all.push(Spooled { from: std::mem::replace(path, to.clone()), to });
        }
    }
    Ok(all)
}

/// Plain text, unless the name of the pipe says otherwise.
fn name_of(pipe: &Path) -> String {
    let hash: String =
        Sha256::digest(pipe.as_os_str().as_encoded_bytes())[..4].iter().map(|b| format!("{b:02x}")).collect();
    let name = pipe.file_name().filter(|_| pipe != Path::new("-")).unwrap_or("stdin".as_ref());
    let ending = if format_of(pipe).is_some() { "" } else { ".txt" };
    format!("pipe-{hash}-{}{ending}", name.to_string_lossy())
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
