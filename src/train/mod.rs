//! The training loop: loader → step → optimizer → log, evaluation, checkpoint.

pub mod card;
pub mod checkpoint;
pub mod log;
pub mod metrics;
pub mod optim;
pub mod schedule;
pub mod tensorboard;
pub mod timing;

use std::sync::Arc;

use crate::Result;
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::loader::{Loader, LoaderSpec};
use crate::data::pack::Rows;
use crate::model::{Phase, TokenDetection};
use checkpoint::{Checkpoints, Position};
use log::{Line, Log, Progress};
use metrics::{Metrics, auc};
use optim::{AdamW, AdamWOptions};
use timing::{Part, Plan, Timing};

/// What a run is made of.
pub struct Run<'a, B: Backend> {
    /// Settings.
    pub config: &'a RunConfig,
    /// The pair.
    pub model: &'a mut TokenDetection<B>,
    /// Rows to train on.
    pub rows: Arc<Rows>,
    /// Held-out rows.
    pub validation: Option<Rows>,
    /// How batches are made.
    pub loader: LoaderSpec,
    /// Whether to go on from the newest checkpoint.
    pub resume: bool,
    /// What is shown meanwhile.
    pub progress: Progress,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Where it is.
    pub position: Position,
    /// Where it was when this process took it up.
    pub started_at: Position,
    /// Steps the run is to make.
    pub steps: u64,
    /// Seconds of this process's training, everything included.
    pub seconds: f64,
    /// Of these, for steps alone.
    pub stepping_seconds: f64,
    /// For held-out evaluation.
    pub evaluating_seconds: f64,
    /// Waiting for checkpoints.
    pub saving_seconds: f64,
    /// Held-out metrics at the end.
    pub held_out: Option<Metrics>,
}

/// Sums since the last line of the log.
#[derive(Default)]
struct Window {
    metrics: Metrics,
    grad_norm: f64,
    tokens: u64,
    steps: u64,
}

/// Trains to the last step, and saves a checkpoint there.
pub fn train<B: Backend>(run: Run<'_, B>) -> Result<Summary> {
    let Run { config, model, rows, validation, loader: spec, resume, progress } = run;
    let steps = config.total_steps(rows.len());
    let warmup = config.warmup(steps);
    let options = AdamWOptions {
        eps: config.adam_epsilon,
        weight_decay: config.weight_decay,
        bias_correction: config.bias_correction,
        clip: (config.clip > 0.0).then_some(config.clip),
        ..AdamWOptions::default()
    };
    let mut optimizer = AdamW::new(model, options)?;
    let checkpoints = Checkpoints::new(&config.output, config.keep);
    let mut position = Position::default();
    if resume {
        let warn = |error: &crate::Error| eprintln!("warning: {error}; trying the one before");
        position = checkpoints.restore(model, &mut optimizer, warn)?.unwrap_or_default();
    }
    let started_at = position;
    let mut log = Log::open(config, position.step, progress)?;
    let mut loader = Loader::new(rows, spec, position.step);
    let mut window = Window::default();
    let mut timing = Timing::new(plan(config, steps, validation.as_ref()), position.step);
    let mut saved = resume && position.step > 0;
    while position.step < steps {
        let lr = config.schedule.rate(config.learning_rate, position.step, warmup, steps);
        let tokens = step(model, &mut loader, spec.micro_batches, position.step, &mut window)?;
        window.grad_norm += optimizer.step(model, lr)?;
        window.steps += 1;
        position = Position { step: position.step + 1, tokens: position.tokens + tokens };
        saved = false;
        timing.mark(Part::Step);
        let last = position.step == steps;
        if position.step % config.log_every == 0 || last {
            log.train(&window.line(position, steps, lr, &mut timing))?;
            window = Window::default();
        }
        let evaluates = config.eval_every > 0 && position.step % config.eval_every == 0 && !last;
        if let Some(rows) = validation.as_ref().filter(|_| evaluates) {
            log.eval(position.step, &evaluate(model, rows, &spec, config.eval_rows)?)?;
            timing.mark(Part::Evaluation);
        }
        if position.step % config.save_every == 0 {
            checkpoints.save(model, &optimizer, position)?;
            timing.mark(Part::Saving);
            saved = true;
        }
    }
    if !saved {
        checkpoints.save(model, &optimizer, position)?;
        timing.mark(Part::Saving);
    }
    let held_out = match &validation {
        Some(rows) => Some(evaluate(model, rows, &spec, config.eval_rows)?),
        None => None,
    };
    if let Some(metrics) = &held_out {
        log.eval(position.step, metrics)?;
        timing.mark(Part::Evaluation);
    }
    let [seconds, stepping_seconds, evaluating_seconds, saving_seconds] = timing.seconds();
    Ok(Summary {
        position,
        started_at,
        steps,
        seconds,
        stepping_seconds,
        evaluating_seconds,
        saving_seconds,
        held_out,
    })
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

/// Forward and backward over one step's micro-batches; returns its tokens.
fn step<B: Backend>(
    model: &mut TokenDetection<B>,
    loader: &mut Loader,
    micro_batches: usize,
    step: u64,
    window: &mut Window,
) -> Result<u64> {
    let mut tokens = 0;
    for _ in 0..micro_batches {
        let batch = loader.next_batch()?;
        let phase =
            Phase::Train { step: step as u32, row0: tokens as u32, micro_batches: micro_batches as u32 };
        model.step_forward(&batch, phase, None)?;
        window.metrics.add(&Metrics::of(&model.read_step()?), 1.0 / micro_batches as f64);
        model.step_backward()?;
        tokens += batch.tokens() as u64;
    }
    window.tokens += tokens;
    Ok(tokens)
}

impl Window {
    fn line(&self, position: Position, steps: u64, lr: f64, timing: &mut Timing) -> Line {
        let n = self.steps.max(1) as f64;
        let mut metrics = Metrics::default();
        metrics.add(&self.metrics, 1.0 / n);
        Line {
            step: position.step,
            steps,
            tokens: position.tokens,
            metrics,
            lr,
            grad_norm: self.grad_norm / n,
            tok_per_s: self.tokens as f64 / timing.take_line().max(1e-9),
            eta_s: timing.eta_s(),
        }
    }
}

/// Held-out metrics over the first `limit` rows: means over batches, the AUC over all tokens together.
pub fn evaluate<B: Backend>(
    model: &mut TokenDetection<B>,
    rows: &Rows,
    spec: &LoaderSpec,
    limit: usize,
) -> Result<Metrics> {
    let rows_used = rows.len().min(limit);
    let (mut total, mut scores, mut fakes) = (Metrics::default(), Vec::new(), Vec::new());
    for (number, first) in (0..rows_used).step_by(spec.batch_size).enumerate() {
        let range = first..(first + spec.batch_size).min(rows_used);
        let weight = range.len() as f64 / rows_used as f64;
        let batch = spec.evaluation_batch(rows, range);
        model.step_forward(&batch, Phase::Eval { step: number as u32 }, None)?;
        let step = model.read_step()?;
        total.add(&Metrics::of(&step), weight);
        scores.extend(step.disc_logits);
        fakes.extend(step.is_fake);
    }
    total.disc_auc = auc(&scores, &fakes);
    Ok(total)
}
