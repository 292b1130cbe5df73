//! Launches `kernels/rtd_head.cu`.

use super::driver::Driver;
use super::{Gpu, Working, blocks, size};
use crate::Result;
use crate::backend::{Corrupt, RtdLoss};

const THREADS: u32 = 256;

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn corrupt_op(&self, op: Corrupt<'_, Self>) -> Result<()> {
        let (n, m) = (op.ids.len(), op.masked_index.len());
        let arguments = [
            op.ids.into(),
            op.masked_index.into(),
            op.sampled.into(),
            (&op.corrupted).into(),
            (&op.is_fake).into(),
            self.counters(1)?.into(),
            size(m)?.into(),
            size(n)?.into(),
        ];
        let bytes = 12 * n + 20 * m;
        self.launch(("rtd_head", "corrupt"), [blocks(n, THREADS)?, 1, 1], THREADS, 4, bytes, &arguments)
    }

    pub(super) fn rtd_loss_op(&self, op: RtdLoss<'_, Self>) -> Result<()> {
        let n = op.is_fake.len();
        let arguments = [
            op.is_fake.into(),
            op.weight.into(),
            (op.scale as f32).into(),
            op.logits.into(),
            (&op.nll).into(),
            (&op.dlogits).into(),
            size(n)?.into(),
            size(op.labels)?.into(),
        ];
        let bytes = n * (12 + 2 * op.labels * size_of::<W>());
        self.launch(("rtd_head", "rtd_loss"), [blocks(n, THREADS)?, 1, 1], THREADS, 0, bytes, &arguments)
    }
}
