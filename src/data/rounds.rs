//! Text in rounds: enough paragraphs at once to keep every core busy, few enough to bound memory, read by a thread of
//! their own while the round before is worked on.

use std::ops::Range;
use std::sync::mpsc::sync_channel;

use rayon::prelude::*;

use super::source::{Paragraph, TextSource};
use crate::{Error, Result};

/// Rounds read ahead.
pub(super) const AHEAD: usize = 2;

/// Text of one round.
pub(super) fn round_bytes() -> u64 {
    (rayon::current_num_threads() as u64 * (1 << 19)).clamp(4 << 20, 32 << 20)
}

/// What is known of a paragraph besides its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// It opens a document.
    pub(super) opens: bool,
    /// It is one text of a pair.
    pub(super) pair: bool,
}

impl From<Paragraph<'_>> for Marks {
    fn from(p: Paragraph<'_>) -> Self {
        Self { opens: p.opens_document, pair: p.pair }
    }
}

/// Some paragraphs.
#[derive(Default)]
pub(super) struct Round {
    text: String,
    /// Where each paragraph ends.
    ends: Vec<(usize, Marks)>,
}

impl Round {
    pub(super) fn push(&mut self, p: Paragraph<'_>) {
        self.text.push_str(p.text);
        self.ends.push((self.text.len(), p.into()));
    }

    /// Paragraphs.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes as of lines.
    pub(super) fn bytes(&self) -> u64 {
        (self.text.len() + self.ends.len()) as u64
    }

    pub(super) fn text(&self, paragraph: usize) -> &str {
        let start = if paragraph == 0 { 0 } else { self.ends[paragraph - 1].0 };
        &self.text[start..self.ends[paragraph].0]
    }

    pub(super) fn marks(&self, paragraph: usize) -> Marks {
        self.ends[paragraph].1
    }

    pub(super) fn opens(&self, paragraph: usize) -> bool {
        self.marks(paragraph).opens
    }

    pub(super) fn texts(&self) -> impl ParallelIterator<Item = &str> {
        (0..self.len()).into_par_iter().map(|i| self.text(i))
    }

    /// Its documents; the first may be the rest of one that began before.
    pub(super) fn documents(&self) -> Vec<Range<usize>> {
        let mut starts: Vec<usize> = (0..self.len()).filter(|&i| i == 0 || self.opens(i)).collect();
        starts.push(self.len());
        starts.windows(2).map(|w| w[0]..w[1]).collect()
    }
}

/// What a thread says whose counterpart has gone; the counterpart's error is the one that counts.
pub(super) fn stopped() -> Error {
    Error::config("another thread stopped")
}

/// The result of a thread.
pub(super) fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(Error::config("a thread that prepares data panicked")))
}

/// Calls `work` on the paragraphs for which `choose`, asked in order, is true: in rounds of `most` bytes of text.
pub(super) fn for_each_round(
    source: &TextSource,
    most: u64,
    mut choose: impl FnMut(&str, bool) -> bool + Send,
    mut work: impl FnMut(Round) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let reader = scope.spawn(move || {
            let mut round = Round::default();
            source.for_each(|p| {
                if choose(p.text, p.opens_document) {
                    round.push(p);
                }
                match round.bytes() >= most {
                    true => sender.send(std::mem::take(&mut round)).map_err(|_| stopped()),
                    false => Ok(()),
                }
            })?;
            sender.send(round).map_err(|_| stopped())
        });
        let worked = receiver.into_iter().try_for_each(&mut work);
        let read = join(reader);
        worked?;
        read
    })
}
