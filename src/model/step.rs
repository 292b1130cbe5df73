//! The joint model and its step: forward, losses, backward.

use std::path::Path;

use super::acts::{BatchLimits, DeviceBatch, EncoderActs, MlmActs, OnDevice, RtdActs, Scratch};
use super::config::Architecture;
use super::encoder::{Encoder, StepContext};
use super::hf::{Checkpoint, HostTensor};
use super::input::PaddedInput;
use super::mlm_head::{MlmHead, Sampling};
use super::params::{ParamTable, Params};
use super::rtd_head::RtdHead;
use super::{Flavour, Options, Share};
use crate::backend::{Backend, Cpu, Dropout, Float};
use crate::data::Batch;
use crate::data::tokenizer::Tokenizer;
use crate::rng::{Philox, Site};
use crate::{Error, Result};

/// Whether a pass trains, and where its random numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Dropout on.
    Train {
        /// Optimizer step.
        step: u32,
        /// Number of this micro-batch's first token among all tokens of the step.
        row0: u32,
        /// Micro-batches of the step: gradients are of the mean of their losses.
        micro_batches: u32,
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

/// Everything that a forward pass leaves for the backward pass.
struct Activations<B: Backend> {
    limits: BatchLimits,
    batch: DeviceBatch<B>,
    generator: EncoderActs<B>,
    mlm: MlmActs<B>,
    discriminator: EncoderActs<B>,
    rtd: RtdActs<B>,
    scratch: Scratch<B>,
}

/// The step whose activations are held.
#[derive(Clone, Copy)]
struct Held {
    context: StepContext,
    masked: usize,
    can_go_back: bool,
}

/// Generator and discriminator trained together.
pub struct TokenDetection<B: Backend> {
    backend: B,
    options: Options,
    params: Params<B>,
    generator: Encoder,
    mlm: MlmHead,
    discriminator: Encoder,
    rtd: RtdHead,
    head: Architecture,
    tokenizer: Option<Tokenizer>,
    acts: Option<Activations<B>>,
    held: Option<Held>,
    logits: Option<Vec<f64>>,
}

impl TokenDetection<Cpu<f32>> {
    /// A pair on the CPU with txtai's details: `weight` multiplies the discriminator's loss (txtai's default is
    /// 50.0), word embeddings are shared where their sizes agree. The tokenizer is saved with the models.
    pub fn new(
        generator: Checkpoint,
        discriminator: Checkpoint,
        tokenizer: Option<Tokenizer>,
        weight: f64,
    ) -> Result<Self> {
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
        let (mlm, rtd) = (MlmHead::new(&table, &generator)?, RtdHead::new(&table, head)?);
        let params = Params::new(&backend, table, &initial)?;
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
            held: None,
            logits: None,
        })
    }

    /// Makes room for batches up to `limits`; smaller ones need no further allocation.
    pub fn reserve(&mut self, limits: BatchLimits) -> Result<()> {
        if self.acts.as_ref().is_some_and(|acts| acts.limits.holds(limits)) {
            return Ok(());
        }
        let limits = self.acts.take().map_or(limits, |acts| acts.limits.union(limits));
        self.held = None;
        let mut a = OnDevice(&self.backend);
        let (ours, theirs) = (&self.generator.config, &self.discriminator.config);
        self.acts = Some(Activations {
            limits,
            batch: DeviceBatch::new(&mut a, limits)?,
            generator: EncoderActs::new(&mut a, ours, limits.tokens)?,
            mlm: MlmActs::new(&mut a, ours, limits.masked)?,
            discriminator: EncoderActs::new(&mut a, theirs, limits.tokens)?,
            rtd: RtdActs::new(&mut a, theirs, self.head, limits.tokens)?,
            scratch: Scratch::new(&mut a, [ours, theirs], limits.tokens)?,
        });
        Ok(())
    }

    /// Runs both networks on a batch. `sampled` (M) takes the place of the generator's samples.
    pub fn step_forward(&mut self, batch: &Batch, phase: Phase, sampled: Option<&[u32]>) -> Result<()> {
        self.run(batch, phase, sampled, true, false)
    }

    fn run(
        &mut self,
        batch: &Batch,
        phase: Phase,
        sampled: Option<&[u32]>,
        can_go_back: bool,
        keep_logits: bool,
    ) -> Result<()> {
        self.check(batch)?;
        let (n, m) = (batch.tokens(), batch.masked());
        self.reserve(BatchLimits { tokens: n, sequences: batch.sequences(), masked: m })?;
        let Some(acts) = &mut self.acts else { return Err(Error::argument("no memory was reserved")) };
        let (backend, params) = (&self.backend, &self.params);
        let (training, step, row0, micro_batches) = match phase {
            Phase::Train { step, row0, micro_batches } => (true, step, row0, f64::from(micro_batches)),
            Phase::Eval { step } => (false, step, 0, 1.0),
        };
        let noise = Dropout { rng: Philox::new(self.options.seed), step, row0, ..Dropout::OFF };
        let (sequences, max_seqlen) = (batch.sequences(), batch.max_seqlen());
        let context = StepContext { noise, training, tokens: n, sequences, max_seqlen };
        upload(backend, &mut acts.batch, batch, self.options.flavour.tiny())?;
        if let Some(sampled) = sampled {
            backend.upload(sampled, B::slice_mut(&mut acts.mlm.sampled, 0..m))?;
        }

        let masked_ids = &acts.batch.masked_ids;
        self.generator.forward(backend, params, &context, &acts.batch, masked_ids, &mut acts.generator)?;
        self.mlm.forward(backend, params, (n, m), &acts.batch, &acts.generator, &mut acts.mlm)?;
        if keep_logits {
            let logits = B::slice(&acts.mlm.logits, 0..m * self.generator.config.vocab_size);
            self.logits = Some(backend.download(logits)?.into_iter().map(Float::to_f64).collect());
        }
        let sampling = Sampling {
            temperature: self.options.temperature,
            disallow_correct: self.options.disallow_correct,
            noise: Dropout { site: Site::GUMBEL, ..noise },
            scale: self.options.gen_weight / micro_batches,
            draw: sampled.is_none(),
            gradient: can_go_back,
        };
        self.mlm.loss(backend, m, &acts.batch, sampling, &mut acts.mlm)?;

        self.rtd.corrupt(backend, (n, m), &acts.batch, &acts.mlm.sampled, &mut acts.rtd)?;
        let corrupted = &acts.rtd.corrupted;
        self.discriminator.forward(
            backend,
            params,
            &context,
            &acts.batch,
            corrupted,
            &mut acts.discriminator,
        )?;
        let (batch, hidden) = (&acts.batch, &acts.discriminator);
        let scale = self.options.disc_weight / micro_batches;
        self.rtd.forward(
            backend,
            params,
            &context,
            batch,
            &self.discriminator,
            hidden,
            scale,
            &mut acts.rtd,
        )?;
        self.held = Some(Held { context, masked: m, can_go_back });
        Ok(())
    }

    /// Adds the gradients of the last [`Self::step_forward`]'s loss to every parameter's.
    pub fn step_backward(&mut self) -> Result<()> {
        let held = self.held.take().filter(|held| held.can_go_back);
        let (Some(held), Some(acts)) = (held, &mut self.acts) else {
            return Err(Error::argument(
                "backward needs a forward pass before it, and goes back through it once",
            ));
        };
        let (backend, params, step) = (&self.backend, &mut self.params, &held.context);
        let (n, m) = (step.tokens, held.masked);
        let scratch = &mut acts.scratch;
        let (encoder, hidden) = (&self.discriminator, &acts.discriminator);
        self.rtd.backward(backend, params, step, encoder, hidden, &mut acts.rtd, scratch)?;
        let corrupted = &acts.rtd.corrupted;
        encoder.backward(backend, params, step, &acts.batch, corrupted, hidden, scratch)?;
        self.mlm.backward(backend, params, (n, m), &acts.batch, &mut acts.mlm, scratch)?;
        let masked_ids = &acts.batch.masked_ids;
        self.generator.backward(backend, params, step, &acts.batch, masked_ids, &acts.generator, scratch)?;
        self.held = Some(Held { can_go_back: false, ..held });
        Ok(())
    }

    /// Losses, samples and logits of the last forward pass.
    pub fn read_step(&self) -> Result<StepOutput> {
        let (Some(held), Some(acts)) = (&self.held, &self.acts) else {
            return Err(Error::argument("there is no forward pass to read"));
        };
        let (backend, n, m) = (&self.backend, held.context.tokens, held.masked);
        let mean = |nll: Vec<B::F>, weight: Vec<B::F>| -> f64 {
            nll.iter().zip(&weight).map(|(x, w)| x.to_f64() * w.to_f64()).sum()
        };
        let nll = backend.download(B::slice(&acts.mlm.nll, 0..m))?;
        let gen_loss = mean(nll, backend.download(B::slice(&acts.batch.mlm_weight, 0..m))?);
        let nll = backend.download(B::slice(&acts.rtd.nll, 0..n))?;
        let disc_loss = mean(nll, backend.download(B::slice(&acts.batch.rtd_weight, 0..n))?);
        let best = backend.download(B::slice(&acts.mlm.best, 0..m))?;
        let targets = backend.download(B::slice(&acts.batch.targets, 0..m))?;
        let logits = backend.download(B::slice(&acts.rtd.logits, 0..n * self.rtd.labels()))?;
        let logit = |x: &[B::X]| match x {
            [real, fake] => (fake.to_f64() - real.to_f64()) as f32,
            _ => x[0].to_f64() as f32,
        };
        Ok(StepOutput {
            loss: self.options.gen_weight * gen_loss + self.options.disc_weight * disc_loss,
            gen_loss,
            disc_loss,
            gen_correct: best.iter().zip(&targets).map(|(a, b)| a == b).collect(),
            sampled_ids: backend.download(B::slice(&acts.mlm.sampled, 0..m))?,
            disc_logits: logits.chunks(self.rtd.labels()).map(logit).collect(),
            is_fake: backend
                .download(B::slice(&acts.rtd.is_fake, 0..n))?
                .into_iter()
                .map(|x| x == 1)
                .collect(),
        })
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        let n = batch.tokens();
        let lengths =
            [batch.masked_ids.len(), batch.positions.len(), batch.types.len(), batch.rtd_weight.len()];
        if n == 0 || lengths.iter().any(|&len| len != n) || batch.masked_weight.len() != batch.masked() {
            return Err(Error::argument("a batch needs tokens, and fields of one length"));
        }
        let (ours, theirs) = (&self.generator.config, &self.discriminator.config);
        let positions = ours.max_position_embeddings.min(theirs.max_position_embeddings);
        let check = |name: &str, values: &[u32], limit: usize| match values.iter().max() {
            Some(&highest) if highest as usize >= limit => {
                Err(Error::argument(format!("{name} {highest} is out of range: the model has {limit}")))
            }
            _ => Ok(()),
        };
        check("token id", &batch.ids, ours.vocab_size)?;
        check("token id", &batch.masked_ids, ours.vocab_size)?;
        check("position", &batch.positions, positions)?;
        check("token type", &batch.types, ours.type_vocab_size.min(theirs.type_vocab_size))?;
        check("masked position", &batch.masked_index, n)?;
        let bounds = &batch.cu_seqlens;
        let whole = bounds.first() == Some(&0) && bounds.last() == Some(&(n as u32));
        let fits =
            |(w, &keys): (&[u32], &u32)| w[0] <= w[1] && keys <= w[1] - w[0] && (keys > 0 || w[0] == w[1]);
        if !whole || bounds.len() != batch.sequences() + 1 || !bounds.windows(2).zip(&batch.key_len).all(fits)
        {
            return Err(Error::argument("cu_seqlens must rise from 0 to N, and every sequence needs a key"));
        }
        Ok(())
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

/// Copies a batch to the device, weights over their sums plus `tiny`.
fn upload<B: Backend>(backend: &B, to: &mut DeviceBatch<B>, batch: &Batch, tiny: f64) -> Result<()> {
    let (n, m, b) = (batch.tokens(), batch.masked(), batch.sequences());
    let share = |weights: &[f32]| -> Vec<B::F> {
        let total = weights.iter().map(|&w| f64::from(w)).sum::<f64>() + tiny;
        weights.iter().map(|&w| B::F::from_f64(f64::from(w) / total)).collect()
    };
    let targets: Vec<u32> = batch.targets().collect();
    backend.upload(&batch.ids, B::slice_mut(&mut to.ids, 0..n))?;
    backend.upload(&batch.masked_ids, B::slice_mut(&mut to.masked_ids, 0..n))?;
    backend.upload(&batch.positions, B::slice_mut(&mut to.positions, 0..n))?;
    backend.upload(&batch.types, B::slice_mut(&mut to.types, 0..n))?;
    backend.upload(&batch.cu_seqlens, B::slice_mut(&mut to.cu_seqlens, 0..b + 1))?;
    backend.upload(&batch.key_len, B::slice_mut(&mut to.key_len, 0..b))?;
    backend.upload(&batch.masked_index, B::slice_mut(&mut to.masked_index, 0..m))?;
    backend.upload(&targets, B::slice_mut(&mut to.targets, 0..m))?;
    backend.upload(&share(&batch.masked_weight), B::slice_mut(&mut to.mlm_weight, 0..m))?;
    backend.upload(&share(&batch.rtd_weight), B::slice_mut(&mut to.rtd_weight, 0..n))
}
