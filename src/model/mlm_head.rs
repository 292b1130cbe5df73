//! The generator's head at the masked positions, which alone the encoder has left: dense + GELU + LayerNorm, decoder tied
//! to the word embeddings, loss and sample.

use super::acts::{DeviceBatch, EncoderActs, MlmActs, Scratch};
use super::config::Activation;
use super::encoder::Encoder;
use super::linear::{Also, Linear};
use super::norm::{Norm, Rows};
use super::params::{ParamTable, Params, VOCABULARY_ROWS};
use crate::Result;
use crate::backend::{Backend, Dropout, MlmLoss, Write};

/// Where its parameters lie.
#[derive(Clone, Debug)]
pub(super) struct MlmHead {
    transform: Linear,
    norm: Norm,
    decoder: Linear,
    vocabulary: usize,
}

/// How the generator is sampled from.
#[derive(Clone, Copy)]
pub(super) struct Sampling {
    pub(super) temperature: f64,
    pub(super) disallow_correct: bool,
    pub(super) noise: Dropout,
    /// Multiplies the loss in the gradient.
    pub(super) scale: f64,
    /// Whether samples are drawn; else those already in place are kept, or there are none.
    pub(super) draw: bool,
    /// Whether the logits become their gradient.
    pub(super) gradient: bool,
}

impl MlmHead {
    /// `prefix` is what the names of its parameters begin with.
    pub(super) fn new<B: Backend>(table: &ParamTable, encoder: &Encoder, prefix: &str) -> Result<Self> {
        let config = &encoder.config;
        // As wide as rows of logits are apart: libraries multiply such sizes faster than any vocabulary. Behind the last token parameters and
        // the logits' gradient are 0.
        let (inputs, outputs) = (config.embedding_size, B::pitch(config.vocab_size));
        debug_assert!(
            outputs <= config.vocab_size.next_multiple_of(VOCABULARY_ROWS),
            "rows behind the last token"
        );
        let (weight, bias) =
            (encoder.word().start, table.range(&format!("{prefix}generator_lm_head.bias"))?.start);
        let decoder = Linear {
            weight: weight..weight + outputs * inputs,
            bias: bias..bias + outputs,
            inputs,
            outputs,
            pitch: outputs,
        };
        let name = format!("{prefix}generator_predictions");
        Ok(Self {
            transform: Linear::new(table, &format!("{name}.dense"))?,
            norm: Norm::new(table, &name, config.layer_norm_eps)?,
            decoder,
            vocabulary: config.vocab_size,
        })
    }

    /// Logits of the M masked rows, in `acts.logits`.
    pub(super) fn forward<B: Backend>(
        &self,
        backend: &B,
        params: &Params<B>,
        m: usize,
        encoder: &EncoderActs<B>,
        acts: &mut MlmActs<B>,
    ) -> Result<()> {
        let activation = Some((Activation::Gelu, &mut acts.pre));
        self.transform.forward(backend, params, m, encoder.output(), activation, &mut acts.h)?;
        self.norm.forward(
            backend,
            params,
            Rows::first(m),
            &mut acts.h,
            None,
            Dropout::OFF,
            &mut acts.y,
            &mut acts.stats,
        )?;
        self.decoder.forward(backend, params, m, &acts.y, None, &mut acts.logits)
    }

    /// Loss, samples, and the logits' gradient in their place.
    pub(super) fn loss<B: Backend>(
        &self,
        backend: &B,
        m: usize,
        batch: &DeviceBatch<B>,
        sampling: Sampling,
        acts: &mut MlmActs<B>,
    ) -> Result<()> {
        backend.mlm_loss(MlmLoss {
            vocabulary: self.vocabulary,
            targets: B::slice(&batch.targets, 0..m),
            masked_index: B::slice(&batch.masked_index, 0..m),
            weight: B::slice(&batch.mlm_weight, 0..m),
            scale: sampling.scale,
            temperature: sampling.temperature,
            disallow_correct: sampling.disallow_correct,
            noise: sampling.noise,
            gradient: sampling.gradient,
            logits: B::slice_mut(&mut acts.logits, 0..m * self.decoder.pitch),
            pitch: self.decoder.pitch,
            nll: B::slice_mut(&mut acts.nll, 0..m),
            best: B::slice_mut(&mut acts.best, 0..m),
            sampled: sampling.draw.then(|| B::slice_mut(&mut acts.sampled, 0..m)),
        })
    }

    /// Leaves the gradient of the encoder's output, masked rows alone, in `scratch.dy`.
    pub(super) fn backward<B: Backend>(
        &self,
        backend: &B,
        params: &mut Params<B>,
        m: usize,
        encoder: &EncoderActs<B>,
        acts: &mut MlmActs<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        self.decoder.backward(
            backend,
            params,
            m,
            Also::parameters(&acts.y),
            &mut acts.logits,
            (Write::Set, &mut acts.dy),
        )?;
        let (stats, dy) = (&acts.stats, &acts.dy);
        let rows = Rows::first(m);
        self.norm.backward(
            backend,
            params,
            rows,
            &acts.h,
            stats,
            Dropout::OFF,
            dy,
            &mut acts.dh,
            None,
            None,
        )?;
        let also =
            Also { activation: Some((Activation::Gelu, &acts.pre)), ..Also::parameters(encoder.output()) };
        let dinp = (Write::Set, &mut scratch.dy);
        self.transform.backward(backend, params, m, also, &mut acts.dh, dinp)
    }
}
