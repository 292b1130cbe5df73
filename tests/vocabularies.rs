//! Vocabularies of every kind: text without spaces, combining marks, unknown tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use elektron::data::source::TextSource;
use elektron::data::tokenizer::{Kind, PreTokenizer, Tokenizer, TrainSpec, Trained, train};
use serde_json::Value;

use crate::cli::elektron;
use crate::support::repository;

const KINDS: [Kind; 3] = [Kind::Wordpiece, Kind::Bpe, Kind::Unigram];
const PRE_TOKENIZERS: [PreTokenizer; 5] = [
    PreTokenizer::Bert,
    PreTokenizer::Whitespace,
    PreTokenizer::Bytes,
    PreTokenizer::None,
    PreTokenizer::PerCharacter,
];

fn fixture(name: &str) -> PathBuf {
    repository(&format!("tests/fixtures/vocabulary/{name}"))
}

fn learn(path: &Path, spec: &TrainSpec) -> elektron::Result<Trained> {
    train(&TextSource::new(&[path.to_str().unwrap()], &["text".to_owned()]).unwrap(), spec)
}

/// As on the command line: the text is kept as it is.
fn cased(kind: Kind, pre_tokenizer: PreTokenizer, vocab_size: usize) -> TrainSpec {
    let split_chinese = false;
    TrainSpec { vocab_size, kind, pre_tokenizer, lowercase: false, split_chinese, ..TrainSpec::default() }
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text).unwrap().iter().map(|&id| tokenizer.token(id)).collect()
}

#[test]
fn every_kind_knows_its_own_text() {
    for text in ["protein", "smiles", "thai", "hindi", "japanese"] {
        let path = fixture(&format!("{text}.txt"));
        for kind in KINDS {
            for pre_tokenizer in PRE_TOKENIZERS {
                let what = format!("{text}, {kind:?}, {pre_tokenizer:?}");
                let size = if pre_tokenizer == PreTokenizer::Bytes { 560 } else { 160 };
                let tokenizer = learn(&path, &cased(kind, pre_tokenizer, size)).unwrap().tokenizer;
                assert!(tokenizer.vocab_size() <= size, "{what}");
                let names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
                assert_eq!([0, 1, 2, 3, 4].map(|id| tokenizer.token(id)), names, "{what}");
                let dir = tempfile::tempdir().unwrap();
                tokenizer.save(dir.path(), 128).unwrap();
                let loaded = Tokenizer::load(dir.path()).unwrap();
                assert_eq!(loaded.hash().unwrap(), tokenizer.hash().unwrap(), "{what}: saved and loaded");
                for line in fs::read_to_string(&path).unwrap().lines() {
                    let ids = loaded.encode(line).unwrap();
                    assert!(!ids.is_empty() && ids.iter().all(|&id| id > 4), "{what}: {ids:?}");
                    let framed = loaded.inner().encode(line, true).unwrap();
                    assert_eq!(framed.get_ids(), [&[2], &ids[..], &[3]].concat(), "{what}");
                    let decoded = loaded.inner().decode(&ids, true).unwrap();
                    // BERT's words lose the spaces between them.
                    let spaces_go = pre_tokenizer == PreTokenizer::Bert
                        || kind == Kind::Wordpiece && pre_tokenizer == PreTokenizer::Whitespace;
                    match spaces_go {
                        false => assert_eq!(decoded, line, "{what}"),
                        true => assert_eq!(decoded.replace(' ', ""), line.replace(' ', ""), "{what}"),
                    }
                }
                if pre_tokenizer == PreTokenizer::Bytes {
                    let ids = loaded.encode("Ω ᚠ \u{1f600}").unwrap();
                    assert!(ids.iter().all(|&id| id > 4), "{what}: bytes know every text");
                } else {
                    assert!(loaded.encode("ᚠ").unwrap().contains(&1), "{what}");
                }
            }
        }
    }
}

#[test]
fn vocabularies_are_those_of_the_python_library() {
    let learned: Value = serde_json::from_str(&fs::read_to_string(fixture("learned.json")).unwrap()).unwrap();
    for case in learned.as_array().unwrap() {
        let kind = if case["kind"] == "bpe" { Kind::Bpe } else { Kind::Unigram };
        let pre_tokenizer = PRE_TOKENIZERS.into_iter().find(|p| case["pre-tokenizer"] == p.name()).unwrap();
        let spec = cased(kind, pre_tokenizer, case["vocab-size"].as_u64().unwrap() as usize);
        let path = fixture(&format!("{}.txt", case["text"].as_str().unwrap()));
        let tokenizer = learn(&path, &spec).unwrap().tokenizer;
        let json: Value = serde_json::from_str(&tokenizer.inner().to_string(false).unwrap()).unwrap();
        let what = format!("{} {} {}", case["kind"], case["text"], case["pre-tokenizer"]);
        if kind == Kind::Bpe {
            let size = tokenizer.vocab_size() as u32;
            let vocabulary: Vec<String> = (0..size).map(|id| tokenizer.token(id)).collect();
            assert_eq!(Value::from(vocabulary), case["vocab"], "{what}");
            assert_eq!(json["model"]["merges"], case["merges"], "{what}");
            continue;
        }
        let scores = |pieces: &Value| {
            let mut scores: Vec<(String, f64)> = serde_json::from_value(pieces.clone()).unwrap();
            scores.sort_by(|a, b| a.0.cmp(&b.0));
            scores
        };
        let (ours, theirs) = (scores(&json["model"]["vocab"]), scores(&case["pieces"]));
        assert_eq!(ours.len(), theirs.len(), "{what}");
        for ((piece, score), (their_piece, their_score)) in ours.iter().zip(&theirs) {
            assert_eq!(piece, their_piece, "{what}");
            // Characters that the model lost have their scores in another order there.
            let near = if piece.chars().count() == 1 { 0.01 } else { 1e-9 * score.abs() };
            assert!((score - their_score).abs() <= near, "{what}: {piece} {score} {their_score}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for (kind, pre_tokenizer) in [
        (Kind::Wordpiece, PreTokenizer::Bert),
        (Kind::Bpe, PreTokenizer::Whitespace),
        (Kind::Bpe, PreTokenizer::None),
        (Kind::Unigram, PreTokenizer::None),
    ] {
        for text in ["protein", "thai"] {
            let hash = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let spec = cased(kind, pre_tokenizer, 200);
                pool.install(|| learn(&fixture(&format!("{text}.txt")), &spec))
                    .unwrap()
                    .tokenizer
                    .hash()
                    .unwrap()
            };
            assert_eq!(hash(1), hash(3), "{kind:?}, {pre_tokenizer:?}, {text}");
        }
    }
}

#[test]
fn words_beyond_the_limit_are_cut_or_reported() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let spec = TrainSpec { vocab_size: 120, ..TrainSpec::default() };
    let proteins = learn(&fixture("protein.txt"), &spec).unwrap();
    assert!(
        proteins.remarks.iter().any(|r| r.contains("more than 100 characters")),
        "{:?}",
        proteins.remarks
    );
    let line = "mktayiak".repeat(40);
    let ids = proteins.tokenizer.encode(&line).unwrap();
    assert!(ids.len() < line.len() / 2 && !ids.contains(&1), "{ids:?}");
    assert!(proteins.tokenizer.vocab_size() > 60, "pieces, not letters alone");
    // A few such words in a text leave the tokenizer BERT's, and are reported.
    let words = "the quick brown fox jumps over the lazy dog ".repeat(700);
    let some = learn(&write("some.txt", &format!("{words}\n{}\n", "x".repeat(101))), &spec).unwrap();
    assert!(some.remarks.iter().any(|r| r.contains("1 words of more than 100")), "{:?}", some.remarks);
    let json = some.tokenizer.inner().to_string(false).unwrap();
    assert!(json.contains(r#""pre_tokenizer":{"type":"BertPreTokenizer"}"#), "{json}");
    assert_eq!(some.tokenizer.encode(&"x".repeat(101)).unwrap(), [1]);
}

#[test]
fn marks_are_kept_where_stripping_changes_words() {
    let spec = TrainSpec { vocab_size: 200, min_frequency: 1, ..TrainSpec::default() };
    for (name, one, other) in [
        ("hindi", "में", "म"),
        ("japanese", "かぎ", "かき"),
        ("thai", "น้ำ", "นำ"),
        ("japanese", "パンダ", "ハンダ"),
    ] {
        let path = fixture(&format!("{name}.txt"));
        let Trained { tokenizer, remarks } = learn(&path, &spec).unwrap();
        assert!(remarks.iter().any(|r| r.contains("--accents strip")), "{remarks:?}");
        let (one, other) = (tokens(&tokenizer, one), tokens(&tokenizer, other));
        assert_ne!(one, other, "{name}");
        let strip = TrainSpec { strip_accents: Some(true), ..spec.clone() };
        let Trained { tokenizer, remarks } = learn(&path, &strip).unwrap();
        assert!(!remarks.iter().any(|r| r.contains("accents")), "{remarks:?}");
        assert_eq!(tokens(&tokenizer, "かぎ में"), tokens(&tokenizer, "かき म"), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "Le café est fermé, l'été aussi. Where is the café?\n".repeat(5)).unwrap();
    let Trained { tokenizer, remarks } = learn(&path, &spec).unwrap();
    assert_eq!(tokens(&tokenizer, "CAFÉ été"), ["cafe", "ete"]);
    assert!(remarks.iter().any(|r| r.contains("--accents keep")), "{remarks:?}");
}

#[test]
fn an_alphabet_leaves_few_words_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    // 3,000 characters, the rarer half of which is a fifth of the text.
    let character = |i: u32| char::from_u32(0x4e00 + i).unwrap();
    let line = |from: u32, to: u32| (from..to).map(character).collect::<String>();
    fs::write(&path, format!("{}{}\n", format!("{}\n", line(0, 1500)).repeat(4), line(1500, 3000))).unwrap();
    let unknown = |spec: TrainSpec| {
        let Trained { tokenizer, remarks } = learn(&path, &spec).unwrap();
        let ids = tokenizer.encode(&line(0, 3000)).unwrap();
        (ids.iter().filter(|&&id| id == 1).count(), remarks)
    };
    let spec = TrainSpec { vocab_size: 8192, ..TrainSpec::default() };
    let (missing, _) = unknown(spec.clone());
    assert!(missing <= 5 * 7500 / 1000, "{missing}");
    let (missing, remarks) = unknown(TrainSpec { alphabet: Some(1000), ..spec.clone() });
    assert_eq!(missing, 2000);
    assert!(remarks.iter().any(|r| r.contains("--alphabet")), "{remarks:?}");
    let (_, remarks) = unknown(TrainSpec { vocab_size: 1000, ..spec });
    assert!(remarks.iter().any(|r| r.contains("--vocab-size")), "{remarks:?}");
}

#[test]
fn what_cannot_be_trained_is_refused_and_less_than_asked_is_said() {
    let path = fixture("smiles.txt");
    let refused = |spec: TrainSpec, path: &Path| learn(path, &spec).err().unwrap().to_string();
    let base = TrainSpec { vocab_size: 300, ..TrainSpec::default() };
    let error = refused(TrainSpec { alphabet: Some(296), ..base.clone() }, &path);
    assert!(error.contains("296") && error.contains("--vocab-size"), "{error}");
    let bytes = |kind, vocab_size| cased(kind, PreTokenizer::Bytes, vocab_size);
    assert!(refused(bytes(Kind::Bpe, 260), &path).contains("261"));
    assert!(refused(bytes(Kind::Wordpiece, 300), &path).contains("517"));
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("a.txt");
    fs::write(&empty, "\u{200b}\u{200d}\n").unwrap();
    let error = refused(base, &empty);
    assert!(error.contains("there is no text"), "{error}");
    let many = TrainSpec { vocab_size: 5000, ..TrainSpec::default() };
    let Trained { tokenizer, remarks } = learn(&path, &many).unwrap();
    let entries = tokenizer.vocab_size();
    assert!(
        remarks.iter().any(|r| r.contains(&format!("gave {entries} entries of the 5000"))),
        "{remarks:?}"
    );
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn flags_without_effect_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let text = fixture("smiles.txt").to_str().unwrap().to_owned();
    let vocabulary = repository("tests/data/wordpiece-8k.txt").to_str().unwrap().to_owned();
    let train = |flags: &[&str]| {
        let start = ["tokenizer", "train", "--input", &text, "--output", &path("v"), "--vocab-size", "300"];
        elektron(&[&start[..], flags].concat())
    };
    for flags in [
        &["--kind", "unigram", "--min-frequency", "3"][..],
        &["--pre-tokenizer", "bytes", "--alphabet", "300"],
        &["--pre-tokenizer", "per-character", "--min-frequency", "3"],
        &["--pre-tokenizer", "per-character", "--chinese", "split"],
        &["--sample-bytes", "0"],
    ] {
        let output = train(flags);
        let named = flags.iter().rfind(|flag| flag.starts_with("--")).unwrap();
        assert!(
            !output.status.success() && errors(&output).contains(named),
            "{flags:?}: {}",
            errors(&output)
        );
    }
    let run = |flags: &[&str]| {
        let start = ["pretrain", "--train", &text, "--preset", "tiny", "--device", "cpu", "--steps", "1"];
        let end = ["--batch-size", "2", "--seq-len", "32", "--log-to", "jsonl", "--recipe", "paper"];
        elektron(&[&start[..], &end, flags].concat())
    };
    for flags in [
        &["--vocab-size", "300"][..],
        &["--kind", "bpe"],
        &["--pre-tokenizer", "none"],
        &["--cased"],
        &["--accents", "keep"],
        &["--chinese", "whole"],
        &["--alphabet", "30"],
        &["--min-frequency", "3"],
        &["--sample-bytes", "1000"],
    ] {
        let output = run(&[&["--tokenizer", &vocabulary, "--output", &path("given")], flags].concat());
        let error = errors(&output);
        assert!(!output.status.success() && error.contains(flags[0]), "{flags:?}: {error}");
    }
    // A run's own vocabulary follows its flags, and stays the same when the run is continued.
    let flags =
        ["--kind", "bpe", "--pre-tokenizer", "whitespace", "--vocab-size", "80", "--output", &path("own")];
    let output = run(&flags);
    assert!(output.status.success(), "{}", errors(&output));
    let exported = Tokenizer::load(&dir.path().join("own/discriminator")).unwrap();
    assert_eq!(tokens(&exported, "[Na+]").concat(), "[Na+]</w>");
    let resume = ["pretrain", "--resume", &path("own"), "--device", "cpu"];
    for flags in [&["--kind", "unigram"][..], &["--cased", "false"], &["--vocab-size", "90"]] {
        let output = elektron(&[&resume[..], flags].concat());
        let name = flags[0].trim_start_matches("--");
        assert!(!output.status.success() && errors(&output).contains(name), "{flags:?}: {}", errors(&output));
    }
    let output = elektron(&resume);
    assert!(output.status.success(), "{}", errors(&output));
}

#[test]
fn unknown_tokens_are_warned_of_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let vocabulary = write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\ncat\n");
    let known = |n: usize| "dog cat ".repeat(n / 2);
    // 5 of 100 are not more than 5 %, 6 are.
    let texts = [
        ("none", write("none.txt", &known(100)), false, false),
        ("some", write("some.txt", &format!("{}{}", known(98), "ж ".repeat(2))), true, false),
        ("five", write("five.txt", &format!("{}dog {}", known(94), "ж ".repeat(5))), true, false),
        ("six", write("six.txt", &format!("{}{} жщ", known(94), "ж ".repeat(5))), true, true),
    ];
    let output = dir.path().join("out");
    let run = |train: &str, more: &[&str]| {
        let _ = fs::remove_dir_all(&output);
        let start =
            ["pretrain", "--train", train, "--tokenizer", &vocabulary, "--preset", "tiny", "--steps", "1"];
        let end = "--batch-size 2 --seq-len 32 --log-to jsonl --device cpu --quiet --recipe paper";
        let end: Vec<&str> = end.split(' ').collect();
        let output = ["--output", output.to_str().unwrap()];
        elektron(&[&start[..], &end, &output, more].concat())
    };
    for (name, path, warned, refused) in &texts {
        let out = run(path, &[]);
        let said = errors(&out);
        assert_eq!(out.status.success(), !refused, "{name}: {said}");
        assert_eq!(said.contains("% of the tokens of"), *warned, "{name}: {said}");
        if *warned {
            assert!(said.contains("ж (U+0436"), "{name}: {said}");
        }
        let shards = dir.path().join(format!("shards-{name}"));
        // The second time the shards exist already.
        for _ in 0..2 {
            let arguments = ["prepare", "--input", path, "--tokenizer", &vocabulary, "--output"];
            let out = elektron(&[&arguments[..], &[shards.to_str().unwrap()]].concat());
            assert!(out.status.success() && errors(&out).contains("% of the tokens of") == *warned, "{name}");
            assert_eq!(errors(&out).contains("--allow-unknown"), *refused, "{name}: {}", errors(&out));
        }
        if *refused {
            let shards = ["--shards", shards.to_str().unwrap()];
            let out = run(path, &shards);
            assert!(!out.status.success() && errors(&out).contains("6.0 %"), "reused: {}", errors(&out));
            assert!(errors(&out).contains("щ (U+0449"), "{}", errors(&out));
            let out = run(path, &["--allow-unknown"]);
            assert!(out.status.success() && errors(&out).contains("6.0 %"), "{}", errors(&out));
        }
    }
    let (known, six) = (&texts[0].1, &texts[3].1);
    let out = run(known, &["--validation", six]);
    assert!(out.status.success() && errors(&out).contains("six.txt"), "{}", errors(&out));
    // Words that are too long are called that.
    let long = write("long.txt", &format!("{}{}", "dog ".repeat(40), "dogcat".repeat(20)).repeat(3));
    assert!(errors(&run(&long, &[])).contains("longer than 100 characters"));
    let inspected =
        elektron(&["tokenizer", "inspect", "--json", "--tokenizer", &vocabulary, "--input", six, &long]);
    let found: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(found["missing_characters"][0]["character"], "ж");
    assert_eq!(found["missing_characters"][0]["count"], 6);
    assert_eq!(found["long_words"], 3);
}
