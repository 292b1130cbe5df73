//! Masked language modelling before the run itself (`--mlm-first`): a run of its own in OUTPUT/mlm,
//! whose encoder the discriminator begins with.
//!
//! A discriminator with fresh weights lowers its loss first by making its output independent of the
//! token, and short runs do not get beyond that. One that has learned to predict tokens finds
//! replaced ones within a few hundred steps. The paper's two-stage procedure (Clark et
//! al. 2020, section 3.3) starts the discriminator in the same way, from the generator.

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::models::{Networks, architecture};
use super::{Inputs, Training};
use crate::Result;
use crate::cli::confirm;
use crate::cli::device::{Choice, with_backend};
use crate::config::{RunConfig, Settings};
use crate::fsutil::create_dir;
use crate::model::Objective;
use crate::model::config::{Architecture, Preset};
use crate::model::hf::{Checkpoint, StartingPoint};
use crate::train::checkpoint::Checkpoints;
use crate::train::log::{FIRST_STAGE, Progress, holds_run, tagged};
use crate::train::{Ending, Summary};

/// What came of the first stage.
pub(super) enum FirstStage {
    /// There is none, or the run itself has been saved since.
    NotNeeded,
    /// The discriminator.
    Discriminator(Box<Checkpoint>),
    /// A signal ended it; it is saved.
    Interrupted(Box<Summary>),
}

/// Runs the first stage of `training`, goes on with it, or reads its result.
pub(super) fn first_stage(training: &Training<'_>, choice: Choice) -> Result<FirstStage> {
    let config = training.config;
    if config.mlm_first == 0.0 || !Checkpoints::new(&config.output, 1).list()?.is_empty() {
        return Ok(FirstStage::NotNeeded);
    }
    let settings = settings(config, training.settings);
    let stage = RunConfig { train: config.train.clone(), ..RunConfig::resolve(settings.clone())? };
    let model = stage.output.join(Objective::Mlm.directories()[0]);
    if !is_saved(&model) {
        announce(training.progress, "mlm", &stage.output);
        create_dir(&stage.output)?;
        let networks = networks(training);
        let run = Training {
            config: &stage,
            settings: &settings,
            networks,
            tokenizer: training.tokenizer.clone(),
            inputs: Inputs::new(&stage, &training.tokenizer)?,
            resume: holds_run(&stage.output),
            progress: training.progress,
            verbose: false,
            stop: training.stop.clone(),
        };
        let summary = with_backend(choice, run)?;
        if summary.ending == Ending::Interrupted {
            return Ok(FirstStage::Interrupted(Box::new(summary)));
        }
        announce(training.progress, "electra", &config.output);
    }
    let head = architecture(config.head);
    Ok(FirstStage::Discriminator(Box::new(StartingPoint::read(&model)?.network(head)?)))
}

/// Whether the stage is finished: its model is written last.
fn is_saved(model: &Path) -> bool {
    model.join("model.safetensors").is_file() && model.join("README.md").is_file()
}

/// An untrained network of the discriminator's sizes.
fn networks(training: &Training<'_>) -> Networks {
    let sizes = training.networks.deepest().clone();
    Networks { masked_lm: Checkpoint::fresh(sizes, Architecture::MaskedLm), discriminator: None }
}

/// The settings of the stage: those of the run, but for what a pair alone has.
fn settings(config: &RunConfig, typed: &Settings) -> Settings {
    let directory = |name: &String| Preset::from_name(name).is_none().then(|| PathBuf::from(name));
    let tokenizer = config.tokenizer.clone().or_else(|| config.generator.as_ref().and_then(directory));
    let times = |steps: u64| (steps as f64 * config.mlm_first).ceil() as u64;
    Settings {
        objective: Some(Objective::Mlm),
        output: Some(config.output.join(FIRST_STAGE)),
        train: Some(config.train.clone()),
        validation: (!config.validation.is_empty()).then(|| config.validation.clone()),
        shards: Some(config.shards.clone()),
        tokenizer: Some(tokenizer.unwrap_or_else(|| config.output.join("tokenizer"))),
        steps: config.steps.map(times),
        epochs: config.steps.is_none().then_some(config.epochs * config.mlm_first),
        recipe: Some(config.recipe),
        seq_len: Some(config.seq_len),
        mlm_first: None,
        generator: None,
        head: None,
        share: None,
        weight: None,
        gen_weight: None,
        temperature: None,
        disallow_correct: None,
        warmup_steps: typed.warmup_steps.map(times),
        ..typed.without_vocabulary()
    }
}

/// Says which stage begins.
fn announce(progress: Progress, stage: &str, output: &Path) {
    match progress {
        Progress::Quiet => {}
        Progress::Json => {
            let mut object = Map::new();
            object.insert("stage".into(), json!(stage));
            object.insert("output".into(), json!(output));
            // That nobody reads it is no reason to stop training.
            confirm(&tagged("stage", object).to_string());
        }
        Progress::Text if stage == "mlm" => crate::note!(
            "first stage: masked language modelling, with whose encoder the discriminator begins \
             (--mlm-first 0 for none); it is kept in {}",
            output.display()
        ),
        Progress::Text => crate::note!("second stage: generator and discriminator"),
    }
}
