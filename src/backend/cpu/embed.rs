//! The embedding block: three lookups, LayerNorm, dropout. Every table row has one writer, in the order of the tokens.

use rayon::prelude::*;

use super::elementwise::drop_row;
use super::norm::{normalize_row, normalize_row_bwd};
use super::real::{Real, vectorized};
use super::working::{Full, Working, widen, widened};
use super::{Cpu, ROW_BLOCK, add_partials};
use crate::backend::{EmbedBwd, EmbedFwd, EmbedTables};

/// sum = word\[id\] (+ delta\[id\]) + position\[position\] + token_type\[kind\]
#[inline(always)]
fn lookup<X: Working>(
    tables: &EmbedTables<'_, Cpu<X>>,
    (id, position, kind): (u32, u32, u32),
    sum: &mut [Full<X>],
) {
    let width = sum.len();
    let row = |index: u32| index as usize * width..(index as usize + 1) * width;
    let (word, position) = (&tables.word[row(id)], &tables.position[row(position)]);
    let kind = &tables.token_type[row(kind)];
    for (((s, w), p), t) in sum.iter_mut().zip(word).zip(position).zip(kind) {
        *s = w.full() + t.full() + p.full();
    }
    if let Some(delta) = tables.delta {
        sum.iter_mut().zip(&delta[row(id)]).for_each(|(s, d)| *s += d.full());
    }
}

pub(super) fn embed_fwd<X: Working>(op: EmbedFwd<'_, Cpu<X>>) {
    let (width, eps) = (op.width, Full::<X>::of(op.eps));
    let (gamma, beta) = (widened(op.tables.gamma), widened(op.tables.beta));
    op.out
        .par_chunks_mut(ROW_BLOCK * width)
        .zip(op.mean.par_chunks_mut(ROW_BLOCK).zip(op.rstd.par_chunks_mut(ROW_BLOCK)))
        .enumerate()
        .for_each(|(index, (out, (mean, rstd)))| {
            let (mut sum, mut normal) = (vec![Full::<X>::ZERO; width], vec![Full::<X>::ZERO; width]);
            vectorized(
                #[inline(always)]
                || {
                    for (i, out) in out.chunks_exact_mut(width).enumerate() {
                        let row = index * ROW_BLOCK + i;
                        lookup(&op.tables, (op.ids[row], op.positions[row], op.types[row]), &mut sum);
                        (mean[i], rstd[i]) = normalize_row(&sum, &gamma, &beta, eps, &mut normal);
                        drop_row(op.dropout, row, &mut normal);
                        X::narrow(&normal, out);
                    }
                },
            );
        });
}

pub(super) fn embed_bwd<X: Working>(op: EmbedBwd<'_, Cpu<X>>) {
    let (width, gamma) = (op.width, widened(op.tables.gamma));
    let partials: Vec<Vec<Full<X>>> = op
        .dout
        .par_chunks_mut(ROW_BLOCK * width)
        .enumerate()
        .map(|(index, dout)| {
            let mut partial = vec![Full::<X>::ZERO; 2 * width];
            let (dgamma, dbeta) = partial.split_at_mut(width);
            let mut rows = vec![Full::<X>::ZERO; 3 * width];
            let (sum, rest) = rows.split_at_mut(width);
            let (dy, dsum) = rest.split_at_mut(width);
            vectorized(
                #[inline(always)]
                || {
                    for (i, dout) in dout.chunks_exact_mut(width).enumerate() {
                        let row = index * ROW_BLOCK + i;
                        lookup(&op.tables, (op.ids[row], op.positions[row], op.types[row]), sum);
                        widen(dout, dy);
                        drop_row(op.dropout, row, dy);
                        let stats = (op.mean[row], op.rstd[row]);
                        normalize_row_bwd(sum, &gamma, stats, dy, dsum, (&mut *dgamma, &mut *dbeta));
                        X::narrow(dsum, dout);
                    }
                },
            );
            partial
        })
        .collect();
    add_partials(&partials, 0, op.dgamma);
    add_partials(&partials, width, op.dbeta);
    let dsum = &*op.dout;
    rayon::join(
        || scatter_add(op.ids, op.padding, dsum, width, op.dword),
        || {
            scatter_add(op.positions, None, dsum, width, op.dposition);
            scatter_add(op.types, None, dsum, width, op.dtoken_type);
        },
    );
}

/// table\[index\[n\]\] += rows\[n\], but for the row `skip`.
fn scatter_add<X: Working>(
    index: &[u32],
    skip: Option<u32>,
    rows: &[X],
    width: usize,
    table: &mut [Full<X>],
) {
    vectorized(
        #[inline(always)]
        || {
            for (&id, row) in index.iter().zip(rows.chunks_exact(width)) {
                if Some(id) != skip {
                    let target = &mut table[id as usize * width..][..width];
                    target.iter_mut().zip(row).for_each(|(t, r)| *t += r.full());
                }
            }
        },
    );
}
