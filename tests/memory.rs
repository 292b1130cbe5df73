//! Memory of a long run: what a step allocates, the next one uses again.

/// Trains tiny networks in a process of its own and compares its resident memory before half of the steps with that
/// before the last. More steps: `ELEKTRON_MEMORY_STEPS=10000 cargo test --test suite memory`.
#[cfg(target_os = "linux")]
#[test]
fn a_run_does_not_grow() {
    use std::fs;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use crate::support::repository;

    let steps = std::env::var("ELEKTRON_MEMORY_STEPS").map_or(600, |text| text.parse::<u64>().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let book = fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
    let lines: Vec<&str> = book.lines().take(400).collect();
    fs::write(path("book.txt"), lines.join("\n")).unwrap();
    let (text, output) = (path("book.txt"), path("run"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_elektron"))
        .args(["pretrain", "--train", &text, "--output", &output, "--preset", "tiny", "--vocab-size", "300"])
        .args(["--recipe", "paper"])
        .args(["--seq-len", "16", "--batch-size", "1", "--steps", &steps.to_string(), "--threads", "1"])
        .args(["--log-every", "10", "--save-every", "100000", "--quiet", "--device", "cpu"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // (step, resident KiB) as the run goes on.
    let mut samples: Vec<(u64, u64)> = Vec::new();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let log = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap_or_default();
        let step =
            log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).next_back();
        let step = step.and_then(|line| line["step"].as_u64()).unwrap_or(0);
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        if let Some(kib) = resident.and_then(|text| text.trim_end_matches("kB").trim().parse().ok()) {
            samples.push((step, kib));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    let most = |steps: std::ops::Range<u64>| {
        let during = samples.iter().filter(|(step, _)| steps.contains(step)).map(|&(_, kib)| kib);
        during.max().unwrap_or_else(|| panic!("no sample in steps {steps:?}"))
    };
    // The last steps are left out: then the checkpoint and the models are written.
    let (before, after) = (most(steps / 3..steps / 2), most(steps * 5 / 6..steps - 10));
    println!("resident: {before} KiB before step {}, {after} KiB before step {steps}", steps / 2);
    // Hundreds of steps that each kept one batch's buffers, some 4 KiB, would be seen.
    assert!(
        after <= before + 512,
        "resident: {before} KiB before step {}, {after} KiB at the end",
        steps / 2
    );
}
