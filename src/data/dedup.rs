//! Duplicate documents: which ones repeat an earlier one.
//!
//! * *Exact*: the same words in the same order, whatever their case and the white space between them, by a hash of 128
//!   bits (XXH3): two different ones among 10⁹ documents agree with a probability of 10⁻²¹.
//! * *MinHash* (Broder, "On the resemblance and containment of documents", 1997): a document is the set of its runs of
//!   five words, without case and punctuation; a script without spaces counts characters as words. 112 hash functions
//!   each keep their least value on the set, in 14 bands of 8: two documents of Jaccard similarity s agree in some band
//!   with probability 1 - (1 - s⁸)¹⁴, which is 5 % at 0.5, 56 % at 0.7, 92 % at 0.8 and 99.96 % at 0.9. A document that
//!   agrees with an earlier, kept one in a band is dropped.
//!
//! Documents are decided in the order of the text, so the result is a function of the text alone. Only the keys of the
//! kept ones are remembered: at most 39 bytes of memory a document for exact, 290 for MinHash.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use serde::{Deserialize, Serialize};
use twox_hash::{xxhash3_64, xxhash3_128};

use crate::backend::cpu::vectorized;
use crate::rng::{Philox, Site};

/// Which documents are dropped because an earlier one is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Dedup {
    /// None.
    #[default]
    None,
    /// Those of the same words in the same order.
    Exact,
    /// Those of nearly the same words: MinHash.
    Minhash,
}

impl Dedup {
    /// Whether documents are compared at all.
    pub(super) fn compares(self) -> bool {
        self != Self::None
    }

    /// As it is typed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Exact => "exact",
            Self::Minhash => "minhash",
        }
    }
}

const BANDS: usize = 14;
const BAND_ROWS: usize = 8;
const HASHES: usize = BANDS * BAND_ROWS;
/// Words of a shingle.
const SHINGLE: usize = 5;
/// Shingles hashed at once.
const BLOCK: usize = 1024;

/// The documents seen so far.
pub(super) struct Deduplicator {
    hashes: Hashes,
    exact: Seen<u128>,
    bands: Seen<u64>,
    kind: Dedup,
}

impl Deduplicator {
    pub(super) fn new(kind: Dedup) -> Self {
        Self { hashes: Hashes::new(), exact: Seen::new(), bands: Seen::new(), kind }
    }

    /// The keys of a document, given as its paragraphs; a document without keys is never a duplicate.
    pub(super) fn keys<'a>(&self, paragraphs: impl Iterator<Item = &'a str>) -> Vec<u64> {
        match self.kind {
            Dedup::None => Vec::new(),
            Dedup::Exact => {
                let hash = exact(paragraphs);
                vec![hash as u64, (hash >> 64) as u64]
            }
            Dedup::Minhash => self.hashes.bands(paragraphs),
        }
    }

    /// Remembers a document unless it repeats one; whether it does not.
    pub(super) fn admit(&mut self, keys: &[u64]) -> bool {
        let new = match self.kind {
            Dedup::None => true,
            Dedup::Exact => !self.exact.contains(join(keys)),
            Dedup::Minhash => !keys.iter().any(|&key| self.bands.contains(key)),
        };
        if new {
            self.recall(keys);
        }
        new
    }

    /// Remembers the keys of documents that were kept before.
    pub(super) fn recall(&mut self, keys: &[u64]) {
        match self.kind {
            Dedup::None => {}
            Dedup::Exact => keys.chunks_exact(2).for_each(|key| self.exact.insert(join(key))),
            Dedup::Minhash => keys.iter().for_each(|&key| self.bands.insert(key)),
        }
    }
}

fn join(key: &[u64]) -> u128 {
    u128::from(key[0]) | u128::from(key[1]) << 64
}

fn exact<'a>(paragraphs: impl Iterator<Item = &'a str>) -> u128 {
    let (mut hash, mut line) = (xxhash3_128::Hasher::new(), String::new());
    for paragraph in paragraphs {
        line.clear();
        for word in paragraph.split_whitespace() {
            line.extend(word.chars().flat_map(char::to_lowercase));
            line.push(' ');
        }
        hash.write(line.as_bytes());
    }
    hash.finish_128()
}

/// 112 permutations of the 32-bit numbers: an odd multiple of x with some bits flipped.
struct Hashes {
    flip: [u32; HASHES],
    multiply: [u32; HASHES],
}

impl Hashes {
    fn new() -> Self {
        let word = |i: usize, which| Philox::new(0).word(i as u32, which, Site::MINHASH, 0);
        Self { flip: std::array::from_fn(|i| word(i, 0)), multiply: std::array::from_fn(|i| word(i, 1) | 1) }
    }

    /// The least value of every hash on the shingles of a document.
    fn signature<'a>(&self, paragraphs: impl Iterator<Item = &'a str>) -> [u32; HASHES] {
        let mut least = [u32::MAX; HASHES];
        let mut block = Vec::with_capacity(BLOCK);
        shingles(paragraphs, |shingle| {
            block.push(shingle);
            if block.len() == BLOCK {
                self.lower(&mut least, &block);
                block.clear();
            }
        });
        self.lower(&mut least, &block);
        least
    }

    fn lower(&self, least: &mut [u32; HASHES], shingles: &[u32]) {
        vectorized(|| {
            for &x in shingles {
                for ((least, flip), multiply) in least.iter_mut().zip(&self.flip).zip(&self.multiply) {
                    *least = (*least).min((x ^ flip).wrapping_mul(*multiply));
                }
            }
        });
    }

    fn bands<'a>(&self, paragraphs: impl Iterator<Item = &'a str>) -> Vec<u64> {
        let signature = self.signature(paragraphs);
        let band = |(number, rows): (usize, &[u32])| {
            let mut bytes = [0; 4 * BAND_ROWS];
            bytes.chunks_exact_mut(4).zip(rows).for_each(|(to, row)| to.copy_from_slice(&row.to_le_bytes()));
            xxhash3_64::Hasher::oneshot_with_seed(number as u64, &bytes)
        };
        signature.chunks_exact(BAND_ROWS).enumerate().map(band).collect()
    }
}

/// A hash of every run of five words; of all words if there are fewer.
fn shingles<'a>(paragraphs: impl Iterator<Item = &'a str>, mut each: impl FnMut(u32)) {
    let (mut window, mut count) = ([0u64; SHINGLE], 0);
    let mut push = |word: u64| {
        window.rotate_left(1);
        window[SHINGLE - 1] = word;
        count += 1;
        if count >= SHINGLE {
            each(mix(&window));
        }
    };
    paragraphs.for_each(|paragraph| words(paragraph, &mut push));
    if count < SHINGLE {
        each(mix(&window));
    }
}

fn mix(window: &[u64; SHINGLE]) -> u32 {
    // Polynomial in the words' hashes, then the finalizer of MurmurHash3.
    let mut x = window.iter().fold(0u64, |x, &word| x.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(word));
    x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (x >> 32) as u32
}

/// A hash (FNV-1a over characters) of every word, in lower case. What has neither letters nor digits has one word: itself.
fn words(text: &str, push: &mut impl FnMut(u64)) {
    const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;
    let step = |word: u64, c: char| (word ^ u64::from(u32::from(c))).wrapping_mul(0x0100_0000_01b3);
    let mut word = EMPTY;
    let mut any = false;
    for c in text.chars() {
        let joins = c.is_alphanumeric();
        if word != EMPTY && (!joins || stands_alone(c)) {
            push(word);
            word = EMPTY;
        }
        if joins {
            any = true;
            word = c.to_lowercase().fold(word, step);
            if stands_alone(c) {
                push(word);
                word = EMPTY;
            }
        }
    }
    if word != EMPTY {
        push(word);
    }
    if !any {
        push(text.chars().fold(EMPTY, step));
    }
}

/// Characters of scripts that write words without spaces between them.
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x9fff
        | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

/// A set of hashes in parts that grow one after the other: growing needs the old and the new table at once, of one part
/// only.
struct Seen<K>(Vec<HashSet<K, BuildHasherDefault<Identity>>>);

const PARTS: u64 = 64;

impl<K: Eq + Hash + Copy + Into<u128>> Seen<K> {
    fn new() -> Self {
        Self((0..PARTS).map(|_| HashSet::default()).collect())
    }

    /// Bits that the tables use for nothing else.
    fn part(key: K) -> usize {
        ((key.into() >> 40) as u64 % PARTS) as usize
    }

    fn contains(&self, key: K) -> bool {
        self.0[Self::part(key)].contains(&key)
    }

    fn insert(&mut self, key: K) {
        self.0[Self::part(key)].insert(key);
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash3_64::Hasher::oneshot(bytes);
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(kind: Dedup, text: &str) -> Vec<u64> {
        Deduplicator::new(kind).keys(text.lines())
    }

    #[test]
    fn exact_ignores_case_and_white_space_alone() {
        let of = |text| keys(Dedup::Exact, text);
        assert_eq!(of("To be,\n or NOT"), of("to  be, or not"));
        assert_ne!(of("to be, or not"), of("to be or not"));
        assert_ne!(of("to be, or not"), of("not or be, to"));
        let mut seen = Deduplicator::new(Dedup::Exact);
        assert!(seen.admit(&of("a b")) && seen.admit(&of("b a")));
        assert!(!seen.admit(&of("A B")));
    }

    /// Documents of 400 different words, of which the second replaces every n-th.
    fn pair(number: usize, every: usize) -> (String, String) {
        let word = |i: usize, other| format!("w{number}x{i}{} ", if other { "y" } else { "" });
        let text = |second: bool| (0..400).map(|i| word(i, second && i % every == 3)).collect::<String>();
        (text(false), text(true))
    }

    #[test]
    fn minhash_follows_its_probabilities() {
        let hashes = Hashes::new();
        for every in [10, 20, 40, 130] {
            let pairs = 60;
            let (mut equal, mut found) = (0, 0);
            for number in 0..pairs {
                let (a, b) = pair(number, every);
                let (a, b) = (hashes.signature(a.lines()), hashes.signature(b.lines()));
                equal += a.iter().zip(&b).filter(|(a, b)| a == b).count();
                found += usize::from(a.chunks(BAND_ROWS).zip(b.chunks(BAND_ROWS)).any(|(a, b)| a == b));
            }
            // Each replaced word changes five of the 396 runs.
            let replaced =
                (0..400).filter(|i| i % every == 3).map(|i| i.min(4).min(399 - i) + 1).sum::<usize>() as f64;
            let s = (396.0 - replaced) / (396.0 + replaced);
            let n = (pairs * HASHES) as f64;
            let off = (equal as f64 - n * s).abs() / (n * s * (1.0 - s)).sqrt();
            assert!(off < 6.0, "similarity {s}: {equal} of {n} equal, {off} deviations off");
            let p = 1.0 - (1.0 - s.powi(8)).powi(14);
            let deviation = (pairs as f64 * p * (1.0 - p)).sqrt().max(1.0);
            assert!(
                (found as f64 - pairs as f64 * p).abs() < 4.5 * deviation,
                "similarity {s}: {found} found, p {p}"
            );
        }
    }

    #[test]
    fn minhash_takes_any_script() {
        let of = |text: &str| keys(Dedup::Minhash, text);
        let common = |a: &str, b: &str| of(a).iter().zip(&of(b)).filter(|(a, b)| a == b).count();
        assert_eq!(common("It was, then, the best of times!", "it was then the best OF times"), BANDS);
        assert_eq!(common("one two", "one two"), BANDS);
        assert_eq!(common("one two", "two one"), 0);
        assert_eq!(common("...", "---"), 0, "punctuation alone is a word");
        let chinese = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜金生麗水玉出崑岡";
        assert!(common(chinese, &format!("{chinese}劍")) > 3, "a character is a word");
    }
}
