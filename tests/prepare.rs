//! Preparing text: shards that are reused, made again and continued after a kill; duplicates.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use elektron::data::dedup::Dedup;
use elektron::data::prepare::{Progress, Spec, prepare};
use elektron::data::shard::{Dataset, Shard};
use elektron::data::source::TextSource;
use elektron::data::tokenizer::Tokenizer;
use elektron::rng::{Philox, Site};
use tempfile::TempDir;

use crate::support::repository;

mod frequencies;
mod vocabulary;

fn vocabulary() -> Tokenizer {
    Tokenizer::load(&repository("tests/data/wordpiece-8k.txt")).unwrap()
}

fn book() -> String {
    fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap()
}

/// Documents of eight lines drawn from the book.
fn documents(range: std::ops::Range<usize>) -> String {
    let book = book();
    let lines: Vec<&str> = book.lines().filter(|line| !line.trim().is_empty()).collect();
    // With this seed no two documents happen to share their longest lines: duplicates are those that the tests repeat.
    let line = |i: usize| lines[Philox::new(12).word(i as u32, 0, Site(0), 0) as usize % lines.len()];
    let document = |i: usize| {
        format!("Number {i}.\n{}\n\n", [0, 1, 2, 3, 4, 5, 6, 7].map(|j| line(8 * i + j)).join("\n"))
    };
    range.map(document).collect()
}

struct Place {
    dir: TempDir,
    tokenizer: Tokenizer,
    spec: Spec,
}

impl Place {
    fn new(spec: Spec) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), tokenizer: vocabulary(), spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        if name.ends_with(".gz") {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(&bytes).unwrap();
            bytes = gz.finish().unwrap();
        }
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Prepares files into `shards`.
    fn prepare(&self, files: &[&str], shards: &str) -> elektron::Result<(Dataset, Progress)> {
        let paths: Vec<String> = files.iter().map(|f| self.path(f).to_str().unwrap().to_owned()).collect();
        let source = TextSource::new(&paths, &["text".to_owned()])?;
        let mut last = Progress::default();
        let dataset = prepare(&source, &self.tokenizer, &self.path(shards), &self.spec, |p| last = p)?;
        assert_eq!((last.files, last.source_bytes), (files.len(), last.source_total));
        Ok((dataset, last))
    }
}

/// Every shard of a directory.
fn shards(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|e| e == "tokens"))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect()
}

fn tokens(dataset: &Dataset) -> Vec<(Vec<u32>, bool)> {
    (0..dataset.paragraphs())
        .map(|p| {
            let mut ids = Vec::new();
            dataset.copy_paragraph(p, 0, usize::MAX, &mut ids);
            (ids, dataset.opens_document(p))
        })
        .collect()
}

fn spec(dedup: Dedup) -> Spec {
    Spec { dedup, shard_bytes: 64 << 10 }
}

#[test]
fn shards_hold_what_the_tokenizer_says() {
    let place = Place::new(spec(Dedup::None));
    place.write("a.txt", &documents(0..600));
    let (dataset, progress) = place.prepare(&["a.txt"], "shards").unwrap();
    let source = TextSource::new(&[place.path("a.txt").to_str().unwrap()], &[]).unwrap();
    let mut want = Vec::new();
    source
        .for_each(|p| {
            want.push((place.tokenizer.encode(p.text)?, p.opens_document));
            Ok(())
        })
        .unwrap();
    assert_eq!(tokens(&dataset), want);
    assert_eq!(dataset.documents(), 600);
    assert_eq!(dataset.tokens(), want.iter().map(|(ids, _)| ids.len()).sum::<usize>());
    assert!(dataset.shards() > 4, "{} shards", dataset.shards());
    assert_eq!(progress.bytes, dataset.text_bytes());
}

#[test]
fn shards_are_reused_and_remade() {
    let place = Place::new(spec(Dedup::None));
    let text = documents(0..300);
    place.write("a.txt", &text);
    let (dataset, _) = place.prepare(&["a.txt"], "shards").unwrap();
    let (count, all) = (dataset.shards(), shards(&place.path("shards")));
    assert!(count >= 3);
    let reused = |file: &str| {
        let (dataset, progress) = place.prepare(&[file], "shards").unwrap();
        assert_eq!(progress.files_reused, usize::from(progress.bytes == 0));
        (progress.shards_reused, dataset.shards())
    };
    assert_eq!(reused("a.txt"), (count, count));
    // The same text elsewhere, under another name or compressed, is the same text.
    place.write("copy.txt", &text);
    place.write("copy.txt.gz", &text);
    assert_eq!(reused("copy.txt"), (count, count));
    assert_eq!(reused("copy.txt.gz"), (count, count));
    // A change of the same length, in one shard and with the old time, is seen; what stands before it is reused.
    let time = fs::metadata(place.path("a.txt")).unwrap().modified().unwrap();
    let at = text.rfind("Number 2").unwrap();
    place.write("a.txt", &format!("{}Wumber 2{}", &text[..at], &text[at + 8..]));
    fs::File::options().write(true).open(place.path("a.txt")).unwrap().set_modified(time).unwrap();
    let (before, now) = reused("a.txt");
    assert!(before > 0 && before < count && now == count, "{before} of {now} shards reused");
    place.write("a.txt", &text);
    // More text at the end: only the last shard is made again.
    place.write("longer.txt", &(text.clone() + &documents(300..310)));
    assert_eq!(reused("longer.txt").0, count - 1);
    // Damage is found wherever it is, and mended; the other shards stay.
    let names: Vec<&String> = all.keys().collect();
    for (name, bytes) in [(names[0], &all[names[0]]), (names[count - 1], &all[names[count - 1]])] {
        let path = place.path("shards").join(name);
        let mut wrong: Vec<Vec<u8>> = [0, 7, 255, 256, bytes.len() - 1].map(|n| bytes[..n].to_vec()).to_vec();
        for at in [8, 12, 16, 23, 60, 100, 250, 256, bytes.len() / 2, bytes.len() - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            wrong.push(other);
        }
        for (i, wrong) in wrong.iter().enumerate() {
            fs::write(&path, wrong).unwrap();
            assert!(Shard::verify(&path).is_err(), "damage {i}");
            assert_eq!(Shard::open(&path).is_err(), i < 12, "the header and the length are always checked");
            assert_eq!(reused("a.txt"), (count - 1, count), "damage {i}");
            assert_eq!(&fs::read(&path).unwrap(), bytes);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(reused("a.txt"), (count - 1, count));
    }
}

#[test]
fn the_index_spares_reading() {
    let place = Place::new(spec(Dedup::Minhash));
    place.write("a.txt", &documents(0..100));
    place.write("b.txt", &documents(50..200));
    let prepare = || {
        let paths = ["a.txt", "b.txt"].map(|f| place.path(f).to_str().unwrap().to_owned());
        let source = TextSource::new(&paths, &["text".to_owned()]).unwrap();
        let dataset = elektron::data::prepare::prepare(
            &source,
            &place.tokenizer,
            &place.path("shards"),
            &place.spec,
            |_| {},
        )
        .unwrap();
        (source.bytes_read(), tokens(&dataset), dataset.dropped())
    };
    let first = prepare();
    assert!(first.0 > 0);
    // A file this young may change without showing it: it has to be read once more when it is older.
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(prepare().1, first.1);
    assert_eq!(prepare(), (0, first.1.clone(), first.2));
    place.write("b.txt", &documents(50..201));
    let (read, now, dropped) = prepare();
    assert!(read > 0 && now.len() > first.1.len());
    assert_eq!(dropped, first.2);
    // A torn index is as good as none.
    let index = place.path("shards/index.jsonl");
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(prepare().1, now);
    fs::write(&index, b"\xff\n{}\n").unwrap();
    assert_eq!(prepare().1, now);
}

/// A line that is not UTF-8 stops the preparation in the middle; mended, it goes on to the same bytes.
#[test]
fn a_stopped_preparation_is_continued_to_the_same_bytes() {
    for (dedup, ending) in [(Dedup::None, "txt"), (Dedup::Exact, "txt.gz"), (Dedup::Minhash, "txt")] {
        let place = Place::new(spec(dedup));
        let (first, second) = (documents(0..150), documents(100..500) + &documents(0..40));
        let names = [format!("a.{ending}"), format!("b.{ending}")];
        let files = [names[0].as_str(), names[1].as_str()];
        let (straight, stopped) = (format!("straight.{ending}"), format!("stopped.{ending}"));
        place.write(files[0], &first);
        place.write(files[1], &second);
        let (want, progress) = place.prepare(&files, &straight).unwrap();
        assert_eq!(progress.shards_reused, 0);
        for cut in [second.len() / 3, 2 * second.len() / 3] {
            let cut = second[..cut].rfind('\n').unwrap();
            let mut broken = second.as_bytes()[..cut].to_vec();
            broken.extend(b"\n\xff\n");
            if ending == "txt" {
                fs::write(place.path(files[1]), broken).unwrap();
            } else {
                let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gz.write_all(&broken).unwrap();
                fs::write(place.path(files[1]), gz.finish().unwrap()).unwrap();
            }
            let error = place.prepare(&files, &stopped).err().unwrap().to_string();
            assert!(error.contains(files[1]) && error.contains("UTF-8"), "{error}");
        }
        let there = shards(&place.path(&stopped)).len();
        place.write(files[1], &second);
        let (dataset, progress) = place.prepare(&files, &stopped).unwrap();
        assert!(there > 3 && progress.shards_reused == there && there < dataset.shards(), "{there} there");
        assert_eq!(shards(&place.path(&stopped)), shards(&place.path(&straight)), "{dedup:?} {ending}");
        assert_eq!(tokens(&dataset), tokens(&want));
        let dropped = match dedup {
            Dedup::None => 0,
            _ => 90,
        };
        assert_eq!((dataset.dropped(), dataset.documents()), (dropped, 590 - dropped));
    }
}

/// The program itself, killed again and again.
#[test]
fn a_killed_preparation_is_continued_to_the_same_bytes() {
    let place = Place::new(Spec { dedup: Dedup::Exact, shard_bytes: 1 << 20 });
    let text = documents(0..3_000) + &documents(300..600);
    assert!(text.len() > 5 << 20, "{}", text.len());
    place.write("a.txt.gz", &text);
    place.prepare(&["a.txt.gz"], "straight").unwrap();
    let want = shards(&place.path("straight"));
    assert!(want.len() >= 5);
    let stopped = place.path("stopped");
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_elektron"))
            .args(["prepare", "--dedup", "exact", "--shard-mib", "1", "--threads", "2", "--tokenizer"])
            .arg(repository("tests/data/wordpiece-8k.txt"))
            .args(["--input".as_ref(), place.path("a.txt.gz").as_os_str()])
            .args(["--output".as_ref(), stopped.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let there = || if stopped.is_dir() { shards(&stopped).len() } else { 0 };
    let kill = |at: usize| {
        let (mut child, began) = (start(), Instant::now());
        while there() < at && child.try_wait().unwrap().is_none() {
            assert!(began.elapsed().as_secs() < 120);
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // On a busy machine the kill may come when everything is done: then once more.
        let in_the_middle = there() < want.len();
        if !in_the_middle {
            fs::remove_dir_all(&stopped).unwrap();
        }
        in_the_middle
    };
    for at in [1, 3] {
        assert!((0..5).any(|_| kill(at)), "always killed too late");
    }
    let before = there();
    let out = start().wait_with_output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{said}");
    assert!(said.contains(&format!("{} shards, {before} of them there", want.len())), "{said}");
    assert!(said.contains("dropped 300 duplicate documents"), "{said}");
    assert_eq!(said.contains("peak memory"), cfg!(target_os = "linux"), "{said}");
    assert_eq!(shards(&stopped), want);
    let left = fs::read_dir(&stopped)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".writing"));
    assert_eq!(left.count(), 0, "what the killed processes left is cleared away");
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let place = Place::new(spec(Dedup::Minhash));
    place.write("a.txt", &(documents(0..400) + &documents(200..300)));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (dataset, _) = pool.install(|| place.prepare(&["a.txt"], &threads.to_string())).unwrap();
        assert_eq!(dataset.dropped(), 100);
    }
    assert_eq!(shards(&place.path("1")), shards(&place.path("3")));
}

#[test]
fn duplicates_are_dropped_and_near_ones_by_minhash_alone() {
    let original = documents(0..60);
    let near = original.replace("Number", "The number");
    let spaced = original.to_uppercase().replace(' ', "  ");
    for (dedup, kept) in [(Dedup::None, 240), (Dedup::Exact, 120), (Dedup::Minhash, 60)] {
        let place = Place::new(Spec { dedup, ..Spec::default() });
        for (name, text) in [("a.txt", &original), ("b.txt", &near), ("c.txt", &spaced), ("d.txt", &near)] {
            place.write(name, text);
        }
        let files = ["a.txt", "b.txt", "c.txt", "d.txt"];
        let (dataset, _) = place.prepare(&files, "shards").unwrap();
        let found = dataset.documents();
        let within = if dedup == Dedup::Minhash { 60..=66 } else { kept..=kept };
        assert!(within.contains(&found), "{dedup:?}: {found} of 240 kept");
        assert_eq!(dataset.dropped() + found, 240);
        let original = tokens(&place.prepare(&["a.txt"], "alone").unwrap().0);
        assert_eq!(tokens(&dataset)[..original.len()], original, "the first of equal ones stays");
        let (again, progress) = place.prepare(&files, "shards").unwrap();
        assert_eq!((again.dropped(), progress.files_reused), (dataset.dropped(), 4));
        // Other text before: other duplicates.
        let (turned, _) = place.prepare(&["b.txt", "a.txt"], "shards").unwrap();
        assert_eq!(turned.dropped(), if dedup == Dedup::Minhash { 120 - turned.documents() } else { 0 });
    }
}

#[test]
fn long_documents_are_cut_and_not_compared() {
    // A document of more than 4 MiB in two long lines, twice.
    let line = "It is a capital mistake to theorize before one has data. ";
    let lines = (5 << 19) / line.len();
    let long_line = line.repeat(lines);
    let text = format!("{long_line}\n{long_line}\n\n{long_line}\n{long_line}\n");
    let place = Place::new(Spec { dedup: Dedup::Exact, ..Spec::default() });
    place.write("a.txt", &text);
    let (dataset, _) = place.prepare(&["a.txt"], "shards").unwrap();
    assert_eq!((dataset.documents(), dataset.dropped(), dataset.too_long()), (2, 0, 2));
    let (mut got, mut want) = (Vec::new(), Vec::new());
    dataset.copy_paragraph(2, 0, usize::MAX, &mut got);
    let one = place.tokenizer.encode(line).unwrap();
    (0..lines).for_each(|_| want.extend_from_slice(&one));
    assert!(got == want, "a long paragraph is tokenized in parts to the same tokens");
}

#[test]
fn a_second_process_waits() {
    let place = Place::new(spec(Dedup::None));
    place.write("a.txt", &documents(0..20));
    fs::create_dir(place.path("shards")).unwrap();
    let lock = fs::File::create(place.path("shards/.lock")).unwrap();
    lock.lock().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_elektron"))
        .args(["prepare", "--tokenizer"])
        .arg(repository("tests/data/wordpiece-8k.txt"))
        .args(["--input".as_ref(), place.path("a.txt").as_os_str()])
        .args(["--output".as_ref(), place.path("shards").as_os_str()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let (mut first, mut rest) = (String::new(), String::new());
    said.read_line(&mut first).unwrap();
    assert!(first.contains("waiting for another process"), "{first}");
    assert!(child.try_wait().unwrap().is_none());
    lock.unlock().unwrap();
    said.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success() && rest.contains("20 documents"), "{rest}");
}

#[test]
fn progress_tells_the_time_left() {
    let p = Progress {
        source_bytes: 600,
        source_total: 1000,
        source_done: 100,
        bytes: 300,
        seconds: 2.0,
        ..Progress::default()
    };
    assert_eq!(p.bytes_per_second(), 150.0);
    assert_eq!(p.seconds_left(), 8.0, "500 bytes were passed by in no time");
}

#[test]
fn a_run_goes_on_with_the_duplicates_it_began_with() {
    use elektron::config::{RunConfig, Settings};
    let config = |dedup| {
        let (train, output) = (Some(vec!["a.txt".to_owned()]), Some("out".into()));
        RunConfig::resolve(Settings { train, output, dedup, ..Settings::default() }).unwrap()
    };
    let minhash = config(Some(Dedup::Minhash));
    minhash.continued_as(&minhash).unwrap();
    let error = config(None).continued_as(&minhash).unwrap_err().to_string();
    assert!(error.contains("dedup") && error.contains("minhash"), "{error}");
}
