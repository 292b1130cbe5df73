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

use half::bf16;

use crate::rng::{Philox, Site};
use crate::{Error, Result};

pub mod cpu;
pub mod gpu;
mod ops;
pub mod selftest;

pub use cpu::Cpu;
pub use gpu::Gpu;
pub use ops::*;

/// A number that can live in a buffer.
pub trait Elem: bytemuck::Pod + Default + PartialEq + Send + Sync + std::fmt::Debug {}

impl Elem for u32 {}
impl Elem for u64 {}
impl Elem for bf16 {}
impl Elem for f32 {}
impl Elem for f64 {}

/// A floating-point [`Elem`].
pub trait Float: Elem {
    /// Rounds to the nearest representable number.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Float for bf16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f32(x as f32)
    }
    fn to_f64(self) -> f64 {
        f64::from(self.to_f32())
    }
}

impl Float for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Float for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// Where a run is: the part of a random number's counter that changes from step to step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Optimizer step.
    pub step: u32,
    /// Number of the batch's first token among all tokens of the step (micro-batches and ranks included).
    pub row0: u32,
    /// Number of the batch's first sequence among all sequences of the step.
    pub slot0: u32,
}

/// Inverted dropout whose mask is a function of (seed, step, site, row, column): recomputed in the backward pass,
/// equal on every backend.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// An element is dropped when its 16 random bits ([`Philox::half`]) are below this; 0 switches dropout off.
    pub threshold: u32,
    /// 1 / (1 - threshold / 2¹⁶), applied to what is kept.
    pub scale: f64,
    /// The run's generator.
    pub rng: Philox,
    /// The op within a step.
    pub site: Site,
    /// The step and the batch's first row.
    pub clock: Clock,
}

impl Dropout {
    /// No dropout.
    pub const OFF: Self = Self {
        threshold: 0,
        scale: 1.0,
        rng: Philox::new(0),
        site: Site(0),
        clock: Clock { step: 0, row0: 0, slot0: 0 },
    };

    /// Drops with probability `p`, to 2⁻¹⁷.
    pub fn new(p: f64, rng: Philox, site: Site, clock: Clock) -> Self {
        let threshold = (p * 65_536.0).round().clamp(0.0, 65_535.0);
        Self { threshold: threshold as u32, scale: 65_536.0 / (65_536.0 - threshold), rng, site, clock }
    }

    /// Whether anything is dropped.
    pub fn is_on(&self) -> bool {
        self.threshold > 0
    }
}

/// One operand on its way to the device.
pub enum Upload<'a, B: Backend> {
    /// Integers.
    Index(&'a [u32], B::SliceMut<'a, u32>),
    /// Exact numbers.
    Exact(&'a [B::F], B::SliceMut<'a, B::F>),
}

/// Numbers on their way from the device.
#[derive(Debug)]
pub enum Pending<T> {
    /// They have arrived.
    Here(Vec<T>),
    /// A device's number for them, and how many they are.
    Ticket(u64, usize),
}

impl<T> Pending<T> {
    /// How many may be under way.
    pub const MOST: usize = 64;
}

/// What a recorded step depends on besides the contents of buffers: sizes and options.
pub type StepKey = [usize; 10];

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
    /// Whether it records steps: then batches shall be of one size, and be masked where they are computed.
    const RECORDS: bool = false;
    /// Whether results of the activation functions are saved for the backward pass, which otherwise computes them again: a quarter less memory for
    /// activations, against a pass over memory.
    const SAVES_ACTIVATIONS: bool = true;

    /// Elements between rows of logits, of which a row has `len`: more where rows shall start at multiples of some size.
    fn pitch(len: usize) -> usize {
        len
    }
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
    /// Host to device beside what is being computed, for a batch that comes later: operands of one of two slots, in turn. They must
    /// not be touched until [`Self::begin`], and serve until the other slot begins.
    fn stage(&self, slot: usize, uploads: Vec<Upload<'_, Self>>) -> Result<()> {
        let _ = slot;
        uploads.into_iter().try_for_each(|upload| match upload {
            Upload::Index(from, to) => self.upload(from, to),
            Upload::Exact(from, to) => self.upload(from, to),
        })
    }
    /// Ops from here on read what was staged in `slot`.
    fn begin(&self, slot: usize) -> Result<()> {
        let _ = slot;
        Ok(())
    }
    /// Device to host without waiting: a few numbers as they are after the ops so far.
    fn fetch<T: Elem>(&self, from: Self::Slice<'_, T>) -> Result<Pending<T>> {
        self.download(from).map(Pending::Here)
    }
    /// What [`Self::fetch`] brought. At most [`Pending::MOST`] may be under way.
    fn collect<T: Elem>(&self, pending: Pending<T>) -> Result<Vec<T>> {
        match pending {
            Pending::Here(values) => Ok(values),
            Pending::Ticket(..) => Err(Error::argument("this backend has nothing under way")),
        }
    }
    /// Before the ops of a step that may be recorded: the clock of its random numbers.
    fn set_clock(&self, clock: Clock) -> Result<()> {
        let _ = clock;
        Ok(())
    }
    /// The same for its update.
    fn set_update(&self, rule: UpdateRule) -> Result<()> {
        let _ = rule;
        Ok(())
    }
    /// Runs the ops recorded under `key` again: true. Or there are none: then the caller runs them, and the backend may record them
    /// until [`Self::end_recording`]. In between nothing is allocated, uploaded or downloaded.
    fn replay(&self, key: StepKey) -> Result<bool> {
        let _ = key;
        Ok(false)
    }
    /// The ops of `key` have been asked for, all of them if `whole`.
    fn end_recording(&self, key: StepKey, whole: bool) -> Result<()> {
        let _ = (key, whole);
        Ok(())
    }
    /// Bytes of a device's own memory that are in use.
    fn memory_used(&self) -> Option<u64> {
        None
    }
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
    /// See [`WeightGrad`]; all of the same rows.
    fn weight_grads(&self, ops: Vec<WeightGrad<'_, Self>>) -> Result<()>;
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
    /// out (M, C) = rows `index` (M) of inp (N, C); zeros for an index of N or more.
    fn gather_rows_fwd(
        &self,
        width: usize,
        index: Self::Slice<'_, u32>,
        inp: Self::Slice<'_, Self::X>,
        out: Self::SliceMut<'_, Self::X>,
    ) -> Result<()>;
    /// dinp (N, C) = 0, then its rows `index` = dout (M, C); an index of N or more is passed over.
    fn gather_rows_bwd(
        &self,
        width: usize,
        index: Self::Slice<'_, u32>,
        dout: Self::Slice<'_, Self::X>,
        dinp: Self::SliceMut<'_, Self::X>,
    ) -> Result<()>;
    /// See [`Mask`].
    fn mask(&self, op: Mask<'_, Self>) -> Result<()>;
    /// See [`MlmLoss`].
    fn mlm_loss(&self, op: MlmLoss<'_, Self>) -> Result<()>;
    /// See [`Corrupt`].
    fn corrupt(&self, op: Corrupt<'_, Self>) -> Result<()>;
    /// See [`RtdLoss`].
    fn rtd_loss(&self, op: RtdLoss<'_, Self>) -> Result<()>;
    /// See [`Metrics`].
    fn metrics(&self, op: Metrics<'_, Self>) -> Result<()>;
    /// out (1) = Σ x², in an order fixed by the length alone.
    fn norm_squared(&self, x: Self::Slice<'_, Self::F>, out: Self::SliceMut<'_, Self::F>) -> Result<()>;
    /// See [`AdamW`].
    fn adamw(&self, op: AdamW<'_, Self>) -> Result<()>;
}
