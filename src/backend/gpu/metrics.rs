//! Launches `kernels/metrics.cu`.

use super::driver::Driver;
use super::{Gpu, Working, size};
use crate::Result;
use crate::backend::{COUNTS, Metrics};

const THREADS: u32 = 512;
/// Tokens of a block: clearing and emptying its counts cost as much as counting this many.
const SPAN: usize = 4096;

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn metrics_op(&self, op: Metrics<'_, Self>) -> Result<()> {
        let (n, m) = (op.is_fake.len(), op.best.len());
        let blocks = n.div_ceil(SPAN).max(1);
        let (partials, counter) = (self.workspace(2 * blocks)?, self.counters(1)?);
        self.launch(
            ("metrics", "metrics"),
            [size(blocks)?, 1, 1],
            THREADS,
            4 * COUNTS + 4 * THREADS as usize / 32,
            n * (12 + op.labels * size_of::<W>()) + 16 * m,
            &[
                op.logits.into(),
                op.is_fake.into(),
                op.rtd_nll.into(),
                op.rtd_weight.into(),
                op.best.into(),
                op.targets.into(),
                op.mlm_nll.into(),
                op.mlm_weight.into(),
                (&op.losses).into(),
                (&op.counts).into(),
                partials.into(),
                counter.into(),
                size(n)?.into(),
                size(m)?.into(),
                size(n.div_ceil(blocks))?.into(),
                size(m.div_ceil(blocks))?.into(),
                size(op.labels)?.into(),
            ],
        )
    }
}
