//! What is written and where to: outputs that are links, FIFOs or descriptors, and messages that
//! nobody can read. Every output that these tests name is in a directory of their own, so that a
//! mistake cannot replace a device of the machine.

mod detect;
mod messages;
mod targets;

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::place::{Place, text};
use crate::support::golden;

const ELEKTRON: &str = env!("CARGO_BIN_EXE_elektron");

/// A directory with the log of a run.
fn with_log() -> (TempDir, impl Fn(&str) -> PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let path = move |name: &str| root.join(name);
    let line = |step: u32| {
        format!("{{\"step\": {step}, \"steps\": 40, \"tokens\": {step}, \"gen_loss\": 5.0, \"lr\": 1e-3}}\n")
    };
    fs::write(path("log.jsonl"), (1..=40).map(line).collect::<String>()).unwrap();
    (dir, path)
}

/// Draws the log to `output`.
fn draw(dir: &TempDir, output: &str) -> Output {
    let mut command = Command::new(ELEKTRON);
    command.current_dir(dir.path()).args(["report", "log.jsonl", "--svg", output]).output().unwrap()
}

fn shell(dir: &TempDir, script: &str) -> Output {
    let mut command = Command::new("sh");
    command.current_dir(dir.path()).args(["-c", script, "sh", ELEKTRON]).output().unwrap()
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn is_fifo(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().file_type().is_fifo()
}

fn is_drawing(text: &str) -> bool {
    text.starts_with("<svg") && text.trim_end().ends_with("</svg>")
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn assert_ok(out: &Output) {
    assert!(out.status.success(), "{:?}: {}", out.status, text(&out.stderr));
}

fn assert_refused(out: &Output, words: &[&str]) {
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{:?}: {said}", out.status);
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "`{word}` is not in: {said}"));
}

/// A pipe whose reader has gone.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

/// Arguments of `detect` with the small networks' discriminator and a vocabulary of letters.
fn detect(place: &Place, extra: &[&str]) -> Command {
    let mut command = Command::new(ELEKTRON);
    command.arg("detect").arg("--discriminator").arg(golden("checkpoints/discriminator_pre"));
    command.arg("--tokenizer").arg(place.path("vocab.txt")).args(["--threads", "1"]).args(extra);
    command
}
