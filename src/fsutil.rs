//! Files that are either whole or not there: written under a temporary name beside their own, synced, renamed.
//!
//! An error on the way removes the temporary file. A process that is killed on the way leaves it; the next one that
//! owns the directory calls [`remove_unfinished`]. Only regular files are replaced: see `target`.

mod target;

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};
use target::Target;

/// How the names of files begin that are being written.
const UNFINISHED: &str = ".writing-";
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a file through `fill`; on any failure what stood at `path` before is untouched.
///
/// A symbolic link stays, and the file it points to is written. A FIFO, a device or a name such as
/// `/dev/stdout` is opened and written to.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let target = Target::of(path)?;
    if let Target::File(file) = &target {
        let permissions = fs::metadata(file).ok().map(|metadata| metadata.permissions());
        let temporary = AtomicFile::with_permissions(parent(file), UNFINISHED, permissions)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, temporary);
        fill(&mut out).map_err(Error::io("write", path))?;
        let temporary = out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
        return temporary.replace(file);
    }
    let written = target.open().and_then(|file| {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        let filled = fill(&mut out).and_then(|()| out.flush());
        if filled.is_err() {
            // Without this, dropping the writer would try again to write what is left in its buffer.
            drop(out.into_parts());
        }
        filled
    });
    match (written, target) {
        (Err(e), Target::Descriptor(_)) if e.kind() == io::ErrorKind::BrokenPipe => Err(Error::OutputClosed),
        (written, _) => written.map_err(Error::io("write", path)),
    }
}

/// An error if `path` cannot be the name of an output, for commands that compute for a long time before
/// they write.
pub fn check_output(path: &Path) -> Result<()> {
    match Target::of(path)? {
        Target::File(file) if !parent(&file).is_dir() => Err(Error::file(
            path,
            format!("there is no directory {}: create it first", parent(&file).display()),
        )),
        _ => Ok(()),
    }
}

/// An error if `path` is one of the files `others`, which the command reads or writes too.
pub fn check_apart<'a>(path: &Path, others: impl Iterator<Item = &'a Path>) -> Result<()> {
    let Ok(file) = path.canonicalize() else { return Ok(()) };
    for other in others {
        if file.is_file() && other.canonicalize().is_ok_and(|other| other == file) {
            let problem = "this output is one of the other files that the command reads or writes: give it \
                       another name";
            return Err(Error::file(path, problem));
        }
    }
    Ok(())
}

/// Whether what is written to `path` goes to standard output, where nothing else may be printed in that
/// case.
pub fn is_stdout(path: &Path) -> bool {
    matches!(Target::of(path), Ok(Target::Descriptor(1)))
}

/// A file that appears under its name when it is committed.
pub(crate) struct AtomicFile(NamedTempFile);

impl AtomicFile {
    /// A file that will be in `dir`; until then its name begins with `prefix`.
    pub(crate) fn create(dir: &Path, prefix: &str) -> Result<Self> {
        Self::with_permissions(dir, prefix, None)
    }

    /// As [`Self::create`], with the permissions of the file that it replaces, or else of any new file.
    fn with_permissions(dir: &Path, prefix: &str, permissions: Option<Permissions>) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix);
        if let Some(permissions) = permissions.or(permissions_of_new_files()) {
            builder.permissions(permissions);
        }
        builder.tempfile_in(dir).map(Self).map_err(Error::io("create a file in", dir))
    }

    /// Writes it to disk and gives it the name `path`.
    pub(crate) fn commit_as(mut self, path: &Path) -> Result<()> {
        match Target::of(path)? {
            Target::File(file) if file == path => self.replace(path),
            // What a link points to may be on another file system, where a rename would fail.
            _ => {
                self.seek(SeekFrom::Start(0)).map_err(Error::io("write", path))?;
                write_atomic(path, |out| io::copy(self.0.as_file_mut(), out).map(drop))
            }
        }
    }

    /// Renames it over a regular file, or to a name that is free.
    fn replace(self, path: &Path) -> Result<()> {
        if let Ok(before) = fs::metadata(path) {
            keep_owner_and_mode(self.0.as_file(), &before);
        }
        self.0.as_file().sync_all().map_err(Error::io("write", path))?;
        self.0.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
        sync_dir(parent(path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_file_mut().flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.as_file_mut().seek(to)
    }
}

/// Creates a directory and its parents; where a link points to nothing yet, the directory that it points
/// to.
pub fn create_dir(path: &Path) -> Result<()> {
    let Err(error) = fs::create_dir_all(path) else { return Ok(()) };
    let in_the_way = path.ancestors().find(|dir| fs::symlink_metadata(dir).is_ok());
    match in_the_way {
        Some(file) if file.is_file() => {
            Err(Error::file(file, "this is a file; expected a directory or a name that is free"))
        }
        Some(link) if link.is_symlink() && !link.exists() => {
            let dir = target::behind(link);
            fs::create_dir_all(&dir).map_err(Error::io("create the directory", &dir))?;
            fs::create_dir_all(path).map_err(Error::io("create the directory", path))
        }
        _ => Err(Error::io("create the directory", path)(error)),
    }
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

/// Removes a file, if it exists.
pub fn remove_file_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

/// The mode that programs ask for when they create a file, from which the umask takes bits.
#[cfg(unix)]
fn permissions_of_new_files() -> Option<Permissions> {
    use std::os::unix::fs::PermissionsExt;
    Some(Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn permissions_of_new_files() -> Option<Permissions> {
    None
}

/// Gives a file the owner and the mode of the one it replaces, as far as this user may.
#[cfg(unix)]
fn keep_owner_and_mode(file: &File, before: &fs::Metadata) {
    use std::os::unix::fs::{MetadataExt, fchown};
    let is_theirs = |now: &fs::Metadata| (now.uid(), now.gid()) != (before.uid(), before.gid());
    if file.metadata().is_ok_and(|now| is_theirs(&now)) {
        let _ = fchown(file, Some(before.uid()), Some(before.gid()));
    }
    // The temporary file was created with this mode, less the bits of the umask.
    let _ = file.set_permissions(before.permissions());
}

#[cfg(not(unix))]
fn keep_owner_and_mode(_: &File, _: &fs::Metadata) {}

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
