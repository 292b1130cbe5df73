//! What a training leaves besides its models (event files, JSON for programs, cards) and what the program tells about
//! itself, read by parsers that are not Elektron's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use elektron::report::Run;
use elektron::report::status::{State, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::report::{both, elektron, succeed};
use crate::support::repository;

/// Records of an event file by the format's definition: lengths and both checksums must be right. Scalars by tag and
/// step, and the step of a session's start.
fn decode(path: &Path) -> (BTreeMap<(String, u64), f32>, Option<u64>) {
    let bytes = fs::read(path).unwrap();
    let unmask = |at: usize| {
        let masked = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        masked.wrapping_sub(0xa282_ead8).rotate_left(15)
    };
    let (mut at, mut scalars, mut start) = (0, BTreeMap::new(), None);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(unmask(at + 8), table_crc(&bytes[at..at + 8]));
        let message = &bytes[at + 12..at + 12 + length];
        assert_eq!(unmask(at + 12 + length), table_crc(message));
        at += 16 + length;
        let fields = fields(message);
        let number = |n: u8| fields.iter().find(|f| f.0 == n).map(|f| f.1.clone());
        let step = number(2).map_or(0, |f| f.number());
        if number(7).is_some() {
            start = Some(step);
        }
        let Some(Field::Bytes(summary)) = number(5) else { continue };
        for (_, value) in self::fields(&summary) {
            let Field::Bytes(value) = value else { panic!("a value is a message") };
            let inner = self::fields(&value);
            let [(1, Field::Bytes(tag)), (2, Field::Fixed(bits))] = &inner[..] else { panic!("{inner:?}") };
            let tag = String::from_utf8(tag.clone()).unwrap();
            scalars.insert((tag, step), f32::from_bits(*bits as u32));
        }
    }
    (scalars, start)
}

#[derive(Clone, Debug)]
enum Field {
    Number(u64),
    Fixed(u64),
    Bytes(Vec<u8>),
}

impl Field {
    fn number(&self) -> u64 {
        match self {
            Self::Number(n) => *n,
            other => panic!("{other:?}"),
        }
    }
}

/// The fields of a message of protocol buffers.
fn fields(mut bytes: &[u8]) -> Vec<(u8, Field)> {
    let varint = |bytes: &mut &[u8]| {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    };
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let take = |n: usize, bytes: &mut &[u8]| {
            let (taken, rest) = bytes.split_at(n);
            *bytes = rest;
            taken.to_vec()
        };
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Fixed(u64::from_le_bytes(take(8, &mut bytes).try_into().unwrap())),
            2 => {
                let n = varint(&mut bytes) as usize;
                Field::Bytes(take(n, &mut bytes))
            }
            5 => Field::Fixed(u64::from(u32::from_le_bytes(take(4, &mut bytes).try_into().unwrap()))),
            other => panic!("wire type {other}"),
        };
        all.push(((key >> 3) as u8, field));
    }
    all
}

/// CRC-32C by a table: another way than the writer's.
fn table_crc(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|i| (0..8).fold(i, |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 }))
        .collect();
    !bytes.iter().fold(!0u32, |crc, b| (crc >> 8) ^ table[((crc ^ u32::from(*b)) & 0xff) as usize])
}

struct Trained {
    _scratch: TempDir,
    dir: String,
}

/// A short training of the smallest networks there are.
fn train(steps: &str, extra: &[&str]) -> (Trained, String) {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let text = fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
    let (book, dir) = (path("a \"b\" `c` | $: - #d.txt"), path("run"));
    fs::write(&book, text.lines().take(120).collect::<Vec<_>>().join("\n")).unwrap();
    let golden = |name: &str| repository("tests/golden/checkpoints").join(name).to_str().unwrap().to_owned();
    let (g, d) = (golden("generator"), golden("discriminator_pre"));
    let mut arguments =
        vec!["pretrain", "--train", &book, "--validation", &book, "--output", &dir, "--vocab-size", "900"];
    arguments.extend([
        "--generator",
        &g,
        "--discriminator",
        &d,
        "--seq-len",
        "32",
        "--batch-size",
        "4",
        "--steps",
        steps,
    ]);
    arguments.extend([
        "--log-every",
        "1",
        "--eval-every",
        "4",
        "--save-every",
        "3",
        "--merge",
        "concat",
        "--device",
        "cpu",
    ]);
    arguments.extend(extra);
    let said = succeed(&arguments);
    (Trained { _scratch: scratch, dir }, said)
}

#[test]
fn event_files_hold_the_log_and_a_resumed_run_says_where_it_starts() {
    let (run, _) = train("6", &["--quiet", "--keep", "9"]);
    let dir = Path::new(&run.dir);
    fs::remove_file(dir.join("checkpoints/step-000000006.safetensors")).unwrap();
    succeed(&["pretrain", "--resume", &run.dir, "--quiet"]);
    let files = elektron::train::tensorboard::files(dir).unwrap();
    assert_eq!(files.len(), 2);
    let ((first, none), (second, start)) = (decode(&files[0]), decode(&files[1]));
    assert_eq!((none, start), (None, Some(4)), "steps 4 to 6 were made again");
    let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut merged: BTreeMap<(String, u64), f32> =
        first.into_iter().filter(|((_, step), _)| *step < 4).collect();
    merged.extend(second);
    let mut count = 0;
    for line in lines.iter().filter(|line| line.get("baseline").is_none()) {
        let step = line["step"].as_u64().unwrap();
        let (group, values) = match line.get("eval") {
            Some(eval) => ("eval", eval),
            None => ("train", line),
        };
        for (key, value) in values.as_object().unwrap().iter().filter(|(k, _)| !k.starts_with("step")) {
            let got = merged[&(format!("{group}/{key}"), step)];
            assert_eq!(got, value.as_f64().unwrap() as f32, "{group}/{key} at {step}");
            count += 1;
        }
    }
    assert_eq!(merged.len(), count, "nothing else is there");
}

#[test]
fn progress_and_summary_for_programs() {
    let (run, said) =
        train("5", &["--json", "--log-to", "jsonl", "--license", "cc-by-4.0", "--language", "en"]);
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
    assert_eq!((count("train"), count("eval"), count("summary")), (5, 2, 1));
    for line in lines.iter().filter(|line| line["event"] == "train") {
        assert!(line["eta_s"].is_number() && line["steps"] == 5 && line["gen_loss"].is_number(), "{line}");
    }
    assert_eq!(count("baseline"), 1);
    let summary = lines.last().unwrap();
    assert_eq!(summary["baseline"]["unigram_loss"], lines[0]["unigram_loss"]);
    assert_eq!(summary["warnings"], json!([]), "five steps are too few to judge");
    assert_eq!((&summary["event"], &summary["step"]), (&json!("summary"), &json!(5)));
    let parts: f64 = ["stepping_seconds", "evaluating_seconds", "saving_seconds"]
        .map(|k| summary[k].as_f64().unwrap())
        .iter()
        .sum();
    let whole = summary["seconds"].as_f64().unwrap();
    assert!(parts <= whole && parts > 0.8 * whole, "{parts} of {whole}");
    assert!(elektron::train::tensorboard::files(Path::new(&run.dir)).unwrap().is_empty());
    // Finished: what the list of runs, the report and the cards make of it.
    assert_eq!(Status::of(Path::new(&run.dir)).unwrap().state, State::Finished);
    both(&Run::load_all(&[PathBuf::from(&run.dir)]).unwrap());
    for (network, task) in [("generator", "fill-mask"), ("discriminator", "token-classification")] {
        let card = fs::read_to_string(Path::new(&run.dir).join(network).join("README.md")).unwrap();
        let yaml = card.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap();
        let front = &yaml_rust2::YamlLoader::load_from_str(yaml).unwrap()[0];
        assert_eq!(front["license"].as_str(), Some("cc-by-4.0"));
        assert_eq!(front["language"].as_str(), Some("en"));
        assert_eq!(front["pipeline_tag"].as_str(), Some(task));
        let metrics = &front["model-index"][0]["results"][0]["metrics"];
        assert!(metrics.as_vec().unwrap().iter().all(|m| m["value"].as_f64().unwrap() >= 0.0));
        assert!(card.contains("``a \"b\" `c` \\| $: - #d.txt``"), "{card}");
        assert!(!card.contains(&run.dir), "no path of this machine is told");
    }
}

#[test]
fn any_setting_makes_valid_front_matter() {
    use elektron::config::{RunConfig, Settings};
    use elektron::train::Summary;
    use elektron::train::card::{Facts, write_cards};
    use elektron::train::metrics::Metrics;
    let evil = "no: [\"x\"]\n---\n'\\\u{1}\u{7f}\u{85}\u{2028}ünï🦀 #";
    let scratch = tempfile::tempdir().unwrap();
    for name in ["generator", "discriminator"] {
        fs::create_dir(scratch.path().join(name)).unwrap();
    }
    let settings = Settings {
        train: Some(vec!["text".to_owned()]),
        output: Some(scratch.path().to_owned()),
        language: Some(evil.to_owned()),
        ..Settings::default()
    };
    let config = RunConfig::resolve(settings).unwrap();
    let summary = Summary {
        held_out: Some(Metrics { gen_mask_loss: f64::NAN, ..Metrics::default() }),
        ..Summary::default()
    };
    let facts = Facts { files: vec![evil.to_owned(); 30], device: evil.to_owned(), ..Facts::default() };
    write_cards(&config, &summary, &facts).unwrap();
    let card = fs::read_to_string(scratch.path().join("generator/README.md")).unwrap();
    let yaml = card.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap();
    let front = &yaml_rust2::YamlLoader::load_from_str(yaml).unwrap()[0];
    assert_eq!(front["language"].as_str(), Some(evil));
    assert_eq!(front["license"].as_str(), Some("unknown"));
    let metrics = front["model-index"][0]["results"][0]["metrics"].as_vec().unwrap();
    assert_eq!(metrics.len(), 1, "what is not finite is left out");
    assert!(card.contains("and 10 more"));
}

#[test]
fn shells_and_man_know_every_command() {
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef elektron"),
        ("fish", "complete -c elektron"),
        ("elvish", "elektron"),
        ("powershell", "elektron"),
    ] {
        let script = succeed(&["completions", shell]);
        assert!(
            script.contains(word) && script.contains("pretrain") && script.contains("learning-rate"),
            "{shell}"
        );
    }
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("man1");
    succeed(&["man", dir.to_str().unwrap()]);
    for page in ["elektron.1", "elektron-pretrain.1", "elektron-report.1", "elektron-runs.1"] {
        let text = fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains("elektron"), "{page}");
    }
    assert!(fs::read_to_string(dir.join("elektron-pretrain.1")).unwrap().contains("learning\\-rate"));
    assert!(succeed(&["man"]).contains(".TH"));
    for command in [
        "pretrain",
        "prepare",
        "forward",
        "eval",
        "detect",
        "fill",
        "doctor",
        "report",
        "runs",
        "completions",
        "man",
    ] {
        assert!(succeed(&[command, "--help"]).contains("elektron "), "{command}");
        assert!(succeed(&[command, "--help"]).contains("Examples:"), "{command}");
    }
    assert!(succeed(&["tokenizer", "train", "--help"]).contains("Examples:"));
    assert!(succeed(&["--help"]).contains("Examples:"));
}

#[test]
fn typos_get_a_suggestion() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("run.toml");
    let refuse = |text: &str, words: &[&str]| {
        fs::write(&file, text).unwrap();
        let out = elektron(&["pretrain", "--config", file.to_str().unwrap()]);
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
    };
    refuse("lerning_rate = 1e-3\n", &["`lerning_rate`", "did you mean `learning-rate`?"]);
    refuse("preset = 'smal'\n", &["`preset`", "smal", "did you mean `small`?"]);
    refuse("log-to = ['tensorbord']\n", &["`log-to`", "tensorbord", "did you mean `tensorboard`?"]);
    refuse(
        "train: [a.txt]\nbatch_size: 8\n",
        &["run.toml", "looks like YAML", "TOML", "learning-rate = 3e-4"],
    );
    refuse("{\"batch-size\": 8}\n", &["run.toml", "looks like JSON", "TOML", "learning-rate = 3e-4"]);
    refuse("batch-size 8\n", &["run.toml", "not TOML", "learning-rate = 3e-4", "line 1"]);
    refuse("learning-rate = nan\n", &["run.toml", "`learning-rate` is not a finite number"]);
    refuse("betas = [0.9, inf]\n", &["run.toml", "`betas` is not a finite number"]);
    refuse("steps = 2\nepochs = 1.0\n", &["run.toml", "`steps` and `epochs`"]);
    refuse("train = ['a.txt']\n", &["missing --output DIR"]);
    refuse("output = 'run'\n", &["missing --train PATH"]);
    refuse("schedule = 'zzzzzzzz'\n", &["`schedule`", "zzzzzzzz", "expected one of `electra`, `linear`"]);
    let out = elektron(&["pretrain", "--preset", "smal"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("a similar value exists: 'small'"));
    let out = elektron(&["pretrain", "--lerning-rate", "1"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("--learning-rate"));
}
