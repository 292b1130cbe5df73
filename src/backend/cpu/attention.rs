//! Attention over packed sequences, a few queries at a time: their scores stay in the cache and are never stored; the
//! backward pass recomputes them from the log-sum-exp (FlashAttention, Dao et al. 2022).
//!
//! One task is one (sequence, head). It alone writes its columns of the result, so the order of work does not matter.

use rayon::prelude::*;

use super::Cpu;
use super::elementwise::{DECIDED, keep_factors};
use super::gemm::{Factor, Left, Mat, MatMut, Panels, ROWS, Scratch, Turned, by_factors};
use super::linear::bias_bwd;
use super::real::{Real, dot, exponentials, maximum, vectorized};
use super::working::{Full, Working, widen};
use crate::backend::{AttentionBwd, AttentionFwd, Dropout, Elem, Sequences};

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

fn tasks<X: Working>(s: &Sequences<'_, Cpu<X>>) -> Vec<Task> {
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
struct Columns<'a, T> {
    all: MatMut<'a, T>,
}

impl<'a, T: Elem> Columns<'a, T> {
    fn new(data: &'a mut [T], width: usize) -> Self {
        let rows = data.len() / width;
        Self { all: MatMut::new(data, rows, width) }
    }

    /// # Safety
    /// No two parts in use at once may overlap.
    unsafe fn part(&self, first: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_, T> {
        // SAFETY: the caller's duty, passed on.
        unsafe { self.all.block(first, rows, col, cols) }
    }
}

/// Queries, keys or values (`which` = 0, 1, 2) of a task's rows from `from` on.
fn operand<'a, X: Working>(
    qkv: &'a [X],
    s: &Sequences<'_, Cpu<X>>,
    task: Task,
    which: usize,
    from: usize,
    rows: usize,
) -> Mat<'a, X> {
    let channels = s.heads * s.head_size;
    let start = (task.first + from) * 3 * channels + which * channels + task.head * s.head_size;
    Mat::strided(&qkv[start..], rows, s.head_size, 3 * channels)
}

/// Rounds a result that is complete.
fn store<X: Working>(mut from: MatMut<'_, Full<X>>, mut to: MatMut<'_, X>) {
    (0..from.rows()).for_each(|row| X::narrow(from.row(row), to.row(row)));
}

pub(super) fn attention_fwd<X: Working>(op: AttentionFwd<'_, Cpu<X>>) {
    by_factors!(forward::<X>(op));
}

fn forward<X: Working, E: Factor<X>>(op: AttentionFwd<'_, Cpu<X>>) {
    let s = &op.sequences;
    let size = s.head_size;
    let (scale, one) = (Full::<X>::of(1.0 / (size as f64).sqrt()), Full::<X>::ONE);
    let (out, lse) = (Columns::new(op.out, s.heads * size), Columns::new(op.lse, s.heads));
    tasks(s).into_par_iter().with_max_len(1).for_each(|task| {
        let keys = Panels::<E>::new(operand(op.qkv, s, task, 1, 0, task.keys).t());
        let values = Panels::<E>::new(operand(op.qkv, s, task, 2, 0, task.keys));
        let strip = STRIP.min(task.rows);
        let (mut scores, mut probabilities) =
            (Scratch::new(strip * task.keys), Scratch::new(strip * task.keys));
        let mut results = Scratch::new(strip * size);
        for from in (0..task.rows).step_by(STRIP) {
            let rows = STRIP.min(task.rows - from);
            let (scores, p) = (&mut scores[..rows * task.keys], &mut probabilities[..rows * task.keys]);
            let queries = operand(op.qkv, s, task, 0, from, rows);
            keys.multiply(&mut MatMut::new(scores, rows, task.keys), false, scale, Left::Plain(queries));
            let first = task.first + from;
            // SAFETY: this task alone has these rows and this head.
            let (out, mut lse) = unsafe {
                (out.part(first, rows, task.head * size, size), lse.part(first, rows, task.head, 1))
            };
            vectorized(
                #[inline(always)]
                || {
                    for (i, row) in scores.chunks_exact_mut(task.keys).enumerate() {
                        lse.row(i)[0] = softmax_row(op.dropout, (first + i, task.mask_index()), row);
                    }
                },
            );
            let p = X::narrowed(scores, p);
            let mut results = MatMut::new(&mut results[..rows * size], rows, size);
            values.multiply(&mut results, false, one, Left::Plain(Mat::new(p, rows, task.keys)));
            store(results, out);
        }
    });
}

/// Softmax and dropout in place; returns the log-sum-exp.
#[inline(always)]
fn softmax_row<R: Real>(dropout: Dropout, (row, index): (usize, u32), scores: &mut [R]) -> R {
    let highest = maximum(scores);
    let total = exponentials(scores, highest);
    let inverse = R::ONE / total;
    let mut keep = [R::ONE; DECIDED];
    for (chunk, p) in scores.chunks_mut(DECIDED).enumerate() {
        keep_factors::<R, true>(dropout, row, index + (chunk * DECIDED) as u32, &mut keep);
        p.iter_mut().zip(&keep).for_each(|(p, &keep)| *p *= inverse * keep);
    }
    highest + total.ln()
}

pub(super) fn attention_bwd<X: Working>(op: AttentionBwd<'_, Cpu<X>>) {
    by_factors!(backward::<X>(op));
}

fn backward<X: Working, E: Factor<X>>(op: AttentionBwd<'_, Cpu<X>>) {
    let s = &op.sequences;
    let size = s.head_size;
    let channels = s.heads * size;
    let (scale, one) = (Full::<X>::of(1.0 / (size as f64).sqrt()), Full::<X>::ONE);
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
            (0..padding.rows()).for_each(|row| padding.row(row).fill(X::default()));
        }
        let keys = operand(op.qkv, s, task, 1, 0, task.keys);
        let values = operand(op.qkv, s, task, 2, 0, task.keys);
        let (of_scores, of_gradients) = (Panels::<E>::new(keys.t()), Panels::<E>::new(values.t()));
        let of_dscores = Panels::<E>::new(keys);
        let strip = STRIP.min(task.rows);
        let room = || Scratch::<Full<X>>::new(strip * task.keys);
        let (mut scores, mut gradients) = (room(), room());
        let room = || Scratch::<X>::new(strip * task.keys);
        let (mut probabilities, mut dscores) = (room(), room());
        let room = |rows: usize| Scratch::<Full<X>>::new(rows * size);
        let (mut dqueries, mut dkeys, mut dvalues) = (room(strip), room(task.keys), room(task.keys));
        let mut rows_of_head = room(2);
        let (of_out, of_dout) = rows_of_head.split_at_mut(size);
        let mut dkeys = MatMut::new(&mut dkeys, task.keys, size);
        let mut dvalues = MatMut::new(&mut dvalues, task.keys, size);
        let room = || Turned::<E>::new(block.min(task.rows), task.keys);
        let (mut all_probabilities, mut all_dscores) = (room(), room());
        for start in (0..task.rows).step_by(block) {
            let end = task.rows.min(start + block);
            let dout = |from: usize, rows: usize| {
                Mat::strided(&op.dout[(task.first + from) * channels + column(0)..], rows, size, channels)
            };
            for from in (start..end).step_by(STRIP) {
                let rows = STRIP.min(end - from);
                let (first, area) = (task.first + from, rows * task.keys);
                let (p, dp) = (&mut scores[..area], &mut gradients[..area]);
                let queries = Left::Plain(operand(op.qkv, s, task, 0, from, rows));
                of_scores.multiply(&mut MatMut::new(p, rows, task.keys), false, scale, queries);
                let dout = Left::Plain(dout(from, rows));
                of_gradients.multiply(&mut MatMut::new(dp, rows, task.keys), false, one, dout);
                vectorized(
                    #[inline(always)]
                    || {
                        for (i, (p, dp)) in
                            p.chunks_exact_mut(task.keys).zip(dp.chunks_exact_mut(task.keys)).enumerate()
                        {
                            let at = (first + i) * channels + column(0);
                            let (out, dout) = (&op.out[at..][..size], &op.dout[at..][..size]);
                            widen(out, of_out);
                            widen(dout, of_dout);
                            let delta = dot(of_out, of_dout);
                            let lse = op.lse[(first + i) * s.heads + task.head];
                            let place = (first + i, task.mask_index());
                            dscores_row(op.dropout, place, (lse, delta, scale), p, dp);
                        }
                    },
                );
                let [p, dscores] = [(p, &mut probabilities), (dp, &mut dscores)]
                    .map(|(full, place)| Mat::new(X::narrowed(full, &mut place[..area]), rows, task.keys));
                let mut results = MatMut::new(&mut dqueries[..rows * size], rows, size);
                of_dscores.multiply(&mut results, false, one, Left::Plain(dscores));
                store(results, gradient(0, from, rows));
                all_probabilities.set(from - start, p);
                all_dscores.set(from - start, dscores);
            }
            let (rows, more) = (end - start, start > 0);
            Panels::new(dout(start, rows)).multiply(&mut dvalues, more, one, all_probabilities.left(rows));
            let queries = Panels::new(operand(op.qkv, s, task, 0, start, rows));
            queries.multiply(&mut dkeys, more, one, all_dscores.left(rows));
        }
        store(dkeys, gradient(1, 0, task.keys));
        store(dvalues, gradient(2, 0, task.keys));
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
