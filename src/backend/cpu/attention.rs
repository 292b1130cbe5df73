//! Attention over packed sequences, block of queries by block of queries: scores of one block stay in the cache and
//! are never stored; the backward pass recomputes them from the log-sum-exp (FlashAttention, Dao et al. 2022).
//!
//! One task is one (sequence, head). It alone writes its columns of the result, so the order of work does not matter.

use rayon::prelude::*;

use super::Cpu;
use super::elementwise::{DECIDED, drop_row_from, keep_factors};
use super::gemm::{Factors, Mat, MatMut, Scratch, matmul};
use super::linear::bias_bwd;
use super::real::{Real, lane_sum, maximum, vectorized};
use crate::backend::{AttentionBwd, AttentionFwd, Dropout, Sequences};

/// Query rows whose scores are held at once: with 512 keys of f32, 256 KiB.
const QUERY_BLOCK: usize = 128;

/// One sequence and head: `first` row among the packed tokens, its number of rows and of keys.
#[derive(Clone, Copy)]
struct Task {
    first: usize,
    rows: usize,
    keys: usize,
    head: usize,
}

impl Task {
    /// Dropout's column index of this head's first key.
    fn mask_index(self) -> u32 {
        (self.head as u32) << 20
    }
}

fn tasks<R: Real>(s: &Sequences<'_, Cpu<R>>) -> Vec<Task> {
    s.cu_seqlens
        .windows(2)
        .zip(s.key_len)
        .flat_map(|(bounds, &keys)| {
            let (first, end) = (bounds[0] as usize, bounds[1] as usize);
            (0..s.heads).map(move |head| Task { first, rows: end - first, keys: keys as usize, head })
        })
        .filter(|task| task.rows > 0 && task.keys > 0)
        .collect()
}

/// The (N, width) results that all tasks write, each its own columns.
struct Columns<'a, R> {
    all: MatMut<'a, R>,
}

impl<'a, R: Real> Columns<'a, R> {
    fn new(data: &'a mut [R], width: usize) -> Self {
        let rows = data.len() / width;
        Self { all: MatMut::new(data, rows, width) }
    }

    /// # Safety
    /// No two parts in use at once may overlap.
    unsafe fn part(&self, first: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_, R> {
        // SAFETY: the caller's duty, passed on.
        unsafe { self.all.block(first, rows, col, cols) }
    }
}

/// Queries, keys or values (`which` = 0, 1, 2) of a task's rows from `from` on.
fn operand<'a, R: Real>(
    qkv: &'a [R],
    s: &Sequences<'_, Cpu<R>>,
    task: Task,
    which: usize,
    from: usize,
    rows: usize,
) -> Mat<'a, R> {
    let channels = s.heads * s.head_size;
    let start = (task.first + from) * 3 * channels + which * channels + task.head * s.head_size;
    Mat::strided(&qkv[start..], rows, s.head_size, 3 * channels)
}

pub(super) fn attention_fwd<R: Real>(factors: Factors, op: AttentionFwd<'_, Cpu<R>>) {
    let s = &op.sequences;
    let size = s.head_size;
    let scale = R::of(1.0 / (size as f64).sqrt());
    let (out, lse) = (Columns::new(op.out, s.heads * size), Columns::new(op.lse, s.heads));
    tasks(s).into_par_iter().with_max_len(1).for_each(|task| {
        let mut scores = Scratch::new(QUERY_BLOCK.min(task.rows) * task.keys);
        let keys = operand(op.qkv, s, task, 1, 0, task.keys);
        let values = operand(op.qkv, s, task, 2, 0, task.keys);
        for from in (0..task.rows).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(task.rows - from);
            let scores = &mut scores[..rows * task.keys];
            let queries = operand(op.qkv, s, task, 0, from, rows);
            matmul(factors, &mut MatMut::new(scores, rows, task.keys), false, scale, queries, keys.t());
            let first = task.first + from;
            // SAFETY: this task alone has these rows and this head.
            let (mut out, mut lse) = unsafe {
                (out.part(first, rows, task.head * size, size), lse.part(first, rows, task.head, 1))
            };
            vectorized(
                #[inline(always)]
                || {
                    for (i, row) in scores.chunks_exact_mut(task.keys).enumerate() {
                        lse.row(i)[0] = softmax_row(row);
                        drop_row_from::<R, true>(op.dropout, first + i, task.mask_index(), row);
                    }
                },
            );
            matmul(factors, &mut out, false, R::ONE, Mat::new(scores, rows, task.keys), values);
        }
    });
}

/// Softmax in place; returns the log-sum-exp.
#[inline(always)]
fn softmax_row<R: Real>(row: &mut [R]) -> R {
    let highest = maximum(row);
    row.iter_mut().for_each(|x| *x = (*x - highest).exp());
    let total = lane_sum(row.len(), |i| row[i]);
    let inverse = R::ONE / total;
    row.iter_mut().for_each(|x| *x *= inverse);
    highest + total.ln()
}

pub(super) fn attention_bwd<R: Real>(factors: Factors, op: AttentionBwd<'_, Cpu<R>>) {
    let s = &op.sequences;
    let size = s.head_size;
    let channels = s.heads * size;
    let scale = R::of(1.0 / (size as f64).sqrt());
    let dqkv = Columns::new(&mut *op.dqkv, 3 * channels);
    tasks(s).into_par_iter().with_max_len(1).for_each(|task| {
        let area = QUERY_BLOCK.min(task.rows) * task.keys;
        let (mut probabilities, mut gradients) = (Scratch::new(area), Scratch::new(area));
        let keys = operand(op.qkv, s, task, 1, 0, task.keys);
        let values = operand(op.qkv, s, task, 2, 0, task.keys);
        let column = |which: usize| which * channels + task.head * size;
        // SAFETY: this task alone has these rows and this head; queries, keys and values lie side by side.
        let (mut dkeys, mut dvalues) = unsafe {
            (
                dqkv.part(task.first, task.rows, column(1), size),
                dqkv.part(task.first, task.rows, column(2), size),
            )
        };
        // Padding among the keys has no gradient.
        for row in task.keys..task.rows {
            dkeys.row(row).fill(R::ZERO);
            dvalues.row(row).fill(R::ZERO);
        }
        // SAFETY: as above.
        let (mut dkeys, mut dvalues) = unsafe {
            (
                dqkv.part(task.first, task.keys, column(1), size),
                dqkv.part(task.first, task.keys, column(2), size),
            )
        };
        for from in (0..task.rows).step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(task.rows - from);
            let first = task.first + from;
            let (p, dp) = (&mut probabilities[..rows * task.keys], &mut gradients[..rows * task.keys]);
            let queries = operand(op.qkv, s, task, 0, from, rows);
            let start = first * channels + task.head * size;
            let (out, dout) = (&op.out[start..], &op.dout[start..]);
            let dout_rows = Mat::strided(dout, rows, size, channels);
            matmul(factors, &mut MatMut::new(p, rows, task.keys), false, scale, queries, keys.t());
            matmul(factors, &mut MatMut::new(dp, rows, task.keys), false, R::ONE, dout_rows, values.t());
            vectorized(
                #[inline(always)]
                || {
                    for (i, (p, dp)) in
                        p.chunks_exact_mut(task.keys).zip(dp.chunks_exact_mut(task.keys)).enumerate()
                    {
                        let (out, dout) = (&out[i * channels..][..size], &dout[i * channels..][..size]);
                        let delta = lane_sum(size, |c| out[c] * dout[c]);
                        let lse = op.lse[(first + i) * s.heads + task.head];
                        dscores_row(op.dropout, (first + i, task.mask_index()), (lse, delta, scale), p, dp);
                    }
                },
            );
            let (p, dscores) = (Mat::new(p, rows, task.keys), Mat::new(dp, rows, task.keys));
            matmul(factors, &mut dvalues, from > 0, R::ONE, p.t(), dout_rows);
            matmul(factors, &mut dkeys, from > 0, R::ONE, dscores.t(), queries);
            // SAFETY: as above.
            let mut dqueries = unsafe { dqkv.part(first, rows, column(0), size) };
            matmul(factors, &mut dqueries, false, R::ONE, dscores, keys);
        }
    });
    bias_bwd(op.dqkv, 3 * channels, op.dbias);
}

/// On entry `p` holds scaled scores and `dp` the gradient of the dropped probabilities; on return `p` the dropped
/// probabilities and `dp` the gradient of the raw scores, p · (dp - delta) · scale. One mask serves both.
#[inline(always)]
fn dscores_row<R: Real>(
    dropout: Dropout,
    (row, index): (usize, u32),
    (lse, delta, scale): (R, R, R),
    p: &mut [R],
    dp: &mut [R],
) {
    let mut keep = [R::ONE; DECIDED];
    for (chunk, (p, dp)) in p.chunks_mut(DECIDED).zip(dp.chunks_mut(DECIDED)).enumerate() {
        keep_factors::<R, true>(dropout, row, index + (chunk * DECIDED) as u32, &mut keep);
        for ((p, dp), &keep) in p.iter_mut().zip(dp).zip(&keep) {
            let probability = (*p - lse).exp();
            *dp = probability * (*dp * keep - delta) * scale;
            *p = probability * keep;
        }
    }
}
