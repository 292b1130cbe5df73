//! What the name of an output leads to.
//!
//! Only a regular file may be replaced by renaming another file over it. A FIFO, a device or a
//! descriptor of this process is opened and written to. A symbolic link stays: the output is what it
//! points to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::parent;
use crate::{Error, Result};

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;

/// What a name leads to once all links are followed.
pub(super) enum Target {
    /// A regular file, or a name that is still free.
    File(PathBuf),
    /// A FIFO, a device or the like: to be opened and written to.
    Node(PathBuf),
    /// An open file of this process, by its number.
    Descriptor(i32),
}

impl Target {
    /// Follows `path`. An error for what cannot be written to as a file.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let mut at = path.to_path_buf();
        for _ in 0..MOST_LINKS {
            if let Some(descriptor) = descriptor(&at) {
                return Ok(Self::Descriptor(descriptor));
            }
            let Ok(metadata) = fs::symlink_metadata(&at) else {
                // The name is free. Whether the file can be created shows when that is tried.
                return match names_directory(&at) {
                    true => Err(is_directory(path)),
                    false => Ok(Self::File(at)),
                };
            };
            let kind = metadata.file_type();
            if kind.is_symlink() {
                if is_of_a_process(&at) {
                    // For a pipe or a deleted file the text of this link is not a path.
                    return Ok(Self::Node(at));
                }
                let next = fs::read_link(&at).map_err(Error::io("read the link", &at))?;
                at = parent(&at).join(next);
            } else if kind.is_dir() {
                return Err(is_directory(path));
            } else if kind.is_file() {
                return Ok(Self::File(at));
            } else if is_socket(kind) {
                return Err(Error::file(path, "this is a socket; expected a file, a FIFO or a device"));
            } else {
                return Ok(Self::Node(at));
            }
        }
        Err(Error::file(path, "there are too many symbolic links here, or they form a loop"))
    }

    /// Opens it to be written to, rather than replaced.
    pub(super) fn open(&self) -> std::io::Result<File> {
        match self {
            // A link of `/proc` to a file that another process has open may lead to a regular file, whose
            // content must not be overwritten.
            Self::File(path) | Self::Node(path) => {
                File::options().write(true).append(path.is_symlink()).open(path)
            }
            Self::Descriptor(number) => duplicate(*number),
        }
    }
}

/// What a symbolic link points to in the end, whether that exists or not.
pub(super) fn behind(link: &Path) -> PathBuf {
    let mut at = link.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Ok(next) = fs::read_link(&at) else { break };
        at = parent(&at).join(next);
    }
    at
}

fn is_directory(path: &Path) -> Error {
    Error::file(path, "this is a directory; expected the name of a file")
}

/// Whether a name can only be that of a directory.
fn names_directory(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    text.last().is_some_and(|&last| std::path::is_separator(last.into())) || path.file_name().is_none()
}

/// The descriptor that a name such as `/dev/stdout`, `/dev/fd/3` or `/proc/self/fd/3` stands for.
///
/// If the descriptor is a regular file, opening such a name would start at the beginning of the file and
/// write over its content; the descriptor itself continues where the shell or an earlier program left it.
#[cfg(unix)]
fn descriptor(path: &Path) -> Option<i32> {
    match path.to_str()? {
        "/dev/stdout" => return Some(1),
        "/dev/stderr" => return Some(2),
        _ => {}
    }
    let number: i32 = path.file_name()?.to_str()?.parse().ok().filter(|&number| number >= 0)?;
    let dir = fs::canonicalize(parent(path)).ok()?;
    let is_own =
        |own: PathBuf| dir == own.join("fd") || (dir.starts_with(own.join("task")) && dir.ends_with("fd"));
    let stands_for_it = dir == Path::new("/dev/fd") || fs::canonicalize("/proc/self").is_ok_and(is_own);
    stands_for_it.then_some(number)
}

#[cfg(not(unix))]
fn descriptor(_: &Path) -> Option<i32> {
    None
}

/// Whether a link is one of those with which Linux shows the open files of a process.
fn is_of_a_process(link: &Path) -> bool {
    cfg!(target_os = "linux") && fs::canonicalize(parent(link)).is_ok_and(|dir| dir.starts_with("/proc"))
}

#[cfg(unix)]
fn is_socket(kind: fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&kind)
}

#[cfg(not(unix))]
fn is_socket(_: fs::FileType) -> bool {
    false
}

#[cfg(unix)]
fn duplicate(number: i32) -> std::io::Result<File> {
    use std::io::Write;
    use std::os::fd::BorrowedFd;
    // What was printed before must come first.
    std::io::stdout().flush()?;
    // SAFETY: the descriptor is borrowed for the next call alone, which fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().map(File::from)
}

#[cfg(not(unix))]
fn duplicate(_: i32) -> std::io::Result<File> {
    Err(std::io::ErrorKind::Unsupported.into())
}
