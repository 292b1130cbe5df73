//! Settings of a vocabulary that is trained: those of `elektron tokenizer train`, and of a run that
//! trains its own.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::data::tokenizer::{Kind, PreTokenizer, TrainSpec};
use crate::{Error, Result};

/// More text than this is not sampled.
const MOST_SAMPLE_BYTES: u64 = 32 << 30;

/// Whether accents, and other combining marks, are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Accents {
    /// They are kept.
    Keep,
    /// They are stripped, as in BERT's lower-case models.
    Strip,
}

/// How Chinese is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Chinese {
    /// Every character is a word, as in BERT.
    Split,
    /// As other text.
    Whole,
}

/// The user's settings of a vocabulary.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[allow(missing_docs)] // as in `Settings`
pub struct VocabularySettings {
    /// Model of the vocabulary [default: wordpiece]
    #[arg(long, help_heading = "Vocabulary")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// What the text is split into first [default: bert]
    #[arg(long, help_heading = "Vocabulary")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_tokenizer: Option<PreTokenizer>,
    /// Keep case [default: false with --pre-tokenizer bert, else true]
    #[arg(
        long,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL",
        help_heading = "Vocabulary"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cased: Option<bool>,
    /// Whether accents and other combining marks are kept [default: strip with lower case where
    /// that does not change words, else keep]
    #[arg(long, help_heading = "Vocabulary")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accents: Option<Accents>,
    /// Whether every Chinese character is a word, or they are split as other text [default: split
    /// with --pre-tokenizer bert, else whole]
    #[arg(long, help_heading = "Vocabulary")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chinese: Option<Chinese>,
    /// Different characters that are kept, the most frequent ones [default: 1000, or as many as
    /// leave 1 word in 200 with another one]
    #[arg(long, value_name = "N", help_heading = "Vocabulary")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alphabet: Option<usize>,
    /// Leave out pieces seen fewer times [default: 2]
    #[arg(long, value_name = "N", help_heading = "Vocabulary")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_frequency: Option<u64>,
    /// The most text that a vocabulary is trained on; from more text documents are sampled, always
    /// the same ones [default: 1 GiB]
    #[arg(long, value_name = "BYTES", help_heading = "Vocabulary")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_bytes: Option<u64>,
}

impl VocabularySettings {
    /// What they mean. Settings that would have no effect are refused.
    pub fn spec(&self, vocab_size: usize) -> Result<TrainSpec> {
        let (kind, pre_tokenizer) = (self.kind.unwrap_or_default(), self.pre_tokenizer.unwrap_or_default());
        let refuse = |flag: &str, why: &str| Err(Error::config(format!("{flag} has no effect here: {why}")));
        match pre_tokenizer {
            PreTokenizer::Bytes if self.alphabet.is_some() => {
                return refuse("--alphabet", "with --pre-tokenizer bytes the alphabet is the 256 bytes");
            }
            PreTokenizer::PerCharacter if self.min_frequency.is_some() => {
                let why = "with --pre-tokenizer per-character no piece is longer than a character";
                return refuse("--min-frequency", &format!("{why}; --alphabet says how many there are"));
            }
            PreTokenizer::PerCharacter if self.chinese == Some(Chinese::Split) => {
                return refuse(
                    "--chinese split",
                    "with --pre-tokenizer per-character every character is split",
                );
            }
            _ => {}
        }
        if kind == Kind::Unigram && self.min_frequency.is_some() {
            return refuse("--min-frequency", "unigram models choose pieces by their likelihood");
        }
        let sample_bytes = self.sample_bytes.unwrap_or(TrainSpec::default().sample_bytes);
        if !(1..=MOST_SAMPLE_BYTES).contains(&sample_bytes) {
            return Err(Error::config(format!(
                "--sample-bytes is {sample_bytes}, expected 1 to {MOST_SAMPLE_BYTES}"
            )));
        }
        let bert = pre_tokenizer == PreTokenizer::Bert;
        Ok(TrainSpec {
            vocab_size,
            kind,
            pre_tokenizer,
            lowercase: !self.cased.unwrap_or(!bert),
            strip_accents: self.accents.map(|accents| accents == Accents::Strip),
            split_chinese: self.chinese.map_or(bert, |chinese| chinese == Chinese::Split),
            alphabet: self.alphabet,
            min_frequency: self.min_frequency.unwrap_or(TrainSpec::default().min_frequency),
            sample_bytes,
        })
    }
}

impl Settings {
    /// Those of the vocabulary.
    pub fn vocabulary(&self) -> VocabularySettings {
        VocabularySettings {
            kind: self.kind,
            pre_tokenizer: self.pre_tokenizer,
            cased: self.cased,
            accents: self.accents,
            chinese: self.chinese,
            alphabet: self.alphabet,
            min_frequency: self.min_frequency,
            sample_bytes: self.sample_bytes,
        }
    }

    /// The same without what decides a vocabulary, for a tokenizer that is there already.
    pub fn without_vocabulary(&self) -> Self {
        Self {
            vocab_size: None,
            kind: None,
            pre_tokenizer: None,
            cased: None,
            accents: None,
            chinese: None,
            alphabet: None,
            min_frequency: None,
            sample_bytes: None,
            ..self.clone()
        }
    }

    /// An error if the vocabulary has any settings, while the one of `tokenizer` is used.
    pub fn refuse_vocabulary(&self, tokenizer: &str) -> Result<()> {
        let given = [
            ("--vocab-size", self.vocab_size.is_some()),
            ("--kind", self.kind.is_some()),
            ("--pre-tokenizer", self.pre_tokenizer.is_some()),
            ("--cased", self.cased.is_some()),
            ("--accents", self.accents.is_some()),
            ("--chinese", self.chinese.is_some()),
            ("--alphabet", self.alphabet.is_some()),
            ("--min-frequency", self.min_frequency.is_some()),
            ("--sample-bytes", self.sample_bytes.is_some()),
        ];
        let given: Vec<&str> = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        if given.is_empty() {
            return Ok(());
        }
        Err(Error::config(format!(
            "{} would be ignored, since the vocabulary of {tokenizer} is used and none is trained: \
             leave out one or the other",
            given.join(", ")
        )))
    }
}
