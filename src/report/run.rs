//! A run as its folder tells it. Whatever is missing or damaged is left out and counted, never an error: a report is
//! looked at most of all when something went wrong.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Cross-entropy of the generator.
    GenLoss,
    /// Loss of the discriminator.
    DiscLoss,
    /// Share of masked tokens that the generator finds.
    GenAcc,
    /// Cross-entropy where \[MASK\] is shown.
    GenMaskLoss,
    /// Share of tokens that the generator finds where \[MASK\] is shown.
    GenMaskAcc,
    /// Of the tokens that could have been masked, the share judged rightly.
    DiscAcc,
    /// Area under the ROC curve, over the same tokens.
    DiscAuc,
    /// Share of tokens called replaced that were, of the same.
    DiscPrecision,
    /// Share of replaced tokens called so, of the same.
    DiscRecall,
    /// Share of tokens that were replaced, of the same.
    FakeRate,
    /// As `DiscAcc`, over all tokens: what earlier versions logged under that name.
    DiscAllAcc,
    /// As `DiscAuc`, over all tokens.
    DiscAllAuc,
    /// As `DiscPrecision`, over all tokens.
    DiscAllPrecision,
    /// As `DiscRecall`, over all tokens.
    DiscAllRecall,
    /// As `FakeRate`, over all tokens.
    AllFakeRate,
    /// Loss of a discriminator that gives the same score to every token that could have been
    /// masked.
    DiscConstantLoss,
    /// Standard deviation of the discriminator's scores.
    DiscScoreStd,
    /// Learning rate.
    Lr,
    /// Gradient norm before clipping.
    GradNorm,
    /// Tokens a second.
    TokPerS,
    /// Memory of the GPU in use, in MiB.
    GpuMemory,
}

/// How many there are.
pub const METRICS: usize = 21;

/// The numbers of one line; what it lacks, and JSON's `null`, is NaN.
pub type Values = [f64; METRICS];

/// What happened in the steps of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A loss or gradient far above those before.
    Spike,
    /// Steps whose loss or gradient was not finite and that changed nothing.
    Skipped,
    /// A return to this step's checkpoint.
    Rollback,
}

impl Mark {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spike => "spike",
            Self::Skipped => "skipped",
            Self::Rollback => "back to a checkpoint",
        }
    }
}

/// One run.
#[derive(Debug, Default)]
pub struct Run {
    /// Shortest end of the path that tells it from the other runs.
    pub name: String,
    /// Its folder or file.
    pub path: PathBuf,
    /// `config.json`.
    pub config: Map<String, Value>,
    /// Entries of the vocabulary, where known.
    pub vocab_size: Option<u64>,
    /// Steps of the lines, ascending.
    pub steps: Vec<u64>,
    /// Tokens seen at each line; NaN if the log does not say.
    pub tokens: Vec<f64>,
    /// A column a metric.
    pub columns: [Vec<f64>; METRICS],
    /// Held-out metrics by step.
    pub held_out: Vec<(u64, Values)>,
    /// Loss and accuracy of predicting tokens by how often they occur; none in logs of earlier
    /// versions.
    pub unigram: Option<(f64, f64)>,
    /// What happened where.
    pub marks: Vec<(u64, Mark)>,
    /// Steps in all, if the log says.
    pub total_steps: Option<u64>,
    /// Lines that could not be read.
    pub damaged: usize,
}

/// A line of training metrics; one of held-out metrics has them in `eval`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Line {
    step: Option<u64>,
    steps: Option<u64>,
    tokens: Option<f64>,
    gen_loss: Option<f64>,
    disc_loss: Option<f64>,
    gen_acc: Option<f64>,
    disc_acc: Option<f64>,
    disc_auc: Option<f64>,
    disc_precision: Option<f64>,
    disc_recall: Option<f64>,
    fake_rate: Option<f64>,
    gen_mask_loss: Option<f64>,
    gen_mask_acc: Option<f64>,
    disc_all_acc: Option<f64>,
    disc_all_auc: Option<f64>,
    disc_all_precision: Option<f64>,
    disc_all_recall: Option<f64>,
    all_fake_rate: Option<f64>,
    disc_constant_loss: Option<f64>,
    disc_score_std: Option<f64>,
    lr: Option<f64>,
    grad_norm: Option<f64>,
    tok_per_s: Option<f64>,
    gpu_memory_mib: Option<f64>,
    spike: Option<Value>,
    skipped: Option<Value>,
    rollback: Option<Value>,
    /// No metrics: how a step is split.
    micro_batch: Option<Value>,
    /// No metrics: what they are compared with.
    baseline: Option<BaselineLine>,
    eval: Option<Box<Line>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BaselineLine {
    unigram_loss: Option<f64>,
    unigram_acc: Option<f64>,
}

/// Whether the figures of the discriminator in a line of the log are over the tokens that could
/// have been masked. Earlier versions logged those over all tokens under the same names.
pub fn has_maskable(line: &Map<String, Value>) -> bool {
    line.contains_key("disc_all_auc")
}

impl Line {
    /// In the order of [`Metric`].
    fn values(&self) -> Values {
        let named = [self.disc_acc, self.disc_auc, self.disc_precision, self.disc_recall, self.fake_rate];
        let (own, all) = match self.disc_all_auc {
            // As `has_maskable` has it.
            None => ([None; 5], named),
            Some(_) => (
                named,
                [
                    self.disc_all_acc,
                    self.disc_all_auc,
                    self.disc_all_precision,
                    self.disc_all_recall,
                    self.all_fake_rate,
                ],
            ),
        };
        let [disc_acc, disc_auc, disc_precision, disc_recall, fake_rate] = own;
        let [disc_all_acc, disc_all_auc, disc_all_precision, disc_all_recall, all_fake_rate] = all;
        [
            self.gen_loss,
            self.disc_loss,
            self.gen_acc,
            self.gen_mask_loss,
            self.gen_mask_acc,
            disc_acc,
            disc_auc,
            disc_precision,
            disc_recall,
            fake_rate,
            disc_all_acc,
            disc_all_auc,
            disc_all_precision,
            disc_all_recall,
            all_fake_rate,
            self.disc_constant_loss,
            self.disc_score_std,
            self.lr,
            self.grad_norm,
            self.tok_per_s,
            self.gpu_memory_mib,
        ]
        .map(|value| value.unwrap_or(f64::NAN))
    }
}

/// `true`, a number that is not zero, a word or an object: something happened.
fn says_so(value: &Option<Value>) -> bool {
    !matches!(value, None | Some(Value::Null | Value::Bool(false)))
        && !value.as_ref().and_then(Value::as_f64).is_some_and(|n| n == 0.0)
}

impl Run {
    /// Reads the run of a folder, or a `.jsonl` file by itself.
    pub fn load(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_owned() };
        let lines = File::open(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::file(
                path,
                "there is no run here: expected a folder with metrics.jsonl (an --output of `elektron pretrain`)",
            ),
            _ => Error::io("read", &file)(e),
        })?;
        let mut run = Self { path: path.to_owned(), ..Self::default() };
        if path.is_dir() || path.ends_with("metrics.jsonl") {
            let dir = file.parent().unwrap_or(Path::new("."));
            run.config = read_object(&dir.join("config.json")).unwrap_or_default();
            // The name of this setting in earlier versions.
            if let Some(schedule) = run.config.remove("schedule") {
                run.config.insert("lr-scheduler".to_owned(), schedule);
            }
            run.vocab_size = vocabulary(dir, &run.config);
            run.total_steps = run.config.get("steps").and_then(Value::as_u64);
        }
        run.read(lines).map_err(Error::io("read", &file))?;
        Ok(run)
    }

    /// Reads several and names them.
    pub fn load_all(paths: &[PathBuf]) -> Result<Vec<Self>> {
        let mut runs = paths.iter().map(|path| Self::load(path)).collect::<Result<Vec<_>>>()?;
        name(&mut runs);
        Ok(runs)
    }

    /// Reads the lines of a log.
    pub fn read(&mut self, input: impl Read) -> std::io::Result<()> {
        let mut input = BufReader::with_capacity(1 << 20, input);
        let mut bytes = Vec::new();
        while input.read_until(b'\n', &mut bytes)? > 0 {
            match serde_json::from_slice::<Line>(&bytes) {
                Ok(line) if line.step.is_some() && line.micro_batch.is_none() => self.push(&line),
                // The reference loop's log begins with its settings.
                Ok(_) => {}
                Err(_) if bytes.iter().all(u8::is_ascii_whitespace) => {}
                Err(_) => self.damaged += 1,
            }
            bytes.clear();
        }
        Ok(())
    }

    fn push(&mut self, line: &Line) {
        let step = line.step.unwrap_or_default();
        if let Some(BaselineLine { unigram_loss, unigram_acc }) = line.baseline {
            let accuracy = unigram_acc.unwrap_or(f64::NAN);
            self.unigram = unigram_loss.map(|loss| (loss, accuracy)).or(self.unigram);
            return;
        }
        self.total_steps = line.steps.or(self.total_steps);
        if let Some(eval) = &line.eval {
            self.held_out.retain(|(at, _)| *at < step);
            self.held_out.push((step, eval.values()));
            return;
        }
        if line.rollback.is_some() {
            self.marks.push((step, Mark::Rollback));
            return;
        }
        // A run that went on from a checkpoint made these steps again: the later lines hold.
        if self.steps.last().is_some_and(|&last| last >= step) {
            let keep = self.steps.partition_point(|&at| at < step);
            self.steps.truncate(keep);
            self.tokens.truncate(keep);
            self.columns.iter_mut().for_each(|column| column.truncate(keep));
            self.held_out.retain(|(at, _)| *at < step);
            self.marks.retain(|(at, _)| *at < step);
        }
        self.steps.push(step);
        self.tokens.push(line.tokens.unwrap_or(f64::NAN));
        for (column, value) in self.columns.iter_mut().zip(line.values()) {
            column.push(value);
        }
        for (mark, value) in [(Mark::Spike, &line.spike), (Mark::Skipped, &line.skipped)] {
            if says_so(value) {
                self.marks.push((step, mark));
            }
        }
    }

    /// The column of a metric.
    pub fn column(&self, metric: Metric) -> &[f64] {
        &self.columns[metric as usize]
    }

    /// Tokens at a step, between the lines in proportion.
    pub fn tokens_at(&self, step: f64) -> Option<f64> {
        let before = self.steps.partition_point(|&at| (at as f64) < step);
        interpolate(before, |i| (self.steps[i] as f64, self.tokens[i]), self.steps.len(), step)
    }

    /// Step at so many tokens.
    pub fn step_at(&self, tokens: f64) -> Option<f64> {
        let before = self.tokens.partition_point(|&at| at < tokens);
        interpolate(before, |i| (self.tokens[i], self.steps[i] as f64), self.steps.len(), tokens)
    }

    /// A setting as text.
    pub fn setting(&self, key: &str) -> Option<String> {
        self.config.get(key).filter(|value| !value.is_null()).map(plain)
    }
}

/// y at x between the last of `before` points and the next; the first line starts at the origin. Beyond the last: none.
fn interpolate(before: usize, point: impl Fn(usize) -> (f64, f64), n: usize, x: f64) -> Option<f64> {
    let to = (before < n).then(|| point(before)).filter(|to| to.0.is_finite())?;
    let from = if before > 0 { point(before - 1) } else { (0.0, 0.0) };
    let share = if to.0 > from.0 { (x - from.0) / (to.0 - from.0) } else { 1.0 };
    Some(from.1 + share * (to.1 - from.1)).filter(|y| y.is_finite())
}

/// A value of `config.json` without the quotes of JSON.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Null => "–".to_owned(),
        other => other.to_string(),
    }
}

/// A JSON object from a file; whatever else stands there, and no file, is none.
pub(super) fn read_object(path: &Path) -> Option<Map<String, Value>> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Of the finished model, or of the settings where they decide it.
fn vocabulary(dir: &Path, config: &Map<String, Value>) -> Option<u64> {
    let read = |name: &str| read_object(&dir.join(name).join("config.json"));
    let model = read("generator").or_else(|| read("model"));
    let of_model = model.and_then(|model| model.get("vocab_size")?.as_u64());
    let own = config.get("tokenizer").is_none_or(Value::is_null);
    of_model.or_else(|| config.get("vocab-size").filter(|_| own)?.as_u64())
}

/// Names: the last parts of the paths, as many as it takes to tell them apart.
fn name(runs: &mut [Run]) {
    let parts: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let path = run.path.canonicalize().unwrap_or_else(|_| run.path.clone());
            let path = if path.ends_with("metrics.jsonl") { path.parent().unwrap_or(&path) } else { &path };
            path.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
        })
        .collect();
    let end = |parts: &[String], n: usize| parts[parts.len().saturating_sub(n)..].join("/");
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1);
    for (i, run) in runs.iter_mut().enumerate() {
        let alone = |n: &usize| {
            let own = end(&parts[i], *n);
            parts.iter().enumerate().all(|(j, other)| j == i || end(other, *n) != own)
        };
        let n = (1..=longest).find(alone).unwrap_or(longest);
        run.name = end(&parts[i], n);
    }
}

/// Settings in which the runs differ, apart from where they lie: name, and the value of each.
pub fn differences(runs: &[Run]) -> Vec<(String, Vec<String>)> {
    let mut keys: Vec<&String> = Vec::new();
    for key in runs.iter().flat_map(|run| run.config.keys()) {
        if !["output", "shards"].contains(&key.as_str()) && !keys.contains(&key) {
            keys.push(key);
        }
    }
    let value = |run: &Run, key: &str| run.setting(key).unwrap_or_else(|| "–".to_owned());
    keys.into_iter()
        .map(|key| (key.clone(), runs.iter().map(|run| value(run, key)).collect::<Vec<_>>()))
        .filter(|(_, values)| values.iter().any(|v| *v != values[0]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Run {
        let mut run = Run::default();
        run.read(text.as_bytes()).unwrap();
        run
    }

    #[test]
    fn damaged_lines_are_counted_and_passed_over() {
        let run = read(
            "{\"step\":1,\"tokens\":10,\"gen_loss\":2.5}\n{\"step\":2,\"gen_loss\":nu\n\nnot json\n\
             {\"step\":3,\"tokens\":30,\"gen_loss\":null,\"spike\":true,\"skipped\":0}\n{\"step\":4,\"gen_lo",
        );
        assert_eq!((run.steps.as_slice(), run.damaged), (&[1, 3][..], 3));
        assert_eq!(run.column(Metric::GenLoss)[0], 2.5);
        assert!(run.column(Metric::GenLoss)[1].is_nan());
        assert_eq!(run.marks, [(3, Mark::Spike)]);
        assert_eq!(
            (run.tokens_at(2.0), run.tokens_at(3.5), run.step_at(20.0)),
            (Some(20.0), None, Some(2.0))
        );
    }

    #[test]
    fn steps_made_again_count_once() {
        let line = |step: u64, loss: f64| format!("{{\"step\":{step},\"gen_loss\":{loss}}}\n");
        let eval = |step: u64| format!("{{\"step\":{step},\"eval\":{{\"gen_loss\":5}}}}\n");
        let text = [line(1, 9.0), line(2, 8.0), eval(2), line(3, 7.0), line(2, 6.0), eval(2)].concat();
        let run = read(&text);
        assert_eq!(run.steps, [1, 2]);
        assert_eq!(run.column(Metric::GenLoss), [9.0, 6.0]);
        assert_eq!(run.held_out.len(), 1);
    }

    #[test]
    fn figures_of_earlier_versions_are_over_all_tokens() {
        let mut run = read(
            "{\"step\":0,\"baseline\":{\"unigram_loss\":5.7,\"unigram_acc\":0.05,\"more\":1}}\n\
             {\"step\":1,\"gen_loss\":6,\"disc_auc\":0.6,\"fake_rate\":0.1}\n\
             {\"step\":2,\"gen_loss\":6,\"disc_auc\":0.5,\"disc_all_auc\":0.7,\"fake_rate\":0.2,\"all_fake_rate\":0.3}\n",
        );
        assert_eq!((run.steps.as_slice(), run.unigram), (&[1, 2][..], Some((5.7, 0.05))));
        let mut column = |metric: Metric| std::mem::take(&mut run.columns[metric as usize]);
        assert_eq!(column(Metric::DiscAllAuc), [0.6, 0.7]);
        assert_eq!(column(Metric::AllFakeRate), [0.1, 0.3]);
        let (auc, rate) = (column(Metric::DiscAuc), column(Metric::FakeRate));
        assert!(auc[0].is_nan() && rate[0].is_nan());
        assert_eq!((auc[1], rate[1]), (0.5, 0.2));
    }

    #[test]
    fn names_are_as_short_as_can_be() {
        let run = |path: &str| Run { path: path.into(), ..Run::default() };
        let mut runs = [run("/no/a/run"), run("/no/b/run"), run("/no/b/other")];
        name(&mut runs);
        assert_eq!(runs.map(|run| run.name), ["a/run", "b/run", "other"]);
    }
}
