//! Words to vocabularies, by the trainers of the `tokenizers` crate. The same words give the same
//! vocabulary, whatever order a hash table has them in and however many threads there are.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use ahash::{AHashMap, AHashSet};
use compact_str::CompactString;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper};

use super::TrainSpec;
use super::pipeline::{CONTINUES, Kind, PreTokenizer, end_of_word};
use super::words::Words;
use crate::data::tokenizer::ROLES;
use crate::{Error, Result};

/// Characters that are kept at the least, if there are as many.
const LEAST_ALPHABET: usize = 1000;
/// So many words in a thousand may hold a character that is not kept, where nothing is said.
const UNKNOWN_PER_MILLE: u64 = 5;
/// Characters of different words that a unigram model is trained on, the most frequent words: its
/// training runs on one thread, since the order of its sums decides about equally good pieces.
pub(super) const UNIGRAM_CHARACTERS: u64 = 4 << 20;
/// Candidates for each piece of a unigram vocabulary; the library's million serves 30,000 pieces.
const CANDIDATES: usize = 32;

/// The characters of a vocabulary.
pub(super) struct Alphabet {
    /// Sorted.
    pub(super) kept: Vec<char>,
    /// Those of the text.
    pub(super) all: usize,
    /// The share of the words that hold a character that is not kept.
    pub(super) unknown: f64,
    /// What was asked for, where the vocabulary has no room for it.
    pub(super) no_room: bool,
}

/// The most frequent characters.
pub(super) fn alphabet(words: &Words, spec: &TrainSpec) -> Alphabet {
    if spec.pre_tokenizer == PreTokenizer::Bytes {
        let mut kept: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        kept.sort_unstable();
        return Alphabet { all: kept.len(), kept, unknown: 0.0, no_room: false };
    }
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    for (word, count) in words {
        word.chars().for_each(|c| *counts.entry(c).or_default() += count);
    }
    let mut order: Vec<(Reverse<u64>, char)> = counts.iter().map(|(&c, &n)| (Reverse(n), c)).collect();
    order.sort_unstable();
    let rank: AHashMap<char, usize> = order.iter().enumerate().map(|(i, &(_, c))| (c, i)).collect();
    // Words by their rarest character.
    let mut by_rarest = vec![0; order.len()];
    for (word, count) in words {
        if let Some(rarest) = word.chars().map(|c| rank[&c]).max() {
            by_rarest[rarest] += count;
        }
    }
    let total: u64 = by_rarest.iter().sum();
    let unknown = |kept: usize| by_rarest[kept.min(order.len())..].iter().sum::<u64>();
    let asked = spec.alphabet.unwrap_or_else(|| {
        let (mut kept, mut beyond) = (order.len(), 0);
        while kept > LEAST_ALPHABET {
            beyond += by_rarest[kept - 1];
            if beyond * 1000 > total * UNKNOWN_PER_MILLE {
                break;
            }
            kept -= 1;
        }
        kept.max(LEAST_ALPHABET)
    });
    let room = spec.vocab_size - ROLES.len();
    // A character takes two entries where it is marked by its place in a word.
    let room = if spec.pre_tokenizer == PreTokenizer::PerCharacter { room } else { room / 2 };
    let kept = asked.min(room).min(order.len());
    let mut characters: Vec<char> = order[..kept].iter().map(|&(_, c)| c).collect();
    characters.sort_unstable();
    Alphabet {
        kept: characters,
        all: order.len(),
        unknown: unknown(kept) as f64 / (total as f64).max(1.0),
        no_room: asked.min(order.len()) > room,
    }
}

/// The model of a vocabulary.
pub(super) fn learn(words: &Words, alphabet: &[char], spec: &TrainSpec) -> Result<ModelWrapper> {
    match spec.kind {
        Kind::Wordpiece => {
            let pieces = word_pieces(words, alphabet, spec)?;
            let model = WordPiece::builder()
                .vocab(pieces.into_iter().zip(0..).collect::<AHashMap<String, u32>>())
                .unk_token("[UNK]".to_owned());
            Ok(model.build().map_err(failed)?.into())
        }
        Kind::Bpe => Ok(pairs(words, alphabet, spec)?.into()),
        Kind::Unigram => Ok(unigram(words, alphabet, spec)?.into()),
    }
}

fn failed(e: tokenizers::Error) -> Error {
    Error::config(format!("training the vocabulary failed: {e}"))
}

fn specials() -> impl Iterator<Item = String> {
    ROLES.iter().map(|(_, name)| (*name).to_owned())
}

/// Merges pairs. `marked` are the forms of characters that the trainer marks by their place.
fn merge_pairs(
    words: &Words,
    alphabet: &[char],
    spec: &TrainSpec,
    marked: Vec<String>,
    model: &mut BPE,
) -> Result<()> {
    // The trainer numbers characters as it meets them in a hash table and prefers, of two equally
    // frequent pairs, that of lower numbers. Naming them all at the beginning fixes their numbers.
    let known = specials().chain(alphabet.iter().map(char::to_string)).chain(marked);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(spec.vocab_size)
        .min_frequency(spec.min_frequency)
        .limit_alphabet(alphabet.len())
        .initial_alphabet(alphabet.iter().copied().collect::<HashSet<char>>())
        .special_tokens(known.map(|token| AddedToken::from(token, true)).collect())
        .show_progress(false);
    if spec.kind == Kind::Wordpiece {
        trainer = trainer.continuing_subword_prefix(CONTINUES.to_owned());
    } else if let Some(suffix) = end_of_word(spec) {
        trainer = trainer.end_of_word_suffix(suffix.to_owned());
    }
    trainer.build().do_train(&within(words, i32::MAX as u64), model).map_err(failed)?;
    Ok(())
}

/// The words with counts of which no sum over a character exceeds `most`: the library's are narrow.
fn within(words: &Words, most: u64) -> Cow<'_, Words> {
    let total: u64 = words.iter().map(|(word, count)| word.chars().count() as u64 * count).sum();
    if total <= most {
        return Cow::Borrowed(words);
    }
    let scaled = |count: u64| (count as f64 * most as f64 / total as f64) as u64;
    Cow::Owned(words.iter().map(|(word, &count)| (word.clone(), scaled(count).max(1))).collect())
}

/// The pieces: special tokens, then by kind (character, piece), by place in a word and by text.
fn word_pieces(words: &Words, alphabet: &[char], spec: &TrainSpec) -> Result<Vec<String>> {
    // Of bytes any may follow any.
    let bytes = spec.pre_tokenizer == PreTokenizer::Bytes;
    let later: AHashSet<char> = words.keys().flat_map(|word| word.chars().skip(1)).collect();
    let later = alphabet.iter().filter(|c| bytes || later.contains(c));
    let marked = later.map(|c| format!("{CONTINUES}{c}")).collect();
    let mut model = BPE::default();
    merge_pairs(words, alphabet, spec, marked, &mut model)?;
    let specials: Vec<String> = specials().collect();
    let mut learned: Vec<String> =
        model.get_vocab().into_keys().filter(|token| !specials.contains(token)).collect();
    learned.sort_by_cached_key(|token| {
        let text = token.strip_prefix(CONTINUES).filter(|rest| !rest.is_empty());
        let characters = text.unwrap_or(token).chars().count();
        (characters > 1, text.is_some(), token.clone())
    });
    Ok(specials.into_iter().chain(learned).collect())
}

fn pairs(words: &Words, alphabet: &[char], spec: &TrainSpec) -> Result<BPE> {
    let mut model = BPE::builder().unk_token("[UNK]".to_owned()).build().map_err(failed)?;
    let marked =
        end_of_word(spec).into_iter().flat_map(|suffix| alphabet.iter().map(move |c| format!("{c}{suffix}")));
    let marked = marked.collect();
    merge_pairs(words, alphabet, spec, marked, &mut model)?;
    Ok(model)
}

fn unigram(words: &Words, alphabet: &[char], spec: &TrainSpec) -> Result<Unigram> {
    let sentences = sentences(words, alphabet);
    let special: Vec<AddedToken> = specials().map(|token| AddedToken::from(token, true)).collect();
    let trainer = UnigramTrainer::builder()
        .vocab_size(spec.vocab_size as u32)
        .unk_token(Some("[UNK]".to_owned()))
        .initial_alphabet(alphabet.iter().copied().collect())
        .special_tokens(special.clone())
        .seed_size((CANDIDATES * spec.vocab_size).max(100_000))
        .show_progress(false)
        .build()
        .map_err(|e| Error::config(format!("cannot set up the training of a vocabulary: {e}")))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .map_err(|e| Error::config(format!("cannot start a thread: {e}")))?;
    let mut model = Unigram::default();
    pool.install(|| trainer.do_train(sentences, &mut model)).map_err(failed)?;
    let pieces: Vec<(String, f64)> = model
        .iter()
        .skip(special.len())
        .filter(|(token, _)| !special.iter().any(|special| special.content == *token))
        .cloned()
        .collect();
    let specials = special.into_iter().map(|token| (token.content, 0.0));
    Unigram::from(specials.chain(in_order(pieces)).collect(), Some(1), false).map_err(failed)
}

/// Words of the alphabet's characters alone, in order: the most frequent ones.
fn sentences(words: &Words, alphabet: &[char]) -> Vec<(String, u32)> {
    let known: AHashSet<char> = alphabet.iter().copied().collect();
    let mut all: AHashMap<CompactString, u64> = AHashMap::with_capacity(words.len());
    for (word, count) in words {
        for part in word.split(|c| !known.contains(&c)).filter(|part| !part.is_empty()) {
            *all.entry(part.into()).or_default() += count;
        }
    }
    let total: u64 = all.values().sum();
    // The trainer sums counts as u32.
    let scale = (f64::from(u32::MAX / 2) / total.max(1) as f64).min(1.0);
    let mut order: Vec<(Reverse<u64>, CompactString)> =
        all.into_iter().map(|(word, count)| (Reverse(count), word)).collect();
    order.sort_unstable();
    let mut characters = 0;
    let most_frequent = order.into_iter().take_while(|(_, word)| {
        characters += word.chars().count() as u64;
        characters <= UNIGRAM_CHARACTERS
    });
    most_frequent.map(|(count, word)| (word.into(), ((count.0 as f64 * scale) as u32).max(1))).collect()
}

/// Pieces by score and text. Characters that the trained model lost get scores just above its
/// lowest, in the order of a hash table: they are assigned again, in the order of the characters.
fn in_order(mut pieces: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let is_character = |piece: &str| piece.chars().nth(1).is_none();
    let lowest = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let mut characters: Vec<usize> = (0..pieces.len()).filter(|&i| is_character(&pieces[i].0)).collect();
    characters
        .sort_by(|&i, &j| pieces[i].1.total_cmp(&pieces[j].1).then_with(|| pieces[i].0.cmp(&pieces[j].0)));
    // As the trainer adds them up.
    let mut penalty = 0.0;
    let dealt = characters.iter().filter(|&&i| {
        let given = pieces[i].1 == lowest + penalty;
        penalty += if given { 0.0001 } else { 0.0 };
        given
    });
    let dealt: Vec<usize> = dealt.copied().collect();
    let scores: Vec<f64> = dealt.iter().map(|&i| pieces[i].1).collect();
    let mut by_character = dealt;
    by_character.sort_by(|&i, &j| pieces[i].0.cmp(&pieces[j].0));
    for (i, score) in by_character.into_iter().zip(scores) {
        pieces[i].1 = score;
    }
    pieces.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.cmp(b)));
    pieces
}
