//! What is written and where to: outputs that are links, FIFOs or descriptors, and messages that
//! nobody can read. Only what lies in a test's own directory is ever the name of an output, so that
//! a mistake cannot replace a device of the machine.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use elektron::fsutil::{check_output, create_dir, write_atomic};
use serde_json::Value;
use tempfile::TempDir;

use crate::place::*;
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

#[test]
fn outputs_go_through_links() {
    let (dir, path) = with_log();
    fs::create_dir(path("sub")).unwrap();
    fs::write(path("sub/target.svg"), "before").unwrap();
    fs::set_permissions(path("sub/target.svg"), fs::Permissions::from_mode(0o604)).unwrap();
    symlink("target.svg", path("sub/inner")).unwrap();
    symlink("sub/inner", path("outer")).unwrap();
    symlink("sub/new.svg", path("dangling")).unwrap();
    for (link, target) in [("outer", "sub/target.svg"), ("dangling", "sub/new.svg")] {
        assert_ok(&draw(&dir, link));
        assert!(fs::symlink_metadata(path(link)).unwrap().is_symlink(), "{link} stays");
        assert!(is_drawing(&fs::read_to_string(path(target)).unwrap()), "{target}");
    }
    assert!(fs::symlink_metadata(path("sub/inner")).unwrap().is_symlink());
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("sub/target.svg"), 0o604, "permissions stay");
    assert_eq!(fs::read_dir(path("sub")).unwrap().count(), 3, "no temporary file is left");
    // A new file has what the user's mask leaves.
    assert_ok(&shell(&dir, "umask 027; exec \"$1\" report log.jsonl --svg private.svg"));
    assert_eq!(mode("private.svg"), 0o640);
}

#[test]
fn outputs_that_cannot_be_files_are_named() {
    let (dir, path) = with_log();
    fs::create_dir(path("folder")).unwrap();
    symlink("folder", path("to-folder")).unwrap();
    symlink("loop-b", path("loop-a")).unwrap();
    symlink("loop-a", path("loop-b")).unwrap();
    let _socket = UnixListener::bind(path("socket")).unwrap();
    for (name, word) in [
        ("folder", "directory"),
        ("folder/", "directory"),
        ("to-folder", "directory"),
        ("new/", "directory"),
        ("missing/drawing.svg", "no directory missing"),
        ("loop-a", "loop"),
        ("socket", "socket"),
    ] {
        assert_refused(&draw(&dir, name), &[name, word]);
    }
    assert!(fs::symlink_metadata(path("socket")).unwrap().file_type().is_socket());
    assert!(path("to-folder").is_symlink() && path("loop-a").is_symlink());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6, "nothing else was made");
}

#[test]
fn fifos_and_devices_are_written_to() {
    let (dir, path) = with_log();
    make_fifo(&path("fifo"));
    symlink("fifo", path("link")).unwrap();
    for name in ["fifo", "link"] {
        let fifo = path("fifo");
        let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
        assert_ok(&draw(&dir, name));
        assert!(is_drawing(&reader.join().unwrap()));
        assert!(is_fifo(&path("fifo")) && path("link").is_symlink());
    }
    // A reader that leaves early has not got what was asked for.
    let fifo = path("fifo");
    let reader = std::thread::spawn(move || drop(File::open(fifo).unwrap()));
    let large = vec![b'x'; 1 << 20];
    let error = write_atomic(&path("fifo"), |out| out.write_all(&large)).unwrap_err();
    assert!(error.to_string().contains("Broken pipe"), "{error}");
    reader.join().unwrap();
    assert!(is_fifo(&path("fifo")));
    // Only root may make a device, here one as /dev/full is.
    let made = Command::new("mknod").arg(path("full")).args(["c", "1", "7"]).output().unwrap();
    if made.status.success() && File::options().write(true).open(path("full")).is_ok() {
        assert_refused(&draw(&dir, "full"), &["full", "No space left"]);
        assert!(fs::symlink_metadata(path("full")).unwrap().file_type().is_char_device());
    }
}

#[test]
fn descriptors_go_on_where_they_are() {
    let (dir, path) = with_log();
    symlink("/proc/self/fd/1", path("stdout")).unwrap();
    for name in ["/proc/self/fd/1", "/dev/fd/1", "stdout", "/proc/thread-self/fd/1"] {
        for redirect in [">>", ">"] {
            let script = format!(
                "echo before > file; {{ echo first; \"$1\" report log.jsonl --svg {name} || exit; echo last; }} {redirect} file"
            );
            let out = shell(&dir, &script);
            assert_ok(&out);
            let got = fs::read_to_string(path("file")).unwrap();
            let start = if redirect == ">>" { "before\nfirst\n" } else { "first\n" };
            let drawing = got.strip_prefix(start).and_then(|got| got.strip_suffix("last\n"));
            assert!(drawing.is_some_and(is_drawing), "{name} {redirect}: {got}");
            assert!(text(&out.stderr).contains("written: "), "not within the drawing");
        }
    }
    assert!(path("stdout").is_symlink());
    fs::write(path("file"), "before\n").unwrap();
    assert_ok(&shell(&dir, "\"$1\" report log.jsonl --svg /dev/fd/3 3>> file"));
    let kept = fs::read_to_string(path("file")).unwrap();
    assert!(kept.strip_prefix("before\n").is_some_and(is_drawing), "{kept}");
    assert_refused(
        &shell(&dir, "\"$1\" report log.jsonl --svg /dev/fd/3 3< file"),
        &["/dev/fd/3", "descriptor"],
    );
    assert_eq!(fs::read_to_string(path("file")).unwrap(), kept);
    assert_refused(&shell(&dir, "\"$1\" report log.jsonl --svg /dev/fd/99"), &["/dev/fd/99", "descriptor"]);
    // As with any other standard output, a reader that has seen enough is no error.
    let mut command = Command::new(ELEKTRON);
    command.arg("report").arg(path("log.jsonl")).arg("--svg").arg(path("stdout"));
    command.arg("--png").arg(path("picture"));
    assert_ok(&left_by_its_reader(command, 10));
    assert!(path("picture").is_file(), "the other output is still written");
}

/// Reads some bytes of standard output, closes it, and waits for the end.
fn left_by_its_reader(mut command: Command, bytes: usize) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut vec![0; bytes]).unwrap();
    drop(out);
    child.wait_with_output().unwrap()
}

#[test]
fn an_output_is_checked_before_the_work() {
    let (dir, path) = with_log();
    assert!(check_output(&path("new")).is_ok() && check_output(Path::new("/dev/stdout")).is_ok());
    assert!(check_output(dir.path()).is_err() && check_output(&path("missing/new")).is_err());
    let model = |name: &str| golden("checkpoints").join(name);
    let mut command = Command::new(ELEKTRON);
    command.args(["forward", "--batch", "missing.safetensors", "--generator"]).arg(model("generator"));
    command.arg("--discriminator").arg(model("discriminator_pre")).arg("--output").arg(dir.path());
    assert_refused(&command.output().unwrap(), &["is a directory"]);
}

#[test]
fn directories_may_be_links() {
    let (_dir, path) = with_log();
    symlink("elsewhere", path("link")).unwrap();
    create_dir(&path("link/below")).unwrap();
    assert!(path("elsewhere/below").is_dir() && path("link").is_symlink());
    create_dir(&path("link")).unwrap();
    let error = create_dir(&path("log.jsonl/below")).unwrap_err().to_string();
    assert!(error.contains("log.jsonl: this is a file"), "{error}");

    let place = Place::new(&["--steps", "12", "--save-every", "3"]);
    let want = place.undisturbed();
    let run = place.path("linked");
    fs::create_dir_all(place.path("fast")).unwrap();
    fs::create_dir(&run).unwrap();
    symlink(place.path("fast"), run.join("checkpoints")).unwrap();
    for name in ["shards", "generator", "discriminator"] {
        symlink(place.path(&format!("new-{name}/")), run.join(name)).unwrap();
    }
    symlink(place.path("metrics-of-the-run"), run.join("metrics.jsonl")).unwrap();
    place.finish(&run);
    assert_equal(&traces(&run), &want);
    // Once more, from the middle: the last checkpoint is gone.
    fs::remove_file(place.path("fast/step-000000012.safetensors")).unwrap();
    place.finish(&run);
    assert_equal(&traces(&run), &want);
    for name in ["checkpoints", "shards", "generator", "discriminator", "metrics.jsonl"] {
        assert!(run.join(name).is_symlink(), "{name} stays a link");
    }
}

/// Runs to the end with the given standard output and standard error.
fn run_with(mut command: Command, out: impl Into<Stdio>, err: impl Into<Stdio>) {
    let status = command.stdout(out).stderr(err).status().unwrap();
    assert!(status.success(), "{status:?}");
}

/// A pipe whose reader has gone.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
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
    // Descriptors that are not open at all must not become those of the run's files.
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
    // A signal is answered as ever.
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
    // Where it leads to is made while the run goes on.
    let output = place.path("late");
    fs::create_dir(&output).unwrap();
    symlink(place.path("later/metrics.jsonl"), output.join("metrics.jsonl")).unwrap();
    let mut child = place.command(&output).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut lines = String::new();
    while !lines.contains("step 102/") {
        assert!(said.read_line(&mut lines).unwrap() > 0, "{lines}");
    }
    assert_eq!(lines.matches("wait in memory").count(), 1, "it is told once: {lines}");
    assert!(lines.contains("metrics.jsonl: No such file"), "{lines}");
    // It must not be at its end before.
    signal(&child, "STOP");
    fs::create_dir(place.path("later")).unwrap();
    signal(&child, "CONT");
    said.read_to_string(&mut lines).unwrap();
    assert!(child.wait().unwrap().success(), "{lines}");
    assert!(!lines.contains("entries of the log"), "{lines}");
    assert_equal(&traces(&output), &want);

    // It never can be written.
    let output = place.path("never");
    fs::create_dir_all(output.join("metrics.jsonl")).unwrap();
    let out = place.command(&output).output().unwrap();
    assert_ok(&out);
    let said = text(&out.stderr);
    assert_eq!(said.matches("wait in memory").count(), 1, "{said}");
    assert!(said.contains("200 entries of the log are not in"), "{said}");

    // A FIFO holds no run up, whether somebody reads it or not.
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
    assert_eq!(steps, of(&want.1));
}

/// The limit on the size of files ends no process: whatever is too large is as on a full disk.
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
    // In units of 512 or of 1,024 bytes, as the shell likes: enough for the settings, too little for the log.
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

/// Arguments of `detect` with the small networks' discriminator and a vocabulary of letters.
fn detect(place: &Place, extra: &[&str]) -> Command {
    let mut command = Command::new(ELEKTRON);
    command.arg("detect").arg("--discriminator").arg(golden("checkpoints/discriminator_pre"));
    command.arg("--tokenizer").arg(place.path("vocab.txt")).args(["--threads", "1"]).args(extra);
    command
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
    // An error of usage that nobody reads is still one.
    let usage = command(&["pretrain", "--no-such-flag"]).stderr(unread()).status().unwrap();
    assert_eq!(usage.code(), Some(2));
    let error = command(&["runs", "/nonexistent/at/all"]).stderr(full()).status().unwrap();
    assert_eq!(error.code(), Some(1));
    // What was done is done, whether or not this can be said.
    let (dir, path) = with_log();
    let mut report = command(&["report", "log.jsonl", "--svg", "drawing.svg"]);
    let out = report.current_dir(dir.path()).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    assert_ok(&out);
    assert!(path("drawing.svg").is_file() && text(&out.stderr).contains("warning: cannot write"));
}

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
    // The same as from a file, where lines are computed together.
    fs::write(place.path("lines.txt"), "banana\nthe man\nthe end\n").unwrap();
    let out = detect(&place, &["--input", place.path("lines.txt").to_str().unwrap()]).output().unwrap();
    assert_eq!(text(&out.stdout), answers);

    // The text never ends; its reader does.
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
fn lines_that_detect_cuts_are_told() {
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
