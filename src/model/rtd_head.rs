//! The discriminator's head: for every token, was it replaced? One logit after a dense layer (`ElectraForPreTraining`)
//! or two after dropout (`ElectraForTokenClassification`).

use super::acts::{DeviceBatch, EncoderActs, RtdActs, Scratch};
use super::config::Architecture;
use super::encoder::{Encoder, StepContext};
use super::linear::{Also, Behind, Linear};
use super::params::{ParamTable, Params};
use crate::Result;
use crate::backend::{Backend, Corrupt, Dropout, RtdLoss, Write};

/// Where its parameters lie.
#[derive(Clone, Debug)]
pub(super) struct RtdHead {
    /// The pre-training head's first layer.
    dense: Option<Linear>,
    last: Linear,
}

impl RtdHead {
    pub(super) fn new(table: &ParamTable, head: Architecture) -> Result<Self> {
        let name = "discriminator.discriminator_predictions";
        if head == Architecture::TokenClassification {
            return Ok(Self { dense: None, last: Linear::new(table, "discriminator.classifier")? });
        }
        let dense = Some(Linear::new(table, &format!("{name}.dense"))?);
        Ok(Self { dense, last: Linear::new(table, &format!("{name}.dense_prediction"))? })
    }

    /// Logits a token.
    pub(super) fn labels(&self) -> usize {
        self.last.outputs
    }

    fn dropout(&self, step: &StepContext, encoder: &Encoder) -> Dropout {
        let config = &encoder.config;
        step.dropout(config.classifier_dropout.unwrap_or(config.hidden_dropout_prob), encoder.head_site())
    }

    /// The discriminator's input, from the samples (M).
    pub(super) fn corrupt<B: Backend>(
        &self,
        backend: &B,
        (n, m): (usize, usize),
        batch: &DeviceBatch<B>,
        sampled: &B::Buf<u32>,
        acts: &mut RtdActs<B>,
    ) -> Result<()> {
        backend.corrupt(Corrupt {
            ids: B::slice(&batch.ids, 0..n),
            masked_index: B::slice(&batch.masked_index, 0..m),
            sampled: B::slice(sampled, 0..m),
            corrupted: B::slice_mut(&mut acts.corrupted, 0..n),
            is_fake: B::slice_mut(&mut acts.is_fake, 0..n),
        })
    }

    /// Logits, losses and the logits' gradient, multiplied by `scale`.
    #[allow(clippy::too_many_arguments)] // context, parameters and data of the pass
    pub(super) fn forward<B: Backend>(
        &self,
        backend: &B,
        params: &Params<B>,
        step: &StepContext,
        batch: &DeviceBatch<B>,
        encoder: &Encoder,
        hidden: &EncoderActs<B>,
        scale: f64,
        acts: &mut RtdActs<B>,
    ) -> Result<()> {
        let (n, c, labels) = (step.tokens, self.last.inputs, self.labels());
        match &self.dense {
            Some(dense) => {
                let activation = Some((encoder.config.hidden_act, &mut acts.pre));
                dense.forward(backend, params, n, hidden.output(), activation, &mut acts.inp)?;
            }
            None => {
                let (inp, out) = (B::slice(hidden.output(), 0..n * c), B::slice_mut(&mut acts.inp, 0..n * c));
                backend.dropout(c, self.dropout(step, encoder), inp, out)?;
            }
        }
        self.last.forward(backend, params, n, &acts.inp, None, &mut acts.logits)?;
        backend.rtd_loss(RtdLoss {
            labels,
            is_fake: B::slice(&acts.is_fake, 0..n),
            weight: B::slice(&batch.rtd_weight, 0..n),
            scale,
            logits: B::slice(&acts.logits, 0..n * labels),
            nll: B::slice_mut(&mut acts.nll, 0..n),
            dlogits: B::slice_mut(&mut acts.dlogits, 0..n * labels),
        })
    }

    /// Leaves the gradient of the encoder's output in `scratch.dy`.
    #[allow(clippy::too_many_arguments)] // context, parameters and data of the pass
    pub(super) fn backward<B: Backend>(
        &self,
        backend: &B,
        params: &mut Params<B>,
        step: &StepContext,
        encoder: &Encoder,
        hidden: &EncoderActs<B>,
        acts: &mut RtdActs<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (n, c) = (step.tokens, self.last.inputs);
        let activation = encoder.config.hidden_act;
        let before =
            self.dense.as_ref().map(|linear| Behind { linear, activation, pre: &acts.pre, act: None });
        let (also, dinp) = (Also { before, ..Also::parameters(&acts.inp) }, (Write::Set, &mut scratch.dx));
        self.last.backward(backend, params, n, also, &mut acts.dlogits, dinp)?;
        match &self.dense {
            Some(dense) => {
                let also = Also { bias: false, ..Also::parameters(hidden.output()) };
                let dinp = (Write::Set, &mut scratch.dy);
                dense.backward(backend, params, n, also, &mut scratch.dx, dinp)
            }
            None => {
                let (dout, dinp) = (B::slice(&scratch.dx, 0..n * c), B::slice_mut(&mut scratch.dy, 0..n * c));
                backend.dropout(c, self.dropout(step, encoder), dout, dinp)
            }
        }
    }
}
