//! LayerNorm fused with dropout and residual, row by row; parameter gradients by partial sums over fixed row blocks.

use rayon::prelude::*;

use super::elementwise::drop_row;
use super::real::{Real, lane_sum, sum, vectorized};
use super::{Cpu, ROW_BLOCK, add_partials};
use crate::backend::{AddNormBwd, AddNormFwd};

/// y = (h - mean) · rstd · γ + β; returns (mean, rstd). The variance takes a second pass: E\[x²\] - E\[x\]² cancels.
#[inline(always)]
pub(super) fn normalize_row<R: Real>(h: &[R], gamma: &[R], beta: &[R], eps: R, y: &mut [R]) -> (R, R) {
    let width = R::of(h.len() as f64);
    let mean = sum(h) / width;
    let variance = lane_sum(h.len(), |i| (h[i] - mean) * (h[i] - mean)) / width;
    let rstd = R::ONE / (variance + eps).sqrt();
    for (((y, &h), &g), &b) in y.iter_mut().zip(h).zip(gamma).zip(beta) {
        *y = (h - mean) * rstd * g + b;
    }
    (mean, rstd)
}

/// dh of one row, and its contribution to dγ and dβ.
#[inline(always)]
pub(super) fn normalize_row_bwd<R: Real>(
    h: &[R],
    gamma: &[R],
    (mean, rstd): (R, R),
    dy: &[R],
    dh: &mut [R],
    (dgamma, dbeta): (&mut [R], &mut [R]),
) {
    let n = h.len();
    let (h, gamma, dy, dh) = (&h[..n], &gamma[..n], &dy[..n], &mut dh[..n]);
    let (dgamma, dbeta) = (&mut dgamma[..n], &mut dbeta[..n]);
    let width = R::of(n as f64);
    let mean_dx = lane_sum(n, |i| dy[i] * gamma[i]) / width;
    let mean_dx_x = lane_sum(n, |i| dy[i] * gamma[i] * ((h[i] - mean) * rstd)) / width;
    for i in 0..n {
        let x = (h[i] - mean) * rstd;
        dgamma[i] += dy[i] * x;
        dbeta[i] += dy[i];
        dh[i] = rstd * (dy[i] * gamma[i] - mean_dx - x * mean_dx_x);
    }
}

/// Of a row among those of the batch.
#[inline(always)]
fn number(numbers: Option<&[u32]>, row: usize) -> usize {
    numbers.map_or(row, |numbers| numbers[row] as usize)
}

pub(super) fn add_dropout_layernorm_fwd<R: Real>(op: AddNormFwd<'_, Cpu<R>>) {
    let (width, eps) = (op.width, R::of(op.eps));
    let block = ROW_BLOCK * width;
    op.x.par_chunks_mut(block)
        .zip(op.y.par_chunks_mut(block))
        .zip(op.mean.par_chunks_mut(ROW_BLOCK).zip(op.rstd.par_chunks_mut(ROW_BLOCK)))
        .enumerate()
        .for_each(|(index, ((x, y), (mean, rstd)))| {
            let first = index * ROW_BLOCK;
            vectorized(
                #[inline(always)]
                || {
                    for (i, (h, y)) in x.chunks_exact_mut(width).zip(y.chunks_exact_mut(width)).enumerate() {
                        drop_row(op.dropout, number(op.numbers, first + i), h);
                        if let Some(residual) = op.residual {
                            let residual = &residual[(first + i) * width..][..width];
                            h.iter_mut().zip(residual).for_each(|(h, &r)| *h += r);
                        }
                        (mean[i], rstd[i]) = normalize_row(h, op.gamma, op.beta, eps, y);
                    }
                },
            );
        });
}

pub(super) fn add_dropout_layernorm_bwd<R: Real>(op: AddNormBwd<'_, Cpu<R>>) {
    let width = op.width;
    let block = ROW_BLOCK * width;
    let with_bias = op.dbias.is_some();
    let mut no_residual = Vec::new();
    let dresidual = match op.dresidual {
        Some(d) => d,
        // Without a residual dx alone is wanted; zip needs as many chunks.
        None => {
            no_residual.resize(op.dx.len(), R::ZERO);
            &mut no_residual
        }
    };
    let partials: Vec<Vec<R>> = op
        .dx
        .par_chunks_mut(block)
        .zip(dresidual.par_chunks_mut(block))
        .enumerate()
        .map(|(index, (dx, dresidual))| {
            let first = index * ROW_BLOCK;
            let mut partial = vec![R::ZERO; 3 * width];
            let (dgamma, rest) = partial.split_at_mut(width);
            let (dbeta, dbias) = rest.split_at_mut(width);
            vectorized(
                #[inline(always)]
                || {
                    for (i, (dx, dh)) in
                        dx.chunks_exact_mut(width).zip(dresidual.chunks_exact_mut(width)).enumerate()
                    {
                        let row = first + i;
                        let (h, dy) = (&op.h[row * width..][..width], &op.dy[row * width..][..width]);
                        let stats = (op.mean[row], op.rstd[row]);
                        normalize_row_bwd(h, op.gamma, stats, dy, dh, (&mut *dgamma, &mut *dbeta));
                        dx.copy_from_slice(dh);
                        drop_row(op.dropout, number(op.numbers, row), dx);
                        if with_bias {
                            dbias.iter_mut().zip(&*dx).for_each(|(b, &d)| *b += d);
                        }
                    }
                },
            );
            partial
        })
        .collect();
    add_partials(&partials, 0, op.dgamma);
    add_partials(&partials, width, op.dbeta);
    if let Some(dbias) = op.dbias {
        add_partials(&partials, 2 * width, dbias);
    }
}
