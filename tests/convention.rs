//! The calling convention of txtai and `transformers`: rows and pairs as they make them (values
//! stored by `scripts/make_convention_cases.py`), and settings under their names.

use std::fs;
use std::path::Path;

use elektron::config::{RunConfig, Settings};
use elektron::data::pack::{Merge, Row, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::shard::Dataset;
use elektron::data::source::{Reading, TextSource};
use elektron::data::tokenizer::Tokenizer;
use elektron::model::Flavour;
use serde_json::{Value, json};

use crate::cli::{Scratch, checkpoint, elektron, fail, lines, succeed};
use crate::support::repository;

/// Cases of one kind.
pub(crate) fn cases(kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(repository("tests/fixtures/convention.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let cases = all[kind].as_array().unwrap().clone();
    assert!(cases.len() > 5, "{kind}");
    cases
}

fn vocabulary() -> Tokenizer {
    Tokenizer::load(&repository("tests/data/wordpiece-8k.txt")).unwrap()
}

pub(crate) fn settings() -> Settings {
    Settings { train: Some(vec!["text".to_owned()]), output: Some("out".into()), ..Settings::default() }
}

/// A corpus in a directory of its own, and its rows.
struct Corpus {
    dir: tempfile::TempDir,
    columns: Vec<String>,
}

impl Corpus {
    fn new(columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&name| name.to_owned()).collect();
        Self { dir: tempfile::tempdir().unwrap(), columns }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join("text").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn dataset(&self, path: &str, reading: Reading) -> elektron::Result<Dataset> {
        let source = TextSource::new(&[path], &self.columns)?.with_reading(reading);
        prepare(&source, &vocabulary(), &self.dir.path().join("shards"), &Spec::default(), |_| {})
    }

    fn rows(&self, path: &str, reading: Reading, merge: Merge) -> Vec<Row> {
        let dataset = self.dataset(path, reading).unwrap();
        let rows = Rows::new(dataset, vocabulary().special(), merge, 16, 1).unwrap();
        (0..rows.len()).inspect(|&row| rows.check(0, row).unwrap()).map(|row| rows.row(row)).collect()
    }
}

fn rows_of(value: &Value) -> Vec<Row> {
    let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|row| Row { ids: ids(&row["ids"]), types: ids(&row["types"]) })
        .collect()
}

fn in_order(mut rows: Vec<Row>) -> Vec<(Vec<u32>, Vec<u32>)> {
    rows.sort_by(|a, b| a.ids.cmp(&b.ids));
    rows.into_iter().map(|row| (row.ids, row.types)).collect()
}

#[test]
fn rows_of_columns_and_pairs_are_txtais() {
    let all = cases("rows");
    for case in &all {
        let columns: Vec<&str> =
            case["columns"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        let corpus = Corpus::new(&columns);
        let records = case["records"].as_array().unwrap();
        let json: String = records.iter().map(|record| format!("{record}\n")).collect();
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record(&columns).unwrap();
        for record in records {
            csv.write_record(columns.iter().map(|&name| record[name].as_str().unwrap())).unwrap();
        }
        let csv = String::from_utf8(csv.into_inner().unwrap()).unwrap();
        let merge: Merge = serde_json::from_value(case["merge"].clone()).unwrap();
        // txtai does not cut whole texts; here they are cut as its tokenizer cuts them.
        let want = rows_of(case.get("cut").unwrap_or(&case["rows"]));
        for path in [corpus.write("a.jsonl", &json), corpus.write("b.csv", &csv)] {
            let got = corpus.rows(&path, Reading::Whole, merge);
            if merge == Merge::Pack {
                let uncut = |case: &&Value| case["columns"] == json!(columns) && case["merge"] == "none";
                let none = all.iter().find(uncut).unwrap();
                let long = rows_of(&none["rows"]).into_iter().zip(rows_of(&none["cut"]));
                let long = long.filter(|(row, _)| row.ids.len() > 16).map(|(_, cut)| cut);
                let short = want.iter().filter(|row| row.ids.len() <= 16).cloned();
                assert_eq!(in_order(got), in_order(short.chain(long).collect()), "{path}");
            } else {
                assert_eq!(got, want, "{path}, {merge:?}");
            }
        }
    }
}

#[test]
fn pairs_and_single_texts_are_in_one_corpus() {
    let corpus = Corpus::new(&["a", "b"]);
    let csv = corpus.write("pairs.csv", "a,b\none,two\n,\n  ,\"\n\"\nthree,four\n");
    corpus.write("lines.txt", "five six\n\nseven\n");
    let folder = Path::new(&csv).parent().unwrap().to_str().unwrap();
    let tokens = |text: &str| vocabulary().encode(text).unwrap();
    let special = vocabulary().special();
    let framed = |texts: &[&str]| {
        let mut row = Row { ids: vec![special.cls], types: vec![0] };
        for (number, text) in texts.iter().enumerate() {
            row.ids.extend(tokens(text));
            row.ids.push(special.sep);
            row.types.resize(row.ids.len(), number as u32);
        }
        row
    };
    let want =
        [framed(&["five six"]), framed(&["seven"]), framed(&["one", "two"]), framed(&["three", "four"])];
    assert_eq!(corpus.rows(folder, Reading::Whole, Merge::None), want);
    let chain = |rows: &[Row]| {
        let ids: Vec<u32> = rows.iter().flat_map(|row| row.ids.clone()).collect();
        let types: Vec<u32> = rows.iter().flat_map(|row| row.types.clone()).collect();
        let chunks = ids.chunks_exact(16).zip(types.chunks_exact(16));
        chunks.map(|(ids, types)| Row { ids: ids.to_vec(), types: types.to_vec() }).collect::<Vec<_>>()
    };
    assert_eq!(corpus.rows(folder, Reading::Whole, Merge::Concat), chain(&want));
    let dataset = corpus.dataset(folder, Reading::Whole).unwrap();
    assert_eq!((dataset.documents(), dataset.paragraphs(), dataset.tokens()), (4, 6, 7));
}

/// Shards of one reading are not taken for those of another, whether the file is read again or
/// known by its times.
#[test]
fn shards_of_pairs_are_not_taken_for_others() {
    let corpus = Corpus::new(&["a", "b"]);
    let path = corpus.write("pairs.csv", "a,b\none,two\nthree,\"four\nfive\"\n");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let lines = corpus.rows(&path, Reading::Lines, Merge::None);
    let pairs = corpus.rows(&path, Reading::Whole, Merge::None);
    assert_eq!((lines.len(), pairs.len()), (5, 2));
    assert_eq!(corpus.rows(&path, Reading::Lines, Merge::None), lines);
    assert_eq!(corpus.rows(&path, Reading::Whole, Merge::None), pairs);
}

#[cfg(feature = "parquet")]
#[test]
fn columns_of_parquet_files_are_pairs_too() {
    let path = repository("tests/fixtures/columnar/plain.parquet");
    let path = path.to_str().unwrap();
    let read = |columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|&name| name.to_owned()).collect();
        let source = TextSource::new(&[path], &columns).unwrap().with_reading(Reading::Whole);
        let mut all = Vec::new();
        source
            .for_each(|p| {
                all.push((p.text.to_owned(), p.opens_document, p.pair));
                Ok(())
            })
            .map(|()| all)
    };
    // Row i has no text where i % 5 == 4.
    let all = read(&["kind", "text"]).unwrap();
    assert_eq!(all.len(), 80);
    for (i, pair) in all.chunks_exact(2).enumerate() {
        let text = if i % 5 == 4 { String::new() } else { format!("Row {i}.\nIt is öne of many.") };
        assert_eq!(pair[0], (["news", "prose", "verse"][i % 3].to_owned(), true, true));
        assert_eq!(pair[1], (text, false, true));
    }
    let single = read(&["text"]).unwrap();
    assert_eq!(single[0], ("Row 0.\nIt is öne of many.".to_owned(), true, false));
    assert_eq!(single.len(), 32);
    let error = read(&["text", "parts"]).unwrap_err().to_string();
    assert!(error.contains("plain.parquet") && error.contains("`parts` has several texts"), "{error}");
}

/// The settings that a dry run shows.
fn dry_run(arguments: &[&str]) -> Value {
    let fixed = ["pretrain", "--train", "text", "--output", "out", "--dry-run", "--json", "--device", "cpu"];
    let shown: Value = serde_json::from_str(&succeed(&[&fixed[..], arguments].concat())).unwrap();
    shown["config"].clone()
}

#[test]
fn settings_have_the_names_of_transformers() {
    let named = dry_run(&[
        "--preset=tiny",
        "--num-train-epochs=2",
        "--per-device-train-batch-size=4",
        "--gradient-accumulation-steps=3",
        "--max-grad-norm=0.5",
        "--lr-scheduler-type=cosine_with_restarts",
        "--lr-scheduler-kwargs=num_cycles=2",
        "--betas=0.8,0.98",
        "--warmup-ratio=0.1",
        "--save-steps=7",
        "--save-total-limit=3",
        "--eval-steps=8",
        "--logging-steps=9",
        "--maxlength=64",
    ]);
    for (key, value) in [
        ("epochs", json!(2.0)),
        ("batch-size", json!(4)),
        ("grad-accumulation", json!(3)),
        ("clip", json!(0.5)),
        ("lr-scheduler", json!("cosine-with-restarts")),
        ("lr-scheduler-kwargs", json!({ "num_cycles": 2.0 })),
        ("betas", json!([0.8, 0.98])),
        ("warmup-ratio", json!(0.1)),
        ("save-every", json!(7)),
        ("keep", json!(3)),
        ("eval-every", json!(8)),
        ("log-every", json!(9)),
        ("seq-len", json!(64)),
    ] {
        assert_eq!(named[key], value, "{key}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    let path = file.to_str().unwrap();
    let toml = "preset = 'tiny'\nnum_train_epochs = 2\nper_device_train_batch_size = 4\nmax-grad-norm = 0.5\n\
                gradient_accumulation_steps = 3\nlr_scheduler_type = 'cosine_with_restarts'\nbetas = [0.8, 0.98]\n\
                lr_scheduler_kwargs = { num_cycles = 2 }\nwarmup_ratio = 0.1\nsave_steps = 7\nsave_total_limit = 3\n\
                eval_steps = 8\nlogging_steps = 9\nmaxlength = 64\n";
    fs::write(&file, toml).unwrap();
    assert_eq!(dry_run(&["--config", path]), named);
    // What is typed wins, whichever of its names it has.
    let typed = ["--config", path, "--warmup-steps=5", "--max-steps=6", "--schedule=linear"];
    let config = dry_run(&[&typed[..], &["--lr-scheduler-kwargs="]].concat());
    assert_eq!((&config["warmup-steps"], &config["steps"]), (&json!(5), &json!(6)));
    assert_eq!((config.get("warmup-ratio"), &config["lr-scheduler"]), (None, &json!("linear")));

    let refuse = |arguments: &[&str], words: &[&str]| {
        fail(&[&["pretrain", "--train", "text", "--output", "out"], arguments].concat(), words);
    };
    refuse(&["--betas=0.9,1"], &["--betas", "below 1"]);
    refuse(&["--betas=0.9"], &["--betas", "two"]);
    refuse(&["--warmup-ratio=1.5"], &["--warmup-ratio", "1.5"]);
    refuse(&["--lr-scheduler=constant", "--warmup-steps=5"], &["constant-with-warmup"]);
    refuse(&["--lr-scheduler=linear", "--lr-scheduler-kwargs=num_cycles=1"], &["num_cycles", "linear"]);
    refuse(&["--lr-scheduler=cosine-with-min-lr"], &["min_lr"]);
    for (text, words) in [
        ("warmup_ratio = 0.1\nwarmup_steps = 5\n", ["--warmup-ratio", "--warmup-steps"]),
        ("epochs = 2\nnum_train_epochs = 3\n", ["num_train_epochs", "`epochs`"]),
        ("lr_scheduler = 'reduce_lr_on_plateau'\n", ["reduce_lr_on_plateau", "cosine"]),
    ] {
        fs::write(&file, text).unwrap();
        refuse(&["--config", path], &words);
    }
    let usage = elektron(&["pretrain", "--warmup-ratio=0.1", "--warmup-steps=5"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn names_without_a_counterpart_are_answered_with_what_to_use() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    for (name, value, words) in [
        ("bf16", "true", "--precision bf16"),
        ("fp16", "true", "fp16 is not available"),
        ("report_to", "'tensorboard'", "--log-to jsonl,tensorboard"),
        ("adam-beta1", "0.9", "--betas"),
        ("optim", "'adamw_torch'", "AdamW"),
        ("eval_strategy", "'steps'", "--eval-every"),
        ("gradient_checkpointing", "true", "not available"),
        ("dataloader_num_workers", "2", "nothing to set"),
    ] {
        fs::write(&file, format!("{name} = {value}\n")).unwrap();
        fail(&["pretrain", "--config", file.to_str().unwrap()], &["run.toml", &format!("`{name}`"), words]);
        let out = elektron(&["pretrain", &format!("--{name}"), "1"]);
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains(words) && said.contains(&name.replace('_', "-")), "{said}");
        assert!(!said.contains("similar argument"), "{said}");
    }
    let other = elektron(&["detect", "--bf16"]);
    assert!(!String::from_utf8(other.stderr).unwrap().contains("no flag of Elektron"));
}

#[test]
fn an_empty_path_names_its_setting() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    for (name, is_path) in [
        ("train", false),
        ("base", false),
        ("generator", false),
        ("discriminator", false),
        ("tokenizer", true),
        ("shards", true),
        ("output", true),
    ] {
        let given = [("--train", "text"), ("--output", "out")];
        let others = given.iter().filter(|(flag, _)| flag.trim_start_matches('-') != name);
        let others: Vec<&str> = others.flat_map(|&(flag, value)| [flag, value]).collect();
        let error = format!("--{name} is empty");
        let empty = if name == "train" { "['']" } else { "''" };
        fs::write(&file, format!("{name} = {empty}\n")).unwrap();
        let config = ["pretrain", "--config", file.to_str().unwrap(), "--dry-run"];
        fail(&[&config[..], &others].concat(), &[&error]);
        let flag = format!("--{name}");
        let flags = [&["pretrain", &flag, "", "--dry-run"][..], &others].concat();
        if is_path {
            // clap refuses it itself.
            let out = elektron(&flags);
            let said = String::from_utf8(out.stderr).unwrap();
            assert_eq!(out.status.code(), Some(2), "{said}");
            assert!(said.contains(&flag), "{said}");
        } else {
            fail(&flags, &[&error]);
        }
    }
}

#[test]
fn columns_that_are_no_pair_are_refused() {
    let refuse = |arguments: &[&str], words: &[&str]| {
        let fixed = ["pretrain", "--flavour", "txtai", "--train", "text", "--output", "out"];
        fail(&[&fixed[..], arguments].concat(), words);
    };
    refuse(&["--columns", "a,b,c"], &["--columns", "3 columns (a, b, c)", "--flavour electra"]);
    refuse(&["--columns", "a,b", "--merge", "segments"], &["--merge segments", "pair"]);
    let uses_types = |flavour, merge, columns: &[&str]| {
        let columns = Some(columns.iter().map(|&name| name.to_owned()).collect());
        let settings = Settings { flavour: Some(flavour), merge: Some(merge), columns, ..settings() };
        RunConfig::resolve(settings).unwrap().uses_token_types()
    };
    assert!(uses_types(Flavour::Txtai, Merge::Concat, &["a", "b"]));
    assert!(!uses_types(Flavour::Txtai, Merge::None, &["a"]));
    assert!(uses_types(Flavour::Electra, Merge::Segments, &["a"]));
    assert!(!uses_types(Flavour::Electra, Merge::Concat, &["a", "b"]));
}

/// A copy of a vocabulary with a `tokenizer_config.json`.
fn limit_length(scratch: &Scratch, vocabulary: &str, length: &str) -> String {
    let dir = scratch.path(&format!("limit-{length}"));
    fs::create_dir_all(&dir).unwrap();
    fs::copy(Path::new(vocabulary).join("vocab.txt"), Path::new(&dir).join("vocab.txt")).unwrap();
    fs::write(Path::new(&dir).join("tokenizer_config.json"), format!("{{\"model_max_length\": {length}}}"))
        .unwrap();
    dir
}

#[test]
fn rows_are_as_long_as_the_tokenizer_allows_in_txtais_flavour() {
    let scratch = Scratch::new();
    let run = scratch.pretrain("first", &["--steps", "1"]);
    let (g, d) = (checkpoint("generator"), checkpoint("discriminator_pre"));
    let own = format!("{run}/generator");
    let seq_len = |arguments: &[&str]| {
        let models = ["--generator", g.as_str(), "--discriminator", d.as_str()];
        dry_run(&[&models[..], arguments].concat())["seq-len"].as_u64().unwrap()
    };
    let short = limit_length(&scratch, &own, "48");
    // The models have 64 positions.
    let long = limit_length(&scratch, &own, "512");
    let endless = limit_length(&scratch, &own, "1000000000000000019884624838656");
    let txtai = ["--flavour", "txtai", "--tokenizer"];
    assert_eq!(seq_len(&[&txtai[..], &[&short]].concat()), 48);
    assert_eq!(seq_len(&[&txtai[..], &[&long]].concat()), 64);
    assert_eq!(seq_len(&[&txtai[..], &[&endless]].concat()), 64);
    assert_eq!(seq_len(&[&txtai[..], &[&short, "--seq-len", "32"]].concat()), 32);
    assert_eq!(dry_run(&["--preset", "tiny", "--tokenizer", &short])["seq-len"], 64);
    assert_eq!(dry_run(&["--flavour", "txtai", "--preset", "tiny"])["seq-len"], 128);

    // A continued run keeps its rows, also where the tokenizer's settings changed.
    let (book, output) = (scratch.book(40), scratch.path("run"));
    let start = ["pretrain", "--train", &book, "--output", &output, "--quiet", "--steps", "2"];
    let models = ["--generator", g.as_str(), "--discriminator", d.as_str()];
    succeed(&[&start[..], &models, &txtai, &[&short]].concat());
    let resolved = || -> Value {
        serde_json::from_str(&fs::read_to_string(Path::new(&output).join("config.json")).unwrap()).unwrap()
    };
    assert_eq!(resolved()["seq-len"], 48);
    fs::copy(Path::new(&long).join("tokenizer_config.json"), Path::new(&short).join("tokenizer_config.json"))
        .unwrap();
    succeed(&["pretrain", "--resume", &output, "--steps", "3", "--quiet"]);
    assert_eq!(resolved()["seq-len"], 48);
    // A text that fills no row is one short row, as in txtai.
    let little = scratch.path("little.txt");
    fs::write(&little, "A few words that fill no row.\n").unwrap();
    let start = ["pretrain", "--train", &little, "--quiet", "--steps", "2", "--tokenizer", &short];
    let more = ["--flavour", "txtai", "--batch-size", "1", "--output"];
    succeed(&[&start[..], &models, &more, &[scratch.path("little").as_str()]].concat());
}

#[test]
fn pairs_train() {
    let scratch = Scratch::new();
    let run = scratch.pretrain("first", &["--steps", "1"]);
    let table = scratch.path("pairs.csv");
    let rows: String = (0..40).map(|i| format!("what is {i},\"it is {i},\nso it was\"\n")).collect();
    fs::write(&table, format!("question,answer\n{rows}")).unwrap();
    for merge in ["concat", "pack", "none"] {
        let output = scratch.path(merge);
        let (g, d) = (format!("{run}/generator"), format!("{run}/discriminator"));
        let models = ["--generator", g.as_str(), "--discriminator", d.as_str(), "--seq-len", "32"];
        let text = ["--train", table.as_str(), "--columns", "question,answer", "--merge", merge];
        let run = ["pretrain", "--flavour", "txtai", "--steps", "3", "--output", &output, "--log-every", "1"];
        succeed(&[&run[..], &models, &text, &["--quiet", "--allow-unknown"]].concat());
        assert!(lines(&output)[1..].iter().all(|line| line["loss"].as_f64().is_some_and(f64::is_finite)));
    }
}

#[test]
fn a_tokenizer_that_joins_pairs_in_another_way_is_refused() {
    let scratch = Scratch::new();
    let run = scratch.pretrain("first", &["--steps", "1"]);
    let path = Path::new(&run).join("generator/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    // As RoBERTa: two separators between the texts, and one type.
    tokenizer["post_processor"] = json!({
        "type": "RobertaProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2],
        "trim_offsets": true, "add_prefix_space": false,
    });
    let other = scratch.path("roberta");
    fs::create_dir(&other).unwrap();
    fs::write(Path::new(&other).join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let table = scratch.path("pairs.csv");
    fs::write(&table, "a,b\n1,2\n").unwrap();
    let (g, d) = (checkpoint("generator"), checkpoint("discriminator_pre"));
    let models = ["--generator", g.as_str(), "--discriminator", d.as_str(), "--tokenizer", &other];
    let words = ["[CLS] a [SEP] [SEP] b [SEP]", "--flavour electra"];
    let start = ["pretrain", "--flavour", "txtai", "--train", &table, "--columns", "a,b", "--output"];
    fail(&[&start[..], &[&scratch.path("run")], &models].concat(), &words);
    let eval = ["eval", "--flavour", "txtai", "--input", &table, "--columns", "a,b"];
    fail(&[&eval[..], &models].concat(), &words);
}
