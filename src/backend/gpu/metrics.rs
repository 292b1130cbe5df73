//! Launches `kernels/metrics.cu`.

use super::driver::{Argument, Driver};
use super::{Gpu, Working, size};
use crate::Result;
use crate::backend::{GENERATOR_COUNTS, Metrics, SCORE_BINS};

const THREADS: u32 = 512;
/// Tokens of a block: clearing and emptying its counts cost as much as counting this many.
const SPAN: usize = 4096;
/// Counts that a block keeps in shared memory: all but those of tokens that cannot be masked.
const BLOCK_COUNTS: usize = GENERATOR_COUNTS + 2 * SCORE_BINS;

/// `Special` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SpecialArgs {
    never: [u32; 5],
    mask: u32,
}

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn metrics_op(&self, op: Metrics<'_, Self>) -> Result<()> {
        let (n, m) = (op.is_fake.len(), op.best.len());
        let blocks = n.max(m).div_ceil(SPAN).max(1);
        let (partials, counter) = (self.workspace(2 * blocks)?, self.counters(1)?);
        self.launch(
            ("metrics", "metrics"),
            [size(blocks)?, 1, 1],
            THREADS,
            4 * BLOCK_COUNTS + 4 * THREADS as usize / 32,
            n * (16 + op.labels * size_of::<W>()) + 24 * m,
            &[
                op.logits.into(),
                op.is_fake.into(),
                op.ids.into(),
                op.rtd_nll.into(),
                op.rtd_weight.into(),
                op.best.into(),
                op.targets.into(),
                op.masked_ids.into(),
                op.masked_index.into(),
                op.mlm_nll.into(),
                op.mlm_weight.into(),
                (&op.losses).into(),
                (&op.counts).into(),
                partials.into(),
                counter.into(),
                Argument::of(SpecialArgs { never: op.special.never, mask: op.special.mask }),
                size(n)?.into(),
                size(m)?.into(),
                size(n.div_ceil(blocks))?.into(),
                size(m.div_ceil(blocks))?.into(),
                size(op.labels)?.into(),
            ],
        )
    }
}
