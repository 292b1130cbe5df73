//! The loop's state and its parts.

mod rollback;

use std::collections::VecDeque;

use super::baseline::Baseline;
use super::checkpoint::{Checkpoints, Moment, Position, Snapshot, TrainerState};
use super::health::Trained;
use super::log::{Line, Log, Progress, holds_run};
use super::metrics::Metrics;
use super::micro_batch::settle;
use super::optim::{AdamW, AdamWOptions};
use super::saver::Saver;
use super::schedule::Schedule;
use super::timing::{Part, Plan, Timing};
use super::window::Window;
use super::{Ending, Run, Summary, evaluate};
use crate::backend::{Backend, Pending};
use crate::config::RunConfig;
use crate::data::loader::{Loader, LoaderSpec};
use crate::data::pack::Rows;
use crate::model::{Losses, Phase};
use crate::{Error, Result};

/// Micro-batches of a step whose losses may be on their way: two steps' together are fewer than a device keeps.
const MOST_PENDING: usize = 16;

pub(super) struct Trainer<'a, B: Backend> {
    run: Run<'a, B>,
    optimizer: AdamW<B>,
    checkpoints: Checkpoints,
    saver: Saver,
    state: TrainerState,
    loader: Loader,
    log: Log,
    /// Steps in all, and those of the warm-up.
    steps: u64,
    warmup: u64,
    schedule: Schedule,
    /// What models have that know nothing; none if no token can be masked.
    baseline: Option<Baseline>,
    started_at: Position,
    timing: Timing,
    /// Steps that nobody has looked at yet, the oldest first.
    launched: VecDeque<Launched<B>>,
    /// Tokens of the micro-batch that waits on the device.
    staged: Option<u64>,
    /// Why there is none.
    failed: Option<Error>,
}

/// What a launched step will tell.
struct Launched<B: Backend> {
    /// Sum over the micro-batches that were looked at already.
    losses: Losses,
    /// The losses of the others, and their weights in the sum.
    pending: VecDeque<(Pending<B::F>, f64)>,
    micro_batches: usize,
    norm: Pending<B::F>,
    tokens: u64,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Takes a run up where it is.
    pub(super) fn new(mut run: Run<'a, B>) -> Result<Self> {
        let config = run.config;
        let steps = config.total_steps(run.rows.len());
        let mut optimizer = AdamW::new(run.model, adamw_options(config))?;
        let checkpoints = Checkpoints::new(&config.output, config.keep);
        if run.resume && holds_run(&config.output) {
            checkpoints.check_reachable()?;
        }
        checkpoints.prepare()?;
        let mut state = TrainerState::default();
        let mut saved = None;
        if run.resume {
            match checkpoints.newest(&[Moment::SavePoint, Moment::Stop], passed_over)? {
                Some(snapshot) => {
                    snapshot.restore(run.model, &mut optimizer)?;
                    state = snapshot.state;
                    saved = Some(state.position.step);
                }
                None if run.progress == Progress::Quiet => {}
                None => crate::note!("there is no checkpoint yet: the run starts from its beginning"),
            }
        }
        let choice = settle(&mut run, &mut state)?;
        let mut log = Log::open(config, state.position.step, state.log_bytes, run.progress);
        let mask = &run.loader.mask;
        let baseline = Baseline::new(&run.rows.frequencies(mask.vocab_size), mask);
        if let Some(baseline) = baseline {
            log.baseline(state.position.step, baseline);
        }
        if let Some(choice) = choice {
            choice.tell(config.rows_per_step(), &mut log, run.progress);
        }
        let loader = Loader::new(run.rows.clone(), ordered(run.loader, &state), state.position.step);
        let saver = Saver::new(checkpoints.clone(), saved);
        let split = config.split_into(run.loader.batch_size);
        let timing = Timing::new(plan(&split, steps, run.validation.as_ref()), state.position.step);
        Ok(Self {
            optimizer,
            checkpoints,
            saver,
            loader,
            log,
            steps,
            warmup: config.warmup(steps),
            schedule: config.schedule()?,
            baseline,
            started_at: state.position,
            timing,
            state,
            run,
            launched: VecDeque::new(),
            staged: None,
            failed: None,
        })
    }

    /// Steps until the last, or until a signal comes.
    pub(super) fn go(&mut self) -> Result<Ending> {
        while self.state.position.step < self.steps {
            if self.run.stop.requested() {
                self.settle_all()?;
                return Ok(Ending::Interrupted);
            }
            self.step()?;
            if self.state.bad_in_row >= self.run.config.max_bad_steps {
                self.go_back()?;
                continue;
            }
            self.log_if_due()?;
            self.evaluate_if_due()?;
            self.save_if_due();
        }
        Ok(Ending::Finished)
    }

    /// Launches a step, and looks at one: on a device that computes beside the host at the one before, so that the device never waits,
    /// unless something is due after this one.
    fn step(&mut self) -> Result<()> {
        let step = self.state.position.step + self.launched.len() as u64;
        let ahead = B::RECORDS && self.run.fault.is_none() && !self.is_due(step + 1);
        let launched = self.launch(step, ahead)?;
        self.launched.push_back(launched);
        match ahead {
            true if self.launched.len() < 2 => self.step(),
            true => self.settle(),
            false => self.settle_all(),
        }
    }

    /// Forward, backward and update of step `step`, without waiting for what comes of it.
    fn launch(&mut self, step: u64, ahead: bool) -> Result<Launched<B>> {
        let (lr, rows) = (self.rate(step), self.run.rows.len());
        let count = self.run.loader.micro_batches_of(rows, step);
        let (mut losses, mut pending, mut tokens) = (Losses::default(), VecDeque::new(), 0);
        for micro in 0..count {
            tokens += match self.staged.take() {
                Some(tokens) => tokens,
                None => match self.failed.take().map_or_else(|| self.stage(step), Err) {
                    Ok(tokens) => tokens,
                    Err(error) => {
                        self.settle_all()?;
                        return Err(self.saved_before(error));
                    }
                },
            };
            let model = &mut *self.run.model;
            let phase = phase(step, micro, &self.run.loader, rows);
            let last = micro + 1 == count;
            match last {
                true => self.optimizer.step_staged(model, phase, lr)?,
                false => model.step_staged(phase)?,
            }
            let weight = count as f64 / self.run.loader.loss_divisor(rows, step, micro);
            pending.push_back((model.fetch_losses()?, weight));
            if pending.len() > MOST_PENDING
                && let Some((oldest, weight)) = pending.pop_front()
            {
                losses.add(&model.collect_losses(oldest)?, weight);
            }
            if B::RECORDS && self.run.fault.is_none() && (!last || ahead) {
                match self.stage(step + u64::from(last)) {
                    Ok(staged) => self.staged = Some(staged),
                    // This step's update is under way: the error is told when it is done.
                    Err(error) => self.failed = Some(error),
                }
            }
        }
        let norm = self.optimizer.fetch_norm(self.run.model.backend())?;
        Ok(Launched { losses, pending, micro_batches: count, norm, tokens })
    }

    /// Brings the next micro-batch, one of step `step`, to the device; its tokens.
    fn stage(&mut self, step: u64) -> Result<u64> {
        let mut batch = self.loader.next_batch()?;
        if let Some(fault) = self.run.fault {
            fault(step, self.state.rollbacks, self.run.model, &mut batch)?;
        }
        self.run.model.stage(&batch)?;
        Ok(batch.real_tokens() as u64)
    }

    /// Waits for every step that was launched, and looks at it.
    fn settle_all(&mut self) -> Result<()> {
        while !self.launched.is_empty() {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits for the step launched first, and looks at it.
    fn settle(&mut self) -> Result<()> {
        let Some(launched) = self.launched.pop_front() else { return Ok(()) };
        let (mut sum, mut losses) = (launched.losses, Losses::default());
        for (pending, weight) in launched.pending {
            sum.add(&self.run.model.collect_losses(pending)?, weight);
        }
        losses.add(&sum, 1.0 / launched.micro_batches as f64);
        let norm = self.optimizer.collect_norm(self.run.model.backend(), launched.norm)?;
        let state = &mut self.state;
        state.position.step += 1;
        state.position.tokens += launched.tokens;
        state.window.tokens += launched.tokens;
        self.timing.mark(Part::Step);
        if norm.is_finite() {
            let spike = state.losses.judge(losses.loss);
            state.window.add(&losses, norm, spike);
            state.bad_in_row = 0;
        } else {
            state.skipped += 1;
            state.window.skipped += 1;
            state.bad_in_row += 1;
            crate::note!(
                "warning: step {} is skipped: its loss is {}, its gradient norm {norm} ({} in a row)",
                state.position.step,
                losses.loss,
                state.bad_in_row
            );
        }
        Ok(())
    }

    /// Whether anything but the next step comes after `step` steps.
    fn is_due(&self, step: u64) -> bool {
        let config = self.run.config;
        let every = |n: u64| n > 0 && step.is_multiple_of(n);
        step >= self.steps || every(config.log_every) || every(config.eval_every) || every(config.save_every)
    }

    /// What the device has counted since it was last asked belongs to the log's next line.
    fn take_counts(&mut self) -> Result<()> {
        let counts = self.run.model.take_counts()?;
        self.state.window.add_counts(&counts);
        self.state.health.add_counts(&counts);
        Ok(())
    }

    /// Learning rate of the update after `step` steps.
    fn rate(&self, step: u64) -> f64 {
        self.schedule.rate(step, self.warmup, self.steps)
    }

    fn log_if_due(&mut self) -> Result<()> {
        let step = self.state.position.step;
        if !step.is_multiple_of(self.run.config.log_every) && step != self.steps {
            return Ok(());
        }
        self.take_counts()?;
        let window = std::mem::take(&mut self.state.window);
        let (metrics, grad_norm) = window.means();
        let Window { tokens, spike, skipped, .. } = window;
        let config = self.run.config;
        let trained = Trained { generator: config.gen_weight != 0.0, discriminator: config.weight != 0.0 };
        let warnings = self.state.health.check((step, self.steps), self.baseline.as_ref(), trained);
        let line = Line {
            step,
            steps: self.steps,
            tokens: self.state.position.tokens,
            metrics,
            lr: self.rate(step - 1),
            grad_norm,
            gpu_memory: self.run.model.backend().memory_used(),
            spike,
            skipped,
            warnings,
            tok_per_s: tokens as f64 / self.timing.take_line().max(1e-9),
            eta_s: self.timing.eta_s(),
        };
        self.log.train(&line);
        Ok(())
    }

    fn evaluate_if_due(&mut self) -> Result<()> {
        let (step, every) = (self.state.position.step, self.run.config.eval_every);
        if every > 0 && step.is_multiple_of(every) && step != self.steps {
            self.evaluate()?;
        }
        Ok(())
    }

    /// Held-out metrics, which go to the log too.
    fn evaluate(&mut self) -> Result<Option<Metrics>> {
        self.take_counts()?;
        let Run { model, validation, loader, config, .. } = &mut self.run;
        let Some(rows) = validation else { return Ok(None) };
        let metrics = evaluate(model, rows, loader, config.eval_rows).map_err(|e| self.saved_before(e))?;
        self.log.eval(self.state.position.step, &metrics);
        self.timing.mark(Part::Evaluation);
        Ok(Some(metrics))
    }

    fn save_if_due(&mut self) {
        if let Err(error) = self.saver.poll() {
            self.unsaved(&error);
        }
        if self.moment() == Moment::SavePoint
            && let Err(error) = self.begin_save()
        {
            self.unsaved(&error);
        }
    }

    /// While steps go bad there is no save point: nobody would go back there.
    fn moment(&self) -> Moment {
        let step = self.state.position.step;
        let is_point = step.is_multiple_of(self.run.config.save_every) || step == self.steps;
        if is_point && self.state.bad_in_row == 0 { Moment::SavePoint } else { Moment::Stop }
    }

    /// Copies the state, and has it written beside the training.
    fn begin_save(&mut self) -> Result<()> {
        // Before the copy, so that there is one at a time.
        if let Err(error) = self.saver.wait() {
            self.unsaved(&error);
        }
        self.log.flush();
        self.state.log_bytes = self.log.bytes();
        self.take_counts()?;
        let snapshot = Snapshot::take(self.run.model, &self.optimizer, self.state.clone())?;
        let begun = self.saver.start(snapshot, self.moment(), self.log.file());
        self.timing.mark(Part::Saving);
        begun
    }

    /// Sees to it that this very step is on disk.
    pub(super) fn save(&mut self) -> Result<()> {
        let mut saved = self.saver.wait();
        if saved.is_err() || self.saver.saved() != Some(self.state.position.step) {
            saved = self.begin_save().and_then(|()| self.saver.wait());
        }
        saved.map_err(|error| {
            let step = self.state.position.step;
            let newest = match self.saver.saved() {
                Some(step) => format!("of step {step}, from which"),
                None => "none yet: from its beginning".to_owned(),
            };
            Error::run(format!(
                "{error}; step {step} could not be saved. The newest checkpoint is {newest} `{}` goes on",
                self.resume()
            ))
        })
    }

    /// Saves, and says so with an error that ends the run.
    fn saved_before(&mut self, error: Error) -> Error {
        match self.save() {
            Ok(()) => Error::run(format!(
                "{error}; the run is saved at step {}: `{}` goes on from there",
                self.state.position.step,
                self.resume()
            )),
            Err(unsaved) => Error::run(format!("{error}; {unsaved}")),
        }
    }

    fn unsaved(&self, error: &Error) {
        crate::note!(
            "warning: a checkpoint was not written: {error}; training goes on, older checkpoints are kept, the next is \
             tried within {} steps",
            self.run.config.save_every
        );
    }

    fn resume(&self) -> String {
        format!("elektron pretrain --resume {}", self.run.config.output.display())
    }

    /// Evaluates a finished run, and tells how it went.
    pub(super) fn close(mut self, ending: Ending) -> Result<Summary> {
        let held_out = match ending {
            Ending::Finished => self.evaluate()?,
            Ending::Interrupted => None,
        };
        self.log.close();
        let [seconds, stepping_seconds, evaluating_seconds, saving_seconds] = self.timing.seconds();
        Ok(Summary {
            ending,
            position: self.state.position,
            started_at: self.started_at,
            steps: self.steps,
            seconds,
            stepping_seconds,
            evaluating_seconds,
            saving_seconds,
            skipped: self.state.skipped,
            rollbacks: self.state.rollbacks,
            held_out,
            baseline: self.baseline,
            findings: self.state.health.last,
        })
    }
}

/// How often steps, evaluations and checkpoints come.
fn plan(config: &RunConfig, steps: u64, validation: Option<&Rows>) -> Plan {
    let eval_rows = validation.map_or(0, |rows| rows.len().min(config.eval_rows));
    Plan {
        steps,
        eval_every: config.eval_every,
        evaluates: validation.is_some(),
        eval_batches_per_step: eval_rows.div_ceil(config.batch_size) as f64 / config.grad_accumulation as f64,
        save_every: config.save_every,
    }
}

fn adamw_options(config: &RunConfig) -> AdamWOptions {
    let [beta1, beta2] = config.betas;
    AdamWOptions {
        beta1,
        beta2,
        eps: config.adam_epsilon,
        weight_decay: config.weight_decay,
        bias_correction: config.bias_correction,
        clip: (config.clip > 0.0).then_some(config.clip),
    }
}

/// The phase of a micro-batch in a run over `rows` rows. Random numbers are counted as if every row were
/// full, so that they do not depend on other micro-batches.
pub(super) fn phase(step: u64, micro: usize, spec: &LoaderSpec, rows: usize) -> Phase {
    let row0 = micro * spec.batch_size * spec.mask.seq_len;
    Phase::Train { step: step as u32, row0: row0 as u32, divisor: spec.loss_divisor(rows, step, micro) }
}

/// Order and masks of the data after `state.rollbacks` returns to a checkpoint.
pub(super) fn ordered(spec: LoaderSpec, state: &TrainerState) -> LoaderSpec {
    // An odd constant far from small numbers: seeds that users choose stay apart.
    let seed = spec.seed.wrapping_add(state.rollbacks.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    LoaderSpec { seed, ..spec }
}

fn passed_over(error: &Error) {
    crate::note!("warning: {error}; it is set aside as .damaged, and the one before is taken");
}
