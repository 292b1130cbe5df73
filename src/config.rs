//! Settings of a training run, in two stages: what the user typed (flags over a TOML file, all optional) and what
//! that means once defaults of flavour and preset are filled in.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::dedup::Dedup;
use crate::data::mask::MaskStyle;
use crate::data::pack::Merge;
use crate::model::config::Preset;
use crate::model::{Flavour, Share};
use crate::suggest::{closest, possible_value};
use crate::train::schedule::Schedule;
use crate::{Error, Result};

/// The discriminator's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// `ElectraForPreTraining`: one logit a token, binary cross-entropy.
    #[default]
    Pretraining,
    /// `ElectraForTokenClassification`: two labels, padding counts.
    TokenClassification,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// The GPU kernels on an emulated device: slow, for tests.
    #[cfg(feature = "simt")]
    Simt,
}

/// What is computed with: working values; statistics, gradients of parameters and master weights are fp32 at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// bfloat16 (GPU).
    Bf16,
    /// Single.
    Fp32,
    /// Single, products of numbers rounded to ten bits (GPU).
    Tf32,
    /// Double (CPU).
    Fp64,
}

/// A form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// `metrics.jsonl`, which `elektron report` and `elektron runs` read.
    Jsonl,
    /// TensorBoard's event files.
    Tensorboard,
}

impl Precision {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Fp64 => "fp64",
        }
    }
}

macro_rules! settings {
    ($($(#[$meta:meta])* $name:ident: $kind:ty,)*) => {
        /// What the user typed: every setting optional. The same names serve as flags and as keys of a TOML file.
        #[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct Settings {
            $($(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$kind>,)*
        }

        /// Keys of a TOML file.
        const KEYS: &[&str] = &[$(stringify!($name)),*];
    };
}

settings! {
    /// Text to train on: files, folders and globs of .txt, .md, .csv, .tsv, .jsonl, .json (also .gz, .zst, .bz2, .xz),
    /// .parquet and .arrow; folders that `datasets` saved; a .manifest of paths with weights
    #[arg(long, num_args = 1.., value_name = "PATH", help_heading = "Text")]
    train: Vec<String>,
    /// Text columns of csv, tsv, JSON, Parquet and Arrow files [default: text]
    #[arg(long, value_delimiter = ',', value_name = "NAME", help_heading = "Text")]
    columns: Vec<String>,
    /// Held-out text
    #[arg(long, num_args = 1.., value_name = "PATH", help_heading = "Text")]
    validation: Vec<String>,
    /// Share of the documents that is held out, chosen by their content; 0 for none [default: 0.005, 1 M tokens at the
    /// most, of 400 documents or more; 0 with --validation]
    #[arg(long, value_name = "P", help_heading = "Text")]
    held_out: f64,
    /// tokenizer.json, vocab.txt, a directory of either, or a name on the hub; without it a vocabulary is trained on the text
    #[arg(long, value_name = "PATH", help_heading = "Text")]
    tokenizer: PathBuf,
    /// Entries of a trained vocabulary [default: the preset's]
    #[arg(long, value_name = "N", help_heading = "Text")]
    vocab_size: usize,
    /// Which documents are dropped because an earlier one repeats them [default: none]
    #[arg(long, help_heading = "Text")]
    dedup: Dedup,
    /// How paragraphs become rows [default: segments in the electra flavour, concat in txtai's]
    #[arg(long, help_heading = "Text")]
    merge: Merge,
    /// Longest row, in tokens [default: 128; 512 for base and large]
    #[arg(long, value_name = "T", help_heading = "Text")]
    seq_len: usize,
    /// Where tokenized shards are kept [default: OUTPUT/shards]
    #[arg(long, value_name = "DIR", help_heading = "Text")]
    shards: PathBuf,

    /// Sizes of the pair [default: small]
    #[arg(long, help_heading = "Model")]
    preset: Preset,
    /// Generator to start from: a Hugging Face directory, a name on its hub (owner/name@revision), or a preset's
    /// full size, untrained
    #[arg(long, value_name = "DIR|NAME|PRESET", help_heading = "Model")]
    generator: String,
    /// Discriminator to start from
    #[arg(long, value_name = "DIR|NAME|PRESET", help_heading = "Model")]
    discriminator: String,
    /// Head of the discriminator [default: pretraining]
    #[arg(long, help_heading = "Model")]
    head: Head,
    /// What the two networks share [default: all in the electra flavour, word in txtai's]
    #[arg(long, help_heading = "Model")]
    share: Share,

    /// Whose details to follow: the paper's or txtai's [default: electra]
    #[arg(long, help_heading = "Objective")]
    flavour: Flavour,
    /// Weight of the discriminator's loss [default: 50]
    #[arg(long, value_name = "X", help_heading = "Objective")]
    weight: f64,
    /// Weight of the generator's loss [default: 1]
    #[arg(long, value_name = "X", help_heading = "Objective")]
    gen_weight: f64,
    /// Share of tokens that are masked [default: 0.15; 0.25 for large]
    #[arg(long, value_name = "P", help_heading = "Objective")]
    mask_prob: f64,
    /// Divides the generator's logits before sampling [default: 1]
    #[arg(long, value_name = "X", help_heading = "Objective")]
    temperature: f64,
    /// Never sample the original token
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Objective")]
    disallow_correct: bool,

    /// Rows of a micro-batch [default: 32; tiny 16; txtai 8]
    #[arg(long, value_name = "B", help_heading = "Optimization")]
    batch_size: usize,
    /// Micro-batches of a step [default: 1]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    grad_accumulation: usize,
    /// Optimizer steps
    #[arg(long, value_name = "N", conflicts_with = "epochs", help_heading = "Optimization")]
    steps: u64,
    /// Passes over the text, instead of steps [default: 1; txtai 3]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    epochs: f64,
    /// Highest learning rate [default: 5e-4; 2e-4 for base and large; txtai 5e-5]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    learning_rate: f64,
    /// Steps of linear warm-up [default: a tenth of the steps, 10,000 at most; txtai 0]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    warmup_steps: u64,
    /// Form of warm-up and decay [default: the flavour's]
    #[arg(long, help_heading = "Optimization")]
    schedule: Schedule,
    /// Weight decay of matrices and embeddings [default: 0.01; txtai 0]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    weight_decay: f64,
    /// Adam's epsilon [default: 1e-6; txtai 1e-8]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    adam_epsilon: f64,
    /// Adam's bias correction [default: false; txtai true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Optimization")]
    bias_correction: bool,
    /// Largest gradient norm; 0 for none [default: 1]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    clip: f64,
    /// Of everything random [default: 1]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    seed: u64,

    /// Directory of the run: checkpoints, metrics.jsonl, generator/ and discriminator/
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    output: PathBuf,
    /// Steps between checkpoints [default: 1000]
    #[arg(long, value_name = "N", help_heading = "Run")]
    save_every: u64,
    /// Checkpoints kept [default: 2]
    #[arg(long, value_name = "N", help_heading = "Run")]
    keep: usize,
    /// Steps in a row without a finite loss and gradient after which the run goes back to its last good checkpoint
    /// [default: 5]
    #[arg(long, value_name = "N", help_heading = "Run")]
    max_bad_steps: u64,
    /// Steps between held-out evaluations; 0 for the end only [default: 0]
    #[arg(long, value_name = "N", help_heading = "Run")]
    eval_every: u64,
    /// Held-out rows evaluated [default: 200]
    #[arg(long, value_name = "N", help_heading = "Run")]
    eval_rows: usize,
    /// Steps between lines of the log [default: 10]
    #[arg(long, value_name = "N", help_heading = "Run")]
    log_every: u64,
    /// Forms of the log [default: jsonl,tensorboard]
    #[arg(long, value_delimiter = ',', value_name = "FORM", help_heading = "Run")]
    log_to: Vec<LogFormat>,
    /// Language of the text, for the model card: en, de …
    #[arg(long, value_name = "CODE", help_heading = "Card")]
    language: String,
    /// Licence of the models, for the model card: apache-2.0, cc-by-4.0 … [default: unknown]
    #[arg(long, value_name = "ID", help_heading = "Card")]
    license: String,
    /// Where to compute [default: auto]
    #[arg(long, help_heading = "Run")]
    device: Device,
    /// What to compute with [default: bf16 on a GPU, fp32 on the CPU]
    #[arg(long, help_heading = "Run")]
    precision: Precision,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Run")]
    threads: usize,
}

impl Settings {
    /// Reads a TOML file; keys are the flags' names, with - or _.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let table: toml::Table = toml::from_str(&text).map_err(|e| Error::file(path, e.to_string()))?;
        let mut object = Map::new();
        for (key, value) in table {
            let name = key.replace('-', "_");
            if !KEYS.contains(&name.as_str()) {
                let near = closest(&name, KEYS.iter().copied()).map(|k| k.replace('_', "-"));
                let hint = near.map_or(String::new(), |k| format!("; did you mean `{k}`?"));
                return Err(Error::file(path, format!("`{key}` is no setting{hint}")));
            }
            let value = serde_json::to_value(value).map_err(|e| Error::file(path, e.to_string()))?;
            let key = key.replace('_', "-");
            // By itself first, so that the error can name the key.
            let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
            serde_json::from_value::<Self>(alone).map_err(|e| {
                Error::file(
                    path,
                    format!(
                        "`{key}`: {e}{}",
                        possible_value(&Self::augment_args(clap::Command::new("")), &key, &value)
                    ),
                )
            })?;
            object.insert(key, value);
        }
        serde_json::from_value(Value::Object(object)).map_err(|e| Error::file(path, e.to_string()))
    }

    /// These settings, and those of `below` where these say nothing.
    pub fn over(&self, below: &Self) -> Result<Self> {
        let object =
            |settings: &Self| serde_json::to_value(settings).map_err(|e| Error::config(e.to_string()));
        let (mut all, ours) = (object(below)?, object(self)?);
        if let (Value::Object(all), Value::Object(ours)) = (&mut all, ours) {
            // Steps and epochs say the same thing: whichever stands above wins.
            for (one, other) in [("steps", "epochs"), ("epochs", "steps")] {
                if ours.contains_key(one) {
                    all.remove(other);
                }
            }
            all.extend(ours);
        }
        serde_json::from_value(all).map_err(|e| Error::config(e.to_string()))
    }
}

/// Where nothing is said, both: an event file costs little, and is there when somebody wants to look.
fn all_formats() -> Vec<LogFormat> {
    vec![LogFormat::Jsonl, LogFormat::Tensorboard]
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
    #[serde(default)]
    pub dedup: Dedup,
    pub merge: Merge,
    pub seq_len: usize,
    pub shards: PathBuf,
    pub preset: Preset,
    pub generator: Option<String>,
    pub discriminator: Option<String>,
    pub head: Head,
    pub share: Share,
    pub flavour: Flavour,
    pub weight: f64,
    pub gen_weight: f64,
    pub mask_prob: f64,
    pub mask_style: MaskStyle,
    pub temperature: f64,
    pub disallow_correct: bool,
    pub batch_size: usize,
    pub grad_accumulation: usize,
    pub steps: Option<u64>,
    pub epochs: f64,
    pub learning_rate: f64,
    pub warmup_steps: Option<u64>,
    pub schedule: Schedule,
    pub weight_decay: f64,
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
        let big = matches!(preset, Preset::Base | Preset::Large);
        let by_flavour = |txtai_value: f64, electra: f64| if txtai { txtai_value } else { electra };
        let output = s.output.ok_or_else(|| Error::config("where shall the run go? Give --output DIR"))?;
        let config = Self {
            train: s.train.ok_or_else(|| Error::config("what shall be trained on? Give --train PATH…"))?,
            columns: s.columns.unwrap_or_else(|| vec!["text".to_owned()]),
            held_out: s.held_out.or(s.validation.is_some().then_some(0.0)),
            validation: s.validation.unwrap_or_default(),
            tokenizer: s.tokenizer,
            vocab_size: s.vocab_size.unwrap_or(preset.vocab_size()),
            dedup: s.dedup.unwrap_or_default(),
            merge: s.merge.unwrap_or(if txtai { Merge::Concat } else { Merge::Segments }),
            seq_len: s.seq_len.unwrap_or(if big { 512 } else { 128 }),
            shards: s.shards.unwrap_or_else(|| output.join("shards")),
            preset,
            generator: s.generator,
            discriminator: s.discriminator,
            head: s.head.unwrap_or_default(),
            share: s.share.unwrap_or(if txtai { Share::Word } else { Share::All }),
            flavour,
            weight: s.weight.unwrap_or(50.0),
            gen_weight: s.gen_weight.unwrap_or(1.0),
            mask_prob: s.mask_prob.unwrap_or(if preset == Preset::Large { 0.25 } else { 0.15 }),
            mask_style: if txtai { MaskStyle::Txtai } else { MaskStyle::Electra },
            temperature: s.temperature.unwrap_or(1.0),
            disallow_correct: s.disallow_correct.unwrap_or(false),
            batch_size: s.batch_size.unwrap_or(match (txtai, preset) {
                (true, _) => 8,
                (_, Preset::Tiny) => 16,
                _ => 32,
            }),
            grad_accumulation: s.grad_accumulation.unwrap_or(1),
            steps: s.steps,
            epochs: s.epochs.unwrap_or(by_flavour(3.0, 1.0)),
            learning_rate: s.learning_rate.unwrap_or(by_flavour(5e-5, if big { 2e-4 } else { 5e-4 })),
            warmup_steps: s.warmup_steps.or(txtai.then_some(0)),
            schedule: s.schedule.unwrap_or(if txtai { Schedule::Linear } else { Schedule::Electra }),
            weight_decay: s.weight_decay.unwrap_or(by_flavour(0.0, 0.01)),
            adam_epsilon: s.adam_epsilon.unwrap_or(by_flavour(1e-8, 1e-6)),
            bias_correction: s.bias_correction.unwrap_or(txtai),
            clip: s.clip.unwrap_or(1.0),
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
        if !(self.mask_prob > 0.0 && self.mask_prob < 1.0) {
            return fail(format!("--mask-prob is {}, expected a number between 0 and 1", self.mask_prob));
        }
        for (name, value) in [
            ("weight", self.weight),
            ("gen-weight", self.gen_weight),
            ("learning-rate", self.learning_rate),
            ("weight-decay", self.weight_decay),
            ("adam-epsilon", self.adam_epsilon),
            ("clip", self.clip),
            ("epochs", self.epochs),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(format!("--{name} is {value}, expected 0 or more"));
            }
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

    /// Optimizer steps over `rows` rows.
    pub fn total_steps(&self, rows: usize) -> u64 {
        let per_step = (self.batch_size * self.grad_accumulation) as f64;
        self.steps.unwrap_or(((self.epochs * rows as f64) / per_step).floor().max(1.0) as u64)
    }

    /// Warm-up of a run of `steps` steps.
    pub fn warmup(&self, steps: u64) -> u64 {
        self.warmup_steps.unwrap_or((steps / 10).min(10_000))
    }

    /// Settings that a continued run must have as before: they decide its data and its parameters.
    pub fn continued_as(&self, before: &Self) -> Result<()> {
        let value = |config: &Self| serde_json::to_value(config).map_err(|e| Error::config(e.to_string()));
        let (now, then) = (value(self)?, value(before)?);
        const FIXED: [&str; 22] = [
            "train",
            "columns",
            "dedup",
            "held-out",
            "merge",
            "seq-len",
            "preset",
            "generator",
            "discriminator",
            "head",
            "share",
            "flavour",
            "weight",
            "gen-weight",
            "mask-prob",
            "mask-style",
            "temperature",
            "disallow-correct",
            "batch-size",
            "grad-accumulation",
            "bias-correction",
            "seed",
        ];
        for name in FIXED {
            if now.get(name) != then.get(name) {
                let show = |v: &Value| v.get(name).map_or("nothing".to_owned(), Value::to_string);
                return Err(Error::config(format!(
                    "`{name}` is {}, but the run began with {}: keep it, or start a new run in another directory",
                    show(&now),
                    show(&then)
                )));
            }
        }
        Ok(())
    }
}
