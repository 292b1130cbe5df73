//! Runs that are killed, stopped, starved of disk or robbed of their files: each goes on, or says what to do, and ends in
//! the bytes of a run that nothing happened to. `ELEKTRON_KILLS=100` kills that often.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use elektron::rng::{Philox, Site};

use crate::place::*;

/// A run's one error, with exit code 1.
fn assert_error(out: &Output, words: &[&str]) {
    let message = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{:?} {message}", out.status);
    assert_eq!(message.matches("error:").count(), 1, "{message}");
    assert!(!message.contains("panicked"), "{message}");
    words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is not in: {message}"));
}

#[test]
fn kills_cost_nothing() {
    let kills: u32 = std::env::var("ELEKTRON_KILLS").map_or(8, |n| n.parse().unwrap());
    let steps = (60 * kills).to_string();
    let place = Place::new(&["--steps", &steps, "--save-every", "1", "--keep", "2"]);
    let (want, output) = (place.undisturbed(), place.path("killed"));
    let (mut kill, mut while_writing, mut after_the_end) = (0, 0, 0);
    while kill < kills || (while_writing == 0 && kill < 5 * kills) {
        let mut child = place.start(&output);
        let newest = checkpoints(&output).pop();
        if kill % 4 != 0 {
            wait_for("a new checkpoint", || {
                checkpoints(&output).pop() > newest || child.try_wait().unwrap().is_some()
            });
        }
        if kill % 2 == 0 {
            // At any moment: while it takes up the work, or after it has.
            let micros = Philox::new(7).word(kill, 0, Site(0), 0) % 200_000;
            std::thread::sleep(Duration::from_micros(micros.into()));
        } else {
            wait_for("a checkpoint half written", || {
                unfinished(&output) || child.try_wait().unwrap().is_some()
            });
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.signal() == Some(9) || status.success(), "{status:?}");
        while_writing += u32::from(unfinished(&output));
        after_the_end += u32::from(status.success());
        kill += 1;
    }
    let said = place.finish(&output);
    assert!(!said.contains(".damaged"), "no kill leaves a damaged checkpoint: {said}");
    assert_equal(&traces(&output), &want);
    assert!(!unfinished(&output), "half-written files are removed");
    eprintln!("{kill} kills, {while_writing} left a checkpoint half written, {after_the_end} came too late");
    assert!(while_writing > 0 && after_the_end < kill / 2, "{while_writing} {after_the_end}");
}

#[test]
fn signals_save_and_a_second_one_leaves_at_once() {
    let place = Place::new(&["--steps", "900", "--save-every", "400"]);
    let (want, output) = (place.undisturbed(), place.path("stopped"));
    for (name, step) in [("TERM", 30), ("USR1", 60), ("INT", 90)] {
        let mut command = place.command(&output);
        let child = command.spawn().unwrap();
        wait_for_step(&output, step);
        signal(&child, name);
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(75), "{name}: {}", text(&out.stderr));
        let said = text(&out.stdout);
        assert!(said.contains("stopped by a signal") && said.contains("--resume"), "{said}");
        let saved = checkpoints(&output);
        assert!(saved.last().unwrap().as_str() > format!("step-{step:09}").as_str(), "{saved:?}");
    }
    place.finish(&output);
    assert_equal(&traces(&output), &want);

    // A step of many seconds.
    let place = Place::new(&["--steps", "2", "--grad-accumulation", "40000"]);
    let output = place.path("impatient");
    let mut child = place.start(&output);
    wait_for("training", || output.join("metrics.jsonl").exists());
    // A signal between the opening of the log and the first step would be answered before that step.
    let before = ticks(&child);
    wait_for("half a second of work on the step", || ticks(&child) >= before + 50);
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the first lets the step end");
    let sent = Instant::now();
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(sent.elapsed() < Duration::from_secs(2));
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let place = Place::new(&["--steps", "12", "--save-every", "3", "--keep", "9"]);
    let want = place.undisturbed();
    let names = checkpoints(&place.path("undisturbed"));
    assert_eq!(names.len(), 4, "{names:?}");
    let whole = fs::read(place.path("undisturbed").join("checkpoints").join(&names[3])).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let state = whole.windows(6).position(|w| w == b"tokens").unwrap() + 10;
    let damages = [
        Vec::new(),
        whole[..5].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], b"x"].concat(),
        vec![0; whole.len()],
        flipped(3),
        flipped(state),
        flipped(whole.len() / 2),
        flipped(whole.len() - 20),
        flipped(whole.len() - 1),
    ];
    let output = place.path("undisturbed");
    for (number, bytes) in damages.iter().enumerate() {
        // The last two are damaged, each in its way.
        for name in &names[2..] {
            fs::write(output.join("checkpoints").join(name), bytes).unwrap();
        }
        let said = place.finish(&output);
        assert_eq!(said.matches("is not whole").count(), 2, "damage {number}: {said}");
        assert!(said.contains(&names[3]) && said.contains("set aside"), "{said}");
        assert_equal(&traces(&output), &want);
        assert_eq!(checkpoints(&output).iter().filter(|n| n.ends_with(".damaged")).count(), 2);
    }
    for name in &names {
        fs::write(output.join("checkpoints").join(name), b"").unwrap();
    }
    for _ in 0..2 {
        let out = place.command(&output).output().unwrap();
        assert_error(&out, &["checkpoints", "none", "whole", "start over"]);
    }
    assert_equal(&traces(&output), &want);
}

/// A file system of its own, unmounted in the end. Only root may make one.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(dir: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&dir).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).output();
        if mounted.is_ok_and(|out| out.status.success()) {
            return Some(Self(dir));
        }
        crate::support::skipped("no tmpfs can be mounted here, which would play the part of a full disk");
        None
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let _ = std::io::copy(&mut std::io::repeat(0), &mut File::create(&path).unwrap());
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Starts a run whose standard error is read line by line: returns it, and what it says until a line holds `word`.
fn start_until(place: &Place, output: &Path, word: &str) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = place.command(output).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut said, word);
    (child, said)
}

fn read_until(said: &mut impl BufRead, word: &str) {
    let mut line = String::new();
    while !line.contains(word) {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended without saying `{word}`");
    }
}

#[test]
fn a_full_disk_stops_no_run_and_costs_nothing() {
    let place = Place::new(&["--steps", "1200", "--save-every", "100", "--keep", "2"]);
    let Some(disk) = Tmpfs::new(place.path("disk"), "24m") else { return };
    let (want, output) = (place.undisturbed(), disk.0.join("run"));

    // Full for a while, and there is room again.
    let (child, mut said) = start_until(&place, &output, "step 102/");
    let ballast = disk.fill();
    read_until(&mut said, "was not written");
    assert!(!checkpoints(&output).is_empty(), "older checkpoints are kept");
    fs::remove_file(&ballast).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(child.wait_with_output().unwrap().status.success(), "{rest}");
    assert_equal(&traces(&output), &want);

    // Full to the end: an error that says how to go on, and going on.
    fs::remove_dir_all(&output).unwrap();
    let (mut child, mut said) = start_until(&place, &output, "step 102/");
    let ballast = disk.fill();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    for word in [
        "error:",
        "No space left",
        "step 1200 could not be saved",
        "newest checkpoint is of step",
        "--resume",
    ] {
        assert!(rest.contains(word), "`{word}` is not in: {rest}");
    }
    let kept = checkpoints(&output);
    assert!(!kept.is_empty() && kept.iter().all(|name| name.starts_with("step-")), "{kept:?}");
    fs::remove_file(&ballast).unwrap();
    place.finish(&output);
    assert_equal(&traces(&output), &want);
}

/// Without a file system of its own: a limit on the size of files, which checkpoints exceed.
#[test]
fn a_checkpoint_that_cannot_be_written_is_told() {
    let place = Place::new(&["--steps", "20", "--save-every", "5"]);
    let (want, output) = (place.undisturbed(), place.path("limited"));
    let size =
        fs::metadata(place.path("undisturbed").join("checkpoints/step-000000020.safetensors")).unwrap().len();
    // In units of 512 or of 1,024 bytes, as the shell likes.
    let script = format!("ulimit -f {}; exec \"$@\"", size / 2048);
    let inner = place.command(&output);
    let out = Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .output()
        .unwrap();
    assert_error(&out, &["File too large", "step 20 could not be saved", "none yet", "--resume"]);
    assert!(text(&out.stderr).matches("was not written").count() >= 3, "{}", text(&out.stderr));
    assert_eq!(checkpoints(&output), Vec::<String>::new(), "nothing half written stays");
    place.finish(&output);
    assert_equal(&traces(&output), &want);
}

/// Mounts a directory over itself, to be read only; unmounted in the end.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(dir: PathBuf) -> Option<Self> {
        let mount = |arguments: &[&str]| {
            Command::new("mount").args(arguments).arg(&dir).output().is_ok_and(|out| out.status.success())
        };
        if !mount(&["--bind", dir.to_str().unwrap()]) {
            crate::support::skipped("nothing can be mounted here, and permissions do not bind root");
            return None;
        }
        let read_only = Self(dir.clone());
        assert!(mount(&["-o", "remount,bind,ro"]));
        Some(read_only)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_directory_that_turns_read_only_costs_nothing() {
    let place = Place::new(&["--steps", "1200", "--save-every", "100"]);
    let (want, output) = (place.undisturbed(), place.path("run"));
    let (mut child, mut said) = start_until(&place, &output, "step 102/");
    let Some(read_only) = ReadOnly::new(output.join("checkpoints")) else {
        child.kill().unwrap();
        child.wait().unwrap();
        return;
    };
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    for word in
        ["warning: a checkpoint was not written", "Read-only", "step 1200 could not be saved", "--resume"]
    {
        assert!(rest.contains(word), "`{word}` is not in: {rest}");
    }
    drop(read_only);
    {
        let _read_only = ReadOnly::new(output.clone()).unwrap();
        let out = place.command(&output).output().unwrap();
        assert_error(&out, &[output.to_str().unwrap(), "Read-only"]);
    }
    place.finish(&output);
    assert_equal(&traces(&output), &want);
}

#[test]
fn shards_may_vanish_and_are_missed_when_cut_short() {
    let place = Place::new(&["--steps", "1500", "--save-every", "100000"]);
    let (want, output) = (place.undisturbed(), place.path("robbed"));
    let shard = |output: &Path| {
        let shards = fs::read_dir(output.join("shards")).unwrap();
        shards.map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "tokens")).unwrap()
    };
    // A shard that is cut in the moment it is read ends the process, as any crash does: then once more.
    for attempt in 1.. {
        let child = place.command(&output).spawn().unwrap();
        wait_for_step(&output, 30);
        let path = shard(&output);
        File::options().write(true).open(&path).unwrap().set_len(64).unwrap();
        let out = child.wait_with_output().unwrap();
        if out.status.signal() == Some(signal_hook::consts::SIGBUS) && attempt < 5 {
            fs::remove_dir_all(&output).unwrap();
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_error(&out, &[name, "cut short", "saved at step", "--resume"]);
        break;
    }

    let reached = metrics(&output).last().unwrap()["step"].as_u64().unwrap();
    let child = place.command(&output).spawn().unwrap();
    wait_for_step(&output, reached + 1);
    fs::remove_file(shard(&output)).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_equal(&traces(&output), &want);
}

#[test]
fn two_runs_do_not_share_a_directory() {
    let place = Place::new(&["--steps", "100000", "--save-every", "100"]);
    let output = place.path("contested");
    let mut first = place.start(&output);
    wait_for_step(&output, 30);
    let second = place.command(&output).output().unwrap();
    assert_error(&second, &[&format!("process {}", first.id()), "is training in this directory"]);
    assert!(first.try_wait().unwrap().is_none(), "the first goes on");
    first.kill().unwrap();
    first.wait().unwrap();
    let reached = metrics(&output).last().unwrap()["step"].as_u64().unwrap();
    // What a killed process leaves does not lock anyone out.
    let third = place.command(&output).spawn().unwrap();
    wait_for_step(&output, reached + 1);
    signal(&third, "TERM");
    assert_eq!(third.wait_with_output().unwrap().status.code(), Some(75));
}

#[test]
fn a_run_can_be_resumed_when_finished_and_not_when_there_is_none() {
    let place = Place::new(&["--steps", "6"]);
    let (want, output) = (place.undisturbed(), place.path("undisturbed"));
    let resume = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elektron"));
        command.args(["pretrain", "--resume"]).arg(&output).args(extra).output().unwrap()
    };
    let again = resume(&[]);
    assert!(again.status.success());
    assert!(
        text(&again.stdout).contains("has made its 6 steps; to train further"),
        "{}",
        text(&again.stdout)
    );
    assert_equal(&traces(&output), &want);
    assert!(resume(&["--steps", "9"]).status.success());
    assert_eq!(metrics(&output).last().unwrap()["step"], 9);

    let settings = output.join("config.json");
    for damage in ["", "{\"train\": [", "[]"] {
        fs::write(&settings, damage).unwrap();
        assert_error(&resume(&[]), &["config.json", "cannot be read", "delete it", "run.json"]);
    }
    fs::remove_file(&settings).unwrap();
    assert!(resume(&[]).status.success());
    fs::write(output.join("run.json"), "{").unwrap();
    assert_error(&resume(&[]), &["run.json", "cannot be read", "give the run's settings again"]);
    fs::remove_file(output.join("run.json")).unwrap();
    assert_error(&resume(&[]), &["run.json", "is missing"]);
    place.finish(&output);
    let empty = place.path("empty");
    let out =
        Command::new(env!("CARGO_BIN_EXE_elektron")).args(["pretrain", "--resume"]).arg(&empty).output();
    assert_error(&out.unwrap(), &["no run to resume"]);
}
