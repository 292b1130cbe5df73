//! What a continued run must have as before: its tokenizer, its directories and its settings; and
//! what it reports about text that changed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::cli::{Scratch, elektron, lines, succeed, weights};
use crate::models::altered;

/// The exit code of a continued run, and what it prints on standard error.
fn resume(output: &str, more: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } =
        elektron(&[&["pretrain", "--resume", output, "--quiet", "--device", "cpu"][..], more].concat());
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn another_tokenizer_does_not_go_on() {
    let scratch = Scratch::new();
    let output = scratch.pretrain("run", &["--steps", "2"]);
    let own = scratch.path("vocabulary");
    let text = fs::read_to_string(Path::new(&own).join("vocab.txt")).unwrap();
    let mut tokens: Vec<&str> = text.lines().collect();
    let count = tokens.len();
    tokens.swap(count - 1, count - 2);
    let other = scratch.path("other");
    fs::create_dir(&other).unwrap();
    let swapped = Path::new(&other).join("vocab.txt");
    fs::write(&swapped, tokens.join("\n")).unwrap();
    let before = weights(&output);
    let refused = |more: &[&str], place: &str| {
        for kind in [&["--steps", "4"][..], &["--dry-run"]] {
            let (code, error) = resume(&output, &[kind, more].concat());
            assert_eq!(code, Some(1), "{error}");
            for word in [place, "not the tokenizer that this run began with", "--tokenizer"] {
                assert!(error.contains(word), "`{word}` is not in: {error}");
            }
            assert_eq!(weights(&output), before);
        }
    };
    refused(&["--tokenizer", &other], &other);
    // The same in another place is the same.
    let copy = scratch.path("copy");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(&own).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), Path::new(&copy).join(file.file_name())).unwrap();
    }
    assert_eq!(resume(&output, &["--steps", "3", "--tokenizer", &copy]), (Some(0), String::new()));
    let before = weights(&output);
    // The file changed meanwhile.
    fs::remove_file(Path::new(&copy).join("tokenizer.json")).unwrap();
    fs::copy(&swapped, Path::new(&copy).join("vocab.txt")).unwrap();
    let (code, error) = resume(&output, &["--steps", "4"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&copy), "{error}");
    assert_eq!(weights(&output), before);
    // A run of an older version without this file goes on, and reports that nothing was checked.
    fs::remove_file(Path::new(&output).join("inputs.json")).unwrap();
    let (code, said) = resume(&output, &["--steps", "4", "--tokenizer", &own]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("inputs.json") && said.contains("cannot be checked"), "{said}");
    assert_eq!(resume(&output, &["--steps", "5"]), (Some(0), String::new()));
}

#[test]
fn a_dry_run_of_a_resumed_run_checks_the_runs_own_tokenizer() {
    let scratch = Scratch::new();
    let (book, output) = (scratch.book(60), scratch.path("run"));
    let start = ["pretrain", "--train", &book, "--output", &output, "--preset", "tiny", "--quiet"];
    let sizes =
        ["--recipe", "paper", "--vocab-size", "400", "--seq-len", "16", "--batch-size", "2", "--steps", "1"];
    succeed(&[&start[..], &sizes, &["--device", "cpu"]].concat());
    let (code, said) = resume(&output, &["--dry-run"]);
    assert_eq!(code, Some(0), "{said}");
    let path = Path::new(&output).join("tokenizer/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let names: Vec<String> = vocab.keys().rev().take(2).cloned().collect();
    let ids: Vec<Value> = names.iter().map(|name| vocab[name].clone()).collect();
    vocab[&names[0]] = ids[1].clone();
    vocab[&names[1]] = ids[0].clone();
    fs::write(&path, tokenizer.to_string()).unwrap();
    for kind in [&["--steps", "2"][..], &["--dry-run"]] {
        let (code, error) = resume(&output, kind);
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("not the tokenizer that this run began with"), "{error}");
    }
    let (code, error) = resume(&output, &["--dry-run", "--seed", "7"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("`seed`"), "a dry run compares the settings too: {error}");
}

/// A relative path such as `models/small` could be the name of a model on the hub.
#[test]
fn a_directory_that_was_moved_is_not_looked_for_on_the_hub() {
    let scratch = Scratch::new();
    let base = altered(&scratch, "models/small", "generator", |_, _| {});
    let words = base.with_file_name("words");
    let vocabulary = scratch.vocabulary(&scratch.book(60));
    fs::create_dir(&words).unwrap();
    fs::copy(Path::new(&vocabulary).join("vocab.txt"), words.join("vocab.txt")).unwrap();
    let run = |arguments: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_elektron"))
            .args(["pretrain", "--quiet", "--device", "cpu"])
            .args(arguments)
            .current_dir(scratch.path(""))
            // Nothing answers there: a request is an error of its own.
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("HF_HOME", scratch.path("cache"))
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let succeeds = |arguments: &[&str]| {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
    };
    let refused = |arguments: &[&str], words: &[&str]| {
        let (code, said) = run(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        words.iter().for_each(|word| assert!(said.contains(word), "`{word}` is not in: {said}"));
        assert!(!said.contains("hub") && !said.contains("127.0.0.1"), "{said}");
    };
    let start = ["--train", "book.txt", "--output", "run", "--seq-len", "32", "--batch-size", "2"];
    let models = ["--base", "models/small", "--tokenizer", "models/words", "--merge", "concat"];
    succeeds(&[&start[..], &models, &["--steps", "1"]].concat());
    // The same directory may be named in another way, and another directory may not be named.
    for same in ["models/small", "./models/small", "models/small/", base.to_str().unwrap()] {
        succeeds(&["--resume", "run", "--base", same, "--dry-run"]);
    }
    refused(&["--resume", "run", "--base", "models/words", "--dry-run"], &["`base`", "models/words"]);

    let moved = base.with_file_name("moved");
    fs::rename(&base, &moved).unwrap();
    for kind in [&["--steps", "2"][..], &["--dry-run"]] {
        let words = ["models/small", "--base", "no longer exists", "config.json", "working directory"];
        refused(&[&["--resume", "run"], kind].concat(), &words);
    }
    fs::rename(&moved, &base).unwrap();
    fs::rename(&words, base.with_file_name("elsewhere")).unwrap();
    refused(&["--resume", "run", "--steps", "2"], &["models/words", "--tokenizer", "no longer exists"]);
    succeeds(&["--resume", "run", "--steps", "2", "--tokenizer", "models/elsewhere"]);
}

#[test]
fn a_model_with_another_tokenizer_does_not_go_on() {
    let scratch = Scratch::new();
    let first = scratch.pretrain("first", &["--steps", "1"]);
    let (g, d, book) = (format!("{first}/generator"), format!("{first}/discriminator"), scratch.book(60));
    let output = scratch.path("run");
    let start = ["pretrain", "--train", &book, "--generator", &g, "--discriminator", &d, "--output", &output];
    succeed(&[&start[..], &["--seq-len", "32", "--steps", "2", "--quiet"]].concat());
    let text = fs::read_to_string(Path::new(&g).join("vocab.txt")).unwrap();
    let mut tokens: Vec<&str> = text.lines().collect();
    tokens.swap(10, 11);
    for model in [&g, &d] {
        fs::remove_file(Path::new(model).join("tokenizer.json")).unwrap();
        fs::write(Path::new(model).join("vocab.txt"), tokens.join("\n")).unwrap();
    }
    let (code, error) = resume(&output, &["--steps", "4"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(
        error.contains("the tokenizer in the directory of a model") && error.contains("not the tokenizer"),
        "{error}"
    );
}

#[test]
fn text_that_changed_under_its_name_is_reported() {
    let scratch = Scratch::new();
    let epochs = ["--flavour", "txtai", "--epochs", "0.3", "--save-every", "3"];
    let output = scratch.pretrain("run", &epochs);
    let book = scratch.path("book.txt");
    let whole = fs::read_to_string(&book).unwrap();
    let last = |output: &str| lines(output).last().unwrap()["step"].as_u64().unwrap();
    let first = last(&output);
    assert_eq!(resume(&output, &[]), (Some(0), String::new()), "the same text");
    // More text: the run goes on, for as many steps as the text has now.
    fs::write(&book, format!("{whole}\n{}", whole.to_uppercase())).unwrap();
    let (code, said) = resume(&output, &[]);
    assert_eq!(code, Some(0), "{said}");
    for word in ["training text is not the one", "another order", "steps in all instead of"] {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    let grown = last(&output);
    assert!(grown > first, "{grown} {first}");
    assert_eq!(resume(&output, &[]), (Some(0), String::new()), "it was reported once");
    // One word of it: as many documents as before, and other text.
    let text = fs::read_to_string(&book).unwrap();
    fs::write(&book, text.replacen("the", "a", 1)).unwrap();
    let (code, said) = resume(&output, &["--steps", &(grown + 2).to_string()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("training text is not the one") && !said.contains("in all instead of"), "{said}");
    assert_eq!(last(&output), grown + 2);
    // Less text than was trained on: later epochs are of what there is.
    fs::write(&book, whole.lines().take(30).collect::<Vec<_>>().join("\n")).unwrap();
    let (code, said) = resume(&output, &["--steps", &(grown + 5).to_string()]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(last(&output), grown + 5);
    // Fewer steps in all than were made: it is finished, and nothing is lost.
    let before = weights(&output);
    let (code, said) = resume(&output, &["--epochs", "0.3"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((last(&output), weights(&output)), (grown + 5, before));
}

#[test]
fn held_out_text_that_changed_is_reported() {
    let scratch = Scratch::new();
    let held_out = scratch.path("held-out.txt");
    let text = fs::read_to_string(scratch.book(60)).unwrap();
    fs::write(&held_out, &text).unwrap();
    let output = scratch.pretrain("run", &["--steps", "2", "--validation", &held_out]);
    fs::write(&held_out, text + "\nOne line more.\n").unwrap();
    let (code, said) = resume(&output, &["--steps", "3"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("held-out text is not the one") && !said.contains("training text is"), "{said}");
}

#[test]
fn old_names_of_settings_are_read() {
    let scratch = Scratch::new();
    let settings = ["--schedule", "linear", "--warmup-steps", "0", "--save-every", "2"];
    let want = scratch.pretrain("straight", &[&["--steps", "6"], &settings[..]].concat());
    let output = scratch.pretrain("run", &[&["--steps", "4"], &settings[..]].concat());
    for file in ["run.json", "config.json"] {
        let path = Path::new(&output).join(file);
        let mut all: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let object = all.as_object_mut().unwrap();
        let schedule = object.remove("lr-scheduler").unwrap();
        object.insert("schedule".to_owned(), schedule);
        object.remove("betas");
        fs::write(&path, all.to_string()).unwrap();
    }
    fs::remove_file(Path::new(&output).join("checkpoints/step-000000004.safetensors")).unwrap();
    let (code, said) = resume(&output, &["--steps", "6"]);
    assert_eq!(code, Some(0), "{said}");
    // Until step 2 the rates were those of a run of four steps.
    let rate = |run: &str| lines(run).last().unwrap()["lr"].as_f64().unwrap();
    assert_eq!(rate(&output), rate(&want));
    let other = scratch.pretrain("betas", &[&["--steps", "6", "--betas", "0.5,0.9"], &settings[..]].concat());
    assert_ne!(weights(&other), weights(&want));
    assert_eq!(rate(&other), rate(&want));
}
