//! The pipelines around a trained vocabulary: what happens to a text before and after the model.
//!
//! | pre-tokenizer | words | WordPiece decoded by | BPE | unigram |
//! |---|---|---|---|---|
//! | bert | between white space and punctuation | `##` | `</w>` | `▁` before each word |
//! | whitespace | between white space | `##` | `</w>` | `▁` before each word |
//! | bytes | GPT-2's, as bytes | bytes | bytes | bytes |
//! | none | the paragraph, `▁` for spaces | `▁` | `▁` | `▁` |
//! | per-character | characters, `▁` for spaces | `▁` | `▁` | `▁` |

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokenizers::decoders::bpe::BPEDecoder;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{DecoderWrapper, SplitDelimiterBehavior};

use super::TrainSpec;
use crate::{Error, Result};

/// WordPiece looks no longer words up. Longer ones are cut, since its time grows with their cube.
pub(super) const MAX_WORD_CHARS: usize = 100;
/// Mark of a WordPiece piece that continues a word.
pub(super) const CONTINUES: &str = "##";
/// Mark of a BPE piece that ends a word.
const ENDS: &str = "</w>";
/// Represents a space.
const SPACE: char = '▁';

/// The model of a vocabulary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The longest piece first, as BERT and ELECTRA.
    #[default]
    Wordpiece,
    /// Byte pair encoding: pairs are merged in the order in which they were learned.
    Bpe,
    /// The most probable pieces, as SentencePiece and T5.
    Unigram,
}

/// What a text is split into before the model sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PreTokenizer {
    /// Words and punctuation, as BERT.
    #[default]
    Bert,
    /// Words between white space.
    Whitespace,
    /// GPT-2's words, as bytes: no character is unknown.
    Bytes,
    /// Nothing: pieces may reach across spaces.
    None,
    /// Characters.
    PerCharacter,
}

impl PreTokenizer {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Whitespace => "whitespace",
            Self::Bytes => "bytes",
            Self::None => "none",
            Self::PerCharacter => "per-character",
        }
    }

    /// Whether its words are those of the text.
    fn finds_words(self) -> bool {
        matches!(self, Self::Bert | Self::Whitespace)
    }
}

/// The normalizer, if there is anything to normalize. `strip_accents` of `None` follows lower case.
pub(super) fn normalizer(spec: &TrainSpec, strip_accents: Option<bool>) -> Option<BertNormalizer> {
    // Bytes are those of the text unless something else was asked for.
    let clean = spec.pre_tokenizer != PreTokenizer::Bytes;
    let any = clean || spec.split_chinese || spec.lowercase || strip_accents == Some(true);
    any.then(|| BertNormalizer::new(clean, spec.split_chinese, strip_accents, spec.lowercase))
}

fn metaspace(split: bool) -> Metaspace {
    let prepend = if split { PrependScheme::Always } else { PrependScheme::Never };
    Metaspace::new(SPACE, prepend, split)
}

/// Every match of a regular expression is a word.
fn matches_of(regex: String) -> Result<PreTokenizerWrapper> {
    let split = Split::new(SplitPattern::Regex(regex), SplitDelimiterBehavior::Isolated, false);
    Ok(split.map_err(failed)?.into())
}

fn failed(e: tokenizers::Error) -> Error {
    Error::config(format!("cannot set up the tokenizer: {e}"))
}

/// The pre-tokenizer. With `cut`, words that are too long for WordPiece are cut.
pub(super) fn pre_tokenizer(spec: &TrainSpec, cut: bool) -> Result<PreTokenizerWrapper> {
    let mut steps: Vec<PreTokenizerWrapper> = match spec.pre_tokenizer {
        PreTokenizer::Bert => vec![BertPreTokenizer.into()],
        PreTokenizer::Whitespace => vec![WhitespaceSplit.into()],
        PreTokenizer::Bytes => vec![ByteLevel::new(false, true, true).into()],
        PreTokenizer::None => vec![metaspace(false).into()],
        PreTokenizer::PerCharacter => {
            vec![metaspace(false).into(), matches_of(r"[\s\S]".to_owned())?]
        }
    };
    if spec.kind == Kind::Unigram && spec.pre_tokenizer.finds_words() {
        steps.push(metaspace(true).into());
    }
    if cut {
        steps.push(matches_of(format!(r"[\s\S]{{1,{MAX_WORD_CHARS}}}"))?);
    }
    Ok(match steps.len() {
        1 => steps.remove(0),
        _ => Sequence::new(steps).into(),
    })
}

/// The decoder, which turns tokens into text again.
pub(super) fn decoder(spec: &TrainSpec) -> Result<DecoderWrapper> {
    let spaces: DecoderWrapper = match spec.pre_tokenizer {
        PreTokenizer::Bytes => ByteLevel::new(false, true, true).into(),
        PreTokenizer::None | PreTokenizer::PerCharacter => metaspace(false).into(),
        PreTokenizer::Bert | PreTokenizer::Whitespace => match spec.kind {
            Kind::Wordpiece => return Ok(WordPieceDecoder::default().into()),
            Kind::Bpe => return Ok(BPEDecoder::new(ENDS.to_owned()).into()),
            Kind::Unigram => metaspace(true).into(),
        },
    };
    if spec.kind != Kind::Wordpiece {
        return Ok(spaces);
    }
    let continues = ReplacePattern::Regex(format!("^{CONTINUES}"));
    let replace = Replace::new(continues, "").map_err(failed)?;
    Ok(DecoderSequence::new(vec![DecoderWrapper::Replace(replace), spaces]).into())
}

/// Mark of pieces that end words, if the model has one.
pub(super) fn end_of_word(spec: &TrainSpec) -> Option<&'static str> {
    (spec.kind == Kind::Bpe && spec.pre_tokenizer.finds_words()).then_some(ENDS)
}
