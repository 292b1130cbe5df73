//! Is my loss normal? What runs of the same preset had after as many tokens.
//!
//! `bands.json` is made from `benches/records/` by `benches/records/reference_bands.py`: for each preset with a record
//! the lowest and the highest value of its runs along the tokens, and the settings under which that holds.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::run::{Metric, Run, plain};
use super::{short, thousands};

/// The record of a preset.
#[derive(Debug, Deserialize)]
pub struct Reference {
    /// What it was trained on.
    pub text: String,
    /// Folder under `benches/records`.
    pub record: String,
    /// Entries of its vocabulary: the generator's first loss is their logarithm.
    pub vocab_size: u64,
    /// Settings as `config.json` has them.
    pub setting: Map<String, Value>,
    /// The band.
    pub points: Points,
}

/// Columns along the tokens.
#[derive(Debug, Deserialize)]
pub struct Points {
    /// Tokens seen.
    pub tokens: Vec<f64>,
    /// Runs that went so far.
    pub runs: Vec<usize>,
    gen_loss: Vec<[f64; 2]>,
    disc_loss: Vec<[f64; 2]>,
    gen_acc: Vec<[f64; 2]>,
    disc_all_auc: Vec<[f64; 2]>,
    /// Empty, as `disc_auc`, where runs of the record are from versions that did not log it.
    #[serde(default)]
    gen_mask_loss: Vec<[f64; 2]>,
    #[serde(default)]
    disc_auc: Vec<[f64; 2]>,
}

static BANDS: LazyLock<Map<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("bands.json")).unwrap_or_default());

impl Reference {
    /// Of the run's preset; none where there is no record, or where the run does not train the preset's own
    /// untrained pair.
    pub fn of(run: &Run) -> Option<Self> {
        let is_pair = run.setting("objective").is_none_or(|objective| objective == "electra");
        if !is_pair || ["generator", "discriminator"].iter().any(|key| run.setting(key).is_some()) {
            return None;
        }
        serde_json::from_value(BANDS.get(&run.setting("preset")?)?.clone()).ok()
    }

    /// Lowest and highest value along the tokens.
    pub fn band(&self, metric: Metric) -> Option<&[[f64; 2]]> {
        let band = match metric {
            Metric::GenLoss => &self.points.gen_loss,
            Metric::DiscLoss => &self.points.disc_loss,
            Metric::GenAcc => &self.points.gen_acc,
            Metric::GenMaskLoss => &self.points.gen_mask_loss,
            Metric::DiscAuc => &self.points.disc_auc,
            Metric::DiscAllAuc => &self.points.disc_all_auc,
            _ => return None,
        };
        (!band.is_empty()).then_some(band.as_slice())
    }

    /// Where the run was set otherwise: name, its value, the record's.
    pub fn differences(&self, run: &Run) -> Vec<(String, String, String)> {
        let mut all = Vec::new();
        for (key, theirs) in &self.setting {
            let ours = run.config.get(key).unwrap_or(&Value::Null);
            let equal = match (ours.as_f64(), theirs.as_f64()) {
                (Some(a), Some(b)) => a == b,
                _ => ours == theirs,
            };
            if !equal {
                all.push((key.clone(), plain(ours), plain(theirs)));
            }
        }
        if let Some(vocab_size) = run.vocab_size.filter(|&n| n != self.vocab_size) {
            all.push(("vocabulary".to_owned(), thousands(vocab_size), thousands(self.vocab_size)));
        }
        all
    }

    /// In words; `values` are the run's smoothed lines.
    pub fn verdict(&self, run: &Run, values: impl Fn(Metric) -> Vec<f64>) -> Option<String> {
        let end = *self.points.tokens.last()?;
        let line = run.tokens.iter().rposition(|&tokens| tokens <= end)?;
        let tokens = run.tokens[line];
        let point = self.points.tokens.iter().rposition(|&at| at <= tokens)?;
        let one = |what: &str, metric: Metric| -> Option<String> {
            let (value, [low, high]) = (*values(metric).get(line)?, *self.band(metric)?.get(point)?);
            let place = match value {
                _ if value.is_nan() => return None,
                _ if value < low => "below them",
                _ if value > high => "above them",
                _ => "within",
            };
            Some(format!("{what} is {}, theirs was {} to {}: {place}", short(value), short(low), short(high)))
        };
        let parts = [
            one("generator loss", Metric::GenLoss),
            one("discriminator loss", Metric::DiscLoss),
            one("discriminator AUC", Metric::DiscAuc),
            one("its AUC with special tokens", Metric::DiscAllAuc),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            return None;
        }
        let count = self.points.runs[point];
        let mut text = format!(
            "Against {count} recorded run{} of this preset ({}), at {} tokens: {}.",
            if count == 1 { "" } else { "s" },
            self.text,
            thousands(tokens as u64),
            parts.join("; ")
        );
        let differences = self.differences(run);
        if !differences.is_empty() {
            let list: Vec<String> = differences
                .iter()
                .map(|(key, ours, theirs)| format!("{key} {ours} (theirs {theirs})"))
                .collect();
            text += &format!(
                " They were set otherwise, and another text has other losses, so this is a rough guide: {}.",
                list.join(", ")
            );
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(preset: &str) -> Run {
        let config = serde_json::json!({ "preset": preset, "batch-size": 8 });
        Run { config: config.as_object().unwrap().clone(), vocab_size: Some(30522), ..Run::default() }
    }

    #[test]
    fn the_records_are_whole() {
        for preset in ["tiny", "small"] {
            let reference = Reference::of(&run(preset)).unwrap();
            let n = reference.points.tokens.len();
            assert!(n >= 25 && reference.points.tokens.is_sorted());
            for metric in [Metric::GenLoss, Metric::DiscLoss, Metric::GenAcc, Metric::DiscAllAuc] {
                let band = reference.band(metric).unwrap();
                assert!(band.len() == n && band.iter().all(|[low, high]| low <= high));
            }
            assert!(reference.band(Metric::Lr).is_none());
        }
        assert!(Reference::of(&run("base")).is_none());
    }

    #[test]
    fn a_run_is_judged_by_its_tokens() {
        let mut run = run("tiny");
        run.steps = vec![50, 100];
        run.tokens = vec![102_400.0, 204_800.0];
        let reference = Reference::of(&run).unwrap();
        let at = |loss: f64| reference.verdict(&run, |_| vec![9.0, loss]).unwrap();
        assert!(at(7.5).contains("at 204,800 tokens: generator loss is 7.500"), "{}", at(7.5));
        assert!(at(12.0).contains("above them") && at(1.0).contains("below them"));
        assert!(at(7.5).contains("batch-size 8 (theirs 32)") && at(7.5).contains("vocabulary 30,522"));
        run.tokens = vec![10.0, 20.0];
        assert!(reference.verdict(&run, |_| vec![9.0, 9.0]).is_none(), "before the record's first line");
    }
}
