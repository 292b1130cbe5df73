//! `detect` as a part of a pipeline, and lines that it cuts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::{assert_ok, detect};
use crate::place::{Place, text, wait_for};
use crate::support::golden;

#[test]
fn detect_ends_with_its_reader_and_waits_for_no_more_than_a_line() {
    let place = Place::new(&[]);
    let start = || {
        let mut command = detect(&place, &[]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // Each line is answered before the next is sent.
    let mut child = start();
    let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut answers = String::new();
    for word in ["banana", "the man", "the end"] {
        writeln!(to, "{word}").unwrap();
        assert!(from.read_line(&mut answers).unwrap() > 0);
    }
    drop(to);
    assert_ok(&child.wait_with_output().unwrap());
    assert_eq!(answers.lines().count(), 3);
    // The answers are the same as for a file, whose lines are computed together.
    fs::write(place.path("lines.txt"), "banana\nthe man\nthe end\n").unwrap();
    let out = detect(&place, &["--input", place.path("lines.txt").to_str().unwrap()]).output().unwrap();
    assert_eq!(text(&out.stdout), answers);

    // The text has no end, but its reader leaves.
    let mut child = start();
    let mut to = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || while to.write_all(b"the man said\n").is_ok() {});
    let mut from = BufReader::new(child.stdout.take().unwrap());
    from.read_line(&mut String::new()).unwrap();
    drop(from);
    wait_for("the end of detect", || {
        std::thread::sleep(Duration::from_millis(5));
        child.try_wait().unwrap().is_some()
    });
    let out = child.wait_with_output().unwrap();
    assert_ok(&out);
    assert_eq!(text(&out.stderr), "");
    feeder.join().unwrap();
}

#[test]
fn lines_that_detect_cuts_are_reported() {
    let place = Place::new(&[]);
    let config = fs::read_to_string(golden("checkpoints/discriminator_pre/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let positions = config["max_position_embeddings"].as_u64().unwrap() as usize;
    let fits = positions - 2;
    let words = |count: usize| vec!["a"; count].join(" ") + "\n";
    fs::write(place.path("long.txt"), words(fits) + &words(fits + 1) + &words(fits + 70)).unwrap();
    let input = place.path("long.txt").to_str().unwrap().to_owned();
    let out = detect(&place, &["--json", "--input", &input]).output().unwrap();
    assert_ok(&out);
    let lines: Vec<Value> =
        text(&out.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l["tokens"].as_array().unwrap().len()).collect::<Vec<_>>(), [fits; 3]);
    assert_eq!(
        lines.iter().map(|l| l.get("truncated").cloned()).collect::<Vec<_>>(),
        [None, Some(Value::Bool(true)), Some(Value::Bool(true))]
    );
    let said = text(&out.stderr);
    for part in [format!("line 2 has {} tokens", fits + 1), format!("{positions} positions")] {
        assert!(said.contains(&part), "`{part}` is not in: {said}");
    }
    assert!(said.contains("2 of 3 lines were cut"), "{said}");
    let out = detect(&place, &["--input", &input]).output().unwrap();
    let shown = text(&out.stdout);
    let ends: Vec<bool> = shown.lines().map(|line| line.contains(" more tokens)")).collect();
    assert_eq!(ends, [false, true, true], "{shown}");
}
