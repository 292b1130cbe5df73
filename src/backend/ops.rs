//! The operands of every op: one structure each, so that two swapped buffers do not compile.

use std::ops::Range;

use super::{Backend, Clock, Dropout};
use crate::data::mask::{MaskSpec, SpecialIds};
use crate::model::config::Activation;
use crate::rng::Philox;

/// out = dropout(LN(word\[ids\] (+ delta\[ids\]) + position\[positions\] + token_type\[types\])), (N, E).
pub struct EmbedFwd<'a, B: Backend> {
    /// E.
    pub width: usize,
    /// (N) token ids.
    pub ids: B::Slice<'a, u32>,
    /// (N) positions.
    pub positions: B::Slice<'a, u32>,
    /// (N) token types.
    pub types: B::Slice<'a, u32>,
    /// The tables.
    pub tables: EmbedTables<'a, B>,
    /// Variance offset of the LayerNorm.
    pub eps: f64,
    /// Dropout of the result.
    pub dropout: Dropout,
    /// (N, E) result.
    pub out: B::SliceMut<'a, B::X>,
    /// (N) means, saved.
    pub mean: B::SliceMut<'a, B::F>,
    /// (N) reciprocal standard deviations, saved.
    pub rstd: B::SliceMut<'a, B::F>,
}

/// The tables that an embedding reads.
pub struct EmbedTables<'a, B: Backend> {
    /// (V, E) word embeddings.
    pub word: B::Slice<'a, B::X>,
    /// (V, E) added to `word`: the discriminator's own part in gradient-disentangled sharing.
    pub delta: Option<B::Slice<'a, B::X>>,
    /// (positions, E).
    pub position: B::Slice<'a, B::X>,
    /// (types, E).
    pub token_type: B::Slice<'a, B::X>,
    /// (E) LayerNorm scale.
    pub gamma: B::Slice<'a, B::X>,
    /// (E) LayerNorm shift.
    pub beta: B::Slice<'a, B::X>,
}

/// Gradients of [`EmbedFwd`]; the sum that was normalised is recomputed from the tables.
pub struct EmbedBwd<'a, B: Backend> {
    /// E.
    pub width: usize,
    /// (N) token ids.
    pub ids: B::Slice<'a, u32>,
    /// (N) positions.
    pub positions: B::Slice<'a, u32>,
    /// (N) token types.
    pub types: B::Slice<'a, u32>,
    /// The tables.
    pub tables: EmbedTables<'a, B>,
    /// The row whose lookups give no gradient (`padding_idx`).
    pub padding: Option<u32>,
    /// Dropout of the forward pass.
    pub dropout: Dropout,
    /// (N) saved means.
    pub mean: B::Slice<'a, B::F>,
    /// (N) saved reciprocal standard deviations.
    pub rstd: B::Slice<'a, B::F>,
    /// (N, E) gradient of the result; overwritten with the gradient of the sum.
    pub dout: B::SliceMut<'a, B::X>,
    /// (V, E) `+=`: gradient of `word`, or of `delta` where there is one.
    pub dword: B::SliceMut<'a, B::F>,
    /// (positions, E) `+=`.
    pub dposition: B::SliceMut<'a, B::F>,
    /// (types, E) `+=`.
    pub dtoken_type: B::SliceMut<'a, B::F>,
    /// (E) `+=`.
    pub dgamma: B::SliceMut<'a, B::F>,
    /// (E) `+=`.
    pub dbeta: B::SliceMut<'a, B::F>,
}

/// out (N, O) = act(inp (N, I) · Wᵀ + b).
pub struct LinearFwd<'a, B: Backend> {
    /// I.
    pub inputs: usize,
    /// O.
    pub outputs: usize,
    /// (N, I).
    pub inp: B::Slice<'a, B::X>,
    /// (O, I).
    pub weight: B::Slice<'a, B::X>,
    /// (O).
    pub bias: B::Slice<'a, B::X>,
    /// The activation function and where its argument (N, O) is saved.
    pub activation: Option<(Activation, B::SliceMut<'a, B::X>)>,
    /// (N, O), rows `pitch` apart.
    pub out: B::SliceMut<'a, B::X>,
    /// O, or more: [`Backend::pitch`].
    pub pitch: usize,
}

/// dinp = dout · W, dW += doutᵀ · inp, db += Σₙ dout, where dout first goes through the activation's derivative, and dinp through that
/// of the layer before.
pub struct LinearBwd<'a, B: Backend> {
    /// I.
    pub inputs: usize,
    /// O.
    pub outputs: usize,
    /// N.
    pub rows: usize,
    /// (O, I).
    pub weight: B::Slice<'a, B::X>,
    /// The activation function and its saved argument (N, O).
    pub activation: Option<(Activation, B::Slice<'a, B::X>)>,
    /// (N, O), rows `pitch` apart; with an activation, overwritten with the gradient of its argument.
    pub dout: B::SliceMut<'a, B::X>,
    /// O, or more: [`Backend::pitch`].
    pub pitch: usize,
    /// The activation that made the layer's input: dinp becomes the gradient of its argument, and is set.
    pub before: Option<Before<'a, B>>,
    /// (N, I).
    pub dinp: (Write, B::SliceMut<'a, B::X>),
    /// The layer's input (N, I), and dW (O, I) `+=`; `None` where [`WeightGrad`] adds it later.
    pub dweight: Option<InputAndGradient<'a, B>>,
    /// (O) `+=`; `None` where the op behind has already added it ([`AddNormBwd::dbias`], [`AttentionBwd::dbias`], [`Before::dbias`]).
    pub dbias: Option<B::SliceMut<'a, B::F>>,
}

/// A layer's input, and the gradient of its weight.
pub type InputAndGradient<'a, B> =
    (<B as Backend>::Slice<'a, <B as Backend>::X>, <B as Backend>::SliceMut<'a, <B as Backend>::F>);

/// The activation between two linear layers, as the second one's backward pass meets it.
pub struct Before<'a, B: Backend> {
    /// The function.
    pub activation: Activation,
    /// (N, I) its saved argument.
    pub pre: B::Slice<'a, B::X>,
    /// (N, I) its result, where that was not saved and is to be computed again, for the weight's gradient.
    pub act: Option<B::SliceMut<'a, B::X>>,
    /// (I) `+=` Σₙ dinp: the bias gradient of the first layer, while dinp is at hand.
    pub dbias: B::SliceMut<'a, B::F>,
}

/// dW += doutᵀ · inp of one linear layer. Several at once fill a device that each alone would not.
pub struct WeightGrad<'a, B: Backend> {
    /// I.
    pub inputs: usize,
    /// O.
    pub outputs: usize,
    /// (N, I).
    pub inp: B::Slice<'a, B::X>,
    /// (N, O).
    pub dout: B::Slice<'a, B::X>,
    /// (O, I) `+=`.
    pub dweight: B::SliceMut<'a, B::F>,
}

/// How a result meets what its destination holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `=`
    Set,
    /// `+=`, for the gradient of a residual branch.
    Add,
}

/// Which tokens attend to which: packed sequences, bidirectional.
pub struct Sequences<'a, B: Backend> {
    /// (B + 1) first row of each sequence, and N.
    pub cu_seqlens: B::Slice<'a, u32>,
    /// (B) leading tokens of a sequence that serve as keys.
    pub key_len: B::Slice<'a, u32>,
    /// Longest sequence.
    pub max_seqlen: usize,
    /// NH.
    pub heads: usize,
    /// HS.
    pub head_size: usize,
}

/// out = dropout(softmax(Q · Kᵀ / √HS)) · V for every sequence and head (Vaswani et al. 2017), (N, C).
pub struct AttentionFwd<'a, B: Backend> {
    /// Geometry.
    pub sequences: Sequences<'a, B>,
    /// Dropout of the probabilities: row = query row, index = head · 2²⁰ + key.
    pub dropout: Dropout,
    /// (N, 3C) queries, keys and values side by side, head by head within each.
    pub qkv: B::Slice<'a, B::X>,
    /// (N, C).
    pub out: B::SliceMut<'a, B::X>,
    /// (N, NH) log-sum-exp of each row of scores, saved.
    pub lse: B::SliceMut<'a, B::F>,
}

/// Gradient of [`AttentionFwd`]; probabilities are recomputed from `lse` (Dao et al. 2022), never stored.
pub struct AttentionBwd<'a, B: Backend> {
    /// Geometry.
    pub sequences: Sequences<'a, B>,
    /// Dropout of the forward pass.
    pub dropout: Dropout,
    /// (N, 3C).
    pub qkv: B::Slice<'a, B::X>,
    /// (N, C) result of the forward pass.
    pub out: B::Slice<'a, B::X>,
    /// (N, NH).
    pub lse: B::Slice<'a, B::F>,
    /// (N, C).
    pub dout: B::Slice<'a, B::X>,
    /// (N, 3C).
    pub dqkv: B::SliceMut<'a, B::X>,
    /// (3C) `+=` Σₙ dqkv: the bias gradient of the linear layer that made `qkv`, while dqkv is at hand.
    pub dbias: B::SliceMut<'a, B::F>,
}

/// y = LN(h), h = residual + dropout(x), row by row (Ba et al. 2016).
pub struct AddNormFwd<'a, B: Backend> {
    /// C.
    pub width: usize,
    /// (N, C) x on entry, h on return: saved.
    pub x: B::SliceMut<'a, B::X>,
    /// (N, C).
    pub residual: Option<B::Slice<'a, B::X>>,
    /// Dropout of x.
    pub dropout: Dropout,
    /// (N) numbers of the rows among those of the batch, for dropout; without them the first is 0, the next 1 and so on.
    pub numbers: Option<B::Slice<'a, u32>>,
    /// (C).
    pub gamma: B::Slice<'a, B::X>,
    /// (C).
    pub beta: B::Slice<'a, B::X>,
    /// Variance offset.
    pub eps: f64,
    /// (N, C).
    pub y: B::SliceMut<'a, B::X>,
    /// (N) saved.
    pub mean: B::SliceMut<'a, B::F>,
    /// (N) saved.
    pub rstd: B::SliceMut<'a, B::F>,
}

/// Gradient of [`AddNormFwd`].
pub struct AddNormBwd<'a, B: Backend> {
    /// C.
    pub width: usize,
    /// (N, C).
    pub h: B::Slice<'a, B::X>,
    /// Dropout of the forward pass.
    pub dropout: Dropout,
    /// (N) as in the forward pass.
    pub numbers: Option<B::Slice<'a, u32>>,
    /// (C).
    pub gamma: B::Slice<'a, B::X>,
    /// (N).
    pub mean: B::Slice<'a, B::F>,
    /// (N).
    pub rstd: B::Slice<'a, B::F>,
    /// (N, C).
    pub dy: B::Slice<'a, B::X>,
    /// (N, C) gradient of x.
    pub dx: B::SliceMut<'a, B::X>,
    /// (N, C) gradient of the residual.
    pub dresidual: Option<B::SliceMut<'a, B::X>>,
    /// (C) `+=`.
    pub dgamma: B::SliceMut<'a, B::F>,
    /// (C) `+=`.
    pub dbeta: B::SliceMut<'a, B::F>,
    /// (C) `+=` Σₙ dx: the bias gradient of the linear layer that made x, while dx is at hand.
    pub dbias: Option<B::SliceMut<'a, B::F>>,
}

/// Dynamic masking: which tokens of each row are masked and what the generator reads there, by [`MaskSpec::mask`].
///
/// The masked positions of the batch, ascending, fill the first of M slots; a slot left over has position N, target 0 and weight
/// 0. Positions beyond M slots are not masked.
pub struct Mask<'a, B: Backend> {
    /// The rule.
    pub spec: MaskSpec,
    /// The run's generator.
    pub rng: Philox,
    /// Optimizer step, and number of the batch's first sequence.
    pub clock: Clock,
    /// Each weight is 1 / (masked positions + this).
    pub tiny: f64,
    /// Longest row.
    pub max_seqlen: usize,
    /// (N) original tokens.
    pub ids: B::Slice<'a, u32>,
    /// (B + 1) first token of each row, and N.
    pub cu_seqlens: B::Slice<'a, u32>,
    /// (N) what the generator reads.
    pub masked_ids: B::SliceMut<'a, u32>,
    /// (M) masked positions.
    pub masked_index: B::SliceMut<'a, u32>,
    /// (M) original tokens there.
    pub targets: B::SliceMut<'a, u32>,
    /// (M) weight of each in the loss.
    pub weight: B::SliceMut<'a, B::F>,
}

/// The generator's loss at M rows of logits, its gradient in place, and a sample of each row.
///
/// nll = lse(logits) - logits\[target\]; sample = arg-max of logits / temperature + g with Gumbel noise
/// g = -ln(-ln(u + 1e-9) + 1e-9) (Jang et al. 2017); dlogits = scale · weight · (softmax - one_hot(target)).
/// Where the nll of a row that counts is not finite its gradient is not a number, so that [`AdamW`] passes the step over.
pub struct MlmLoss<'a, B: Backend> {
    /// V.
    pub vocabulary: usize,
    /// (M) original tokens.
    pub targets: B::Slice<'a, u32>,
    /// (M) rows of the batch that were masked: the noise's row numbers.
    pub masked_index: B::Slice<'a, u32>,
    /// (M) weight of each row's nll in the loss: 1 / M where all count alike.
    pub weight: B::Slice<'a, B::F>,
    /// Multiplies the loss in the gradient.
    pub scale: f64,
    /// Divides the logits before sampling.
    pub temperature: f64,
    /// Whether the original token may not be sampled.
    pub disallow_correct: bool,
    /// Noise: generator, step and first row as in [`Dropout`].
    pub noise: Dropout,
    /// Whether `logits` are overwritten with their gradient.
    pub gradient: bool,
    /// (M, V), rows `pitch` apart.
    pub logits: B::SliceMut<'a, B::X>,
    /// [`Backend::pitch`] of V.
    pub pitch: usize,
    /// (M) negative log-likelihood of each target.
    pub nll: B::SliceMut<'a, B::F>,
    /// (M) most probable token.
    pub best: B::SliceMut<'a, u32>,
    /// (M) sampled token; `None` leaves what the caller put there.
    pub sampled: Option<B::SliceMut<'a, u32>>,
}

/// The discriminator's input: the original tokens with the samples written over the masked positions.
pub struct Corrupt<'a, B: Backend> {
    /// (N) original tokens.
    pub ids: B::Slice<'a, u32>,
    /// (M) where; N or more is passed over.
    pub masked_index: B::Slice<'a, u32>,
    /// (M) what.
    pub sampled: B::Slice<'a, u32>,
    /// (N).
    pub corrupted: B::SliceMut<'a, u32>,
    /// (N) 1 where the sample differs from the original, else 0.
    pub is_fake: B::SliceMut<'a, u32>,
}

/// The discriminator's loss: binary cross-entropy on one logit a token, or softmax cross-entropy on two. Losses that are not finite as in
/// [`MlmLoss`].
pub struct RtdLoss<'a, B: Backend> {
    /// Logits a token: 1 or 2.
    pub labels: usize,
    /// (N).
    pub is_fake: B::Slice<'a, u32>,
    /// (N) as in [`MlmLoss`].
    pub weight: B::Slice<'a, B::F>,
    /// As in [`MlmLoss`].
    pub scale: f64,
    /// (N, labels).
    pub logits: B::Slice<'a, B::X>,
    /// (N) loss of each token.
    pub nll: B::SliceMut<'a, B::F>,
    /// (N, labels).
    pub dlogits: B::SliceMut<'a, B::X>,
}

/// What a forward pass adds to the metrics of a run, and its two losses; tokens and masked positions of weight 0 do not count.
pub struct Metrics<'a, B: Backend> {
    /// Logits a token: 1 or 2.
    pub labels: usize,
    /// (N, labels).
    pub logits: B::Slice<'a, B::X>,
    /// (N).
    pub is_fake: B::Slice<'a, u32>,
    /// (N) loss of each token.
    pub rtd_nll: B::Slice<'a, B::F>,
    /// (N).
    pub rtd_weight: B::Slice<'a, B::F>,
    /// Which tokens cannot be masked, and what stands for a masked one.
    pub special: SpecialIds,
    /// (N) original tokens.
    pub ids: B::Slice<'a, u32>,
    /// (N) what the generator reads.
    pub masked_ids: B::Slice<'a, u32>,
    /// (M) masked positions; N or more where the weight is 0.
    pub masked_index: B::Slice<'a, u32>,
    /// (M) most probable tokens.
    pub best: B::Slice<'a, u32>,
    /// (M) original tokens.
    pub targets: B::Slice<'a, u32>,
    /// (M) loss of each masked position.
    pub mlm_nll: B::Slice<'a, B::F>,
    /// (M).
    pub mlm_weight: B::Slice<'a, B::F>,
    /// (2) Σ weight · nll of the generator and of the discriminator, set.
    pub losses: B::SliceMut<'a, B::F>,
    /// ([`COUNTS`]) `+=`: first [`GENERATOR_COUNTS`] counts of the masked positions whose loss is
    /// finite: all; those where the most probable token is the original; those that show \[MASK\];
    /// those of them where the most probable token is the original; and the sum of their losses by
    /// [`loss_parts`], whole nats and 65536ths of one. Then the tokens by [`score_bin`], in three
    /// histograms: original tokens that could have been masked, replaced tokens, and tokens that
    /// cannot be masked (those that were replaced nevertheless are in the second).
    pub counts: B::SliceMut<'a, u64>,
}

/// Bins of the discriminator's scores.
pub const SCORE_BINS: usize = 4096;
/// Entries of [`Metrics::counts`] before the histograms.
pub const GENERATOR_COUNTS: usize = 6;
/// Length of [`Metrics::counts`].
pub const COUNTS: usize = GENERATOR_COUNTS + 3 * SCORE_BINS;

/// A loss as whole nats and 65536ths of one, so that sums of losses are sums of integers, the same
/// in every order. What lies outside of 0 to 65,535 nats is moved to the nearer end.
pub fn loss_parts(nll: f32) -> [u64; 2] {
    let fixed = (nll.clamp(0.0, 65535.0) * 65536.0 + 0.5) as u32;
    [u64::from(fixed >> 16), u64::from(fixed & 0xffff)]
}

/// The middle of a bin; not finite for the bins of scores that are not.
pub fn score_of_bin(bin: usize) -> f32 {
    let ordered = (bin as u32) << 20 | 1 << 19;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

/// The bin of a score (a logit, or the difference of two): its twelve leading bits in the order of numbers, so eight bins an octave.
/// Scores above 0, which call the token replaced, have the upper half of the bins.
pub fn score_bin(score: f32) -> usize {
    // Both zeros lie below the threshold.
    let bits = if score == 0.0 { 1 << 31 } else { score.to_bits() };
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (ordered >> 20) as usize
}

/// The constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateRule {
    /// Learning rate of this update.
    pub lr: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// Weight decay, applied within `decayed` only.
    pub weight_decay: f64,
    /// t, the number of this update counted from 1, for bias correction; `None` for the paper's variant.
    pub bias_correction: Option<u64>,
    /// Largest global gradient norm.
    pub max_norm: Option<f64>,
}

/// One update of all parameters (Kingma & Ba 2015; Loshchilov & Hutter 2019).
///
/// With c the clip factor min(1, max_norm / √norm_squared) and g = c · grad:
/// m = β₁m + (1-β₁)g, v = β₂v + (1-β₂)g², then
/// * with bias correction: p -= lr·wd·p; p -= lr · m̂ / (√v̂ + ε) with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ);
/// * without (the paper's): p -= lr · (m / (√v + ε) + wd·p).
///
/// Where `norm_squared` is not finite nothing but `grads` changes: one bad batch does not ruin the weights.
pub struct AdamW<'a, B: Backend> {
    /// Its constants.
    pub rule: UpdateRule,
    /// (1) from [`Backend::norm_squared`].
    pub norm_squared: B::Slice<'a, B::F>,
    /// Ranges of the flat buffer that decay, ascending.
    pub decayed: &'a [Range<usize>],
    /// Gradients; **zero on return**.
    pub grads: B::SliceMut<'a, B::F>,
    /// First moments.
    pub m: B::SliceMut<'a, B::F>,
    /// Second moments.
    pub v: B::SliceMut<'a, B::F>,
    /// Master weights.
    pub master: B::SliceMut<'a, B::F>,
    /// Working copy.
    pub working: B::SliceMut<'a, B::X>,
}
