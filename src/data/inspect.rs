//! How a tokenizer fits a text: what it splits, what it does not know, what it has for nothing.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use rayon::prelude::*;
use serde::Serialize;

use super::rounds::{for_each_round, round_bytes};
use super::source::TextSource;
use super::tokenizer::Tokenizer;
use super::unknown::{MissingCharacter, Unknowns};
use crate::{Error, Result};

/// Examples that are shown of anything.
const EXAMPLES: usize = 10;
/// Longer words are no examples: addresses, numbers, whole sentences without spaces.
const EXAMPLE_CHARS: usize = 30;

/// A word and the pieces it is split into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SplitWord {
    /// As it stands in the text.
    pub word: String,
    /// The tokens.
    pub pieces: Vec<String>,
}

/// What [`inspect`] finds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Words: what the tokenizer tokenizes one by one, if it has a letter or a digit.
    pub words: u64,
    /// Tokens, those of punctuation included.
    pub tokens: u64,
    /// Tokens a word, punctuation aside.
    pub fertility: f64,
    /// Unknown tokens, of all.
    pub unknown_rate: f64,
    /// Words that are unknown because they are longer than the model takes.
    pub long_words: u64,
    /// The commonest characters that the vocabulary lacks.
    pub missing_characters: Vec<MissingCharacter>,
    /// Words that are one known token, of all.
    pub whole_rate: f64,
    /// Bytes of text a token.
    pub bytes_per_token: f64,
    /// Pieces that never occur, special tokens aside.
    pub unused: usize,
    /// The longest pieces of the vocabulary.
    pub longest_pieces: Vec<String>,
    /// The words that are split most.
    pub split_most: Vec<SplitWord>,
}

/// Tokenizes all the text and counts. Memory is bounded by the vocabulary.
pub fn inspect(source: &TextSource, tokenizer: &Tokenizer) -> Result<Inspection> {
    let mut all = Tally::new(tokenizer.vocab_size());
    for_each_round(
        source,
        round_bytes(),
        |_, _| true,
        |round| {
            // One tally, as large as the vocabulary, a thread or so.
            let share = round.len().div_ceil(2 * rayon::current_num_threads()).max(1);
            let tallies = (0..round.len())
                .into_par_iter()
                .with_min_len(share)
                .try_fold(
                    || Tally::new(tokenizer.vocab_size()),
                    |mut tally, i| tally.add(tokenizer, round.text(i)).map(|()| tally),
                )
                .collect::<Result<Vec<_>>>()?;
            tallies.into_iter().for_each(|tally| all.merge(tally));
            Ok(())
        },
    )?;
    Ok(all.finish(tokenizer))
}

/// Counts of some text.
struct Tally {
    used: Vec<u64>,
    text_bytes: u64,
    words: u64,
    word_tokens: u64,
    whole: u64,
    tokens: u64,
    unknowns: Unknowns,
    /// Those of most pieces first.
    split: BTreeSet<(Reverse<usize>, SplitWord)>,
}

impl Tally {
    fn new(vocab_size: usize) -> Self {
        let split = BTreeSet::new();
        Self {
            used: vec![0; vocab_size],
            text_bytes: 0,
            words: 0,
            word_tokens: 0,
            whole: 0,
            tokens: 0,
            unknowns: Unknowns::default(),
            split,
        }
    }

    fn add(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<()> {
        tokenizer.pieces(text).try_for_each(|piece| self.add_piece(tokenizer, piece))
    }

    fn add_piece(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<()> {
        let encoding = tokenizer.inner().encode(text, false);
        let encoding = encoding.map_err(|e| Error::argument(format!("cannot tokenize: {e}")))?;
        let (ids, words, offsets) = (encoding.get_ids(), encoding.get_word_ids(), encoding.get_offsets());
        self.text_bytes += text.len() as u64;
        self.tokens += ids.len() as u64;
        for (&id, &(start, end)) in ids.iter().zip(offsets) {
            self.used[id as usize] += 1;
            if id == tokenizer.special().unk {
                self.unknowns.token(tokenizer, text.get(start..end).unwrap_or_default());
            }
        }
        let mut start = 0;
        while start < ids.len() {
            let end = start + words[start..].iter().take_while(|&&word| word == words[start]).count();
            let word = text.get(offsets[start].0..offsets[end - 1].1).unwrap_or_default().trim();
            self.word(tokenizer, word, &ids[start..end]);
            start = end;
        }
        Ok(())
    }

    fn word(&mut self, tokenizer: &Tokenizer, word: &str, ids: &[u32]) {
        if !word.contains(char::is_alphanumeric) {
            return;
        }
        let known = !ids.contains(&tokenizer.special().unk);
        self.words += 1;
        self.word_tokens += ids.len() as u64;
        self.whole += u64::from(known && ids.len() == 1);
        let least =
            self.split.last().filter(|_| self.split.len() == EXAMPLES).map_or(1, |(pieces, _)| pieces.0);
        let example = word.chars().all(char::is_alphabetic) && word.chars().count() <= EXAMPLE_CHARS;
        if known && example && ids.len() > 1 && ids.len() >= least {
            let pieces = ids.iter().map(|&id| tokenizer.token(id)).collect();
            self.split.insert((Reverse(ids.len()), SplitWord { word: word.to_owned(), pieces }));
            self.trim();
        }
    }

    fn trim(&mut self) {
        while self.split.len() > EXAMPLES {
            self.split.pop_last();
        }
    }

    fn merge(&mut self, other: Self) {
        self.used.iter_mut().zip(&other.used).for_each(|(sum, count)| *sum += count);
        self.text_bytes += other.text_bytes;
        self.words += other.words;
        self.word_tokens += other.word_tokens;
        self.whole += other.whole;
        self.tokens += other.tokens;
        self.unknowns.merge(other.unknowns);
        self.split.extend(other.split);
        self.trim();
    }

    fn finish(self, tokenizer: &Tokenizer) -> Inspection {
        let share = |part: u64, of: u64| part as f64 / (of as f64).max(1.0);
        let special = tokenizer.special().all();
        let mut pieces: Vec<String> = (0..self.used.len() as u32)
            .filter(|id| !special.contains(id))
            .filter_map(|id| tokenizer.inner().id_to_token(id))
            .collect();
        let used = (0..).zip(&self.used).filter(|(id, count)| **count > 0 && !special.contains(id)).count();
        let unused = pieces.len() - used;
        pieces.sort_by_cached_key(|piece| (Reverse(piece.chars().count()), piece.clone()));
        pieces.truncate(EXAMPLES);
        Inspection {
            vocab_size: self.used.len(),
            text_bytes: self.text_bytes,
            words: self.words,
            tokens: self.tokens,
            fertility: share(self.word_tokens, self.words),
            unknown_rate: share(self.used[tokenizer.special().unk as usize], self.tokens),
            long_words: self.unknowns.long_words,
            missing_characters: self.unknowns.missing(),
            whole_rate: share(self.whole, self.words),
            bytes_per_token: share(self.text_bytes, self.tokens),
            unused,
            longest_pieces: pieces,
            split_most: self.split.into_iter().map(|(_, word)| word).collect(),
        }
    }
}
