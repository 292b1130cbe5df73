//! Attention over packed sequences, a few queries at a time: their scores stay in the cache and are never stored; the
//! backward pass recomputes them from the log-sum-exp (FlashAttention, Dao et al. 2022).
//!
//! One task is one (sequence, head). It alone writes its columns of the result, so the order of work does not matter.

use rayon::prelude::*;

use super::Cpu;
use super::elementwise::{DECIDED, drop_row_from, keep_factors};
use super::gemm::{Factor, Factors, Left, Mat, MatMut, Panels, ROWS, Scratch, Turned, by_factors};
use super::linear::bias_bwd;
use super::real::{Real, exponentials, lane_sum, maximum, vectorized};
use crate::backend::{AttentionBwd, AttentionFwd, Dropout, Sequences};

/// Queries whose scores are held at once: as many as a product takes rows at a time. With 128 keys of f32, 24 KiB.
const STRIP: usize = ROWS;
/// Factors of queries that a product over queries sums at once: with 512 keys of f32, 264 KiB.
const BLOCK: usize = 128;

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
    by_factors!(factors, forward::<R>(op));
}

fn forward<R: Real, E: Factor<R>>(op: AttentionFwd<'_, Cpu<R>>) {
    let s = &op.sequences;
    let size = s.head_size;
    let scale = R::of(1.0 / (size as f64).sqrt());
    let (out, lse) = (Columns::new(op.out, s.heads * size), Columns::new(op.lse, s.heads));
    tasks(s).into_par_iter().with_max_len(1).for_each(|task| {
        let keys = Panels::<E>::new(operand(op.qkv, s, task, 1, 0, task.keys).t());
        let values = Panels::<E>::new(operand(op.qkv, s, task, 2, 0, task.keys));
        let mut scores = Scratch::new(STRIP.min(task.rows) * task.keys);
        for from in (0..task.rows).step_by(STRIP) {
            let rows = STRIP.min(task.rows - from);
            let scores = &mut scores[..rows * task.keys];
            let queries = operand(op.qkv, s, task, 0, from, rows);
            keys.multiply(&mut MatMut::new(scores, rows, task.keys), false, scale, Left::Plain(queries));
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
            values.multiply(&mut out, false, R::ONE, Left::Plain(Mat::new(scores, rows, task.keys)));
        }
    });
}

/// Softmax in place; returns the log-sum-exp.
#[inline(always)]
fn softmax_row<R: Real>(row: &mut [R]) -> R {
    let highest = maximum(row);
    let total = exponentials(row, highest);
    let inverse = R::ONE / total;
    row.iter_mut().for_each(|x| *x *= inverse);
    highest + total.ln()
}

pub(super) fn attention_bwd<R: Real>(factors: Factors, op: AttentionBwd<'_, Cpu<R>>) {
    by_factors!(factors, backward::<R>(op));
}

fn backward<R: Real, E: Factor<R>>(op: AttentionBwd<'_, Cpu<R>>) {
    let s = &op.sequences;
    let size = s.head_size;
    let channels = s.heads * size;
    let scale = R::of(1.0 / (size as f64).sqrt());
    let block = BLOCK * E::TERMS;
    let dqkv = Columns::new(&mut *op.dqkv, 3 * channels);
    tasks(s).into_par_iter().with_max_len(1).for_each(|task| {
        let column = |which: usize| which * channels + task.head * size;
        // SAFETY: this task alone has these rows and this head; queries, keys and values lie side by side.
        let gradient = |which: usize, from: usize, rows: usize| unsafe {
            dqkv.part(task.first + from, rows, column(which), size)
        };
        // Padding among the keys has no gradient.
        for which in [1, 2] {
            let mut padding = gradient(which, task.keys, task.rows - task.keys);
            (0..padding.rows()).for_each(|row| padding.row(row).fill(R::ZERO));
        }
        let (mut dkeys, mut dvalues) = (gradient(1, 0, task.keys), gradient(2, 0, task.keys));
        let keys = operand(op.qkv, s, task, 1, 0, task.keys);
        let values = operand(op.qkv, s, task, 2, 0, task.keys);
        let (of_scores, of_gradients) = (Panels::<E>::new(keys.t()), Panels::<E>::new(values.t()));
        let of_dscores = Panels::<E>::new(keys);
        let area = STRIP.min(task.rows) * task.keys;
        let (mut probabilities, mut gradients) = (Scratch::new(area), Scratch::new(area));
        let room = || Turned::<E>::new(block.min(task.rows), task.keys);
        let (mut all_probabilities, mut all_dscores) = (room(), room());
        for start in (0..task.rows).step_by(block) {
            let end = task.rows.min(start + block);
            let dout = |from: usize, rows: usize| {
                Mat::strided(&op.dout[(task.first + from) * channels + column(0)..], rows, size, channels)
            };
            for from in (start..end).step_by(STRIP) {
                let rows = STRIP.min(end - from);
                let first = task.first + from;
                let (p, dp) = (&mut probabilities[..rows * task.keys], &mut gradients[..rows * task.keys]);
                let mut strip = MatMut::new(p, rows, task.keys);
                of_scores.multiply(
                    &mut strip,
                    false,
                    scale,
                    Left::Plain(operand(op.qkv, s, task, 0, from, rows)),
                );
                let mut strip = MatMut::new(dp, rows, task.keys);
                of_gradients.multiply(&mut strip, false, R::ONE, Left::Plain(dout(from, rows)));
                vectorized(
                    #[inline(always)]
                    || {
                        for (i, (p, dp)) in
                            p.chunks_exact_mut(task.keys).zip(dp.chunks_exact_mut(task.keys)).enumerate()
                        {
                            let at = (first + i) * channels + column(0);
                            let (out, dout) = (&op.out[at..][..size], &op.dout[at..][..size]);
                            let delta = lane_sum(size, |c| out[c] * dout[c]);
                            let lse = op.lse[(first + i) * s.heads + task.head];
                            dscores_row(
                                op.dropout,
                                (first + i, task.mask_index()),
                                (lse, delta, scale),
                                p,
                                dp,
                            );
                        }
                    },
                );
                let dscores = Mat::new(dp, rows, task.keys);
                of_dscores.multiply(&mut gradient(0, from, rows), false, R::ONE, Left::Plain(dscores));
                all_probabilities.set(from - start, Mat::new(p, rows, task.keys));
                all_dscores.set(from - start, dscores);
            }
            let (rows, more) = (end - start, start > 0);
            Panels::new(dout(start, rows)).multiply(&mut dvalues, more, R::ONE, all_probabilities.left(rows));
            let queries = Panels::new(operand(op.qkv, s, task, 0, start, rows));
            queries.multiply(&mut dkeys, more, R::ONE, all_dscores.left(rows));
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
