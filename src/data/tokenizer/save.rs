//! Writing a tokenizer, so that `AutoTokenizer.from_pretrained(dir)` gives the ids of training,
//! with the frame of training, in versions 4 and 5 of `transformers`; and reading back what was
//! written.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, ModelWrapper};

use super::frame::{is_training_frame, set_training_frame};
use super::{Inner, ROLES, Tokenizer, definition};
use crate::data::source::TextSource;
use crate::fsutil::{create_dir, remove_file_if_there, write_atomic};
use crate::{Error, Result};

/// Size of the sample of the training text that is compared: files, and bytes of each.
const SAMPLED_FILES: usize = 16;
const SAMPLED_BYTES: usize = 1 << 14;

/// Lines on which tokenizers commonly differ.
const HOSTILE: [&str; 16] = [
    "The quick brown fox doesn't jump over 1,234.56 lazy dogs (or 99%)!",
    " leading and trailing  spaces ",
    "Ünïcödé Ångström naïve façade İstanbul ẞ",
    "Ｆｕｌｌ width ﬁne №5 x² ½ ™",
    "中文字符 and English, 日本語も; かぎ パンダ; 한국어",
    "हिन्दी में लिखा मैं ไทยไม่มีช่องว่าง עברית العربية",
    "tabs\tno-break\u{a0}spaces zero\u{200b}width soft\u{ad}hyphen \u{feff}mark",
    "control \u{1} \u{7f} \u{fffd} end",
    "🙂 👩‍👩‍👧 🇩🇪 €£¥",
    "e\u{301}a\u{308} combining, a\u{327}\u{301}",
    "“Don’t!” she cried — ‘it isn't mine’… ''quoted`` \"text\"",
    "a_b c-d e/f #tag @name https://example.org/?q=1&r=2 3.14159 1,000,000",
    "UPPER lower MiXeD aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "extraordinary electroencephalographically uncharacteristically",
    "line\nbreaks\r\nof every\rkind",
    "",
];

impl Tokenizer {
    /// Takes a sample of the text of training, on which every saved copy is compared with this
    /// tokenizer.
    pub fn with_sample(mut self, source: &TextSource) -> Self {
        let files = source.files();
        let step = files.len().div_ceil(SAMPLED_FILES).max(1);
        for file in files.iter().step_by(step).filter(|file| file.is_file()) {
            let mut bytes = 0;
            // The error only ends the reading; a file that cannot be read is reported when it is
            // tokenized.
            let _ = source.read_file(file, &mut |paragraph| {
                let end = paragraph.text.floor_char_boundary(SAMPLED_BYTES);
                self.sample.push(paragraph.text[..end].to_owned());
                bytes += end;
                if bytes < SAMPLED_BYTES { Ok(()) } else { Err(Error::argument("enough")) }
            });
        }
        self
    }

    /// Writes what `AutoTokenizer.from_pretrained(dir)` reads, and a `vocab.txt` for older programs
    /// if it means the same. Then reads it back as `transformers` does and compares the ids of the
    /// sample and of some lines in many scripts; a difference is an error.
    pub fn save(&self, dir: &Path, model_max_length: usize) -> Result<()> {
        create_dir(dir)?;
        let write =
            |name: &str, text: &str| write_atomic(&dir.join(name), |out| out.write_all(text.as_bytes()));
        let mut inner = self.inner.clone();
        let (cls, sep) = self.frame();
        let (cls, sep) = ((cls.0.as_str(), cls.1), (sep.0.as_str(), sep.1));
        if !is_training_frame(&inner, cls, sep) {
            set_training_frame(&mut inner, cls, sep)?;
        }
        let is_bert = self.is_bert(&inner)?;
        let names: Map<String, Value> = ROLES
            .iter()
            .zip(&self.names)
            .map(|((role, _), name)| ((*role).to_owned(), json!(name)))
            .collect();
        write("special_tokens_map.json", &format!("{:#}\n", Value::Object(names.clone())))?;
        let config = self.config(&inner, names, is_bert, model_max_length)?;
        write("tokenizer_config.json", &format!("{config:#}\n"))?;
        match self.vocab_txt(is_bert) {
            Some(text) => write("vocab.txt", &text)?,
            // One of another tokenizer would be read by older programs.
            None => remove_file_if_there(&dir.join("vocab.txt"))?,
        }
        // Last, so that the tokenizer is whole if this file exists.
        write("tokenizer.json", &definition(&inner)?)?;
        self.compare(dir)
    }

    /// Checks that this tokenizer can be saved, before the work of a run depends on it.
    pub fn check_export(&self) -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::io("create a directory in", std::env::temp_dir()))?;
        self.save(dir.path(), 512)
    }

    fn config(
        &self,
        inner: &Inner,
        names: Map<String, Value>,
        is_bert: bool,
        model_max_length: usize,
    ) -> Result<Value> {
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        let written = |part: serde_json::Result<Value>| {
            part.map_err(|e| Error::config(format!("cannot write the tokenizer: {e}")))
        };
        set("tokenizer_class", json!(if is_bert { "BertTokenizer" } else { "PreTrainedTokenizerFast" }));
        if is_bert {
            let normalizer = written(serde_json::to_value(inner.get_normalizer()))?;
            set("do_lower_case", normalizer["lowercase"].clone());
            set("strip_accents", normalizer["strip_accents"].clone());
            set("tokenize_chinese_chars", normalizer["handle_chinese_chars"].clone());
        } else {
            set("do_lower_case", json!(self.lowercase));
            let pre_tokenizer = written(serde_json::to_value(inner.get_pre_tokenizer()))?;
            // Version 4 sets that of the pre-tokenizer to this value, or to false without one.
            if let Some(prefix) = pre_tokenizer.get("add_prefix_space") {
                set("add_prefix_space", prefix.clone());
            }
            // ELECTRA has two token types, whatever the tokenizer's original model had.
            set("model_input_names", json!(["input_ids", "token_type_ids", "attention_mask"]));
        }
        set("model_max_length", json!(model_max_length));
        set("clean_up_tokenization_spaces", json!(false));
        let further = self.further_special_tokens(inner);
        if !further.is_empty() {
            // Version 4 does not read a list of `extra_special_tokens`; version 5 takes both names.
            set("additional_special_tokens", json!(further));
        }
        config.extend(names);
        config.extend(self.kept.clone());
        Ok(Value::Object(config))
    }

    /// Special tokens without an attribute of their own, in the order of their ids.
    fn further_special_tokens(&self, inner: &Inner) -> Vec<String> {
        let named = |content: &String| {
            // Other settings that are kept are not tokens, whatever their values.
            let is_named =
                |(key, value): (&String, &Value)| key.ends_with("_token") && value.as_str() == Some(content);
            self.names.contains(content) || self.kept.iter().any(is_named)
        };
        let mut further: Vec<(u32, AddedToken)> = inner.get_added_tokens_decoder().into_iter().collect();
        further.retain(|(_, token)| token.special && !named(&token.content));
        further.sort_unstable_by_key(|(id, _)| *id);
        further.into_iter().map(|(_, token)| token.content).collect()
    }

    /// Whether the pipeline that `transformers` builds for a `BertTokenizer` is the same as this
    /// one.
    fn is_bert(&self, inner: &Inner) -> Result<bool> {
        let text = definition(inner)?;
        let found: Value = serde_json::from_str(&text)
            .map_err(|e| Error::config(format!("cannot write the tokenizer: {e}")))?;
        let model = &found["model"];
        let decoder = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
        Ok(found["normalizer"]["type"] == "BertNormalizer"
            && found["normalizer"]["clean_text"] == true
            && found["pre_tokenizer"] == json!({ "type": "BertPreTokenizer" })
            && found["decoder"] == decoder
            && model["type"] == "WordPiece"
            && model["continuing_subword_prefix"] == "##"
            && model["max_input_chars_per_word"] == 100
            && model["unk_token"] == self.names[1].as_str())
    }

    /// The vocabulary as lines, if `vocab.txt` and the settings define the whole tokenizer.
    fn vocab_txt(&self, is_bert: bool) -> Option<String> {
        let ModelWrapper::WordPiece(_) = self.inner.get_model() else { return None };
        let vocab = self.inner.get_vocab(false);
        let plain = |token: &AddedToken| {
            self.names.contains(&token.content)
                && vocab.contains_key(&token.content)
                && *token == AddedToken::from(token.content.clone(), true)
        };
        let mut lines = vec![None; vocab.len()];
        for (token, &id) in &vocab {
            *lines.get_mut(id as usize)? = Some(token.as_str()).filter(|token| !token.contains(['\n', '\r']));
        }
        let is_complete = is_bert && self.inner.get_added_tokens_decoder().values().all(plain);
        let lines = lines.into_iter().collect::<Option<Vec<&str>>>().filter(|_| is_complete)?;
        Some(lines.join("\n") + "\n")
    }

    /// Reads a saved tokenizer and compares it with this one.
    fn compare(&self, dir: &Path) -> Result<()> {
        let saved = Self::load(dir)?;
        let differs = |what: String| {
            Error::file(
                dir,
                format!(
                    "the tokenizer that was written here is not the one of training: {what}. \
                     Remove other tokenizers' files from this directory; if that does not help, \
                     please report this as a bug, with the tokenizer"
                ),
            )
        };
        if saved.vocab_size() != self.vocab_size() || saved.special != self.special {
            return Err(differs(format!(
                "it has {} tokens and the special tokens {:?}, in training {} and {:?}",
                saved.vocab_size(),
                saved.special.all(),
                self.vocab_size(),
                self.special.all()
            )));
        }
        let (cls, sep) = self.frame();
        if !is_training_frame(&saved.inner, (&cls.0, cls.1), (&sep.0, sep.1)) {
            return Err(differs(format!("it does not frame a text as {} … {}", cls.0, sep.0)));
        }
        for text in self.texts() {
            let (ours, theirs) = (self.encode(&text), saved.encode(&text));
            match (ours, theirs) {
                (Ok(ours), Ok(theirs)) if ours == theirs => {}
                // A text that one of them cannot tokenize, the other cannot either.
                (Err(_), Err(_)) => {}
                (ours, theirs) => {
                    let ids =
                        |ids: Result<Vec<u32>>| ids.map_or_else(|e| e.to_string(), |ids| format!("{ids:?}"));
                    return Err(differs(format!(
                        "{text:?} gives {}, in training {}",
                        ids(theirs),
                        ids(ours)
                    )));
                }
            }
        }
        Ok(())
    }

    /// The sample of the training text, lines in many scripts, and every added token, alone and
    /// between other text.
    fn texts(&self) -> impl Iterator<Item = String> {
        let mut added: Vec<String> =
            self.inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        added.sort_unstable();
        added.truncate(1000);
        let surrounded = added.into_iter().flat_map(|token| {
            let around = format!("a {token} b{token}c  {token}  d.{token}, {}", token.to_lowercase());
            [around, token]
        });
        self.sample.iter().cloned().chain(HOSTILE.iter().map(|&line| line.to_owned())).chain(surrounded)
    }
}
