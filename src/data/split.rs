//! Parts of a corpus: the documents that are trained on, and those that are held out.
//!
//! A document is held out if a hash of its token ids falls below a threshold. So the same documents are held out
//! whatever the order of the files and the seed, and a copy of a held-out document is never trained on. A part is kept
//! as runs of paragraphs: memory is a few words for each held-out document, and none for the others.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::shard::Dataset;
use crate::Result;

/// Share that is held out of a large enough text where nothing else is said.
const SHARE: f64 = 0.005;
/// Then also no more tokens than this, about: more would make a held-out figure no better.
const MOST_TOKENS: f64 = (1 << 20) as f64;
/// Then also nothing of fewer documents, of which the share is none or a large piece.
const FEWEST_DOCUMENTS: usize = 400;
/// Paragraphs that one thread looks through at a time.
const BLOCK: usize = 1 << 14;
/// Begins what is hashed, so that nobody's other use of the same hash prefers the same documents.
const KEY: &[u8] = b"elektron: held out";

/// The share that is held out of `tokens` tokens in `documents` documents where nothing else is said.
pub fn default_share(documents: usize, tokens: usize) -> f64 {
    match documents {
        FEWEST_DOCUMENTS.. => SHARE.min(MOST_TOKENS / tokens.max(1) as f64),
        _ => 0.0,
    }
}

/// Consecutive paragraphs of a corpus.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where it begins in the corpus: paragraphs, and tokens with those that frame every text or
    /// pair.
    from: (usize, usize),
    /// Where it begins in the part, in the same terms.
    at: (usize, usize),
}

/// Some of a corpus's paragraphs, numbered from 0.
#[derive(Clone)]
pub struct Part {
    dataset: Arc<Dataset>,
    runs: Vec<Run>,
    paragraphs: usize,
    tokens: usize,
    framed: usize,
}

/// Where a run begins and ends, in paragraphs and framed tokens.
type Span = Range<(usize, usize)>;

impl Part {
    /// All of a corpus.
    pub fn whole(dataset: Arc<Dataset>) -> Self {
        let end = (dataset.paragraphs(), dataset.framed());
        Self::of(dataset, [(0, 0)..end])
    }

    fn of(dataset: Arc<Dataset>, spans: impl IntoIterator<Item = Span>) -> Self {
        let (mut runs, mut at, mut tokens) = (Vec::new(), (0, 0), 0);
        for Range { start: from, end } in spans {
            if end.0 > from.0 {
                runs.push(Run { from, at });
                at = (at.0 + end.0 - from.0, at.1 + end.1 - from.1);
                tokens += dataset.tokens_before(end.0) - dataset.tokens_before(from.0);
            }
        }
        Self { dataset, runs, paragraphs: at.0, tokens, framed: at.1 }
    }

    /// Paragraphs.
    pub fn paragraphs(&self) -> usize {
        self.paragraphs
    }

    /// Tokens, without special tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens if every text or pair is framed.
    pub fn framed(&self) -> usize {
        self.framed
    }

    /// Whether the corpus has any pairs.
    pub fn has_pairs(&self) -> bool {
        self.dataset.has_pairs()
    }

    /// Whether a paragraph is the second text of a pair, whose first is the one before it.
    pub fn is_second(&self, paragraph: usize) -> bool {
        self.dataset.is_second(self.original(paragraph))
    }

    /// Documents of the whole corpus.
    pub fn documents(&self) -> usize {
        self.dataset.documents()
    }

    /// Adds to `hash` what decides its paragraphs.
    pub(super) fn digest(&self, hash: &mut Sha256) {
        self.dataset.digest(hash);
        for count in [self.paragraphs, self.tokens] {
            hash.update((count as u64).to_le_bytes());
        }
    }

    /// The paragraph's number in the corpus.
    fn original(&self, paragraph: usize) -> usize {
        let run = self.runs[self.runs.partition_point(|run| run.at.0 <= paragraph) - 1];
        run.from.0 + paragraph - run.at.0
    }

    /// Tokens of a paragraph.
    pub fn paragraph_len(&self, paragraph: usize) -> usize {
        self.dataset.paragraph_len(self.original(paragraph))
    }

    /// Whether a paragraph opens a document.
    pub fn opens_document(&self, paragraph: usize) -> bool {
        self.dataset.opens_document(self.original(paragraph))
    }

    /// Appends tokens `from..` of a paragraph, `most` at the most.
    pub fn copy_paragraph(&self, paragraph: usize, from: usize, most: usize, to: &mut Vec<u32>) {
        self.dataset.copy_paragraph(self.original(paragraph), from, most, to);
    }

    /// How often each token of a vocabulary occurs. Where most of the corpus belongs to the part,
    /// what does not is counted and taken off the corpus's counts, which the shards have stored.
    pub(super) fn frequencies(&self, vocab_size: usize) -> Vec<u64> {
        let end_of = |run: usize| {
            let next = self.runs.get(run + 1).map_or(self.paragraphs, |next| next.at.0);
            self.runs[run].from.0 + next - self.runs[run].at.0
        };
        let mut counts = vec![0; vocab_size];
        if 2 * self.tokens < self.dataset.tokens() {
            for (number, run) in self.runs.iter().enumerate() {
                self.dataset.add_counts(run.from.0..end_of(number), &mut counts);
            }
            return counts;
        }
        let mut end = 0;
        for (number, run) in self.runs.iter().enumerate() {
            self.dataset.add_counts(end..run.from.0, &mut counts);
            end = end_of(number);
        }
        self.dataset.add_counts(end..self.dataset.paragraphs(), &mut counts);
        let all = self.dataset.frequencies(vocab_size);
        all.iter().zip(counts).map(|(all, outside)| all.saturating_sub(outside)).collect()
    }

    /// An error if a shard that holds some of these paragraphs was cut short.
    pub(super) fn check(&self, paragraphs: Range<usize>) -> Result<()> {
        match paragraphs.is_empty() {
            true => Ok(()),
            false => {
                let (first, last) = (self.original(paragraphs.start), self.original(paragraphs.end - 1));
                self.dataset.check(first..last + 1)
            }
        }
    }

    /// An error if a shard that holds some of these tokens of the framed stream was cut short.
    pub(super) fn check_framed(&self, tokens: Range<usize>) -> Result<()> {
        let original = |at: usize| {
            let run = self.runs[self.runs.partition_point(|run| run.at.1 <= at) - 1];
            run.from.1 + at - run.at.1
        };
        self.dataset.check_framed(original(tokens.start)..original(tokens.end - 1) + 1)
    }

    /// The paragraph that holds token `at` of the stream in which every text is \[CLS\] … \[SEP\]
    /// and every pair \[CLS\] … \[SEP\] … \[SEP\], and how far into it `at` is.
    pub(super) fn framed_position(&self, at: usize) -> Option<(usize, usize)> {
        if at >= self.framed {
            return None;
        }
        let run = self.runs[self.runs.partition_point(|run| run.at.1 <= at) - 1];
        let (paragraph, offset) = self.dataset.framed_position(run.from.1 + at - run.at.1)?;
        Some((run.at.0 + paragraph - run.from.0, offset))
    }
}

impl From<Dataset> for Part {
    fn from(dataset: Dataset) -> Self {
        Self::whole(Arc::new(dataset))
    }
}

/// What is trained on and what is held out: about `share` of the documents.
pub fn split(dataset: &Arc<Dataset>, share: f64) -> (Part, Part) {
    // Saturates at a share of 1.
    let limit = (share * 2f64.powi(64)) as u64;
    if limit == 0 {
        return (Part::whole(dataset.clone()), Part::of(dataset.clone(), []));
    }
    let paragraphs = dataset.paragraphs();
    let starts: Vec<usize> = (0..paragraphs).step_by(BLOCK).collect();
    let scan = |&start: &usize| Block::scan(dataset, start..(start + BLOCK).min(paragraphs), limit);
    let blocks: Vec<Block> = starts.par_iter().map(scan).collect();
    let (mut held_out, mut kept): (Vec<Span>, Vec<Span>) = (Vec::new(), Vec::new());
    let (mut before, mut end) = (0, (0, 0));
    for block in blocks {
        for span in block.held_out {
            let span = (span.start.0, before + span.start.1)..(span.end.0, before + span.end.1);
            kept.push(end..span.start);
            end = span.end;
            held_out.push(span);
        }
        before += block.framed;
    }
    kept.push(end..(paragraphs, dataset.framed()));
    (Part::of(dataset.clone(), kept), Part::of(dataset.clone(), held_out))
}

/// What one thread finds.
struct Block {
    /// Framed tokens of the block's paragraphs.
    framed: usize,
    /// Documents held out that begin in the block; framed tokens are counted from the block's beginning.
    held_out: Vec<Span>,
}

impl Block {
    fn scan(dataset: &Dataset, block: Range<usize>, limit: u64) -> Self {
        let frame = |paragraph| if dataset.is_second(paragraph) { 1 } else { 2 };
        let framed_len = |paragraph| dataset.paragraph_len(paragraph) + frame(paragraph);
        let (mut framed, mut held_out, mut ids) = (0, Vec::new(), Vec::new());
        let mut paragraph = block.start;
        // The end of a document that an earlier block looks at.
        while paragraph < block.end && paragraph > 0 && !dataset.opens_document(paragraph) {
            framed += framed_len(paragraph);
            paragraph += 1;
        }
        while paragraph < block.end {
            let start = (paragraph, framed);
            let (mut hash, mut end) = (Sha256::new_with_prefix(KEY), framed);
            loop {
                ids.clear();
                dataset.copy_paragraph(paragraph, 0, usize::MAX, &mut ids);
                ids.iter_mut().for_each(|id| *id = id.to_le());
                hash.update(bytemuck::cast_slice(&ids));
                end += ids.len() + frame(paragraph);
                framed = if paragraph < block.end { end } else { framed };
                paragraph += 1;
                if paragraph == dataset.paragraphs() || dataset.opens_document(paragraph) {
                    break;
                }
            }
            let digest: [u8; 32] = hash.finalize().into();
            let [a, b, c, d, e, f, g, h, ..] = digest;
            if u64::from_le_bytes([a, b, c, d, e, f, g, h]) < limit {
                held_out.push(start..(paragraph, end));
            }
        }
        Self { framed, held_out }
    }
}
