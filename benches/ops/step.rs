//! A whole training step on a device that times what it is asked for.

use elektron::Result;
use elektron::backend::Gpu;
use elektron::backend::gpu::driver::Driver;
use elektron::data::Batch;
use elektron::model::config::{Architecture, Preset};
use elektron::model::hf::Checkpoint;
use elektron::model::{Options, Phase, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

use super::gpu::{Asked, Timed};

/// Both networks of a preset's size, full rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    preset: Preset,
    vocabulary: usize,
    rows: usize,
    seq_len: usize,
}

impl Shape {
    pub(super) const SMALL: Self = Self {
        name: "small + small, 128 rows of 128",
        preset: Preset::Small,
        vocabulary: 30522,
        rows: 128,
        seq_len: 128,
    };
    #[cfg(feature = "simt")]
    pub(super) const EMULATED: Self = Self {
        name: "tiny + tiny, 1 row of 16",
        preset: Preset::Tiny,
        vocabulary: 2000,
        rows: 1,
        seq_len: 16,
    };

    fn batch(&self) -> Batch {
        let (n, t) = ((self.rows * self.seq_len) as u32, self.seq_len as u32);
        let words = self.vocabulary as u32 - 1000;
        let ids: Vec<u32> = (0..n).map(|i| 1000 + i.wrapping_mul(2_654_435_761) % words).collect();
        let masked_index: Vec<u32> = (0..n).filter(|i| i % 20 < 3).collect();
        let mut masked_ids = ids.clone();
        masked_index.iter().for_each(|&i| masked_ids[i as usize] = 103);
        Batch {
            masked_ids,
            positions: (0..n).map(|i| i % t).collect(),
            types: vec![0; n as usize],
            cu_seqlens: (0..=self.rows as u32).map(|row| row * t).collect(),
            key_len: vec![t; self.rows],
            masked_weight: vec![1.0; masked_index.len()],
            rtd_weight: vec![1.0; n as usize],
            masking: None,
            special: None,
            masked_index,
            ids,
        }
    }
}

/// What each step asked of the device. The first steps, which compile kernels and choose algorithms, are left out.
pub(super) fn kernels<D: Driver>(
    backend: Gpu<Timed<D>, bf16>,
    shape: &Shape,
    warm_up: usize,
    rounds: usize,
) -> Result<Vec<Vec<Asked>>> {
    let size = shape.preset.discriminator(shape.vocabulary);
    let mut model = TokenDetection::with_options(
        backend,
        Checkpoint::fresh(size.clone(), Architecture::MaskedLm),
        Checkpoint::fresh(size, Architecture::PreTraining),
        Options { share: Share::Word, ..Options::default() },
    )?;
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default())?;
    let (batch, mut all) = (shape.batch(), Vec::new());
    for step in 0..warm_up + rounds {
        model.backend().driver().take();
        model.step_forward(&batch, Phase::Train { step: step as u32, row0: 0, divisor: 1.0 }, None)?;
        model.step_backward()?;
        optimizer.step(&mut model, 1e-4)?;
        let asked = model.backend().driver().take();
        if step >= warm_up {
            all.push(asked);
        }
    }
    Ok(all)
}
