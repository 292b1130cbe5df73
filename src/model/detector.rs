//! A trained discriminator on its own: how likely is each token of a text to have been replaced?

use super::Options;
use super::acts::{BatchLimits, DeviceBatch, EncoderActs, OnDevice, RtdActs};
use super::config::{Architecture, ElectraConfig};
use super::encoder::{Encoder, StepContext};
use super::hf::Checkpoint;
use super::params::{ParamTable, Params};
use super::rtd_head::RtdHead;
use crate::backend::{Backend, Dropout, Float};
use crate::rng::Site;
use crate::{Error, Result};

/// Inference with a discriminator.
pub struct Discriminator<B: Backend> {
    backend: B,
    params: Params<B>,
    encoder: Encoder,
    head: RtdHead,
    architecture: Architecture,
}

impl<B: Backend> Discriminator<B> {
    /// Takes an `ElectraForPreTraining` or a two-label `ElectraForTokenClassification`.
    pub fn load(backend: B, checkpoint: Checkpoint) -> Result<Self> {
        let architecture = checkpoint.architecture;
        if architecture == Architecture::MaskedLm {
            return Err(Error::config(
                "this is a generator (ElectraForMaskedLM); detecting needs a discriminator",
            ));
        }
        checkpoint.config.validate()?;
        let table = ParamTable::discriminator(&checkpoint.config, architecture)?;
        let initial = table.initial(&checkpoint, &checkpoint, &Options::default());
        let encoder = Encoder::new(&table, &checkpoint.config, "discriminator.", Site::DISCRIMINATOR)?;
        let head = RtdHead::new(&table, architecture)?;
        let params = Params::new(&backend, table, &initial)?;
        Ok(Self { backend, params, encoder, head, architecture })
    }

    /// Its configuration.
    pub fn config(&self) -> &ElectraConfig {
        &self.encoder.config
    }

    /// Probability of each token to be replaced, row by row. Rows hold token ids with their special tokens, and may
    /// be no longer than the model's positions.
    pub fn probabilities(&mut self, rows: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let config = &self.encoder.config;
        for (i, row) in rows.iter().enumerate() {
            if row.is_empty() || row.len() > config.max_position_embeddings {
                let (len, limit) = (row.len(), config.max_position_embeddings);
                return Err(Error::argument(format!(
                    "row {i} has {len} tokens; the model takes 1 to {limit}"
                )));
            }
            if let Some(id) = row.iter().find(|&&id| id as usize >= config.vocab_size) {
                let vocabulary = config.vocab_size;
                return Err(Error::argument(format!(
                    "token {id} is outside the vocabulary of {vocabulary} tokens"
                )));
            }
        }
        let ids: Vec<u32> = rows.concat();
        let n = ids.len();
        if n == 0 {
            return Ok(Vec::new());
        }
        let limits = BatchLimits { tokens: n, sequences: rows.len(), masked: 0 };
        let mut a = OnDevice(&self.backend);
        let mut batch = DeviceBatch::<B>::new(&mut a, limits)?;
        let mut hidden = EncoderActs::<B>::new(&mut a, config, n, None)?;
        let mut acts = RtdActs::<B>::new(&mut a, config, self.architecture, n)?;
        let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
        let lengths: Vec<u32> = rows.iter().map(|row| row.len() as u32).collect();
        let mut bounds = vec![0];
        bounds.extend(lengths.iter().scan(0, |end, &len| {
            *end += len;
            Some(*end)
        }));
        let backend = &self.backend;
        backend.upload(&ids, B::slice_mut(&mut batch.ids, 0..n))?;
        backend.upload(&positions, B::slice_mut(&mut batch.positions, 0..n))?;
        backend.upload(&bounds, B::slice_mut(&mut batch.cu_seqlens, 0..rows.len() + 1))?;
        backend.upload(&lengths, B::slice_mut(&mut batch.key_len, 0..rows.len()))?;
        let max_seqlen = rows.iter().map(Vec::len).max().unwrap_or(0);
        let step = StepContext {
            noise: Dropout::OFF,
            training: false,
            tokens: n,
            masked: 0,
            sequences: rows.len(),
            max_seqlen,
        };
        self.encoder.forward(backend, &self.params, &step, &batch, &batch.ids, &mut hidden)?;
        self.head.forward(backend, &self.params, &step, &batch, &self.encoder, &hidden, 0.0, &mut acts)?;
        let logits = backend.download(B::slice(&acts.logits, 0..n * self.head.labels()))?;
        let mut probabilities = logits.chunks(self.head.labels()).map(|x| {
            let logit = if let [real, fake] = x { fake.to_f64() - real.to_f64() } else { x[0].to_f64() };
            (1.0 / (1.0 + (-logit).exp())) as f32
        });
        Ok(rows.iter().map(|row| probabilities.by_ref().take(row.len()).collect()).collect())
    }
}
