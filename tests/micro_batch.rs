//! `--micro-batch`: what is computed at a time changes, what is trained does not.

use std::path::Path;

use serde_json::Value;

use crate::place::{
    Place, assert_equal, assert_equal_but_for_rounding, metrics, signal, text, traces, wait_for_step,
};

/// Steps of 8 full rows.
const STEP: &str = "--grad-accumulation 2 --precision fp32 --steps 8 --save-every 3";

fn place(device: &str, micro_batch: &[&str]) -> Place {
    let settings: Vec<&str> = ["--merge", "concat"].into_iter().chain(STEP.split(' ')).collect();
    Place::on(device, &[&settings[..], micro_batch].concat())
}

/// The log's line about the choice, and the others.
fn choice(lines: Vec<Value>) -> (Vec<Value>, Vec<Value>) {
    lines.into_iter().partition(|line| line.get("micro_batch").is_some())
}

/// The error of a run that must not start.
fn refused(place: &Place, output: &Path) -> String {
    let out = place.command(output).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    text(&out.stderr)
}

#[test]
fn the_split_changes_rounding_alone() {
    let plain = place("cpu", &[]);
    let want = plain.undisturbed();
    let run = |rows: &str| {
        let place = place("cpu", &["--micro-batch", rows]);
        place.undisturbed()
    };
    assert_equal(&run("4"), &want);
    for rows in ["1", "2", "8"] {
        let got = run(rows);
        assert!(got.0 != want.0, "{rows} rows at a time are no other split");
        assert_equal_but_for_rounding(&got.1, &want.1);
    }
}

#[test]
fn a_number_that_does_not_divide_is_refused() {
    for (rows, words) in
        [("3", "does not divide the 8 rows"), ("0", "does not divide"), ("16", "1, 2, 4, 8 do")]
    {
        let place = place("cpu", &["--micro-batch", rows]);
        let error = refused(&place, &place.path("out"));
        assert!(error.contains(words), "{error}");
    }
}

/// Chooses, says so, and goes on with what was chosen after a stop, to the same bytes as a run that was told so.
fn check_auto(device: &str, reason: &str) {
    let auto = place(device, &["--micro-batch", "auto"]);
    let output = auto.path("auto");
    let child = auto.start(&output);
    wait_for_step(&output, 3);
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(75));
    let (chosen, _) = choice(metrics(&output));
    let rows = chosen[0]["micro_batch"]["rows"].as_u64().unwrap();
    assert!(8 % rows == 0 && chosen.len() == 1, "{chosen:?}");
    auto.finish(&output);
    let (weights, log) = traces(&output);
    let (chosen, log) = choice(log);
    assert_eq!(
        (chosen.len(), chosen[0]["micro_batch"]["rows"].as_u64()),
        (1, Some(rows)),
        "it is chosen once"
    );

    let told = place(device, &["--micro-batch", &rows.to_string()]);
    assert_equal(&(weights, log), &told.undisturbed());

    let said = auto.finish(&auto.path("again"));
    assert!(said.contains("micro-batches of ") && said.contains(reason), "{said}");
}

#[test]
fn the_cpu_chooses_by_its_cache() {
    check_auto("cpu", "whose layers fit the cache");
}

#[cfg(feature = "simt")]
#[test]
fn a_device_that_records_chooses_by_its_clock() {
    check_auto("simt", "the fastest for a step of 8");
}

#[test]
fn a_run_keeps_its_split() {
    let before = place("cpu", &["--micro-batch", "2"]);
    let output = before.path("out");
    before.finish(&output);
    let error = |after: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_elektron"));
        let out = command.args(["pretrain", "--resume"]).arg(&output).args(after).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        text(&out.stderr)
    };
    let changed = error(&["--micro-batch", "4"]);
    assert!(changed.contains("`micro-batch` is 4, but the run began with 2"), "{changed}");
    // The checkpoint knows it too.
    std::fs::remove_file(output.join("config.json")).unwrap();
    let changed = error(&["--micro-batch", "4", "--steps", "9"]);
    assert!(changed.contains("computes 2 rows at a time, not 4"), "{changed}");
}
