//! The joint model: what it is made of, and what `transformers` and txtai call on theirs; [`pass`](super::pass) holds its passes.

use std::path::Path;

use super::config::Architecture;
use super::encoder::Encoder;
use super::hf::{Checkpoint, HostTensor};
use super::input::PaddedInput;
use super::mlm_head::MlmHead;
use super::params::{ParamTable, Params};
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
    /// Mean loss of the discriminator.
    pub disc_loss: f64,
    /// (M) whether the generator's most probable token is the original.
    pub gen_correct: Vec<bool>,
    /// (M) the generator's samples.
    pub sampled_ids: Vec<u32>,
    /// (N) log-odds that the token was replaced.
    pub disc_logits: Vec<f32>,
    /// (N) whether it was.
    pub is_fake: Vec<bool>,
}

/// What [`TokenDetection::forward`] returns, in the caller's padded layout.
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

/// Generator and discriminator trained together.
pub struct TokenDetection<B: Backend> {
    pub(super) backend: B,
    pub(super) options: Options,
    pub(super) params: Params<B>,
    pub(super) generator: Encoder,
    pub(super) mlm: MlmHead,
    pub(super) discriminator: Encoder,
    pub(super) rtd: RtdHead,
    pub(super) head: Architecture,
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
    /// A pair on any backend. Errors if the architectures are not a generator's and a discriminator's, if shared
    /// tensors do not fit, or if the vocabularies differ.
    pub fn with_options(
        backend: B,
        generator: Checkpoint,
        discriminator: Checkpoint,
        options: Options,
    ) -> Result<Self> {
        let (ours, theirs) = (&generator.config, &discriminator.config);
        if generator.architecture != Architecture::MaskedLm {
            return Err(Error::config("the generator must be an ElectraForMaskedLM"));
        }
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
        ours.validate()?;
        theirs.validate()?;
        let head = discriminator.architecture;
        let table = ParamTable::new(ours, theirs, head, options.share)?;
        let initial = table.initial(&generator, &discriminator, &options);
        let generator = Encoder::new(&table, ours, "generator.", Site::GENERATOR)?;
        let discriminator = Encoder::new(&table, theirs, "discriminator.", Site::DISCRIMINATOR)?;
        let (mlm, rtd) = (MlmHead::new::<B>(&table, &generator)?, RtdHead::new(&table, head)?);
        let params = Params::new(&backend, table, &initial)?;
        let measured = Measured::new(&backend)?;
        Ok(Self {
            backend,
            options,
            params,
            generator,
            mlm,
            discriminator,
            rtd,
            head,
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
        let packed = input.pack(self.head, &self.generator.config, &self.discriminator.config)?;
        self.run(&packed.batch, Phase::Eval { step: 0 }, packed.sampled.as_deref(), true, true)?;
        let step = self.read_step()?;
        let Some(acts) = &self.acts else { return Err(Error::argument("there is no forward pass to read")) };
        let labels = self.rtd.labels();
        let n = packed.batch.tokens();
        let logits = self.backend.download(B::slice(&acts.rtd.logits, 0..n * labels))?;
        let size = input.batch * input.seq_len;
        let (mut disc_logits, mut is_fake) = (vec![0.0; size * labels], vec![0; size]);
        for (i, &flat) in packed.origin.iter().enumerate() {
            is_fake[flat] = i64::from(step.is_fake[i]);
            for label in 0..labels {
                disc_logits[flat * labels + label] = logits[i * labels + label].to_f64();
            }
        }
        Ok(Output {
            loss: step.loss,
            gen_loss: step.gen_loss,
            disc_loss: step.disc_loss,
            gen_logits: self.logits.take().unwrap_or_default(),
            disc_logits,
            disc_labels: labels,
            sampled_ids: step.sampled_ids.into_iter().map(i64::from).collect(),
            is_fake,
        })
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

    /// Gradients as `generator.<name>` and `discriminator.<name>`; a shared parameter's once, under its generator name.
    pub fn named_gradients(&self) -> Result<Vec<(String, HostTensor)>> {
        let flat = self.params.host(&self.backend, &self.params.grads)?;
        let tensor = |spec: &super::TensorSpec| {
            (spec.name.clone(), HostTensor { shape: spec.shape.clone(), data: flat[spec.range()].to_vec() })
        };
        Ok(self.params.table.specs().iter().map(tensor).collect())
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

    /// Generator and discriminator as checkpoints, shared tensors in full in both.
    pub fn checkpoints(&self) -> Result<(Checkpoint, Checkpoint)> {
        let flat = self.flat_weights()?;
        let pack = |encoder: &Encoder, architecture, prefix| Checkpoint {
            config: encoder.config.clone(),
            architecture,
            tensors: self.params.tensors(&flat, prefix),
        };
        Ok((
            pack(&self.generator, Architecture::MaskedLm, "generator."),
            pack(&self.discriminator, self.head, "discriminator."),
        ))
    }

    /// Writes `dir/generator` and `dir/discriminator`, each complete on its own, tokenizer included.
    pub fn save_pretrained(&self, dir: &Path) -> Result<()> {
        let (generator, discriminator) = self.checkpoints()?;
        for (name, checkpoint) in [("generator", generator), ("discriminator", discriminator)] {
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
