//! Small runs of the program in a directory of their own, and what they leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use approx::relative_eq;
use serde_json::Value;
use tempfile::TempDir;

use crate::golden::SINGLE;
use crate::support::{golden, repository};

/// Nothing here may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place for runs of the golden checkpoints' small networks on a page of text.
pub(crate) struct Place {
    dir: TempDir,
    settings: Vec<String>,
}

impl Place {
    pub(crate) fn new(settings: &[&str]) -> Self {
        Self::on("cpu", &[&["--merge", "concat"], settings].concat())
    }

    pub(crate) fn on(device: &str, settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
        fs::write(dir.path().join("page.txt"), text.lines().take(60).collect::<Vec<_>>().join("\n")).unwrap();
        let letters = ('a'..='z').chain('0'..='9');
        let pieces = letters.flat_map(|c| [c.to_string(), format!("##{c}")]);
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
        let vocabulary: Vec<String> = special.into_iter().chain(pieces).collect();
        fs::write(dir.path().join("vocab.txt"), vocabulary.join("\n")).unwrap();
        let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let model = |name: &str| golden("checkpoints").join(name).to_str().unwrap().to_owned();
        let mut all: Vec<String> = vec!["--train".into(), file("page.txt")];
        all.extend(["--tokenizer".into(), file("vocab.txt")]);
        all.extend(["--generator".into(), model("generator")]);
        all.extend(["--discriminator".into(), model("discriminator_pre")]);
        let fixed = "--seq-len 16 --batch-size 4 --threads 1 --log-every 3 --device";
        all.extend(fixed.split(' ').chain([device]).chain(settings.iter().copied()).map(str::to_owned));
        Self { dir, settings: all }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a run, or goes on with it: the same command does both, as a scheduler's script wants it.
    pub(crate) fn command(&self, output: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elektron"));
        command.arg("pretrain").args(&self.settings).arg("--resume").arg("--output").arg(output);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, output: &Path) -> Child {
        self.command(output).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub(crate) fn finish(&self, output: &Path) -> String {
        let out = self.command(output).output().unwrap();
        assert!(out.status.success(), "{:?}: {}", out.status, text(&out.stderr));
        text(&out.stdout) + &text(&out.stderr)
    }

    /// A run that nothing happens to.
    pub(crate) fn undisturbed(&self) -> Traces {
        let output = self.path("undisturbed");
        self.finish(&output);
        traces(&output)
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What must come out equal: weights, and the log without its timings and its first line.
pub(crate) type Traces = (Vec<Vec<u8>>, Vec<Value>);

pub(crate) fn traces(output: &Path) -> Traces {
    let weights = |name| fs::read(output.join(name).join("model.safetensors")).unwrap();
    (["generator", "discriminator"].map(weights).to_vec(), metrics(output))
}

pub(crate) fn metrics(output: &Path) -> Vec<Value> {
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("tok_per_s");
        value
    };
    // A run that goes on may be in the middle of its last line.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut lines: Vec<Value> = text[..whole].lines().map(line).collect();
    // What the metrics are compared with, once.
    if !lines.is_empty() {
        assert!(lines.remove(0).get("baseline").is_some(), "{text}");
    }
    assert!(lines.iter().all(|line| line.get("baseline").is_none()), "{text}");
    lines
}

pub(crate) fn assert_equal(got: &Traces, want: &Traces) {
    assert_eq!(got.1, want.1, "the logs differ");
    assert!(got.0 == want.0, "the weights differ");
}

/// Holds the log of a run in single precision to that of a run that computes the same in another order.
///
/// Every step may add the error of one loss to a loss, and that of one gradient to the norm of all.
/// Independent errors of n steps of two runs add up to √(2n) of one.
pub(crate) fn assert_equal_but_for_rounding(got: &[Value], want: &[Value]) {
    assert_eq!(got.len(), want.len());
    let trained = |(line, _): &(&Value, &Value)| line.get("lr").is_some();
    assert!(got.iter().zip(want).any(|lines| trained(&lines)));
    for (got, want) in got.iter().zip(want).filter(trained) {
        assert_eq!((&got["step"], &got["tokens"]), (&want["step"], &want["tokens"]));
        let growth = (2.0 * want["step"].as_f64().unwrap()).sqrt();
        let names = [("gen_loss", SINGLE.loss), ("disc_loss", SINGLE.loss), ("grad_norm", SINGLE.tensor)];
        for (name, tolerance) in names {
            let value = |line: &Value| line[name].as_f64().unwrap();
            let close = relative_eq!(value(got), value(want), max_relative = growth * tolerance);
            assert!(close, "{name}: {got} {want}");
        }
    }
}

pub(crate) fn checkpoints(output: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(output.join("checkpoints")) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

pub(crate) fn unfinished(output: &Path) -> bool {
    checkpoints(output).iter().any(|name| name.starts_with(".writing-"))
}

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", child.id())).status().unwrap();
    assert!(sent.success(), "kill -{name}");
}

/// Waits for something that must come.
pub(crate) fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Processor time that a child has used, in hundredths of a second.
pub(crate) fn ticks(child: &Child) -> u64 {
    let line = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // Its own and the system's for it: the 14th and 15th field; the second, in parentheses, may hold spaces.
    let fields = line.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|n| n.parse::<u64>().ok()).sum()
}

pub(crate) fn wait_for_step(output: &Path, step: u64) {
    wait_for("steps", || {
        let log = fs::read_to_string(output.join("metrics.jsonl")).unwrap_or_default();
        let last = log.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        last.is_some_and(|line| line["step"].as_u64() >= Some(step))
    });
}
