//! Tokenizers: loaded from `tokenizer.json`, `vocab.txt` or a directory, or trained on the text (`vocabulary.rs`);
//! saved so that `transformers` loads the same. The work is the `tokenizers` crate's.

use std::fs;
use std::path::Path;

use ahash::AHashMap;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

pub use super::vocabulary::{Kind, PreTokenizer, TrainSpec, Trained, train};
use crate::fsutil::{create_dir, write_atomic};
use crate::{Error, Result};

type Inner = tokenizers::Tokenizer;

/// Ids of the five tokens that replaced token detection needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Padding.
    pub pad: u32,
    /// Unknown.
    pub unk: u32,
    /// Opens a sequence.
    pub cls: u32,
    /// Closes a sequence or segment.
    pub sep: u32,
    /// Masked.
    pub mask: u32,
}

impl SpecialTokens {
    /// All five.
    pub fn all(self) -> [u32; 5] {
        [self.pad, self.unk, self.cls, self.sep, self.mask]
    }
}

/// Names of the special tokens, in the order in which a fresh vocabulary has them.
pub(super) const ROLES: [(&str, &str); 5] = [
    ("pad_token", "[PAD]"),
    ("unk_token", "[UNK]"),
    ("cls_token", "[CLS]"),
    ("sep_token", "[SEP]"),
    ("mask_token", "[MASK]"),
];

/// Ids beyond are those of a damaged file: each costs a row of embeddings.
const MOST_TOKENS: u32 = 1 << 24;

/// A tokenizer with its special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    special: SpecialTokens,
    names: [String; 5],
    /// Ids of `bos_token` and `eos_token`, where the settings name them.
    bos_eos: [Option<u32>; 2],
    lowercase: bool,
    /// Whether text may be tokenized in pieces that begin at spaces.
    splits_at_spaces: bool,
    /// Whether pieces may also begin at ideographs.
    splits_at_ideographs: bool,
    model_max_length: Option<usize>,
}

/// Longer text is tokenized in pieces, where the tokenizer allows it: the library needs some fifty bytes for each.
const PIECE: usize = 1 << 20;

/// Parts of at least `bytes` that begin at spaces and, if `at_ideographs`, at characters that BERT makes words of
/// their own (text in Chinese or Japanese has no spaces).
pub(super) fn pieces(mut text: &str, bytes: usize, at_ideographs: bool) -> impl Iterator<Item = &str> {
    let begins = move |c: char| c == ' ' || (at_ideographs && is_word_alone(c));
    std::iter::from_fn(move || {
        // Not within a character.
        let from = (bytes..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
        let cut = text[from..].find(begins).map_or(text.len(), |at| from + at);
        let (piece, rest) = text.split_at(cut);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Common ideographs, around each of which `BertNormalizer` puts spaces, and the commonest punctuation between them,
/// at which `BertPreTokenizer` splits.
fn is_word_alone(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '、' | '。' | '！' | '，' | '？')
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, a `vocab.txt` (by BERT's rules) or a directory of either.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::file(
                path,
                "no such tokenizer: give a tokenizer.json, a vocab.txt or a directory of either",
            ));
        }
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let settings = read_settings(&dir.join("tokenizer_config.json"))?;
        if path.is_dir() {
            let (json, vocab) = (dir.join("tokenizer.json"), dir.join("vocab.txt"));
            return match (json.is_file(), vocab.is_file()) {
                (true, _) => Self::from_json(&json, &settings),
                (_, true) => Self::from_vocab(&vocab, &settings),
                _ => Err(Error::file(path, "this directory holds neither tokenizer.json nor vocab.txt")),
            };
        }
        if path.extension().is_some_and(|e| e == "json") {
            Self::from_json(path, &settings)
        } else {
            Self::from_vocab(path, &settings)
        }
    }

    fn from_json(path: &Path, settings: &Value) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        // The library panics where a decoder is not JSON.
        parse(path, &text)?;
        let inner: Inner = text.parse().map_err(|e: tokenizers::Error| {
            Error::file(path, format!("this is not a tokenizer of the tokenizers library: {e}"))
        })?;
        let lowercase = match inner.get_normalizer() {
            Some(NormalizerWrapper::BertNormalizer(normalizer)) => normalizer.lowercase,
            _ => settings.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false),
        };
        Self::wrap(inner, settings, lowercase).map_err(|e| Error::file(path, e.to_string()))
    }

    fn from_vocab(path: &Path, settings: &Value) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let mut vocab = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for (number, line) in text.lines().enumerate() {
            if line.is_empty() || !seen.insert(line) {
                let what =
                    if line.is_empty() { "this line is empty" } else { "this token stands here twice" };
                return Err(Error::line(
                    path,
                    number as u64 + 1,
                    format!("{what}; a vocabulary has one token a line"),
                ));
            }
            vocab.push((line.to_owned(), number as u32));
        }
        let setting = |name: &str| settings.get(name).and_then(Value::as_bool);
        let lowercase = setting("do_lower_case").unwrap_or(true);
        let normalizer = BertNormalizer::new(
            true,
            setting("tokenize_chinese_chars").unwrap_or(true),
            setting("strip_accents"),
            lowercase,
        );
        let model = WordPiece::builder()
            .vocab(vocab.into_iter().collect::<AHashMap<_, _>>())
            .unk_token("[UNK]".to_owned())
            .max_input_chars_per_word(100)
            .build()
            .map_err(|e| Error::file(path, format!("this is not a WordPiece vocabulary: {e}")))?;
        let mut inner = bert(model, normalizer);
        add_specials(&mut inner, path)?;
        Self::wrap(inner, settings, lowercase).map_err(|e| Error::file(path, e.to_string()))
    }

    pub(super) fn wrap(mut inner: Inner, settings: &Value, lowercase: bool) -> Result<Self> {
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        let named = |role: &str| {
            let token = settings.get(role)?;
            token.as_str().or_else(|| token.get("content")?.as_str())
        };
        let names = ROLES.map(|(role, default)| named(role).unwrap_or(default).to_owned());
        let bos_eos =
            ["bos_token", "eos_token"].map(|role| named(role).and_then(|name| inner.token_to_id(name)));
        let id = |i: usize| {
            inner.token_to_id(&names[i]).ok_or_else(|| {
                Error::config(format!(
                    "the vocabulary has no `{}`; masking needs [PAD], [UNK], [CLS], [SEP] and [MASK] \
                     (other names are read from `{}` in tokenizer_config.json)",
                    names[i], ROLES[i].0
                ))
            })
        };
        let highest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if highest >= MOST_TOKENS {
            return Err(Error::config(format!(
                "a token has the id {highest}; ids below {MOST_TOKENS} are supported, since every model has a row for each"
            )));
        }
        let special = SpecialTokens { pad: id(0)?, unk: id(1)?, cls: id(2)?, sep: id(3)?, mask: id(4)? };
        let splits_at_spaces = matches!(inner.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(_)))
            && matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
            && !inner.get_added_tokens_decoder().values().any(|token| token.content.contains(' '));
        let splits_at_ideographs = splits_at_spaces
            && matches!(inner.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(n)) if n.handle_chinese_chars)
            // Of these it matters what stands next to them.
            && !inner.get_added_tokens_decoder().values().any(|token| {
                token.single_word || token.content.contains(is_word_alone)
            });
        // What has no limit says 10^30.
        let model_max_length = settings.get("model_max_length").and_then(Value::as_u64).map(|n| n as usize);
        Ok(Self {
            inner,
            special,
            names,
            bos_eos,
            lowercase,
            splits_at_spaces,
            splits_at_ideographs,
            model_max_length,
        })
    }

    /// The longest row its settings allow, if they set a limit.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    /// Special tokens.
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Ids of the tokens that begin and end a text, where the settings name such tokens.
    pub fn bos_eos(&self) -> [Option<u32>; 2] {
        self.bos_eos
    }

    /// V: one more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Ids of a text, without special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in self.pieces(text) {
            let encoding = self.inner.encode_fast(piece, false);
            ids.extend_from_slice(
                encoding.map_err(|e| Error::argument(format!("cannot tokenize: {e}")))?.get_ids(),
            );
        }
        Ok(ids)
    }

    /// Parts of a text whose tokens, one part after the other, are the text's.
    pub(super) fn pieces<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let most = if self.splits_at_spaces { PIECE } else { usize::MAX };
        pieces(text, most, self.splits_at_ideographs)
    }

    /// The text of a token.
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_else(|| self.names[1].clone())
    }

    /// The library's tokenizer.
    pub fn inner(&self) -> &Inner {
        &self.inner
    }

    fn json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|e| Error::config(format!("cannot write the tokenizer: {e}")))
    }

    /// SHA-256 of its definition.
    pub fn hash(&self) -> Result<[u8; 32]> {
        // The model's vocabulary is written in the order of ids, so equal tokenizers give equal text.
        Ok(Sha256::digest(self.json()?).into())
    }

    /// Writes what `AutoTokenizer.from_pretrained(dir)` reads, and `vocab.txt` for older programs.
    pub fn save(&self, dir: &Path, model_max_length: usize) -> Result<()> {
        create_dir(dir)?;
        let write =
            |name: &str, text: &str| write_atomic(&dir.join(name), |out| out.write_all(text.as_bytes()));
        write("tokenizer.json", &self.json()?)?;
        let [pad, unk, cls, sep, mask] = &self.names;
        let (strip_accents, split_chinese) = match self.inner.get_normalizer() {
            Some(NormalizerWrapper::BertNormalizer(n)) => (n.strip_accents, n.handle_chinese_chars),
            _ => (None, true),
        };
        let is_wordpiece = matches!(self.inner.get_model(), ModelWrapper::WordPiece(_));
        let config = json!({
            "tokenizer_class": if is_wordpiece { "BertTokenizer" } else { "PreTrainedTokenizerFast" },
            "do_lower_case": self.lowercase,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": split_chinese,
            "model_max_length": model_max_length,
            "pad_token": pad, "unk_token": unk, "cls_token": cls, "sep_token": sep, "mask_token": mask,
        });
        write("tokenizer_config.json", &format!("{config:#}\n"))?;
        let map = json!({ "pad_token": pad, "unk_token": unk, "cls_token": cls, "sep_token": sep, "mask_token": mask });
        write("special_tokens_map.json", &format!("{map:#}\n"))?;
        if is_wordpiece {
            let tokens: Vec<String> = (0..self.vocab_size() as u32).map(|id| self.token(id)).collect();
            write("vocab.txt", &(tokens.join("\n") + "\n"))?;
        }
        Ok(())
    }
}

fn read_settings(path: &Path) -> Result<Value> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    parse(path, &text)
}

fn parse(path: &Path, json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|e| Error::file(path, format!("this is not JSON: {e}")))
}

/// BERT's pipeline around a WordPiece model.
pub(super) fn bert(model: WordPiece, normalizer: BertNormalizer) -> Inner {
    let mut inner = Inner::new(model);
    // Fails only where a vocabulary's added tokens do not survive normalisation; there are none yet.
    let _ = inner.with_normalizer(Some(normalizer));
    inner.with_pre_tokenizer(Some(PreTokenizerWrapper::from(BertPreTokenizer)));
    inner.with_decoder(Some(DecoderWrapper::from(tokenizers::decoders::wordpiece::WordPiece::default())));
    inner
}

/// Registers the special tokens and how sequences are framed.
pub(super) fn add_specials(inner: &mut Inner, path: &Path) -> Result<()> {
    let known: Vec<AddedToken> = ROLES
        .iter()
        .filter(|(_, name)| inner.token_to_id(name).is_some())
        .map(|(_, name)| AddedToken::from(*name, true))
        .collect();
    inner
        .add_special_tokens(known)
        .map_err(|e| Error::file(path, format!("cannot register special tokens: {e}")))?;
    let (Some(cls), Some(sep)) = (inner.token_to_id("[CLS]"), inner.token_to_id("[SEP]")) else {
        return Err(Error::file(path, "this vocabulary has no [CLS] or no [SEP]"));
    };
    let template = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")
        .and_then(|t| t.try_pair("[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"))
        .map(|t| t.special_tokens(vec![("[CLS]", cls), ("[SEP]", sep)]).build());
    match template {
        Ok(Ok(template)) => {
            inner.with_post_processor(Some(PostProcessorWrapper::from(template)));
            Ok(())
        }
        _ => Err(Error::file(path, "cannot set up the frame [CLS] … [SEP]")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces as small as they can be give the same ids as the text in one.
    #[test]
    fn pieces_change_no_ids() {
        let words =
            ["the", "##e", "天", "地", "。", "##天", "a", "か", "##な", "é", "e", "##\u{301}", "，", "!"];
        let vocab = ROLES.iter().map(|(_, name)| *name).chain(words).map(str::to_owned).zip(0..);
        let text = "the天地e\u{301}天\u{301}地\u{fe00}。the，か天な地 [MASK]天a!か[MASK]。\u{200d}地天\u{5b57} thee\u{f900}天\u{0}地\
                    天\t地\u{3000}天ABC天É天，，？天地the"
            .repeat(3);
        for (lowercase, strip) in [(true, None), (false, None), (false, Some(true)), (true, Some(false))] {
            let model = WordPiece::builder().vocab(vocab.clone().collect::<AHashMap<_, _>>());
            let model = model.unk_token("[UNK]".to_owned()).build().unwrap();
            let mut inner = bert(model, BertNormalizer::new(true, true, strip, lowercase));
            add_specials(&mut inner, Path::new("vocab")).unwrap();
            let tokenizer = Tokenizer::wrap(inner, &Value::Null, lowercase).unwrap();
            assert!(tokenizer.splits_at_ideographs);
            let whole = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
            for bytes in [1, 2, 3, 7, 20] {
                let parts: Vec<&str> = pieces(&text, bytes, true).collect();
                assert_eq!(parts.concat(), text);
                assert!(bytes > 20 || parts.len() > text.len() / 40, "{} parts", parts.len());
                let ids: Vec<u32> = parts
                    .iter()
                    .flat_map(|part| tokenizer.inner.encode_fast(*part, false).unwrap().get_ids().to_vec())
                    .collect();
                assert_eq!(ids, whole.get_ids(), "{bytes} {lowercase} {strip:?}");
            }
        }
        assert_eq!(pieces("天地 the", 1, false).collect::<Vec<_>>(), ["天地", " the"]);
    }
}
