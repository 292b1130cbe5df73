//! The settings files in the directory of a vocabulary: tokenizer_config.json,
//! special_tokens_map.json, added_tokens.json and config.json.
//!
//! Every setting that changes ids is honoured as `AutoTokenizer.from_pretrained` honours it, or
//! refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::classes::{self, Class};
use super::files::{Source, conversion, read_object};
use crate::{Error, Result};

/// Larger values of `model_max_length` mean that there is no limit.
const LONGEST: f64 = 1e6;

/// The contents of the settings files.
#[derive(Default)]
pub(super) struct Settings {
    dir: PathBuf,
    /// tokenizer_config.json.
    pub(super) config: Map<String, Value>,
    /// special_tokens_map.json.
    pub(super) special_tokens: Map<String, Value>,
    /// added_tokens.json.
    pub(super) added_tokens: Map<String, Value>,
    /// The model's config.json, which decides where tokenizer_config.json names no class.
    model: Map<String, Value>,
}

impl Settings {
    /// Reads the files that exist.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let object = |name: &str| read_object(&dir.join(name));
        Ok(Self {
            dir: dir.to_path_buf(),
            config: object("tokenizer_config.json")?,
            special_tokens: object("special_tokens_map.json")?,
            added_tokens: object("added_tokens.json")?,
            model: object("config.json")?,
        })
    }

    /// tokenizer_config.json, which most errors are about.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join("tokenizer_config.json")
    }

    /// An error if a setting changes ids and is not supported, or has a value of the wrong type.
    pub(super) fn refuse_the_unknown(&self) -> Result<()> {
        let set = |key: &str| self.config.get(key).filter(|value| !value.is_null());
        let refuse = |key: &str, why: &str| {
            let value = &self.config[key];
            Err(Error::file(self.path(), format!("`{key}` is {value}: {why}")))
        };
        for key in [
            "do_lower_case",
            "strip_accents",
            "tokenize_chinese_chars",
            "add_prefix_space",
            "split_special_tokens",
            "keep_accents",
            "split_by_punct",
        ] {
            if set(key).is_some_and(|value| !value.is_boolean()) {
                return refuse(key, "expected true or false");
            }
        }
        for key in ["model_max_length", "max_len"] {
            if set(key).is_some_and(|value| !value.is_number()) {
                return refuse(key, "expected a number");
            }
        }
        for (key, plain) in [("word_tokenizer_type", "basic"), ("subword_tokenizer_type", "wordpiece")] {
            if set(key).is_some_and(|value| *value != plain) {
                return refuse(
                    key,
                    "text is split by a program in Python first, which is not supported; split the \
                     text with it beforehand and train a vocabulary on the result (`elektron \
                     tokenizer train`)",
                );
            }
        }
        for key in ["mecab_kwargs", "sudachi_kwargs", "jumanpp_kwargs"] {
            if set(key).is_some() {
                return refuse(key, "Japanese word tokenizers are not supported");
            }
        }
        for key in ["do_basic_tokenize", "do_word_tokenize", "do_subword_tokenize", "clean_text"] {
            if set(key).is_some_and(|value| *value != true) {
                return refuse(key, "transformers' versions and classes disagree about it; remove it");
            }
        }
        if set("never_split").is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            return refuse("never_split", "it is not supported; name these as `additional_special_tokens`");
        }
        if set("wordpieces_prefix").is_some_and(|value| *value != "##") {
            return refuse("wordpieces_prefix", "only a tokenizer.json can have another prefix than ##");
        }
        if set("sp_model_kwargs").is_some_and(|value| value["enable_sampling"] == true) {
            return refuse(
                "sp_model_kwargs",
                "sampling gives other tokens each time; remove `enable_sampling`",
            );
        }
        if set("init_inputs").is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            return refuse("init_inputs", "arguments without names are not supported");
        }
        if let Some(files) = set("fast_tokenizer_files").and_then(Value::as_array)
            && files.iter().any(|file| *file != "tokenizer.json")
        {
            return refuse(
                "fast_tokenizer_files",
                "files for several versions of transformers are not supported",
            );
        }
        Ok(())
    }

    /// The class that `AutoTokenizer` takes, and its name.
    pub(super) fn class(&self, source: &Source) -> Result<(&'static Class, String)> {
        let model_type = self.model.get("model_type").and_then(Value::as_str);
        if let Some(value) = self.config.get("tokenizer_class")
            && !value.is_null()
            && !value.is_string()
        {
            return Err(Error::file(self.path(), format!("`tokenizer_class` is {value}, which is no name")));
        }
        let (named, path) = match (self.config.get("tokenizer_class"), self.model.get("tokenizer_class")) {
            (Some(Value::String(name)), _) => (Some(name.as_str()), self.path()),
            (_, Some(Value::String(name))) => (Some(name.as_str()), self.dir.join("config.json")),
            _ => (None, self.dir.join("config.json")),
        };
        if let (Some(model_type), Source::Json(_)) = (model_type, source)
            && classes::TAKES_JSON.contains(&model_type)
        {
            return Ok((&classes::AS_WRITTEN, model_type.to_owned()));
        }
        let Some(name) = named else {
            if self
                .config
                .get("auto_map")
                .is_some_and(|map| !map["AutoTokenizer"].is_null() || map.is_array())
            {
                return Err(Error::file(
                    self.path(),
                    "`auto_map` names a tokenizer that is a program in Python, which is not supported",
                ));
            }
            return self.unnamed_class(model_type, source, &path);
        };
        let class = classes::class(name).ok_or_else(|| self.unknown_class(name, source, &path))?;
        self.check_files(class, name, source, &path)?;
        Ok((class, name.to_owned()))
    }

    fn unnamed_class(
        &self,
        model_type: Option<&str>,
        source: &Source,
        path: &Path,
    ) -> Result<(&'static Class, String)> {
        // Files without settings, as training programs write them, are what their format is for.
        let usual = match source {
            Source::Json(_) => "PreTrainedTokenizerFast",
            Source::Vocab(_) => "BertTokenizer",
            Source::Merges(..) => "RobertaTokenizer",
        };
        let Some(model_type) = model_type else {
            return Ok((known(usual), usual.to_owned()));
        };
        match classes::class_of_model(model_type) {
            Some(name) => {
                let class = known(name);
                self.check_files(class, name, source, path)?;
                Ok((class, name.to_owned()))
            }
            None => Err(Error::file(
                path,
                format!(
                    "`model_type` is {model_type}, whose tokenizer is not supported, and \
                     tokenizer_config.json names no `tokenizer_class`: write \
                     PreTrainedTokenizerFast there if tokenizer.json holds the whole tokenizer"
                ),
            )),
        }
    }

    /// Whether the class reads this kind of file.
    fn check_files(&self, class: &Class, name: &str, source: &Source, path: &Path) -> Result<()> {
        use classes::Pipeline::{Bert, ByteLevel};
        let fits = match source {
            Source::Json(_) => true,
            Source::Vocab(_) => class.pipeline == Bert,
            Source::Merges(..) => class.pipeline == ByteLevel,
        };
        if fits {
            return Ok(());
        }
        let file = source.path().file_name().unwrap_or_default().to_string_lossy();
        Err(Error::file(
            path,
            format!("`tokenizer_class` is {name}, which is not read from {file}: a tokenizer.json is needed"),
        ))
    }

    fn unknown_class(&self, name: &str, source: &Source, path: &Path) -> Error {
        let way = match source {
            Source::Json(_) => {
                "if tokenizer.json holds the whole tokenizer, write PreTrainedTokenizerFast instead"
                    .to_owned()
            }
            _ => format!(
                "if transformers can convert it, these lines of Python write a tokenizer.json (set \
                 its `tokenizer_class` to PreTrainedTokenizerFast):\n{}",
                conversion(&self.dir.display().to_string())
            ),
        };
        let words = self.config.get("word_tokenizer_type").and_then(Value::as_str);
        let how = words.map(|words| format!(" (by {words})")).unwrap_or_default();
        Error::file(
            path,
            format!("`tokenizer_class` is {name}, whose way of splitting text{how} is not supported; {way}"),
        )
    }

    /// The longest input that the settings name.
    pub(super) fn model_max_length(&self) -> Option<usize> {
        let length = ["model_max_length", "max_len"].iter().find_map(|key| self.config.get(*key));
        length.and_then(Value::as_f64).filter(|&length| (1.0..=LONGEST).contains(&length)).map(|n| n as usize)
    }
}

fn known(name: &str) -> &'static Class {
    classes::class(name).unwrap_or(&classes::AS_WRITTEN)
}
