//! The environment variables of `huggingface_hub`, read as it reads them: `~` and `$NAME` in paths
//! are expanded, older names are used where the newer ones are not set, and an empty value counts
//! as unset.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::{Error, Result};

/// The values of the variables, with defaults.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variables {
    pub(super) cache: PathBuf,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) offline: bool,
}

impl Variables {
    /// Those of this process.
    pub(super) fn read() -> Result<Self> {
        Self::from(|name| env::var_os(name), env::home_dir())
    }

    fn from(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Result<Self> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| get(name)?.into_string().ok().filter(|value| !value.trim().is_empty());
        let path = |name: &str| Some(expand(get(name)?, get, home.as_ref()));
        let on = |name: &str| {
            let value = text(name).unwrap_or_default().trim().to_ascii_lowercase();
            ["1", "true", "yes", "on"].contains(&value.as_str())
        };
        let hugging_face = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")))
            .or_else(|| home.as_ref().map(|home| home.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hugging_face.as_ref().map(|dir| dir.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::hub("no home directory is known, so the Hugging Face cache has no place: set HF_HOME")
        })?;
        let saved = || {
            let path = path("HF_TOKEN_PATH").or_else(|| Some(hugging_face.as_ref()?.join("token")))?;
            std::fs::read_to_string(path).ok()
        };
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(saved);
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Ok(Self {
            cache,
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            token: token.filter(|_| !on("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
        })
    }
}

/// A path as `os.path.expandvars(os.path.expanduser(path))` gives it: unknown users and variables
/// stay as they are.
fn expand(path: OsString, get: impl Fn(&str) -> Option<OsString>, home: Option<&PathBuf>) -> PathBuf {
    let Some(text) = path.to_str() else { return path.into() };
    let mut expanded = text.to_owned();
    if let Some(rest) = text.strip_prefix('~') {
        let (user, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let dir = if user.is_empty() { home.cloned() } else { home_of(user) };
        if let Some(dir) = dir.as_ref().and_then(|dir| dir.to_str()) {
            expanded = format!("{}{rest}", dir.trim_end_matches('/'));
        }
    }
    variables(&expanded, |name| get(name)?.into_string().ok()).into()
}

/// The home directory of another user.
fn home_of(user: &str) -> Option<PathBuf> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut fields =
        users.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(user))?;
    fields.nth(5).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Replaces `$NAME` and `${NAME}`.
fn variables(mut text: &str, get: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    while let Some((before, after)) = text.split_once('$') {
        out += before;
        let word = |s: &str| s.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(s.len());
        let (name, length) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => (&after[..word(after)], word(after)),
        };
        match get(name).filter(|_| !name.is_empty()) {
            Some(value) => out += &value,
            None => out += &format!("${}", &after[..length]),
        }
        text = &after[length..];
    }
    out + text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Variables {
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Variables::from(get, Some("/home/me".into())).unwrap()
    }

    /// As `huggingface_hub.constants` has them under the same variables.
    #[test]
    fn the_cache_is_that_of_huggingface_hub() {
        let cache = |variables: &[(&str, &str)]| read(variables).cache;
        let same = |variables: &[(&str, &str)], dir: &str| assert_eq!(cache(variables), PathBuf::from(dir));
        same(&[], "/home/me/.cache/huggingface/hub");
        same(&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub");
        same(&[("XDG_CACHE_HOME", "~/x")], "/home/me/x/huggingface/hub");
        same(&[("HF_HOME", "~/hf")], "/home/me/hf/hub");
        same(&[("HF_HOME", "~")], "/home/me/hub");
        same(&[("HF_HOME", "~/hf"), ("HF_HUB_CACHE", "")], "/home/me/hf/hub");
        same(&[("HF_HOME", "$BIG/hf"), ("BIG", "/big")], "/big/hf/hub");
        same(&[("HF_HOME", "${BIG}disk"), ("BIG", "/big")], "/bigdisk/hub");
        same(&[("HF_HOME", "/a/$NOT_SET/${NOR_THIS}/$")], "/a/$NOT_SET/${NOR_THIS}/$/hub");
        same(&[("HF_HOME", "/a/~/b")], "/a/~/b/hub");
        same(&[("HF_HOME", "~no-such-user/b")], "~no-such-user/b/hub");
        same(&[("HUGGINGFACE_HUB_CACHE", "~/old"), ("HF_HOME", "/new")], "/home/me/old");
        same(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "$A/new"), ("A", "/a")], "/a/new");
        assert!(Variables::from(|_| None, None).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn tokens_are_found_under_all_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "saved\n").unwrap();
        let (home, path) = (dir.path().to_str().unwrap(), path.to_str().unwrap());
        let token = |variables: &[(&str, &str)]| read(variables).token;
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("HF_HOME", home)]).unwrap(), "saved");
        assert_eq!(token(&[("HF_TOKEN_PATH", path)]).unwrap(), "saved");
        let old = ("HUGGING_FACE_HUB_TOKEN", " old ");
        assert_eq!(token(&[("HF_HOME", home), old]).unwrap(), "old");
        assert_eq!(token(&[old, ("HF_TOKEN", "new\n")]).unwrap(), "new");
        assert_eq!(token(&[old, ("HF_TOKEN", "  ")]).unwrap(), "old");
        assert_eq!(token(&[old, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn the_rest_is_read() {
        let all = read(&[("HF_ENDPOINT", "https://mirror.example/"), ("TRANSFORMERS_OFFLINE", "Yes")]);
        assert_eq!((all.endpoint.as_str(), all.offline), ("https://mirror.example", true));
        let none = read(&[("HF_HUB_OFFLINE", "0")]);
        assert_eq!((none.endpoint.as_str(), none.offline), ("https://huggingface.co", false));
    }
}
