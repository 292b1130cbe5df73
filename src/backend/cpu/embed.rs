//! The embedding block: three lookups, LayerNorm, dropout. Every table row has one writer, in the order of the tokens.

use rayon::prelude::*;

use super::elementwise::drop_row;
use super::norm::{normalize_row, normalize_row_bwd};
use super::real::{Real, vectorized};
use super::{Cpu, ROW_BLOCK, add_partials};
use crate::backend::{EmbedBwd, EmbedFwd, EmbedTables};

/// sum = word\[id\] (+ delta\[id\]) + position\[position\] + token_type\[kind\]
#[inline(always)]
fn lookup<R: Real>(tables: &EmbedTables<'_, Cpu<R>>, (id, position, kind): (u32, u32, u32), sum: &mut [R]) {
    let width = sum.len();
    let row = |index: u32| index as usize * width..(index as usize + 1) * width;
    let (word, position) = (&tables.word[row(id)], &tables.position[row(position)]);
    let kind = &tables.token_type[row(kind)];
    for (((s, &w), &p), &t) in sum.iter_mut().zip(word).zip(position).zip(kind) {
        *s = w + t + p;
    }
    if let Some(delta) = tables.delta {
        sum.iter_mut().zip(&delta[row(id)]).for_each(|(s, &d)| *s += d);
    }
}

pub(super) fn embed_fwd<R: Real>(op: EmbedFwd<'_, Cpu<R>>) {
    let (width, eps) = (op.width, R::of(op.eps));
    op.out
        .par_chunks_mut(ROW_BLOCK * width)
        .zip(op.mean.par_chunks_mut(ROW_BLOCK).zip(op.rstd.par_chunks_mut(ROW_BLOCK)))
        .enumerate()
        .for_each(|(index, (out, (mean, rstd)))| {
            let mut sum = vec![R::ZERO; width];
            vectorized(
                #[inline(always)]
                || {
                    for (i, out) in out.chunks_exact_mut(width).enumerate() {
                        let row = index * ROW_BLOCK + i;
                        lookup(&op.tables, (op.ids[row], op.positions[row], op.types[row]), &mut sum);
                        (mean[i], rstd[i]) = normalize_row(&sum, op.tables.gamma, op.tables.beta, eps, out);
                        drop_row(op.dropout, row, out);
                    }
                },
            );
        });
}

pub(super) fn embed_bwd<R: Real>(op: EmbedBwd<'_, Cpu<R>>) {
    let width = op.width;
    let partials: Vec<Vec<R>> = op
        .dout
        .par_chunks_mut(ROW_BLOCK * width)
        .enumerate()
        .map(|(index, dout)| {
            let mut partial = vec![R::ZERO; 2 * width];
            let (dgamma, dbeta) = partial.split_at_mut(width);
            let (mut sum, mut dy) = (vec![R::ZERO; width], vec![R::ZERO; width]);
            vectorized(
                #[inline(always)]
                || {
                    for (i, dsum) in dout.chunks_exact_mut(width).enumerate() {
                        let row = index * ROW_BLOCK + i;
                        lookup(&op.tables, (op.ids[row], op.positions[row], op.types[row]), &mut sum);
                        drop_row(op.dropout, row, dsum);
                        dy.copy_from_slice(dsum);
                        let stats = (op.mean[row], op.rstd[row]);
                        normalize_row_bwd(
                            &sum,
                            op.tables.gamma,
                            stats,
                            &dy,
                            dsum,
                            (&mut *dgamma, &mut *dbeta),
                        );
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
fn scatter_add<R: Real>(index: &[u32], skip: Option<u32>, rows: &[R], width: usize, table: &mut [R]) {
    vectorized(
        #[inline(always)]
        || {
            for (&id, row) in index.iter().zip(rows.chunks_exact(width)) {
                if Some(id) != skip {
                    let target = &mut table[id as usize * width..][..width];
                    target.iter_mut().zip(row).for_each(|(t, &r)| *t += r);
                }
            }
        },
    );
}
