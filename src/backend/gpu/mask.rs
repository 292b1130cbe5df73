//! Launches `kernels/mask.cu`.

use super::driver::{Argument, Driver};
use super::{Gpu, Working, size};
use crate::Result;
use crate::backend::Mask;
use crate::data::mask::MaskStyle;
use crate::rng::threshold;

const THREADS: u32 = 128;

/// `Rule` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct RuleArgs {
    probability: f64,
    tiny: f64,
    key: [u32; 2],
    electra: u32,
    slots: u32,
    limit: u32,
    shown: [u32; 2],
    mask_id: u32,
    vocabulary: u32,
    never: [u32; 5],
    clock: u64,
}

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn mask_op(&self, op: Mask<'_, Self>) -> Result<()> {
        let (n, m, rows) = (op.ids.len(), op.masked_index.len(), op.cu_seqlens.len().saturating_sub(1));
        let spec = &op.spec;
        let rule = Argument::of(RuleArgs {
            probability: spec.probability,
            tiny: op.tiny,
            key: op.rng.key(),
            electra: u32::from(spec.style == MaskStyle::Electra),
            slots: size(spec.slots())?,
            limit: threshold(spec.probability),
            shown: spec.thresholds(),
            mask_id: spec.special.mask,
            vocabulary: size(spec.vocab_size)?,
            never: spec.never(),
            clock: self.clock_at(op.clock)?.address(),
        });
        // Workspace is of floats: a word each.
        let workspace = self.workspace(n + rows)?;
        let (chosen, counts) = (workspace.part(0..4 * n), workspace.part(4 * n..4 * (n + rows)));
        let arguments = [
            op.ids.into(),
            op.cu_seqlens.into(),
            rule,
            chosen.into(),
            counts.into(),
            size(op.max_seqlen)?.into(),
        ];
        let shared_bytes = 4 * (2 * op.max_seqlen + 2);
        self.launch(("mask", "mask_choose"), [size(rows)?, 1, 1], THREADS, shared_bytes, 8 * n, &arguments)?;
        let arguments = [
            op.ids.into(),
            op.cu_seqlens.into(),
            rule,
            chosen.into(),
            counts.into(),
            (&op.masked_ids).into(),
            (&op.masked_index).into(),
            (&op.targets).into(),
            (&op.weight).into(),
            size(n)?.into(),
            size(m)?.into(),
        ];
        let shared_bytes = 4 * (THREADS as usize / 32 + 2);
        let bytes = 12 * n + 12 * m + 4 * rows * (rows + 1);
        self.launch(("mask", "mask_write"), [size(rows + 1)?, 1, 1], THREADS, shared_bytes, bytes, &arguments)
    }
}
