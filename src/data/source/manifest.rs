//! Manifests: corpora with weights, one per line.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::paths::{Expansion, expand};
use crate::{Error, Result};

/// A line of a manifest.
#[derive(Deserialize)]
struct Line {
    path: String,
    weight: f64,
}

/// A corpus that a manifest names.
pub(super) struct Entry {
    manifest: PathBuf,
    line: u64,
    /// File, folder or glob, relative to the manifest's folder.
    path: String,
    pub(super) weight: f64,
}

impl Entry {
    pub(super) fn expand(&self, splits: &[&str], found: &mut Expansion) -> Result<()> {
        let base = self.manifest.parent().unwrap_or(Path::new(""));
        if is_manifest(Path::new(&self.path)) {
            return Err(Error::line(
                &self.manifest,
                self.line,
                "a manifest names no other manifest: copy its lines",
            ));
        }
        expand(base, Path::new(&self.path), splits, found)
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("manifest"))
}

/// The lines of `manifest` with a weight above 0, if it is a manifest: csv with the header
/// `path,weight`.
pub(super) fn read(manifest: &Path) -> Result<Option<Vec<Entry>>> {
    if !is_manifest(manifest) || manifest.is_dir() {
        return Ok(None);
    }
    let text = fs::read_to_string(manifest).map_err(Error::io("read", manifest))?;
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).comment(Some(b'#')).from_reader(text.as_bytes());
    let line_of = |e: &csv::Error| e.position().map_or(1, csv::Position::line);
    let broken = |e: csv::Error| {
        Error::line(
            manifest,
            line_of(&e),
            format!("expected a path and a weight, such as `books/,0.5` ({e})"),
        )
    };
    if reader.headers().map_err(broken)? != ["path", "weight"].as_slice() {
        return Err(Error::line(manifest, 1, "a manifest begins with the line `path,weight`"));
    }
    let mut entries = Vec::new();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(broken)? {
        let line = record.position().map_or(0, csv::Position::line);
        let Line { path, weight } = record.deserialize(None).map_err(broken)?;
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(Error::line(manifest, line, format!("the weight is {weight}, expected 0 or more")));
        }
        if weight > 0.0 {
            entries.push(Entry { manifest: manifest.to_path_buf(), line, path, weight });
        }
    }
    match entries.is_empty() {
        true => Err(Error::file(manifest, "this manifest gives no path a weight above 0")),
        false => Ok(Some(entries)),
    }
}
