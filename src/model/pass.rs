//! The passes of the joint model: a batch staged, forward, losses, backward.
//!
//! A batch is staged in one of two places while the step before it is still computed; what a training step then asks of the backend
//! depends on sizes alone, so that the backend may record it once and replay it.

use serde::{Deserialize, Serialize};

use super::acts::{BatchLimits, DeviceBatch, EncoderActs, MlmActs, OnDevice, RtdActs, Scratch};
use super::encoder::StepContext;
use super::mlm_head::Sampling;
use super::params::Params;
use super::step::{Discriminating, Phase, StepOutput, TokenDetection};
use crate::backend::{Backend, COUNTS, Clock, Dropout, Float, Mask, Metrics, Pending, Upload};
use crate::data::mask::SpecialIds;
use crate::data::{Batch, Masking};
use crate::rng::{Philox, Site};
use crate::{Error, Result};

/// Everything that a forward pass leaves for the backward pass.
pub(super) struct Activations<B: Backend> {
    limits: BatchLimits,
    /// One is read while the other is written.
    batches: [DeviceBatch<B>; 2],
    generator: EncoderActs<B>,
    mlm: MlmActs<B>,
    /// Where there is a discriminator.
    pub(super) discriminator: Option<DiscriminatorActs<B>>,
    scratch: Scratch<B>,
}

/// What the discriminator leaves.
pub(super) struct DiscriminatorActs<B: Backend> {
    encoder: EncoderActs<B>,
    pub(super) rtd: RtdActs<B>,
}

/// A batch that is on its way to the device, or there.
#[derive(Clone, Copy)]
pub(super) struct Staged {
    slot: usize,
    tokens: usize,
    masked: usize,
    sequences: usize,
    max_seqlen: usize,
    /// How it is masked, if the device does that.
    masking: Option<Masking>,
    /// Tokens that metrics count apart.
    special: SpecialIds,
}

/// The step whose activations are held.
#[derive(Clone, Copy)]
pub(super) struct Held {
    context: StepContext,
    batch: Staged,
    can_go_back: bool,
}

/// What forward passes leave for the log.
pub(super) struct Measured<B: Backend> {
    /// (2) Σ weight · nll of the generator and of the discriminator, of the last pass.
    losses: B::Buf<B::F>,
    /// ([`COUNTS`]) of all passes since they were taken.
    counts: B::Buf<u64>,
}

impl<B: Backend> Measured<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        Ok(Self { losses: backend.alloc(2)?, counts: backend.alloc(COUNTS)? })
    }
}

/// The losses of one forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// gen_weight · gen_loss + disc_weight · disc_loss.
    pub loss: f64,
    /// Mean cross-entropy at the masked positions.
    pub gen_loss: f64,
    /// Mean loss of the discriminator; 0 without one.
    pub disc_loss: f64,
}

impl Losses {
    /// Adds `other` times `weight`.
    pub fn add(&mut self, other: &Self, weight: f64) {
        self.loss += other.loss * weight;
        self.gen_loss += other.gen_loss * weight;
        self.disc_loss += other.disc_loss * weight;
    }
}

/// What a step does to the parameters once their gradients are there.
pub(crate) type Finish<'a, B> = &'a mut dyn FnMut(&B, &mut Params<B>) -> Result<()>;

/// How a forward pass is run.
#[derive(Clone, Copy)]
struct Pass {
    context: StepContext,
    /// Losses in the gradients are divided by it.
    divisor: f64,
    /// Whether samples are drawn; else those already in place are kept.
    draw: bool,
    /// Whether a backward pass follows.
    can_go_back: bool,
    keep_logits: bool,
}

impl<B: Backend> TokenDetection<B> {
    /// Makes room for batches up to `limits`; smaller ones need no further allocation.
    pub fn reserve(&mut self, limits: BatchLimits) -> Result<()> {
        if self.acts.as_ref().is_some_and(|acts| acts.limits.holds(limits)) {
            return Ok(());
        }
        let limits = self.acts.take().map_or(limits, |acts| acts.limits.union(limits));
        (self.held, self.staged) = (None, None);
        let mut a = OnDevice(&self.backend);
        let [ours, theirs] = self.configs();
        let discriminator = match &self.discriminator {
            None => None,
            Some(d) => Some(DiscriminatorActs {
                encoder: EncoderActs::new(&mut a, theirs, limits.tokens, None)?,
                rtd: RtdActs::new(&mut a, theirs, d.head, limits.tokens)?,
            }),
        };
        let batch = || DeviceBatch::new(&mut OnDevice(&self.backend), limits, discriminator.is_some());
        self.acts = Some(Activations {
            limits,
            batches: [batch()?, batch()?],
            generator: EncoderActs::new(&mut a, ours, limits.tokens, Some(limits.masked))?,
            mlm: MlmActs::new(&mut a, ours, limits.masked)?,
            discriminator,
            scratch: Scratch::new(&mut a, [ours, theirs], limits.tokens)?,
        });
        Ok(())
    }

    /// Brings a batch to the device beside what is being computed; the next pass runs on it.
    pub fn stage(&mut self, batch: &Batch) -> Result<()> {
        self.check(batch)?;
        if self.staged.is_some() {
            return Err(Error::argument("a batch is staged already: run it first"));
        }
        let (tokens, masked, sequences) = (batch.tokens(), batch.masked(), batch.sequences());
        self.reserve(BatchLimits { tokens, sequences, masked })?;
        let Some(acts) = &mut self.acts else { return Err(Error::argument("no memory was reserved")) };
        let slot = self.next_slot;
        let (tiny, judged) = (self.options.flavour.tiny(), self.discriminator.is_some());
        upload(&self.backend, slot, &mut acts.batches[slot], batch, (tiny, judged))?;
        let masking = batch.masking;
        // Of all batches that are evened out, so that one recording serves them.
        let max_seqlen = masking.map_or(batch.max_seqlen(), |masking| masking.spec.seq_len);
        let special = batch.special.unwrap_or_else(|| self.generator.config.special_ids());
        self.staged = Some(Staged { slot, tokens, masked, sequences, max_seqlen, masking, special });
        self.next_slot = 1 - slot;
        Ok(())
    }

    /// The batch that was staged is not wanted after all.
    pub fn unstage(&mut self) {
        if let Some(staged) = self.staged.take() {
            self.next_slot = staged.slot;
        }
    }

    /// Runs the networks on a batch. `sampled` (M) takes the place of the generator's samples.
    pub fn step_forward(&mut self, batch: &Batch, phase: Phase, sampled: Option<&[u32]>) -> Result<()> {
        self.run(batch, phase, sampled, true, false)
    }

    pub(super) fn run(
        &mut self,
        batch: &Batch,
        phase: Phase,
        sampled: Option<&[u32]>,
        can_go_back: bool,
        keep_logits: bool,
    ) -> Result<()> {
        if sampled.is_some() && self.discriminator.is_none() {
            return Err(Error::argument("samples were given, but no discriminator reads them"));
        }
        self.stage(batch)?;
        let (staged, mut pass) = self.begin(phase)?;
        pass = Pass { draw: sampled.is_none(), can_go_back, keep_logits, ..pass };
        if let (Some(sampled), Some(acts)) = (sampled, &mut self.acts) {
            self.backend.upload(sampled, B::slice_mut(&mut acts.mlm.sampled, 0..staged.masked))?;
        }
        self.forward_ops(staged, pass)?;
        self.held = Some(Held { context: pass.context, batch: staged, can_go_back });
        Ok(())
    }

    /// Adds the gradients of the last [`Self::step_forward`]'s loss to every parameter's.
    pub fn step_backward(&mut self) -> Result<()> {
        let held = self.held.take().filter(|held| held.can_go_back);
        let Some(held) = held else {
            return Err(Error::argument(
                "backward needs a forward pass before it, and goes back through it once",
            ));
        };
        self.backward_ops(held.batch, held.context)?;
        self.held = Some(Held { can_go_back: false, ..held });
        Ok(())
    }

    /// Forward and backward pass on the batch that was staged; `phase` must be a training one. The last micro-batch of a step is the
    /// optimizer's to run.
    pub fn step_staged(&mut self, phase: Phase) -> Result<()> {
        self.step_staged_then(phase, None)
    }

    /// The same, and then `update` on the parameters.
    pub(crate) fn step_staged_then(&mut self, phase: Phase, update: Option<Finish<'_, B>>) -> Result<()> {
        let (staged, pass) = self.begin(phase)?;
        let Staged { slot, tokens, masked, sequences, max_seqlen, .. } = staged;
        // The generator of the masks is part of the recorded launches, and another one after a return to a checkpoint.
        let [low, high] =
            staged.masking.map_or([0; 2], |masking| masking.rng.key()).map(|half| half as usize);
        let (masks, updates) = (usize::from(staged.masking.is_some()), usize::from(update.is_some()));
        let divisor = pass.divisor.to_bits() as usize;
        let key = [slot, tokens, masked, sequences, max_seqlen, divisor, masks, updates, low, high];
        if !self.backend.replay(key)? {
            let done = self.forward_ops(staged, pass).and_then(|()| self.backward_ops(staged, pass.context));
            let done = done.and_then(|()| match update {
                Some(update) => update(&self.backend, &mut self.params),
                None => Ok(()),
            });
            let ended = self.backend.end_recording(key, done.is_ok());
            done.and(ended)?;
        }
        self.held = Some(Held { context: pass.context, batch: staged, can_go_back: false });
        Ok(())
    }

    /// Takes up the batch that was staged.
    fn begin(&mut self, phase: Phase) -> Result<(Staged, Pass)> {
        let staged = self.staged.take().ok_or_else(|| Error::argument("no batch was staged"))?;
        let (training, step, row0, divisor) = match phase {
            Phase::Train { step, row0, divisor } => (true, step, row0, divisor),
            Phase::Eval { step } => (false, step, 0, 1.0),
        };
        let slot0 = staged.masking.map_or(0, |masking| masking.slot0);
        let clock = Clock { step, row0, slot0 };
        let noise = Dropout { rng: Philox::new(self.options.seed), clock, ..Dropout::OFF };
        let Staged { tokens, masked, sequences, max_seqlen, .. } = staged;
        let context = StepContext { noise, training, tokens, masked, sequences, max_seqlen };
        self.backend.begin(staged.slot)?;
        self.backend.set_clock(clock)?;
        Ok((staged, Pass { context, divisor, draw: true, can_go_back: training, keep_logits: false }))
    }

    fn forward_ops(&mut self, staged: Staged, pass: Pass) -> Result<()> {
        let Some(acts) = &mut self.acts else { return Err(Error::argument("no memory was reserved")) };
        let (backend, params, context) = (&self.backend, &self.params, &pass.context);
        let (n, m, noise) = (staged.tokens, staged.masked, context.noise);
        if let Some(masking) = staged.masking {
            let tiny = self.options.flavour.tiny();
            mask(backend, &mut acts.batches[staged.slot], staged, masking, (noise.clock, tiny))?;
        }
        let batch = &acts.batches[staged.slot];

        self.generator.forward(backend, params, context, batch, &batch.masked_ids, &mut acts.generator)?;
        self.mlm.forward(backend, params, m, &acts.generator, &mut acts.mlm)?;
        if pass.keep_logits {
            let width = self.generator.config.vocab_size;
            let logits = backend.download(B::slice(&acts.mlm.logits, 0..m * B::pitch(width)))?;
            let rows = logits.chunks(B::pitch(width)).flat_map(|row| &row[..width]);
            self.logits = Some(rows.map(|x| x.to_f64()).collect());
        }
        let sampling = Sampling {
            temperature: self.options.temperature,
            disallow_correct: self.options.disallow_correct,
            noise: Dropout { site: Site::GUMBEL, ..noise },
            scale: self.options.gen_weight / pass.divisor,
            // A masked language model alone has nobody who reads samples.
            draw: pass.draw && self.discriminator.is_some(),
            gradient: pass.can_go_back,
        };
        self.mlm.loss(backend, m, batch, sampling, &mut acts.mlm)?;

        if let (Some(Discriminating { encoder, rtd, .. }), Some(a)) =
            (&self.discriminator, &mut acts.discriminator)
        {
            rtd.corrupt(backend, (n, m), batch, &acts.mlm.sampled, &mut a.rtd)?;
            encoder.forward(backend, params, context, batch, &a.rtd.corrupted, &mut a.encoder)?;
            let scale = self.options.disc_weight / pass.divisor;
            rtd.forward(backend, params, context, batch, encoder, &a.encoder, scale, &mut a.rtd)?;
        }
        // Without a discriminator no token is judged: of whatever buffers, nothing is read.
        let (judged, labels) = self.discriminator.as_ref().map_or((0, 1), |d| (n, d.rtd.labels()));
        let (logits, is_fake, rtd_nll) = match &acts.discriminator {
            Some(a) => (&a.rtd.logits, &a.rtd.is_fake, &a.rtd.nll),
            None => (&acts.mlm.logits, &acts.mlm.best, &acts.mlm.nll),
        };
        backend.metrics(Metrics {
            labels,
            logits: B::slice(logits, 0..judged * labels),
            is_fake: B::slice(is_fake, 0..judged),
            rtd_nll: B::slice(rtd_nll, 0..judged),
            rtd_weight: B::slice(&batch.rtd_weight, 0..judged),
            special: staged.special,
            ids: B::slice(&batch.ids, 0..judged),
            masked_ids: B::slice(&batch.masked_ids, 0..n),
            masked_index: B::slice(&batch.masked_index, 0..m),
            best: B::slice(&acts.mlm.best, 0..m),
            targets: B::slice(&batch.targets, 0..m),
            mlm_nll: B::slice(&acts.mlm.nll, 0..m),
            mlm_weight: B::slice(&batch.mlm_weight, 0..m),
            losses: B::slice_mut(&mut self.measured.losses, 0..2),
            counts: B::slice_mut(&mut self.measured.counts, 0..COUNTS),
        })
    }

    fn backward_ops(&mut self, staged: Staged, step: StepContext) -> Result<()> {
        let Some(acts) = &mut self.acts else { return Err(Error::argument("no memory was reserved")) };
        let (backend, params, step) = (&self.backend, &mut self.params, &step);
        let (scratch, batch) = (&mut acts.scratch, &acts.batches[staged.slot]);
        if let (Some(Discriminating { encoder, rtd, .. }), Some(a)) =
            (&self.discriminator, &mut acts.discriminator)
        {
            rtd.backward(backend, params, step, encoder, &a.encoder, &mut a.rtd, scratch)?;
            encoder.backward(backend, params, step, batch, &a.rtd.corrupted, &mut a.encoder, scratch)?;
        }
        self.mlm.backward(backend, params, staged.masked, &acts.generator, &mut acts.mlm, scratch)?;
        let hidden = &mut acts.generator;
        self.generator.backward(backend, params, step, batch, &batch.masked_ids, hidden, scratch)
    }

    /// The losses of the last pass, on their way: [`Self::collect_losses`] waits for them.
    pub fn fetch_losses(&self) -> Result<Pending<B::F>> {
        self.backend.fetch(B::slice(&self.measured.losses, 0..2))
    }

    /// What [`Self::fetch_losses`] promised.
    pub fn collect_losses(&self, pending: Pending<B::F>) -> Result<Losses> {
        let both = self.backend.collect(pending)?;
        let (gen_loss, disc_loss) = (both[0].to_f64(), both[1].to_f64());
        Ok(Losses { loss: self.weighted(gen_loss, disc_loss), gen_loss, disc_loss })
    }

    /// The loss that is minimized.
    fn weighted(&self, gen_loss: f64, disc_loss: f64) -> f64 {
        let loss = self.options.gen_weight * gen_loss;
        if self.is_masked_lm() { loss } else { loss + self.options.disc_weight * disc_loss }
    }

    /// The counts of all passes since they were last taken, as [`Metrics::counts`] has them.
    pub fn take_counts(&mut self) -> Result<Vec<u64>> {
        let counts = self.backend.download(B::slice(&self.measured.counts, 0..COUNTS))?;
        self.backend.zero(B::slice_mut(&mut self.measured.counts, 0..COUNTS))?;
        Ok(counts)
    }

    /// Losses, samples and logits of the last forward pass.
    pub fn read_step(&self) -> Result<StepOutput> {
        let (Some(held), Some(acts)) = (&self.held, &self.acts) else {
            return Err(Error::argument("there is no forward pass to read"));
        };
        let (backend, n, m) = (&self.backend, held.batch.tokens, held.batch.masked);
        let batch = &acts.batches[held.batch.slot];
        // The mean of no numbers is 0; `sum` of an empty iterator is -0.
        let mean = |nll: Vec<B::F>, weight: Vec<B::F>| -> f64 {
            nll.iter().zip(&weight).fold(0.0, |sum, (x, w)| sum + x.to_f64() * w.to_f64())
        };
        let nll = backend.download(B::slice(&acts.mlm.nll, 0..m))?;
        let gen_loss = mean(nll, backend.download(B::slice(&batch.mlm_weight, 0..m))?);
        let best = backend.download(B::slice(&acts.mlm.best, 0..m))?;
        let targets = backend.download(B::slice(&batch.targets, 0..m))?;
        let mut output = StepOutput {
            gen_loss,
            gen_correct: best.iter().zip(&targets).map(|(a, b)| a == b).collect(),
            ..StepOutput::default()
        };
        if let (Some(Discriminating { rtd, .. }), Some(a)) = (&self.discriminator, &acts.discriminator) {
            let nll = backend.download(B::slice(&a.rtd.nll, 0..n))?;
            output.disc_loss = mean(nll, backend.download(B::slice(&batch.rtd_weight, 0..n))?);
            output.sampled_ids = backend.download(B::slice(&acts.mlm.sampled, 0..m))?;
            let logits = backend.download(B::slice(&a.rtd.logits, 0..n * rtd.labels()))?;
            let logit = |x: &[B::X]| match x {
                [real, fake] => (fake.to_f64() - real.to_f64()) as f32,
                _ => x[0].to_f64() as f32,
            };
            output.disc_logits = logits.chunks(rtd.labels()).map(logit).collect();
            let is_fake = backend.download(B::slice(&a.rtd.is_fake, 0..n))?;
            output.is_fake = is_fake.into_iter().map(|x| x == 1).collect();
        }
        output.loss = self.weighted(output.gen_loss, output.disc_loss);
        Ok(output)
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        let n = batch.tokens();
        let lengths = [batch.positions.len(), batch.types.len(), batch.rtd_weight.len()];
        // Where the device masks there is nothing yet.
        let (masked, m) = if batch.masking.is_some() { (0, 0) } else { (n, batch.masked()) };
        if n == 0
            || lengths.iter().any(|&len| len != n)
            || batch.masked_ids.len() != masked
            || batch.masked_index.len() != m
            || batch.masked_weight.len() != m
        {
            return Err(Error::argument("a batch needs tokens, and fields of one length"));
        }
        if batch.masked() > n {
            return Err(Error::argument(format!(
                "{} positions of {n} tokens cannot be masked",
                batch.masked()
            )));
        }
        let [ours, theirs] = self.configs();
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
}

/// Masks a batch on the device.
fn mask<B: Backend>(
    backend: &B,
    batch: &mut DeviceBatch<B>,
    staged: Staged,
    masking: Masking,
    (clock, tiny): (Clock, f64),
) -> Result<()> {
    let (n, m) = (staged.tokens, staged.masked);
    backend.mask(Mask {
        spec: masking.spec,
        rng: masking.rng,
        clock,
        tiny,
        max_seqlen: staged.max_seqlen,
        ids: B::slice(&batch.ids, 0..n),
        cu_seqlens: B::slice(&batch.cu_seqlens, 0..staged.sequences + 1),
        masked_ids: B::slice_mut(&mut batch.masked_ids, 0..n),
        masked_index: B::slice_mut(&mut batch.masked_index, 0..m),
        targets: B::slice_mut(&mut batch.targets, 0..m),
        weight: B::slice_mut(&mut batch.mlm_weight, 0..m),
    })
}

/// Stages a batch, weights divided by their sums plus `tiny`; if all weights are 0 they stay 0, and
/// the loss is 0. The discriminator's weights are left out unless tokens are `judged`.
fn upload<B: Backend>(
    backend: &B,
    slot: usize,
    to: &mut DeviceBatch<B>,
    batch: &Batch,
    (tiny, judged): (f64, bool),
) -> Result<()> {
    let (n, b) = (batch.tokens(), batch.sequences());
    // Where the device masks, these are its own to write.
    let (masked, m) = (batch.masked_ids.len(), batch.masked_index.len());
    let share = |weights: &[f32]| -> Vec<B::F> {
        let total = weights.iter().map(|&w| f64::from(w)).sum::<f64>() + tiny;
        let share = |w: f32| if w == 0.0 { 0.0 } else { f64::from(w) / total };
        weights.iter().map(|&w| B::F::from_f64(share(w))).collect()
    };
    let targets: Vec<u32> = batch.targets().collect();
    let mlm_weight = share(&batch.masked_weight);
    let rtd_weight = if judged { share(&batch.rtd_weight) } else { Vec::new() };
    backend.stage(
        slot,
        vec![
            Upload::Index(&batch.ids, B::slice_mut(&mut to.ids, 0..n)),
            Upload::Index(&batch.masked_ids, B::slice_mut(&mut to.masked_ids, 0..masked)),
            Upload::Index(&batch.positions, B::slice_mut(&mut to.positions, 0..n)),
            Upload::Index(&batch.types, B::slice_mut(&mut to.types, 0..n)),
            Upload::Index(&batch.cu_seqlens, B::slice_mut(&mut to.cu_seqlens, 0..b + 1)),
            Upload::Index(&batch.key_len, B::slice_mut(&mut to.key_len, 0..b)),
            Upload::Index(&batch.masked_index, B::slice_mut(&mut to.masked_index, 0..m)),
            Upload::Index(&targets, B::slice_mut(&mut to.targets, 0..m)),
            Upload::Exact(&mlm_weight, B::slice_mut(&mut to.mlm_weight, 0..m)),
            Upload::Exact(&rtd_weight, B::slice_mut(&mut to.rtd_weight, 0..rtd_weight.len())),
        ],
    )
}
