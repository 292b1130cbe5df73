//! What folders and globs give: datasets of the hub, hidden files, links, pipes, unusual names.
//!
//! Expected values are those of `datasets` 5.0, `os.walk`, `gzip` and `pyarrow` for the same files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use elektron::data::source::TextSource;

mod contents;

struct Corpus(tempfile::TempDir);

impl Corpus {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Files whose text is their own name.
    fn files(&self, names: &[&str]) {
        for name in names {
            self.write(name, format!("text\n{name}\n"));
        }
    }

    fn source(&self, name: &str) -> TextSource {
        TextSource::new(&[self.path(name)], &["text".to_owned()]).unwrap()
    }

    fn names(&self, source: &TextSource) -> Vec<String> {
        let name = |file: &PathBuf| file.strip_prefix(self.0.path()).unwrap().to_str().unwrap().to_owned();
        source.files().iter().map(name).collect()
    }

    /// Names of the files that are read, and what is said to be left out.
    fn found(&self, name: &str) -> (Vec<String>, String) {
        let source = self.source(name);
        (self.names(&source), source.left_out(true).join("\n"))
    }

    fn refused(&self, name: &str) -> String {
        TextSource::new(&[self.path(name)], &["text".to_owned()]).unwrap_err().to_string()
    }
}

/// The paragraphs of a file, or the error.
fn read(path: &Path) -> Result<Vec<String>, String> {
    let source = TextSource::new(&[path], &["text".to_owned()]).map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    let read = source.for_each(|p| {
        all.push(format!("{}{}", if p.opens_document { "" } else { "+" }, p.text));
        Ok(())
    });
    read.map(|()| all).map_err(|e| e.to_string())
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn of_a_dataset_the_split_train_is_read() {
    let corpus = Corpus::new();
    corpus.files(&["c/data/train-00000-of-00002.csv", "c/data/train-00001-of-00002.csv"]);
    corpus.files(&["c/data/test-00000-of-00001.csv", "c/data/validation-00000-of-00001.csv", "c/extra.csv"]);
    corpus.files(&["c/README.md", "c/LICENSE.txt", "c/dataset_infos.json", "c/.gitattributes"]);
    let (files, notes) = corpus.found("c");
    assert_eq!(files, ["c/data/train-00000-of-00002.csv", "c/data/train-00001-of-00002.csv"]);
    has(
        &notes,
        &["`train`", "1 file of the split `test`", "data/validation-00000", "extra.csv", "README.md"],
    );
    let held_out = |name: &str| TextSource::held_out(&[corpus.path(name)], &["text".to_owned()]).unwrap();
    assert_eq!(corpus.names(&held_out("c")), ["c/data/validation-00000-of-00001.csv"]);
    // By folders, before names of files count.
    corpus.files(&["f/train/a.txt", "f/train/b.test.txt", "f/my-dev/c.txt", "f/train.txt"]);
    let (files, notes) = corpus.found("f");
    assert_eq!(files, ["f/train/a.txt", "f/train/b.test.txt"]);
    has(&notes, &["`validation`", "my-dev/c.txt", "of no split", "train.txt"]);
    // By names; a file of two splits is in both.
    corpus.files(&["n/x_train.jsonl", "n/train-test.jsonl", "n/test.jsonl", "n/contest.jsonl"]);
    let (files, notes) = corpus.found("n");
    assert_eq!(files, ["n/train-test.jsonl", "n/x_train.jsonl"]);
    has(&notes, &["`test`", "contest.jsonl"]);
    assert_eq!(corpus.names(&held_out("n")), ["n/test.jsonl", "n/train-test.jsonl"]);
    // Without a split `train` nothing is left out.
    corpus.files(&["t/test.txt", "t/other.txt", "t/sub/eval/x.txt"]);
    let (files, notes) = corpus.found("t");
    assert_eq!(files, ["t/other.txt", "t/sub/eval/x.txt", "t/test.txt"]);
    has(&notes, &["no split `train`", "also those of `test`", "sub/eval/x.txt"]);
    corpus.files(&["p/contest.txt", "p/trained.txt", "p/Test.txt"]);
    assert_eq!(
        corpus.found("p"),
        (strings(&["p/Test.txt", "p/contest.txt", "p/trained.txt"]), String::new())
    );
    // What is named is read.
    assert_eq!(corpus.found("c/README.md").0, ["c/README.md"]);
    assert_eq!(corpus.found("c/data/*.csv").0.len(), 4);
    fs::remove_dir_all(corpus.path("c/data")).unwrap();
    fs::remove_file(corpus.path("c/extra.csv")).unwrap();
    has(&corpus.refused("c"), &["holds no text", "README.md"]);
}

#[test]
fn a_dataset_card_says_which_files_are_the_splits() {
    let corpus = Corpus::new();
    corpus.files(&["c/en/train.csv", "c/en/test.csv", "c/de/a.csv", "c/de/b.csv", "c/x/all.csv"]);
    let card = |configs: &str| {
        corpus.write("c/README.md", format!("---\nlicense: mit\nconfigs:\n{configs}---\n# Card\n"));
    };
    let en = "- config_name: en\n  data_files:\n  - split: train\n    path: en/train*\n  - split: test\n    path: en/test.csv\n";
    card(en);
    let (files, notes) = corpus.found("c");
    assert_eq!(files, ["c/en/train.csv"]);
    has(&notes, &["`test`", "en/test.csv", "configuration `en`", "de/a.csv"]);
    card(&format!("{en}- config_name: de\n  data_files: \"de/*.csv\"\n"));
    has(&corpus.refused("c"), &["[\"en\", \"de\"]", "c/en/train*"]);
    card(&format!("{en}- config_name: de\n  default: true\n  data_files: [de/b.csv, de/a.csv]\n"));
    assert_eq!(corpus.found("c").0, ["c/de/a.csv", "c/de/b.csv"]);
    // The files of the default configuration were not downloaded, those of another one were.
    card(&format!("{en}- config_name: fr\n  default: true\n  data_files: fr/*.csv\n"));
    has(&corpus.refused("c"), &["`fr`", "default", "download", "c/en/train*"]);
    // Of many configurations one was downloaded.
    card(&format!("{en}- config_name: fr\n  data_files: fr/*.csv\n"));
    assert_eq!(corpus.found("c").0, ["c/en/train.csv"]);
    card("- config_name: fr\n  data_files: fr/*.csv\n");
    has(&corpus.refused("c"), &["fr", "download"]);
    card("- config_name: x\n  data_dir: x\n");
    let (files, notes) = corpus.found("c");
    assert_eq!(files, ["c/x/all.csv"]);
    has(&notes, &["data_dir", "en/train.csv"]);
    card("- config_name: x\n  data_files: 7\n");
    has(&corpus.refused("c"), &["README.md", "`x`"]);
    corpus.write("c/README.md", "---\nlicense: mit\n---\n# Not a card with files\n");
    assert_eq!(corpus.found("c").0, ["c/en/train.csv"], "by names");
}

#[test]
fn hidden_files_are_not_read() {
    let corpus = Corpus::new();
    corpus.files(&["c/a.TXT", "c/.a.txt", "c/._a.txt", "c/.git/b.md", "c/.ipynb_checkpoints/c.txt"]);
    corpus.files(&["c/__MACOSX/d.txt", "c/sub/e.txt", "c/sub/.f/g.txt", "c/picture.png"]);
    let (files, notes) = corpus.found("c");
    assert_eq!(files, ["c/a.TXT", "c/sub/e.txt"]);
    has(&notes, &[".git", ".a.txt", "._a.txt", "__MACOSX", "sub/.f", "picture.png"]);
    let brief = corpus.source("c").left_out(false).join("\n");
    has(&brief, &["hidden", ": 6 (-v names them)"]);
    assert_eq!(corpus.found("c/**/*.txt").0, ["c/sub/e.txt"]);
    assert_eq!(corpus.found("c/**").0, ["c/a.TXT", "c/sub/e.txt"]);
    has(&corpus.found("c/*").1, &["sub", "folders"]);
    // Named, or asked for.
    assert_eq!(corpus.found("c/.*/*.txt").0, ["c/.ipynb_checkpoints/c.txt"]);
    assert_eq!(corpus.found("c/.git/*").0, ["c/.git/b.md"]);
    assert_eq!(corpus.found("c/.git").0, ["c/.git/b.md"]);
    assert_eq!(corpus.found("c/{.a,sub/e}.{txt,md}").0, ["c/.a.txt", "c/sub/e.txt"]);
    assert_eq!(corpus.found("c/{s{u,x}b,y}/[ef].txt").0, ["c/sub/e.txt"]);
    has(&corpus.refused("c/*.csv"), &["matches no text"]);
    has(&corpus.refused("c/[.txt"), &["c/[.txt", "not valid"]);
}

#[cfg(unix)]
#[test]
fn links_lead_to_every_file_once() {
    use std::os::unix::fs::symlink;
    let corpus = Corpus::new();
    corpus.files(&["c/z/a.txt", "c/m.txt", "other/deep/b.txt", "other/train.txt"]);
    symlink(".", corpus.path("c/loop")).unwrap();
    symlink("..", corpus.path("c/z/up")).unwrap();
    symlink("../other", corpus.path("c/o")).unwrap();
    symlink("../other/deep", corpus.path("c/again")).unwrap();
    symlink("z", corpus.path("c/b-link")).unwrap();
    symlink("m.txt", corpus.path("c/a-link.txt")).unwrap();
    // What has a path without a link is called by that path.
    let all = ["c/again/b.txt", "c/m.txt", "c/o/train.txt", "c/z/a.txt"];
    assert_eq!(corpus.names(&TextSource::held_out(&[corpus.path("c")], &[]).unwrap()), all);
    assert_eq!(corpus.found("c/**/*.txt").0, all);
    assert_eq!(corpus.found("c/*/a.txt").0, ["c/z/a.txt"]);
    symlink("nowhere.txt", corpus.path("c/gone.txt")).unwrap();
    has(&corpus.refused("c"), &["gone.txt", "symbolic link"]);
}

#[cfg(unix)]
#[test]
fn pipes_in_folders_are_passed_over_and_named_ones_read() {
    let corpus = Corpus::new();
    corpus.files(&["c/a.txt"]);
    for name in ["c/p.txt", "q.jsonl", "plain", "broken"] {
        assert!(Command::new("mkfifo").arg(corpus.path(name)).status().unwrap().success());
    }
    let (files, notes) = corpus.found("c");
    assert_eq!(files, ["c/a.txt"]);
    has(&notes, &["p.txt", "pipe"]);
    has(&corpus.refused("q.jsonl"), &["q.jsonl", "pipe"]);
    let tokenizer = crate::support::repository("tests/data/wordpiece-8k.txt");
    let prepare = |input: &Path, stdin: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_elektron"))
            .args(["prepare", "--output"])
            .arg(corpus.path("shards"))
            .arg("--tokenizer")
            .arg(&tokenizer)
            .arg("--input")
            .arg(input)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (name, text) in [("q.jsonl", "{\"text\":\"one\"}\n{\"text\":\"two\"}\n"), ("plain", "one\n\ntwo\n")] {
        let path = corpus.path(name);
        let writer = std::thread::spawn(move || fs::write(path, text).unwrap());
        let (fine, messages) = prepare(&corpus.path(name), b"");
        writer.join().unwrap();
        assert!(fine, "{messages}");
        has(&messages, &["of 2 documents"]);
    }
    // Messages name the pipe, not the file that it was copied to.
    let gzipped = contents::gzip(b"one\n");
    let wide: Vec<u8> = "the man said\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let cases: [(&[u8], &[&str]); 5] = [
        (&gzipped, &["gzip", "`zcat`"]),
        (b"PAR1\x15\x04\x15\x10", &["Parquet", "instead of a pipe"]),
        (&wide, &["UTF-16BE", "`iconv -f UTF-16BE -t UTF-8`"]),
        (b"one\n\xff\xe9 two\n", &["line 2", "UTF-8"]),
        (b"\n", &["no text"]),
    ];
    for (bytes, words) in cases {
        let (fine, messages) = prepare(Path::new("-"), bytes);
        assert!(!fine && messages.contains("error: -") && !messages.contains("pipe-"), "{messages}");
        has(&messages, words);
    }
    let path = corpus.path("broken");
    let writer = std::thread::spawn(move || fs::write(path, gzipped).unwrap());
    let (fine, messages) = prepare(&corpus.path("broken"), b"");
    writer.join().unwrap();
    assert!(!fine);
    has(&messages, &[&format!("error: {}: ", corpus.path("broken").display()), "`zcat`"]);
    for input in ["-", "/dev/stdin"] {
        let (fine, messages) = prepare(Path::new(input), b"one\n\ntwo\n\nthree\n");
        assert!(fine, "{messages}");
        has(&messages, &["of 3 documents"]);
    }
    let (fine, messages) = prepare(Path::new("/dev/null"), b"");
    assert!(!fine);
    has(&messages, &["no text"]);
    let (fine, messages) = prepare(Path::new("/dev/zero"), b"");
    assert!(!fine);
    has(&messages, &["/dev/zero", "device"]);
}

#[cfg(target_os = "linux")]
#[test]
fn names_need_not_be_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let corpus = Corpus::new();
    corpus.files(&["c/a.txt"]);
    let name = OsStr::from_bytes(b"caf\xe9.txt");
    fs::write(corpus.path("c").join(name), "one more").unwrap();
    let folder = OsStr::from_bytes(b"c/\xe9t\xe9");
    fs::create_dir(corpus.0.path().join(folder)).unwrap();
    fs::write(corpus.0.path().join(folder).join(name), "and one").unwrap();
    assert_eq!(corpus.source("c").files().len(), 3);
    assert_eq!(corpus.source("c/**/caf*.txt").files().len(), 2);
    assert_eq!(read(&corpus.path("c").join(name)), Ok(vec!["one more".to_owned()]));
    let mut pretrain = Command::new(env!("CARGO_BIN_EXE_elektron"));
    let output = pretrain.args(["pretrain", "--output", "never", "--train"]).arg(name).output().unwrap();
    has(&String::from_utf8_lossy(&output.stderr), &["caf\u{fffd}.txt", "not UTF-8"]);
}

#[cfg(unix)]
#[test]
fn folders_that_cannot_be_read_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let corpus = Corpus::new();
    corpus.files(&["c/a.txt", "c/closed/b.txt"]);
    let closed = corpus.path("c/closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read everything.
    if fs::read_dir(&closed).is_err() {
        has(&corpus.refused("c"), &["c/closed", "denied"]);
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}
