//! The one structure in which data and model meet.

use super::mask::{MaskSpec, SpecialIds};
use crate::rng::Philox;

/// How the device masks a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// The rule.
    pub spec: MaskSpec,
    /// The run's generator.
    pub rng: Philox,
    /// Number of the batch's first sequence among all sequences of the step.
    pub slot0: u32,
    /// M, the masked positions there is room for.
    pub slots: usize,
}

/// A packed batch: N tokens of B sequences laid end to end, M of them masked. No padding is computed; where a caller
/// brings padded rows that a loss must count, the padded queries stay and `key_len` hides them as keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// (N) the original token ids.
    pub ids: Vec<u32>,
    /// (N) what the generator reads: `ids` with the masked positions overwritten by \[MASK\] or another token.
    pub masked_ids: Vec<u32>,
    /// (N) position of each token in its sequence, below the model's `max_position_embeddings`.
    pub positions: Vec<u32>,
    /// (N) token type ids.
    pub types: Vec<u32>,
    /// (B + 1) where each sequence starts among the N tokens; the last entry is N.
    pub cu_seqlens: Vec<u32>,
    /// (B) how many leading tokens of each sequence may be attended to; its length where nothing is padded.
    pub key_len: Vec<u32>,
    /// (M) masked positions among the N tokens, ascending.
    pub masked_index: Vec<u32>,
    /// (M) weight of each masked position in the generator's loss: 1, or 0 for an unused slot.
    pub masked_weight: Vec<f32>,
    /// (N) weight of each position in the discriminator's loss: 1, or 0 where it does not count.
    pub rtd_weight: Vec<f32>,
    /// Given, the model masks the batch where it computes, and `masked_ids`, `masked_index` and `masked_weight` are empty.
    pub masking: Option<Masking>,
    /// Tokens that metrics count apart, because they cannot be masked; not given, those that the
    /// model's configuration names.
    pub special: Option<SpecialIds>,
}

impl Batch {
    /// N, the packed tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that count: all but padding.
    pub fn real_tokens(&self) -> usize {
        self.rtd_weight.iter().filter(|&&weight| weight > 0.0).count()
    }

    /// B, the sequences.
    pub fn sequences(&self) -> usize {
        self.key_len.len()
    }

    /// M, the masked positions, or the room for them.
    pub fn masked(&self) -> usize {
        self.masking.map_or(self.masked_index.len(), |masking| masking.slots)
    }

    /// The longest sequence.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }

    /// (M) the original tokens at the masked positions: the generator's targets.
    pub fn targets(&self) -> impl Iterator<Item = u32> + '_ {
        self.masked_index.iter().map(|&i| self.ids[i as usize])
    }
}
