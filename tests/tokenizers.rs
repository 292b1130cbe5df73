//! Tokenizers with all kinds of settings files, against the ids of `transformers`
//! (`make_tokenizer_cases.py`), and what is saved of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use elektron::data::source::TextSource;
use elektron::data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::repository;

#[derive(serde::Deserialize)]
struct Fixture {
    lines: Vec<String>,
    contents: Vec<String>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    files: BTreeMap<String, usize>,
    size: usize,
    ids: Vec<Vec<u32>>,
}

impl Fixture {
    fn read() -> Self {
        let text = fs::read_to_string(repository("tests/fixtures/tokenizer_directories.json")).unwrap();
        let fixture: Self = serde_json::from_str(&text).unwrap();
        assert!(fixture.cases.len() > 40);
        fixture
    }

    /// The files of a case.
    fn files(&self, name: &str) -> BTreeMap<String, String> {
        let case = self.cases.iter().find(|case| case.name == name).unwrap();
        case.files.iter().map(|(file, &at)| (file.clone(), self.contents[at].clone())).collect()
    }

    /// A directory of a case, changed by `change`.
    fn changed(&self, name: &str, change: impl FnOnce(&mut BTreeMap<String, String>)) -> TempDir {
        let mut files = self.files(name);
        change(&mut files);
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(dir.path().join(file), text).unwrap();
        }
        dir
    }

    fn directory(&self, name: &str) -> TempDir {
        self.changed(name, |_| {})
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn contains(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
}

#[track_caller]
fn refused(dir: &Path, words: &[&str]) {
    let Err(error) = Tokenizer::load(dir) else { panic!("accepted, where {words:?} was to be refused") };
    contains(&error.to_string(), words);
}

fn ids(tokenizer: &Tokenizer, lines: &[String]) -> Vec<Vec<u32>> {
    lines.iter().map(|line| tokenizer.encode(line).unwrap()).collect()
}

#[test]
fn every_directory_gives_the_ids_of_transformers() {
    let fixture = Fixture::read();
    let wrong: Vec<String> = fixture
        .cases
        .iter()
        .filter_map(|case| {
            let dir = fixture.directory(&case.name);
            match Tokenizer::load(dir.path()) {
                Err(e) => Some(format!("{}: {e}", case.name)),
                Ok(t) if (t.vocab_size(), ids(&t, &fixture.lines)) == (case.size, case.ids.clone()) => None,
                Ok(t) => Some(format!(
                    "{}: {} tokens, {:?}; expected {}, {:?}",
                    case.name,
                    t.vocab_size(),
                    ids(&t, &fixture.lines),
                    case.size,
                    case.ids
                )),
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_saved_is_what_came() {
    // These are BERT's own pipelines; every other is for PreTrainedTokenizerFast.
    let of_bert = |name: &str| {
        let others =
            ["limit-8", "prefix", "not-cleaned", "whitespace-split", "metaspace-wordpiece", "digits"];
        let kinds = ["unigram", "xlm-roberta", "albert", "deberta", "char-bpe", "bytes", "merges"];
        !others.contains(&name) && !kinds.iter().any(|kind| name.starts_with(kind))
    };
    let fixture = Fixture::read();
    for case in &fixture.cases {
        let name = &case.name;
        let source = Tokenizer::load(fixture.directory(name).path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        source.save(out.path(), 128).unwrap_or_else(|e| panic!("{name}: {e}"));
        let config = json_of(&out.path().join("tokenizer_config.json"));
        let class = if of_bert(name) { "BertTokenizer" } else { "PreTrainedTokenizerFast" };
        assert_eq!(
            (&config["tokenizer_class"], &config["model_max_length"]),
            (&json!(class), &json!(128)),
            "{name}"
        );
        let saved = Tokenizer::load(out.path()).unwrap();
        assert_eq!(
            (saved.vocab_size(), ids(&saved, &fixture.lines)),
            (case.size, case.ids.clone()),
            "{name}"
        );
        assert_eq!(saved.special(), source.special(), "{name}");
        assert_eq!(saved.model_max_length(), Some(128));
        framed_as_in_training(&saved, name);
        // The same once more, and nothing of training's own limits.
        let definition = fs::read_to_string(out.path().join("tokenizer.json")).unwrap();
        contains(&definition, &["\"truncation\": null", "\"padding\": null"]);
        let again = tempfile::tempdir().unwrap();
        saved.save(again.path(), 128).unwrap();
        assert_eq!(fs::read_to_string(again.path().join("tokenizer.json")).unwrap(), definition, "{name}");
        // Alone, vocab.txt means the same where it is written.
        let vocab = out.path().join("vocab.txt");
        if vocab.is_file() {
            fs::remove_file(out.path().join("tokenizer.json")).unwrap();
            let old = Tokenizer::load(out.path()).unwrap();
            assert_eq!(ids(&old, &fixture.lines), case.ids, "{name} from vocab.txt");
        }
        let is_complete =
            ["bert", "electra-fast", "lower-false", "accents-false", "other-names", "crlf", "truncation"];
        assert_eq!(vocab.is_file(), is_complete.contains(&name.as_str()) || of_vocab_alone(name), "{name}");
    }
}

/// Further cases that `vocab.txt` and the settings define completely.
fn of_vocab_alone(name: &str) -> bool {
    let same = [
        "accents-true-cased",
        "chinese-false",
        "class-of-model",
        "no-settings",
        "lower-false-fast",
        "spaces",
    ];
    same.contains(&name) || ["other-names-map", "no-last-line-end", "split-special"].contains(&name)
}

/// `[CLS] a [SEP]`, and `[CLS] a [SEP] b [SEP]` with types 0 and 1.
fn framed_as_in_training(tokenizer: &Tokenizer, name: &str) {
    let special = tokenizer.special();
    let (a, b) = (tokenizer.encode("the man").unwrap(), tokenizer.encode("said").unwrap());
    let single = tokenizer.inner().encode("the man", true).unwrap();
    let want = [&[special.cls][..], &a, &[special.sep]].concat();
    assert_eq!(single.get_ids(), want, "{name}");
    let pair = tokenizer.inner().encode(("the man", "said"), true).unwrap();
    let types = [vec![0; want.len()], vec![1; b.len() + 1]].concat();
    assert_eq!(pair.get_ids(), [want, b, vec![special.sep]].concat(), "{name}");
    assert_eq!(pair.get_type_ids(), types, "{name}");
}

/// Versions 4 and 5 of transformers read these settings of a saved tokenizer differently, or not at
/// all.
#[test]
fn saved_settings_suit_both_versions() {
    let fixture = Fixture::read();
    let saved = |name: &str| {
        let out = tempfile::tempdir().unwrap();
        Tokenizer::load(fixture.directory(name).path()).unwrap().save(out.path(), 64).unwrap();
        json_of(&out.path().join("tokenizer_config.json"))
    };
    let config = saved("bytes-without-frame");
    assert_eq!(config["add_prefix_space"], true, "version 4 would set the pre-tokenizer's to false");
    assert_eq!(config["pad_token"], "<pad>");
    let config = saved("additional-special");
    assert_eq!(config["additional_special_tokens"], json!(["@user", "<ent>"]));
    assert_eq!(config.get("extra_special_tokens"), None);
    assert_eq!(saved("split-special")["split_special_tokens"], true);
    let config = saved("chinese-false");
    assert_eq!((&config["tokenize_chinese_chars"], &config["do_lower_case"]), (&json!(false), &json!(true)));
    assert_eq!(saved("merges-gpt2")["bos_token"], "<s>");
}

/// A class sets its decoder too; these are what `AutoTokenizer` of transformers 5.24 has.
#[test]
fn decoders_are_those_of_the_class() {
    let fixture = Fixture::read();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
    });
    let metaspace =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    for (case, decoder) in [
        ("bytes-roberta", &bytes),
        ("deberta", &bytes),
        ("merges-gpt2", &bytes),
        ("xlm-roberta", &metaspace),
        ("albert", &metaspace),
        ("deberta-v2", &metaspace),
    ] {
        let dir = fixture.changed(case, |files| {
            let Some(text) = files.get_mut("tokenizer.json") else { return };
            let mut value: Value = serde_json::from_str(text).unwrap();
            value["decoder"] = Value::Null;
            *text = value.to_string();
        });
        let out = tempfile::tempdir().unwrap();
        Tokenizer::load(dir.path()).unwrap().save(out.path(), 64).unwrap();
        assert_eq!(json_of(&out.path().join("tokenizer.json"))["decoder"], *decoder, "{case}");
    }
}

#[test]
fn settings_that_cannot_be_honoured_are_named() {
    let fixture = Fixture::read();
    let config = |case: &str, config: Value, words: &[&str]| {
        let dir = fixture.changed(case, |files| {
            files.insert("tokenizer_config.json".to_owned(), config.to_string());
        });
        refused(dir.path(), words);
    };
    let class = |class: &str| json!({ "tokenizer_class": class });
    for unknown in ["BertJapaneseTokenizer", "RoFormerTokenizerFast", "BertweetTokenizer", "FooTokenizer"] {
        config(
            "crlf",
            class(unknown),
            &["tokenizer_config.json", "tokenizer_class", unknown, "AutoTokenizer"],
        );
        config("bert", class(unknown), &[unknown, "PreTrainedTokenizerFast"]);
    }
    config(
        "crlf",
        class("PreTrainedTokenizerFast"),
        &["PreTrainedTokenizerFast", "vocab.txt", "tokenizer.json"],
    );
    config("merges-roberta", class("BertTokenizer"), &["BertTokenizer", "vocab.json"]);
    config(
        "limit-8",
        class("BertTokenizer"),
        &["tokenizer.json", "max_input_chars_per_word", "8", "BertTokenizer"],
    );
    config(
        "prefix",
        class("ElectraTokenizerFast"),
        &["continuing_subword_prefix", "@@", "ElectraTokenizerFast"],
    );
    config("not-cleaned", class("BertTokenizer"), &["normalizer", "clean_text"]);
    config("whitespace-split", class("BertTokenizer"), &["pre_tokenizer", "WhitespaceSplit"]);
    config("unigram", class("BertTokenizerFast"), &["model.type", "Unigram"]);
    config("unigram", class("XLMRobertaTokenizer"), &["XLMRobertaTokenizer"]);
    config("char-bpe", class("RobertaTokenizer"), &["model.unk_token", "<unk>"]);
    for (key, value) in [
        ("word_tokenizer_type", json!("mecab")),
        ("subword_tokenizer_type", json!("character")),
        ("mecab_kwargs", json!({ "mecab_dic": "unidic" })),
        ("do_basic_tokenize", json!(false)),
        ("never_split", json!(["the"])),
        ("do_lower_case", json!("false")),
        ("strip_accents", json!(0)),
        ("split_special_tokens", json!("true")),
        ("model_max_length", json!("20")),
        ("sp_model_kwargs", json!({ "enable_sampling": true, "alpha": 0.1 })),
        ("fast_tokenizer_files", json!(["tokenizer.4.0.json", "tokenizer.json"])),
    ] {
        config(
            "bert",
            json!({ "tokenizer_class": "BertTokenizer", key: value }),
            &["tokenizer_config.json", key],
        );
    }
    config("bert", json!({ "auto_map": { "AutoTokenizer": [null, "t.Own"] } }), &["auto_map", "Python"]);
    let model = fixture.changed("bert", |files| {
        files.remove("tokenizer_config.json");
        files.insert("config.json".to_owned(), json!({ "model_type": "rembert" }).to_string());
    });
    refused(model.path(), &["config.json", "model_type", "rembert"]);
}

#[test]
fn damaged_files_are_named() {
    let fixture = Fixture::read();
    let with = |case: &str, file: &str, bytes: &[u8], words: &[&str]| {
        let dir = fixture.directory(case);
        fs::write(dir.path().join(file), bytes).unwrap();
        refused(dir.path(), &[&[file][..], words].concat());
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n";
    for (case, file) in [
        ("bert", "tokenizer.json"),
        ("bert", "tokenizer_config.json"),
        ("crlf", "vocab.txt"),
        ("merges-roberta", "vocab.json"),
        ("merges-roberta", "merges.txt"),
        ("added-json", "added_tokens.json"),
    ] {
        with(case, file, pointer, &["Git LFS pointer"]);
    }
    for (case, file) in
        [("bert", "tokenizer.json"), ("bert", "tokenizer_config.json"), ("merges-roberta", "vocab.json")]
    {
        with(case, file, b"{\"a\": ", &["JSON"]);
    }
    with("bert", "tokenizer.json", b"[]", &[]);
    with("bert", "tokenizer_config.json", b"[]", &["object"]);
    with("crlf", "vocab.txt", b"", &["empty"]);
    with("crlf", "vocab.txt", b"[PAD]\n[UNK]\n\xff\xfe", &["UTF-8"]);
    with("crlf", "vocab.txt", b"[PAD]\r[UNK]\r[CLS]\r", &["line 1", "carriage return"]);
    with("merges-roberta", "merges.txt", b"a b c\n", &["vocab.json"]);
    let twice = fixture.changed("bert", |files| {
        let text = files.get_mut("tokenizer.json").unwrap();
        let mut value: Value = serde_json::from_str(text).unwrap();
        value["model"]["vocab"]["twicegiven"] = json!(7);
        *text = value.to_string();
    });
    refused(twice.path(), &["tokenizer.json", "`twicegiven`", "the same id 7"]);
    let definition = |change: &dyn Fn(&mut Value)| {
        fixture.changed("char-bpe", |files| {
            let text = files.get_mut("tokenizer.json").unwrap();
            let mut value: Value = serde_json::from_str(text).unwrap();
            change(&mut value);
            *text = value.to_string();
        })
    };
    let random = definition(&|value| value["model"]["dropout"] = json!(0.1));
    refused(random.path(), &["tokenizer.json", "dropout", "0.1"]);
    let off = definition(&|value| value["model"]["dropout"] = json!(0.0));
    Tokenizer::load(off.path()).unwrap();
    for name in ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), b"\n\x0e").unwrap();
        let lines = [
            "from transformers import AutoTokenizer",
            "AutoTokenizer.from_pretrained(\"",
            "save_pretrained(\"",
        ];
        refused(dir.path(), &[&[name][..], &lines[..]].concat());
        refused(&dir.path().join(name), &lines);
    }
    let half = fixture.changed("merges-roberta", |files| {
        files.remove("merges.txt");
    });
    refused(half.path(), &["merges.txt", "vocab.json"]);
    // An added token would get the id of a token of the vocabulary.
    let shared = fixture.changed("twice", |files| {
        files.insert("added_tokens.json".to_owned(), json!({ "@user": 999 }).to_string());
    });
    refused(shared.path(), &["@user", "twice"]);
    let lacking = fixture.changed("no-last-line-end", |files| {
        let vocab = files.get_mut("vocab.txt").unwrap();
        *vocab = vocab.replace("[MASK]\n", "[mask]\n");
    });
    refused(lacking.path(), &["vocab.txt", "[MASK]", "mask_token", "special_tokens_map.json"]);
}

#[test]
fn names_are_found_in_the_definition() {
    let fixture = Fixture::read();
    for case in ["bytes-roberta", "xlm-roberta", "char-bpe", "bytes-without-frame"] {
        let named = Tokenizer::load(fixture.directory(case).path()).unwrap();
        let dir = fixture.changed(case, |files| {
            files.remove("tokenizer_config.json");
        });
        let found = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(found.special(), named.special(), "{case}");
    }
    // Without settings, training programs write these two files alone.
    let dir = fixture.changed("merges-roberta", |files| {
        files.remove("tokenizer_config.json");
    });
    let [whole, half] =
        [dir.path().to_path_buf(), dir.path().join("vocab.json")].map(|p| Tokenizer::load(&p).unwrap());
    let case = fixture.cases.iter().find(|case| case.name == "merges-roberta").unwrap();
    assert_eq!(
        [ids(&whole, &fixture.lines), ids(&half, &fixture.lines)],
        [case.ids.clone(), case.ids.clone()]
    );
}

#[test]
fn the_longest_input_is_read() {
    let fixture = Fixture::read();
    for (value, want) in [
        (json!(512), Some(512)),
        (json!(512.0), Some(512)),
        (json!(1_000_000_000_000_000_019_884_624_838_656u128 as f64), None),
        (json!(2_000_000), None),
        (Value::Null, None),
    ] {
        let dir = fixture.changed("bert", |files| {
            let config = json!({ "tokenizer_class": "BertTokenizer", "model_max_length": value });
            files.insert("tokenizer_config.json".to_owned(), config.to_string());
        });
        assert_eq!(Tokenizer::load(dir.path()).unwrap().model_max_length(), want);
    }
}

/// What is written is read back as `transformers` reads it.
#[test]
fn a_saved_tokenizer_that_differs_is_an_error() {
    let fixture = Fixture::read();
    let source = fixture.directory("bert");
    let tokenizer = Tokenizer::load(source.path()).unwrap();
    let save_beside = |tokenizer: &Tokenizer, added: Value| {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("added_tokens.json"), added.to_string()).unwrap();
        tokenizer.save(out.path(), 64).map_err(|e| e.to_string())
    };
    contains(
        &save_beside(&tokenizer, json!({ "@user": tokenizer.vocab_size() })).unwrap_err(),
        &["tokens", "Remove"],
    );
    // A token of the vocabulary becomes one that is taken out of the middle of words.
    let t = tokenizer.inner().token_to_id("t").unwrap();
    contains(&save_beside(&tokenizer, json!({ "t": t })).unwrap_err(), &["quick brown fox", "in training"]);
    // Only the training text has this one.
    let pound = tokenizer.inner().token_to_id("z").unwrap();
    let rare = json!({ "hertzog": pound });
    assert!(save_beside(&tokenizer, rare).is_err(), "it has no place in the vocabulary");
    let text = source.path().join("text.txt");
    fs::write(&text, "Zazzle went to the zoo.\n").unwrap();
    let sample = TextSource::new(&[text.to_str().unwrap()], &["text".to_owned()]).unwrap();
    let sampled = tokenizer.clone().with_sample(&sample);
    let error = save_beside(&sampled, json!({ "z": pound })).unwrap_err();
    contains(&error, &["Zazzle went to the zoo."]);
    sampled.check_export().unwrap();
    // Another tokenizer's vocab.txt goes.
    let out = tempfile::tempdir().unwrap();
    tokenizer.save(out.path(), 64).unwrap();
    assert!(out.path().join("vocab.txt").is_file());
    Tokenizer::load(fixture.directory("unigram").path()).unwrap().save(out.path(), 64).unwrap();
    assert!(!out.path().join("vocab.txt").exists());
}
