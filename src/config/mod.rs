//! Settings of a training run, in two stages: what the user typed (flags over a TOML file, all optional) and what
//! that means once defaults of flavour and preset are filled in.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::data::dedup::Dedup;
use crate::data::pack::Merge;
use crate::data::source::Reading;
use crate::data::tokenizer::{Kind, PreTokenizer};
use crate::model::config::Preset;
use crate::model::{Flavour, Init, Objective, Share};
use crate::suggest::{closest, possible_value};
use crate::train::schedule::{LrScheduler, SchedulerKwargs};
use crate::{Error, Result};

mod continued;
mod format;
mod micro_batch;
mod recipe;
mod refused;
mod run;
mod trainer_names;
mod utf8_path;
mod vocabulary;

pub use micro_batch::MicroBatch;
pub use recipe::Recipe;
pub use run::RunConfig;
pub(crate) use trainer_names::advice;
use utf8_path::Utf8Path;
pub use vocabulary::{Accents, Chinese, VocabularySettings};

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
    /// bfloat16; on a CPU single, products of numbers rounded to bfloat16.
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
    /// Text to train on: files, folders and globs of .txt, .md, .csv, .tsv, .jsonl, .json (also
    /// .gz, .zst, .bz2, .xz), .parquet, .arrow and .feather; datasets of the hub and folders that
    /// `datasets` saved, of which the split `train` is taken; pipes, - for standard input; a
    /// .manifest of paths with weights
    #[arg(long, num_args = 1.., value_name = "PATH", value_parser = Utf8Path, help_heading = "Text")]
    train: Vec<String>,
    /// Text columns of csv, tsv, JSON, Parquet and Arrow files; in txtai's flavour a column is one
    /// text, and two are a pair with token types 0 and 1 [default: text]
    #[arg(long, value_delimiter = ',', value_name = "NAME", help_heading = "Text")]
    columns: Vec<String>,
    /// Held-out text; of a dataset the split `validation`, else `test`
    #[arg(long, num_args = 1.., value_name = "PATH", value_parser = Utf8Path, help_heading = "Text")]
    validation: Vec<String>,
    /// Share of the documents that is held out, chosen by their content; 0 for none [default: 0.005, 1 M tokens at the
    /// most, of 400 documents or more; 0 with --validation]
    #[arg(long, value_name = "P", help_heading = "Text")]
    held_out: f64,
    /// tokenizer.json, vocab.txt, a directory of either, or a name on the hub; without it a vocabulary is trained on the text
    #[arg(long, value_name = "PATH", help_heading = "Text")]
    tokenizer: PathBuf,
    /// Train all the same on text of which more than 5 % of the tokens are unknown
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Text")]
    allow_unknown: bool,
    /// Which documents are dropped because an earlier one repeats them [default: none]
    #[arg(long, help_heading = "Text")]
    dedup: Dedup,
    /// How paragraphs become rows [default: segments in the electra flavour, concat in txtai's]
    #[arg(long, help_heading = "Text")]
    merge: Merge,
    /// Longest row, in tokens [default: 128; 64 for tiny; 512 for base and large; txtai the `model_max_length`
    /// of the given tokenizer, at most the models' positions]
    #[arg(long, visible_aliases = ["maxlength", "max-seq-length"], value_name = "T", help_heading = "Text")]
    seq_len: usize,
    /// Where tokenized shards are kept [default: OUTPUT/shards]
    #[arg(long, value_name = "DIR", help_heading = "Text")]
    shards: PathBuf,

    /// Entries of a trained vocabulary [default: the preset's]
    #[arg(long, value_name = "N", help_heading = "Vocabulary")]
    vocab_size: usize,
    /// Model of a trained vocabulary [default: wordpiece]
    #[arg(long, help_heading = "Vocabulary")]
    kind: Kind,
    /// What the text is split into first [default: bert]
    #[arg(long, help_heading = "Vocabulary")]
    pre_tokenizer: PreTokenizer,
    /// Keep case [default: false with --pre-tokenizer bert, else true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Vocabulary")]
    cased: bool,
    /// Whether accents and other combining marks stay [default: strip with lower case where that
    /// does not change words, else keep]
    #[arg(long, help_heading = "Vocabulary")]
    accents: Accents,
    /// Whether every Chinese character is a word, or they are split as other text [default: split
    /// with --pre-tokenizer bert, else whole]
    #[arg(long, help_heading = "Vocabulary")]
    chinese: Chinese,
    /// Different characters that are kept, the most frequent ones [default: 1000, or as many as
    /// leave 1 word in 200 with another one]
    #[arg(long, value_name = "N", help_heading = "Vocabulary")]
    alphabet: usize,
    /// Leave out pieces seen fewer times [default: 2]
    #[arg(long, value_name = "N", help_heading = "Vocabulary")]
    min_frequency: u64,
    /// Text that a vocabulary is trained on; of more, documents are sampled: always the same ones
    /// [default: 1 GiB]
    #[arg(long, value_name = "BYTES", help_heading = "Vocabulary")]
    sample_bytes: u64,

    /// Sizes of the pair [default: small]
    #[arg(long, help_heading = "Model")]
    preset: Preset,
    /// One model that both networks start from, a directory or a name on the hub: its encoder in
    /// both, its head where it is one of theirs; instead of --generator, --discriminator and
    /// --preset
    #[arg(long, value_name = "DIR|NAME", help_heading = "Model")]
    base: String,
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
    /// What the two networks share [default: all in the electra flavour, word in txtai's, none with
    /// --mlm-first]
    #[arg(long, help_heading = "Model")]
    share: Share,

    /// What is trained: a generator and a discriminator, or one masked language model of the
    /// discriminator's size [default: electra]
    #[arg(long, help_heading = "Objective")]
    objective: Objective,
    /// Whose details to follow: the paper's or txtai's [default: electra]
    #[arg(long, help_heading = "Objective")]
    flavour: Flavour,
    /// Where the defaults of the electra flavour come from [default: auto]
    #[arg(long, help_heading = "Objective")]
    recipe: Recipe,
    /// First train the discriminator's network as a masked language model, for X times the steps or
    /// epochs of the run, and let the discriminator begin with its encoder; 0 for not
    /// [default: 1 with the recipe short, else 0]
    #[arg(long, value_name = "X", help_heading = "Objective")]
    mlm_first: f64,
    /// How fresh weights are drawn [default: local with the recipe short, else bert]
    #[arg(long, help_heading = "Model")]
    init: Init,
    /// Weight of the discriminator's loss [default: 50]
    #[arg(long, value_name = "X", help_heading = "Objective")]
    weight: f64,
    /// Weight of the generator's loss [default: 1]
    #[arg(long, value_name = "X", help_heading = "Objective")]
    gen_weight: f64,
    /// Share of tokens that are masked [default: 0.15; 0.25 for large; short 0.3]
    #[arg(long, value_name = "P", help_heading = "Objective")]
    mask_prob: f64,
    /// Divides the generator's logits before sampling [default: 1]
    #[arg(long, value_name = "X", help_heading = "Objective")]
    temperature: f64,
    /// Never sample the original token
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Objective")]
    disallow_correct: bool,

    /// Rows of a micro-batch [default: 32; txtai 8]
    #[arg(long, visible_alias = "per-device-train-batch-size", value_name = "B", help_heading = "Optimization")]
    batch_size: usize,
    /// Micro-batches of a step [default: 1]
    #[arg(long, visible_alias = "gradient-accumulation-steps", value_name = "N", help_heading = "Optimization")]
    grad_accumulation: usize,
    /// Rows of a step that are computed at a time, whatever the two above say of its size: a number that divides B · N, or
    /// auto, what this device does fastest [default: B]
    #[arg(long, value_name = "N|auto", help_heading = "Optimization")]
    micro_batch: MicroBatch,
    /// Optimizer steps; in the electra flavour of full batches, which run on from one epoch into
    /// the next
    #[arg(long, visible_alias = "max-steps", value_name = "N", conflicts_with = "epochs", help_heading = "Optimization")]
    steps: u64,
    /// Passes over the text, instead of steps, counted as the Trainer of transformers does: each
    /// takes ceil(rows / (B · N)) steps, the last batch of an epoch holds the rows that are left
    /// [default: 1; txtai 3]
    #[arg(long, visible_alias = "num-train-epochs", value_name = "X", help_heading = "Optimization")]
    epochs: f64,
    /// Highest learning rate [default: 5e-4; 2e-4 for base and large; txtai 5e-5; short 2e-3 for
    /// tiny, 1e-3 for small, 5e-4 for base and large]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    learning_rate: f64,
    /// Steps of linear warm-up [default: a tenth of the steps, 10,000 at most; txtai 0]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    warmup_steps: u64,
    /// The warm-up as a share of the steps, rounded up, instead of --warmup-steps
    #[arg(long, value_name = "P", conflicts_with = "warmup_steps", help_heading = "Optimization")]
    warmup_ratio: f64,
    /// Form of warm-up and decay: electra, or one of transformers' schedules [default: electra;
    /// txtai linear]
    #[arg(long, visible_aliases = ["lr-scheduler-type", "schedule"], value_name = "NAME", help_heading = "Optimization")]
    #[serde(alias = "schedule")]
    lr_scheduler: LrScheduler,
    /// Parameters of the schedule under transformers' names, such as num_cycles=2 or
    /// power=2,lr_end=1e-6
    #[arg(long, value_name = "NAME=X,…", help_heading = "Optimization")]
    lr_scheduler_kwargs: SchedulerKwargs,
    /// Weight decay of matrices and embeddings [default: 0.01; txtai 0]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    weight_decay: f64,
    /// Adam's betas, `adam_beta1` and `adam_beta2` of transformers [default: 0.9,0.999]
    #[arg(long, value_delimiter = ',', value_name = "B1,B2", help_heading = "Optimization")]
    betas: Vec<f64>,
    /// Adam's epsilon [default: 1e-6; txtai 1e-8]
    #[arg(long, value_name = "X", help_heading = "Optimization")]
    adam_epsilon: f64,
    /// Adam's bias correction [default: false; txtai and short true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", help_heading = "Optimization")]
    bias_correction: bool,
    /// Largest gradient norm; 0 for none [default: 1; short 20]
    #[arg(long, visible_alias = "max-grad-norm", value_name = "X", help_heading = "Optimization")]
    clip: f64,
    /// Of everything random [default: 1]
    #[arg(long, value_name = "N", help_heading = "Optimization")]
    seed: u64,

    /// Directory of the run: checkpoints, metrics.jsonl, generator/ and discriminator/, or model/
    #[arg(long, visible_alias = "output-dir", value_name = "DIR", help_heading = "Run")]
    output: PathBuf,
    /// Steps between checkpoints [default: 1000]
    #[arg(long, visible_alias = "save-steps", value_name = "N", help_heading = "Run")]
    save_every: u64,
    /// Checkpoints kept [default: 2]
    #[arg(long, visible_alias = "save-total-limit", value_name = "N", help_heading = "Run")]
    keep: usize,
    /// Steps in a row without a finite loss and gradient after which the run goes back to its last good checkpoint
    /// [default: 5]
    #[arg(long, value_name = "N", help_heading = "Run")]
    max_bad_steps: u64,
    /// Steps between held-out evaluations; 0 for the end only [default: 0]
    #[arg(long, visible_alias = "eval-steps", value_name = "N", help_heading = "Run")]
    eval_every: u64,
    /// Held-out rows evaluated [default: 200]
    #[arg(long, value_name = "N", help_heading = "Run")]
    eval_rows: usize,
    /// Steps between lines of the log [default: 10]
    #[arg(long, visible_alias = "logging-steps", value_name = "N", help_heading = "Run")]
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

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(entries) => entries.values().any(has_null),
        _ => false,
    }
}

impl Settings {
    /// Reads a TOML file; keys are the flags' names and their aliases, with - or _.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let table: toml::Table =
            toml::from_str(&text).map_err(|e| Error::file(path, format::not_toml(&text, &e)))?;
        let flags = Self::augment_args(clap::Command::new(""));
        let mut object = Map::new();
        for (key, value) in table {
            let name = key.replace('-', "_");
            let flag = flag_of(&flags, &name);
            if flag.is_none() {
                if let Some(advice) = advice(&name) {
                    return Err(Error::file(path, format!("`{key}` is no setting of Elektron: {advice}")));
                }
                let near = closest(&name, KEYS.iter().copied()).map(|k| k.replace('_', "-"));
                let hint = near.map_or(String::new(), |k| format!("; did you mean `{k}`?"));
                return Err(Error::file(path, format!("`{key}` is no setting{hint}")));
            }
            let value = serde_json::to_value(value).map_err(|e| Error::file(path, e.to_string()))?;
            // JSON has neither NaN nor infinite numbers, and TOML no null.
            if has_null(&value) {
                return Err(Error::file(path, format!("`{key}` is not a finite number")));
            }
            let flag = flag.unwrap_or(name).replace('_', "-");
            // By itself first, so that the error can name the key.
            let alone = Value::Object(Map::from_iter([(flag.clone(), value.clone())]));
            serde_json::from_value::<Self>(alone).map_err(|e| {
                Error::file(path, format!("`{key}`: {e}{}", possible_value(&flags, &flag, &value)))
            })?;
            if object.insert(flag.clone(), value).is_some() {
                let problem =
                    format!("`{key}` is another name of `{flag}`, which is given as well: keep one");
                return Err(Error::file(path, problem));
            }
        }
        if object.contains_key("steps") && object.contains_key("epochs") {
            return Err(Error::file(path, "`steps` and `epochs` are two answers to one question: give one"));
        }
        serde_json::from_value(Value::Object(object)).map_err(|e| Error::file(path, e.to_string()))
    }

    /// These settings, and those of `below` where these say nothing.
    pub fn over(&self, below: &Self) -> Result<Self> {
        let object =
            |settings: &Self| serde_json::to_value(settings).map_err(|e| Error::config(e.to_string()));
        let (mut all, ours) = (object(below)?, object(self)?);
        if let (Value::Object(all), Value::Object(ours)) = (&mut all, ours) {
            // Two names of one thing: the one that is given above wins.
            for (one, other) in [("steps", "epochs"), ("warmup-steps", "warmup-ratio")] {
                if ours.contains_key(one) || ours.contains_key(other) {
                    all.remove(one);
                    all.remove(other);
                }
            }
            all.extend(ours);
        }
        serde_json::from_value(all).map_err(|e| Error::config(e.to_string()))
    }
}

/// The setting that a key of a TOML file names: itself, or one that it is another name of.
fn flag_of(flags: &clap::Command, key: &str) -> Option<String> {
    if KEYS.contains(&key) {
        return Some(key.to_owned());
    }
    let alias = key.replace('_', "-");
    let is_it = |flag: &&clap::Arg| flag.get_all_aliases().is_some_and(|all| all.contains(&alias.as_str()));
    Some(flags.get_arguments().find(is_it)?.get_id().to_string())
}

/// How the columns of records are read: in txtai's flavour whole, and two as a pair. The paper's
/// segments are made of lines in either flavour. An error where columns cannot be read so.
pub fn reading(flavour: Flavour, merge: Merge, columns: &[String]) -> Result<Reading> {
    match (flavour, merge, columns.len()) {
        (Flavour::Electra, ..) | (_, Merge::Segments, 0 | 1) => Ok(Reading::Lines),
        (_, Merge::Segments, _) => Err(Error::config(
            "--merge segments makes two segments of the lines of one text, but two columns are a \
             pair in txtai's flavour: use --merge concat, pack or none, or --flavour electra",
        )),
        (_, _, 0..=2) => Ok(Reading::Whole),
        (_, _, count) => Err(Error::config(format!(
            "--columns names {count} columns ({}), but in txtai's flavour there is one text per \
             record or a pair of two: name one or two, or use --flavour electra, which reads all \
             of them as paragraphs",
            columns.join(", ")
        ))),
    }
}

/// Whether rows have tokens of type 1: those of second segments, or of the second texts of pairs.
pub fn uses_token_types(flavour: Flavour, merge: Merge, columns: &[String]) -> bool {
    merge == Merge::Segments || flavour == Flavour::Txtai && columns.len() == 2
}
