//! What the name of an output leads to: links, FIFOs, devices and descriptors.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use elektron::fsutil::{check_output, create_dir, write_atomic};

use super::{ELEKTRON, assert_ok, assert_refused, draw, is_drawing, is_fifo, make_fifo, shell, with_log};
use crate::place::{Place, assert_equal, text, traces};
use crate::support::golden;

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
    // A new file has the permissions that the umask leaves.
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
    // It is an error if the reader leaves before it has everything.
    let fifo = path("fifo");
    let reader = std::thread::spawn(move || drop(File::open(fifo).unwrap()));
    let large = vec![b'x'; 1 << 20];
    let error = write_atomic(&path("fifo"), |out| out.write_all(&large)).unwrap_err();
    assert!(error.to_string().contains("Broken pipe"), "{error}");
    reader.join().unwrap();
    assert!(is_fifo(&path("fifo")));
    // Only root may make a device, here one like /dev/full.
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
                "echo before > file; {{ echo first; \"$1\" report log.jsonl --svg {name} || exit; \
                 echo last; }} {redirect} file"
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
    // As with any other standard output, it is no error if the reader leaves early.
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
    // Once more from the middle, without the last checkpoint.
    fs::remove_file(place.path("fast/step-000000012.safetensors")).unwrap();
    place.finish(&run);
    assert_equal(&traces(&run), &want);
    for name in ["checkpoints", "shards", "generator", "discriminator", "metrics.jsonl"] {
        assert!(run.join(name).is_symlink(), "{name} stays a link");
    }
}
