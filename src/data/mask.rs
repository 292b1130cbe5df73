//! Which tokens of a row are masked and what replaces them: a function of (seed, step, slot of the row in the step),
//! so that any device draws the same.

use serde::{Deserialize, Serialize};

use super::tokenizer::SpecialTokens;
use crate::rng::{Philox, Site, threshold};

/// Whose rule is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskStyle {
    /// google-research/electra's: round(p · tokens) positions of a row, without replacement; 85 % become \[MASK\],
    /// the others stay.
    #[default]
    Electra,
    /// Hugging Face's collator, which txtai uses: every token with probability p; 80 % become \[MASK\], 10 % a random
    /// token, 10 % stay.
    Txtai,
}

fn slots(probability: f64, seq_len: usize) -> usize {
    (((probability + 0.005) * seq_len as f64) as usize).max(1)
}

impl MaskStyle {
    /// The most positions that `rows` rows of `seq_len` tokens have masked: what a batch has room for. Under txtai's rule it lies six
    /// standard deviations above the mean; what goes beyond stays unmasked, in one of a thousand million batches.
    pub fn most(self, probability: f64, seq_len: usize, rows: usize) -> usize {
        match self {
            Self::Electra => rows * slots(probability, seq_len),
            Self::Txtai => {
                let (n, p) = ((rows * seq_len) as f64, probability);
                ((n * p + 6.0 * (n * p * (1.0 - p)).sqrt()).ceil() as usize + 1).min(rows * seq_len)
            }
        }
    }
}

/// How rows are masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskSpec {
    /// The rule.
    pub style: MaskStyle,
    /// p.
    pub probability: f64,
    /// V, for random tokens.
    pub vocab_size: usize,
    /// Never masked: all five by txtai's rule, all but \[UNK\] by electra's.
    pub special: SpecialTokens,
    /// T: electra's rule has int((p + 0.005) · T) slots.
    pub seq_len: usize,
}

/// Which tokens cannot be masked, and which stands for a masked one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// Tokens that are never masked; an id may stand here more than once.
    pub never: [u32; 5],
    /// \[MASK\].
    pub mask: u32,
}

/// Masked positions of one row, ascending, and the token shown at each.
pub type Masked = Vec<(usize, u32)>;

impl MaskSpec {
    /// As [`MaskStyle::most`].
    pub fn most(&self, rows: usize) -> usize {
        self.style.most(self.probability, self.seq_len, rows)
    }

    /// Electra's slots of a row.
    pub fn slots(&self) -> usize {
        slots(self.probability, self.seq_len)
    }

    /// Tokens that are never masked.
    pub fn never(&self) -> [u32; 5] {
        let s = self.special;
        let unknown = if self.style == MaskStyle::Electra { s.pad } else { s.unk };
        [s.pad, s.cls, s.sep, s.mask, unknown]
    }

    /// The same, and the token that stands for a masked one.
    pub fn special_ids(&self) -> SpecialIds {
        SpecialIds { never: self.never(), mask: self.special.mask }
    }

    /// Below the first a masked token's random word shows \[MASK\], below the second a random token, else the original.
    pub fn thresholds(&self) -> [u32; 2] {
        let [masked, random] = self.shares();
        [threshold(masked), threshold(masked + random)]
    }

    /// Shares of the masked positions that show \[MASK\] and a random token.
    pub fn shares(&self) -> [f64; 2] {
        match self.style {
            MaskStyle::Electra => [0.85, 0.0],
            MaskStyle::Txtai => [0.8, 0.1],
        }
    }

    fn may_be_masked(&self, id: u32) -> bool {
        !self.never().contains(&id)
    }

    /// Masks the row in slot `slot` of step `step`.
    pub fn mask(&self, philox: Philox, ids: &[u32], slot: u32, step: u32) -> Masked {
        let word = |site, index: usize| philox.word(index as u32, slot, site, step);
        let candidates = (0..ids.len()).filter(|&i| self.may_be_masked(ids[i]));
        let keyed = candidates.map(|i| (word(Site::MASK_POSITION, i), i));
        let mut chosen: Vec<usize> = match self.style {
            MaskStyle::Txtai => {
                let limit = threshold(self.probability);
                keyed.filter(|&(key, _)| key < limit).map(|(_, i)| i).collect()
            }
            MaskStyle::Electra => {
                let mut keyed: Vec<_> = keyed.collect();
                let wanted = (self.probability * ids.len() as f64).round_ties_even() as usize;
                let count = wanted.min(self.slots()).max(1).min(keyed.len());
                if count < keyed.len() && count > 0 {
                    keyed.select_nth_unstable(count - 1);
                }
                keyed.truncate(count);
                keyed.into_iter().map(|(_, i)| i).collect()
            }
        };
        chosen.sort_unstable();
        let show = |i: usize| {
            let [kind, token, ..] = philox.block(i as u32, slot, Site::MASK_TOKEN, step);
            (i, self.shown(ids[i], kind, token))
        };
        chosen.into_iter().map(show).collect()
    }

    fn shown(&self, original: u32, kind: u32, token: u32) -> u32 {
        let [masked, random] = self.thresholds();
        if kind < masked {
            self.special.mask
        } else if kind < random {
            ((u64::from(token) * self.vocab_size as u64) >> 32) as u32
        } else {
            original
        }
    }
}
