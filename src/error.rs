//! The library's one error type.
//!
//! Every message names what was being read or written, what was expected and what to do about it, since the person
//! who meets it is usually looking at a corpus of their own rather than at this code.

use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, with the context a user needs to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a read, a write, a rename or the like.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `create`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// A line of a text source is not what its format promises.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// The source file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: u64,
        /// What is wrong, what was expected and what to do.
        problem: String,
    },
    /// A whole file is not what was expected: wrong format, wrong tensor, wrong kind of model.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, what was expected and what to do.
        problem: String,
    },
    /// Settings that do not fit each other or the model.
    #[error("{0}")]
    Config(String),
    /// Arguments of a library call that do not fit each other: lengths, shapes, ranges.
    #[error("{0}")]
    Argument(String),
    /// A GPU, its libraries or its kernels.
    #[error("{0}")]
    Device(String),
    /// A training run that cannot go on: what happened, what is safe, how to continue.
    #[error("{0}")]
    Run(String),
    /// The reader of standard output has closed it, as `head` does. This ends a command without
    /// being a failure of it.
    #[error("the reader of standard output has closed it")]
    OutputClosed,
    /// A model of the Hugging Face hub that is not to be had.
    #[error("{0}")]
    Hub(String),
}

impl Error {
    /// For `map_err` on anything of `std::io`: `.map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A problem with one line of a text source.
    pub fn line(path: impl AsRef<Path>, line: u64, problem: impl Into<String>) -> Self {
        Self::Line { path: path.as_ref().to_path_buf(), line, problem: problem.into() }
    }

    /// A problem with a file as a whole.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// Settings that do not fit.
    pub fn config(problem: impl Into<String>) -> Self {
        Self::Config(problem.into())
    }

    /// A problem with a GPU, its libraries or its kernels.
    pub fn device(problem: impl Into<String>) -> Self {
        Self::Device(problem.into())
    }

    /// A training run that cannot go on.
    pub fn run(problem: impl Into<String>) -> Self {
        Self::Run(problem.into())
    }

    /// Whether there was no room to write: a full disk, a spent quota.
    pub fn is_no_space(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// A problem with a model of the hub.
    pub fn hub(problem: impl Into<String>) -> Self {
        Self::Hub(problem.into())
    }

    /// Arguments that do not fit.
    pub fn argument(problem: impl Into<String>) -> Self {
        Self::Argument(problem.into())
    }
}
