//! Batches in the order of training, made ahead by a thread of their own.
//!
//! Sample number s (counted over the whole run) is place `order(epoch)[s mod places]` of the epoch s / places, where an
//! epoch has a place for each row, or for each visit to one in a mixture; its mask depends on (seed, step, slot)
//! alone. So a run continues exactly from its step number, and k ranks together would see what one sees.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use super::Batch;
use super::mask::MaskSpec;
use super::order::shuffled;
use super::pack::{Row, Rows};
use crate::rng::Philox;
use crate::{Error, Result};

/// Batches made ahead.
const AHEAD: usize = 4;
/// Held-out masks do not depend on the run's seed, so that runs can be compared.
const EVALUATION_SEED: u64 = 0;

/// What a step is made of.
#[derive(Clone, Copy, Debug)]
pub struct LoaderSpec {
    /// Rows of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Order and masks are functions of it.
    pub seed: u64,
    /// How rows are masked.
    pub mask: MaskSpec,
}

impl LoaderSpec {
    /// Micro-batch number `micro` of step `step` (both from 0).
    pub fn training_batch(&self, rows: &Rows, step: u64, micro: usize) -> Batch {
        let slots = micro * self.batch_size..(micro + 1) * self.batch_size;
        let first = step * (self.batch_size * self.micro_batches) as u64;
        let philox = Philox::new(self.seed);
        let items = slots.map(|slot| {
            let sample = first + slot as u64;
            let (epoch, at) = ((sample / rows.len() as u64) as u32, sample % rows.len() as u64);
            let place = shuffled(philox, rows.len() as u64, epoch, at) as usize;
            (rows.visit(epoch, place), slot as u32)
        });
        self.assemble(items, step as u32)
    }

    /// Rows by their numbers, with the same masks in every evaluation of every run.
    pub fn evaluation_batch(&self, rows: &Rows, numbers: impl Iterator<Item = usize>) -> Batch {
        let spec = Self { seed: EVALUATION_SEED, ..*self };
        spec.assemble(numbers.map(|row| (rows.row(row), row as u32)), 0)
    }

    fn assemble(&self, items: impl Iterator<Item = (Row, u32)>, step: u32) -> Batch {
        let philox = Philox::new(self.seed);
        let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
        for (row, slot) in items {
            let start = batch.ids.len();
            batch.masked_ids.extend_from_slice(&row.ids);
            for (position, shown) in self.mask.mask(philox, &row.ids, slot, step) {
                batch.masked_ids[start + position] = shown;
                batch.masked_index.push((start + position) as u32);
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

/// The training batches of a run, one after the other.
pub struct Loader {
    receiver: Option<Receiver<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// From step `start` (counted from 0) on, without end.
    pub fn new(rows: Arc<Rows>, spec: LoaderSpec, start: u64) -> Self {
        let (sender, receiver) = sync_channel(AHEAD);
        let thread = std::thread::spawn(move || {
            for step in start.. {
                for micro in 0..spec.micro_batches {
                    if sender.send(spec.training_batch(&rows, step, micro)).is_err() {
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
        batch.ok_or_else(|| {
            Error::config("the thread that reads the shards stopped: were they deleted or cut short?")
        })
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
