//! `elektron detect`: how likely is each token of a text to have been replaced?

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{check_vocabulary, print, report_left_out, set_threads, warn_without_text};
use crate::backend::Cpu;
use crate::backend::cpu::in_pool;
use crate::data::source::{TextSource, read_stream, spool};
use crate::data::tokenizer::Tokenizer;
use crate::hub::{Part, locate};
use crate::model::Discriminator;
use crate::model::hf::Checkpoint;
use crate::{Error, Result};

/// Lines run through the model at once.
const LINES_AT_ONCE: usize = 16;

#[derive(Args)]
#[command(after_help = "Examples:
  elektron detect --discriminator out/run/discriminator \"The chef ate the meal.\"
  elektron detect --discriminator out/run/discriminator --input page.txt --json
  cat page.txt | elektron detect --discriminator out/run/discriminator")]
pub(super) struct Arguments {
    /// Directory of the discriminator, or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    discriminator: PathBuf,
    /// Tokenizer [default: the discriminator's]
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Text; without it and --input, standard input is read
    text: Vec<String>,
    /// Files, folders and globs, as for `pretrain --train`, a line at a time; - for standard input
    #[arg(long, num_args = 1.., value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Text columns of csv, tsv, JSON, Parquet and Arrow files
    #[arg(long, value_delimiter = ',', default_value = "text", value_name = "NAME")]
    columns: Vec<String>,
    /// A JSON object a line, instead of words
    #[arg(long)]
    json: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    set_threads(a.threads)?;
    let (streams, mut files): (Vec<PathBuf>, Vec<PathBuf>) =
        a.input.iter().cloned().partition(|path| path == Path::new("-"));
    let scratch = tempfile::tempdir().map_err(Error::io("create a directory in", std::env::temp_dir()))?;
    for pipe in spool(&mut files, scratch.path(), false)? {
        pipe.copy()?;
    }
    let source = if files.is_empty() { None } else { Some(TextSource::held_out(&files, &a.columns)?) };
    if let Some(source) = &source {
        report_left_out(source, false);
    }
    let tokenizer = a.tokenizer.as_ref().unwrap_or(&a.discriminator);
    let tokenizer = Tokenizer::load(&locate(tokenizer, Part::Tokenizer, false)?)?;
    let checkpoint = Checkpoint::load(&locate(&a.discriminator, Part::Model, false)?)?;
    check_vocabulary(&tokenizer, &checkpoint.config, "discriminator")?;
    let model = Discriminator::load(Cpu::<f32>::new(), checkpoint)
        .map_err(|e| Error::file(&a.discriminator, e.to_string()))?;
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut judge = Judge { model, tokenizer, json: a.json, colours, rows: Vec::new(), any: false };
    for text in &a.text {
        text.lines().try_for_each(|line| judge.line(line))?;
    }
    if let Some(source) = source {
        source.for_each(|p| judge.line(p.text))?;
        warn_without_text(&source);
    }
    if !streams.is_empty() || (a.text.is_empty() && a.input.is_empty()) {
        read_stream("standard input", std::io::stdin().lock(), &mut |p| judge.line(p.text))?;
    }
    judge.show()?;
    match judge.any {
        true => Ok(()),
        false => {
            Err(Error::config("there is no text: give it as an argument, with --input, or on standard input"))
        }
    }
}

/// Shows lines as soon as there are enough of them, so that text may be of any length.
struct Judge {
    model: Discriminator<Cpu<f32>>,
    tokenizer: Tokenizer,
    json: bool,
    colours: bool,
    /// Token ids of lines that are still to be shown.
    rows: Vec<Vec<u32>>,
    /// Whether there was any line.
    any: bool,
}

impl Judge {
    fn line(&mut self, line: &str) -> Result<()> {
        if line.trim().is_empty() {
            return Ok(());
        }
        let special = self.tokenizer.special();
        let mut row = vec![special.cls];
        row.extend(self.tokenizer.encode(line)?);
        row.truncate(self.model.config().max_position_embeddings - 1);
        row.push(special.sep);
        self.rows.push(row);
        self.any = true;
        if self.rows.len() == LINES_AT_ONCE { self.show() } else { Ok(()) }
    }

    fn show(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let model = &mut self.model;
        let all = in_pool(|| model.probabilities(&rows))?;
        for (row, probabilities) in rows.iter().zip(all) {
            let inner = 1..row.len() - 1;
            let tokens: Vec<String> = row[inner.clone()].iter().map(|&id| self.tokenizer.token(id)).collect();
            let probabilities = &probabilities[inner];
            if self.json {
                let shown: Vec<_> = tokens
                    .iter()
                    .zip(probabilities)
                    .map(|(token, p)| json!({ "token": token, "replaced": (f64::from(*p) * 1e4).round() / 1e4 }))
                    .collect();
                print(&json!({ "tokens": shown }).to_string())?;
            } else {
                print(&words(&tokens, probabilities, self.colours))?;
            }
        }
        Ok(())
    }
}

/// Words with the probability in hundredths behind each token, the doubtful ones marked.
fn words(tokens: &[String], probabilities: &[f32], colours: bool) -> String {
    let mut text = String::new();
    for (token, &p) in tokens.iter().zip(probabilities) {
        let (piece, space) = token.strip_prefix("##").map_or((token.as_str(), " "), |rest| (rest, ""));
        if !text.is_empty() {
            text += space;
        }
        let percent = (100.0 * p).round();
        text += &match (colours, p) {
            (true, 0.5..) => format!("\x1b[1;31m{piece}\x1b[0m\x1b[2m{percent}\x1b[0m"),
            (true, 0.2..) => format!("\x1b[33m{piece}\x1b[0m\x1b[2m{percent}\x1b[0m"),
            (true, _) => format!("{piece}\x1b[2m{percent}\x1b[0m"),
            (false, 0.5..) => format!("[{piece}]{percent}"),
            (false, _) => format!("{piece}{percent}"),
        };
    }
    text
}
