//! The training loop: loader → step → optimizer → log, evaluation, checkpoint.
//!
//! `trainer` is the loop, [`checkpoint`] what it keeps on disk and [`saver`] the thread that writes it. What can go
//! wrong on the way has a place of its own: [`signals`] that end the run, the [`lock`] on its directory, steps whose
//! numbers are not finite (`trainer`, `diagnosis`), losses that stand out ([`window`]).

pub mod baseline;
pub mod card;
pub mod checkpoint;
mod diagnosis;
pub mod figures;
pub mod health;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod micro_batch;
pub mod optim;
pub mod saver;
pub mod schedule;
pub mod signals;
mod sink;
pub mod tensorboard;
pub mod timing;
mod trainer;
pub mod window;

use std::sync::Arc;

use crate::Result;
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::Batch;
use crate::data::loader::LoaderSpec;
use crate::data::pack::Rows;
use crate::model::{Losses, Phase, TokenDetection};
use baseline::Baseline;
use checkpoint::Position;
pub use diagnosis::weights_not_finite;
use health::Findings;
use log::Progress;
use metrics::Metrics;
use micro_batch::Splits;
use signals::Stop;
use trainer::Trainer;

/// What a run is made of.
pub struct Run<'a, B: Backend> {
    /// Settings.
    pub config: &'a RunConfig,
    /// The networks.
    pub model: &'a mut TokenDetection<B>,
    /// Rows to train on.
    pub rows: Arc<Rows>,
    /// Held-out rows.
    pub validation: Option<Rows>,
    /// How batches are made.
    pub loader: LoaderSpec,
    /// Where it shall be found out how many rows of a step are best computed at a time; else `loader` says it.
    pub splits: Option<Splits>,
    /// Whether to go on from the newest checkpoint.
    pub resume: bool,
    /// What is shown meanwhile.
    pub progress: Progress,
    /// Asks it to stop.
    pub stop: Stop,
    /// Breaks it on purpose.
    pub fault: Option<&'a Fault<'a, B>>,
}

/// For tests: called before each micro-batch with the number of steps made and of returns to a checkpoint, it may spoil
/// model and batch.
pub type Fault<'a, B> = dyn Fn(u64, u64, &mut TokenDetection<B>, &mut Batch) -> Result<()> + 'a;

/// Why training ended, when nothing went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// All steps are made.
    #[default]
    Finished,
    /// It was asked to stop, and can be resumed.
    Interrupted,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Why.
    pub ending: Ending,
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
    /// Standing still for checkpoints.
    pub saving_seconds: f64,
    /// Steps that changed nothing, because the loss or a gradient was not finite.
    pub skipped: u64,
    /// Returns to a checkpoint.
    pub rollbacks: u64,
    /// Held-out metrics at the end.
    pub held_out: Option<Metrics>,
    /// What models have that know nothing; none if the text has no token that can be masked.
    pub baseline: Option<Baseline>,
    /// What it did not learn by its last quarter.
    pub findings: Findings,
}

/// Trains to the last step or until it is asked to stop, and saves a checkpoint there.
pub fn train<B: Backend>(run: Run<'_, B>) -> Result<Summary> {
    let mut trainer = Trainer::new(run)?;
    let ending = trainer.go()?;
    trainer.save()?;
    trainer.close(ending)
}

/// Held-out metrics over `limit` rows spread over all: losses are means over batches, all else is over all tokens together.
pub fn evaluate<B: Backend>(
    model: &mut TokenDetection<B>,
    rows: &Rows,
    spec: &LoaderSpec,
    limit: usize,
) -> Result<Metrics> {
    let rows_used = rows.len().min(limit);
    let mut losses = Losses::default();
    // Those of other passes are the caller's to take before.
    model.take_counts()?;
    for (number, first) in (0..rows_used).step_by(spec.batch_size).enumerate() {
        let range = first..(first + spec.batch_size).min(rows_used);
        let weight = range.len() as f64 / rows_used as f64;
        let mut numbers = range.map(|i| i * rows.len() / rows_used);
        numbers.clone().try_for_each(|row| rows.check(0, row))?;
        let batch = spec.evaluation_batch(rows, numbers.by_ref());
        model.step_forward(&batch, Phase::Eval { step: number as u32 }, None)?;
        losses.add(&model.collect_losses(model.fetch_losses()?)?, weight);
    }
    Ok(Metrics::new(losses, &model.take_counts()?))
}
