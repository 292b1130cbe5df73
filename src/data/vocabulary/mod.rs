//! Training a vocabulary on text of any size, in bounded memory.
//!
//! ```text
//! words.rs   text → words and how often each occurs      marks.rs     are accents stripped?
//! learn.rs   words → pieces                              pipeline.rs  everything around the model
//! ```
//!
//! The same text gives the same vocabulary, on any machine and with any number of threads.

mod learn;
mod marks;
mod pipeline;
mod words;

use std::path::Path;

use serde_json::Value;

use self::learn::{UNIGRAM_CHARACTERS, alphabet, learn};
use self::marks::Marks;
pub use self::pipeline::{Kind, PreTokenizer};
use self::pipeline::{MAX_WORD_CHARS, decoder, normalizer, pre_tokenizer};
use self::words::{Counts, Splitter, Words, count_words, sample};
use super::source::TextSource;
use super::tokenizer::{ROLES, Tokenizer, add_specials};
use crate::{Error, Result};

/// Characters of different words that pairs are merged in, where words hardly repeat.
const CHARACTERS: u64 = 16 << 20;
/// Words that are too long for BERT's pipeline are cut where they hold more than this share of the
/// text; fewer become \[UNK\], and the tokenizer stays a `BertTokenizer`.
const LONG_SHARE: f64 = 0.01;

/// How a vocabulary is trained.
#[derive(Clone, Debug)]
pub struct TrainSpec {
    /// Entries, special tokens included.
    pub vocab_size: usize,
    /// The model.
    pub kind: Kind,
    /// What the text is split into first.
    pub pre_tokenizer: PreTokenizer,
    /// Lower case, as BERT-uncased; else the case of the text is kept.
    pub lowercase: bool,
    /// Whether accents are stripped; by default with lower case, where that does not change words.
    pub strip_accents: Option<bool>,
    /// Whether every Chinese character is a word.
    pub split_chinese: bool,
    /// Different characters that are kept, the most frequent ones. The default is 1,000, or as many
    /// as leave 1 word in 200 with another character.
    pub alphabet: Option<usize>,
    /// Pieces seen fewer times are left out (not by unigram models).
    pub min_frequency: u64,
    /// The most bytes of text to train on; a sample is taken of more.
    pub sample_bytes: u64,
}

impl Default for TrainSpec {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            kind: Kind::default(),
            pre_tokenizer: PreTokenizer::default(),
            lowercase: true,
            strip_accents: None,
            split_chinese: true,
            alphabet: None,
            min_frequency: 2,
            sample_bytes: 1 << 30,
        }
    }
}

impl TrainSpec {
    fn check(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::config(problem));
        let specials = ROLES.len();
        if self.vocab_size < 2 * specials || self.alphabet == Some(0) || self.sample_bytes == 0 {
            return fail(format!(
                "a vocabulary needs at least {} entries, one character and some text to train on",
                2 * specials
            ));
        }
        if self.vocab_size > u32::MAX as usize {
            return fail(format!("a vocabulary of {} entries is too large", self.vocab_size));
        }
        if let Some(alphabet) = self.alphabet
            && alphabet > self.vocab_size - specials
        {
            return fail(format!(
                "an alphabet of {alphabet} characters does not fit into a vocabulary of {} \
                 entries, {specials} of which are special tokens: use a larger --vocab-size or a \
                 smaller --alphabet",
                self.vocab_size
            ));
        }
        let bytes = if self.kind == Kind::Wordpiece { 512 } else { 256 };
        if self.pre_tokenizer == PreTokenizer::Bytes && self.vocab_size < specials + bytes {
            let twice = if bytes == 512 { ", each at the beginning of a word and within one" } else { "" };
            return fail(format!(
                "a vocabulary of bytes has the 256 bytes{twice}: --vocab-size must be {} or more",
                specials + bytes
            ));
        }
        Ok(())
    }
}

/// A trained tokenizer, and what its user should know about it.
pub struct Trained {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Full sentences, without an end.
    pub remarks: Vec<String>,
}

impl Tokenizer {
    /// Trains a vocabulary on the text. The same text gives the same vocabulary.
    pub fn train(source: &TextSource, spec: &TrainSpec) -> Result<Self> {
        Ok(train(source, spec)?.tokenizer)
    }
}

/// As [`Tokenizer::train`], with remarks.
pub fn train(source: &TextSource, spec: &TrainSpec) -> Result<Trained> {
    spec.check()?;
    let mut remarks = Vec::new();
    let mut marks = (spec.lowercase && spec.strip_accents.is_none()).then(Marks::new);
    let sample = sample(source, spec.sample_bytes, &mut marks)?;
    let keep = marks.as_ref().is_some_and(Marks::change_words);
    remarks.extend(marks.and_then(|marks| about_marks(&marks)));
    let normalizer = normalizer(spec, if keep { Some(false) } else { spec.strip_accents });
    let most = if spec.kind == Kind::Unigram { UNIGRAM_CHARACTERS } else { CHARACTERS };
    let splitter = Splitter { normalizer, pre_tokenizer: pre_tokenizer(spec, false)? };
    let counts = count_words(source, &sample, &splitter, most)?;
    if counts.characters == 0 {
        return Err(Error::config(
            "there is nothing to train a vocabulary on: the text holds no characters but \
             spaces and control characters",
        ));
    }
    let cut = cuts(spec, &counts);
    remarks.extend(about_long_words(spec, &counts, cut));
    let words = joined(counts, spec, cut);
    let alphabet = alphabet(&words, spec);
    remarks.extend(about_alphabet(spec, &alphabet));
    let mut inner = tokenizers::Tokenizer::new(learn(&words, &alphabet.kept, spec)?);
    // Fails only where added tokens do not survive normalisation; there are none yet.
    let _ = inner.with_normalizer(splitter.normalizer);
    inner.with_pre_tokenizer(Some(pre_tokenizer(spec, cut)?));
    inner.with_decoder(Some(decoder(spec)?));
    add_specials(&mut inner, Path::new("the trained vocabulary"))?;
    let tokenizer = Tokenizer::wrap(inner, &Value::Null, spec.lowercase)?;
    let entries = tokenizer.vocab_size();
    if entries < spec.vocab_size {
        remarks.push(format!(
            "the text gave {entries} entries of the {} that were asked for: no other pieces occur \
             often enough",
            spec.vocab_size
        ));
    }
    Ok(Trained { tokenizer, remarks })
}

/// Whether the tokenizer itself cuts long words.
fn cuts(spec: &TrainSpec, counts: &Counts) -> bool {
    match (spec.kind, spec.pre_tokenizer) {
        (Kind::Bpe | Kind::Unigram, _) | (_, PreTokenizer::PerCharacter) => false,
        (Kind::Wordpiece, PreTokenizer::Bert) => counts.long_share() > LONG_SHARE,
        (Kind::Wordpiece, _) => true,
    }
}

/// The words to learn from: without those that will be unknown.
fn joined(counts: Counts, spec: &TrainSpec, cut: bool) -> Words {
    let Counts { mut words, parts, .. } = counts;
    if cut || spec.kind != Kind::Wordpiece {
        for (part, count) in parts {
            *words.entry(part).or_default() += count;
        }
    }
    words
}

fn about_marks(marks: &Marks) -> Option<String> {
    let share = match 100.0 * marks.share() {
        0.0 => return None,
        share if share < 0.01 => "fewer than 0.01 %".to_owned(),
        share => format!("{share:.2} %"),
    };
    match marks.change_words() {
        true => Some(format!(
            "{share} of the letters would lose combining marks or be torn apart if accents were \
             stripped, which changes words in this script: accents are kept (--accents strip \
             strips them, --accents keep confirms it)"
        )),
        false => Some(format!(
            "{share} of the letters lose their accents with lower case, as in BERT: --accents keep \
             keeps them"
        )),
    }
}

fn about_long_words(spec: &TrainSpec, counts: &Counts, cut: bool) -> Option<String> {
    let of_words = matches!(spec.pre_tokenizer, PreTokenizer::Bert | PreTokenizer::Whitespace);
    if counts.long == 0 || spec.kind != Kind::Wordpiece || !of_words {
        return None;
    }
    let (long, share) = (counts.long, 100.0 * counts.long_share());
    let which =
        format!("{share:.2} % of the text is in {long} words of more than {MAX_WORD_CHARS} characters");
    Some(match cut {
        true => format!(
            "{which}: the tokenizer cuts them into parts of {MAX_WORD_CHARS}; for text without \
             spaces --kind bpe or unigram with --pre-tokenizer none is faster and cuts nothing"
        ),
        false => format!("{which}, which become [UNK], as in BERT"),
    })
}

fn about_alphabet(spec: &TrainSpec, alphabet: &learn::Alphabet) -> Option<String> {
    let (kept, all, share) = (alphabet.kept.len(), alphabet.all, 100.0 * alphabet.unknown);
    let text = format!("the vocabulary has {kept} of the text's {all} characters; {share:.2} % of the words");
    let text = format!("{text} hold another one, which is unknown");
    match alphabet.no_room {
        true => Some(format!("{text}: {} entries have room for no more (--vocab-size)", spec.vocab_size)),
        false if share > 0.1 => Some(format!("{text} (--alphabet)")),
        false => None,
    }
}
