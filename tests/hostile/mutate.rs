//! Mutations of valid files: case number n of a format is the same on every machine.

use elektron::rng::{Philox, Site};

/// No file grows beyond this.
const LONGEST: usize = 128 << 10;
/// How deep brackets are nested: deeper than any stack that a parser without a limit could have.
const DEEP: usize = 50_000;

/// Numbers that sizes and offsets shall not be believed to be.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "1e309",
    "-0.0",
    "NaN",
    "1e-320",
    "99999999999999999999999999999999999999",
];
/// Bytes that text shall not be believed to be made of, and some that are much to a parser.
const PIECES: [&[u8]; 20] = [
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\0",
    b"\xef\xbb\xbf",
    b"\"",
    b"\\",
    b"\\ud800",
    b"\r",
    b"\n",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"(?:a{1000}){1000}",
    b"(a*)*b",
    b"../",
    b"1979-05-27T07:32:00Z",
    "\u{202e}é".as_bytes(),
];
/// What opens a nesting, and what closes it.
const NESTS: [(&str, &str); 6] = [
    ("[", "]"),
    ("{\"text\":", "}"),
    ("(", ")"),
    ("a.", ""),
    ("{\"type\":\"Sequence\",\"normalizers\":[", "]}"),
    ("\"", ""),
];

struct Dice {
    philox: Philox,
    case: u32,
    drawn: u32,
}

impl Dice {
    fn word(&mut self) -> u64 {
        self.drawn += 1;
        let [a, b, ..] = self.philox.block(self.drawn, self.case, Site(0x4057), 0);
        u64::from(a) << 32 | u64::from(b)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A random part of `len` bytes, mostly a short one.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let most = if self.below(4) == 0 { len - start } else { (len - start).min(16) };
        start..start + self.below(most + 1)
    }
}

/// Mutated file number `case` of a format.
pub(super) fn mutation(format: &str, case: usize, seeds: &[Vec<u8>]) -> Vec<u8> {
    let seed = format.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31) + u64::from(byte));
    let mut dice = Dice { philox: Philox::new(seed), case: case as u32, drawn: 0 };
    let mut bytes = dice.pick(seeds).clone();
    for _ in 0..1 + dice.below(3) {
        mutate(&mut dice, &mut bytes, seeds);
        bytes.truncate(LONGEST);
    }
    bytes
}

fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let range = dice.range(bytes.len());
    match dice.below(13) {
        0 | 1 => {
            for _ in 0..1 + dice.below(4) {
                let bit = dice.below(8 * bytes.len());
                bytes.get_mut(bit / 8).into_iter().for_each(|byte| *byte ^= 1 << (bit % 8));
            }
        }
        2 => bytes.truncate(range.start),
        3 => drop(bytes.drain(range)),
        4 => {
            let again = bytes[range.clone()].repeat(1 + dice.below(2000));
            bytes.splice(range.end..range.end, again);
        }
        5 => {
            let other = dice.pick(seeds);
            let from = dice.below(other.len() + 1);
            bytes.splice(range.start.., other[from..].iter().copied());
        }
        6 | 7 => {
            let wide = *dice.pick(&[
                0,
                1,
                127,
                128,
                255,
                1 << 16,
                1 << 31,
                (1 << 32) - 1,
                1 << 40,
                1 << 63,
                u64::MAX,
            ]);
            let width = *dice.pick(&[1, 2, 4, 8]);
            let end = (range.start + width).min(bytes.len());
            bytes.splice(range.start..end, wide.to_le_bytes()[..width].iter().copied());
        }
        8 => number(dice, bytes),
        9 => string(dice, bytes),
        10 => {
            let piece = *dice.pick(&PIECES);
            bytes.splice(range.start..range.start, piece.iter().copied());
        }
        11 => {
            let (open, close) = *dice.pick(&NESTS);
            let depth = 1 + dice.below(DEEP);
            let nest = open.repeat(depth) + &close.repeat(if dice.below(2) == 0 { depth } else { 0 });
            bytes.splice(range, nest.into_bytes());
        }
        _ => bytes[range].iter_mut().for_each(|byte| *byte = dice.word() as u8),
    }
}

/// Writes another number in the place of one.
fn number(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let is_digit = |i: &usize| bytes[*i].is_ascii_digit();
    let digits: Vec<usize> = (0..bytes.len()).filter(is_digit).collect();
    if digits.is_empty() {
        return;
    }
    let start = *dice.pick(&digits);
    let end = (start..bytes.len()).find(|i| !is_digit(i)).unwrap_or(bytes.len());
    bytes.splice(start..end, dice.pick(&NUMBERS).bytes());
}

/// Writes one quoted string in the place of another.
fn string(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let quotes: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] == b'"').collect();
    let strings: Vec<_> = quotes.windows(2).map(|pair| pair[0]..pair[1] + 1).collect();
    if strings.is_empty() {
        return;
    }
    let (from, to) = (dice.pick(&strings).clone(), dice.pick(&strings).clone());
    let copy = bytes[from].to_vec();
    bytes.splice(to, copy);
}
