//! Batches in the order of training, made ahead by a thread of their own.
//!
//! An epoch has a place for each row, or for each visit to one in a mixture, and an order of its own.
//! Which places of which epoch a step takes is a function of its number ([`Batching`]), and the mask of a
//! row depends on (seed, step, slot) alone. So a run continues exactly from its step number, and k ranks
//! together would see what one sees.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::mask::MaskSpec;
use super::order::shuffled;
use super::pack::{Row, Rows};
use super::{Batch, Masking};
use crate::rng::Philox;
use crate::{Error, Result};

/// Batches made ahead.
const AHEAD: usize = 4;
/// Held-out masks do not depend on the run's seed, so that runs can be compared.
const EVALUATION_SEED: u64 = 0;

/// What batches are at the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// As in google-research/electra, which repeats its data without end: every batch is full, and may
    /// hold the last rows of one epoch and the first of the next.
    Continuous,
    /// As in the Trainer of `transformers`: an epoch of n rows has ceil(n / `batch_size`) batches, the last
    /// of which may be short. A step takes as many of them as it has micro-batches; the last step of an
    /// epoch takes those that are left.
    ///
    /// The loss of a step is the mean of the losses of its batches, each of which is the mean over its
    /// rows. Where a batch is computed in parts, each part is weighted by its rows; where several batches
    /// are computed at a time, all their rows have the same weight.
    PerEpoch {
        /// Rows of a full batch.
        batch_size: usize,
    },
}

/// What a step is made of.
#[derive(Clone, Copy, Debug)]
pub struct LoaderSpec {
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a full step.
    pub micro_batches: usize,
    /// What happens at the end of an epoch.
    pub batching: Batching,
    /// Order and masks are functions of it.
    pub seed: u64,
    /// How rows are masked.
    pub mask: MaskSpec,
    /// Whether training batches are masked where the model computes, and all have the same sizes.
    pub on_device: bool,
}

impl LoaderSpec {
    /// Micro-batch number `micro` of step `step` (both from 0).
    pub fn training_batch(&self, rows: &Rows, step: u64, micro: usize) -> Batch {
        let places = self.training_rows(rows.len(), step, micro);
        let items = places.map(|(epoch, place, slot)| (rows.visit(epoch, place), slot));
        let mut batch = self.assemble(items, step as u32);
        if self.on_device {
            self.even_out(&mut batch);
        }
        batch
    }

    /// The same, or an error if a shard it is read from was cut short meanwhile.
    pub fn checked_batch(&self, rows: &Rows, step: u64, micro: usize) -> Result<Batch> {
        let mut places = self.training_rows(rows.len(), step, micro);
        places.try_for_each(|(epoch, place, _)| rows.check(epoch, place))?;
        Ok(self.training_batch(rows, step, micro))
    }

    /// Rows of a full step.
    fn rows_per_step(&self) -> usize {
        self.batch_size * self.micro_batches
    }

    /// The index of the first sample of step `step` among all samples of the run, and the number of rows of
    /// the step, for an epoch of `len` places.
    fn samples(&self, len: usize, step: u64) -> (u64, usize) {
        let full = self.rows_per_step();
        match self.batching {
            Batching::Continuous => (step * full as u64, full),
            Batching::PerEpoch { .. } => {
                let steps = len.div_ceil(full) as u64;
                let (epoch, before) = (step / steps, (step % steps) as usize * full);
                (epoch * len as u64 + before as u64, full.min(len - before))
            }
        }
    }

    /// The number of micro-batches of step `step`, for an epoch of `len` places.
    pub fn micro_batches_of(&self, len: usize, step: u64) -> usize {
        self.samples(len, step).1.div_ceil(self.batch_size)
    }

    /// What the mean loss of a micro-batch is divided by in the loss of its step: the number of
    /// micro-batches, where all have the same weight.
    pub fn loss_divisor(&self, len: usize, step: u64, micro: usize) -> f64 {
        let Batching::PerEpoch { batch_size } = self.batching else { return self.micro_batches as f64 };
        let (_, rows) = self.samples(len, step);
        let (first, end) = (micro * self.batch_size, rows.min((micro + 1) * self.batch_size));
        // Sums of integers or of a few quotients: exact where the micro-batches are whole batches.
        let weight = |batch: usize| {
            let (from, to) = (batch * batch_size, rows.min((batch + 1) * batch_size));
            let here = end.min(to) - first.max(from);
            (here * batch_size) as f64 / (to - from) as f64
        };
        let here: f64 = (first / batch_size..end.div_ceil(batch_size)).map(weight).sum();
        (rows.div_ceil(batch_size) * batch_size) as f64 / here
    }

    /// Epoch, place and slot of each sample of a micro-batch, out of `len` places.
    fn training_rows(&self, len: usize, step: u64, micro: usize) -> impl Iterator<Item = (u32, usize, u32)> {
        let (first, rows) = self.samples(len, step);
        let slots = rows.min(micro * self.batch_size)..rows.min((micro + 1) * self.batch_size);
        let (philox, len) = (Philox::new(self.seed), len as u64);
        slots.map(move |slot| {
            let sample = first + slot as u64;
            let (epoch, at) = ((sample / len) as u32, sample % len);
            (epoch, shuffled(philox, len, epoch, at) as usize, slot as u32)
        })
    }

    /// Rows by their numbers, with the same masks in every evaluation of every run.
    pub fn evaluation_batch(&self, rows: &Rows, numbers: impl Iterator<Item = usize>) -> Batch {
        let spec = Self { seed: EVALUATION_SEED, on_device: false, ..*self };
        spec.assemble(numbers.map(|row| (rows.row(row), row as u32)), 0)
    }

    fn assemble(&self, items: impl Iterator<Item = (Row, u32)>, step: u32) -> Batch {
        let philox = Philox::new(self.seed);
        let special = Some(self.mask.special_ids());
        let mut batch = Batch { cu_seqlens: vec![0], special, ..Batch::default() };
        let most = self.mask.most(self.batch_size);
        for (row, slot) in items {
            let start = batch.ids.len();
            if self.on_device {
                let slot0 = batch.masking.map_or(slot, |masking| masking.slot0);
                batch.masking = Some(Masking { spec: self.mask, rng: philox, slot0, slots: most });
            } else {
                batch.masked_ids.extend_from_slice(&row.ids);
                let room = most - batch.masked_index.len();
                for (position, shown) in self.mask.mask(philox, &row.ids, slot, step).into_iter().take(room) {
                    batch.masked_ids[start + position] = shown;
                    batch.masked_index.push((start + position) as u32);
                }
            }
            batch.positions.extend(0..row.ids.len() as u32);
            batch.key_len.push(row.ids.len() as u32);
            batch.ids.extend(row.ids);
            batch.types.extend(row.types);
            batch.cu_seqlens.push(batch.ids.len() as u32);
        }
        batch.masked_weight = vec![1.0; batch.masked_index.len()];
        batch.rtd_weight = vec![1.0; batch.ids.len()];
        batch
    }
}

impl LoaderSpec {
    /// Fills a batch with sequences of padding that count nowhere, so that all batches have the same number
    /// of tokens and, whatever their rows, one of two numbers of sequences: a step that was recorded for one
    /// batch can be replayed for others. A batch of full rows gets `batch_size` sequences, any other twice
    /// as many.
    fn even_out(&self, batch: &mut Batch) {
        let seq_len = self.mask.seq_len;
        let total = self.batch_size * seq_len;
        let rows = batch.sequences();
        let sequences = if batch.ids.len() == rows * seq_len { self.batch_size } else { 2 * self.batch_size };
        for _ in rows..sequences {
            let len = (total - batch.ids.len()).min(seq_len);
            batch.positions.extend(0..len as u32);
            batch.ids.resize(batch.ids.len() + len, self.mask.special.pad);
            // Every query needs a key.
            batch.key_len.push(len.min(1) as u32);
            batch.cu_seqlens.push(batch.ids.len() as u32);
        }
        batch.types.resize(total, 0);
        batch.rtd_weight.resize(total, 0.0);
    }
}

/// The training batches of a run, one after the other.
pub struct Loader {
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// From step `start` (counted from 0) on, without end.
    pub fn new(rows: Arc<Rows>, spec: LoaderSpec, start: u64) -> Self {
        let (sender, receiver) = sync_channel(AHEAD);
        let thread = std::thread::spawn(move || {
            for step in start.. {
                for micro in 0..spec.micro_batches_of(rows.len(), step) {
                    let batch = spec.checked_batch(&rows, step, micro);
                    let failed = batch.is_err();
                    if sender.send(batch).is_err() || failed {
                        return;
                    }
                }
            }
        });
        Self { receiver: Some(receiver), thread: Some(thread) }
    }

    /// The next micro-batch.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let batch = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        batch.ok_or_else(|| Error::run("the thread that reads the shards stopped"))?
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // The thread ends when it finds the channel closed.
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
