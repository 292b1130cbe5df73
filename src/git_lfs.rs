//! Git LFS pointers: the small text files that a clone without Git LFS has in the place of large
//! files.

use std::path::Path;

use crate::Error;

/// The beginning of every pointer.
pub(crate) const POINTER_START: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The error for a pointer where the file itself was expected.
pub(crate) fn pointer_error(path: &Path) -> Error {
    Error::file(
        path,
        "this is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or \
         download the file again",
    )
}
