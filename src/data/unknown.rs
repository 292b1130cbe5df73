//! What of a text becomes unknown tokens, and why: characters that the vocabulary lacks, words that
//! are too long for the model.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ahash::AHashMap;
use rayon::prelude::*;
use serde::Serialize;
use tokenizers::{ModelWrapper, NormalizedString, Normalizer};

use super::rounds::{Round, stopped};
use super::source::{Paragraph, TextSource};
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Text that is looked through, from at most so many files.
const SAMPLE_BYTES: usize = 16 << 20;
const SAMPLE_FILES: usize = 32;
/// Other words that are distinguished, and characters of one that are shown.
const WORDS: usize = 1000;
const WORD_CHARS: usize = 30;
/// Characters and words that are named.
const NAMED: usize = 10;

/// A character that the vocabulary lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingCharacter {
    /// The character.
    pub character: char,
    /// How often it is part of an unknown token.
    pub count: u64,
}

/// Why tokens of a text are unknown.
#[derive(Clone, Debug, Default)]
pub struct Unknowns {
    /// Unknown tokens.
    pub tokens: u64,
    /// Words of more characters than the model takes.
    pub long_words: u64,
    characters: BTreeMap<char, u64>,
    words: BTreeMap<String, u64>,
    /// Whether the vocabulary has a character at the beginning of a word, or within one.
    known: AHashMap<(char, bool), bool>,
}

/// The longest word that a tokenizer's model takes.
fn longest_word(tokenizer: &Tokenizer) -> Option<usize> {
    match tokenizer.inner().get_model() {
        ModelWrapper::WordPiece(model) => Some(model.max_input_chars_per_word),
        _ => None,
    }
}

impl Unknowns {
    /// Looks through a sample of the text.
    pub fn find(source: &TextSource, tokenizer: &Tokenizer) -> Result<Self> {
        let files = source.files();
        let step = files.len().div_ceil(SAMPLE_FILES).max(1);
        let most = SAMPLE_BYTES / files.len().div_ceil(step).max(1);
        let mut all = Self::default();
        for path in files.iter().step_by(step) {
            let mut round = Round::default();
            // An error is either that of reading enough, or one that the preparation has reported.
            let _ = source.read_file(path, &mut |p| {
                round.push(Paragraph { text: &p.text[..p.text.floor_char_boundary(most)], ..p });
                if round.bytes() < most as u64 { Ok(()) } else { Err(stopped()) }
            });
            let found: Vec<Self> = round
                .texts()
                .try_fold(Self::default, |mut found, text| found.add(tokenizer, text).map(|()| found))
                .collect::<Result<_>>()?;
            found.into_iter().for_each(|found| all.merge(found));
        }
        Ok(all)
    }

    fn add(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<()> {
        let encoding = tokenizer.inner().encode(text, false);
        let encoding = encoding.map_err(|e| Error::argument(format!("cannot tokenize: {e}")))?;
        let unknown = tokenizer.special().unk;
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            if id == unknown {
                self.token(tokenizer, text.get(start..end).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Counts one unknown token, which replaces this text.
    pub(super) fn token(&mut self, tokenizer: &Tokenizer, text: &str) {
        self.tokens += 1;
        let text = text.trim();
        if longest_word(tokenizer).is_some_and(|most| text.chars().nth(most).is_some()) {
            self.long_words += 1;
            return;
        }
        let mut any = false;
        for (i, c) in text.chars().enumerate() {
            let known = self.known.entry((c, i == 0)).or_insert_with(|| knows(tokenizer, c, i == 0));
            if !*known {
                *self.characters.entry(c).or_default() += 1;
                any = true;
            }
        }
        if !any {
            let word: String = text.chars().take(WORD_CHARS).collect();
            if self.words.len() < WORDS || self.words.contains_key(&word) {
                *self.words.entry(word).or_default() += 1;
            }
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.long_words += other.long_words;
        other.characters.into_iter().for_each(|(c, n)| *self.characters.entry(c).or_default() += n);
        other.words.into_iter().for_each(|(word, n)| *self.words.entry(word).or_default() += n);
        self.known.extend(other.known);
    }

    /// The commonest characters that the vocabulary lacks.
    pub fn missing(&self) -> Vec<MissingCharacter> {
        let mut all: Vec<(Reverse<u64>, char)> =
            self.characters.iter().map(|(&c, &count)| (Reverse(count), c)).collect();
        all.sort_unstable();
        all.into_iter()
            .take(NAMED)
            .map(|(count, character)| MissingCharacter { character, count: count.0 })
            .collect()
    }

    /// The reasons, as a part of a sentence.
    pub fn describe(&self, tokenizer: &Tokenizer) -> String {
        let mut parts = Vec::new();
        let missing: Vec<String> = self
            .missing()
            .iter()
            .map(|m| format!("{} (U+{:04X}, {} times)", m.character, u32::from(m.character), m.count))
            .collect();
        if !missing.is_empty() {
            parts.push(format!("the vocabulary lacks these characters the most: {}", missing.join(", ")));
        }
        if let Some(most) = longest_word(tokenizer).filter(|_| self.long_words > 0) {
            parts.push(format!("{} words are longer than {most} characters", self.long_words));
        }
        let mut words: Vec<(Reverse<u64>, &String)> =
            self.words.iter().map(|(word, &count)| (Reverse(count), word)).collect();
        words.sort_unstable();
        let words: Vec<&str> = words.iter().take(NAMED).map(|(_, word)| word.as_str()).collect();
        if !words.is_empty() {
            parts.push(format!("these words are unknown as a whole: {}", words.join(" ")));
        }
        match parts.is_empty() {
            true => "a sample of the text holds none of them".to_owned(),
            false => format!("in a sample of the text {}", parts.join("; ")),
        }
    }
}

/// Whether the vocabulary has a character, at the beginning of a word or within one.
fn knows(tokenizer: &Tokenizer, c: char, first: bool) -> bool {
    let inner = tokenizer.inner();
    if let (ModelWrapper::WordPiece(model), false) = (inner.get_model(), first) {
        let mut normalized = NormalizedString::from(c.to_string());
        if inner.get_normalizer().is_some_and(|n| n.normalize(&mut normalized).is_err()) {
            return false;
        }
        let mut characters = normalized.get().chars().filter(|c| !c.is_whitespace());
        let prefix = &model.continuing_subword_prefix;
        return characters.all(|c| inner.token_to_id(&format!("{prefix}{c}")).is_some());
    }
    let ids = inner.encode_fast(c.to_string(), false);
    ids.is_ok_and(|ids| !ids.get_ids().contains(&tokenizer.special().unk))
}
