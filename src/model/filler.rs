//! A trained masked language model on its own: which tokens does it expect where a text has a mask?

use super::Options;
use super::acts::{EncoderActs, MlmActs, OnDevice};
use super::config::{Architecture, ElectraConfig};
use super::encoder::Encoder;
use super::hf::Checkpoint;
use super::mlm_head::MlmHead;
use super::params::{MODEL, ParamTable, Params};
use super::rows::{check_rows, upload_rows};
use crate::backend::{Backend, Float};
use crate::rng::Site;
use crate::{Error, Result};

/// Inference with a generator or another masked language model.
pub struct Filler<B: Backend> {
    backend: B,
    params: Params<B>,
    encoder: Encoder,
    head: MlmHead,
}

/// A token that may stand at a masked position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its probability among all tokens of the vocabulary.
    pub probability: f64,
}

impl<B: Backend> Filler<B> {
    /// Takes an `ElectraForMaskedLM`.
    pub fn load(backend: B, checkpoint: Checkpoint) -> Result<Self> {
        if checkpoint.architecture != Architecture::MaskedLm {
            return Err(Error::config(format!(
                "this is a discriminator ({}); filling masks needs a generator or another \
                 ElectraForMaskedLM",
                checkpoint.architecture.class_name()
            )));
        }
        checkpoint.config.validate()?;
        let table = ParamTable::single(MODEL, &checkpoint.config, Architecture::MaskedLm);
        let initial = table.initial(&checkpoint, None, &Options::default());
        let encoder = Encoder::new(&table, &checkpoint.config, MODEL, Site::GENERATOR)?;
        let head = MlmHead::new::<B>(&table, &encoder, MODEL)?;
        let params = Params::new(&backend, table, &initial)?;
        Ok(Self { backend, params, encoder, head })
    }

    /// Its configuration.
    pub fn config(&self) -> &ElectraConfig {
        &self.encoder.config
    }

    /// The `top` most probable tokens at every position of every row that holds the token `mask`,
    /// the most probable first. Rows hold token ids with their special tokens, and may be no longer
    /// than the model's positions.
    pub fn fill(&mut self, rows: &[Vec<u32>], mask: u32, top: usize) -> Result<Vec<Vec<Vec<Candidate>>>> {
        check_rows(&self.encoder.config, rows)?;
        let count = |row: &Vec<u32>| row.iter().filter(|&&id| id == mask).count();
        let masked: Vec<u32> =
            (0..).zip(rows.iter().flatten()).filter(|&(_, &id)| id == mask).map(|(i, _)| i).collect();
        let m = masked.len();
        if m == 0 {
            return Ok(vec![Vec::new(); rows.len()]);
        }
        let (backend, config) = (&self.backend, &self.encoder.config);
        let (batch, step) = upload_rows(backend, rows, &masked, false)?;
        let mut a = OnDevice(backend);
        let mut hidden = EncoderActs::<B>::new(&mut a, config, step.tokens, Some(m))?;
        let mut acts = MlmActs::<B>::new(&mut a, config, m)?;
        self.encoder.forward(backend, &self.params, &step, &batch, &batch.ids, &mut hidden)?;
        self.head.forward(backend, &self.params, m, &hidden, &mut acts)?;
        let pitch = B::pitch(config.vocab_size);
        let logits = backend.download(B::slice(&acts.logits, 0..m * pitch))?;
        let mut filled = logits.chunks(pitch).map(|row| {
            let logits: Vec<f64> = row[..config.vocab_size].iter().map(|x| x.to_f64()).collect();
            best(&logits, top)
        });
        Ok(rows.iter().map(|row| filled.by_ref().take(count(row)).collect()).collect())
    }
}

/// The `top` largest of softmax(logits); of equal ones the lower id comes first.
fn best(logits: &[f64], top: usize) -> Vec<Candidate> {
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| (x - highest).exp()).sum();
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let candidate = |id: u32| Candidate { id, probability: (logits[id as usize] - highest).exp() / total };
    ids.into_iter().take(top).map(candidate).collect()
}
