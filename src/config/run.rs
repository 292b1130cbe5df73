//! A run's settings once all are decided.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::recipe::{Defaults, check_mlm_first};
use super::{
    Device, Head, LogFormat, MicroBatch, Precision, Recipe, Settings, VocabularySettings, reading, refused,
    uses_token_types,
};
use crate::data::dedup::Dedup;
use crate::data::mask::MaskStyle;
use crate::data::pack::Merge;
use crate::data::source::Reading;
use crate::data::tokenizer::Tokenizer;
use crate::model::config::Preset;
use crate::model::{Flavour, Init, Objective, Share};
use crate::train::schedule::{LrScheduler, Schedule, SchedulerKwargs};
use crate::{Error, Result};

/// Both where nothing is given: an event file costs little.
fn all_formats() -> Vec<LogFormat> {
    vec![LogFormat::Jsonl, LogFormat::Tensorboard]
}

/// Of runs that were begun before there were recipes.
fn paper() -> Recipe {
    Recipe::Paper
}

fn adam_betas() -> [f64; 2] {
    [0.9, 0.999]
}

/// A run with every setting decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // as in `Settings`
pub struct RunConfig {
    pub train: Vec<String>,
    pub columns: Vec<String>,
    pub validation: Vec<String>,
    /// `None` leaves it to the size of the text.
    pub held_out: Option<f64>,
    pub tokenizer: Option<PathBuf>,
    pub vocab_size: usize,
    /// Of a vocabulary that the run trains.
    #[serde(flatten)]
    pub vocabulary: VocabularySettings,
    #[serde(default)]
    pub allow_unknown: bool,
    #[serde(default)]
    pub dedup: Dedup,
    pub merge: Merge,
    pub seq_len: usize,
    pub shards: PathBuf,
    pub preset: Preset,
    /// Both networks start from it; instead of the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    pub generator: Option<String>,
    pub discriminator: Option<String>,
    pub head: Head,
    pub share: Share,
    #[serde(default)]
    pub objective: Objective,
    pub flavour: Flavour,
    /// `Auto` is decided.
    #[serde(default = "paper")]
    pub recipe: Recipe,
    /// Why it is this one.
    #[serde(skip)]
    pub recipe_reason: String,
    /// Steps of masked language modelling for each step of the run, before it begins.
    #[serde(default)]
    pub mlm_first: f64,
    #[serde(default)]
    pub init: Init,
    pub weight: f64,
    pub gen_weight: f64,
    pub mask_prob: f64,
    pub mask_style: MaskStyle,
    pub temperature: f64,
    pub disallow_correct: bool,
    pub batch_size: usize,
    pub grad_accumulation: usize,
    /// `None`: `batch_size` rows at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<MicroBatch>,
    pub steps: Option<u64>,
    pub epochs: f64,
    /// Whether an epoch ends with a short batch, as the Trainer's, instead of one filled up from
    /// the next epoch.
    #[serde(default)]
    pub short_batches: bool,
    pub learning_rate: f64,
    pub warmup_steps: Option<u64>,
    /// Given, it decides in place of `warmup_steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    #[serde(alias = "schedule")]
    pub lr_scheduler: LrScheduler,
    #[serde(default, skip_serializing_if = "SchedulerKwargs::is_empty")]
    pub lr_scheduler_kwargs: SchedulerKwargs,
    pub weight_decay: f64,
    #[serde(default = "adam_betas")]
    pub betas: [f64; 2],
    pub adam_epsilon: f64,
    pub bias_correction: bool,
    pub clip: f64,
    pub seed: u64,
    pub output: PathBuf,
    pub save_every: u64,
    pub keep: usize,
    pub max_bad_steps: u64,
    pub eval_every: u64,
    pub eval_rows: usize,
    pub log_every: u64,
    #[serde(default = "all_formats")]
    pub log_to: Vec<LogFormat>,
    #[serde(default)]
    pub language: Option<String>,
    #[serde(default)]
    pub license: Option<String>,
    pub device: Device,
    pub precision: Option<Precision>,
    pub threads: Option<usize>,
}

impl RunConfig {
    /// Fills in the defaults of flavour and preset, and refuses what cannot be.
    pub fn resolve(s: Settings) -> Result<Self> {
        let flavour = s.flavour.unwrap_or_default();
        let preset = s.preset.unwrap_or_default();
        let txtai = flavour == Flavour::Txtai;
        let objective = s.objective.unwrap_or_default();
        refused::blank_paths(&s)?;
        if objective == Objective::Mlm {
            refused::settings_of_pairs(&s)?;
        }
        let by_flavour = |txtai_value: f64, electra: f64| if txtai { txtai_value } else { electra };
        if s.base.is_some() {
            for (name, given) in [
                ("generator", s.generator.is_some()),
                ("discriminator", s.discriminator.is_some()),
                ("preset", s.preset.is_some()),
            ] {
                if given {
                    return Err(Error::config(format!(
                        "--base and --{name} both say what the networks start from: give one of them"
                    )));
                }
            }
        }
        if let Some(path) = &s.tokenizer {
            s.refuse_vocabulary(&format!("--tokenizer {}", path.display()))?;
        }
        let seq_len = s.seq_len.unwrap_or(match preset {
            Preset::Tiny if !txtai => 64,
            Preset::Tiny | Preset::Small => 128,
            Preset::Base | Preset::Large => 512,
        });
        let batch_size = s.batch_size.unwrap_or(if txtai { 8 } else { 32 });
        let grad_accumulation = s.grad_accumulation.unwrap_or(1);
        let defaults = Defaults::of(&s, batch_size * grad_accumulation * seq_len)?;
        let is_pair = objective == Objective::Electra;
        let mlm_first = s.mlm_first.unwrap_or(match s.share {
            // Another --share than none leaves no room for embeddings of the discriminator's own.
            Some(share) if share != Share::None => 0.0,
            _ => {
                if is_pair {
                    defaults.mlm_first
                } else {
                    0.0
                }
            }
        });
        check_mlm_first(&s, mlm_first)?;
        let share = match mlm_first > 0.0 {
            true => Share::None,
            false if txtai => Share::Word,
            false => Share::All,
        };
        let vocabulary = s.vocabulary();
        let output =
            s.output.ok_or_else(|| Error::config("missing --output DIR, the directory of the run"))?;
        let config = Self {
            train: s.train.ok_or_else(|| Error::config("missing --train PATH, the text to train on"))?,
            columns: s.columns.unwrap_or_else(|| vec!["text".to_owned()]),
            held_out: s.held_out.or(s.validation.is_some().then_some(0.0)),
            validation: s.validation.unwrap_or_default(),
            tokenizer: s.tokenizer,
            vocab_size: s.vocab_size.unwrap_or(preset.vocab_size()),
            vocabulary,
            allow_unknown: s.allow_unknown.unwrap_or(false),
            dedup: s.dedup.unwrap_or_default(),
            merge: s.merge.unwrap_or(if txtai { Merge::Concat } else { Merge::Segments }),
            seq_len,
            shards: s.shards.unwrap_or_else(|| output.join("shards")),
            preset,
            base: s.base,
            generator: s.generator,
            discriminator: s.discriminator,
            head: s.head.unwrap_or_default(),
            share: s.share.unwrap_or(share),
            objective,
            flavour,
            recipe: defaults.recipe,
            recipe_reason: defaults.reason,
            mlm_first,
            init: s.init.unwrap_or(defaults.init),
            weight: s.weight.unwrap_or(50.0),
            gen_weight: s.gen_weight.unwrap_or(1.0),
            mask_prob: s.mask_prob.unwrap_or(defaults.mask_prob),
            mask_style: if txtai { MaskStyle::Txtai } else { MaskStyle::Electra },
            temperature: s.temperature.unwrap_or(1.0),
            disallow_correct: s.disallow_correct.unwrap_or(false),
            batch_size,
            grad_accumulation,
            micro_batch: s.micro_batch,
            // What google-research/electra counts in steps is a stream of full batches; epochs are
            // the Trainer's.
            short_batches: txtai || s.steps.is_none(),
            steps: s.steps,
            epochs: s.epochs.unwrap_or(by_flavour(3.0, 1.0)),
            learning_rate: s.learning_rate.unwrap_or(defaults.learning_rate),
            warmup_steps: s.warmup_steps.or((txtai && s.warmup_ratio.is_none()).then_some(0)),
            warmup_ratio: s.warmup_ratio,
            lr_scheduler: s.lr_scheduler.unwrap_or(if txtai {
                LrScheduler::Linear
            } else {
                LrScheduler::Electra
            }),
            lr_scheduler_kwargs: s.lr_scheduler_kwargs.unwrap_or_default(),
            weight_decay: s.weight_decay.unwrap_or(by_flavour(0.0, 0.01)),
            betas: match s.betas {
                None => adam_betas(),
                Some(betas) => <[f64; 2]>::try_from(betas).map_err(|betas| {
                    Error::config(format!(
                        "--betas has {} numbers, expected two: --betas 0.9,0.999",
                        betas.len()
                    ))
                })?,
            },
            adam_epsilon: s.adam_epsilon.unwrap_or(by_flavour(1e-8, 1e-6)),
            bias_correction: s.bias_correction.unwrap_or(defaults.bias_correction),
            clip: s.clip.unwrap_or(defaults.clip),
            seed: s.seed.unwrap_or(1),
            output,
            save_every: s.save_every.unwrap_or(1000),
            keep: s.keep.unwrap_or(2),
            max_bad_steps: s.max_bad_steps.unwrap_or(5),
            eval_every: s.eval_every.unwrap_or(0),
            eval_rows: s.eval_rows.unwrap_or(200),
            log_every: s.log_every.unwrap_or(10),
            log_to: s.log_to.unwrap_or_else(all_formats),
            language: s.language,
            license: s.license,
            device: s.device.unwrap_or_default(),
            precision: s.precision,
            threads: s.threads,
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::config(problem));
        self.vocabulary.spec(self.vocab_size)?;
        for (name, value) in [
            ("batch-size", self.batch_size),
            ("grad-accumulation", self.grad_accumulation),
            ("keep", self.keep),
            ("eval-rows", self.eval_rows),
            ("save-every", self.save_every as usize),
            ("max-bad-steps", self.max_bad_steps as usize),
            ("log-every", self.log_every as usize),
            ("threads", self.threads.unwrap_or(1)),
            ("steps", self.steps.unwrap_or(1) as usize),
        ] {
            if value == 0 {
                return fail(format!("--{name} must be 1 or more"));
            }
        }
        if let Some(MicroBatch::Rows(rows)) = self.micro_batch
            && !self.splits().contains(&rows)
        {
            let splits: Vec<String> = self.splits().iter().map(usize::to_string).collect();
            return fail(format!(
                "--micro-batch {rows} does not divide the {} rows of a step (--batch-size {} times \
                 --grad-accumulation {}): {} do",
                self.rows_per_step(),
                self.batch_size,
                self.grad_accumulation,
                splits.join(", ")
            ));
        }
        if !(self.mask_prob > 0.0 && self.mask_prob < 1.0) {
            return fail(format!("--mask-prob is {}, expected a number between 0 and 1", self.mask_prob));
        }
        for (name, value) in [
            ("weight", self.weight),
            ("gen-weight", self.gen_weight),
            ("learning-rate", self.learning_rate),
            ("weight-decay", self.weight_decay),
            ("clip", self.clip),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(format!("--{name} is {value}, expected 0 or more"));
            }
        }
        if !(self.adam_epsilon.is_finite() && self.adam_epsilon as f32 > 0.0) {
            return fail(format!(
                "--adam-epsilon is {}, expected more than 0: where a gradient is 0, an update \
                 would be 0 / 0",
                self.adam_epsilon
            ));
        }
        if self.columns.is_empty() {
            return fail("--columns names no column".to_owned());
        }
        if let Some(beta) = self.betas.into_iter().find(|beta| !(0.0..1.0).contains(beta)) {
            return fail(format!("--betas has {beta}, expected numbers from 0 to below 1"));
        }
        self.schedule()?;
        self.reading()?;
        match (self.warmup_ratio, self.warmup_steps) {
            (Some(_), Some(_)) => {
                return fail(
                    "--warmup-ratio and --warmup-steps are two answers to one question: give one".to_owned(),
                );
            }
            (Some(ratio), _) if !(0.0..=1.0).contains(&ratio) => {
                return fail(format!("--warmup-ratio is {ratio}, expected a share of the steps from 0 to 1"));
            }
            (ratio, steps)
                if self.lr_scheduler == LrScheduler::Constant
                    && (ratio.unwrap_or(0.0) > 0.0 || steps.unwrap_or(0) > 0) =>
            {
                return fail(
                    "--lr-scheduler constant has no warm-up: use constant-with-warmup, or leave the warm-up out"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if !(self.epochs > 0.0 && self.epochs.is_finite()) {
            return fail(format!("--epochs is {}, expected more than 0", self.epochs));
        }
        if let Some(share) = self.held_out {
            if !(0.0..1.0).contains(&share) {
                return fail(format!("--held-out is {share}, expected a share from 0 to below 1"));
            }
            if share > 0.0 && !self.validation.is_empty() {
                return fail(
                    "--validation and --held-out are two answers to one question: give one".to_owned(),
                );
            }
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return fail(format!("--temperature is {}, expected more than 0", self.temperature));
        }
        Ok(())
    }

    /// How the columns of records become paragraphs.
    pub fn reading(&self) -> Result<Reading> {
        reading(self.flavour, self.merge, &self.columns)
    }

    /// Whether rows have tokens of type 1: those of second segments, or of the second texts of
    /// pairs.
    pub fn uses_token_types(&self) -> bool {
        uses_token_types(self.flavour, self.merge, &self.columns)
    }

    /// The longest row if --seq-len is not given: the preset's, or in txtai's flavour, as its
    /// `maxlength`, what the given tokenizer allows; never more than the models have positions for.
    pub fn default_seq_len(&self, tokenizer: Option<&Tokenizer>, positions: usize) -> usize {
        match tokenizer {
            Some(tokenizer) if self.flavour == Flavour::Txtai => {
                tokenizer.model_max_length().map_or(positions, |length| length.min(positions))
            }
            _ => self.seq_len.min(positions),
        }
    }

    /// Rows of an optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.grad_accumulation
    }

    /// Rows of a micro-batch, unless `auto` finds others to be better.
    pub fn rows_at_once(&self) -> usize {
        match self.micro_batch {
            Some(MicroBatch::Rows(rows)) => rows,
            _ => self.batch_size,
        }
    }

    /// Rows of a micro-batch that a step could be split into, ascending.
    pub fn splits(&self) -> Vec<usize> {
        let rows = self.rows_per_step();
        (1..=rows).filter(|split| rows.is_multiple_of(*split)).collect()
    }

    /// The same steps, computed `rows` rows at a time.
    pub fn split_into(&self, rows: usize) -> Self {
        Self { batch_size: rows, grad_accumulation: self.rows_per_step() / rows.max(1), ..self.clone() }
    }

    /// Optimizer steps over `rows` rows. Epochs are counted as the Trainer of `transformers` counts
    /// them: of ceil(rows / rows of a step) steps each, and a part of one is rounded up to whole
    /// steps.
    pub fn total_steps(&self, rows: usize) -> u64 {
        let per_epoch = rows.div_ceil(self.rows_per_step()).max(1);
        self.steps.unwrap_or((self.epochs * per_epoch as f64).ceil() as u64)
    }

    /// Warm-up of a run of `steps` steps.
    pub fn warmup(&self, steps: u64) -> u64 {
        match self.warmup_ratio {
            Some(ratio) => (steps as f64 * ratio).ceil() as u64,
            None => self.warmup_steps.unwrap_or((steps / 10).min(10_000)),
        }
    }

    /// The learning rate of every update.
    pub fn schedule(&self) -> Result<Schedule> {
        Schedule::new(self.lr_scheduler, &self.lr_scheduler_kwargs, self.learning_rate)
    }

    /// The settings that have a meaning for the run's objective.
    pub fn shown(&self) -> Result<Map<String, Value>> {
        let Value::Object(mut all) = serde_json::to_value(self).map_err(|e| Error::config(e.to_string()))?
        else {
            return Ok(Map::new());
        };
        if self.objective == Objective::Mlm {
            all.retain(|name, _| !refused::OF_PAIRS.contains(&name.as_str()));
        }
        Ok(all)
    }
}
