//! `elektron tokenizer train` and `elektron tokenizer inspect`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tempfile::{TempDir, tempdir};

use super::{confirm, print, report_left_out, set_threads, warn_without_text};
use crate::config::VocabularySettings;
use crate::data::inspect::{Inspection, inspect};
use crate::data::source::{TextSource, spool};
use crate::data::tokenizer::{Tokenizer, Trained, train as train_vocabulary};
use crate::fsutil::create_dir;
use crate::{Error, Result};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: TokenizerCommand,
}

#[derive(Subcommand)]
enum TokenizerCommand {
    /// Train a vocabulary on text
    Train(TrainArguments),
    /// Say how well a tokenizer fits a text
    Inspect(InspectArguments),
}

#[derive(Args)]
struct Text {
    /// Files, folders, globs and pipes; - for standard input
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Text columns of csv, tsv, JSON, Parquet and Arrow files
    #[arg(long, value_delimiter = ',', default_value = "text", value_name = "NAME")]
    columns: Vec<String>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Name everything that is left out of folders and globs, such as hidden files
    #[arg(short, long)]
    verbose: bool,
}

impl Text {
    /// The source, and the directory of what pipes gave, which must outlive the source.
    fn source(&self) -> Result<(TextSource, TempDir)> {
        let scratch = tempdir().map_err(Error::io("create a directory in", std::env::temp_dir()))?;
        let mut input = self.input.clone();
        for pipe in spool(&mut input, scratch.path(), false)? {
            pipe.copy()?;
        }
        let source = TextSource::new(&input, &self.columns)?;
        report_left_out(&source, self.verbose);
        Ok((source, scratch))
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  elektron tokenizer train --input corpus/ --vocab-size 30522 --output vocab/
  elektron tokenizer train --input 'text/**/*.txt.zst' --cased --sample-bytes 268435456 --output vocab/
  elektron tokenizer train --input proteins.txt --kind unigram --pre-tokenizer none --vocab-size 4096 --output vocab/
  elektron tokenizer train --input smiles.txt --pre-tokenizer per-character --vocab-size 200 --output vocab/")]
struct TrainArguments {
    #[command(flatten)]
    text: Text,
    /// Entries, special tokens included
    #[arg(long, default_value_t = 30522, value_name = "N", help_heading = "Vocabulary")]
    vocab_size: usize,
    #[command(flatten)]
    vocabulary: VocabularySettings,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Longest sequence, for the tokenizer's settings
    #[arg(long, default_value_t = 512, value_name = "T")]
    model_max_length: usize,
}

#[derive(Args)]
#[command(after_help = "Examples:
  elektron tokenizer inspect --tokenizer vocab/ --input held-out.txt
  elektron tokenizer inspect --tokenizer vocab/ --input held-out.txt --json")]
struct InspectArguments {
    #[command(flatten)]
    text: Text,
    /// tokenizer.json, vocab.txt or a directory of either
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// For machines
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        TokenizerCommand::Train(arguments) => train(arguments),
        TokenizerCommand::Inspect(arguments) => run_inspect(arguments),
    }
}

fn train(a: &TrainArguments) -> Result<()> {
    set_threads(a.text.threads)?;
    // Before the training, so that a directory that cannot be made costs no time.
    create_dir(&a.output)?;
    let (source, _scratch) = a.text.source()?;
    let Trained { tokenizer, remarks } = train_vocabulary(&source, &a.vocabulary.spec(a.vocab_size)?)?;
    remarks.iter().for_each(|remark| crate::note!("{remark}"));
    warn_without_text(&source);
    tokenizer.save(&a.output, a.model_max_length)?;
    confirm(&format!("the vocabulary of {} tokens is in {}", tokenizer.vocab_size(), a.output.display()));
    Ok(())
}

fn run_inspect(a: &InspectArguments) -> Result<()> {
    set_threads(a.text.threads)?;
    let (source, _scratch) = a.text.source()?;
    let found = inspect(&source, &Tokenizer::load(&a.tokenizer)?)?;
    warn_without_text(&source);
    if a.json {
        let json = serde_json::to_string(&found).map_err(|e| Error::config(e.to_string()))?;
        return print(&json);
    }
    print(&describe(&found))
}

fn describe(found: &Inspection) -> String {
    let missing: Vec<String> =
        found.missing_characters.iter().map(|m| format!("{} ({})", m.character, m.count)).collect();
    let mut text = format!(
        "vocabulary           {:>12}\n\
         text                 {:>12.1} MB\n\
         words                {:>12}\n\
         tokens               {:>12}\n\
         fertility            {:>12.3} tokens a word\n\
         words kept whole     {:>12.2} %\n\
         unknown tokens       {:>12.3} %\n\
         bytes a token        {:>12.2}\n\
         pieces never used    {:>12} ({:.1} %)\n\
         longest pieces       {}\n\
         characters missing   {}\n\
         words too long       {:>12}\n\
         words split most",
        found.vocab_size,
        found.text_bytes as f64 / 1e6,
        found.words,
        found.tokens,
        found.fertility,
        100.0 * found.whole_rate,
        100.0 * found.unknown_rate,
        found.bytes_per_token,
        found.unused,
        100.0 * found.unused as f64 / found.vocab_size as f64,
        found.longest_pieces.join(" "),
        if missing.is_empty() { "none".to_owned() } else { missing.join(", ") },
        found.long_words,
    );
    for split in &found.split_most {
        text += &format!("\n  {:<30} {}", split.word, split.pieces.join(" "));
    }
    text
}
