//! Counting the words of a text of any size, in bounded memory.
//!
//! The text is read once for its size; above [`TrainSpec::sample_bytes`] a part is sampled,
//! document by document, by random numbers that depend on a document's number alone. Then the words
//! of the sample are counted in parallel. Of more than [`MAX_WORDS`] different words the rarest are
//! forgotten; a text whose words hardly repeat (proteins, Thai) is sampled more thinly instead,
//! since all its words are rare.

use std::collections::hash_map::Entry;

use ahash::AHashMap;
use compact_str::CompactString;
use rayon::prelude::*;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::marks::Marks;
use super::pipeline::MAX_WORD_CHARS;
use crate::data::rounds::{Round, for_each_round, stopped};
use crate::data::source::TextSource;
use crate::data::tokenizer::pieces;
use crate::rng::{Philox, Site};
use crate::{Error, Result};

/// A longer document is sampled in parts.
const UNIT_BYTES: u64 = 1 << 16;
/// Longer text without a space is cut before it is split into words, to bound memory.
const MOST_BYTES: usize = 1 << 20;
/// Parts of the sampling: finer than this a sample's size cannot be chosen.
const BUCKETS: usize = 1 << 16;
/// Text counted at once. Not a function of the number of threads: rare words are forgotten between
/// rounds.
const ROUND_BYTES: u64 = 8 << 20;
/// Different words that are counted; of more, the rarest are forgotten.
const MAX_WORDS: usize = 2 << 20;
/// A text whose words hardly repeat: more than a part in this many is in words seen once.
const HARDLY_REPEATS: u64 = 4;

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

/// The first buckets that are a sample of the text, and the fewest that hold any text.
pub(super) struct Sample {
    buckets: usize,
    fewest: usize,
}

/// Chooses the buckets that hold `most` bytes of text, and counts marks in all of it.
pub(super) fn sample(source: &TextSource, most: u64, marks: &mut Option<Marks>) -> Result<Sample> {
    let (mut units, mut sizes) = (Units::default(), vec![0u64; BUCKETS]);
    source.for_each(|p| {
        sizes[units.bucket(p.text, p.opens_document)] += p.text.len() as u64 + 1;
        marks.as_mut().map_or(Ok(()), |marks| marks.add(p.text))
    })?;
    let mut total = 0;
    let within = sizes.iter().take_while(|&&bytes| {
        total += bytes;
        total <= most
    });
    let within = within.count();
    // The first bucket that has any text, if not even that is small enough.
    let fewest = sizes.iter().position(|&bytes| bytes > 0).unwrap_or(0) + 1;
    Ok(Sample { buckets: within.max(fewest), fewest })
}

/// Different words and how often each was seen.
pub(super) type Words = AHashMap<CompactString, u64>;

/// The words of a text, and the parts of those that are too long for WordPiece.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) words: Words,
    pub(super) parts: Words,
    /// Words that were cut.
    pub(super) long: u64,
    /// Characters in words, and in words that were cut.
    pub(super) characters: u64,
    pub(super) long_characters: u64,
}

impl Counts {
    /// The share of the text that is in words too long for WordPiece.
    pub(super) fn long_share(&self) -> f64 {
        self.long_characters as f64 / (self.characters as f64).max(1.0)
    }

    fn add(&mut self, word: &str) {
        let mut length = 0;
        let mut start = 0;
        for (at, _) in word.char_indices() {
            if length > 0 && length % MAX_WORD_CHARS == 0 {
                *self.parts.entry(word[start..at].into()).or_default() += 1;
                start = at;
            }
            length += 1;
        }
        self.characters += length as u64;
        if start > 0 {
            *self.parts.entry(word[start..].into()).or_default() += 1;
            self.long += 1;
            self.long_characters += length as u64;
        } else if length > 0 {
            *self.words.entry(word.into()).or_default() += 1;
        }
    }

    /// Adds other counts; `new` grows by the characters of words not seen before.
    fn merge(&mut self, other: Self, new: &mut u64) {
        self.long += other.long;
        self.characters += other.characters;
        self.long_characters += other.long_characters;
        for (ours, theirs) in [(&mut self.words, other.words), (&mut self.parts, other.parts)] {
            for (word, count) in theirs {
                match ours.entry(word) {
                    Entry::Occupied(mut entry) => *entry.get_mut() += count,
                    Entry::Vacant(entry) => {
                        *new += entry.key().chars().count() as u64;
                        entry.insert(count);
                    }
                }
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = (&CompactString, u64)> {
        self.words.iter().chain(&self.parts).map(|(word, &count)| (word, count))
    }
}

/// How words are found.
pub(super) struct Splitter {
    pub(super) normalizer: Option<BertNormalizer>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
}

impl Splitter {
    /// Whether every ideograph is a word, so that text may be cut before one.
    fn splits_ideographs(&self) -> bool {
        let normalizer = self.normalizer.as_ref();
        normalizer.is_some_and(|normalizer| normalizer.handle_chinese_chars)
            && matches!(self.pre_tokenizer, PreTokenizerWrapper::BertPreTokenizer(_))
    }

    fn count(&self, text: &str, counts: &mut Counts) -> Result<()> {
        let failed = |e: tokenizers::Error| Error::argument(format!("cannot split text into words: {e}"));
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = &self.normalizer {
            normalizer.normalize(&mut normalized).map_err(failed)?;
        }
        let mut split = PreTokenizedString::from(normalized);
        self.pre_tokenizer.pre_tokenize(&mut split).map_err(failed)?;
        for (word, ..) in split.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            counts.add(word);
        }
        Ok(())
    }
}

/// Counts the words of a sample. One in which words hardly repeat holds `most` characters.
pub(super) fn count_words(
    source: &TextSource,
    sample: &Sample,
    splitter: &Splitter,
    most: u64,
) -> Result<Counts> {
    let mut buckets = sample.buckets;
    loop {
        let may_shrink = buckets > sample.fewest;
        if let Some(counts) = try_count(source, buckets, splitter, most, may_shrink)? {
            return Ok(counts);
        }
        buckets = (buckets / 2).max(sample.fewest);
    }
}

/// Counts the words of the first `buckets` of the text; nothing if they are too many to be held.
fn try_count(
    source: &TextSource,
    buckets: usize,
    splitter: &Splitter,
    most: u64,
    may_shrink: bool,
) -> Result<Option<Counts>> {
    let (mut units, mut counts) = (Units::default(), Counts::default());
    let (mut held, mut forgotten, mut too_many) = (0, [0; 2], false);
    let chosen = |text: &str, opens| units.bucket(text, opens) < buckets;
    let counted = for_each_round(source, ROUND_BYTES, chosen, |round: Round| {
        let counted: Vec<Counts> = round
            .texts()
            .try_fold(Counts::default, |mut counts, text| {
                for piece in pieces(text, UNIT_BYTES as usize, splitter.splits_ideographs()).flat_map(short) {
                    splitter.count(piece, &mut counts)?;
                }
                Ok::<_, Error>(counts)
            })
            .collect::<Result<_>>()?;
        counted.into_iter().for_each(|other| counts.merge(other, &mut held));
        if may_shrink && held > most {
            let rare = counts.all().filter(|(_, count)| *count <= forgotten[0] + 1);
            let rare: u64 = rare.map(|(word, count)| word.chars().count() as u64 * count).sum();
            if rare * HARDLY_REPEATS > counts.characters {
                too_many = true;
                return Err(stopped());
            }
        }
        // Manku & Motwani, "Approximate Frequency Counts over Data Streams" (VLDB 2002), in its
        // simplest form.
        for (words, forgotten) in [&mut counts.words, &mut counts.parts].into_iter().zip(&mut forgotten) {
            while words.len() > MAX_WORDS {
                *forgotten += 1;
                words.retain(|_, count| *count > *forgotten);
                // Checked again when that many new characters have come.
                held = 0;
            }
        }
        Ok(())
    });
    match too_many {
        true => Ok(None),
        false => counted.map(|()| Some(counts)),
    }
}

/// Parts of at most [`MOST_BYTES`].
fn short(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (part, rest) = text.split_at(text.floor_char_boundary(MOST_BYTES));
        text = rest;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_cut_into_parts() {
        let mut counts = Counts::default();
        let word = |length: usize| "äb".chars().cycle().take(length).collect::<String>();
        for length in [0, 1, 100, 101, 200, 250] {
            counts.add(&word(length));
        }
        let seen = |words: &Words| {
            let mut seen: Vec<(usize, u64)> =
                words.iter().map(|(word, &count)| (word.chars().count(), count)).collect();
            seen.sort_unstable();
            seen
        };
        assert_eq!(seen(&counts.words), [(1, 1), (100, 1)]);
        assert_eq!(seen(&counts.parts), [(1, 1), (50, 1), (100, 5)]);
        assert_eq!((counts.long, counts.long_characters, counts.characters), (3, 551, 652));
        let text = word(3 << 20);
        let parts: Vec<&str> = short(&text).collect();
        assert!(parts.len() > 3 && parts.iter().all(|part| part.len() <= MOST_BYTES));
        assert_eq!(parts.concat(), text);
    }
}
