//! The contract between the model and the hardware: about twenty fused training ops.
//!
//! A method of [`Backend`] is what a GPU wants to do in one pass (dropout + residual + LayerNorm, cross-entropy + its
//! gradient + a Gumbel sample), not tensor algebra: no strides, no broadcasting, no allocation inside an op. On the
//! CPU an op is a few loops around a matrix product; on a GPU it may be one kernel or three, and `model/` never knows.
//! Each forward stands beside its backward, here and in every file that implements them.
//!
//! **Conventions.** Letters are those of the glossary: N packed tokens, M masked positions, C hidden, E embedding,
//! V vocabulary, NH heads, HS head size. Matrices are row-major; weights are `(outputs, inputs)` as in checkpoints.
//! `d` prefixes a gradient. Activation gradients are **set**; parameter gradients are **accumulated** (`+=`).
//! Working values (`X`) may be narrow; statistics, losses, gradients of parameters and masters (`F`) are not.

use std::ops::Range;

use crate::Result;
use crate::model::config::Activation;
use crate::rng::{Philox, Site};

pub mod cpu;
pub mod gpu;
pub mod selftest;

pub use cpu::Cpu;
pub use gpu::Gpu;

/// A number that can live in a buffer.
pub trait Elem: bytemuck::Pod + Default + PartialEq + Send + Sync + std::fmt::Debug {}

impl Elem for u32 {}

/// A floating-point [`Elem`].
pub trait Float: Elem {
    /// Rounds to the nearest representable number.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

/// Inverted dropout whose mask is a function of (seed, step, site, row, column): recomputed in the backward pass,
/// equal on every backend.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// An element is dropped when its random word is below this; 0 switches dropout off.
    pub threshold: u32,
    /// 1 / (1 - p), applied to what is kept.
    pub scale: f64,
    /// The run's generator.
    pub rng: Philox,
    /// The op within a step.
    pub site: Site,
    /// Optimizer step.
    pub step: u32,
    /// Number of the first row among all rows of the step (micro-batches and ranks included).
    pub row0: u32,
}

impl Dropout {
    /// No dropout.
    pub const OFF: Self =
        Self { threshold: 0, scale: 1.0, rng: Philox::new(0), site: Site(0), step: 0, row0: 0 };

    /// Whether anything is dropped.
    pub fn is_on(&self) -> bool {
        self.threshold > 0
    }
}

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
    /// (N, O).
    pub out: B::SliceMut<'a, B::X>,
}

/// dinp = dout · W, dW += doutᵀ · inp, db += Σₙ dout, where dout first goes through the activation's derivative.
pub struct LinearBwd<'a, B: Backend> {
    /// I.
    pub inputs: usize,
    /// O.
    pub outputs: usize,
    /// (N, I).
    pub inp: B::Slice<'a, B::X>,
    /// (O, I).
    pub weight: B::Slice<'a, B::X>,
    /// The activation function and its saved argument (N, O).
    pub activation: Option<(Activation, B::Slice<'a, B::X>)>,
    /// (N, O); with an activation, overwritten with the gradient of its argument.
    pub dout: B::SliceMut<'a, B::X>,
    /// (N, I).
    pub dinp: (Write, B::SliceMut<'a, B::X>),
    /// (O, I) `+=`.
    pub dweight: B::SliceMut<'a, B::F>,
    /// (O) `+=`; `None` where the LayerNorm behind has already added it ([`AddNormBwd::dbias`]).
    pub dbias: Option<B::SliceMut<'a, B::F>>,
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

/// The generator's loss at M rows of logits, its gradient in place, and a sample of each row.
///
/// nll = lse(logits) - logits\[target\]; sample = arg-max of logits / temperature + g with Gumbel noise
/// g = -ln(-ln(u + 1e-9) + 1e-9) (Jang et al. 2017); dlogits = scale · weight · (softmax - one_hot(target)).
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
    /// (M, V).
    pub logits: B::SliceMut<'a, B::X>,
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
    /// (M) where.
    pub masked_index: B::Slice<'a, u32>,
    /// (M) what.
    pub sampled: B::Slice<'a, u32>,
    /// (N).
    pub corrupted: B::SliceMut<'a, u32>,
    /// (N) 1 where the sample differs from the original, else 0.
    pub is_fake: B::SliceMut<'a, u32>,
}

/// The discriminator's loss: binary cross-entropy on one logit a token, or softmax cross-entropy on two.
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

/// One update of all parameters (Kingma & Ba 2015; Loshchilov & Hutter 2019).
///
/// With c the clip factor min(1, max_norm / √norm_squared) and g = c · grad:
/// m = β₁m + (1-β₁)g, v = β₂v + (1-β₂)g², then
/// * with bias correction: p -= lr·wd·p; p -= lr · m̂ / (√v̂ + ε) with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ);
/// * without (the paper's): p -= lr · (m / (√v + ε) + wd·p).
///
/// Where `norm_squared` is not finite nothing but `grads` changes: one bad batch does not ruin the weights.
pub struct AdamW<'a, B: Backend> {
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

/// A place where the model can be trained.
pub trait Backend: Sized {
    /// Working values: activations, and the copy of the weights that the ops read.
    type X: Float;
    /// Statistics, losses, parameter gradients, moments, master weights.
    type F: Float;
    /// Owned memory.
    type Buf<T: Elem>;
    /// Borrowed memory.
    type Slice<'a, T: Elem>: Copy;
    /// Exclusively borrowed memory.
    type SliceMut<'a, T: Elem>;

    /// `len` zeros.
    fn alloc<T: Elem>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// A part of a buffer.
    fn slice<T: Elem>(buf: &Self::Buf<T>, range: Range<usize>) -> Self::Slice<'_, T>;
    /// A part of a buffer, to write.
    fn slice_mut<T: Elem>(buf: &mut Self::Buf<T>, range: Range<usize>) -> Self::SliceMut<'_, T>;
    /// Several parts, to write at once; an error if two overlap.
    fn disjoint_mut<T: Elem, const K: usize>(
        buf: &mut Self::Buf<T>,
        ranges: [Range<usize>; K],
    ) -> Result<[Self::SliceMut<'_, T>; K]>;
    /// Host to device.
    fn upload<T: Elem>(&self, from: &[T], to: Self::SliceMut<'_, T>) -> Result<()>;
    /// Device to host.
    fn download<T: Elem>(&self, from: Self::Slice<'_, T>) -> Result<Vec<T>>;
    /// Zeros.
    fn zero<T: Elem>(&self, to: Self::SliceMut<'_, T>) -> Result<()>;
    /// Working copy of the master weights.
    fn cast(&self, from: Self::Slice<'_, Self::F>, to: Self::SliceMut<'_, Self::X>) -> Result<()>;

    /// See [`EmbedFwd`].
    fn embed_fwd(&self, op: EmbedFwd<'_, Self>) -> Result<()>;
    /// See [`EmbedBwd`].
    fn embed_bwd(&self, op: EmbedBwd<'_, Self>) -> Result<()>;
    /// See [`LinearFwd`].
    fn linear_fwd(&self, op: LinearFwd<'_, Self>) -> Result<()>;
    /// See [`LinearBwd`].
    fn linear_bwd(&self, op: LinearBwd<'_, Self>) -> Result<()>;
    /// See [`AttentionFwd`].
    fn attention_fwd(&self, op: AttentionFwd<'_, Self>) -> Result<()>;
    /// See [`AttentionBwd`].
    fn attention_bwd(&self, op: AttentionBwd<'_, Self>) -> Result<()>;
    /// See [`AddNormFwd`].
    fn add_dropout_layernorm_fwd(&self, op: AddNormFwd<'_, Self>) -> Result<()>;
    /// See [`AddNormBwd`].
    fn add_dropout_layernorm_bwd(&self, op: AddNormBwd<'_, Self>) -> Result<()>;
    /// out (N, C) = dropout(inp); its own backward, applied to the gradient.
    fn dropout(
        &self,
        width: usize,
        dropout: Dropout,
        inp: Self::Slice<'_, Self::X>,
        out: Self::SliceMut<'_, Self::X>,
    ) -> Result<()>;
    /// out (M, C) = rows `index` (M) of inp (N, C).
    fn gather_rows_fwd(
        &self,
        width: usize,
        index: Self::Slice<'_, u32>,
        inp: Self::Slice<'_, Self::X>,
        out: Self::SliceMut<'_, Self::X>,
    ) -> Result<()>;
    /// dinp (N, C) = 0, then its rows `index` = dout (M, C).
    fn gather_rows_bwd(
        &self,
        width: usize,
        index: Self::Slice<'_, u32>,
        dout: Self::Slice<'_, Self::X>,
        dinp: Self::SliceMut<'_, Self::X>,
    ) -> Result<()>;
    /// See [`MlmLoss`].
    fn mlm_loss(&self, op: MlmLoss<'_, Self>) -> Result<()>;
    /// See [`Corrupt`].
    fn corrupt(&self, op: Corrupt<'_, Self>) -> Result<()>;
    /// See [`RtdLoss`].
    fn rtd_loss(&self, op: RtdLoss<'_, Self>) -> Result<()>;
    /// out (1) = Σ x², in an order fixed by the length alone.
    fn norm_squared(&self, x: Self::Slice<'_, Self::F>, out: Self::SliceMut<'_, Self::F>) -> Result<()>;
    /// See [`AdamW`].
    fn adamw(&self, op: AdamW<'_, Self>) -> Result<()>;
}
