//! `elektron runs`: the runs under a folder and how they stand.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::print;
use crate::Result;
use crate::report::run::has_maskable;
use crate::report::status::Status;
use crate::report::thousands;
use crate::train::log::duration;

#[derive(Args)]
#[command(after_help = "Examples:
  elektron runs out
  elektron runs out --json | jq '.[] | select(.state == \"crashed\") | .path'
Columns:
  [MASK] loss  loss of the generator at positions that show [MASK]; held out: the same, on held-out text
  unigram      that of predicting every token by how often it occurs: what context is learnt shows below it
  AUC          of the discriminator, over the tokens that can be masked: 0.5 is chance
Figures that a run of an earlier version did not log are shown as –
States:
  running   a process trains in it
  finished  all steps are made, both models are saved
  stopped   it ended with a checkpoint of its last step: --resume loses nothing
  crashed   it ended after its last checkpoint: --resume makes some steps again")]
pub(super) struct Arguments {
    /// Folder whose runs are listed, and those of the folders in it
    #[arg(default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// For programs: one array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    let runs = Status::below(&a.dir)?;
    if a.json {
        return print(&format!("{:#}", json!(runs)));
    }
    if runs.is_empty() {
        return print(&format!(
            "no run lies in {}: a run is what `elektron pretrain` makes",
            a.dir.display()
        ));
    }
    let mut rows =
        vec![["run", "state", "step", "[MASK] loss", "unigram", "AUC", "held out", "age"].map(str::to_owned)];
    rows.extend(runs.iter().map(row));
    print(&table(&rows))
}

fn row(run: &Status) -> [String; 8] {
    let of = |object: &serde_json::Map<String, Value>, key: &str, decimals: usize| {
        let value = object.get(key).and_then(Value::as_f64);
        value.map_or("–".to_owned(), |x| format!("{x:.decimals$}"))
    };
    let metric = |key: &str, decimals: usize| of(&run.metrics, key, decimals);
    let step = match run.steps {
        Some(steps) => format!("{} of {}", thousands(run.step), thousands(steps)),
        None => thousands(run.step),
    };
    [
        run.path.display().to_string(),
        run.state.name().to_owned(),
        step,
        metric("gen_mask_loss", 3),
        run.baseline.as_ref().map_or("–".to_owned(), |baseline| of(baseline, "unigram_loss", 3)),
        if has_maskable(&run.metrics) { metric("disc_auc", 3) } else { "–".to_owned() },
        run.held_out.as_ref().map_or("–".to_owned(), |held_out| of(held_out, "gen_mask_loss", 3)),
        run.age_s.map_or("–".to_owned(), |age| duration(age as f64)),
    ]
}

/// Columns as wide as their widest cell: words to the left, numbers to the right.
fn table(rows: &[[String; 8]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
