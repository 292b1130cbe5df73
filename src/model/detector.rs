//! A trained discriminator on its own: how likely is each token of a text to have been replaced?

use super::Options;
use super::acts::{EncoderActs, OnDevice, RtdActs};
use super::config::{Architecture, ElectraConfig};
use super::encoder::Encoder;
use super::hf::Checkpoint;
use super::params::{DISCRIMINATOR, ParamTable, Params};
use super::rows::{check_rows, upload_rows};
use super::rtd_head::RtdHead;
use crate::backend::{Backend, Float};
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
        let table = ParamTable::single(DISCRIMINATOR, &checkpoint.config, architecture);
        let initial = table.initial(&checkpoint, None, &Options::default());
        let encoder = Encoder::new(&table, &checkpoint.config, DISCRIMINATOR, Site::DISCRIMINATOR)?;
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
        check_rows(config, rows)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let backend = &self.backend;
        let (batch, step) = upload_rows(backend, rows, &[], true)?;
        let (n, mut a) = (step.tokens, OnDevice(backend));
        let mut hidden = EncoderActs::<B>::new(&mut a, config, n, None)?;
        let mut acts = RtdActs::<B>::new(&mut a, config, self.architecture, n)?;
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
