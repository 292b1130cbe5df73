//! `elektron prepare`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use super::unknown::{Use, check_unknown};
use super::{confirm, report_left_out, set_threads, warn_without_text};
use crate::config::reading;
use crate::data::dedup::Dedup;
use crate::data::pack::Merge;
use crate::data::prepare::{LONG_DOCUMENT, Progress, Spec, prepare};
use crate::data::shard::Dataset;
use crate::data::source::{TextSource, spool};
use crate::data::tokenizer::Tokenizer;
use crate::hub::{Part, locate};
use crate::model::Flavour;
use crate::train::log::duration;
use crate::{Error, Result};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron prepare --input corpus/ --tokenizer vocab/ --output shards/
  elektron pretrain --train corpus/ --tokenizer vocab/ --shards shards/ --output out/run")]
pub(super) struct Arguments {
    /// Files, folders, globs and pipes; - for standard input
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Text columns of csv, tsv, JSON, Parquet and Arrow files
    #[arg(long, value_delimiter = ',', default_value = "text", value_name = "NAME")]
    columns: Vec<String>,
    /// How text columns are read, as for `pretrain`: every line is a paragraph; in txtai's flavour
    /// a column is one text, and two columns are a pair
    #[arg(long, value_enum, default_value = "electra")]
    flavour: Flavour,
    /// tokenizer.json, vocab.txt, a directory of either, or the name of a model on the Hugging Face hub
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// Directory of the shards: give it to `pretrain` as --shards
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Drop documents that repeat an earlier one (give `pretrain` the same)
    #[arg(long, value_enum, default_value = "none")]
    dedup: Dedup,
    /// Text of a shard: a kill costs the work on one at most
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    shard_mib: u64,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Name everything that is left out of folders and globs, such as hidden files
    #[arg(short, long)]
    verbose: bool,
}

/// Tokenizes and says how it goes.
pub(super) fn tokenize(
    source: &TextSource,
    tokenizer: &Tokenizer,
    dir: &Path,
    spec: &Spec,
    quiet: bool,
) -> Result<Dataset> {
    let mut last = Instant::now();
    let mut end = Progress::default();
    let dataset = prepare(source, tokenizer, dir, spec, |progress| {
        end = progress;
        if quiet {
            return;
        }
        if progress.waiting {
            crate::note!("waiting for another process that prepares text in {}", dir.display());
        } else if last.elapsed().as_secs() >= 5 {
            last = Instant::now();
            crate::note!("{}", line(&progress));
        }
    })?;
    warn_without_text(source);
    if !quiet {
        crate::note!("{}", summary(&dataset, &end, spec.dedup));
    }
    Ok(dataset)
}

fn line(p: &Progress) -> String {
    let (read, total) = (p.source_bytes as f64, p.source_total as f64);
    let mut text = format!(
        "prepared {:.2} of {:.2} GB ({:.0} %; {} of {} files)",
        read / 1e9,
        total / 1e9,
        100.0 * read / total.max(1.0),
        p.files,
        p.files_total
    );
    if p.bytes > 0 {
        text +=
            &format!(", {:.1} MB/s of text, {} left", p.bytes_per_second() / 1e6, duration(p.seconds_left()));
    }
    text
}

fn summary(dataset: &Dataset, p: &Progress, dedup: Dedup) -> String {
    let mut text = format!(
        "{} tokens in {} paragraphs of {} documents ({} files, {} of them tokenized before; {} shards, {} of them there)",
        dataset.tokens(),
        dataset.paragraphs(),
        dataset.documents(),
        p.files_total,
        p.files_reused,
        dataset.shards(),
        p.shards_reused,
    );
    if p.bytes > 0 {
        let (bytes, rate) = (p.bytes as f64 / 1e6, p.bytes_per_second() / 1e6);
        text += &format!("\ntokenized {bytes:.1} MB of text in {}, {rate:.1} MB/s", duration(p.seconds));
    }
    if dedup != Dedup::None {
        let (dropped, kept) = (dataset.dropped(), dataset.documents());
        let share = 100.0 * dropped as f64 / ((dropped + kept) as f64).max(1.0);
        text += &format!("\ndropped {dropped} duplicate documents ({share:.2} %)");
        if dataset.too_long() > 0 {
            text +=
                &format!(", did not compare {} of more than {} MiB", dataset.too_long(), LONG_DOCUMENT >> 20);
        }
    }
    text
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    set_threads(arguments.threads)?;
    if arguments.shard_mib == 0 {
        return Err(Error::config("--shard-mib must be 1 or more"));
    }
    let mut input = arguments.input.clone();
    for pipe in spool(&mut input, &arguments.output, false)? {
        pipe.copy()?;
    }
    // Of the ways to merge in txtai's flavour, only segments are made of lines.
    let reading = reading(arguments.flavour, Merge::None, &arguments.columns)?;
    let source = TextSource::new(&input, &arguments.columns)?.with_reading(reading);
    report_left_out(&source, arguments.verbose);
    let tokenizer = Tokenizer::load(&locate(&arguments.tokenizer, Part::Tokenizer, false)?)?;
    let spec = Spec { dedup: arguments.dedup, shard_bytes: arguments.shard_mib << 20 };
    let dataset = tokenize(&source, &tokenizer, &arguments.output, &spec, false)?;
    check_unknown(&source, &dataset, &tokenizer, Use::Shards)?;
    if let Some(bytes) = peak_memory() {
        crate::note!("peak memory {} MiB", bytes >> 20);
    }
    confirm(&format!("the shards are in {}", arguments.output.display()));
    Ok(())
}

/// The most memory that this process has had resident (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}
