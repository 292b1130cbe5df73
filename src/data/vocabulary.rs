//! Training a WordPiece vocabulary on text of any size, in bounded memory.
//!
//! The text is read twice. The first time its size is taken; above [`TrainSpec::sample_bytes`] a part is sampled, document
//! by document, by random numbers that depend on a document's number alone. The second time the words of the sample are
//! counted in parallel. The pieces then are the `tokenizers` crate's. The same text gives the same vocabulary, on any
//! machine and with any number of threads.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use ahash::AHashMap;
use compact_str::CompactString;
use rayon::prelude::*;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::rounds::{Round, for_each_round};
use super::source::TextSource;
use super::tokenizer::{ROLES, Tokenizer, add_specials, bert, pieces};
use crate::rng::{Philox, Site};
use crate::{Error, Result};

/// A longer document is sampled in parts.
const UNIT_BYTES: u64 = 1 << 16;
/// Parts of the sampling: finer than this a sample's size cannot be chosen.
const BUCKETS: usize = 1 << 16;
/// Text counted at once. Not a function of the number of threads: rare words are forgotten between rounds.
const ROUND_BYTES: u64 = 8 << 20;
/// Different words that are counted; of more, the rarest are forgotten.
const MAX_WORDS: usize = 2 << 20;
/// WordPiece knows no longer words.
const MAX_WORD_CHARS: usize = 100;
/// Mark of a piece that continues a word.
const CONTINUES: &str = "##";

/// How a vocabulary is trained.
#[derive(Clone, Debug)]
pub struct TrainSpec {
    /// Entries, special tokens included.
    pub vocab_size: usize,
    /// Lower case, as BERT-uncased; else as it stands.
    pub lowercase: bool,
    /// Whether accents go; if nothing is said, with lower case.
    pub strip_accents: Option<bool>,
    /// Whether every Chinese character is a word.
    pub split_chinese: bool,
    /// Different characters that are kept, the most frequent ones.
    pub alphabet: usize,
    /// Pieces seen fewer times are left out.
    pub min_frequency: u64,
    /// Text to train on; of more, a sample is taken.
    pub sample_bytes: u64,
}

impl Default for TrainSpec {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            lowercase: true,
            strip_accents: None,
            split_chinese: true,
            alphabet: 1000,
            min_frequency: 2,
            sample_bytes: 1 << 30,
        }
    }
}

impl Tokenizer {
    /// Trains a WordPiece vocabulary on the text. The same text gives the same vocabulary.
    pub fn train(source: &TextSource, spec: &TrainSpec) -> Result<Self> {
        if spec.vocab_size < 2 * ROLES.len() || spec.alphabet == 0 || spec.sample_bytes == 0 {
            return Err(Error::config(format!(
                "a vocabulary needs at least {} entries, one character and some text to train on",
                2 * ROLES.len()
            )));
        }
        let normalizer = BertNormalizer::new(true, spec.split_chinese, spec.strip_accents, spec.lowercase);
        let words = count_words(source, sample(source, spec.sample_bytes)?, &normalizer)?;
        let vocab: AHashMap<String, u32> = learn(&words, spec)?.into_iter().zip(0..).collect();
        let model = WordPiece::builder()
            .vocab(vocab)
            .unk_token("[UNK]".to_owned())
            .build()
            .map_err(|e| Error::config(format!("cannot set up WordPiece: {e}")))?;
        let mut inner = bert(model, normalizer);
        add_specials(&mut inner, Path::new("the trained vocabulary"))?;
        Self::wrap(inner, &Value::Null, spec.lowercase)
    }
}

/// Numbers the units of sampling: documents, or parts of long ones.
#[derive(Default)]
struct Units {
    number: u64,
    bytes: u64,
}

impl Units {
    /// The bucket of the unit that a paragraph belongs to: a random number.
    fn bucket(&mut self, text: &str, opens: bool) -> usize {
        if opens || self.bytes >= UNIT_BYTES {
            self.number += 1;
            self.bytes = 0;
        }
        self.bytes += text.len() as u64 + 1;
        let [word, ..] =
            Philox::new(0).block(self.number as u32, (self.number >> 32) as u32, Site::SAMPLE, 0);
        word as usize % BUCKETS
    }
}

/// How many buckets hold `most` bytes of text.
fn sample(source: &TextSource, most: u64) -> Result<usize> {
    let (mut units, mut sizes) = (Units::default(), vec![0u64; BUCKETS]);
    source.for_each(|p| {
        sizes[units.bucket(p.text, p.opens_document)] += p.text.len() as u64 + 1;
        Ok(())
    })?;
    let mut total = 0;
    let within = sizes.iter().take_while(|&&bytes| {
        total += bytes;
        total <= most
    });
    let within = within.count();
    // The first bucket that has any text, if not even that is small enough.
    Ok(within.max(sizes.iter().position(|&bytes| bytes > 0).unwrap_or(0) + 1))
}

type Words = AHashMap<CompactString, u64>;

/// Counts the words of the first `buckets` of the text.
fn count_words(source: &TextSource, buckets: usize, normalizer: &BertNormalizer) -> Result<Words> {
    let (mut units, mut words, mut forgotten) = (Units::default(), Words::new(), 0);
    let chosen = |text: &str, opens| units.bucket(text, opens) < buckets;
    for_each_round(source, ROUND_BYTES, chosen, |round: Round| {
        let counted: Vec<Words> = round
            .texts()
            .try_fold(Words::new, |mut words, text| {
                for piece in pieces(text, UNIT_BYTES as usize, normalizer.handle_chinese_chars) {
                    count(piece, normalizer, &mut words)?;
                }
                Ok::<_, Error>(words)
            })
            .collect::<Result<_>>()?;
        for (word, count) in counted.into_iter().flatten() {
            *words.entry(word).or_default() += count;
        }
        // Manku & Motwani, "Approximate Frequency Counts over Data Streams" (VLDB 2002), in its simplest form.
        while words.len() > MAX_WORDS {
            forgotten += 1;
            words.retain(|_, count| *count > forgotten);
        }
        Ok(())
    })?;
    Ok(words)
}

fn count(text: &str, normalizer: &BertNormalizer, words: &mut Words) -> Result<()> {
    let failed = |e: tokenizers::Error| Error::argument(format!("cannot split text into words: {e}"));
    let mut normalized = NormalizedString::from(text);
    normalizer.normalize(&mut normalized).map_err(failed)?;
    let mut split = PreTokenizedString::from(normalized);
    BertPreTokenizer.pre_tokenize(&mut split).map_err(failed)?;
    for (word, ..) in split.get_splits(OffsetReferential::Normalized, OffsetType::None) {
        if word.chars().nth(MAX_WORD_CHARS).is_none() {
            *words.entry(CompactString::from(word)).or_default() += 1;
        }
    }
    Ok(())
}

/// The pieces: special tokens, then by kind (character, piece), by place in a word and by text.
fn learn(words: &Words, spec: &TrainSpec) -> Result<Vec<String>> {
    let (first, later) = alphabet(words, spec.alphabet.min((spec.vocab_size - ROLES.len()) / 2));
    let specials = ROLES.map(|(_, name)| name.to_owned());
    // The trainer numbers characters as it meets them in a hash table and prefers, of two equally frequent pairs, that
    // of lower numbers. Naming them all at the beginning fixes their numbers.
    let characters = first.iter().map(char::to_string).chain(later.iter().map(|c| format!("{CONTINUES}{c}")));
    let known = specials.iter().cloned().chain(characters).map(|token| AddedToken::from(token, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(spec.vocab_size)
        .min_frequency(spec.min_frequency)
        .limit_alphabet(first.len())
        .initial_alphabet(first.iter().copied().collect::<HashSet<char>>())
        .continuing_subword_prefix(CONTINUES.to_owned())
        .special_tokens(known.collect())
        .show_progress(false)
        .build();
    let mut model = BPE::default();
    trainer
        .do_train(words, &mut model)
        .map_err(|e| Error::config(format!("training the vocabulary failed: {e}")))?;
    let mut learned: Vec<String> =
        model.get_vocab().into_keys().filter(|token| !specials.contains(token)).collect();
    learned.sort_by_cached_key(|token| {
        let text = token.strip_prefix(CONTINUES).filter(|rest| !rest.is_empty());
        let characters = text.unwrap_or(token).chars().count();
        (characters > 1, text.is_some(), token.clone())
    });
    Ok(specials.into_iter().chain(learned).collect())
}

/// The most frequent characters, sorted, and those of them that do not only begin words.
fn alphabet(words: &Words, most: usize) -> (Vec<char>, Vec<char>) {
    let mut counts: BTreeMap<char, (u64, bool)> = BTreeMap::new();
    for (word, count) in words {
        for (i, c) in word.chars().enumerate() {
            let entry = counts.entry(c).or_default();
            entry.0 += count;
            entry.1 |= i > 0;
        }
    }
    let mut all: Vec<(char, (u64, bool))> = counts.into_iter().collect();
    all.sort_by_key(|&(c, (count, _))| (std::cmp::Reverse(count), c));
    all.truncate(most);
    all.sort_unstable();
    let later = all.iter().filter(|(_, (_, later))| *later).map(|&(c, _)| c).collect();
    (all.into_iter().map(|(c, _)| c).collect(), later)
}
