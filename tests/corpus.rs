//! What a corpus may be: every format by an independent writer, damaged files, mixtures, held-out
//! documents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use elektron::data::loader::{Batching, Loader, LoaderSpec};
use elektron::data::mask::{MaskSpec, MaskStyle};
use elektron::data::pack::{Merge, Row, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::shard::Dataset;
use elektron::data::source::TextSource;
use elektron::data::split::{Part, default_share, split};
use elektron::data::tokenizer::Tokenizer;

use crate::support::repository;

#[cfg(feature = "parquet")]
mod columnar;

/// (text, opens document) of every paragraph, or the error's text.
type Paragraphs = Result<Vec<(String, bool)>, String>;

fn read_columns(path: &Path, columns: &[&str]) -> Paragraphs {
    let columns: Vec<String> = columns.iter().map(|&name| name.to_owned()).collect();
    let source = TextSource::new(&[path.to_str().unwrap()], &columns).map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    source
        .for_each(|p| {
            all.push((p.text.to_owned(), p.opens_document));
            Ok(())
        })
        .map_err(|e| e.to_string())?;
    Ok(all)
}

fn read(path: &Path) -> Paragraphs {
    read_columns(path, &["text"])
}

fn owned(of: &[(&str, bool)]) -> Vec<(String, bool)> {
    of.iter().map(|&(text, opens)| (text.to_owned(), opens)).collect()
}

fn refuse(found: Paragraphs, words: &[&str]) {
    let error = found.unwrap_err();
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn a_quotation_mark_that_is_never_closed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("u.csv");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let source = TextSource::new(&[&path], &["text".to_owned()]).unwrap();
        let mut texts = Vec::new();
        source
            .for_each(|p| {
                texts.push(p.text.to_owned());
                Ok(())
            })
            .map(|()| texts)
            .map_err(|e| e.to_string())
    };
    let error = read("n,text\n1,a\n2,\"b c\n3,d\n").unwrap_err();
    assert!(error.contains("u.csv, line 3") && error.contains("never closed"), "{error}");
    assert!(read("n,\"text\n1,a\n").unwrap_err().contains("never closed"));
    for whole in ["n,text\n1,\"a b\"\n2,c", "n,text\n1,\"a b\"\n2,c\n\n", "n,text\r\n1,\"a b\"\r\n2,c\r\n"] {
        assert_eq!(read(whole).unwrap(), ["a b", "c"], "{whole:?}");
    }
    assert_eq!(read("n,text\n1,\"a b\"\n2,\"c\"").unwrap(), ["a b", "c"]);
}

#[test]
fn other_separators_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text, words) in [
        ("a.csv", "id;text\n1;a row\n", &["`;`", "csv needs commas"][..]),
        ("a.csv", "\"id\";\"text\"\n\"1\";\"a row\"\n", &["`;`", "csv needs commas"]),
        ("a.csv", "id\ttext\n1\ta row\n", &["tabs", "csv needs commas", ".tsv"]),
        ("a.csv", "id|text\n1|a row\n", &["`|`", "csv needs commas"]),
        ("a.tsv", "id,text\n1,a row\n", &["commas", "tsv needs tabs", ".csv"]),
        ("a.csv", "id;body\n1;a row\n", &["`text`", "id;body", "--columns"]),
        ("a.csv", "id,n;text\n1,a row\n", &["`text`", "n;text", "--columns"]),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        refuse(read(&path), &[&[name, "line 1"], words].concat());
    }
}

#[test]
fn json_is_an_array_or_one_object_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let want = owned(&[("One.", true), ("Two.", false), ("Three.", true)]);
    let path = dir.path().join("a.json");
    for text in [
        "\u{feff}\n [ {\"text\": \"One.\\nTwo.\"},\n{\"text\": null},\n {\n\"id\": [1, {}], \"text\": \"Three.\"} ]\n",
        "{\"text\": \"One.\\nTwo.\"}\n{\"text\": \"Three.\"}\n",
        "{\n  \"text\": \"One.\\nTwo.\"\n}\n\n{\"text\":\n\"Three.\"}",
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(read(&path).unwrap(), want, "{text}");
    }
    for (text, words) in [
        ("[{\"title\": \"x\"}, {\"body\": 1}]", &["no record", "`text`", "title", "body"][..]),
        ("[{\"text\": \"x\"}, {\"text\": {}}]", &["object 2", "`text`"]),
        ("\n\n[{\"text\": \"x\"}\n, 7]", &["line 4", "array"]),
        ("[{\"text\": \"x\"}", &["line 1", "EOF"]),
        ("[{\"text\": \"x\"}] tail", &["trailing"]),
        ("{\"text\": \"x\"}\n{\"text\":", &["line 2"]),
        ("\"only text\"", &["line 1"]),
        ("[]", &["no text"]),
    ] {
        fs::write(&path, text).unwrap();
        refuse(read(&path), words);
    }
}

#[test]
fn tsv_quotes_nothing_and_markdown_is_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tsv");
    fs::write(&path, "id\ttext\n1\t\"One\" more\n2\t\"open\n").unwrap();
    assert_eq!(read(&path).unwrap(), owned(&[("\"One\" more", true), ("\"open", true)]));
    fs::write(&path, "id\ttext\n1\tone\ttoo many\n").unwrap();
    refuse(read(&path), &["a.tsv", "line 2", "tsv"]);
    let path = dir.path().join("a.md");
    fs::write(&path, "# Title\n\nText.\n").unwrap();
    assert_eq!(read(&path).unwrap(), owned(&[("# Title", true), ("Text.", true)]));
}

/// Files made by zstd, bzip2 and xz of two parts each, as parallel compressors write them, with a skippable frame.
#[test]
fn compressed_parts_follow_each_other() {
    let want = owned(&[("One.", true), ("Two.", false)]);
    for name in ["parts.txt.zst", "parts.txt.bz2", "parts.txt.xz"] {
        let path = repository("tests/fixtures/compressed").join(name);
        assert_eq!(read(&path).unwrap(), want, "{name}");
        let dir = tempfile::tempdir().unwrap();
        let bytes = fs::read(&path).unwrap();
        let cut = dir.path().join(name);
        for length in [1, 9, bytes.len() - 1] {
            fs::write(&cut, &bytes[..length]).unwrap();
            refuse(read(&cut), &[name]);
        }
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 0x55;
            fs::write(&cut, &other).unwrap();
            // A change in a skippable frame does no harm; any other is found.
            assert!(read(&cut).is_err() || name.ends_with("zst"), "{name}: byte {at}");
        }
    }
}

/// 65 MiB without an end are refused, not gathered.
#[test]
fn records_without_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, start) in [("a.csv.gz", "text\nfine\n\"open"), ("a.json.gz", "[{\"text\": \"open")] {
        let path = dir.path().join(name);
        let file = fs::File::create(&path).unwrap();
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gz.write_all(start.as_bytes()).unwrap();
        let block = vec![b'a'; 1 << 20];
        for _ in 0..65 {
            gz.write_all(&block).unwrap();
        }
        gz.finish().unwrap();
        refuse(read(&path), &[name, "64 MiB"]);
    }
}

fn vocabulary() -> Tokenizer {
    Tokenizer::load(&repository("tests/data/wordpiece-8k.txt")).unwrap()
}

/// Documents of a few paragraphs each; `word` tells them from those of another corpus.
fn documents(count: usize, word: &str) -> Vec<String> {
    (0..count)
        .map(|i| format!("{word} number {i} of them\nand {} more of that {word} {i}\n", i * 7919 % 1000))
        .collect()
}

struct Text {
    dir: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Text {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), tokenizer: vocabulary() }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn dataset(&self, source: &TextSource) -> Dataset {
        prepare(source, &self.tokenizer, &self.dir.path().join("shards"), &Spec::default(), |_| {}).unwrap()
    }

    fn of_files(&self, files: &[String]) -> Arc<Dataset> {
        Arc::new(self.dataset(&TextSource::new(files, &["text".to_owned()]).unwrap()))
    }

    fn rows(&self, parts: Vec<(Part, f64)>, merge: Merge, seq_len: usize) -> Rows {
        Rows::mixed(parts, self.tokenizer.special(), merge, seq_len, 5).unwrap()
    }

    fn loader(&self, batch_size: usize, seq_len: usize) -> LoaderSpec {
        let mask = MaskSpec {
            style: MaskStyle::Electra,
            probability: 0.15,
            vocab_size: self.tokenizer.vocab_size(),
            special: self.tokenizer.special(),
            seq_len,
        };
        LoaderSpec {
            batch_size,
            micro_batches: 1,
            batching: Batching::Continuous,
            seed: 5,
            mask,
            on_device: false,
        }
    }
}

/// Token ids of every document of a part.
fn token_documents(part: &Part) -> Vec<Vec<u32>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for paragraph in 0..part.paragraphs() {
        if part.opens_document(paragraph) {
            all.push(Vec::new());
        }
        part.copy_paragraph(paragraph, 0, usize::MAX, all.last_mut().unwrap());
    }
    all
}

#[test]
fn held_out_documents_are_a_function_of_their_text() {
    let text = Text::new();
    let mut all = documents(3000, "document");
    let one = text.write("one.txt", &all.join("\n"));
    // The same in another order, in two files, with copies.
    all.rotate_left(1234);
    all.swap(3, 777);
    let halves = [text.write("a.txt", &all[..1000].join("\n")), text.write("b.txt", &all[1000..].join("\n"))];
    let copies = text.write("copies.txt", &all[500..700].join("\n"));
    let (kept, held_out) = split(&text.of_files(&[one]), 0.1);
    let set = |part: &Part| token_documents(part).into_iter().collect::<BTreeSet<_>>();
    let (ours, theirs) = (set(&kept), set(&held_out));
    assert!(ours.is_disjoint(&theirs) && ours.len() + theirs.len() == 3000);
    assert!((240..360).contains(&theirs.len()), "{} of 3000, 300 expected", theirs.len());
    let (kept, held_out) = split(&text.of_files(&[halves[0].clone(), halves[1].clone(), copies]), 0.1);
    assert_eq!((set(&kept), set(&held_out)), (ours, theirs), "order, files and copies change nothing");
    let total = kept.tokens() + held_out.tokens();
    assert_eq!(kept.paragraphs() + held_out.paragraphs(), 2 * 3200);
    // More held out holds the same documents out, and others.
    let files = [halves[0].clone(), halves[1].clone()];
    let (_, more) = split(&text.of_files(&files), 0.2);
    let (whole, none) = split(&text.of_files(&files), 0.0);
    assert!(set(&held_out).is_subset(&set(&more)));
    assert!(whole.tokens() < total && none.paragraphs() == 0);
    assert_eq!(default_share(399, 1_000_000), 0.0);
    assert_eq!(default_share(400, 100_000), 0.005);
    approx::assert_relative_eq!(default_share(1 << 30, 1 << 40) * 2f64.powi(20), 1.0, max_relative = 1e-9);
}

/// Rows of a part are those of a corpus that never had the other documents.
#[test]
fn parts_are_packed_as_if_the_rest_did_not_exist() {
    let text = Text::new();
    let all = documents(500, "document");
    let (kept, held_out) = split(&text.of_files(&[text.write("all.txt", &all.join("\n"))]), 0.3);
    let spoken = |part: &Part| {
        let of: BTreeSet<Vec<u32>> = token_documents(part).into_iter().collect();
        let keep = |document: &&String| {
            let ids: Vec<u32> = document.lines().flat_map(|l| text.tokenizer.encode(l).unwrap()).collect();
            of.contains(&ids)
        };
        all.iter().filter(keep).cloned().collect::<Vec<_>>().join("\n")
    };
    for (name, part) in [("kept.txt", kept), ("held-out.txt", held_out)] {
        let alone = text.of_files(&[text.write(name, &spoken(&part))]);
        for merge in [Merge::Concat, Merge::Pack, Merge::None, Merge::Segments] {
            let got = text.rows(vec![(part.clone(), 1.0)], merge, 32);
            let want = text.rows(vec![(Part::whole(alone.clone()), 1.0)], merge, 32);
            assert_eq!(got.len(), want.len(), "{merge:?}");
            assert!((0..got.len()).all(|i| got.row(i) == want.row(i)), "{merge:?}");
        }
    }
}

/// How often each row of `rows` is visited in an epoch.
fn visits(rows: &Rows, epoch: u32) -> BTreeMap<Vec<u32>, usize> {
    let mut counts = BTreeMap::new();
    for place in 0..rows.len() {
        *counts.entry(rows.visit(epoch, place).ids).or_insert(0) += 1;
    }
    counts
}

#[test]
fn a_mixture_visits_each_corpus_by_its_weight() {
    let text = Text::new();
    let weights = [("twice", 2.0), ("once", 1.0), ("quarter", 0.25), ("half", 1.5), ("never", 0.0)];
    let corpora: Vec<(Part, f64)> = weights
        .iter()
        .map(|(name, weight)| {
            let path = text.write(&format!("{name}.txt"), &documents(100, name).join("\n"));
            (Part::whole(text.of_files(&[path])), *weight)
        })
        .collect();
    let alone: Vec<BTreeSet<Vec<u32>>> = corpora
        .iter()
        .map(|(part, _)| {
            let rows = text.rows(vec![(part.clone(), 1.0)], Merge::None, 64);
            (0..rows.len()).map(|i| rows.row(i).ids).collect()
        })
        .collect();
    let rows = text.rows(corpora, Merge::None, 64);
    assert_eq!(rows.len(), 400 + 200 + 50 + 300);
    let epochs: Vec<_> = (0..4).map(|epoch| visits(&rows, epoch)).collect();
    for epoch in &epochs {
        let of = |which: usize| alone[which].iter().map(|row| epoch.get(row).copied().unwrap_or(0));
        assert!(of(0).all(|n| n == 2) && of(1).all(|n| n == 1) && of(4).all(|n| n == 0));
        assert!(of(2).all(|n| n <= 1) && of(2).sum::<usize>() == 50);
        assert!(of(3).all(|n| n == 1 || n == 2) && of(3).sum::<usize>() == 300);
    }
    let over = |which: usize, epochs: &[BTreeMap<Vec<u32>, usize>]| -> BTreeSet<usize> {
        let times = |row| epochs.iter().map(|epoch| epoch.get(row).copied().unwrap_or(0)).sum();
        alone[which].iter().map(times).collect()
    };
    assert_eq!(over(2, &epochs), [1].into(), "four quarters are the whole");
    assert_eq!(over(3, &epochs[..2]), [3].into(), "two and a half... and a half");
    assert_ne!(epochs[0], epochs[1], "another epoch, other quarters");
    assert_eq!(epochs[1], visits(&rows, 1), "a function of the epoch");
}

#[test]
fn mixed_batches_resume_and_do_not_depend_on_ranks() {
    let text = Text::new();
    let part = |name: &str, count| {
        let path = text.write(&format!("{name}.txt"), &documents(count, name).join("\n"));
        Part::whole(text.of_files(&[path]))
    };
    let rows = Arc::new(text.rows(vec![(part("a", 40), 0.7), (part("b", 9), 3.2)], Merge::Segments, 32));
    let spec = text.loader(4, 32);
    let mut straight = Loader::new(rows.clone(), spec, 0);
    let all: Vec<_> = (0..60).map(|_| straight.next_batch().unwrap()).collect();
    let mut resumed = Loader::new(rows.clone(), spec, 41);
    assert!(all[41..].iter().all(|want| resumed.next_batch().unwrap() == *want));
    // Two ranks of two rows each see what one of four sees.
    let half = LoaderSpec { batch_size: 2, micro_batches: 2, ..spec };
    for (step, want) in all.iter().enumerate() {
        let halves = [0, 1].map(|rank| half.training_batch(&rows, step as u64, rank));
        assert_eq!([&halves[0].ids[..], &halves[1].ids].concat(), want.ids, "step {step}");
        assert_eq!([&halves[0].masked_ids[..], &halves[1].masked_ids].concat(), want.masked_ids);
    }
}

#[test]
fn a_weight_of_one_changes_nothing() {
    let text = Text::new();
    let path = text.write("one.txt", &documents(60, "document").join("\n"));
    let manifest = text.write("mix.manifest", "path,weight\none.txt,1\n");
    let columns = ["text".to_owned()];
    let mixture = TextSource::mixture(&[manifest], &columns).unwrap();
    let spec = text.loader(4, 32);
    let parts = mixture.iter().map(|(source, weight)| (text.dataset(source).into(), *weight)).collect();
    let mixed = text.rows(parts, Merge::Segments, 32);
    let plain = Rows::new(
        text.dataset(&TextSource::new(&[path], &columns).unwrap()),
        text.tokenizer.special(),
        Merge::Segments,
        32,
        5,
    )
    .unwrap();
    assert!((0..50).all(|step| spec.training_batch(&mixed, step, 0) == spec.training_batch(&plain, step, 0)));
    assert_eq!(mixed.row(0), Row { ..plain.row(0) });
}

#[test]
fn manifests_name_corpora_with_weights() {
    let text = Text::new();
    for name in ["books/one.txt", "books/two.md", "news/1.txt", "news/2.txt", "more.txt"] {
        text.write(name, name);
    }
    let manifest = text
        .write("corpus.manifest", "path, weight\n# much read\nbooks, 2\nnews/*.txt, 0.5\n\"more.txt\", 0\n");
    let more = text.dir.path().join("more.txt").to_str().unwrap().to_owned();
    let columns = ["text".to_owned()];
    let mixture = TextSource::mixture(&[manifest.clone(), more], &columns).unwrap();
    let names = |source: &TextSource| -> Vec<String> {
        let relative =
            |path: &PathBuf| path.strip_prefix(text.dir.path()).unwrap().to_str().unwrap().to_owned();
        source.files().iter().map(relative).collect()
    };
    let found: Vec<_> = mixture.iter().map(|(source, weight)| (names(source), *weight)).collect();
    let strings = |of: &[&str]| of.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
    let want = [
        (strings(&["more.txt"]), 1.0),
        (strings(&["books/one.txt", "books/two.md"]), 2.0),
        (strings(&["news/1.txt", "news/2.txt"]), 0.5),
    ];
    assert_eq!(found, want);
    assert_eq!(TextSource::new(&[&manifest], &columns).unwrap().files().len(), 4, "weights do not matter");
    for (lines, words) in [
        ("file,weight\nbooks,1\n", &["line 1", "path,weight"][..]),
        ("path,weight\nbooks,much\n", &["line 2", "weight"]),
        ("path,weight\nbooks,-1\n", &["line 2", "-1"]),
        ("path,weight\nbooks\n", &["line 2"]),
        ("path,weight\nbooks,0\n", &["above 0"]),
        ("path,weight\nnothing.txt,1\n", &["nothing.txt", "no such file"]),
        ("path,weight\ncorpus.manifest,1\n", &["line 2", "no other manifest"]),
    ] {
        let path = text.write("bad.manifest", lines);
        let error = TextSource::mixture(&[&path], &columns).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in: {error}"));
    }
}
