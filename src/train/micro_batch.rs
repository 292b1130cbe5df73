//! How many rows of a step are computed at a time, where `--micro-batch auto` leaves that to the device.
//!
//! A device that records steps is asked: a few splits of the run's next step are timed on its own rows, forward and backward, without an
//! update. Nothing of that stays: parameters and moments are not written, gradients and counts are zero again, random numbers and the order of
//! the data are functions of the step. Elsewhere the plan decides: the largest split of which a layer fits the cache.

use std::time::Instant;

use super::Run;
use super::checkpoint::TrainerState;
use super::log::{Log, Progress};
use super::trainer::{ordered, phase};
use crate::backend::Backend;
use crate::config::RunConfig;
use crate::data::loader::LoaderSpec;
use crate::data::pack::Rows;
use crate::model::{MemoryPlan, TokenDetection};
use crate::{Error, Result};

/// Splits that are tried.
const TRIED: usize = 4;
/// A device that keeps two batches records a step for either.
const WARM_UP: usize = 2;
const ROUNDS: usize = 3;
/// A split that is faster by less is not.
const MARGIN: f64 = 0.01;

/// What may be chosen, rows of a micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Those that divide a step and fit the memory, ascending; one at least.
    pub fit: Vec<usize>,
    /// The one of them that the plan recommends.
    pub planned: usize,
}

impl Splits {
    /// Of a run whose memory `plan` tells, on a device with `free` bytes, if it has its own. A step of single rows must fit.
    pub fn of(
        config: &RunConfig,
        layers: usize,
        free: Option<u64>,
        plan: impl Fn(&RunConfig) -> Result<MemoryPlan>,
    ) -> Result<Self> {
        let row = layer_bytes(&plan(&config.split_into(1))?, layers);
        let (mut fit, mut planned) = (Vec::new(), 1);
        for rows in config.splits() {
            let needed = plan(&config.split_into(rows))?.total_bytes();
            if free.is_some_and(|free| needed > free) {
                continue;
            }
            fit.push(rows);
            if row * rows as u64 <= cache_bytes() {
                planned = rows;
            }
        }
        Ok(Self { fit, planned })
    }
}

/// Bytes of the last cache where the machine does not tell.
const USUAL_CACHE: u64 = 8 << 20;

/// Bytes of the machine's largest cache, by `/sys/devices/system/cpu`.
fn cache_bytes() -> u64 {
    let sizes = glob::glob("/sys/devices/system/cpu/cpu0/cache/index*/size").into_iter().flatten().flatten();
    let bytes = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    sizes.filter_map(bytes).max().unwrap_or(USUAL_CACHE)
}

/// What a layer of the discriminator, or of the only network, reads and writes in a step: its own activations, and the gradients that all layers share.
fn layer_bytes(plan: &MemoryPlan, layers: usize) -> u64 {
    let of = |family: &str, but: &[&str]| -> u64 {
        let entries = plan.entries.iter().filter(|e| e.family == family && !but.contains(&e.name.as_str()));
        entries.map(|e| e.bytes).sum()
    };
    let layered = ["discriminator", "model"].map(|family| of(family, &["embeddings", "head", "logits"]));
    layered.iter().sum::<u64>() / layers.max(1) as u64 + of("scratch", &["batch"])
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) rows: usize,
    /// Seconds of a step's forward and backward passes, where they were timed.
    pub(super) timed: Vec<(usize, f64)>,
}

impl Choice {
    /// Tells whoever watches, and the log.
    pub(super) fn tell(&self, of: usize, log: &mut Log, progress: Progress) {
        if progress != Progress::Quiet {
            let timed =
                self.timed.iter().map(|(rows, seconds)| format!("{rows} take {:.1} ms", seconds * 1e3));
            let why = match self.timed.is_empty() {
                true => "whose layers fit the cache".to_owned(),
                false => format!("the fastest for a step of {of}: {}", timed.collect::<Vec<_>>().join(", ")),
            };
            crate::note!("micro-batches of {} rows, {why}", self.rows);
        }
        log.micro_batch(self.rows, of, &self.timed);
    }
}

/// Settles how many rows are computed at a time: as the checkpoint has it, as was asked for, or as is found out now.
pub(super) fn settle<B: Backend>(run: &mut Run<'_, B>, state: &mut TrainerState) -> Result<Option<Choice>> {
    let (asked, kept) = (run.loader.batch_size, state.micro_batch);
    let choice = match &run.splits {
        None if kept != 0 && kept != asked => {
            return Err(Error::config(format!(
                "the checkpoint of step {} is of a run that computes {kept} rows at a time, not {asked}: \
                 --micro-batch {kept} goes on with it, another number needs a new run",
                state.position.step
            )));
        }
        Some(splits) if kept == 0 && state.position.step == 0 => {
            let spec = ordered(run.loader, state);
            Some(choose(run.model, &run.rows, spec, state.position.step, splits)?)
        }
        _ => None,
    };
    let rows = match (&choice, kept) {
        (Some(choice), _) => choice.rows,
        (None, 0) => asked,
        (None, kept) => kept,
    };
    run.loader = split(run.loader, rows);
    state.micro_batch = rows;
    Ok(choice)
}

/// The best split of step `step`; `spec` holds the whole step.
fn choose<B: Backend>(
    model: &mut TokenDetection<B>,
    rows: &Rows,
    spec: LoaderSpec,
    step: u64,
    splits: &Splits,
) -> Result<Choice> {
    if !B::RECORDS || splits.fit.len() < 2 {
        return Ok(Choice { rows: splits.planned, timed: Vec::new() });
    }
    let mut timed = Vec::new();
    // Memory is reserved for the largest at once.
    for &size in splits.fit.iter().rev().take(TRIED) {
        timed.push((size, time(model, rows, &split(spec, size), step)?));
    }
    model.unstage();
    model.zero_grad()?;
    model.take_counts()?;
    let fastest = timed.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
    // Of those as good as the fastest the largest, which comes first.
    let chosen = timed.iter().find(|(_, seconds)| *seconds <= fastest * (1.0 + MARGIN));
    let rows = chosen.map(|(rows, _)| *rows).ok_or_else(|| Error::run("no split of a step was timed"))?;
    Ok(Choice { rows, timed })
}

/// The same steps, `rows` rows at a time.
fn split(spec: LoaderSpec, rows: usize) -> LoaderSpec {
    LoaderSpec { batch_size: rows, micro_batches: spec.batch_size * spec.micro_batches / rows, ..spec }
}

/// Seconds of the forward and backward passes of a step, the median of a few.
fn time<B: Backend>(model: &mut TokenDetection<B>, rows: &Rows, spec: &LoaderSpec, step: u64) -> Result<f64> {
    let batches: Vec<_> = (0..spec.micro_batches_of(rows.len(), step))
        .map(|micro| spec.checked_batch(rows, step, micro))
        .collect::<Result<_>>()?;
    let mut times = Vec::new();
    for round in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        for (micro, batch) in batches.iter().enumerate() {
            model.stage(batch)?;
            model.step_staged(phase(step, micro, spec, rows.len()))?;
        }
        let losses = model.fetch_losses()?;
        model.collect_losses(losses)?;
        if round >= WARM_UP {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}
