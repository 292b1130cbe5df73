//! Rows of at most T tokens, made from shards on demand: row r is a function of the corpus, the settings and r.
//!
//! Several corpora may be mixed by weights: an epoch visits a corpus of n rows in w · n places, a whole number of times
//! or, for the fraction, the next rows of an order of its own, which each of its own epochs shuffles anew. So over 1 / f
//! epochs a fraction f visits every row once, and nothing is stored.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::order::permuted;
use super::shard::Dataset;
use super::split::Part;
use super::tokenizer::SpecialTokens;
use crate::rng::{Philox, Site, open_unit};
use crate::{Error, Result};

/// How paragraphs become rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Merge {
    /// Paragraphs or pairs in their special tokens, chained over the whole corpus and cut into rows of T;
    /// the tail is dropped
    #[default]
    Concat,
    /// Whole paragraphs or pairs, combined longest first into rows of up to T
    Pack,
    /// A paragraph or a pair per row
    None,
    /// Two segments of one document, as google-research/electra builds them
    Segments,
}

/// The smallest T.
pub const SHORTEST_ROW: usize = 8;
/// Paragraphs that `Pack` sorts together: those that txtai's trainer maps at once.
const PACK_WINDOW: usize = 1000;
/// Probability of an example with one segment only.
const ONE_SEGMENT: f32 = 0.1;
/// Probability of an example with a random shorter length.
const SHORT: f32 = 0.05;

/// One row: token ids and token types of equal length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// With \[CLS\] and \[SEP\].
    pub ids: Vec<u32>,
    /// 0 in the first segment or the first text of a pair, 1 in the second.
    pub types: Vec<u32>,
}

/// Where the rows of a merge begin.
enum Index {
    Concat,
    /// Numbers of paragraphs, of a pair the first, and where each row's begin among them.
    Pack(Vec<u32>, Vec<u32>),
    /// Every paragraph.
    None,
    /// Numbers of paragraphs, of a pair the first.
    Texts(Vec<u32>),
    /// First paragraph and number of paragraphs.
    Segments(Vec<(u32, u32)>),
}

/// All rows of a corpus, or of several that are mixed.
pub struct Rows {
    corpora: Vec<Corpus>,
    philox: Philox,
    len: usize,
}

/// One corpus of a mixture.
struct Corpus {
    packed: Packed,
    /// Its first place in an epoch that is not shuffled.
    first: usize,
    /// Its places in an epoch.
    visits: usize,
}

impl Rows {
    /// Indexes a corpus. `seed` decides where segments are cut. An error if there is not one row.
    pub fn new(
        dataset: Dataset,
        special: SpecialTokens,
        merge: Merge,
        seq_len: usize,
        seed: u64,
    ) -> Result<Self> {
        Self::mixed(vec![(dataset.into(), 1.0)], special, merge, seq_len, seed)
    }

    /// Indexes corpora that are each seen as many times an epoch as its weight says.
    pub fn mixed(
        parts: Vec<(Part, f64)>,
        special: SpecialTokens,
        merge: Merge,
        seq_len: usize,
        seed: u64,
    ) -> Result<Self> {
        let tokens: usize = parts.iter().map(|(part, _)| part.tokens()).sum();
        let philox = Philox::new(seed);
        let (mut corpora, mut len) = (Vec::new(), 0);
        for (part, weight) in parts {
            let packed = Packed::new(part, special, merge, seq_len, philox)?;
            if packed.len > 0 && weight > 0.0 {
                let visits = ((packed.len as f64 * weight).round() as usize).max(1);
                corpora.push(Corpus { packed, first: len, visits });
                len += visits;
            }
        }
        if len == 0 {
            return Err(Error::config(format!(
                "the text has {tokens} tokens, which fill no row of {seq_len}: give more text or a smaller --seq-len"
            )));
        }
        Ok(Self { corpora, philox, len })
    }

    /// Places of an epoch: rows, each times its corpus's weight.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least one row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens of the text, without special tokens, each corpus once.
    pub fn tokens(&self) -> usize {
        self.corpora.iter().map(|corpus| corpus.packed.part.tokens()).sum()
    }

    /// How often each token of a vocabulary occurs in the text of an epoch: in each corpus, times
    /// its weight. Special tokens that rows are framed with are not counted.
    pub fn frequencies(&self, vocab_size: usize) -> Vec<f64> {
        let mut sums = vec![0.0; vocab_size];
        for Corpus { packed, visits, .. } in &self.corpora {
            let weight = *visits as f64 / packed.len as f64;
            let counts = packed.part.frequencies(vocab_size);
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += weight * count as f64);
        }
        sums
    }

    /// Documents of the text, each corpus once, those that are held out included.
    pub fn documents(&self) -> usize {
        self.corpora.iter().map(|corpus| corpus.packed.part.documents()).sum()
    }

    /// SHA-256 of what the rows depend on apart from the settings: the texts in their order, and how often
    /// an epoch visits each corpus.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for corpus in &self.corpora {
            hash.update((corpus.visits as u64).to_le_bytes());
            corpus.packed.part.digest(&mut hash);
        }
        hash.finalize().into()
    }

    /// Row number `row`: what stands in that place of the first epoch, unshuffled.
    pub fn row(&self, row: usize) -> Row {
        self.visit(0, row)
    }

    /// The row in place `place` of an epoch that is not shuffled.
    pub fn visit(&self, epoch: u32, place: usize) -> Row {
        let (packed, row) = self.locate(epoch, place);
        packed.row(row)
    }

    /// An error if the shards that this row is read from were cut short since they were opened.
    pub fn check(&self, epoch: u32, place: usize) -> Result<()> {
        let (packed, row) = self.locate(epoch, place);
        packed.check(row)
    }

    /// The corpus of a place, and the row there.
    fn locate(&self, epoch: u32, place: usize) -> (&Packed, usize) {
        let number = self.corpora.partition_point(|corpus| corpus.first <= place) - 1;
        let Corpus { packed, first, visits } = &self.corpora[number];
        let (at, rows, visits) = ((place - first) as u64, packed.len as u64, *visits as u64);
        let row = match visits % rows {
            0 => at % rows,
            _ => {
                let visit = u64::from(epoch) * visits + at;
                let own_epoch = (visit / rows) as u32;
                permuted(self.philox, Site::MIXTURE, number as u32, rows, own_epoch, visit % rows)
            }
        };
        (packed, row as usize)
    }
}

/// One corpus cut into rows.
struct Packed {
    part: Part,
    special: SpecialTokens,
    seq_len: usize,
    philox: Philox,
    index: Index,
    len: usize,
}

impl Packed {
    fn new(part: Part, special: SpecialTokens, merge: Merge, seq_len: usize, philox: Philox) -> Result<Self> {
        if seq_len < SHORTEST_ROW {
            return Err(Error::config(format!(
                "rows of {seq_len} tokens are too short: use --seq-len {SHORTEST_ROW} or more"
            )));
        }
        if part.paragraphs() >= u32::MAX as usize {
            return Err(Error::config("this corpus has 2³² paragraphs or more: split it"));
        }
        let (index, len) = match merge {
            Merge::Concat => (Index::Concat, part.framed() / seq_len),
            Merge::None if part.has_pairs() => {
                let texts = texts(&part);
                let len = texts.len();
                (Index::Texts(texts), len)
            }
            Merge::None => (Index::None, part.paragraphs()),
            Merge::Pack => {
                let (paragraphs, starts) = pack(&part, seq_len);
                let len = starts.len() - 1;
                (Index::Pack(paragraphs, starts), len)
            }
            Merge::Segments => {
                let rows = segments(&part, seq_len, philox);
                let len = rows.len();
                (Index::Segments(rows), len)
            }
        };
        Ok(Self { part, special, seq_len, philox, index, len })
    }

    fn check(&self, row: usize) -> Result<()> {
        // Both texts of a pair are in the same shard.
        let check = |&p: &u32| self.part.check(p as usize..p as usize + 1);
        match &self.index {
            Index::Concat => self.part.check_framed(row * self.seq_len..(row + 1) * self.seq_len),
            Index::None => self.part.check(row..row + 1),
            Index::Texts(paragraphs) => check(&paragraphs[row]),
            Index::Pack(paragraphs, starts) => {
                paragraphs[starts[row] as usize..starts[row + 1] as usize].iter().try_for_each(check)
            }
            Index::Segments(rows) => {
                let (first, count) = rows[row];
                self.part.check(first as usize..(first + count) as usize)
            }
        }
    }

    fn row(&self, row: usize) -> Row {
        match &self.index {
            Index::Concat => self.chained(row * self.seq_len),
            Index::None => self.framed(&[row as u32]),
            Index::Texts(paragraphs) => self.framed(&paragraphs[row..row + 1]),
            Index::Pack(paragraphs, starts) => {
                self.framed(&paragraphs[starts[row] as usize..starts[row + 1] as usize])
            }
            Index::Segments(rows) => self.two_segments(row, rows[row]),
        }
    }

    /// Paragraphs or pairs one after the other, each in its special tokens, in at most T tokens.
    fn framed(&self, paragraphs: &[u32]) -> Row {
        let mut row = Row { ids: Vec::with_capacity(self.seq_len), types: Vec::with_capacity(self.seq_len) };
        for &paragraph in paragraphs {
            self.frame(paragraph as usize, self.seq_len - row.ids.len(), &mut row);
        }
        row
    }

    /// Appends a paragraph as \[CLS\] … \[SEP\], or a pair as \[CLS\] … \[SEP\] … \[SEP\], in at most `room`
    /// tokens.
    fn frame(&self, first: usize, room: usize, Row { ids, types }: &mut Row) {
        let second = second_of(&self.part, first);
        let frame = if second.is_some() { 3 } else { 2 };
        if room <= frame {
            return;
        }
        let length = |paragraph| self.part.paragraph_len(paragraph);
        let (most, second_most) = truncated(length(first), second.map_or(0, length), room - frame);
        ids.push(self.special.cls);
        self.part.copy_paragraph(first, 0, most, ids);
        ids.push(self.special.sep);
        types.resize(ids.len(), 0);
        if let Some(second) = second {
            self.part.copy_paragraph(second, 0, second_most, ids);
            ids.push(self.special.sep);
            types.resize(ids.len(), 1);
        }
    }

    /// T tokens of the chained corpus from `at` on.
    fn chained(&self, at: usize) -> Row {
        let (mut ids, mut types) = (Vec::with_capacity(self.seq_len), Vec::with_capacity(self.seq_len));
        let Some((mut paragraph, mut offset)) = self.part.framed_position(at) else {
            return Row::default();
        };
        let pairs = self.part.has_pairs();
        while ids.len() < self.seq_len && paragraph < self.part.paragraphs() {
            let second = pairs && self.part.is_second(paragraph);
            // Only the first text of a pair has a [CLS] before it.
            let lead = usize::from(!second);
            if offset < lead {
                ids.push(self.special.cls);
                offset = lead;
            }
            let room = self.seq_len - ids.len();
            self.part.copy_paragraph(paragraph, offset - lead, room, &mut ids);
            if ids.len() < self.seq_len {
                ids.push(self.special.sep);
            }
            types.resize(ids.len(), u32::from(second));
            (paragraph, offset) = (paragraph + 1, 0);
        }
        Row { ids, types }
    }

    fn two_segments(&self, row: usize, (first, count): (u32, u32)) -> Row {
        let draw = Draws::new(self.philox, row);
        let target = draw.target(self.seq_len);
        let first_target = if draw.unit(1) < ONE_SEGMENT { usize::MAX } else { (target - 3) / 2 };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (i, paragraph) in (first..first + count).enumerate() {
            let len = self.part.paragraph_len(paragraph as usize);
            let fits = a.is_empty() || a.len() + len < first_target;
            let may_overflow = b.is_empty() && a.len() < first_target && draw.unit(4 + i as u32) < 0.5;
            let to = if fits || may_overflow { &mut a } else { &mut b };
            self.part.copy_paragraph(paragraph as usize, 0, usize::MAX, to);
        }
        a.truncate(self.seq_len - 2);
        b.truncate(self.seq_len.saturating_sub(a.len() + 3));
        let mut ids = vec![self.special.cls];
        ids.extend(a);
        ids.push(self.special.sep);
        let mut types = vec![0; ids.len()];
        if !b.is_empty() {
            types.resize(ids.len() + b.len() + 1, 1);
            ids.extend(b);
            ids.push(self.special.sep);
        }
        Row { ids, types }
    }
}

/// Paragraphs that are not the second text of a pair.
fn texts(part: &Part) -> Vec<u32> {
    let all = 0..part.paragraphs();
    match part.has_pairs() {
        true => all.filter(|&p| !part.is_second(p)).map(|p| p as u32).collect(),
        false => all.map(|p| p as u32).collect(),
    }
}

/// The second text of the pair whose first text is this paragraph, if it is one.
fn second_of(part: &Part, first: usize) -> Option<usize> {
    let second = first + 1;
    (part.has_pairs() && second < part.paragraphs() && part.is_second(second)).then_some(second)
}

/// The lengths to which two texts are cut that may have `most` tokens together: the longer one is cut
/// first, as the tokenizers library does with `longest_first`.
fn truncated(first: usize, second: usize, most: usize) -> (usize, usize) {
    if first + second <= most {
        return (first, second);
    }
    let short = first.min(second);
    let (short, long) = match most.checked_sub(short) {
        Some(left) if left >= short => (short, left),
        _ => (most / 2, most - most / 2),
    };
    if first > second { (long, short) } else { (short, long) }
}

/// The random decisions of one two-segment row.
struct Draws {
    philox: Philox,
    row: u32,
}

impl Draws {
    fn new(philox: Philox, row: usize) -> Self {
        Self { philox, row: row as u32 }
    }

    fn unit(&self, index: u32) -> f32 {
        open_unit(self.philox.word(index, self.row, Site::SEGMENT, 0))
    }

    /// Tokens aimed at: T, or now and then any number from 5 on.
    fn target(&self, seq_len: usize) -> usize {
        if self.unit(2) < SHORT {
            return 5 + (self.unit(3) * (seq_len - 4) as f32) as usize;
        }
        seq_len
    }
}

/// txtai's packing: in each window longest first, and a row is closed when the next paragraph would not fit.
fn pack(part: &Part, seq_len: usize) -> (Vec<u32>, Vec<u32>) {
    let framed = |p: u32| {
        let length = part.paragraph_len(p as usize) + 2;
        let second = second_of(part, p as usize).map_or(0, |second| part.paragraph_len(second) + 1);
        (length + second).min(seq_len)
    };
    let (mut order, mut starts) = (Vec::new(), vec![0]);
    for window in texts(part).chunks(PACK_WINDOW) {
        let mut sorted = window.to_vec();
        sorted.sort_by_key(|&p| std::cmp::Reverse(framed(p)));
        let mut length = 0;
        for (i, &paragraph) in sorted.iter().enumerate() {
            order.push(paragraph);
            length += framed(paragraph);
            let next = sorted.get(i + 1).map_or(usize::MAX, |&p| framed(p));
            if next == usize::MAX || length + next > seq_len {
                starts.push(order.len() as u32);
                length = 0;
            }
        }
    }
    (order, starts)
}

/// Consecutive paragraphs of one document until the row's target length is reached.
fn segments(part: &Part, seq_len: usize, philox: Philox) -> Vec<(u32, u32)> {
    let mut rows: Vec<(u32, u32)> = Vec::new();
    let (mut first, mut length) = (0, 0);
    for paragraph in 0..part.paragraphs() {
        if part.opens_document(paragraph) && paragraph > first {
            rows.push((first as u32, (paragraph - first) as u32));
            (first, length) = (paragraph, 0);
        }
        length += part.paragraph_len(paragraph);
        if length >= Draws::new(philox, rows.len()).target(seq_len) {
            rows.push((first as u32, (paragraph + 1 - first) as u32));
            (first, length) = (paragraph + 1, 0);
        }
    }
    if part.paragraphs() > first {
        rows.push((first as u32, (part.paragraphs() - first) as u32));
    }
    rows
}
