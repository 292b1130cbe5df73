//! Sources, tokenizers, shards, packing, masking and the loader.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use elektron::data::loader::{Batching, LoaderSpec};
use elektron::data::mask::{MaskSpec, MaskStyle};
use elektron::data::order::shuffled;
use elektron::data::pack::{Merge, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::shard::Dataset;
use elektron::data::source::TextSource;
use elektron::data::tokenizer::{Tokenizer, TrainSpec};
use elektron::rng::Philox;
use tempfile::TempDir;

use crate::support::repository;

fn columns() -> Vec<String> {
    vec!["text".to_owned()]
}

fn write(dir: &TempDir, name: &str, bytes: &[u8]) -> String {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// (text, opens document) of every paragraph, or the error's text.
fn read(path: &str) -> Result<Vec<(String, bool)>, String> {
    let source = TextSource::new(&[path], &columns()).map_err(|e| e.to_string())?;
    let mut all = Vec::new();
    source
        .for_each(|p| {
            all.push((p.text.to_owned(), p.opens_document));
            Ok(())
        })
        .map_err(|e| e.to_string())?;
    Ok(all)
}

fn paragraphs(of: &[(&str, bool)]) -> Vec<(String, bool)> {
    of.iter().map(|&(text, opens)| (text.to_owned(), opens)).collect()
}

fn vocabulary() -> Tokenizer {
    Tokenizer::load(&repository("tests/data/wordpiece-8k.txt")).unwrap()
}

fn book(lines: usize) -> String {
    let text = fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
    text.lines().take(lines).map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_format_and_compression_gives_the_same_paragraphs() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\u{feff}One.\nTwo.\n\n  \nThree.\n";
    let want = paragraphs(&[("One.", true), ("Two.", false), ("Three.", true)]);
    assert_eq!(read(&write(&dir, "a.txt", text.as_bytes())).unwrap(), want);
    assert_eq!(read(&write(&dir, "crlf.txt", text.replace('\n', "\r\n").as_bytes())).unwrap(), want);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    assert_eq!(read(&write(&dir, "a.txt.gz", &gz.finish().unwrap())).unwrap(), want);
    let zst = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    assert_eq!(read(&write(&dir, "a.txt.zst", &zst)).unwrap(), want);
    let csv = "id,text\n1,\"One.\nTwo.\"\n2,\"Three.\"\n3,\n";
    assert_eq!(read(&write(&dir, "a.csv", csv.as_bytes())).unwrap(), want);
    let jsonl = "{\"text\":\"One.\\nTwo.\"}\n\n{\"id\":2,\"text\":\"Three.\"}\n{\"text\":null}\n";
    assert_eq!(read(&write(&dir, "a.jsonl", jsonl.as_bytes())).unwrap(), want);
}

#[test]
fn folders_and_globs_are_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    for (name, text) in [("b.txt", "b"), ("a.txt", "a"), ("sub/c.txt", "c"), ("page.html", "no")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let folder = read(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(folder, paragraphs(&[("a", true), ("b", true), ("c", true)]));
    let glob = read(dir.path().join("[ab].*").to_str().unwrap()).unwrap();
    assert_eq!(glob, paragraphs(&[("a", true), ("b", true)]));
    let all = read(dir.path().join("**/{c,a}.*").to_str().unwrap()).unwrap();
    assert_eq!(all, paragraphs(&[("a", true), ("c", true)]));
}

#[test]
fn bad_sources_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |name: &str, bytes: &[u8], words: &[&str]| {
        let error = read(&write(&dir, name, bytes)).unwrap_err();
        for word in words.iter().chain(&[name]) {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    };
    refuse("latin.txt", b"fine\ncaf\xe9\n", &["line 2", "UTF-8"]);
    refuse("empty.txt", b"\n \n", &["no text"]);
    refuse("other.csv", b"id,body\n1,x\n", &["line 1", "`text`", "body", "--columns"]);
    refuse("ragged.csv", b"id,text\n1,x\n2\n", &["line 3"]);
    refuse("broken.jsonl", b"{\"text\":\"x\"}\n{\"text\":", &["line 2", "JSON"]);
    refuse("field.jsonl", b"{\"body\":\"x\"}\n", &["no record", "`text`", "body"]);
    refuse("number.jsonl", b"{\"text\":3}\n", &["line 1", "neither a string"]);
    refuse("cut.txt.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x0b", &["copy it again"]);
    refuse("no.txt.zst", b"plain", &["Zstandard"]);
    refuse("page.html", b"x", &[".jsonl"]);
    assert!(read("/nonexistent/file.txt").unwrap_err().contains("no such file"));
    assert!(read(dir.path().join("*.nothing").to_str().unwrap()).unwrap_err().contains("glob"));
}

#[test]
fn tokenization_equals_transformers() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    let text = fs::read_to_string(repository("tests/fixtures/tokenizer_cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let from_vocab = vocabulary();
    from_vocab.save(dir.path(), 128).unwrap();
    let from_directory = Tokenizer::load(dir.path()).unwrap();
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let from_saved_vocab = Tokenizer::load(dir.path()).unwrap();
    assert!(cases.len() > 10);
    for case in &cases {
        for tokenizer in [&from_vocab, &from_directory, &from_saved_vocab] {
            assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{}", case.text);
        }
    }
    assert_eq!(from_vocab.hash().unwrap(), from_directory.hash().unwrap());
}

#[test]
fn a_vocabulary_is_a_function_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let source = TextSource::new(&[write(&dir, "book.txt", book(150).as_bytes())], &columns()).unwrap();
    let spec = TrainSpec { vocab_size: 600, ..TrainSpec::default() };
    let first = Tokenizer::train(&source, &spec).unwrap();
    assert_eq!(first.vocab_size(), 600);
    assert_eq!(first.special().all(), [0, 1, 2, 3, 4]);
    for _ in 0..3 {
        assert_eq!(Tokenizer::train(&source, &spec).unwrap().hash().unwrap(), first.hash().unwrap());
    }
    let ids = first.encode("The man and the woman").unwrap();
    assert!(!ids.contains(&first.special().unk));
    assert_eq!(ids[0], ids[3], "`The` and `the` are one token in lower case");
}

#[test]
fn bad_tokenizers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |name: &str, text: &str, words: &[&str]| {
        let path = write(&dir, name, text.as_bytes());
        let Err(error) = Tokenizer::load(Path::new(&path)) else { panic!("{name} was accepted") };
        let error = error.to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in: {error}"));
    };
    refuse("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", &["vocab.txt", "[MASK]"]);
    refuse("empty.txt", "", &["empty.txt", "empty"]);
    refuse("tokenizer.json", "{}", &["tokenizer.json"]);
    assert!(Tokenizer::load(Path::new("/nonexistent")).err().unwrap().to_string().contains("vocab.txt"));
}

struct Corpus {
    dir: TempDir,
    source: TextSource,
    tokenizer: Tokenizer,
}

impl Corpus {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = write(&dir, "corpus.txt", text.as_bytes());
        let source = TextSource::new(&[path], &columns()).unwrap();
        Self { dir, source, tokenizer: vocabulary() }
    }

    fn shards(&self) -> PathBuf {
        self.dir.path().join("shards")
    }

    fn dataset(&self) -> Dataset {
        prepare(&self.source, &self.tokenizer, &self.shards(), &Spec::default(), |_| {}).unwrap()
    }

    fn rows(&self, merge: Merge, seq_len: usize) -> Rows {
        Rows::new(self.dataset(), self.tokenizer.special(), merge, seq_len, 7).unwrap()
    }

    /// Ids of every paragraph, by the tokenizer itself.
    fn paragraphs(&self) -> Vec<Vec<u32>> {
        let mut all = Vec::new();
        self.source
            .for_each(|p| {
                all.push(self.tokenizer.encode(p.text)?);
                Ok(())
            })
            .unwrap();
        all
    }
}

#[test]
fn concat_chains_framed_paragraphs() {
    let corpus = Corpus::new(&book(90));
    let special = corpus.tokenizer.special();
    let mut chain = Vec::new();
    for paragraph in corpus.paragraphs() {
        chain.push(special.cls);
        chain.extend(paragraph);
        chain.push(special.sep);
    }
    for seq_len in [8, 13, 128] {
        let rows = corpus.rows(Merge::Concat, seq_len);
        assert_eq!(rows.len(), chain.len() / seq_len);
        for (i, want) in chain.chunks_exact(seq_len).enumerate() {
            assert_eq!(rows.row(i).ids, want, "row {i}");
        }
    }
}

#[test]
fn none_and_pack_keep_paragraphs_whole() {
    let corpus = Corpus::new(&book(200));
    let special = corpus.tokenizer.special();
    let framed = |p: &Vec<u32>| [&[special.cls], &p[..p.len().min(62)], &[special.sep]].concat();
    let want: Vec<Vec<u32>> = corpus.paragraphs().iter().map(framed).collect();
    let rows = corpus.rows(Merge::None, 64);
    assert_eq!((0..rows.len()).map(|i| rows.row(i).ids).collect::<Vec<_>>(), want);
    let packed = corpus.rows(Merge::Pack, 64);
    let mut found = Vec::new();
    for i in 0..packed.len() {
        let row = packed.row(i).ids;
        assert!(row.len() <= 64);
        found.extend(row.split_inclusive(|&id| id == special.sep).map(<[u32]>::to_vec));
    }
    assert!(packed.len() < rows.len());
    let sorted = |mut x: Vec<Vec<u32>>| {
        x.sort();
        x
    };
    assert_eq!(sorted(found), sorted(want), "every paragraph once");
}

#[test]
fn segments_cover_documents_without_crossing_them() {
    let corpus = Corpus::new(&book(400));
    let special = corpus.tokenizer.special();
    let rows = corpus.rows(Merge::Segments, 64);
    let (mut pairs, mut alone) = (0, 0);
    for i in 0..rows.len() {
        let row = rows.row(i);
        assert!(row.ids.len() <= 64 && row.ids.len() == row.types.len());
        assert_eq!((row.ids[0], row.ids[row.ids.len() - 1]), (special.cls, special.sep));
        let seps = row.ids.iter().filter(|&&id| id == special.sep).count();
        let first_sep = row.ids.iter().position(|&id| id == special.sep).unwrap();
        assert!(
            row.types[..=first_sep].iter().all(|&t| t == 0)
                && row.types[first_sep + 1..].iter().all(|&t| t == 1)
        );
        match seps {
            1 => alone += 1,
            2 => pairs += 1,
            _ => panic!("{seps} segments"),
        }
        assert_eq!(rows.row(i), row, "a row is a function of its number");
    }
    assert!(pairs > 0 && alone > 0, "{pairs} pairs, {alone} alone");
}

fn mask_spec(style: MaskStyle, tokenizer: &Tokenizer) -> MaskSpec {
    MaskSpec {
        style,
        probability: 0.15,
        vocab_size: tokenizer.vocab_size(),
        special: tokenizer.special(),
        seq_len: 128,
    }
}

/// Whether `hits` of `n` is within four and a half standard deviations of probability `p`.
fn likely(hits: usize, n: usize, p: f64) -> bool {
    let (hits, n) = (hits as f64, n as f64);
    (hits - n * p).abs() < 4.5 * (n * p * (1.0 - p)).sqrt()
}

#[test]
fn masks_follow_their_rules() {
    let corpus = Corpus::new(&book(400));
    let special = corpus.tokenizer.special();
    let rows = corpus.rows(Merge::Concat, 128);
    for style in [MaskStyle::Electra, MaskStyle::Txtai] {
        let spec = mask_spec(style, &corpus.tokenizer);
        let (mut masked, mut candidates, mut shown_mask, mut kept) = (0, 0, 0, 0);
        for (step, i) in (0..40).flat_map(|step| (0..rows.len().min(10)).map(move |i| (step, i))) {
            let ids = rows.row(i).ids;
            let chosen = spec.mask(Philox::new(9), &ids, i as u32, step);
            assert!(chosen.windows(2).all(|w| w[0].0 < w[1].0), "ascending, without repetition");
            assert_eq!(chosen, spec.mask(Philox::new(9), &ids, i as u32, step));
            if style == MaskStyle::Electra {
                assert_eq!(chosen.len(), 19);
            }
            for &(position, shown) in &chosen {
                assert!(![special.cls, special.sep, special.mask, special.pad].contains(&ids[position]));
                shown_mask += usize::from(shown == special.mask);
                kept += usize::from(shown == ids[position]);
            }
            masked += chosen.len();
            candidates += ids.iter().filter(|&&id| id > special.mask).count();
        }
        let (mask_rate, kept_rate) = if style == MaskStyle::Electra { (0.85, 0.15) } else { (0.8, 0.1) };
        assert!(likely(shown_mask, masked, mask_rate), "{style:?}: {shown_mask} of {masked} show [MASK]");
        assert!(likely(kept, masked, kept_rate), "{style:?}: {kept} of {masked} stay");
        if style == MaskStyle::Txtai {
            assert!(likely(masked, candidates, 0.15), "{masked} of {candidates} masked");
        } else {
            assert_eq!(shown_mask + kept, masked, "never a random token");
        }
    }
    let spec = mask_spec(MaskStyle::Electra, &corpus.tokenizer);
    assert!(spec.mask(Philox::new(1), &[special.cls, special.sep], 0, 0).is_empty(), "nothing can be masked");
    assert_eq!(spec.mask(Philox::new(1), &[special.cls, 77, special.sep], 0, 0).len(), 1, "one at least");
}

#[test]
fn an_epoch_visits_every_row_once() {
    for len in [1u64, 2, 3, 17, 64, 1000] {
        let order = |epoch| (0..len).map(|i| shuffled(Philox::new(3), len, epoch, i)).collect::<Vec<_>>();
        let mut sorted = order(0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..len).collect::<Vec<_>>());
        assert!(len < 17 || order(0) != order(1), "another epoch, another order");
    }
}

#[test]
fn batches_are_whole_and_the_same_whoever_asks() {
    use elektron::data::loader::Loader;
    let corpus = Corpus::new(&book(150));
    let mask = mask_spec(MaskStyle::Electra, &corpus.tokenizer);
    let spec = LoaderSpec {
        batch_size: 3,
        micro_batches: 2,
        batching: Batching::Continuous,
        seed: 4,
        mask,
        on_device: false,
    };
    let rows = std::sync::Arc::new(corpus.rows(Merge::None, 128));
    let mut straight = Loader::new(rows.clone(), spec, 0);
    let all: Vec<_> = (0..10).map(|_| straight.next_batch().unwrap()).collect();
    let mut resumed = Loader::new(rows.clone(), spec, 3);
    for want in &all[6..] {
        assert_eq!(&resumed.next_batch().unwrap(), want);
    }
    for batch in &all {
        assert_eq!(batch.sequences(), 3);
        assert_eq!(*batch.cu_seqlens.last().unwrap() as usize, batch.tokens());
        for (i, (&shown, &id)) in batch.masked_ids.iter().zip(&batch.ids).enumerate() {
            assert!(shown == id || batch.masked_index.contains(&(i as u32)));
        }
    }
}
