//! The log of a run: `metrics.jsonl` and TensorBoard's event files on disk, and progress for who watches.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::baseline::Baseline;
use super::checkpoint::Checkpoints;
use super::figures::figures;
use super::health::Findings;
use super::metrics::Metrics;
use super::sink::Sink;
use super::tensorboard::Events;
use crate::config::{LogFormat, RunConfig};
use crate::fsutil::write_atomic;
use crate::model::Objective;
use crate::model::hf::WEIGHTS;
use crate::{Error, Result};

/// The file's name in the run's directory.
pub const METRICS: &str = "metrics.jsonl";

/// One line of the log: means since the line before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// Updates made.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    /// Tokens trained on since the run began.
    pub tokens: u64,
    /// Means.
    pub metrics: Metrics,
    /// Learning rate of the last update.
    pub lr: f64,
    /// Mean gradient norm before clipping.
    pub grad_norm: f64,
    /// Bytes of GPU memory in use.
    pub gpu_memory: Option<u64>,
    /// Standard deviations by which a loss stood out, if one did.
    pub spike: Option<f64>,
    /// Steps since the line before that changed nothing, because the loss or a gradient was not finite.
    pub skipped: u64,
    /// What the run was found not to learn, told once.
    pub warnings: Findings,
    /// Tokens a second of training since the line before.
    pub tok_per_s: f64,
    /// Seconds to go.
    pub eta_s: f64,
}

/// What is shown while a run goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nothing.
    Quiet,
    /// A line for people, on standard error.
    #[default]
    Text,
    /// A JSON object a line for programs, on standard output.
    Json,
}

/// Writes all of it. Nothing here stops a run: lines of the log that cannot be written wait in memory,
/// and progress messages that cannot be written are dropped.
pub struct Log {
    dir: PathBuf,
    objective: Objective,
    jsonl: Option<Sink>,
    events: Option<Events>,
    progress: Progress,
    terminal: bool,
    /// What metrics are compared with.
    baseline: Option<Baseline>,
    /// Its line, which goes before the next one: a log without another line is that of a run that
    /// has not begun.
    baseline_line: Option<Value>,
}

impl Log {
    /// Opens the log in the run's directory, as it was after `step` steps, when `metrics.jsonl` had `bytes`
    /// bytes: lines that a continued run will write again are dropped.
    pub fn open(config: &RunConfig, step: u64, bytes: u64, progress: Progress) -> Self {
        let wants = |format| config.log_to.contains(&format);
        let dir = config.output.clone();
        Self {
            jsonl: metrics_file(&dir, step, bytes, wants(LogFormat::Jsonl)),
            events: wants(LogFormat::Tensorboard).then(|| Events::create(&dir, step)),
            dir,
            objective: config.objective,
            progress,
            terminal: std::io::stderr().is_terminal(),
            baseline: None,
            baseline_line: None,
        }
    }

    /// What the metrics of the run, which is taken up after `step` steps, are compared with. It has
    /// a line in the log, unless it was written when the run began.
    pub fn baseline(&mut self, step: u64, baseline: Baseline) {
        self.baseline = Some(baseline);
        if step > 0 && has_baseline(&self.dir.join(METRICS)) {
            return;
        }
        self.baseline_line = Some(json!({ "step": step, "baseline": baseline }));
        match self.progress {
            Progress::Quiet => {}
            Progress::Json => {
                let Ok(Value::Object(object)) = serde_json::to_value(baseline) else { return };
                say(&tagged("baseline", object));
            }
            Progress::Text => crate::note!("{}", baseline.describe()),
        }
    }

    /// Returns the log to what it was after `step` steps.
    pub fn go_back(&mut self, step: u64, bytes: u64) {
        self.flush();
        let waiting = self.jsonl.as_mut().map(Sink::take_pending).unwrap_or_default();
        self.jsonl = metrics_file(&self.dir, step, bytes, self.jsonl.is_some());
        if let Some(jsonl) = &mut self.jsonl {
            let lines = waiting.split_inclusive(|&byte| byte == b'\n');
            lines.filter(|line| is_up_to(line, step)).for_each(|line| jsonl.add(line));
        }
        if let Some(events) = &mut self.events {
            events.close();
            *events = Events::create(&self.dir, step);
        }
    }

    /// One line of training metrics.
    pub fn train(&mut self, line: &Line) {
        let mut object = Map::new();
        object.insert("step".into(), json!(line.step));
        object.insert("steps".into(), json!(line.steps));
        object.insert("tokens".into(), json!(line.tokens));
        object.extend(figures(self.objective, &line.metrics));
        object.insert("lr".into(), json!(line.lr));
        object.insert("grad_norm".into(), json!(line.grad_norm));
        object.insert("tok_per_s".into(), json!(line.tok_per_s.round()));
        if let Some(bytes) = line.gpu_memory {
            object.insert("gpu_memory_mib".into(), json!(bytes >> 20));
        }
        if let Some(z) = line.spike {
            object.insert("spike".into(), json!(z));
        }
        if line.skipped > 0 {
            object.insert("skipped".into(), json!(line.skipped));
        }
        let warnings: Vec<String> =
            line.warnings.iter().flatten().map(|finding| finding.in_words()).collect();
        if !warnings.is_empty() {
            object.insert("warnings".into(), json!(warnings));
        }
        self.scalars("train", line.step, &object);
        self.write(&Value::Object(object.clone()));
        match self.progress {
            Progress::Quiet => {}
            Progress::Json => {
                object.insert("eta_s".into(), json!(line.eta_s.round()));
                say(&tagged("train", object));
            }
            Progress::Text => {
                let end = if self.terminal && line.step < line.steps { "\r" } else { "\n" };
                // Progress that nobody can read is no reason to stop training.
                let text = progress(self.objective, line, self.baseline.as_ref());
                let _ = write!(std::io::stderr(), "{}{text}{end}", self.clear());
            }
        }
        // The last line's are told by the summary.
        if self.progress != Progress::Quiet && line.step < line.steps {
            warnings.iter().for_each(|warning| {
                crate::note!("{}warning: by step {} {warning}", self.clear(), line.step);
            });
        }
    }

    /// One line of held-out metrics.
    pub fn eval(&mut self, step: u64, metrics: &Metrics) {
        let mut object = figures(self.objective, metrics);
        self.write(&json!({ "step": step, "eval": object }));
        self.scalars("eval", step, &object);
        match self.progress {
            Progress::Quiet => {}
            Progress::Json => {
                object.insert("step".into(), json!(step));
                say(&tagged("eval", object));
            }
            Progress::Text => {
                let words = in_words(self.objective, metrics, self.baseline.as_ref());
                crate::note!("{}held out at step {step}: {words}", self.clear());
            }
        }
    }

    /// One line that tells of a return from step `from` to the checkpoint of step `to`.
    pub fn rollback(&mut self, from: u64, to: u64, reason: &str) {
        self.write(&json!({ "step": to, "rollback": { "from": from, "reason": reason } }));
    }

    /// One line that tells how many rows of a step's are computed at a time, and how long steps of other splits took.
    pub fn micro_batch(&mut self, rows: usize, of: usize, timed: &[(usize, f64)]) {
        let timed: Vec<Value> =
            timed.iter().map(|(rows, seconds)| json!({ "rows": rows, "ms": seconds * 1e3 })).collect();
        self.write(&json!({ "step": 0, "micro_batch": { "rows": rows, "of": of, "timed": timed } }));
    }

    fn write(&mut self, line: &Value) {
        let before = self.baseline_line.take();
        if let Some(jsonl) = &mut self.jsonl {
            for line in before.iter().chain([line]) {
                jsonl.add(format!("{line}\n").as_bytes());
            }
        }
    }

    /// Writes the lines that had to wait.
    pub fn flush(&mut self) {
        if let Some(jsonl) = &mut self.jsonl {
            jsonl.flush();
        }
        if let Some(events) = &mut self.events {
            events.flush();
        }
    }

    /// As [`Log::flush`], for the last time, with a warning about what could not be written.
    pub fn close(&mut self) {
        if let Some(jsonl) = &mut self.jsonl {
            jsonl.close();
        }
        if let Some(events) = &mut self.events {
            events.close();
        }
    }

    /// The length of `metrics.jsonl` once all that waits is written, in bytes. Where that is not known, it
    /// is the largest number: then the steps of the lines alone decide which lines are kept.
    pub fn bytes(&self) -> u64 {
        let unused = || fs::metadata(self.dir.join(METRICS)).map_or(0, |file| file.len());
        self.jsonl.as_ref().map_or_else(unused, |jsonl| jsonl.bytes().unwrap_or(u64::MAX))
    }

    /// `metrics.jsonl`, for another thread to sync to disk.
    pub fn file(&self) -> Option<File> {
        self.jsonl.as_ref().and_then(Sink::file)
    }

    /// Erases the line of progress that stands on a terminal.
    fn clear(&self) -> &'static str {
        if self.terminal { "\x1b[2K" } else { "" }
    }

    fn scalars(&mut self, group: &str, step: u64, values: &Map<String, Value>) {
        let Some(events) = &mut self.events else { return };
        let shown = values.iter().filter(|(key, _)| !["step", "steps"].contains(&key.as_str()));
        let named: Vec<(String, f64)> =
            shown.filter_map(|(key, value)| Some((format!("{group}/{key}"), value.as_f64()?))).collect();
        events.scalars(step, named.iter().map(|(tag, value)| (tag.as_str(), *value)));
    }
}

/// An object that says first what it is.
pub fn tagged(event: &str, object: Map<String, Value>) -> Value {
    let mut all = Map::new();
    all.insert("event".into(), json!(event));
    all.extend(object);
    Value::Object(all)
}

/// A line for a program, at once; that nobody reads it is no reason to stop training.
fn say(line: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Held-out metrics on one line.
pub fn in_words(objective: Objective, m: &Metrics, baseline: Option<&Baseline>) -> String {
    let at_mask = match baseline {
        Some(baseline) => baseline.in_words(m),
        None => format!("{:.2} at [MASK]", m.gen_mask_loss),
    };
    if objective == Objective::Mlm {
        return format!(
            "loss {at_mask} (accuracy there {:.3}, trained loss {:.4})",
            m.gen_mask_acc, m.gen_loss
        );
    }
    format!(
        "generator {at_mask} (accuracy there {:.3}, trained loss {:.4}); discriminator {:.4} against {:.4} for a \
         constant output (AUC {:.3}; accuracy {:.3}, always \"original\" {:.3})",
        m.gen_mask_acc,
        m.gen_loss,
        m.disc_loss,
        m.disc_constant_loss,
        m.disc_auc,
        m.disc_acc,
        1.0 - m.fake_rate,
    )
}

fn progress(objective: Objective, line: &Line, baseline: Option<&Baseline>) -> String {
    let m = &line.metrics;
    let unigram = baseline.map_or(String::new(), |baseline| format!("/{:.2}", baseline.unigram_loss));
    let at_mask = format!("[MASK] {:.2}{unigram} acc {:.3}", m.gen_mask_loss, m.gen_mask_acc);
    let of_networks = match objective {
        Objective::Mlm => format!("loss {:.3} {at_mask}", m.gen_loss),
        Objective::Electra => format!(
            "gen {:.3} {at_mask} | disc {:.4} acc {:.3} auc {:.3}",
            m.gen_loss, m.disc_loss, m.disc_acc, m.disc_auc
        ),
    };
    format!(
        "step {}/{} {of_networks} | lr {:.2e} norm {:.2} | {:.0} tok/s, {} left{}{}",
        line.step,
        line.steps,
        line.lr,
        line.grad_norm,
        line.tok_per_s,
        duration(line.eta_s),
        line.spike.map_or(String::new(), |z| format!(" | SPIKE of {z:.1} standard deviations")),
        if line.skipped > 0 { format!(" | {} steps SKIPPED", line.skipped) } else { String::new() }
    )
}

/// `3 d 04 h`, `2 h 05 min`, `3 min 10 s`, `8 s`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86400 => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {:02} h", s / 86400, s % 86400 / 3600),
    }
}

/// `metrics.jsonl` of the run in `dir`, which continues after `step` steps; not opened unless it is
/// wanted.
fn metrics_file(dir: &Path, step: u64, bytes: u64, wanted: bool) -> Option<Sink> {
    let path = dir.join(METRICS);
    if !wanted {
        if path.is_file()
            && let Err(error) = take_back(&path, step, bytes)
        {
            crate::note!("warning: {error}; it keeps lines of steps that will be computed again");
        }
        return None;
    }
    Some(Sink::new(path.clone(), move || {
        if path.is_file() {
            take_back(&path, step, bytes)?;
        }
        let mut options = File::options();
        options.create(true).append(true);
        #[cfg(unix)]
        if fs::metadata(&path).is_ok_and(|file| std::os::unix::fs::FileTypeExt::is_fifo(&file.file_type())) {
            // Without a reader, or with a slow one, lines wait, and the training does not.
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
        }
        options.open(&path).map_err(Error::io("write", &path))
    }))
}

/// Whether a log begins with a line of what its metrics are compared with.
fn has_baseline(path: &Path) -> bool {
    let head = || -> Option<Vec<u8>> {
        // Opening a FIFO would wait for its writer.
        fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let mut head = Vec::new();
        File::open(path).ok()?.take(1 << 16).read_to_end(&mut head).ok()?;
        Some(head)
    };
    let head = head().unwrap_or_default();
    let mut lines = head.split(|&byte| byte == b'\n');
    lines.any(|line| serde_json::from_slice::<Value>(line).is_ok_and(|line| line.get("baseline").is_some()))
}

/// Drops what follows the first `bytes` bytes, and within these the lines of steps after `step`.
fn take_back(path: &Path, step: u64, bytes: u64) -> Result<()> {
    let read = |path: &Path| {
        let mut reader = BufReader::new(File::open(path)?.take(bytes));
        let (mut all, mut kept, mut line) = (0, Vec::new(), Vec::new());
        while reader.read_until(b'\n', &mut line)? > 0 {
            all += line.len() as u64;
            if is_up_to(&line, step) {
                kept.extend_from_slice(line.trim_ascii_end());
                kept.push(b'\n');
            }
            line.clear();
        }
        Ok((all, kept))
    };
    let (all, kept) = read(path).map_err(Error::io("read", path))?;
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    match kept.len() as u64 == all {
        true if length == all => Ok(()),
        true => File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(all))
            .map_err(Error::io("write", path)),
        false => write_atomic(path, |out| out.write_all(&kept)),
    }
}

/// Whether a line belongs to a step up to `step`; a line that a crash cut short does not.
fn is_up_to(line: &[u8], step: u64) -> bool {
    let value = serde_json::from_slice::<Value>(line).ok();
    value.and_then(|line| line.get("step")?.as_u64()).is_some_and(|at| at <= step)
}

/// The directory of a run's first stage, masked language modelling, within the run's.
pub const FIRST_STAGE: &str = "mlm";

/// Whether a directory holds a run, or the first stage of one, that has begun to train.
pub fn is_begun(dir: &Path) -> bool {
    holds_run(dir) || holds_run(&dir.join(FIRST_STAGE))
}

/// Whether a directory holds a run that has begun to train: lines of the log, a checkpoint or a model. A
/// run that was refused before its first step leaves none of them.
pub fn holds_run(dir: &Path) -> bool {
    let has_pair = Objective::Electra.directories().iter().any(|name| dir.join(name).exists());
    // Others may have a directory of this name for something else.
    let has_model = Objective::Mlm.directories().iter().any(|name| dir.join(name).join(WEIGHTS).exists());
    let has_lines = fs::metadata(dir.join(METRICS)).is_ok_and(|log| log.len() > 0);
    has_pair || has_model || has_lines || Checkpoints::new(dir, 1).list().is_ok_and(|all| !all.is_empty())
}
