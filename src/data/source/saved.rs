//! Folders that `datasets` saved: `state.json` names their files, `dataset_dict.json` their splits.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Format, format_of};
use crate::{Error, Result};

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

/// A folder that `datasets` saved.
pub(super) struct Saved {
    /// Its files, in order.
    pub(super) files: Vec<PathBuf>,
    /// The split that was chosen, and the others, if it is a `DatasetDict`.
    pub(super) splits: Option<(String, Vec<String>)>,
}

/// What `datasets` saved in `dir`, of a `DatasetDict` the first of `splits` that exists; `None` if
/// it saved nothing.
pub(super) fn read(dir: &Path, splits: &[&str]) -> Result<Option<Saved>> {
    let Some(DatasetDict { splits: mut names }) = read_json(&dir.join("dataset_dict.json"))? else {
        return Ok(data_files(dir)?.map(|files| Saved { files, splits: None }));
    };
    let wanted = splits.iter().find_map(|wanted| names.iter().position(|name| name == wanted));
    let split = wanted.ok_or_else(|| {
        let problem =
            format!("this DatasetDict has the splits {names:?}, none of them {splits:?}: name one's folder");
        Error::file(dir, problem)
    })?;
    let split = names.remove(split);
    match data_files(&dir.join(&split))? {
        Some(files) => Ok(Some(Saved { files, splits: Some((split, names)) })),
        None => {
            Err(Error::file(dir.join(split), "this split of a DatasetDict has no state.json: copy it again"))
        }
    }
}

/// The files that `state.json` names, in order.
fn data_files(dir: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(State { data_files }) = read_json(&dir.join("state.json"))? else { return Ok(None) };
    let file = |DataFile { filename }: DataFile| {
        let path = dir.join(&filename);
        let arrow = matches!(format_of(&path), Some((Format::Arrow, _)));
        match arrow && path.file_name() == Some(filename.as_ref()) {
            true => Ok(path),
            false => {
                let problem =
                    format!("state.json names `{filename}`, which is no .arrow file of this folder");
                Err(Error::file(dir, problem))
            }
        }
    };
    data_files.into_iter().map(file).collect::<Result<_>>().map(Some)
}

/// A file of `datasets`; `None` if it does not exist or is of another kind.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(serde_json::from_str(&text).ok())
}
