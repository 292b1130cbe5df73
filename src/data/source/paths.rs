//! What paths name: files, folders and globs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::card::{self, Card};
use super::notes::Note;
use super::walk::{self, Found};
use super::{ENDINGS, format_of, splits};
use crate::{Error, Result};

/// Files, and what was left out.
#[derive(Default)]
pub(super) struct Expansion {
    pub(super) files: Vec<PathBuf>,
    pub(super) notes: Vec<Note>,
}

impl Expansion {
    fn note(&mut self, folder: &Path, what: &str, names: Vec<PathBuf>) {
        if !names.is_empty() {
            self.notes.push(Note::new(folder, what, names));
        }
    }

    /// Notes what was passed over on the way.
    fn passed_over(&mut self, folder: &Path, found: &mut Found) {
        let splits = std::mem::take(&mut found.other_splits);
        self.note(folder, "other splits of a saved dataset are not read", splits);
        let hidden = std::mem::take(&mut found.hidden);
        if !hidden.is_empty() {
            self.notes.push(Note::quiet(folder, "hidden files and folders are not read", hidden));
        }
        let special = std::mem::take(&mut found.special);
        self.note(folder, "pipes, sockets and devices are not read (name a pipe to read it)", special);
        let unknown = std::mem::take(&mut found.unknown);
        self.note(folder, "files whose endings name no known format are not read", unknown);
        let folders = std::mem::take(&mut found.folders);
        self.note(folder, "folders that match a glob are not read (`**` matches what is in them)", folders);
    }
}

/// The files that `path` names, relative to the folder `base`.
pub(super) fn expand(base: &Path, path: &Path, splits: &[&str], to: &mut Expansion) -> Result<()> {
    let plain = base.join(path);
    if plain.is_dir() {
        return folder(&plain, splits, to);
    }
    if let Ok(metadata) = plain.metadata() {
        if !metadata.is_file() {
            let problem = "this is a pipe, a socket or a device, and text is read more than once \
                           here: write it to a file";
            return Err(Error::file(plain, problem));
        }
        format_of(&plain).ok_or_else(|| unknown_ending(&plain))?;
        to.files.push(plain);
        return Ok(());
    }
    if !path.to_string_lossy().contains(['*', '?', '[', '{']) {
        return Err(Error::file(plain, "no such file or folder: check the spelling"));
    }
    let mut found = walk::glob(base, path)?;
    let before = to.notes.len();
    to.passed_over(&plain, &mut found);
    if found.files.is_empty() {
        let left_out = left_out(&to.notes[before..]);
        return Err(Error::file(plain, format!("this glob matches no text: expected {ENDINGS}{left_out}")));
    }
    to.files.append(&mut found.files);
    Ok(())
}

fn left_out(notes: &[Note]) -> String {
    notes.iter().map(|note| format!("\n{}", note.line(false))).collect()
}

/// The files of a folder: of its split, if it is a dataset.
fn folder(dir: &Path, wanted: &[&str], to: &mut Expansion) -> Result<()> {
    let (files, notes) = (to.files.len(), to.notes.len());
    match card::read(dir)? {
        Some(Card::Splits { name, splits }) => configuration(dir, wanted, &name, splits, to)?,
        Some(Card::Folder(inner)) => {
            let outside = walk::folder(dir, wanted)?.files.into_iter();
            let outside = outside.filter(|file| !file.starts_with(&inner) && !describes(file)).collect();
            to.note(dir, "files outside the `data_dir` that README.md names are not read", outside);
            plain_folder(&inner, wanted, to)?;
        }
        None => plain_folder(dir, wanted, to)?,
    }
    match to.files.len() > files {
        true => Ok(()),
        false => {
            let problem =
                format!("this folder holds no text: expected {ENDINGS}{}", left_out(&to.notes[notes..]));
            Err(Error::file(dir, problem))
        }
    }
}

/// Files that a dataset card names.
fn configuration(
    dir: &Path,
    wanted: &[&str],
    name: &str,
    splits: Vec<(String, Vec<PathBuf>)>,
    to: &mut Expansion,
) -> Result<()> {
    let mut found = walk::folder(dir, wanted)?;
    let all: HashSet<PathBuf> = splits.iter().flat_map(|(_, files)| files.clone()).collect();
    let taken = take_split(dir, wanted, splits, to);
    let others = std::mem::take(&mut found.files).into_iter().filter(|file| !all.contains(file));
    let (about, others): (Vec<PathBuf>, Vec<PathBuf>) = others.partition(|file| describes(file));
    let what = format!("files that README.md does not name for the configuration `{name}` are not read");
    to.note(dir, &what, others);
    described(dir, about, to);
    to.passed_over(dir, &mut found);
    to.files.extend(taken);
    Ok(())
}

fn plain_folder(dir: &Path, wanted: &[&str], to: &mut Expansion) -> Result<()> {
    let mut found = walk::folder(dir, wanted)?;
    let files = std::mem::take(&mut found.files);
    let (about, files): (Vec<PathBuf>, Vec<PathBuf>) =
        files.into_iter().partition(|file| describes(file) && !found.saved.contains(file));
    let relative: Vec<&Path> = files.iter().map(|file| file.strip_prefix(dir).unwrap_or(file)).collect();
    let splits = splits::of_files(&relative);
    let named: Vec<(String, Vec<PathBuf>)> = splits
        .iter()
        .map(|(name, indices)| (name.clone(), indices.iter().map(|&i| files[i].clone()).collect()))
        .collect();
    let chosen = wanted.iter().any(|split| splits.iter().any(|(name, _)| name == split));
    let taken = match chosen {
        true => {
            let of_any: HashSet<usize> = splits.iter().flat_map(|(_, of)| of.clone()).collect();
            let of_none = (0..files.len()).filter(|i| !of_any.contains(i));
            let of_none: Vec<PathBuf> = of_none.map(|i| files[i].clone()).collect();
            let taken = take_split(dir, wanted, named, to);
            to.note(dir, "files of no split are not read either (name them to read them)", of_none);
            taken
        }
        false => {
            let names: Vec<String> = named.iter().map(|(name, _)| format!("`{name}`")).collect();
            let (names, of) = (names.join(", "), named.into_iter().flat_map(|(_, of)| of).collect());
            let what =
                format!("there is no split `{}`: all files are read, also those of {names}", wanted[0]);
            to.note(dir, &what, of);
            files
        }
    };
    described(dir, about, to);
    to.passed_over(dir, &mut found);
    to.files.extend(taken);
    Ok(())
}

/// The files of the first of `wanted` that exists, else of all splits.
fn take_split(
    dir: &Path,
    wanted: &[&str],
    splits: Vec<(String, Vec<PathBuf>)>,
    to: &mut Expansion,
) -> Vec<PathBuf> {
    let has = |split: &&&str| splits.iter().any(|(name, files)| name == **split && !files.is_empty());
    let Some(split) = wanted.iter().find(has) else {
        let mut all: Vec<PathBuf> = splits.into_iter().flat_map(|(_, files)| files).collect();
        all.sort();
        all.dedup();
        return all;
    };
    let (taken, others): (Vec<_>, Vec<_>) = splits.into_iter().partition(|(name, _)| name == split);
    let taken: Vec<PathBuf> = taken.into_iter().flat_map(|(_, files)| files).collect();
    let also_taken: HashSet<&PathBuf> = taken.iter().collect();
    for (name, mut files) in others {
        // A name such as train_test.txt belongs to both.
        files.retain(|file| !also_taken.contains(file));
        let (count, plural) = (files.len(), if files.len() == 1 { "" } else { "s" });
        let what =
            format!("the split `{split}` is read; {count} file{plural} of the split `{name}` left out");
        to.note(dir, &what, files);
    }
    taken
}

fn described(dir: &Path, about: Vec<PathBuf>, to: &mut Expansion) {
    to.note(dir, "files that describe the text are not read (name them to read them)", about);
}

/// Whether a file of a folder is about its data, and not data: a README, a licence, what `datasets`
/// writes.
pub(super) fn describes(path: &Path) -> bool {
    const JSON: [&str; 5] =
        ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
    const WORDS: [&str; 5] = ["readme", "license", "licence", "copying", "changelog"];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let word = name.split(['.', '-', '_']).next().unwrap_or_default().to_lowercase();
    JSON.contains(&&*name) || WORDS.contains(&&*word)
}

pub(super) fn unknown_ending(path: &Path) -> Error {
    Error::file(path, format!("the ending names no known format: expected {ENDINGS}"))
}
