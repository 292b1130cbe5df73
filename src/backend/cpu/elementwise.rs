//! Dropout, gathered rows, zeros and casts.

use rayon::prelude::*;

use super::ROW_BLOCK;
use super::real::{Real, vectorized};
use super::working::{Full, Working, widen};
use crate::backend::{Dropout, Elem};
use crate::rng;

/// Elements about which the numbers decide that [`Philox::blocks`](rng::Philox::blocks) makes at once.
pub(super) const DECIDED: usize = 8 * rng::LANES;

/// Applies the mask of row `row` in place; `row` counts from the batch's first row.
#[inline(always)]
pub(super) fn drop_row<R: Real>(dropout: Dropout, row: usize, x: &mut [R]) {
    drop_row_from::<R, false>(dropout, row, 0, x);
}

/// The same from column `index` (a multiple of 32) on; `BY_KEY`: of attention's probabilities.
#[inline(always)]
pub(super) fn drop_row_from<R: Real, const BY_KEY: bool>(
    dropout: Dropout,
    row: usize,
    index: u32,
    x: &mut [R],
) {
    if !dropout.is_on() {
        return;
    }
    let mut keep = [R::ONE; DECIDED];
    for (chunk, x) in x.chunks_mut(DECIDED).enumerate() {
        keep_factors::<R, BY_KEY>(dropout, row, index + (chunk * DECIDED) as u32, &mut keep);
        x.iter_mut().zip(&keep).for_each(|(x, &keep)| *x *= keep);
    }
}

/// What dropout multiplies the elements from column `index` on with: 0 or 1 / (1 - p). Without dropout `keep` stays.
#[inline(always)]
pub(super) fn keep_factors<R: Real, const BY_KEY: bool>(
    dropout: Dropout,
    row: usize,
    index: u32,
    keep: &mut [R; DECIDED],
) {
    if !dropout.is_on() {
        return;
    }
    let row = dropout.clock.row0.wrapping_add(row as u32);
    let scale = R::of(dropout.scale);
    let mut words = [0; DECIDED / 2];
    dropout.rng.blocks::<BY_KEY>(index / 8, row, dropout.site, dropout.clock.step, &mut words);
    // The lower half of a word comes first.
    let words = words.map(u32::to_le);
    for (keep, &half) in keep.iter_mut().zip(bytemuck::cast_slice::<u32, u16>(&words)) {
        *keep = if u32::from(u16::from_le(half)) < dropout.threshold { R::ZERO } else { scale };
    }
}

pub(super) fn dropout<X: Working>(width: usize, dropout: Dropout, inp: &[X], out: &mut [X]) {
    let block = ROW_BLOCK * width;
    out.par_chunks_mut(block).zip(inp.par_chunks(block)).enumerate().for_each(|(index, (out, inp))| {
        let mut row = vec![Full::<X>::ZERO; width];
        vectorized(
            #[inline(always)]
            || {
                for (i, (out, inp)) in out.chunks_exact_mut(width).zip(inp.chunks_exact(width)).enumerate() {
                    widen(inp, &mut row);
                    drop_row(dropout, index * ROW_BLOCK + i, &mut row);
                    X::narrow(&row, out);
                }
            },
        );
    });
}

pub(super) fn gather_rows_fwd<X: Elem>(width: usize, index: &[u32], inp: &[X], out: &mut [X]) {
    for (&row, out) in index.iter().zip(out.chunks_exact_mut(width)) {
        match inp.get(row as usize * width..).filter(|rest| rest.len() >= width) {
            Some(rest) => out.copy_from_slice(&rest[..width]),
            None => out.fill(X::default()),
        }
    }
}

pub(super) fn gather_rows_bwd<X: Elem>(width: usize, index: &[u32], dout: &[X], dinp: &mut [X]) {
    dinp.fill(X::default());
    for (&row, dout) in index.iter().zip(dout.chunks_exact(width)) {
        if let Some(dinp) = dinp.chunks_exact_mut(width).nth(row as usize) {
            dinp.copy_from_slice(dout);
        }
    }
}
