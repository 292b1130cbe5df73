//! What was left out of the paths that a user gave, in words.

use std::path::{Path, PathBuf};

/// Names that are shown of many.
const EXAMPLES: usize = 3;

/// Something that was left out.
#[derive(Clone, Debug)]
pub(super) struct Note {
    /// What and why, without names.
    text: String,
    names: Vec<PathBuf>,
    /// Whether names are shown only on request.
    quiet: bool,
}

impl Note {
    /// `what` of `folder` was left out; the names are relative to it.
    pub(super) fn new(folder: &Path, what: &str, names: Vec<PathBuf>) -> Self {
        Self { text: format!("{}: {what}", folder.display()), names: relative(folder, names), quiet: false }
    }

    /// As [`Note::new`]; without `verbose` there is only their number.
    pub(super) fn quiet(folder: &Path, what: &str, names: Vec<PathBuf>) -> Self {
        Self { quiet: true, ..Self::new(folder, what, names) }
    }

    /// One line; `verbose` shows all names.
    pub(super) fn line(&self, verbose: bool) -> String {
        let count = self.names.len();
        match (verbose, self.quiet) {
            (false, true) => format!("{}: {count} (-v names them)", self.text),
            _ => format!("{}: {}", self.text, list(&self.names, if verbose { count } else { EXAMPLES })),
        }
    }
}

fn relative(folder: &Path, names: Vec<PathBuf>) -> Vec<PathBuf> {
    names.into_iter().map(|name| name.strip_prefix(folder).map(Path::to_path_buf).unwrap_or(name)).collect()
}

/// The first `most` of some names, and how many there are beyond.
pub(super) fn list(names: &[PathBuf], most: usize) -> String {
    let shown: Vec<String> = names.iter().take(most).map(|name| name.display().to_string()).collect();
    match names.len().saturating_sub(most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
