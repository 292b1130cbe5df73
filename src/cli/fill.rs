//! `elektron fill`: which tokens does a masked language model expect where a text has a mask?

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::device::{Choice, OnBackend, Place, with_backend};
use super::lines::{LINES_AT_ONCE, Lines, Reader, Texts};
use super::{check_vocabulary, print, set_threads};
use crate::backend::Backend;
use crate::config::{Device, Precision};
use crate::data::tokenizer::Tokenizer;
use crate::hub::{Part, locate};
use crate::model::hf::Checkpoint;
use crate::model::{Candidate, Filler};
use crate::{Error, Result};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron fill --model out/run \"To Sherlock [MASK] she is always the woman.\"
  elektron fill --model google/electra-small-generator --top 10 \"The [MASK] of England\"
  elektron fill --model out/run/generator --input page.txt --json | jq '.masks[0][0].token_str'

Tokens, scores and sequences are those of the fill-mask pipeline of transformers. With --json every
line gives an object {\"text\": …, \"masks\": […]}: for each [MASK] a list of {\"score\", \"token\",
\"token_str\", \"sequence\"}, the most probable first. Where a text has several masks, each is filled by
itself, and the others stay.")]
pub(super) struct Arguments {
    /// Directory of a run, whose generator is taken, or of a generator or another
    /// ElectraForMaskedLM, or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME")]
    model: PathBuf,
    /// Tokenizer [default: the model's]
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    texts: Texts,
    /// Tokens shown for every mask
    #[arg(long, default_value_t = 5, value_name = "N")]
    top: usize,
    /// A JSON object a line, instead of a table
    #[arg(long)]
    json: bool,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// In which precision
    #[arg(long, value_enum, default_value = "fp32")]
    precision: Precision,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    set_threads(a.threads)?;
    let lines = a.texts.open()?;
    let model = model_of(&a.model)?;
    let tokenizer = a.tokenizer.as_ref().unwrap_or(&model);
    let tokenizer = Tokenizer::load(&locate(tokenizer, Part::Tokenizer, false)?)?;
    let checkpoint = Checkpoint::load(&locate(&model, Part::Model, false)?)?;
    check_vocabulary(&tokenizer, &checkpoint.config, "model")?;
    let tokens = checkpoint.config.vocab_size;
    if !(1..=tokens).contains(&a.top) {
        return Err(Error::config(format!("--top is {}, expected 1 to {tokens}, the vocabulary", a.top)));
    }
    let (place, top, json) = (&model, a.top, a.json);
    with_backend(
        Choice::new(a.device, Some(a.precision)),
        Filling { place, checkpoint, tokenizer, lines, top, json },
    )
}

/// Of the directory of a run the one of its masked language model; what else is given, as it is.
fn model_of(given: &Path) -> Result<PathBuf> {
    let holds = |dir: &Path, name: &str| dir.join(name).is_file();
    if !holds(given, "run.json") {
        return Ok(given.to_path_buf());
    }
    let models = ["generator", "model"].map(|name| given.join(name));
    models.into_iter().find(|dir| holds(dir, "config.json")).ok_or_else(|| {
        Error::file(
            given,
            format!(
                "this run has no model yet, which is written when its last step is made: `elektron \
                 pretrain --resume {}` goes on with it",
                given.display()
            ),
        )
    })
}

/// A model that was read, and the lines that it fills.
struct Filling<'a> {
    /// Where the model is from.
    place: &'a Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    lines: Lines<'a>,
    top: usize,
    json: bool,
}

impl OnBackend for Filling<'_> {
    type Output = ();
    fn run<B: Backend>(self, backend: B, _: &Place) -> Result<()> {
        let Self { place, checkpoint, tokenizer, lines, top, json } = self;
        let model = Filler::load(backend, checkpoint).map_err(|e| Error::file(place, e.to_string()))?;
        lines.read(&mut Completer { model, tokenizer, top, json, rows: Vec::new(), lines: 0 })
    }
}

/// Shows lines as soon as there are enough of them, so that text may be of any length.
struct Completer<B: Backend> {
    model: Filler<B>,
    tokenizer: Tokenizer,
    top: usize,
    json: bool,
    /// Lines that have not been shown yet, and their token ids with the special tokens.
    rows: Vec<(String, Vec<u32>)>,
    /// The number of lines so far, without blank ones.
    lines: u64,
}

impl<B: Backend> Reader for Completer<B> {
    fn line(&mut self, line: &str) -> Result<()> {
        self.lines += 1;
        match self.row(line) {
            Ok(row) => self.rows.push((line.to_owned(), row)),
            Err(error) => {
                self.show()?;
                return Err(error);
            }
        }
        if self.rows.len() == LINES_AT_ONCE { self.show() } else { Ok(()) }
    }

    fn show(&mut self) -> Result<()> {
        let (texts, rows): (Vec<_>, Vec<_>) = std::mem::take(&mut self.rows).into_iter().unzip();
        let filled = self.model.fill(&rows, self.tokenizer.special().mask, self.top)?;
        for ((text, row), masks) in texts.iter().zip(&rows).zip(filled) {
            let masks = self.propositions(row, &masks)?;
            print(&if self.json {
                json!({ "text": text, "masks": masks }).to_string()
            } else {
                table(text, &masks)
            })?;
        }
        Ok(())
    }
}

impl<B: Backend> Completer<B> {
    /// The tokens of a line. An error if it has no mask, or more tokens than the model has positions.
    fn row(&self, line: &str) -> Result<Vec<u32>> {
        let special = self.tokenizer.special();
        let tokens = self.tokenizer.encode(line)?;
        let refuse = |problem: String| {
            Err(Error::argument(format!("line {} (`{}`) {problem}", self.lines, beginning(line))))
        };
        if !tokens.contains(&special.mask) {
            let mask = self.tokenizer.token(special.mask);
            return refuse(format!("has no {mask}: write {mask} where a token is to be predicted"));
        }
        let positions = self.model.config().max_position_embeddings;
        if tokens.len() + 2 > positions {
            return refuse(format!(
                "has {} tokens; the model has {positions} positions, two of them for {} and {}: \
                 shorten it",
                tokens.len(),
                self.tokenizer.token(special.cls),
                self.tokenizer.token(special.sep)
            ));
        }
        Ok([vec![special.cls], tokens, vec![special.sep]].concat())
    }

    /// What the pipeline returns for each mask of a row.
    fn propositions(&self, row: &[u32], masks: &[Vec<Candidate>]) -> Result<Vec<Vec<Value>>> {
        let special = self.tokenizer.special();
        let places: Vec<usize> = (0..row.len()).filter(|&i| row[i] == special.mask).collect();
        let proposition = |place: usize, candidate: &Candidate| {
            let mut filled = row.to_vec();
            filled[place] = candidate.id;
            filled.retain(|&id| id != special.pad);
            // Other masks are to stay, and they are special tokens.
            let sequence = self.decode(&filled, places.len() == 1)?;
            let token = self.decode(&[candidate.id], false)?;
            Ok(json!({
                "score": candidate.probability, "token": candidate.id, "token_str": token, "sequence": sequence,
            }))
        };
        let of_mask = |(&place, candidates): (&usize, &Vec<Candidate>)| {
            candidates.iter().map(|candidate| proposition(place, candidate)).collect()
        };
        places.iter().zip(masks).map(of_mask).collect()
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let decoded = self.tokenizer.inner().decode(ids, skip_special_tokens);
        decoded.map_err(|e| Error::argument(format!("cannot turn tokens into text: {e}")))
    }
}

/// As many characters of a line as an error shows.
const SHOWN: usize = 60;

fn beginning(line: &str) -> String {
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// The line, and below it for every mask a table of probability, token and filled text.
fn table(text: &str, masks: &[Vec<Value>]) -> String {
    let of = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let tokens = masks.iter().flatten().map(|one| of(one, "token_str").chars().count());
    let width = tokens.max().unwrap_or(0);
    let mut out = text.to_owned();
    for (number, mask) in masks.iter().enumerate() {
        if masks.len() > 1 {
            out += &format!("\n mask {}", number + 1);
        }
        for one in mask {
            let (token, score) = (of(one, "token_str"), one["score"].as_f64().unwrap_or(f64::NAN));
            out += &format!("\n  {score:.4}  {token:<width$}  {}", of(one, "sequence"));
        }
    }
    out
}
