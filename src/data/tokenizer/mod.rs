//! Tokenizers: loaded from what `transformers` loads, or trained on the text (`vocabulary.rs`), and
//! saved so that `AutoTokenizer.from_pretrained` gives the ids of training. The work is the
//! `tokenizers` crate's.
//!
//! ```text
//! tokenizer.json │ vocab.txt │ vocab.json + merges.txt     files
//!   └─ and the settings in the same directory               settings
//!        └─ class: which pipeline                           classes
//!             └─ tokens added to the model's vocabulary     added
//!                  └─ Tokenizer                             load
//!                       └─ frame, files, read back          frame, save
//! ```

mod added;
mod classes;
mod files;
mod frame;
mod load;
mod pieces;
mod save;
mod settings;

use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

pub use super::vocabulary::{Kind, PreTokenizer, TrainSpec, Trained, train};
use crate::{Error, Result};
#[cfg(feature = "hub")]
pub(crate) use files::{SENTENCEPIECE, conversion};
use pieces::Cuts;
pub(super) use pieces::pieces;

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

/// Larger ids are taken for those of a damaged file: each id costs a row of embeddings.
const MOST_TOKENS: u32 = 1 << 24;

/// A tokenizer with its special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    special: SpecialTokens,
    names: [String; 5],
    lowercase: bool,
    /// Where a long text may be split.
    cuts: Cuts,
    model_max_length: Option<usize>,
    /// Settings that a saved tokenizer keeps.
    kept: Map<String, Value>,
    /// Text on which a saved tokenizer is compared with this one.
    sample: Vec<String>,
}

impl Tokenizer {
    /// A tokenizer of the library; `settings` name special tokens that are not called [PAD], [UNK],
    /// [CLS], [SEP] and [MASK], as tokenizer_config.json does.
    pub(super) fn wrap(inner: Inner, settings: &Value, lowercase: bool) -> Result<Self> {
        let name = |(role, default): (&str, &str)| match settings.get(role) {
            Some(Value::String(name)) => name.clone(),
            Some(token) => token.get("content").and_then(Value::as_str).unwrap_or(default).to_owned(),
            None => default.to_owned(),
        };
        Self::assemble(inner, ROLES.map(name), lowercase)
    }

    fn assemble(mut inner: Inner, names: [String; 5], lowercase: bool) -> Result<Self> {
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        let id = |i: usize| {
            inner.token_to_id(&names[i]).ok_or_else(|| Error::config(load::missing(ROLES[i].0, &names[i])))
        };
        check_ids(&inner)?;
        let special = SpecialTokens { pad: id(0)?, unk: id(1)?, cls: id(2)?, sep: id(3)?, mask: id(4)? };
        let cuts = Cuts::of(&inner);
        let lowercase = match inner.get_normalizer() {
            Some(NormalizerWrapper::BertNormalizer(normalizer)) => normalizer.lowercase,
            _ => lowercase,
        };
        Ok(Self {
            inner,
            special,
            names,
            lowercase,
            cuts,
            model_max_length: None,
            kept: Map::new(),
            sample: Vec::new(),
        })
    }

    /// Special tokens.
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Ids of the tokens that begin and end a text, where the settings name such tokens.
    pub fn bos_eos(&self) -> [Option<u32>; 2] {
        ["bos_token", "eos_token"].map(|role| self.inner.token_to_id(self.kept.get(role)?.as_str()?))
    }

    /// V: one more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The longest input that tokenizer_config.json names, if it names one.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
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
        self.cuts.pieces(text)
    }

    /// The text of a token.
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_else(|| self.names[1].clone())
    }

    /// The library's tokenizer.
    pub fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Names and ids of the tokens that open and close a sequence.
    fn frame(&self) -> ((String, u32), (String, u32)) {
        ((self.names[2].clone(), self.special.cls), (self.names[3].clone(), self.special.sep))
    }

    /// SHA-256 of its definition.
    pub fn hash(&self) -> Result<[u8; 32]> {
        // The model's vocabulary is written in the order of ids, so equal tokenizers give equal
        // text.
        let mut hash = Sha256::new_with_prefix(definition(&self.inner)?);
        if self.inner.get_encode_special_tokens() {
            // The definition does not include this setting.
            hash.update(b"split_special_tokens");
        }
        Ok(hash.finalize().into())
    }
}

/// Every id is one of a vocabulary that a model can have.
fn check_ids(inner: &Inner) -> Result<()> {
    let highest = inner.get_vocab(true).into_values().max().unwrap_or(0);
    match highest < MOST_TOKENS {
        true => Ok(()),
        false => Err(Error::config(format!(
            "a token has the id {highest}; ids below {MOST_TOKENS} are supported, since every \
             model has a row for each"
        ))),
    }
}

/// The text of a `tokenizer.json`.
fn definition(inner: &Inner) -> Result<String> {
    inner.to_string(true).map_err(|e| Error::config(format!("cannot write the tokenizer: {e}")))
}

/// BERT's pipeline around a WordPiece model.
pub(super) fn bert(model: WordPiece, normalizer: BertNormalizer) -> Inner {
    let mut inner = Inner::new(model);
    // Fails only where a vocabulary's added tokens do not survive normalisation; there are none
    // yet.
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
    frame::set_training_frame(inner, ("[CLS]", cls), ("[SEP]", sep))
}
