//! Launches `kernels/mlm_head.cu`.

use super::driver::Driver;
use super::{Gpu, Working, size};
use crate::Result;
use crate::backend::MlmLoss;

const THREADS: u32 = 512;

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn mlm_loss_op(&self, op: MlmLoss<'_, Self>) -> Result<()> {
        self.launch(
            ("mlm_head", "mlm_loss"),
            [size(op.targets.len())?, 1, 1],
            THREADS,
            // Of each warp two words; the best score of all.
            THREADS as usize / 32 * 8 + 4,
            op.logits.region.bytes() * if op.gradient { 3 } else { 1 },
            &[
                (&op.logits).into(),
                op.targets.into(),
                op.masked_index.into(),
                op.weight.into(),
                (op.scale as f32).into(),
                ((1.0 / op.temperature) as f32).into(),
                u32::from(op.disallow_correct).into(),
                self.noise_args(op.noise)?,
                u32::from(op.gradient).into(),
                (&op.nll).into(),
                (&op.best).into(),
                op.sampled.as_ref().map(|s| s.region).into(),
                size(op.vocabulary)?.into(),
                size(op.pitch)?.into(),
            ],
        )
    }
}
