//! The log of a run: `metrics.jsonl`, and a progress line for who watches.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::metrics::Metrics;
use crate::fsutil::write_atomic;
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
    /// Standard deviations by which a loss stood out, if one did.
    pub spike: Option<f64>,
    /// Steps since the line before that changed nothing, because the loss or a gradient was not finite.
    pub skipped: u64,
    /// Tokens a second since the line before.
    pub tok_per_s: f64,
    /// Seconds to go.
    pub eta_s: f64,
}

/// Writes both.
pub struct Log {
    path: PathBuf,
    file: File,
    /// Lines that could not be written yet.
    pending: Vec<u8>,
    quiet: bool,
    terminal: bool,
}

impl Log {
    /// Opens `dir/metrics.jsonl`, without the lines of steps after `step` that a continued run will make again.
    pub fn open(dir: &Path, step: u64, quiet: bool) -> Result<Self> {
        let path = dir.join(METRICS);
        if path.exists() {
            let kept = lines_up_to(&path, step)?;
            write_atomic(&path, |out| kept.iter().try_for_each(|line| writeln!(out, "{line}")))?;
        }
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
        Ok(Self { path, file, pending: Vec::new(), quiet, terminal: std::io::stderr().is_terminal() })
    }

    /// One line of training metrics.
    pub fn train(&mut self, line: &Line) -> Result<()> {
        let mut object = Map::new();
        object.insert("step".into(), json!(line.step));
        object.insert("tokens".into(), json!(line.tokens));
        if let Ok(Value::Object(metrics)) = serde_json::to_value(line.metrics) {
            object.extend(metrics);
        }
        object.insert("lr".into(), json!(line.lr));
        object.insert("grad_norm".into(), json!(line.grad_norm));
        object.insert("tok_per_s".into(), json!(line.tok_per_s.round()));
        if let Some(z) = line.spike {
            object.insert("spike".into(), json!(z));
        }
        if line.skipped > 0 {
            object.insert("skipped".into(), json!(line.skipped));
        }
        self.write(&Value::Object(object))?;
        if self.quiet {
            return Ok(());
        }
        let text = progress(line);
        let end = if self.terminal && line.step < line.steps { "\r" } else { "\n" };
        let clear = if self.terminal { "\x1b[2K" } else { "" };
        // Progress that nobody can read is no reason to stop training.
        let _ = write!(std::io::stderr(), "{clear}{text}{end}");
        Ok(())
    }

    /// One line of held-out metrics.
    pub fn eval(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        self.write(&json!({ "step": step, "eval": metrics }))?;
        if !self.quiet {
            let clear = if self.terminal { "\x1b[2K" } else { "" };
            eprintln!(
                "{clear}held out at step {step}: generator {:.4} (accuracy {:.3}), discriminator {:.4} (accuracy {:.3}, AUC {:.3})",
                metrics.gen_loss, metrics.gen_acc, metrics.disc_loss, metrics.disc_acc, metrics.disc_auc
            );
        }
        Ok(())
    }

    /// One line that tells of a return from step `from` to the checkpoint of step `to`.
    pub fn rollback(&mut self, from: u64, to: u64, reason: &str) -> Result<()> {
        self.write(&json!({ "step": to, "rollback": { "from": from, "reason": reason } }))
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        let waited = !self.pending.is_empty();
        self.pending.extend_from_slice(format!("{line}\n").as_bytes());
        match self.flush() {
            // A full disk is no reason to lose a line or to stop: a checkpoint waits for them.
            Err(e) if e.is_no_space() => {
                if !waited {
                    eprintln!("warning: {e}; lines of the log wait in memory until there is room");
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Writes the lines that had to wait.
    pub fn flush(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            let written = self.file.write(&self.pending).map_err(Error::io("write", &self.path))?;
            self.pending.drain(..written);
        }
        Ok(())
    }
}

fn progress(line: &Line) -> String {
    let m = &line.metrics;
    format!(
        "step {}/{} gen {:.3} acc {:.3} | disc {:.4} acc {:.3} auc {:.3} | lr {:.2e} norm {:.2} | {:.0} tok/s, {} left{}{}",
        line.step,
        line.steps,
        m.gen_loss,
        m.gen_acc,
        m.disc_loss,
        m.disc_acc,
        m.disc_auc,
        line.lr,
        line.grad_norm,
        line.tok_per_s,
        duration(line.eta_s),
        line.spike.map_or(String::new(), |z| format!(" | SPIKE of {z:.1} standard deviations")),
        if line.skipped > 0 { format!(" | {} steps SKIPPED", line.skipped) } else { String::new() }
    )
}

/// `2 h 05 min`, `3 min 10 s`, `8 s`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

fn lines_up_to(path: &Path, step: u64) -> Result<Vec<String>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut kept = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(Error::io("read", path))?;
        // A line cut short by a crash is not JSON and goes too.
        let at = serde_json::from_str::<Value>(&line).ok().and_then(|v| v.get("step")?.as_u64());
        if at.is_some_and(|at| at <= step) {
            kept.push(line);
        }
    }
    Ok(kept)
}

/// Whether a directory holds a run that has begun to train.
pub fn holds_run(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.any(|e| {
            e.is_ok_and(|e| ["generator", "discriminator", METRICS].iter().any(|n| e.file_name() == *n))
        })
    })
}
