//! Files that are either whole or not there: written under a temporary name beside their own, synced, renamed.
//!
//! An error on the way removes the temporary file. A process that is killed on the way leaves it; the next one that
//! owns the directory calls [`remove_unfinished`].

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// How the names of files begin that are being written.
const UNFINISHED: &str = ".writing-";

/// Writes a file through `fill`; on any failure what stood at `path` before is untouched.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, AtomicFile::create(parent(path), UNFINISHED)?);
    fill(&mut out).map_err(Error::io("write", path))?;
    let file = out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
    file.commit_as(path)
}

/// A file that appears under its name when it is committed.
pub(crate) struct AtomicFile(NamedTempFile);

impl AtomicFile {
    /// A file that will be in `dir`; until then its name begins with `prefix`.
    pub(crate) fn create(dir: &Path, prefix: &str) -> Result<Self> {
        let file = tempfile::Builder::new().prefix(prefix).tempfile_in(dir);
        file.map(Self).map_err(Error::io("create a file in", dir))
    }

    /// Makes it whole and lasting under `path`, which is in its directory.
    pub(crate) fn commit_as(self, path: &Path) -> Result<()> {
        self.0.as_file().sync_all().map_err(Error::io("write", path))?;
        set_default_permissions(self.0.as_file()).map_err(Error::io("write", path))?;
        self.0.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
        sync_dir(parent(path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.as_file_mut().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.as_file_mut().seek(to)
    }
}

/// Creates a directory and its parents.
pub fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("create the directory", path))
}

/// Removes what a killed process left half written in a directory that is this process's own.
pub fn remove_unfinished(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for path in sorted_entries(dir)? {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Removes a file, if there is one.
pub fn remove_file_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Makes what was written to a file, through whatever handle, last through a power cut.
pub fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

/// Temporary files are private; results are for everyone who may read the directory.
fn set_default_permissions(file: &File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    let _ = file;
    Ok(())
}

/// Makes a rename last through a power cut.
fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))?;
    }
    Ok(())
}

/// The entries of a directory, sorted by name.
pub fn sorted_entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::io("read the directory", dir))?;
    let mut paths = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::io("read", dir))?;
    paths.sort();
    Ok(paths)
}
