//! `fill` against the fill-mask pipeline of `transformers`, and what it refuses.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use approx::assert_relative_eq;
use serde_json::Value;

use crate::cli::{Scratch, checkpoint, fail, succeed};
use crate::golden::SINGLE;
use crate::support::repository;

/// A directory with the golden generator and a vocabulary of as many tokens, as the script that made
/// the expected results has it.
fn model(scratch: &Scratch) -> String {
    let dir = scratch.path("model");
    fs::create_dir_all(&dir).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(format!("{}/{name}", checkpoint("generator")), format!("{dir}/{name}")).unwrap();
    }
    let tokens = fs::read_to_string(repository("tests/data/wordpiece-8k.txt")).unwrap();
    let vocabulary: Vec<&str> = tokens.lines().filter(|token| token.is_ascii()).take(1000).collect();
    fs::write(format!("{dir}/vocab.txt"), vocabulary.join("\n") + "\n").unwrap();
    let settings = r#"{"tokenizer_class": "BertTokenizer", "do_lower_case": true}"#;
    fs::write(format!("{dir}/tokenizer_config.json"), settings).unwrap();
    dir
}

fn cases() -> Vec<Value> {
    serde_json::from_slice(&fs::read(repository("tests/fixtures/fill_cases.json")).unwrap()).unwrap()
}

/// The same tokens, strings and texts, and the same scores but for rounding: that of a logit, of which
/// the largest here is about 10, and that of the pipeline, which computes in single precision too.
fn assert_same(got: &Value, want: &Value) {
    let masks = |case: &Value| case["masks"].as_array().unwrap().clone();
    assert_eq!(got["text"].as_str().unwrap().trim(), want["text"].as_str().unwrap().trim());
    assert_eq!(masks(got).len(), masks(want).len());
    for (got, want) in masks(got).iter().zip(masks(want)) {
        let (got, want) = (got.as_array().unwrap(), want.as_array().unwrap());
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            for key in ["token", "token_str", "sequence"] {
                assert_eq!(got[key], want[key], "{key}");
            }
            let score = |case: &Value| case["score"].as_f64().unwrap();
            assert_relative_eq!(score(got), score(want), max_relative = 20.0 * SINGLE.tensor);
        }
    }
}

fn objects(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn masks_are_filled_as_the_pipeline_of_transformers_fills_them() {
    let scratch = Scratch::new();
    let (dir, cases) = (model(&scratch), cases());
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let filled = succeed(&[&["fill", "--model", &dir, "--json"], &texts[..]].concat());
    let filled = objects(&filled);
    assert_eq!(filled.len(), cases.len());
    filled.iter().zip(&cases).for_each(|(got, want)| assert_same(got, want));
    // Of a file the same, also of single lines and with fewer tokens.
    let file = scratch.path("texts.txt");
    fs::write(&file, texts.join("\n\n")).unwrap();
    let from_file = succeed(&["fill", "--model", &dir, "--json", "--input", &file]);
    objects(&from_file).iter().zip(&cases).for_each(|(got, want)| assert_same(got, want));
    let mut first = cases[4].clone();
    first["masks"].as_array_mut().unwrap().iter_mut().for_each(|mask| {
        mask.as_array_mut().unwrap().truncate(1);
    });
    let one = succeed(&["fill", "--model", &dir, "--json", "--top", "1", texts[4]]);
    assert_same(&objects(&one)[0], &first);
    // All probabilities add up to 1.
    let all = succeed(&["fill", "--model", &dir, "--json", "--top", "1000", "[MASK]"]);
    let all = objects(&all)[0]["masks"][0].as_array().unwrap().clone();
    let total: f64 = all.iter().map(|one| one["score"].as_f64().unwrap()).sum();
    assert_eq!(all.len(), 1000);
    assert_relative_eq!(total, 1.0, epsilon = 1e-12);
    // In double precision the scores are closer to what the pipeline rounded.
    let exact = succeed(&[&["fill", "--model", &dir, "--json", "--precision", "fp64"], &texts[..]].concat());
    objects(&exact).iter().zip(&cases).for_each(|(got, want)| assert_same(got, want));
}

#[cfg(feature = "simt")]
#[test]
fn masks_are_filled_on_a_device_as_on_the_cpu() {
    let scratch = Scratch::new();
    let (dir, cases) = (model(&scratch), cases());
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let device = ["fill", "--model", &dir, "--json", "--device", "simt", "--precision", "fp32"];
    let filled = succeed(&[&device, &texts[..]].concat());
    objects(&filled).iter().zip(&cases).for_each(|(got, want)| assert_same(got, want));
}

#[test]
fn a_table_shows_probability_token_and_text() {
    let scratch = Scratch::new();
    let (dir, cases) = (model(&scratch), cases());
    let shown = succeed(&["fill", "--model", &dir, cases[0]["text"].as_str().unwrap()]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!((lines.len(), lines[0]), (6, cases[0]["text"].as_str().unwrap()));
    for (line, want) in lines[1..].iter().zip(cases[0]["masks"][0].as_array().unwrap()) {
        let words: Vec<&str> = line.split_whitespace().take(2).collect();
        assert_eq!(
            words,
            [&format!("{:.4}", want["score"].as_f64().unwrap()), want["token_str"].as_str().unwrap()]
        );
        assert!(line.ends_with(want["sequence"].as_str().unwrap()), "{line}");
    }
    let shown = succeed(&["fill", "--model", &dir, cases[4]["text"].as_str().unwrap()]);
    assert!(shown.contains("\n mask 1\n") && shown.contains("\n mask 2\n"), "{shown}");
}

#[test]
fn what_cannot_be_filled_is_named() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let refuse = |more: &[&str], words: &[&str]| fail(&[&["fill", "--model", &dir], more].concat(), words);
    refuse(&["a [MASK]", "no mask here"], &["line 2", "`no mask here`", "has no [MASK]"]);
    let long = "a ".repeat(62) + "[MASK]";
    refuse(&[&long], &["line 1", "63 tokens", "64 positions"]);
    assert!(succeed(&["fill", "--model", &dir, &long[2..]]).lines().count() == 6);
    refuse(&["--top", "0", "[MASK]"], &["--top is 0", "1 to 1000"]);
    refuse(&["--top", "1001", "[MASK]"], &["--top is 1001"]);
    refuse(&[" "], &["there is no text"]);
    let discriminator = checkpoint("discriminator_pre");
    fail(
        &["fill", "--model", &discriminator, "--tokenizer", &dir, "[MASK]"],
        &["discriminator_pre", "this is a discriminator (ElectraForPreTraining)"],
    );
    fail(&["fill", "--model", &scratch.path("nothing"), "[MASK]"], &["nothing"]);
    // A run that has not made its last step.
    let run = scratch.path("run");
    fs::create_dir(&run).unwrap();
    fs::write(format!("{run}/run.json"), "{}").unwrap();
    fail(&["fill", "--model", &run, "[MASK]"], &["this run has no model yet", "--resume"]);
}

#[test]
fn the_generator_of_a_run_is_taken() {
    let scratch = Scratch::new();
    let run = scratch.pretrain("run", &["--steps", "2"]);
    let text = ["--json", "The [MASK] said"];
    let filled = succeed(&[&["fill", "--model", &run], &text[..]].concat());
    let generator = format!("{run}/generator");
    assert_eq!(filled, succeed(&[&["fill", "--model", &generator], &text[..]].concat()));
}

#[test]
fn standard_input_is_answered_line_by_line_until_its_reader_leaves() {
    let scratch = Scratch::new();
    let dir = model(&scratch);
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elektron"));
        command.args(["fill", "--model", &dir, "--json", "--threads", "1"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = start();
    let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    for text in ["the [MASK]", "a [MASK] man"] {
        writeln!(to, "{text}").unwrap();
        let mut answer = String::new();
        from.read_line(&mut answer).unwrap();
        assert_eq!(objects(&answer)[0]["text"], text);
    }
    drop(to);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));

    // The text has no end, but its reader leaves.
    let mut child = start();
    let mut to = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || while to.write_all(b"the [MASK] said\n").is_ok() {});
    let mut from = BufReader::new(child.stdout.take().unwrap());
    from.read_line(&mut String::new()).unwrap();
    drop(from);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    feeder.join().unwrap();
}
