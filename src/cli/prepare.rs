//! `elektron prepare` and `elektron tokenizer train`.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};

use super::{print, set_threads};
use crate::Result;
use crate::data::shard::{self, Dataset};
use crate::data::source::TextSource;
use crate::data::tokenizer::{Tokenizer, TrainSpec};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron prepare --input corpus/ --tokenizer vocab/ --output shards/
  elektron pretrain --train corpus/ --tokenizer vocab/ --shards shards/ --output out/run")]
pub(super) struct Arguments {
    /// Files, folders and globs
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    input: Vec<String>,
    /// Text columns of csv and jsonl files
    #[arg(long, value_delimiter = ',', default_value = "text", value_name = "NAME")]
    columns: Vec<String>,
    /// tokenizer.json, vocab.txt or a directory of either
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// Directory of the shards: give it to `pretrain` as --shards
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Args)]
pub(super) struct TokenizerArguments {
    #[command(subcommand)]
    command: TokenizerCommand,
}

#[derive(Subcommand)]
enum TokenizerCommand {
    /// Train a WordPiece vocabulary on text
    Train(TrainArguments),
}

#[derive(Args)]
#[command(after_help = "Examples:
  elektron tokenizer train --input corpus/ --vocab-size 30522 --output vocab/")]
struct TrainArguments {
    /// Files, folders and globs
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    input: Vec<String>,
    /// Text columns of csv and jsonl files
    #[arg(long, value_delimiter = ',', default_value = "text", value_name = "NAME")]
    columns: Vec<String>,
    /// Entries, special tokens included
    #[arg(long, default_value_t = 30522, value_name = "N")]
    vocab_size: usize,
    /// Keep case and accents
    #[arg(long)]
    cased: bool,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Longest sequence, for the tokenizer's settings
    #[arg(long, default_value_t = 512, value_name = "T")]
    model_max_length: usize,
}

/// Tokenizes and says how it goes.
pub(super) fn tokenize(
    source: &TextSource,
    tokenizer: &Tokenizer,
    dir: &std::path::Path,
    quiet: bool,
) -> Result<Dataset> {
    let mut last = Instant::now();
    let mut end = shard::Progress::default();
    let dataset = shard::prepare(source, tokenizer, dir, |progress| {
        end = progress;
        if !quiet && last.elapsed().as_secs() >= 5 {
            last = Instant::now();
            let rate = progress.bytes as f64 / 1e6 / progress.seconds.max(1e-9);
            eprintln!("tokenized {} of {} files, {rate:.1} MB/s", progress.files, progress.files_total);
        }
    })?;
    if !quiet {
        let rate = match end.bytes {
            0 => String::new(),
            bytes => format!(", {:.1} MB/s", bytes as f64 / 1e6 / end.seconds.max(1e-9)),
        };
        eprintln!(
            "{} tokens in {} paragraphs of {} documents ({} files, {} of them tokenized before{rate})",
            dataset.tokens(),
            dataset.paragraphs(),
            dataset.documents(),
            end.files_total,
            end.reused
        );
    }
    Ok(dataset)
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    set_threads(arguments.threads)?;
    let source = TextSource::new(&arguments.input, &arguments.columns)?;
    let tokenizer = Tokenizer::load(&arguments.tokenizer)?;
    tokenize(&source, &tokenizer, &arguments.output, false)?;
    print(&format!("shards lie in {}", arguments.output.display()))
}

pub(super) fn run_tokenizer(arguments: &TokenizerArguments) -> Result<()> {
    let TokenizerCommand::Train(a) = &arguments.command;
    let source = TextSource::new(&a.input, &a.columns)?;
    let spec = TrainSpec { vocab_size: a.vocab_size, lowercase: !a.cased, min_frequency: 2 };
    let tokenizer = Tokenizer::train(&source, &spec)?;
    tokenizer.save(&a.output, a.model_max_length)?;
    print(&format!("a vocabulary of {} tokens lies in {}", tokenizer.vocab_size(), a.output.display()))
}
