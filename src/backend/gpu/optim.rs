//! Launches `kernels/optim.cu`.

use std::ops::Range;

use super::driver::{Driver, Region};
use super::{DeviceBuf, DeviceSlice, DeviceSliceMut, Gpu, Working, blocks, size};
use crate::Result;
use crate::backend::{AdamW, UpdateRule};

const THREADS: u32 = 256;
/// Partial sums of the norm at the most; a span is a multiple of the block.
const PARTIALS: usize = 1024;
/// Of a word.
const BITS: usize = 32;

/// `Update` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, bytemuck::NoUninit)]
pub(super) struct UpdateArgs {
    beta1: f32,
    beta2: f32,
    eps: f32,
    rate: f32,
    root: f32,
    decay: f32,
    max_norm: f32,
    unused: f32,
}

impl From<UpdateRule> for UpdateArgs {
    fn from(rule: UpdateRule) -> Self {
        let (rate, root) = match rule.bias_correction {
            Some(t) => {
                let t = t as f64;
                (rule.lr / (1.0 - rule.beta1.powf(t)), 1.0 / (1.0 - rule.beta2.powf(t)).sqrt())
            }
            None => (rule.lr, 1.0),
        };
        Self {
            beta1: rule.beta1 as f32,
            beta2: rule.beta2 as f32,
            eps: rule.eps as f32,
            rate: rate as f32,
            root: root as f32,
            decay: (rule.lr * rule.weight_decay) as f32,
            max_norm: rule.max_norm.unwrap_or(0.0) as f32,
            unused: 0.0,
        }
    }
}

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn norm_squared_op(
        &self,
        x: DeviceSlice<'_, f32>,
        out: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        let n = x.len();
        let span = n.div_ceil(PARTIALS).next_multiple_of(THREADS as usize).max(THREADS as usize);
        let count = n.div_ceil(span);
        let blocks = count.max(1);
        let arguments = [
            x.into(),
            (&out).into(),
            self.workspace(blocks)?.into(),
            self.counters(1)?.into(),
            (n as u64).into(),
            (span as u64).into(),
        ];
        let shared_bytes = THREADS as usize / 32 * 4;
        self.launch(
            ("optim", "norm_squared"),
            [size(blocks)?, 1, 1],
            THREADS,
            shared_bytes,
            4 * n,
            &arguments,
        )
    }

    pub(super) fn adamw_op(&self, op: AdamW<'_, Self>) -> Result<()> {
        let n = op.grads.len();
        let update = self.update_at(op.rule.into())?;
        let decayed = self.decayed_bits(op.decayed, n)?;
        self.launch(
            ("optim", "adamw"),
            [blocks(n.div_ceil(4), THREADS)?, 1, 1],
            THREADS,
            0,
            n * (32 + size_of::<W>()),
            &[
                (&op.grads).into(),
                (&op.m).into(),
                (&op.v).into(),
                (&op.master).into(),
                (&op.working).into(),
                op.norm_squared.into(),
                update.into(),
                decayed.into(),
                (n as u64).into(),
            ],
        )
    }

    /// A bit for each of `n` elements, whether a range holds it; uploaded when the ranges change: one load a thread, where a search among
    /// the ranges takes a dozen that depend on each other.
    fn decayed_bits(&self, ranges: &[Range<usize>], n: usize) -> Result<Region> {
        let (mut held, len) = (self.decayed.borrow_mut(), n.div_ceil(BITS));
        if let Some((_, buf)) = held.as_ref().filter(|(before, buf)| before == ranges && buf.len == len) {
            return Ok(buf.region);
        }
        let mut words = vec![0u32; len];
        for i in ranges.iter().flat_map(|range| range.start..range.end.min(n)) {
            words[i / BITS] |= 1 << (i % BITS);
        }
        let buf = DeviceBuf::new(&self.driver, len)?;
        if len > 0 {
            self.driver.upload(bytemuck::cast_slice(&words), buf.region)?;
        }
        let region = buf.region;
        *held = Some((ranges.to_vec(), buf));
        Ok(region)
    }
}
