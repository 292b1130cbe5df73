//! `elektron detect`: how likely is each token of a text to have been replaced?

use std::fs;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{check_vocabulary, print, set_threads};
use crate::backend::Cpu;
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
    /// Text files, a line at a time
    #[arg(long, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// A JSON object a line, instead of words
    #[arg(long)]
    json: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    set_threads(a.threads)?;
    let lines = lines(a)?;
    let tokenizer = a.tokenizer.as_ref().unwrap_or(&a.discriminator);
    let tokenizer = Tokenizer::load(&locate(tokenizer, Part::Tokenizer, false)?)?;
    let checkpoint = Checkpoint::load(&locate(&a.discriminator, Part::Model, false)?)?;
    check_vocabulary(&tokenizer, &checkpoint.config, "discriminator")?;
    let mut model = Discriminator::load(Cpu::<f32>::new(), checkpoint)
        .map_err(|e| Error::file(&a.discriminator, e.to_string()))?;
    let limit = model.config().max_position_embeddings;
    let special = tokenizer.special();
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for chunk in lines.chunks(LINES_AT_ONCE) {
        let row = |line: &String| -> Result<Vec<u32>> {
            let mut row = vec![special.cls];
            row.extend(tokenizer.encode(line)?);
            row.truncate(limit - 1);
            row.push(special.sep);
            Ok(row)
        };
        let rows = chunk.iter().map(row).collect::<Result<Vec<_>>>()?;
        for (row, probabilities) in rows.iter().zip(model.probabilities(&rows)?) {
            let inner = 1..row.len() - 1;
            let tokens: Vec<String> = row[inner.clone()].iter().map(|&id| tokenizer.token(id)).collect();
            let probabilities = &probabilities[inner];
            if a.json {
                let shown: Vec<_> = tokens
                    .iter()
                    .zip(probabilities)
                    .map(|(token, p)| json!({ "token": token, "replaced": (f64::from(*p) * 1e4).round() / 1e4 }))
                    .collect();
                print(&json!({ "tokens": shown }).to_string())?;
            } else {
                print(&show(&tokens, probabilities, colours))?;
            }
        }
    }
    Ok(())
}

fn lines(a: &Arguments) -> Result<Vec<String>> {
    let mut lines: Vec<String> = a.text.clone();
    for path in &a.input {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            Error::file(path, format!("byte {} is not UTF-8: convert the file", e.utf8_error().valid_up_to()))
        })?;
        lines.extend(text.lines().map(str::to_owned));
    }
    if a.text.is_empty() && a.input.is_empty() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(Error::io("read", "standard input"))?;
        lines.extend(text.lines().map(str::to_owned));
    }
    lines.retain(|line| !line.trim().is_empty());
    if lines.is_empty() {
        return Err(Error::config(
            "there is no text: give it as an argument, with --input, or on standard input",
        ));
    }
    Ok(lines)
}

/// Words with the probability in hundredths behind each token, the doubtful ones marked.
fn show(tokens: &[String], probabilities: &[f32], colours: bool) -> String {
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
