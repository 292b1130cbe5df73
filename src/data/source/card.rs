//! The dataset card of a repository of the hub: the YAML at the head of its README.md, whose
//! `configs` say which files belong to which split.

use std::fs;
use std::path::{Path, PathBuf};

use yaml_rust2::parser::{Event, EventReceiver, Parser};
use yaml_rust2::{Yaml, YamlLoader};

use super::walk;
use crate::{Error, Result};

/// A configuration of a dataset.
#[derive(Debug)]
struct Configuration {
    name: String,
    default: bool,
    /// Splits and their globs; none if the names of the files decide.
    data_files: Vec<(String, Vec<String>)>,
    /// The folder of its files.
    data_dir: Option<String>,
}

/// What a card says of a folder.
pub(super) enum Card {
    /// The files of every split of the configuration `name`, in order.
    Splits { name: String, splits: Vec<(String, Vec<PathBuf>)> },
    /// The files are below this folder, and their names decide.
    Folder(PathBuf),
}

/// The card in `dir`, if it has one that names files.
pub(super) fn read(dir: &Path) -> Result<Option<Card>> {
    let path = dir.join("README.md");
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read(&path).map_err(Error::io("read", &path))?;
    let Some(yaml) = front_matter(&String::from_utf8_lossy(&text)) else { return Ok(None) };
    let configurations = configurations(&yaml).map_err(|problem| {
        Error::file(&path, format!("{problem}: mend the card, or name files or a glob"))
    })?;
    if configurations.iter().all(|c| c.data_files.is_empty() && c.data_dir.is_none()) {
        return Ok(None);
    }
    choose(dir, &configurations).map(Some)
}

/// The lines between the first two lines `---`, if they have `configs`.
fn front_matter(text: &str) -> Option<String> {
    let mut lines = text.trim_start_matches('\u{feff}').lines().skip_while(|line| line.trim().is_empty());
    (lines.next()?.trim_end() == "---").then_some(())?;
    let mut yaml = String::new();
    let mut configs = false;
    for line in lines {
        if line.trim_end() == "---" {
            return configs.then_some(yaml);
        }
        configs |= line.contains("configs");
        yaml += line;
        yaml.push('\n');
    }
    None
}

/// Looks for aliases, which the loader copies: a few lines of them could fill any memory.
#[derive(Default)]
struct Aliases(bool);

impl EventReceiver for Aliases {
    fn on_event(&mut self, event: Event) {
        self.0 |= matches!(event, Event::Alias(_));
    }
}

fn configurations(yaml: &str) -> Result<Vec<Configuration>, String> {
    let broken = |e| format!("the YAML at its head is not valid ({e})");
    let mut aliases = Aliases::default();
    Parser::new_from_str(yaml).load(&mut aliases, true).map_err(broken)?;
    if aliases.0 {
        return Err("the YAML at its head has aliases, which are not supported".to_owned());
    }
    let documents = YamlLoader::load_from_str(yaml).map_err(broken)?;
    let configs = documents.first().map_or(&Yaml::BadValue, |document| &document["configs"]);
    let configs = match configs {
        Yaml::Array(configs) => configs,
        Yaml::BadValue | Yaml::Null => return Ok(Vec::new()),
        _ => return Err("`configs` is not a list".to_owned()),
    };
    configs.iter().map(configuration).collect()
}

fn configuration(yaml: &Yaml) -> Result<Configuration, String> {
    let name = yaml["config_name"].as_str().ok_or("an entry of `configs` has no `config_name`")?.to_owned();
    let wrong = || {
        format!(
            "`data_files` of the configuration `{name}` is neither paths nor a list of `split` and \
             `path`"
        )
    };
    let paths = |yaml: &Yaml| match yaml {
        Yaml::String(path) => Ok(vec![path.clone()]),
        Yaml::Array(paths) => {
            paths.iter().map(|path| path.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    };
    let data_files = match &yaml["data_files"] {
        Yaml::BadValue | Yaml::Null => Vec::new(),
        Yaml::Array(entries) if entries.iter().any(|entry| matches!(entry, Yaml::Hash(_))) => entries
            .iter()
            .map(|entry| {
                let split = entry["split"].as_str().ok_or_else(wrong)?;
                Ok((split.to_owned(), paths(&entry["path"])?))
            })
            .collect::<Result<_, String>>()?,
        other => vec![("train".to_owned(), paths(other)?)],
    };
    Ok(Configuration {
        default: yaml["default"].as_bool() == Some(true) || name == "default",
        data_dir: yaml["data_dir"].as_str().map(str::to_owned),
        data_files,
        name,
    })
}

/// The default configuration; without one, the only configuration whose files exist in `dir`.
fn choose(dir: &Path, all: &[Configuration]) -> Result<Card> {
    let names: Vec<String> = all.iter().map(|c| c.name.clone()).collect();
    let mut here = Vec::new();
    for configuration in all {
        here.push(files(dir, configuration)?);
    }
    let has = |card: &Card| match card {
        Card::Splits { splits, .. } => splits.iter().any(|(_, files)| !files.is_empty()),
        Card::Folder(folder) => folder.is_dir(),
    };
    let mut chosen: Vec<usize> = (0..all.len()).filter(|&i| has(&here[i])).collect();
    if let (Some(default), Some(&other)) = (all.iter().position(|c| c.default), chosen.first()) {
        if !has(&here[default]) {
            return Err(Error::file(
                dir,
                format!(
                    "README.md makes `{}` the default configuration, and none of its files exists \
                     here: download them, or name the files of another configuration, such as '{}'",
                    names[default],
                    example(dir, &all[other]).display()
                ),
            ));
        }
        chosen = vec![default];
    }
    match chosen[..] {
        [index] => Ok(here.swap_remove(index)),
        [] => Err(Error::file(
            dir,
            format!(
                "none of the files that README.md names for the configurations {names:?} exists \
                 here: download them, or name files or a glob"
            ),
        )),
        _ => Err(Error::file(
            dir,
            format!(
                "this dataset has the configurations {names:?}, and README.md makes none of them \
                 the default: name the files of one, such as '{}'",
                example(dir, &all[chosen[0]]).display()
            ),
        )),
    }
}

fn example(dir: &Path, configuration: &Configuration) -> PathBuf {
    let glob = configuration.data_files.first().and_then(|(_, globs)| globs.first());
    dir.join(glob.or(configuration.data_dir.as_ref()).map_or("", String::as_str))
}

fn files(dir: &Path, configuration: &Configuration) -> Result<Card> {
    let dir = configuration.data_dir.as_ref().map_or_else(|| dir.to_path_buf(), |sub| dir.join(sub));
    if configuration.data_files.is_empty() {
        return Ok(Card::Folder(dir));
    }
    let mut splits = Vec::new();
    for (split, globs) in &configuration.data_files {
        let mut files = Vec::new();
        for glob in globs.iter().filter(|glob| !glob.contains("://")) {
            let found = walk::glob(&dir, Path::new(glob.trim_start_matches("./")))?;
            files.extend(found.files.into_iter().filter(|file| !super::paths::describes(file)));
        }
        files.sort();
        files.dedup();
        splits.push((split.clone(), files));
    }
    Ok(Card::Splits { name: configuration.name.clone(), splits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read_as_datasets_reads_them() {
        let read = |text: &str| configurations(&front_matter(text).unwrap());
        let card = "---\nlicense: mit\nconfigs:\n\
                    - config_name: en\n  data_files:\n  - split: train\n    path: en/train-*\n  \
                    - split: test\n    path:\n    - a.csv\n    - b.csv\n\
                    - config_name: de\n  data_files: de/*.csv\n  default: true\n\
                    - config_name: fr\n  data_files:\n  - x\n  - y\n\
                    - config_name: it\n  data_dir: it\n---\n# x\n";
        let found = read(card).unwrap();
        let strings = |of: &[&str]| of.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let en = [
            ("train".to_owned(), strings(&["en/train-*"])),
            ("test".to_owned(), strings(&["a.csv", "b.csv"])),
        ];
        assert_eq!(found[0].data_files, en);
        assert_eq!(found[1].data_files, [("train".to_owned(), strings(&["de/*.csv"]))]);
        assert!(found[1].default && !found[0].default);
        assert_eq!(found[2].data_files, [("train".to_owned(), strings(&["x", "y"]))]);
        assert_eq!(found[3].data_dir.as_deref(), Some("it"));
        for (card, word) in [
            ("---\nconfigs:\n- data_files: x\n---\n", "config_name"),
            ("---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n---\n", "`a`"),
            ("---\nconfigs: x\n---\n", "list"),
            ("---\nconfigs: [\n---\n", "not valid"),
            ("---\nconfigs:\n- &a {config_name: b}\n- *a\n---\n", "aliases"),
        ] {
            let problem = read(card).unwrap_err();
            assert!(problem.contains(word), "`{word}` is not in: {problem}");
        }
        for text in ["# no card\n", "---\nlicense: mit\n---\n", "---\nconfigs:\n", ""] {
            assert_eq!(front_matter(text), None);
        }
    }
}
