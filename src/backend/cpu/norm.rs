//! LayerNorm fused with dropout and residual, row by row; parameter gradients by partial sums over fixed row blocks.

use rayon::prelude::*;

use super::elementwise::drop_row;
use super::real::{Real, dot, sum, vectorized};
use super::working::{Full, Working, widen, widened};
use super::{Cpu, ROW_BLOCK, add_partials};
use crate::backend::{AddNormBwd, AddNormFwd};

/// y = (h - mean) · rstd · γ + β of a row; returns (mean, rstd). The variance takes a second pass: E\[x²\] - E\[x\]² cancels.
#[inline(always)]
pub(super) fn normalize_row<R: Real>(h: &[R], gamma: &[R], beta: &[R], eps: R, y: &mut [R]) -> (R, R) {
    let width = R::of(h.len() as f64);
    let mean = sum(h) / width;
    y.iter_mut().zip(h).for_each(|(y, &h)| *y = h - mean);
    let variance = dot(y, y) / width;
    let rstd = R::ONE / (variance + eps).sqrt();
    for ((y, &g), &b) in y.iter_mut().zip(gamma).zip(beta) {
        *y = *y * rstd * g + b;
    }
    (mean, rstd)
}

/// dh of one row, and its contribution to dγ and dβ; `h` becomes (h - mean) · rstd.
#[inline(always)]
pub(super) fn normalize_row_bwd<R: Real>(
    h: &mut [R],
    gamma: &[R],
    (mean, rstd): (R, R),
    dy: &[R],
    dh: &mut [R],
    (dgamma, dbeta): (&mut [R], &mut [R]),
) {
    let n = h.len();
    let (gamma, dy, dh) = (&gamma[..n], &dy[..n], &mut dh[..n]);
    let (dgamma, dbeta) = (&mut dgamma[..n], &mut dbeta[..n]);
    for i in 0..n {
        h[i] = (h[i] - mean) * rstd;
        dgamma[i] += dy[i] * h[i];
        dbeta[i] += dy[i];
        dh[i] = dy[i] * gamma[i];
    }
    let width = R::of(n as f64);
    let (mean_dx, mean_dx_x) = (sum(dh) / width, dot(dh, h) / width);
    dh.iter_mut().zip(h).for_each(|(dh, &mut x)| *dh = rstd * (*dh - mean_dx - x * mean_dx_x));
}

/// Of a row among those of the batch.
#[inline(always)]
fn number(numbers: Option<&[u32]>, row: usize) -> usize {
    numbers.map_or(row, |numbers| numbers[row] as usize)
}

pub(super) fn add_dropout_layernorm_fwd<X: Working>(op: AddNormFwd<'_, Cpu<X>>) {
    let (width, eps) = (op.width, Full::<X>::of(op.eps));
    let (gamma, beta) = (widened(op.gamma), widened(op.beta));
    let block = ROW_BLOCK * width;
    op.x.par_chunks_mut(block)
        .zip(op.y.par_chunks_mut(block))
        .zip(op.mean.par_chunks_mut(ROW_BLOCK).zip(op.rstd.par_chunks_mut(ROW_BLOCK)))
        .enumerate()
        .for_each(|(index, ((x, y), (mean, rstd)))| {
            let first = index * ROW_BLOCK;
            let (mut h, mut normal) = (vec![Full::<X>::ZERO; width], vec![Full::<X>::ZERO; width]);
            vectorized(
                #[inline(always)]
                || {
                    for (i, (x, y)) in x.chunks_exact_mut(width).zip(y.chunks_exact_mut(width)).enumerate() {
                        widen(x, &mut h);
                        drop_row(op.dropout, number(op.numbers, first + i), &mut h);
                        if let Some(residual) = op.residual {
                            let residual = &residual[(first + i) * width..][..width];
                            h.iter_mut().zip(residual).for_each(|(h, r)| *h += r.full());
                        }
                        // Statistics are of what is stored: the backward pass reads that.
                        X::narrow(&h, x);
                        widen(x, &mut h);
                        (mean[i], rstd[i]) = normalize_row(&h, &gamma, &beta, eps, &mut normal);
                        X::narrow(&normal, y);
                    }
                },
            );
        });
}

pub(super) fn add_dropout_layernorm_bwd<X: Working>(op: AddNormBwd<'_, Cpu<X>>) {
    let (width, gamma) = (op.width, widened(op.gamma));
    let block = ROW_BLOCK * width;
    let mut no_residual = Vec::new();
    let dresidual = match op.dresidual {
        Some(d) => d,
        // Without a residual dx alone is wanted; zip needs as many chunks.
        None => {
            no_residual.resize(op.dx.len(), X::round(Full::<X>::ZERO));
            &mut no_residual
        }
    };
    let partials: Vec<Vec<Full<X>>> = op
        .dx
        .par_chunks_mut(block)
        .zip(dresidual.par_chunks_mut(block))
        .enumerate()
        .map(|(index, (dx, dresidual))| {
            let first = index * ROW_BLOCK;
            let mut partial = vec![Full::<X>::ZERO; 3 * width];
            let (dgamma, rest) = partial.split_at_mut(width);
            let (dbeta, dbias) = rest.split_at_mut(width);
            let mut rows = vec![Full::<X>::ZERO; 3 * width];
            let (h, rest) = rows.split_at_mut(width);
            let (dy, dh) = rest.split_at_mut(width);
            vectorized(
                #[inline(always)]
                || {
                    for (i, (dx, dresidual)) in
                        dx.chunks_exact_mut(width).zip(dresidual.chunks_exact_mut(width)).enumerate()
                    {
                        let row = first + i;
                        widen(&op.h[row * width..][..width], h);
                        widen(&op.dy[row * width..][..width], dy);
                        let stats = (op.mean[row], op.rstd[row]);
                        normalize_row_bwd(h, &gamma, stats, dy, dh, (&mut *dgamma, &mut *dbeta));
                        X::narrow(dh, dresidual);
                        drop_row(op.dropout, number(op.numbers, row), dh);
                        X::narrow(dh, dx);
                        dbias.iter_mut().zip(&*dh).for_each(|(b, &d)| *b += d);
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
