//! The files of a tokenizer's directory, read as `transformers` reads them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::git_lfs::{POINTER_START, pointer_error};
use crate::{Error, Result};

/// Names under which SentencePiece models are published.
pub(crate) const SENTENCEPIECE: [&str; 5] =
    ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "spm.model", "sp.model"];

/// What the vocabulary is read from.
#[derive(Debug)]
pub(super) enum Source {
    /// A `tokenizer.json`: the whole pipeline.
    Json(PathBuf),
    /// A `vocab.txt`: one WordPiece token per line.
    Vocab(PathBuf),
    /// `vocab.json` and `merges.txt`: byte-level BPE.
    Merges(PathBuf, PathBuf),
}

impl Source {
    /// Whether a directory holds a tokenizer in any format, readable here or not.
    pub(super) fn is_in(dir: &Path) -> bool {
        ["tokenizer.json", "vocab.txt", "vocab.json"]
            .iter()
            .chain(&SENTENCEPIECE)
            .any(|name| dir.join(name).is_file())
    }

    /// What a path means: a directory, or one of its files.
    pub(super) fn find(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::in_directory(path);
        }
        if !path.exists() {
            return Err(Error::file(
                path,
                "no such tokenizer: give a tokenizer.json, a vocab.txt, a vocab.json with its \
                 merges.txt, or a directory of these",
            ));
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            "vocab.json" | "merges.txt" => Self::merges(directory(path)),
            _ if name.ends_with(".json") => Ok(Self::Json(path.to_path_buf())),
            _ if name.ends_with(".model") => Err(sentencepiece(path)),
            _ => Ok(Self::Vocab(path.to_path_buf())),
        }
    }

    fn in_directory(dir: &Path) -> Result<Self> {
        let file = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
        if let Some(json) = file("tokenizer.json") {
            return Ok(Self::Json(json));
        }
        if let Some(vocab) = file("vocab.txt") {
            return Ok(Self::Vocab(vocab));
        }
        if file("vocab.json").is_some() {
            return Self::merges(dir);
        }
        if let Some(model) = SENTENCEPIECE.iter().find_map(|name| file(name)) {
            return Err(sentencepiece(&model));
        }
        Err(Error::file(
            dir,
            "this directory holds no tokenizer: expected tokenizer.json, vocab.txt, or vocab.json \
             with merges.txt",
        ))
    }

    fn merges(dir: &Path) -> Result<Self> {
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        for (path, other) in [(&vocab, "merges.txt"), (&merges, "vocab.json")] {
            if !path.is_file() {
                return Err(Error::file(path, format!("this file is missing; {other} needs it")));
            }
        }
        Ok(Self::Merges(vocab, merges))
    }

    /// The file that errors name.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Json(path) | Self::Vocab(path) | Self::Merges(path, _) => path,
        }
    }
}

/// The directory of a file.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

/// The two lines of Python that turn any tokenizer of `transformers` into a `tokenizer.json`.
pub(crate) fn conversion(from: &str) -> String {
    format!(
        "  from transformers import AutoTokenizer\n  \
         AutoTokenizer.from_pretrained({from:?}).save_pretrained(\"converted\")"
    )
}

fn sentencepiece(path: &Path) -> Error {
    let dir = directory(path).display().to_string();
    Error::file(
        path,
        format!(
            "this is a SentencePiece model, which is not read directly. Convert it once, in Python \
             with `transformers` and `sentencepiece`, and give the directory `converted`:\n{}",
            conversion(&dir)
        ),
    )
}

/// Reads the text of a file, with errors for the damage that downloads often have.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    if bytes.starts_with(POINTER_START) {
        return Err(pointer_error(path));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::file(path, format!("this is not UTF-8 text (byte {at}): convert it, or copy it again"))
    })
}

/// A JSON file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read(path)?)
        .map_err(|e| Error::file(path, format!("this is not JSON ({e}): copy the file again")))
}

/// A JSON object; an empty one if there is no such file.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    match read_json(path)? {
        Value::Object(object) => Ok(object),
        _ => Err(Error::file(path, "this is not a JSON object")),
    }
}

/// The tokens of a `vocab.txt` and their ids, which are line numbers counted from 0. Of two equal
/// tokens the last one is used. White space at the end of a line is stripped, as in transformers 5;
/// an empty line is a token that occurs in no text.
pub(super) fn read_vocab(path: &Path) -> Result<Vec<(String, u32)>> {
    let text = read(path)?;
    if text.is_empty() {
        return Err(Error::file(path, "this vocabulary is empty"));
    }
    let (mut vocab, mut stripped) = (Vec::new(), None);
    for (line, id) in text.strip_suffix('\n').unwrap_or(&text).split('\n').zip(0..) {
        let token = line.trim_end();
        if token.contains('\r') {
            let problem = "this line contains a carriage return, for which versions of transformers \
                           number the tokens differently: write line feeds at the ends of lines";
            return Err(Error::line(path, u64::from(id) + 1, problem));
        }
        if !token.is_empty() && token.len() < line.trim_end_matches('\r').len() {
            stripped.get_or_insert(id + 1);
        }
        vocab.push((token.to_owned(), id));
    }
    if let Some(line) = stripped {
        crate::note!(
            "{}, line {line}: white space at the end of tokens is stripped, as in transformers 5 \
             (version 4 keeps it)",
            path.display()
        );
    }
    Ok(vocab)
}
