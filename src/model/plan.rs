//! The memory plan: what a run will hold, in bytes, without a device and without allocating it.

use super::Share;
use super::acts::{BatchLimits, Counting, DeviceBatch, EncoderActs, MlmActs, PlanEntry, RtdActs, Scratch};
use super::config::{Architecture, ElectraConfig};
use super::params::ParamTable;
use crate::Result;
use crate::backend::gpu::Products;
use crate::backend::gpu::driver::tally::{Counter, Tally};
use crate::backend::{Backend, Gpu};
use crate::data::Batch;
use crate::model::hf::Checkpoint;
use crate::model::{Options, Phase, TokenDetection};
use crate::train::optim::{AdamW, AdamWOptions};

/// Bytes by family and field.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// One line a field.
    pub entries: Vec<PlanEntry>,
    /// The batch it is for.
    pub limits: BatchLimits,
}

impl MemoryPlan {
    /// Everything.
    pub fn total_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// What grows with the batch, divided by its tokens.
    pub fn bytes_per_token(&self) -> u64 {
        let grows: u64 = self.entries.iter().filter(|e| e.family != "parameters").map(|e| e.bytes).sum();
        grows / (self.limits.tokens.max(1) as u64)
    }

    /// MiB of each family, in order of appearance.
    pub fn families(&self) -> Vec<(&'static str, u64)> {
        let mut families: Vec<(&'static str, u64)> = Vec::new();
        for entry in &self.entries {
            match families.iter_mut().find(|(name, _)| *name == entry.family) {
                Some((_, bytes)) => *bytes += entry.bytes,
                None => families.push((entry.family, entry.bytes)),
            }
        }
        families
    }
}

/// What training this pair on backend `B`, or without a discriminator a masked language model alone,
/// holds for batches up to `limits`.
pub fn memory_plan<B: Backend>(
    backend: &B,
    generator: &ElectraConfig,
    discriminator: Option<(&ElectraConfig, Architecture)>,
    share: Share,
    limits: BatchLimits,
) -> Result<MemoryPlan> {
    let table = ParamTable::new(generator, discriminator, share)?;
    let exact = (table.len() * size_of::<B::F>()) as u64;
    let parameters = [
        ("master weights", exact),
        ("working weights", (table.len() * size_of::<B::X>()) as u64),
        ("gradients", exact),
        ("first moments", exact),
        ("second moments", exact),
    ];
    let entries = parameters
        .map(|(name, bytes)| PlanEntry { family: "parameters", name: name.to_owned(), bytes })
        .to_vec();
    let family = if discriminator.is_some() { "generator" } else { "model" };
    let mut a = Counting { backend, family, entries };
    EncoderActs::<B>::new(&mut a, generator, limits.tokens, Some(limits.masked))?;
    MlmActs::<B>::new(&mut a, generator, limits.masked)?;
    if let Some((discriminator, head)) = discriminator {
        a.family = "discriminator";
        EncoderActs::<B>::new(&mut a, discriminator, limits.tokens, None)?;
        RtdActs::<B>::new(&mut a, discriminator, head, limits.tokens)?;
    }
    a.family = "scratch";
    let largest = discriminator.map_or(generator, |(discriminator, _)| discriminator);
    Scratch::<B>::new(&mut a, [generator, largest], limits.tokens)?;
    // One is read while the other is written.
    DeviceBatch::<B>::new(&mut a, limits, discriminator.is_some())?;
    DeviceBatch::<B>::new(&mut a, limits, discriminator.is_some())?;
    Ok(MemoryPlan { entries: a.entries, limits })
}

/// What one training step of full batches asks of a GPU, counted by a device that only counts: kernels, and device memory
/// traffic with each operand of each kernel crossing the bus.
pub fn step_tally(
    generator: Checkpoint,
    discriminator: Option<Checkpoint>,
    options: Options,
    limits: BatchLimits,
    products: Products,
) -> Result<Tally> {
    let backend = Gpu::<Counter, half::bf16>::new(Counter::default()).with_products(products);
    let mut model = TokenDetection::with_options(backend, generator, discriminator, options)?;
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default())?;
    model.reserve(limits)?;
    model.backend().driver().take();
    model.step_forward(&full_batch(limits), Phase::Train { step: 1, row0: 0, divisor: 1.0 }, None)?;
    model.step_backward()?;
    optimizer.step(&mut model, 1e-4)?;
    Ok(model.backend().driver().take())
}

/// Sequences of equal length that fill the limits.
fn full_batch(limits: BatchLimits) -> Batch {
    let (n, b) = (limits.tokens, limits.sequences.max(1));
    let bounds: Vec<u32> = (0..=b).map(|s| (s * n / b) as u32).collect();
    let lengths = || bounds.windows(2).map(|w| w[1] - w[0]);
    Batch {
        ids: vec![0; n],
        masked_ids: vec![0; n],
        positions: lengths().flat_map(|len| 0..len).collect(),
        types: vec![0; n],
        key_len: lengths().collect(),
        masked_index: (0..limits.masked).map(|i| (i * n / limits.masked.max(1)) as u32).collect(),
        masked_weight: vec![1.0; limits.masked],
        rtd_weight: vec![1.0; n],
        masking: None,
        special: None,
        cu_seqlens: bounds,
    }
}
