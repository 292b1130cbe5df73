//! The joint model: what it is made of, and what `transformers` and txtai call on theirs;
//! [`pass`](super::pass) holds its passes.
//!
//! **A masked language model alone** ([`Objective::Mlm`](super::Objective)) is the same model without
//! its second half: what trains a generator is what trains BERT, step for step, so it needs neither a
//! second type nor a second pass. The discriminator is a part that may be absent; where it is, nothing
//! of it is held in memory or computed, no samples are drawn, and everything that runs a model (staging,
//! recorded steps, the optimizer, checkpoints, evaluation) is one piece of code. The alternative, a
//! trait with two implementations that the trainer is generic over, would repeat all of that around a
//! pass of which one half is common.

use std::path::Path;

use super::config::{Architecture, ElectraConfig};
use super::encoder::Encoder;
use super::hf::{Checkpoint, HostTensor};
use super::input::PaddedInput;
use super::mlm_head::MlmHead;
use super::params::{DISCRIMINATOR, GENERATOR, MODEL, ParamTable, Params};
use super::pass::{Activations, Held, Measured, Staged};
use super::rtd_head::RtdHead;
use super::{Flavour, Options, Share};
use crate::backend::{Backend, Cpu, Float};
use crate::data::tokenizer::Tokenizer;
use crate::rng::Site;
use crate::{Error, Result};

/// Whether a pass trains, and where its random numbers come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    /// Dropout on.
    Train {
        /// Optimizer step.
        step: u32,
        /// Number of this micro-batch's first token among all tokens of the step.
        row0: u32,
        /// The loss is divided by it in the gradients: the number of the step's micro-batches, if
        /// all of them have the same weight.
        divisor: f64,
    },
    /// Dropout off; samples are still drawn.
    Eval {
        /// Selects the noise.
        step: u32,
    },
}

/// What one step shows for metrics.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// gen_weight · gen_loss + disc_weight · disc_loss.
    pub loss: f64,
    /// Mean cross-entropy at the masked positions.
    pub gen_loss: f64,
    /// Mean loss of the discriminator; 0 without one.
    pub disc_loss: f64,
    /// (M) whether the generator's most probable token is the original.
    pub gen_correct: Vec<bool>,
    /// (M) the generator's samples; empty without a discriminator, as the next two.
    pub sampled_ids: Vec<u32>,
    /// (N) log-odds that the token was replaced.
    pub disc_logits: Vec<f32>,
    /// (N) whether it was.
    pub is_fake: Vec<bool>,
}

/// What [`TokenDetection::forward`] returns, in the caller's padded layout. Without a discriminator its
/// loss is 0, and what else is its own is empty.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// gen_weight · gen_loss + disc_weight · disc_loss.
    pub loss: f64,
    /// Generator loss.
    pub gen_loss: f64,
    /// Discriminator loss.
    pub disc_loss: f64,
    /// (M, V) logits at the masked positions, ascending.
    pub gen_logits: Vec<f64>,
    /// (B, T) or (B, T, 2); 0 at padded positions that were not computed.
    pub disc_logits: Vec<f64>,
    /// Logits a token in `disc_logits`: 1 or 2.
    pub disc_labels: usize,
    /// (M) the generator's samples.
    pub sampled_ids: Vec<i64>,
    /// (B, T) the discriminator's labels: 1 where a sample differs from the original.
    pub is_fake: Vec<i64>,
}

/// The half of the joint model that finds replaced tokens.
pub(super) struct Discriminating {
    pub(super) encoder: Encoder,
    pub(super) rtd: RtdHead,
    pub(super) head: Architecture,
}

/// Generator and discriminator trained together, or a masked language model trained alone.
pub struct TokenDetection<B: Backend> {
    pub(super) backend: B,
    pub(super) options: Options,
    pub(super) params: Params<B>,
    /// The generator, or the masked language model that is trained alone.
    pub(super) generator: Encoder,
    pub(super) mlm: MlmHead,
    pub(super) discriminator: Option<Discriminating>,
    tokenizer: Option<Tokenizer>,
    pub(super) acts: Option<Activations<B>>,
    pub(super) staged: Option<Staged>,
    /// The slot of the next batch that is staged.
    pub(super) next_slot: usize,
    pub(super) held: Option<Held>,
    pub(super) measured: Measured<B>,
    pub(super) logits: Option<Vec<f64>>,
}

impl TokenDetection<Cpu<f32>> {
    /// A pair on the CPU with txtai's details: `weight` multiplies the discriminator's loss (txtai's default is
    /// 50.0), word embeddings are shared where their sizes agree. The tokenizer is saved with the
    /// models, whose token ids are set to its own.
    pub fn new(
        mut generator: Checkpoint,
        mut discriminator: Checkpoint,
        tokenizer: Option<Tokenizer>,
        weight: f64,
    ) -> Result<Self> {
        if let Some(tokenizer) = &tokenizer {
            generator.config.align_token_ids(tokenizer);
            discriminator.config.align_token_ids(tokenizer);
        }
        let sizes = |c: &Checkpoint| (c.config.vocab_size, c.config.embedding_size);
        let share = if sizes(&generator) == sizes(&discriminator) { Share::Word } else { Share::None };
        let options = Options { flavour: Flavour::Txtai, share, disc_weight: weight, ..Options::default() };
        let mut model = Self::with_options(Cpu::new(), generator, discriminator, options)?;
        model.tokenizer = tokenizer;
        Ok(model)
    }
}

impl<B: Backend> TokenDetection<B> {
    /// A pair on any backend, or without a discriminator a masked language model alone, of which all
    /// options but the weight of its loss, the flavour and the seed are without meaning. Errors if the
    /// architectures are not a generator's and a discriminator's, if shared tensors do not fit, or if the
    /// vocabularies differ.
    pub fn with_options(
        backend: B,
        generator: Checkpoint,
        discriminator: impl Into<Option<Checkpoint>>,
        options: Options,
    ) -> Result<Self> {
        let discriminator = discriminator.into();
        if generator.architecture != Architecture::MaskedLm {
            let what = if discriminator.is_some() { "generator" } else { "masked language model" };
            return Err(Error::config(format!("the {what} must be an ElectraForMaskedLM")));
        }
        generator.config.validate()?;
        if let Some(discriminator) = &discriminator {
            check_pair(&generator.config, discriminator, &options)?;
        }
        let head = discriminator.as_ref().map(|d| (&d.config, d.architecture));
        let table = ParamTable::new(&generator.config, head, options.share)?;
        let initial = table.initial(&generator, discriminator.as_ref(), &options);
        let prefix = if discriminator.is_some() { GENERATOR } else { MODEL };
        let generator = Encoder::new(&table, &generator.config, prefix, Site::GENERATOR)?;
        let mlm = MlmHead::new::<B>(&table, &generator, prefix)?;
        let discriminating = |(config, head): (&ElectraConfig, Architecture)| -> Result<_> {
            let encoder = Encoder::new(&table, config, DISCRIMINATOR, Site::DISCRIMINATOR)?;
            Ok(Discriminating { encoder, rtd: RtdHead::new(&table, head)?, head })
        };
        let discriminator = head.map(discriminating).transpose()?;
        let params = Params::new(&backend, table, &initial)?;
        let measured = Measured::new(&backend)?;
        Ok(Self {
            backend,
            options,
            params,
            generator,
            mlm,
            discriminator,
            tokenizer: None,
            acts: None,
            staged: None,
            next_slot: 0,
            held: None,
            measured,
            logits: None,
        })
    }

    /// The objective on padded rows, dropout off, as `transformers` models and txtai's `TokenDetection` compute it.
    /// Rows are unpadded on entry; where labels are [`IGNORE`](super::IGNORE) nothing is masked.
    pub fn forward(&mut self, input: &PaddedInput) -> Result<Output> {
        let head = self.discriminator.as_ref().map_or(Architecture::MaskedLm, |d| d.head);
        let [ours, theirs] = self.configs();
        let packed = input.pack(head, ours, theirs)?;
        self.run(&packed.batch, Phase::Eval { step: 0 }, packed.sampled.as_deref(), true, true)?;
        let step = self.read_step()?;
        let Some(acts) = &self.acts else { return Err(Error::argument("there is no forward pass to read")) };
        let mut output = Output {
            loss: step.loss,
            gen_loss: step.gen_loss,
            disc_loss: step.disc_loss,
            gen_logits: self.logits.take().unwrap_or_default(),
            sampled_ids: step.sampled_ids.into_iter().map(i64::from).collect(),
            ..Output::default()
        };
        if let (Some(discriminator), Some(acts)) = (&self.discriminator, &acts.discriminator) {
            let labels = discriminator.rtd.labels();
            let n = packed.batch.tokens();
            let logits = self.backend.download(B::slice(&acts.rtd.logits, 0..n * labels))?;
            let size = input.batch * input.seq_len;
            (output.disc_logits, output.is_fake) = (vec![0.0; size * labels], vec![0; size]);
            output.disc_labels = labels;
            for (i, &flat) in packed.origin.iter().enumerate() {
                output.is_fake[flat] = i64::from(step.is_fake[i]);
                for label in 0..labels {
                    output.disc_logits[flat * labels + label] = logits[i * labels + label].to_f64();
                }
            }
        }
        Ok(output)
    }

    /// Adds the gradients of [`Self::forward`]'s loss to every parameter's.
    pub fn backward(&mut self) -> Result<()> {
        self.step_backward()
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) -> Result<()> {
        let len = self.params.table.len();
        self.backend.zero(B::slice_mut(&mut self.params.grads, 0..len))
    }

    /// Gradients as `generator.<name>` and `discriminator.<name>`, or `model.<name>`; a shared parameter's once, under its generator name.
    pub fn named_gradients(&self) -> Result<Vec<(String, HostTensor)>> {
        let flat = self.params.host(&self.backend, &self.params.grads)?;
        let tensor = |spec: &super::TensorSpec| {
            (spec.name.clone(), HostTensor { shape: spec.shape.clone(), data: flat[spec.range()].to_vec() })
        };
        Ok(self.params.table.specs().iter().map(tensor).collect())
    }

    /// The sizes of both networks; of a masked language model alone twice its own.
    pub(super) fn configs(&self) -> [&ElectraConfig; 2] {
        let ours = &self.generator.config;
        [ours, self.discriminator.as_ref().map_or(ours, |d| &d.encoder.config)]
    }

    /// Whether it is a masked language model alone.
    pub fn is_masked_lm(&self) -> bool {
        self.discriminator.is_none()
    }

    /// Parameters, each once.
    pub fn parameter_count(&self) -> usize {
        self.params.table.parameter_count()
    }

    /// The table of all parameters.
    pub fn table(&self) -> &ParamTable {
        &self.params.table
    }

    /// The flat master weights, for the trainer's state.
    pub fn flat_weights(&self) -> Result<Vec<f32>> {
        self.params.host(&self.backend, &self.params.master)
    }

    /// Takes back what [`Self::flat_weights`] gave.
    pub fn load_flat_weights(&mut self, flat: &[f32]) -> Result<()> {
        self.params.load(&self.backend, flat)
    }

    /// The networks as checkpoints, each with the name of its directory: `generator` and
    /// `discriminator`, shared tensors in full in both, or `model`.
    pub fn checkpoints(&self) -> Result<Vec<(&'static str, Checkpoint)>> {
        let flat = self.flat_weights()?;
        let pack = |encoder: &Encoder, architecture, prefix: &'static str| {
            let config = encoder.config.clone();
            let tensors = self.params.tensors(&flat, prefix);
            (prefix.trim_end_matches('.'), Checkpoint { config, architecture, tensors })
        };
        let masked_lm = |prefix| pack(&self.generator, Architecture::MaskedLm, prefix);
        Ok(match &self.discriminator {
            Some(d) => vec![masked_lm(GENERATOR), pack(&d.encoder, d.head, DISCRIMINATOR)],
            None => vec![masked_lm(MODEL)],
        })
    }

    /// Writes `dir/generator` and `dir/discriminator`, or `dir/model`, each complete on its own,
    /// tokenizer included.
    pub fn save_pretrained(&self, dir: &Path) -> Result<()> {
        for (name, checkpoint) in self.checkpoints()? {
            let dir = dir.join(name);
            checkpoint.save(&dir)?;
            if let Some(tokenizer) = &self.tokenizer {
                tokenizer.save(&dir, checkpoint.config.max_position_embeddings)?;
            }
        }
        Ok(())
    }

    /// The tokenizer that [`Self::save_pretrained`] writes with the models.
    pub fn set_tokenizer(&mut self, tokenizer: Tokenizer) {
        self.tokenizer = Some(tokenizer);
    }

    /// Where it computes.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What the optimizer works on.
    pub(crate) fn backend_and_params(&mut self) -> (&B, &mut Params<B>) {
        (&self.backend, &mut self.params)
    }
}

/// An error if a discriminator cannot be trained with a generator of these sizes.
fn check_pair(ours: &ElectraConfig, discriminator: &Checkpoint, options: &Options) -> Result<()> {
    let theirs = &discriminator.config;
    if discriminator.architecture == Architecture::MaskedLm {
        return Err(Error::config(
            "the discriminator must be an ElectraForPreTraining or an ElectraForTokenClassification",
        ));
    }
    if discriminator.architecture == Architecture::TokenClassification && theirs.num_labels() != 2 {
        return Err(Error::config(format!(
            "the discriminator's configuration has {} labels; a token is original or replaced, which are two",
            theirs.num_labels()
        )));
    }
    if ours.vocab_size != theirs.vocab_size {
        return Err(Error::config(format!(
            "the generator has a vocabulary of {} tokens, the discriminator one of {}: they read the same text and \
             need the same",
            ours.vocab_size, theirs.vocab_size
        )));
    }
    if options.temperature <= 0.0 || options.temperature.is_nan() {
        return Err(Error::config(format!("temperature {} must be above 0", options.temperature)));
    }
    theirs.validate()
}
