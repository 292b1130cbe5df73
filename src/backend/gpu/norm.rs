//! Launches `kernels/norm.cu`.

use super::driver::Driver;
use super::{Gpu, Working, blocks, size, tree_counters};
use crate::backend::{AddNormBwd, AddNormFwd};
use crate::{Error, Result};

const THREADS: u32 = 128;
/// Rows that a block takes at a time: a warp each.
const ROWS: usize = 4;
/// Blocks of a backward pass at the most: those that an H100 holds at once. Not asked of the device, so that all devices add in the same order.
const MULTIPROCESSORS: usize = 132;
/// Blocks of a multiprocessor, by the registers of the kernels for one to four chunks.
const RESIDENT: [usize; 4] = [5, 4, 3, 2];
/// Columns that a warp holds in one chunk of registers.
pub(super) const CHUNK: usize = 256;

/// The kernel that is compiled for rows this wide.
pub(super) fn by_width(kernels: [&'static str; 4], width: usize) -> Result<&'static str> {
    kernels.get(width.div_ceil(CHUNK).max(1) - 1).copied().ok_or_else(|| {
        Error::config(format!(
            "the GPU kernels normalise rows of up to {} elements, this model has {width}: use --device cpu",
            kernels.len() * CHUNK
        ))
    })
}

/// Blocks that share `rows` rows in a backward pass: a function of the rows alone, for the same sums everywhere.
pub(super) fn partials(rows: usize, width: usize) -> usize {
    let resident = RESIDENT[(width.div_ceil(CHUNK).max(1) - 1).min(RESIDENT.len() - 1)];
    rows.div_ceil(ROWS).clamp(1, MULTIPROCESSORS * resident)
}

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn add_norm_fwd_op(&self, op: AddNormFwd<'_, Self>) -> Result<()> {
        let rows = op.x.len() / op.width;
        let kernel =
            by_width(["add_norm_fwd_1", "add_norm_fwd_2", "add_norm_fwd_3", "add_norm_fwd_4"], op.width)?;
        self.launch(
            ("norm", kernel),
            [blocks(rows, ROWS as u32)?, 1, 1],
            THREADS,
            0,
            rows * op.width * size_of::<W>() * if op.residual.is_some() { 4 } else { 3 },
            &[
                (&op.x).into(),
                op.residual.map(|r| r.region).into(),
                self.dropout_args(op.dropout)?,
                op.numbers.map(|n| n.region).into(),
                op.gamma.into(),
                op.beta.into(),
                (op.eps as f32).into(),
                (&op.y).into(),
                (&op.mean).into(),
                (&op.rstd).into(),
                size(rows)?.into(),
                size(op.width)?.into(),
            ],
        )
    }

    pub(super) fn add_norm_bwd_op(&self, op: AddNormBwd<'_, Self>) -> Result<()> {
        let (width, rows) = (op.width, op.dx.len() / op.width);
        if rows == 0 {
            return Ok(());
        }
        let kernel =
            by_width(["add_norm_bwd_1", "add_norm_bwd_2", "add_norm_bwd_3", "add_norm_bwd_4"], width)?;
        let count = partials(rows, width);
        let sums = self.workspace(count * 3 * width)?;
        self.launch(
            ("norm", kernel),
            [size(count)?, 1, 1],
            THREADS,
            3 * width * 4,
            rows * width * size_of::<W>() * if op.dresidual.is_some() { 4 } else { 3 } + 2 * sums.bytes(),
            &[
                op.h.into(),
                self.dropout_args(op.dropout)?,
                op.numbers.map(|n| n.region).into(),
                op.gamma.into(),
                op.mean.into(),
                op.rstd.into(),
                op.dy.into(),
                (&op.dx).into(),
                op.dresidual.as_ref().map(|d| d.region).into(),
                (&op.dgamma).into(),
                (&op.dbeta).into(),
                op.dbias.as_ref().map(|d| d.region).into(),
                sums.into(),
                self.counters(tree_counters(count))?.into(),
                size(rows)?.into(),
                size(width)?.into(),
            ],
        )
    }
}
