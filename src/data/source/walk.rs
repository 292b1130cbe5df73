//! The files of a folder or of a glob.
//!
//! Hidden entries are skipped. A folder is entered once and a file found once, however many
//! symbolic links lead to it, so that links that lead back up do not repeat anything. A path
//! without links is preferred. Pipes, sockets and devices are never opened.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use glob::Pattern;

use super::format_of;
use super::saved::{self, Saved};
use crate::fsutil::sorted_entries;
use crate::{Error, Result};

/// What is in a folder or matches a glob.
#[derive(Default)]
pub(super) struct Found {
    /// Files of known formats, sorted.
    pub(super) files: Vec<PathBuf>,
    /// Files of folders that `datasets` saved, which have chosen their split already.
    pub(super) saved: HashSet<PathBuf>,
    /// Folders of other splits of a `DatasetDict`.
    pub(super) other_splits: Vec<PathBuf>,
    /// Entries that are hidden by their names.
    pub(super) hidden: Vec<PathBuf>,
    /// Pipes, sockets and devices whose names have the ending of a known format.
    pub(super) special: Vec<PathBuf>,
    /// Files whose names have no ending of a known format.
    pub(super) unknown: Vec<PathBuf>,
    /// Folders that match a glob.
    pub(super) folders: Vec<PathBuf>,
}

/// Everything below `root`.
pub(super) fn folder(root: &Path, splits: &[&str]) -> Result<Found> {
    let mut walk = Walk { splits, ..Walk::default() };
    walk.enter(root)?;
    while let Some((link, _)) = walk.linked_folders.pop_front() {
        walk.enter(&link)?;
    }
    walk.finish(root)
}

/// Everything that `pattern`, relative to `base`, matches.
pub(super) fn glob(base: &Path, pattern: &Path) -> Result<Found> {
    let full = base.join(pattern);
    let Some(text) = pattern.to_str() else {
        return Err(Error::file(full, "there is no such file, and a glob must be UTF-8"));
    };
    let mut walk = Walk { links: true, ..Walk::default() };
    for alternative in alternatives(text) {
        let parts = Path::new(&alternative).components().map(Part::new).collect::<Result<Vec<_>, _>>();
        let parts = parts.map_err(|e| Error::file(&full, format!("this glob is not valid: {e}")))?;
        walk.entered.clear();
        walk.matching(base, &parts)?;
        while let Some((link, left)) = walk.linked_folders.pop_front() {
            walk.matching(&link, &parts[parts.len() - left..])?;
        }
    }
    walk.finish(base)
}

/// Every reading of a glob's `{a,b}`.
fn alternatives(pattern: &str) -> Vec<String> {
    // The innermost pair first, so that pairs may be nested.
    let Some(close) = pattern.find('}') else { return vec![pattern.to_owned()] };
    let Some(open) = pattern[..close].rfind('{') else { return vec![pattern.to_owned()] };
    let inner = pattern[open + 1..close].split(',');
    inner
        .flat_map(|one| alternatives(&format!("{}{one}{}", &pattern[..open], &pattern[close + 1..])))
        .collect()
}

/// A component of a glob.
enum Part {
    /// Without wildcards.
    Plain(PathBuf),
    /// With wildcards, and whether it asks for hidden names.
    Wild(Pattern, bool),
    /// `**`: any number of folders.
    Any,
}

impl Part {
    fn new(component: Component<'_>) -> Result<Self, glob::PatternError> {
        let text = component.as_os_str().to_str().unwrap_or_default();
        match component {
            Component::Normal(_) if text == "**" => Ok(Self::Any),
            Component::Normal(_) if text.contains(['*', '?', '[']) => {
                Ok(Self::Wild(Pattern::new(text)?, text.starts_with('.')))
            }
            _ => Ok(Self::Plain(component.as_os_str().into())),
        }
    }
}

fn name_of(path: &Path) -> &[u8] {
    path.file_name().unwrap_or_default().as_encoded_bytes()
}

/// What an entry is, links followed.
enum Kind {
    File,
    Folder,
    Special,
    /// A link to nothing.
    Broken,
}

impl Kind {
    /// And whether it is a symbolic link.
    fn of(path: &Path) -> Result<(Self, bool)> {
        let own = fs::symlink_metadata(path).map_err(Error::io("read", path))?;
        let linked = own.is_symlink();
        let metadata = match linked.then(|| fs::metadata(path)) {
            None => own,
            Some(Ok(metadata)) => metadata,
            Some(Err(e)) if e.kind() == ErrorKind::PermissionDenied => {
                return Err(Error::io("read", path)(e));
            }
            Some(Err(_)) => return Ok((Self::Broken, true)),
        };
        let kind = match (metadata.is_file(), metadata.is_dir()) {
            (true, _) => Self::File,
            (_, true) => Self::Folder,
            _ => Self::Special,
        };
        Ok((kind, linked))
    }
}

#[derive(Default)]
struct Walk<'a> {
    splits: &'a [&'a str],
    found: Found,
    /// Files with what they are sorted by.
    files: Vec<(PathBuf, PathBuf)>,
    /// Folders entered, by their paths without links; for globs with the number of components that
    /// were left.
    entered: HashSet<(PathBuf, usize)>,
    /// Links to folders, followed after everything that has a path without links.
    linked_folders: VecDeque<(PathBuf, usize)>,
    /// Whether a file may have been found twice.
    links: bool,
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Path) -> Result<()> {
        if !self.first_time(folder, 0)? {
            return Ok(());
        }
        if let Some(Saved { files, splits }) = saved::read(folder, self.splits)? {
            self.found.saved.extend(files.iter().cloned());
            self.files.extend(files.into_iter().map(|file| (folder.to_path_buf(), file)));
            let others = splits.map(|(_, others)| others).unwrap_or_default();
            self.found.other_splits.extend(others.iter().map(|split| folder.join(split)));
            return Ok(());
        }
        self.entries(folder, 0, Self::enter, |walk, path, kind| walk.file(path, &kind))
    }

    /// Whether a folder is entered for the first time.
    fn first_time(&mut self, folder: &Path, left: usize) -> Result<bool> {
        Ok(self.entered.insert((real(folder)?, left)))
    }

    /// Hands on the entries of a folder that are not hidden. Folders that are symbolic links are
    /// left for later.
    fn entries(
        &mut self,
        folder: &Path,
        left: usize,
        mut enter: impl FnMut(&mut Self, &Path) -> Result<()>,
        mut take: impl FnMut(&mut Self, PathBuf, Kind) -> Result<()>,
    ) -> Result<()> {
        for path in sorted(folder)? {
            let name = name_of(&path);
            if name.starts_with(b".") {
                self.found.hidden.push(path);
                continue;
            }
            let (kind, linked) = Kind::of(&path)?;
            self.links |= linked;
            match kind {
                // As `datasets` does: __MACOSX, __pycache__.
                Kind::Folder if name.starts_with(b"__") => self.found.hidden.push(path),
                Kind::Folder if linked => self.linked_folders.push_back((path, left)),
                Kind::Folder => enter(self, &path)?,
                kind => take(self, path, kind)?,
            }
        }
        Ok(())
    }

    /// Sorts in what is no folder.
    fn file(&mut self, path: PathBuf, kind: &Kind) -> Result<()> {
        match (kind, format_of(&path).is_some()) {
            (Kind::File, true) => self.files.push((path.clone(), path)),
            (Kind::File, false) => self.found.unknown.push(path),
            (Kind::Special, true) => self.found.special.push(path),
            (Kind::Broken, true) => {
                let problem = "this is a symbolic link to a file that does not exist: fetch that \
                               file (`git annex get`, `git lfs pull`) or remove the link";
                return Err(Error::file(path, problem));
            }
            _ => {}
        }
        Ok(())
    }

    /// Finds what is below `folder` and matches the components `parts`.
    fn matching(&mut self, folder: &Path, parts: &[Part]) -> Result<()> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        match part {
            Part::Plain(name) => {
                let path = folder.join(name);
                match rest.is_empty() {
                    true if path.exists() => self.matched(path),
                    false if path.is_dir() => self.matching(&path, rest),
                    _ => Ok(()),
                }
            }
            Part::Wild(pattern, hidden_too) => {
                for path in sorted(folder)? {
                    if !pattern.matches(&String::from_utf8_lossy(name_of(&path))) {
                        continue;
                    }
                    if name_of(&path).starts_with(b".") && !hidden_too {
                        self.found.hidden.push(path);
                    } else if rest.is_empty() {
                        self.matched(path)?;
                    } else if path.is_dir() {
                        self.matching(&path, rest)?;
                    }
                }
                Ok(())
            }
            Part::Any => {
                if !self.first_time(folder, parts.len())? {
                    return Ok(());
                }
                let enter = |walk: &mut Self, path: &Path| walk.matching(path, parts);
                if rest.is_empty() {
                    // At the end: every file of every folder.
                    return self
                        .entries(folder, parts.len(), enter, |walk, path, kind| walk.file(path, &kind));
                }
                self.matching(folder, rest)?;
                self.entries(folder, parts.len(), enter, |_, _, _| Ok(()))
            }
        }
    }

    fn matched(&mut self, path: PathBuf) -> Result<()> {
        match Kind::of(&path)?.0 {
            Kind::Folder => {
                self.found.folders.push(path);
                Ok(())
            }
            kind => self.file(path, &kind),
        }
    }

    fn finish(mut self, base: &Path) -> Result<Found> {
        if self.links {
            let mut chosen = BTreeMap::new();
            let base_real = real(base)?;
            for (key, path) in self.files {
                let target = real(&path)?;
                let own = base_real.join(path.strip_prefix(base).unwrap_or(&path));
                let candidate = (own != target, key, path);
                let best = chosen.entry(target).or_insert_with(|| candidate.clone());
                if candidate < *best {
                    *best = candidate;
                }
            }
            self.files = chosen.into_values().map(|(_, key, path)| (key, path)).collect();
        }
        self.files.sort_by(|a, b| a.0.cmp(&b.0));
        let mut found = self.found;
        found.files = self.files.into_iter().map(|(_, path)| path).collect();
        // Several parts of a glob may have met the same.
        for paths in [&mut found.hidden, &mut found.special, &mut found.unknown, &mut found.folders] {
            paths.sort();
            paths.dedup();
        }
        Ok(found)
    }
}

/// A path without links.
fn real(path: &Path) -> Result<PathBuf> {
    let path = if path == Path::new("") { Path::new(".") } else { path };
    fs::canonicalize(path).map_err(Error::io("read", path))
}

/// The entries of a folder, of which the current one may have an empty path.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder != Path::new("") {
        return sorted_entries(folder);
    }
    let entries = sorted_entries(Path::new("."))?;
    Ok(entries.iter().filter_map(|path| path.file_name()).map(PathBuf::from).collect())
}
