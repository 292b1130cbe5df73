//! Messages, logs and results that cannot be written: the first two stop no run, the last are errors.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{ELEKTRON, assert_ok, assert_refused, detect, full, is_fifo, make_fifo, shell, unread, with_log};
use crate::place::{Place, assert_equal, signal, text, traces, wait_for_step};

/// Runs to the end with the given standard output and standard error.
fn run_with(mut command: Command, out: impl Into<Stdio>, err: impl Into<Stdio>) {
    let status = command.stdout(out).stderr(err).status().unwrap();
    assert!(status.success(), "{status:?}");
}

#[test]
fn messages_that_cannot_be_written_stop_no_run() {
    let place = Place::new(&["--steps", "12", "--save-every", "3", "--eval-every", "4"]);
    let settings = |mut command: Command, extra: &[&str]| {
        command.arg("--validation").arg(place.path("page.txt")).args(extra);
        command
    };
    let start = |name: &str, extra: &[&str]| settings(place.command(&place.path(name)), extra);
    let want = {
        run_with(start("undisturbed", &[]), Stdio::null(), Stdio::null());
        traces(&place.path("undisturbed"))
    };
    run_with(start("full", &[]), full(), full());
    run_with(start("unread", &[]), unread(), unread());
    run_with(start("full-json", &["--json"]), full(), full());
    run_with(start("unread-json", &["--json"]), unread(), Stdio::null());
    // A file of the run must not get the number of a descriptor that is closed.
    let closed = |name: &str, redirect: &str| {
        let inner = start(name, &[]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$@\" {redirect}"), "sh"]);
        command.arg(inner.get_program()).args(inner.get_args());
        run_with(command, Stdio::null(), Stdio::null());
    };
    closed("closed-2", "2>&-");
    closed("closed-all", "<&- >&- 2>&-");
    for name in ["full", "unread", "full-json", "unread-json", "closed-2", "closed-all"] {
        let output = place.path(name);
        assert_equal(&traces(&output), &want);
        for file in files_below(&output) {
            let bytes = fs::read(&file).unwrap();
            let holds = |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
            assert!(!holds("tok/s, ") && !holds("held out at step"), "a message is in {}", file.display());
        }
    }
    // A signal still stops the run.
    let place = Place::new(&["--steps", "100000"]);
    let output = place.path("stopped");
    let mut child: Child = place.command(&output).stdout(full()).stderr(full()).spawn().unwrap();
    wait_for_step(&output, 30);
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(75));
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn a_log_that_cannot_be_written_waits() {
    let place = Place::new(&["--steps", "600", "--save-every", "100000"]);
    let want = place.undisturbed();
    // The directory that it leads to is created while the run trains.
    let output = place.path("late");
    fs::create_dir(&output).unwrap();
    symlink(place.path("later/metrics.jsonl"), output.join("metrics.jsonl")).unwrap();
    let mut child = place.command(&output).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut lines = String::new();
    while !lines.contains("step 102/") {
        assert!(said.read_line(&mut lines).unwrap() > 0, "{lines}");
    }
    assert_eq!(lines.matches("wait in memory").count(), 1, "there is one warning: {lines}");
    assert!(lines.contains("metrics.jsonl: No such file"), "{lines}");
    // The run must not end before that.
    signal(&child, "STOP");
    fs::create_dir(place.path("later")).unwrap();
    signal(&child, "CONT");
    said.read_to_string(&mut lines).unwrap();
    assert!(child.wait().unwrap().success(), "{lines}");
    assert!(!lines.contains("entries of the log"), "{lines}");
    assert_equal(&traces(&output), &want);

    // A log that can never be written.
    let output = place.path("never");
    fs::create_dir_all(output.join("metrics.jsonl")).unwrap();
    let out = place.command(&output).output().unwrap();
    assert_ok(&out);
    let said = text(&out.stderr);
    assert_eq!(said.matches("wait in memory").count(), 1, "{said}");
    assert!(said.contains("201 entries of the log are not in"), "{said}");

    // A FIFO does not delay a run, whether it has a reader or not.
    let output = place.path("fifo");
    fs::create_dir(&output).unwrap();
    make_fifo(&output.join("metrics.jsonl"));
    assert_ok(&place.command(&output).output().unwrap());
    assert!(is_fifo(&output.join("metrics.jsonl")));
    let output = place.path("fifo-2");
    fs::create_dir(&output).unwrap();
    let fifo = output.join("metrics.jsonl");
    make_fifo(&fifo);
    let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
    assert_ok(&place.command(&output).output().unwrap());
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].clone();
    let steps: Vec<Value> = reader.join().unwrap().lines().map(line).collect();
    let of = |lines: &[Value]| lines.iter().map(|line| line["step"].clone()).collect::<Vec<_>>();
    assert_eq!(steps, [vec![Value::from(0)], of(&want.1)].concat());
}

/// A limit on the size of files ends no process: writes beyond it fail as on a full disk.
#[test]
fn a_limit_on_files_is_as_a_full_disk() {
    let place = Place::new(&["--steps", "150", "--save-every", "50"]);
    let shards = place.path("shards");
    let command = |output: &Path| {
        let mut command = place.command(output);
        command.arg("--shards").arg(&shards);
        command
    };
    let undisturbed = place.path("undisturbed");
    assert_ok(&command(&undisturbed).output().unwrap());
    let want = traces(&undisturbed);
    let output = place.path("limited");
    let inner = command(&output);
    let limited = |script: &str, inner: &Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args()).output().unwrap()
    };
    // In units of 512 or of 1,024 bytes, depending on the shell: enough for the settings, too little for
    // the log.
    let out = limited("ulimit -f 8; exec \"$@\"", &inner);
    assert_eq!(out.status.signal(), None);
    assert_refused(&out, &["File too large", "step 150 could not be saved", "--resume"]);
    let said = text(&out.stderr);
    assert_eq!(said.matches("wait in memory").count(), 2, "metrics.jsonl and the event file: {said}");
    assert!(said.matches("was not written").count() >= 2 && said.contains("step 150/150"), "{said}");
    assert_ok(&command(&output).output().unwrap());
    assert_equal(&traces(&output), &want);

    let (dir, path) = with_log();
    fs::write(path("old.svg"), "before").unwrap();
    assert_refused(
        &shell(&dir, "ulimit -f 1; exec \"$1\" report log.jsonl --svg old.svg"),
        &["old.svg", "File too large"],
    );
    assert_eq!(fs::read_to_string(path("old.svg")).unwrap(), "before");
}

#[test]
fn results_that_cannot_be_written_are_errors() {
    let place = Place::new(&["--steps", "2"]);
    place.undisturbed();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(ELEKTRON);
        command.args(arguments);
        command
    };
    let root = place.path("").to_str().unwrap().to_owned();
    let page = place.path("page.txt").to_str().unwrap().to_owned();
    let vocabulary = place.path("vocab.txt").to_str().unwrap().to_owned();
    let inspect = ["tokenizer", "inspect", "--tokenizer", &vocabulary, "--input", &page];
    let results = || {
        let plain = [
            &["--help"][..],
            &["--version"],
            &["pretrain", "--help"],
            &["completions", "bash"],
            &["man"],
            &["runs", &root],
            &["runs", &root, "--json"],
            &inspect,
        ];
        let mut all: Vec<Command> = plain.iter().map(|arguments| command(arguments)).collect();
        all.push(detect(&place, &["--input", &page]));
        let mut dry = place.command(&place.path("dry"));
        dry.arg("--dry-run");
        all.push(dry);
        all
    };
    for mut command in results() {
        let out = command.stdout(full()).stderr(Stdio::piped()).output().unwrap();
        assert_refused(&out, &["standard output", "No space left"]);
    }
    for mut command in results() {
        let out = command.stdout(unread()).stderr(Stdio::piped()).output().unwrap();
        assert_ok(&out);
        assert!(!text(&out.stderr).contains("panicked"));
    }
    // An error of usage gives its exit code even where its message cannot be written.
    let usage = command(&["pretrain", "--no-such-flag"]).stderr(unread()).status().unwrap();
    assert_eq!(usage.code(), Some(2));
    let error = command(&["runs", "/nonexistent/at/all"]).stderr(full()).status().unwrap();
    assert_eq!(error.code(), Some(1));
    // Work that was done is no error where only the message about it cannot be written.
    let (dir, path) = with_log();
    let mut report = command(&["report", "log.jsonl", "--svg", "drawing.svg"]);
    let out = report.current_dir(dir.path()).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    assert_ok(&out);
    assert!(path("drawing.svg").is_file() && text(&out.stderr).contains("warning: cannot write"));
}
