//! `elektron detect`: how likely is each token of a text to have been replaced?

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::lines::{LINES_AT_ONCE, Reader, Texts};
use super::{check_vocabulary, print, set_threads};
use crate::backend::Cpu;
use crate::backend::cpu::in_pool;
use crate::data::tokenizer::Tokenizer;
use crate::hub::{Part, locate};
use crate::model::Discriminator;
use crate::model::hf::Checkpoint;
use crate::{Error, Result};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron detect --discriminator out/run/discriminator \"The chef ate the meal.\"
  elektron detect --discriminator out/run/discriminator --input page.txt --json
  cat page.txt | elektron detect --discriminator out/run/discriminator

A line of more tokens than the model has positions is cut: a warning reports it, and with --json its
object has \"truncated\": true.")]
pub(super) struct Arguments {
    /// Directory of the discriminator, or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    discriminator: PathBuf,
    /// Tokenizer [default: the discriminator's]
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    texts: Texts,
    /// A JSON object a line, instead of words
    #[arg(long)]
    json: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    set_threads(a.threads)?;
    let lines = a.texts.open()?;
    let tokenizer = a.tokenizer.as_ref().unwrap_or(&a.discriminator);
    let tokenizer = Tokenizer::load(&locate(tokenizer, Part::Tokenizer, false)?)?;
    let checkpoint = Checkpoint::load(&locate(&a.discriminator, Part::Model, false)?)?;
    check_vocabulary(&tokenizer, &checkpoint.config, "discriminator")?;
    let model = Discriminator::load(Cpu::<f32>::new(), checkpoint)
        .map_err(|e| Error::file(&a.discriminator, e.to_string()))?;
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut judge = Judge { model, tokenizer, json: a.json, colours, rows: Vec::new(), lines: 0, cut: 0 };
    lines.read(&mut judge)?;
    if judge.cut > 1 {
        crate::note!("warning: {} of {} lines were cut", judge.cut, judge.lines);
    }
    Ok(())
}

/// Shows lines as soon as there are enough of them, so that text may be of any length.
struct Judge {
    model: Discriminator<Cpu<f32>>,
    tokenizer: Tokenizer,
    json: bool,
    colours: bool,
    /// Lines that have not been shown yet.
    rows: Vec<Row>,
    /// The number of lines so far, without blank ones.
    lines: u64,
    /// How many of these lines were cut.
    cut: u64,
}

/// One line of text.
struct Row {
    /// Token ids, with the special tokens; no more than the model has positions.
    ids: Vec<u32>,
    /// The number of tokens that were cut off.
    left_out: usize,
}

impl Reader for Judge {
    fn line(&mut self, line: &str) -> Result<()> {
        self.lines += 1;
        let special = self.tokenizer.special();
        let positions = self.model.config().max_position_embeddings;
        let most = positions.saturating_sub(2);
        let tokens = self.tokenizer.encode(line)?;
        let left_out = tokens.len().saturating_sub(most);
        if left_out > 0 {
            self.cut += 1;
            if self.cut == 1 {
                crate::note!(
                    "warning: line {} has {} tokens; the model has {positions} positions, so only \
                     the first {most} are looked at; this holds for every line of more tokens",
                    self.lines,
                    tokens.len()
                );
            }
        }
        let framed = [special.cls].into_iter().chain(tokens.into_iter().take(most)).chain([special.sep]);
        self.rows.push(Row { ids: framed.collect(), left_out });
        if self.rows.len() == LINES_AT_ONCE { self.show() } else { Ok(()) }
    }

    fn show(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let (ids, left_out): (Vec<_>, Vec<_>) = rows.into_iter().map(|row| (row.ids, row.left_out)).unzip();
        let model = &mut self.model;
        let all = in_pool(|| model.probabilities(&ids))?;
        for ((row, left_out), probabilities) in ids.iter().zip(left_out).zip(all) {
            let inner = 1..row.len() - 1;
            let tokens: Vec<String> = row[inner.clone()].iter().map(|&id| self.tokenizer.token(id)).collect();
            let probabilities = &probabilities[inner];
            if self.json {
                let shown: Vec<_> = tokens
                    .iter()
                    .zip(probabilities)
                    .map(|(token, p)| json!({ "token": token, "replaced": (f64::from(*p) * 1e4).round() / 1e4 }))
                    .collect();
                let mut object = json!({ "tokens": shown });
                if left_out > 0 {
                    object["truncated"] = json!(true);
                }
                print(&object.to_string())?;
            } else {
                let end = if left_out > 0 { format!(" … ({left_out} more tokens)") } else { String::new() };
                print(&(words(&tokens, probabilities, self.colours) + &end))?;
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
