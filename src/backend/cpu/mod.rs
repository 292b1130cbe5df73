//! The CPU backend: `Cpu<f32>` and `Cpu<bf16>` train, `Cpu<f64>` is the oracle that gradients are checked against.
//!
//! In bf16 it stores what a GPU does: activations and the copy of the weights that the ops read. Sums, statistics, gradients
//! of parameters and master weights are fp32.
//!
//! Every op is a plain loop over rows around a matrix product, cut into units of work that depend on shapes alone:
//! the same bits come out with any number of threads. Threads are those of the current rayon pool.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::{
    AdamW, AddNormBwd, AddNormFwd, AttentionBwd, AttentionFwd, Backend, Corrupt, Dropout, Elem, EmbedBwd,
    EmbedFwd, LinearBwd, LinearFwd, Mask, Metrics, MlmLoss, RtdLoss, WeightGrad,
};
use crate::{Error, Result};

mod attention;
mod elementwise;
mod embed;
mod gemm;
mod linear;
mod mask;
mod metrics;
mod mlm_head;
mod native;
mod norm;
mod optim;
mod real;
mod rtd_head;
mod working;

pub use real::Real;
pub(crate) use real::vectorized;
pub use working::{Full, Working};

/// Rows of a unit of work, and of a partial sum.
const ROW_BLOCK: usize = 32;

/// Runs `f` on a thread of the current rayon pool. The ops can be called from anywhere, but threads of the pool find each other within a
/// microsecond, where another thread is woken after each op: of 600 in a step of `small` each would take some 20 µs longer.
pub fn in_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| f())
}

/// The CPU with working values `X`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu<X> {
    _working: PhantomData<X>,
}

impl<X> Cpu<X> {
    /// The CPU.
    pub const fn new() -> Self {
        Self { _working: PhantomData }
    }
}

impl Cpu<bf16> {
    /// How it multiplies: twice as many terms a second as in fp32 where the processor has AVX512_BF16.
    pub fn description(&self) -> &'static str {
        if native::available() {
            "products in bf16 by AVX512_BF16"
        } else {
            "products in bf16 without AVX512_BF16: hardly faster than fp32"
        }
    }
}

/// total += Σ partials\[..\]\[offset..\], in order.
fn add_partials<R: Real>(partials: &[Vec<R>], offset: usize, total: &mut [R]) {
    for partial in partials {
        total.iter_mut().zip(&partial[offset..]).for_each(|(t, &p)| *t += p);
    }
}

impl<X: Working> Backend for Cpu<X> {
    type X = X;
    type F = Full<X>;
    type Buf<T: Elem> = Vec<T>;
    type Slice<'a, T: Elem> = &'a [T];
    type SliceMut<'a, T: Elem> = &'a mut [T];
    /// The derivative has all but computed them, on numbers that are in the cache.
    const SAVES_ACTIVATIONS: bool = false;

    fn alloc<T: Elem>(&self, len: usize) -> Result<Vec<T>> {
        let mut buf = Vec::new();
        buf.try_reserve_exact(len).map_err(|_| {
            let mib = (len * size_of::<T>()) >> 20;
            Error::config(format!("{mib} MiB of memory are not to be had: use a smaller batch or model"))
        })?;
        buf.resize(len, T::default());
        Ok(buf)
    }

    fn slice<T: Elem>(buf: &Vec<T>, range: Range<usize>) -> &[T] {
        &buf[range]
    }

    fn slice_mut<T: Elem>(buf: &mut Vec<T>, range: Range<usize>) -> &mut [T] {
        &mut buf[range]
    }

    fn disjoint_mut<T: Elem, const K: usize>(
        buf: &mut Vec<T>,
        ranges: [Range<usize>; K],
    ) -> Result<[&mut [T]; K]> {
        buf.get_disjoint_mut(ranges)
            .map_err(|e| Error::argument(format!("parameters to be written together must lie apart: {e}")))
    }

    fn upload<T: Elem>(&self, from: &[T], to: &mut [T]) -> Result<()> {
        to.copy_from_slice(from);
        Ok(())
    }

    fn download<T: Elem>(&self, from: &[T]) -> Result<Vec<T>> {
        Ok(from.to_vec())
    }

    fn zero<T: Elem>(&self, to: &mut [T]) -> Result<()> {
        to.fill(T::default());
        Ok(())
    }

    fn cast(&self, from: &[Full<X>], to: &mut [X]) -> Result<()> {
        X::narrow(from, to);
        Ok(())
    }

    fn embed_fwd(&self, op: EmbedFwd<'_, Self>) -> Result<()> {
        embed::embed_fwd(op);
        Ok(())
    }

    fn embed_bwd(&self, op: EmbedBwd<'_, Self>) -> Result<()> {
        embed::embed_bwd(op);
        Ok(())
    }

    fn linear_fwd(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        linear::linear_fwd(op);
        Ok(())
    }

    fn linear_bwd(&self, op: LinearBwd<'_, Self>) -> Result<()> {
        linear::linear_bwd(op);
        Ok(())
    }

    fn weight_grads(&self, ops: Vec<WeightGrad<'_, Self>>) -> Result<()> {
        linear::weight_grads(ops);
        Ok(())
    }

    fn attention_fwd(&self, op: AttentionFwd<'_, Self>) -> Result<()> {
        attention::attention_fwd(op);
        Ok(())
    }

    fn attention_bwd(&self, op: AttentionBwd<'_, Self>) -> Result<()> {
        attention::attention_bwd(op);
        Ok(())
    }

    fn add_dropout_layernorm_fwd(&self, op: AddNormFwd<'_, Self>) -> Result<()> {
        norm::add_dropout_layernorm_fwd(op);
        Ok(())
    }

    fn add_dropout_layernorm_bwd(&self, op: AddNormBwd<'_, Self>) -> Result<()> {
        norm::add_dropout_layernorm_bwd(op);
        Ok(())
    }

    fn dropout(&self, width: usize, dropout: Dropout, inp: &[X], out: &mut [X]) -> Result<()> {
        elementwise::dropout(width, dropout, inp, out);
        Ok(())
    }

    fn gather_rows_fwd(&self, width: usize, index: &[u32], inp: &[X], out: &mut [X]) -> Result<()> {
        elementwise::gather_rows_fwd(width, index, inp, out);
        Ok(())
    }

    fn gather_rows_bwd(&self, width: usize, index: &[u32], dout: &[X], dinp: &mut [X]) -> Result<()> {
        elementwise::gather_rows_bwd(width, index, dout, dinp);
        Ok(())
    }

    fn mask(&self, op: Mask<'_, Self>) -> Result<()> {
        mask::mask(op);
        Ok(())
    }

    fn mlm_loss(&self, op: MlmLoss<'_, Self>) -> Result<()> {
        mlm_head::mlm_loss(op);
        Ok(())
    }

    fn corrupt(&self, op: Corrupt<'_, Self>) -> Result<()> {
        rtd_head::corrupt(op);
        Ok(())
    }

    fn rtd_loss(&self, op: RtdLoss<'_, Self>) -> Result<()> {
        rtd_head::rtd_loss(op);
        Ok(())
    }

    fn metrics(&self, op: Metrics<'_, Self>) -> Result<()> {
        metrics::metrics(op);
        Ok(())
    }

    fn norm_squared(&self, x: &[Full<X>], out: &mut [Full<X>]) -> Result<()> {
        optim::norm_squared(x, out);
        Ok(())
    }

    fn adamw(&self, op: AdamW<'_, Self>) -> Result<()> {
        optim::adamw(op);
        Ok(())
    }
}
