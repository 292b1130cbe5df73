//! Models of the Hugging Face hub by name: `google/electra-small-generator`, with `@revision` where one is meant.
//!
//! ```text
//! name ─┬─ complete in the local cache ────────────────────────────→ directory of the snapshot
//!       └─ else, unless offline: what is missing is downloaded into the cache ──→ the same
//! ```
//!
//! The cache is the one of `huggingface_hub` ([`cache`]), so what was fetched here is there for `transformers` and the
//! other way round, and looking into it needs neither network nor the feature `hub`. A model that is complete in the
//! cache is used as it is, without a request: runs are repeatable, and who wants a newer revision names it.
//!
//! Downloads are [`download`]'s, over `ureq` and a thin layer of our own. The hub's client crate was weighed: `hf-hub`
//! 1.0 brings tokio, reqwest and 236 crates; its forerunner over `ureq` (0.5) appends to what it has even when a
//! server ignores its Range request, compares neither length nor SHA-256 afterwards, and knows no `HF_TOKEN`,
//! `HF_HUB_CACHE` or `HF_HUB_OFFLINE`.

pub mod cache;
#[cfg(feature = "hub")]
pub mod download;
mod env;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};
use cache::Repository;
use env::Variables;

/// `owner/name`, and the branch, tag or commit that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    repository: String,
    revision: String,
}

impl ModelName {
    /// Of `owner/name` or `owner/name@revision`; `None` for what cannot be such a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repository.split_once('/')?;
        // Each becomes part of a path, so nothing may lead out of its directory.
        let is_word = |word: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            word.chars().all(inner) && word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        };
        let is_name = |word: &str| {
            is_word(word) && word.len() <= 96 && !word.contains("--") && !word.ends_with(['-', '.'])
        };
        let valid = is_name(owner) && is_name(name) && revision.split('/').all(is_word);
        valid.then(|| Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }

    /// `owner/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The revision; `main` where none was named.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repository),
            revision => write!(f, "{}@{revision}", self.repository),
        }
    }
}

/// What is wanted of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `config.json` and the weights.
    Model,
    /// `tokenizer.json`, `vocab.txt`, or `vocab.json` and `merges.txt`, and the settings files in
    /// the same directory.
    Tokenizer,
}

/// Where models come from and where they are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The cache: `models--owner--name` directories.
    pub cache: PathBuf,
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<String>,
    /// Only the cache.
    pub offline: bool,
    /// No progress.
    pub quiet: bool,
    /// Before the second try; each further one waits twice as long.
    pub patience: Duration,
}

impl Hub {
    /// As the variables of `huggingface_hub` say: `HF_HOME`, `HF_HUB_CACHE` or
    /// `HUGGINGFACE_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` or `HUGGING_FACE_HUB_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` or
    /// `TRANSFORMERS_OFFLINE`.
    pub fn from_env() -> Result<Self> {
        let Variables { cache, endpoint, token, offline } = Variables::read()?;
        Ok(Self { cache, endpoint, token, offline, quiet: false, patience: Duration::from_secs(1) })
    }

    /// A directory that holds `part` of a model: from the cache, or downloaded into it.
    pub fn snapshot(&self, name: &ModelName, part: Part) -> Result<PathBuf> {
        let repository = Repository::new(&self.cache, name);
        let can_ask = cfg!(feature = "hub") && !self.offline;
        let missing = match repository.find(name.revision()) {
            None => format!("no snapshot of revision `{}`", name.revision()),
            Some(snapshot) => match snapshot.missing(part, can_ask)? {
                None => return Ok(snapshot.dir().to_path_buf()),
                Some(file) => format!("no `{file}` in {}", snapshot.dir().display()),
            },
        };
        if self.offline {
            return Err(Error::hub(format!(
                "`{name}` is no path here, and HF_HUB_OFFLINE forbids asking the Hugging Face hub; its cache {} has \
                 {missing}: fetch the model once without HF_HUB_OFFLINE, or set HF_HOME or HF_HUB_CACHE to where it is",
                repository.dir().display()
            )));
        }
        #[cfg(feature = "hub")]
        return download::Download::new(self, name, repository).fetch(part);
        #[cfg(not(feature = "hub"))]
        Err(Error::hub(format!(
            "`{name}` is no path here; the Hugging Face cache {} has {missing}, and this program was built without \
             downloads: build it with `--features hub`, or fetch the model with `hf download {}`",
            repository.dir().display(),
            name.repository()
        )))
    }
}

/// The path of something that exists, in a form that is never taken for the name of a model on the
/// hub, not even when it no longer exists; anything else unchanged.
pub fn as_path(given: &Path) -> PathBuf {
    let is_name = given.to_str().and_then(ModelName::parse).is_some();
    if is_name && given.exists() { Path::new(".").join(given) } else { given.to_path_buf() }
}

/// The directory or file that is meant: a path that exists, else the snapshot of the model of that
/// name.
pub fn locate(given: &Path, part: Part, quiet: bool) -> Result<PathBuf> {
    match given.to_str().filter(|_| !given.exists()).and_then(ModelName::parse) {
        Some(name) => Hub { quiet, ..Hub::from_env()? }.snapshot(&name, part).map_err(|error| match error {
            Error::Hub(problem) => Error::hub(format!(
                "{problem} (there is no directory `{}` either: if one is meant, run the command in \
                 the directory that contains it)",
                given.display()
            )),
            other => other,
        }),
        None => Ok(given.to_path_buf()),
    }
}

#[cfg(test)]
mod tests {
    use super::ModelName;

    #[test]
    fn names_are_told_from_paths() {
        for (text, repository, revision) in [
            ("google/electra-small-generator", "google/electra-small-generator", "main"),
            ("a/b@refs/pr/3", "a/b", "refs/pr/3"),
            ("a_1/b.c-d@v1.0", "a_1/b.c-d", "v1.0"),
        ] {
            let name = ModelName::parse(text).unwrap();
            assert_eq!((name.repository(), name.revision()), (repository, revision));
            assert_eq!(name.to_string(), text);
        }
        for path in [
            "small",
            "",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "./b",
            "../b",
            "a/..",
            "a/.b",
            "-a/b",
            "a--b/c",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/etc",
            "a b/c",
            "a/b\\c",
            "a/b?c",
            "ä/b",
            "C:/b",
            "a/b.",
        ] {
            assert_eq!(ModelName::parse(path), None, "{path}");
        }
    }
}
