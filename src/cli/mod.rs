//! The command line: one file a command.

mod completions;
mod corpus;
mod detect;
mod device;
mod doctor;
mod eval;
mod fill;
mod forward;
mod lines;
mod prepare;
mod pretrain;
mod report;
mod runs;
mod summary;
mod tokenizer;
mod unknown;

use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::advice;
use crate::data::source::{Reading, TextSource};
use crate::data::tokenizer::Tokenizer;
use crate::hub::{Part, locate};
use crate::model::config::{Architecture, ElectraConfig};
use crate::model::hf::Checkpoint;
use crate::{Error, Result};

/// Pre-trains ELECTRA: text in, a generator and a discriminator that `transformers` loads out
#[derive(Parser)]
#[command(name = "elektron", version = env!("ELEKTRON_VERSION"), about, propagate_version = true, subcommand_required = true)]
#[command(after_help = "Examples:
  elektron pretrain --train book.txt --preset tiny --steps 300 --output out/first
  elektron report out/first
  elektron detect --discriminator out/first/discriminator \"The chef ate the meal.\"
  elektron fill --model out/first \"To Sherlock [MASK] she is always the woman.\"
  elektron pretrain --help")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a generator and a discriminator on text, or a masked language model alone
    Pretrain(Box<pretrain::Arguments>),
    /// Tokenize text into shards, without training
    Prepare(prepare::Arguments),
    /// Train a vocabulary, or see how one fits a text
    Tokenizer(tokenizer::Arguments),
    /// Run one batch through a pair and write losses, logits and gradients
    Forward(forward::Arguments),
    /// Held-out metrics of a saved pair, or of a masked language model
    Eval(eval::Arguments),
    /// Show how likely each token of a text is to have been replaced
    Detect(detect::Arguments),
    /// Show which tokens a model expects where a text has [MASK]
    Fill(fill::Arguments),
    /// Look for a GPU and its libraries, compile the kernels, test them
    Doctor(doctor::Arguments),
    /// Draw runs: a page with their curves, what they were set to, and whether that is normal
    Report(report::Arguments),
    /// List the runs under a folder and how they stand
    Runs(runs::Arguments),
    /// Print what a shell needs to complete commands and flags
    Completions(completions::Arguments),
    /// Write manual pages
    Man(completions::ManArguments),
}

/// How a command ended, when nothing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With all that was asked for.
    Done,
    /// By a signal, before its end; it can be resumed.
    Interrupted,
}

impl Cli {
    /// Parses a command line. Long flags may be written with `_` in place of `-`, as the names of
    /// `TrainingArguments` are.
    pub fn from_arguments(
        arguments: impl Iterator<Item = OsString>,
    ) -> std::result::Result<Self, clap::Error> {
        // So that the error for a negative number names the setting, not an unknown flag.
        let mut command = Self::command().mut_subcommand("pretrain", |c| {
            c.mut_args(|argument| {
                let takes_values = argument.get_action().takes_values();
                argument.allow_negative_numbers(takes_values)
            })
        });
        let mut only_values = false;
        let arguments: Vec<OsString> = arguments
            .map(|argument| {
                let Some(text) = argument.to_str().filter(|text| text.starts_with("--") && !only_values)
                else {
                    return argument;
                };
                only_values = text == "--";
                match text.split_once('=') {
                    Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
                    None => text.replace('_', "-").into(),
                }
            })
            .collect();
        let is_pretrain = arguments.get(1).is_some_and(|name| name == "pretrain");
        let matches = command.try_get_matches_from_mut(arguments).map_err(|error| {
            let advised = if is_pretrain { advised(&mut command, &error) } else { None };
            advised.unwrap_or(error)
        })?;
        Self::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
    }

    /// Runs the command. It is not an error that the reader of standard output goes away before the
    /// end.
    pub fn run(self) -> Result<Outcome> {
        match self.command.run() {
            Err(Error::OutputClosed) => Ok(Outcome::Done),
            other => other,
        }
    }
}

impl Command {
    fn run(self) -> Result<Outcome> {
        match self {
            Self::Pretrain(arguments) => return pretrain::run(*arguments),
            Self::Prepare(arguments) => prepare::run(&arguments),
            Self::Tokenizer(arguments) => tokenizer::run(&arguments),
            Self::Forward(arguments) => forward::run(&arguments),
            Self::Eval(arguments) => eval::run(&arguments),
            Self::Detect(arguments) => detect::run(&arguments),
            Self::Fill(arguments) => fill::run(&arguments),
            Self::Doctor(arguments) => doctor::run(&arguments),
            Self::Report(arguments) => report::run(&arguments),
            Self::Runs(arguments) => runs::run(&arguments),
            Self::Completions(arguments) => completions::run(&arguments),
            Self::Man(arguments) => completions::run_man(&arguments),
        }?;
        Ok(Outcome::Done)
    }
}

/// Sets up the threads of this process.
fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::config(format!("cannot start {threads} threads: {e}")))
}

/// The error for an unknown flag of `pretrain` that is a setting of `transformers` or txtai, with
/// what to use instead.
fn advised(command: &mut clap::Command, error: &clap::Error) -> Option<clap::Error> {
    let (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    else {
        return None;
    };
    let advice = advice(flag.strip_prefix("--")?)?;
    let message = format!("`{flag}` is no flag of Elektron: {advice}");
    Some(command.find_subcommand_mut("pretrain")?.error(ErrorKind::UnknownArgument, message))
}

/// A generator and a discriminator, each with its head.
fn load_pair(generator: &Path, discriminator: &Path) -> Result<(Checkpoint, Checkpoint)> {
    let ours = load_masked_lm(generator)?;
    let theirs = Checkpoint::load(&locate(discriminator, Part::Model, false)?)?;
    if theirs.architecture == Architecture::MaskedLm {
        return Err(Error::file(
            discriminator,
            "the discriminator must be an ElectraForPreTraining or an \
             ElectraForTokenClassification, this is an ElectraForMaskedLM",
        ));
    }
    Ok((ours, theirs))
}

/// A generator or another masked language model.
fn load_masked_lm(generator: &Path) -> Result<Checkpoint> {
    let ours = Checkpoint::load(&locate(generator, Part::Model, false)?)?;
    if ours.architecture != Architecture::MaskedLm {
        let class = ours.architecture.class_name();
        return Err(Error::file(
            generator,
            format!("the generator must be an ElectraForMaskedLM, this is an {class}"),
        ));
    }
    Ok(ours)
}

/// Every id of the tokenizer has a row in the model.
fn check_vocabulary(tokenizer: &Tokenizer, config: &ElectraConfig, what: &str) -> Result<()> {
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > rows {
        return Err(Error::config(format!(
            "the tokenizer has {tokens} tokens, the {what} only {rows} rows of embeddings: use the \
             tokenizer it was trained with; an untrained model needs a `vocab_size` of {tokens} or \
             more"
        )));
    }
    Ok(())
}

/// T within the model's positions.
fn check_positions(seq_len: usize, config: &ElectraConfig, what: &str) -> Result<()> {
    let positions = config.max_position_embeddings;
    if seq_len > positions {
        return Err(Error::config(format!(
            "rows of {seq_len} tokens exceed the {what}'s {positions} positions: use --seq-len {positions} or less"
        )));
    }
    Ok(())
}

/// An error if rows are pairs of texts and the tokenizer joins two texts in another way than these
/// rows do.
fn check_pairs(tokenizer: &Tokenizer, reading: Reading, columns: &[String]) -> Result<()> {
    let inner = tokenizer.inner();
    if reading != Reading::Whole || columns.len() != 2 || inner.get_post_processor().is_none() {
        return Ok(());
    }
    let special = tokenizer.special();
    let joined =
        inner.encode(("a", "b"), true).map_err(|e| Error::argument(format!("cannot tokenize: {e}")))?;
    let first = [vec![special.cls], tokenizer.encode("a")?, vec![special.sep]].concat();
    let second = [tokenizer.encode("b")?, vec![special.sep]].concat();
    let types = [vec![0; first.len()], vec![1; second.len()]].concat();
    if joined.get_ids() != [first, second].concat() || joined.get_type_ids() != types {
        return Err(Error::config(format!(
            "two --columns are a pair in txtai's flavour, `[CLS] a [SEP] b [SEP]` with token types \
             0 and 1, but this tokenizer joins two texts as `{}` with the types {:?}: give one \
             column, or use --flavour electra",
            joined.get_tokens().join(" "),
            joined.get_type_ids()
        )));
    }
    Ok(())
}

/// An error if rows have tokens of type 1, and the model has one type only.
fn check_token_types(used: bool, config: &ElectraConfig, what: &str) -> Result<()> {
    if used && config.type_vocab_size < 2 {
        return Err(Error::config(format!(
            "the {what} has one token type (`type_vocab_size` 1), but rows of two segments \
             (--merge segments) and pairs of two --columns have two: use --merge concat, pack or \
             none with one column"
        )));
    }
    Ok(())
}

/// Reports what was left out of the paths that a user gave; `verbose` names everything.
fn report_left_out(source: &TextSource, verbose: bool) {
    source.left_out(verbose).iter().for_each(|line| crate::note!("{line}"));
}

/// Warns of files that were read and had no text.
fn warn_without_text(source: &TextSource) {
    if let Some(warning) = source.warning() {
        crate::note!("{warning}");
    }
}

/// Prints one line of a command's output, and flushes it.
fn print(text: &str) -> Result<()> {
    print_bytes(format!("{text}\n").as_bytes())
}

/// Writes a part of a command's output to standard output, and flushes it.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Error::OutputClosed),
        written => written.map_err(Error::io("write", "standard output")),
    }
}

/// Reports on standard output what was done. The work is done even if this cannot be printed, so a
/// failure is only a warning.
fn confirm(text: &str) {
    match print(text) {
        Ok(()) | Err(Error::OutputClosed) => {}
        Err(error) => crate::note!("warning: {error}"),
    }
}
