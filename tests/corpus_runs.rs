//! Whole runs on mixtures, with documents held out, and the commands that read standard input.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cli::{Scratch, checkpoint, elektron, fail, lines, succeed, weights};
use crate::support::repository;

/// Runs a command with `input` on its standard input.
fn feed(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_elektron"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its input may end before it has read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// What a command that succeeds prints.
fn piped(arguments: &[&str], input: &str) -> String {
    let out = feed(arguments, input.as_bytes());
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Trains on the book's beginning and on a manifest of half of that and other lines, each a document.
fn train(scratch: &Scratch, output: &str, extra: &[&str]) -> String {
    let book = fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
    let other: Vec<&str> = book.lines().skip(400).filter(|line| !line.trim().is_empty()).take(200).collect();
    fs::write(scratch.path("other.txt"), other.join("\n\n")).unwrap();
    fs::write(scratch.path("mix.manifest"), "path,weight\nbook.txt,0.5\nother.txt,1.5\n").unwrap();
    let manifest = scratch.path("mix.manifest");
    scratch.pretrain(output, &[&["--train", &manifest, "--held-out", "0.1"][..], extra].concat())
}

#[test]
fn a_run_on_a_mixture_resumes_to_the_same_bytes() {
    let scratch = Scratch::new();
    let settings = ["--steps", "8", "--save-every", "3", "--keep", "9"];
    let straight = train(&scratch, "straight", &settings);
    let broken = train(&scratch, "broken", &settings);
    assert_eq!(weights(&straight), weights(&broken));
    for step in [6, 8] {
        fs::remove_file(format!("{broken}/checkpoints/step-{step:09}.safetensors")).unwrap();
    }
    fs::remove_dir_all(format!("{broken}/generator")).unwrap();
    succeed(&["pretrain", "--resume", &broken, "--quiet", "--threads", "1"]);
    assert_eq!(weights(&straight), weights(&broken));
    let last = lines(&straight).pop().unwrap();
    assert!(last["eval"]["gen_loss"].as_f64().unwrap() > 0.0, "held-out documents are measured: {last}");
    fail(&["pretrain", "--resume", &broken, "--held-out", "0.2"], &["`held-out`", "0.2", "0.1"]);
    let validation = scratch.path("other.txt");
    fail(&["pretrain", "--resume", &broken, "--validation", &validation], &["--validation", "--held-out"]);
}

#[test]
fn what_cannot_be_held_out_is_named() {
    let scratch = Scratch::new();
    let (book, out) = (scratch.book(60), scratch.path("out"));
    let start = ["pretrain", "--train", &book, "--output", &out, "--seq-len", "32", "--preset", "tiny"];
    fail(&[&start[..], &["--held-out", "1.5"]].concat(), &["--held-out", "1.5"]);
    fail(
        &[&start[..], &["--vocab-size", "300", "--held-out", "1e-9"]].concat(),
        &["--held-out", "--validation"],
    );
    // Nearly everything, of one document and of many.
    let almost = ["--vocab-size", "300", "--held-out", "0.9999"];
    fail(
        &[&start[..], &almost].concat(),
        &["--held-out 0.9999 leaves too little to train on", "one document", "--validation"],
    );
    let many = scratch.path("many.txt");
    fs::write(&many, fs::read_to_string(&book).unwrap().replace('\n', "\n\n")).unwrap();
    let of_many = ["pretrain", "--train", &many, "--output", &out, "--seq-len", "32", "--preset", "tiny"];
    fail(
        &[&of_many[..], &almost].concat(),
        &["--held-out 0.9999", "too little to train on", "documents", "smaller share", "--validation"],
    );
    let dry = ["pretrain", "--train", &book, "--output", &out, "--preset", "tiny", "--dry-run"];
    fail(&[&dry[..], &["--seq-len", "600"]].concat(), &["600", "positions", "--seq-len"]);
    // A dry run looks at no text.
    let nothing = ["pretrain", "--train", "/nonexistent", "--output", &out, "--preset", "tiny", "--dry-run"];
    assert!(elektron(&nothing).status.success());
}

#[test]
fn standard_input_is_text_to_eval_and_detect() {
    let scratch = Scratch::new();
    let run = scratch.pretrain("run", &["--steps", "2"]);
    let (g, d) = (checkpoint("generator"), format!("{run}/discriminator"));
    let book = scratch.book(40);
    let text = fs::read_to_string(&book).unwrap();
    let eval = ["eval", "--generator", &g, "--discriminator", &d, "--seq-len", "32", "--json", "--input"];
    let from_file = succeed(&[&eval[..], &[book.as_str()]].concat());
    assert_eq!(piped(&[&eval[..], &["-"]].concat(), &text), from_file);
    let detect = ["detect", "--discriminator", &d, "--json"];
    let from_file = succeed(&[&detect[..], &["--input", book.as_str()]].concat());
    assert_eq!(piped(&detect, &text), from_file);
    assert_eq!(piped(&[&detect[..], &["--input", "-"]].concat(), &text), from_file);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    assert_eq!(from_file.lines().count(), lines.clone().count());
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let out = feed(&detect, &wide);
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(1) && error.contains("standard input: "), "{error}");
    assert!(error.contains("UTF-16LE") && out.stdout.is_empty(), "{error}");
    // The same lines as records of another format.
    let records: Vec<Value> = lines.map(|line| serde_json::json!({ "body": line })).collect();
    let json = scratch.path("book.json");
    fs::write(&json, serde_json::to_string(&records).unwrap()).unwrap();
    let from_json = succeed(&[&detect[..], &["--input", json.as_str(), "--columns", "body"]].concat());
    assert_eq!(from_json, from_file);
}

/// Two runs that read different text from the same pipe and share their shards; one is continued.
#[test]
fn what_a_pipe_gave_is_kept_with_its_run() {
    let scratch = Scratch::new();
    let book = scratch.book(150);
    let (text, vocabulary) = (fs::read_to_string(&book).unwrap(), scratch.vocabulary(&book));
    let (g, d, shards) = (checkpoint("generator"), checkpoint("discriminator_pre"), scratch.path("shards"));
    let run = |train: &str, output: &str, input: &str| {
        let output = scratch.path(output);
        let networks = ["--generator", &g, "--discriminator", &d, "--tokenizer", &vocabulary];
        let text = ["pretrain", "--train", train, "--shards", &shards, "--output", &output];
        let length =
            ["--steps", "6", "--save-every", "3", "--keep", "9", "--seq-len", "32", "--batch-size", "4"];
        piped(&[&text[..], &networks, &length, &["--quiet"]].concat(), input);
        output
    };
    let straight = run(&book, "straight", "");
    let broken = run("-", "broken", &text);
    assert_eq!(weights(&straight), weights(&broken));
    let other = run("-", "other", &text[text.len() / 2..].replace("the", "a"));
    assert_ne!(weights(&straight), weights(&other));
    for output in [&broken, &other] {
        assert_eq!(fs::read_dir(format!("{output}/pipes")).unwrap().count(), 1);
    }
    fs::remove_file(format!("{broken}/checkpoints/step-{:09}.safetensors", 6)).unwrap();
    fs::remove_dir_all(format!("{broken}/generator")).unwrap();
    // The directory is moved, and the pipe no longer gives anything.
    let moved = scratch.path("moved");
    fs::rename(&broken, &moved).unwrap();
    let resume = ["pretrain", "--resume", &moved];
    let dry = feed(&[&resume[..], &["--dry-run"]].concat(), b"");
    assert!(dry.status.success(), "{}", String::from_utf8_lossy(&dry.stderr));
    let out = feed(&resume, b"");
    let messages = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && messages.contains("-: the copy of this pipe"), "{messages}");
    assert_eq!(weights(&straight), weights(&moved));
}
