//! What paths stand for: files, folders, globs, manifests of weighted paths, and folders that `datasets` saved.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ENDINGS, Format, format_of};
use crate::fsutil::sorted_entries;
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
    /// File, folder or glob, from the manifest's folder.
    path: String,
    pub(super) weight: f64,
}

impl Entry {
    pub(super) fn expand(&self, splits: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
        let base = self.manifest.parent().unwrap_or(Path::new(""));
        if self.path.ends_with(".manifest") {
            return Err(Error::line(
                &self.manifest,
                self.line,
                "a manifest names no other manifest: copy its lines",
            ));
        }
        expand(base, &self.path, splits, files)
    }
}

/// The lines of `path` with a weight above 0, if it is a manifest: csv with the header `path,weight`.
pub(super) fn manifest(path: &str) -> Result<Option<Vec<Entry>>> {
    let manifest = Path::new(path);
    if manifest.extension().is_none_or(|ending| ending != "manifest") || manifest.is_dir() {
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

/// The files that `path` stands for, if need be from the folder `base` on.
pub(super) fn expand(base: &Path, path: &str, splits: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
    let plain = base.join(path);
    if plain.is_dir() {
        let before = files.len();
        folder(&plain, splits, files)?;
        return match files.len() > before {
            true => Ok(()),
            false => Err(Error::file(plain, format!("this folder holds no text: expected {ENDINGS}"))),
        };
    }
    if plain.exists() {
        format_of(&plain).ok_or_else(|| unknown_ending(&plain))?;
        files.push(plain);
        return Ok(());
    }
    if !path.contains(['*', '?', '[', '{']) {
        return Err(Error::file(plain, "no such file or folder: check the spelling"));
    }
    let escaped = PathBuf::from(glob::Pattern::escape(&base.to_string_lossy()));
    let mut found = Vec::new();
    for pattern in alternatives(path) {
        let pattern = escaped.join(pattern);
        let matches = glob::glob(&pattern.to_string_lossy())
            .map_err(|e| Error::file(&plain, format!("this glob is not valid: {e}")))?;
        for path in matches {
            found.push(path.map_err(|e| Error::file(&plain, format!("cannot read: {e}")))?);
        }
    }
    found.retain(|path| path.is_file() && format_of(path).is_some());
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(Error::file(plain, format!("this glob matches no text: expected {ENDINGS}")));
    }
    files.extend(found);
    Ok(())
}

/// Every reading of a glob's `{a,b}`.
fn alternatives(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_owned()] };
    let Some(close) = pattern[open..].find('}').map(|at| open + at) else { return vec![pattern.to_owned()] };
    let inner = pattern[open + 1..close].split(',');
    inner
        .flat_map(|one| alternatives(&format!("{}{one}{}", &pattern[..open], &pattern[close + 1..])))
        .collect()
}

/// What a dataset that `datasets` saved says of its files.
#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

#[derive(Deserialize)]
struct DatasetDict {
    splits: Vec<String>,
}

fn folder(dir: &Path, splits: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
    if let Some(DatasetDict { splits: names }) = read_json(&dir.join("dataset_dict.json"))? {
        let wanted = splits.iter().find(|wanted| names.iter().any(|name| name == *wanted));
        let split = wanted.ok_or_else(|| {
            let problem = format!(
                "this DatasetDict has the splits {names:?}, none of them {splits:?}: name one's folder"
            );
            Error::file(dir, problem)
        })?;
        return folder(&dir.join(split), splits, files);
    }
    if let Some(State { data_files }) = read_json(&dir.join("state.json"))? {
        for DataFile { filename } in data_files {
            let path = dir.join(&filename);
            if path.file_name() != Some(filename.as_ref())
                || !matches!(format_of(&path), Some((Format::Arrow, _)))
            {
                let problem =
                    format!("state.json names `{filename}`, which is no .arrow file of this folder");
                return Err(Error::file(dir, problem));
            }
            files.push(path);
        }
        return Ok(());
    }
    for path in sorted_entries(dir)? {
        if path.is_dir() {
            folder(&path, splits, files)?;
        } else if format_of(&path).is_some() {
            files.push(path);
        }
    }
    Ok(())
}

/// A file of `datasets`; `None` where there is none, or one of another kind.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(serde_json::from_str(&text).ok())
}

pub(super) fn unknown_ending(path: &Path) -> Error {
    Error::file(path, format!("the ending names no known format: expected {ENDINGS}"))
}
