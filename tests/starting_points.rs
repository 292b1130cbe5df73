//! What a training starts from and what it leaves: checkpoints of every class of ELECTRA, one base
//! for both networks, and a configuration alone.

use std::fs;
use std::path::{Path, PathBuf};

use elektron::model::hf::{Checkpoint, HostTensor};
use serde_json::{Map, Value, json};

use crate::cli::{Scratch, checkpoint, elektron, fail, golden_batch, succeed};
use crate::models::{Tensors, WORD, altered, config_of, tensor, weights_of, write_config};
use crate::support::{golden, read_tensors, relative_l2, repository, widen};

const HEAD: &str = "generator_lm_head.weight";

#[test]
fn an_untied_head_is_tied_where_nothing_is_lost() {
    let scratch = Scratch::new();
    let untied = |name: &str, head: Option<f32>| {
        altered(&scratch, name, "generator", |config, tensors| {
            config.insert("tie_word_embeddings".to_owned(), json!(false));
            if let Some(difference) = head {
                let mut weight = tensors[WORD].clone();
                weight.data[7] += difference;
                tensors.insert(HEAD.to_owned(), weight);
            }
        })
    };
    let original = Checkpoint::load(&golden("checkpoints/generator")).unwrap();
    for (name, head) in [("absent", None), ("equal", Some(0.0))] {
        let loaded = Checkpoint::load(&untied(name, head)).unwrap();
        assert_eq!(loaded, original, "{name}");
        let out = PathBuf::from(scratch.path("out"));
        loaded.save(&out).unwrap();
        assert_eq!(config_of(&out)["tie_word_embeddings"], true);
        assert!(!weights_of(&out).contains_key(HEAD));
    }
    let different = untied("different", Some(0.5));
    let error = Checkpoint::load(&different).unwrap_err().to_string();
    for word in ["`tie_word_embeddings` is false", HEAD, WORD, "different"] {
        assert!(error.contains(word), "{error}");
    }
    // Its encoder is that of a discriminator nevertheless.
    let run = Started::new(&scratch, "run", &["--discriminator", different.to_str().unwrap()]);
    assert!(run.said.contains("generator_lm_head.weight"), "what is not used is reported: {}", run.said);
    let refused = ["--base", different.to_str().unwrap()];
    fail(&run.arguments(&scratch, "other", &refused), &["tie_word_embeddings", "generator"]);
}

/// A training of one step that changes no weight, so that it leaves the weights it began with.
pub(crate) struct Started {
    dir: PathBuf,
    /// What it printed on standard error.
    pub(crate) said: String,
}

impl Started {
    pub(crate) fn new(scratch: &Scratch, name: &str, extra: &[&str]) -> Self {
        let run = Self { dir: PathBuf::from(scratch.path(name)), said: String::new() };
        let arguments = run.arguments(scratch, name, extra);
        let out = elektron(&arguments);
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success(), "{arguments:?}: {said}");
        Self { said, ..run }
    }

    fn arguments<'a>(&self, scratch: &'a Scratch, name: &str, extra: &[&'a str]) -> Vec<&'a str> {
        let book = scratch.book(150);
        let vocabulary = scratch.vocabulary(&book);
        let owned = [book, scratch.path(name), vocabulary].map(|text| &*text.leak());
        let [book, output, vocabulary] = owned;
        let defaults = [
            ("--train", book),
            ("--output", output),
            ("--tokenizer", vocabulary),
            ("--device", "cpu"),
            ("--steps", "1"),
            ("--learning-rate", "0"),
            ("--batch-size", "2"),
            ("--seq-len", "32"),
            ("--merge", "concat"),
            ("--share", "none"),
            ("--log-to", "jsonl"),
        ];
        let given = defaults.iter().filter(|(flag, _)| !extra.contains(flag));
        let mut arguments = vec!["pretrain"];
        arguments.extend(given.flat_map(|&(flag, value)| [flag, value]));
        if extra.contains(&"--discriminator") && !extra.contains(&"--generator") {
            arguments.extend(["--generator", checkpoint("generator").leak()]);
        }
        arguments.extend(extra);
        arguments
    }

    pub(crate) fn weights(&self, network: &str) -> Tensors {
        weights_of(&self.dir.join(network))
    }

    pub(crate) fn config(&self, network: &str) -> Map<String, Value> {
        config_of(&self.dir.join(network))
    }
}

fn is_encoder(name: &str) -> bool {
    name.starts_with("electra.")
}

/// Both have the same encoder, bit for bit.
fn same_encoder(got: &Tensors, want: &Tensors) {
    let of_encoder = |all: &Tensors| -> Tensors {
        all.iter().filter(|(name, _)| is_encoder(name)).map(|(n, t)| (n.clone(), t.clone())).collect()
    };
    assert_eq!(of_encoder(got), of_encoder(want));
}

/// As `transformers` saves the class: the encoder of the golden discriminator and a head of its
/// own.
fn of_class(scratch: &Scratch, class: &str, labels: usize) -> PathBuf {
    altered(scratch, &format!("{class}{labels}"), "discriminator_pre", |config, tensors| {
        config.insert("architectures".to_owned(), json!([class]));
        tensors.retain(|name, _| is_encoder(name));
        let c = config["hidden_size"].as_u64().unwrap() as usize;
        let mut linear = |name: &str, outputs: usize| {
            tensors.insert(format!("{name}.weight"), tensor(&[outputs, c]));
            tensors.insert(format!("{name}.bias"), tensor(&[outputs]));
        };
        match class {
            "ElectraForSequenceClassification" => {
                linear("classifier.dense", c);
                linear("classifier.out_proj", labels);
            }
            "ElectraForTokenClassification" => linear("classifier", labels),
            "ElectraForQuestionAnswering" => linear("qa_outputs", 2),
            "ElectraForMultipleChoice" => {
                linear("sequence_summary.summary", c);
                linear("classifier", 1);
            }
            // Saved by itself, an encoder's tensors have no prefix.
            "ElectraModel" => {
                *tensors = std::mem::take(tensors)
                    .into_iter()
                    .map(|(name, tensor)| (name.trim_start_matches("electra.").to_owned(), tensor))
                    .collect();
            }
            other => panic!("{other}"),
        }
        if labels != 2 {
            let names = (0..labels).map(|i| (i.to_string(), json!(format!("L{i}"))));
            config.insert("id2label".to_owned(), Value::Object(names.collect()));
        }
    })
}

#[test]
fn the_encoder_of_every_class_is_a_starting_point() {
    let scratch = Scratch::new();
    let want = weights_of(&golden("checkpoints/discriminator_pre"));
    let fresh = ["discriminator_predictions.dense.weight", "discriminator_predictions.dense_prediction.bias"];
    for (class, labels, unused) in [
        ("ElectraModel", 2, None),
        ("ElectraForSequenceClassification", 3, Some("classifier.out_proj.weight")),
        ("ElectraForTokenClassification", 5, Some("classifier.weight")),
        ("ElectraForTokenClassification", 2, Some("classifier.bias")),
        ("ElectraForQuestionAnswering", 2, Some("qa_outputs.weight")),
        ("ElectraForMultipleChoice", 2, Some("sequence_summary.summary.weight")),
    ] {
        let dir = of_class(&scratch, class, labels);
        let name = format!("run-{class}{labels}");
        let run = Started::new(&scratch, &name, &["--discriminator", dir.to_str().unwrap()]);
        same_encoder(&run.weights("discriminator"), &want);
        assert!(run.said.contains(class), "{}", run.said);
        fresh.iter().for_each(|name| assert!(run.said.contains(name), "{class}: {}", run.said));
        if let Some(unused) = unused {
            assert!(run.said.contains(&format!("not used of {}", dir.display())), "{}", run.said);
            assert!(run.said.contains(unused), "{class}: {}", run.said);
        }
        let config = run.config("discriminator");
        assert_eq!(config["architectures"], json!(["ElectraForPreTraining"]));
        assert!(!config.contains_key("id2label"), "labels of a head that is gone");
        // The three commands that need a head say that there is none.
        let batch = golden_batch(&scratch);
        let (g, d) = (checkpoint("generator"), dir.to_str().unwrap());
        let forward = ["forward", "--generator", &g, "--discriminator", d, "--batch", &batch];
        let forward = [&forward[..], &["--output", "/dev/null"]].concat();
        let eval = ["eval", "--generator", &g, "--discriminator", d, "--input", &scratch.book(20)];
        let vocabulary = scratch.vocabulary(&scratch.book(150));
        let eval = [&eval[..], &["--tokenizer", &vocabulary]].concat();
        let detect = ["detect", "--discriminator", d, "--tokenizer", &vocabulary, "words"];
        if (class, labels) != ("ElectraForTokenClassification", 2) {
            for command in [&forward[..], &eval, &detect] {
                fail(command, &[class, "ElectraForPreTraining", "--base"]);
            }
        }
    }
}

#[test]
fn a_token_classifier_of_two_labels_keeps_its_head_where_it_is_asked_for() {
    let scratch = Scratch::new();
    let two = of_class(&scratch, "ElectraForTokenClassification", 2);
    let head = ["--head", "token-classification", "--discriminator"];
    let run = Started::new(&scratch, "two", &[&head[..], &[two.to_str().unwrap()]].concat());
    assert_eq!(run.weights("discriminator")["classifier.weight"], tensor(&[2, 64]));
    assert!(!run.said.contains("fresh"), "{}", run.said);
    let five = of_class(&scratch, "ElectraForTokenClassification", 5);
    let run = Started::new(&scratch, "five", &[&head[..], &[five.to_str().unwrap()]].concat());
    assert_eq!(run.weights("discriminator")["classifier.weight"].shape, [2, 64]);
    assert!(run.said.contains("classifier.weight"), "{}", run.said);
    let wrong = altered(&scratch, "wrong", "discriminator_token", |config, _| {
        config.insert("id2label".to_owned(), json!({"0": "a", "1": "b", "2": "c"}));
    });
    let error = Checkpoint::load(&wrong).unwrap_err().to_string();
    assert!(error.contains("2 rows") && error.contains("3 labels"), "{error}");
}

#[test]
fn one_base_is_where_both_networks_start() {
    let scratch = Scratch::new();
    let (g, d) = (checkpoint("generator"), checkpoint("discriminator_pre"));
    for (base, network, head) in [
        (&g, "generator", "discriminator_predictions.dense.weight"),
        (&d, "discriminator", "generator_predictions.dense.weight"),
    ] {
        let run = Started::new(&scratch, &format!("run-{network}"), &["--base", base]);
        let want = weights_of(Path::new(base));
        same_encoder(&run.weights("generator"), &want);
        same_encoder(&run.weights("discriminator"), &want);
        assert_eq!(run.weights(network), want, "its head too");
        assert!(run.said.contains(head) && run.said.contains("start fresh"), "{}", run.said);
        assert!(!run.said.contains("not used"), "both heads have their place: {}", run.said);
        // A continued run keeps the setting, and repeats nothing.
        let out = elektron(&["pretrain", "--resume", run.dir.to_str().unwrap()]);
        assert!(out.status.success());
        assert!(!String::from_utf8(out.stderr).unwrap().contains("start fresh"));
        fail(&["pretrain", "--resume", run.dir.to_str().unwrap(), "--base", "/other"], &["`base`", "/other"]);
    }
    let run = Started { dir: PathBuf::from(scratch.path("refused")), said: String::new() };
    for (flag, value) in [("--generator", &*g), ("--discriminator", &d), ("--preset", "tiny")] {
        let mut arguments = run.arguments(&scratch, "refused", &["--base", &g]);
        arguments.extend([flag, value]);
        fail(&arguments, &["--base", flag]);
    }
    fail(
        &run.arguments(&scratch, "refused", &["--generator", &d]),
        &["discriminator", "ElectraForMaskedLM", "--base"],
    );
    let arguments = run.arguments(&scratch, "refused", &["--base", "tiny"]);
    fail(&arguments, &["--base tiny", "--preset tiny"]);
    let shown = run.arguments(&scratch, "refused", &["--base", &d, "--dry-run", "--json"]);
    let shown: Value = serde_json::from_str(&succeed(&shown)).unwrap();
    assert_eq!(shown["config"]["base"], json!(d));
    assert_eq!(shown["generator"]["hidden_size"], 64);
    assert!(!run.dir.join("generator").exists());
}

/// `elektron forward` on what a training from a base left gives the logits of `transformers`.
#[test]
fn logits_of_a_base_are_those_of_transformers() {
    let scratch = Scratch::new();
    let (batch, out) = (golden_batch(&scratch), scratch.path("out.safetensors"));
    let want = read_tensors(&golden("pre_unshared/forward.safetensors")).floats;
    let run = |base: &str| Started::new(&scratch, &format!("run-{base}"), &["--base", &checkpoint(base)]);
    let (ours, theirs) = (run("generator"), run("discriminator_pre"));
    let (g, d) = (ours.dir.join("generator"), theirs.dir.join("discriminator"));
    let (g, d) = (g.to_str().unwrap(), d.to_str().unwrap());
    let arguments = ["forward", "--generator", g, "--discriminator", d, "--batch", &batch, "--output", &out];
    succeed(&[&arguments[..], &["--share", "none", "--flavour", "txtai", "--device", "cpu"]].concat());
    let got = read_tensors(Path::new(&out)).floats;
    let mask = &read_tensors(&golden("inputs.safetensors")).ints["attention_mask"];
    for (name, reference) in [("gen_logits", "gen_logits_masked"), ("disc_logits", "disc_logits")] {
        // Elektron computes nothing where there is padding.
        let counts = |i: &usize| name == "gen_logits" || mask[*i] == 1;
        let pick = |all: &HostTensor| -> Vec<f64> {
            widen(&(0..all.data.len()).filter(counts).map(|i| all.data[i]).collect::<Vec<_>>())
        };
        let error = relative_l2(name, &pick(&got[name]), &pick(&want[reference]));
        assert!(error < 1e-5, "{name}: {error}");
    }
}

#[test]
fn a_configuration_alone_is_a_new_model_of_its_sizes() {
    let scratch = Scratch::new();
    let dir = PathBuf::from(scratch.path("sizes"));
    fs::create_dir(&dir).unwrap();
    let sizes = json!({
        "model_type": "electra", "vocab_size": 950, "embedding_size": 10, "hidden_size": 15,
        "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 17,
        "max_position_embeddings": 77, "type_vocab_size": 1, "id2label": {"0": "a", "1": "b", "2": "c"},
    });
    write_config(&dir, sizes.as_object().unwrap());
    let name = dir.to_str().unwrap();
    let run = Started::new(&scratch, "run", &["--base", name, "--seq-len", "77"]);
    assert!(run.said.contains("untrained, of the sizes in") && run.said.contains(name), "{}", run.said);
    for network in ["generator", "discriminator"] {
        let config = run.config(network);
        for (field, value) in sizes.as_object().unwrap() {
            assert_eq!(config.get(field), Some(value), "{network} {field}");
        }
        let read = Checkpoint::load(&run.dir.join(network)).unwrap();
        assert_eq!(read.tensors[WORD].shape, [950, 10]);
        assert!(read.tensors[WORD].data[10..].iter().any(|&x| x != 0.0), "drawn, not zero");
    }
    assert_ne!(run.weights("generator")[WORD], run.weights("discriminator")[WORD]);
    let classifier = ["--base", name, "--head", "token-classification"];
    let run = Started::new(&scratch, "labels", &classifier);
    assert!(!run.config("discriminator").contains_key("id2label"), "three labels do not fit a head of two");
    // As one of a pair, and shown without a step.
    let shown = ["--discriminator", name, "--generator", name, "--dry-run", "--json"];
    let shown: Value = serde_json::from_str(&succeed(&run.arguments(&scratch, "shown", &shown))).unwrap();
    assert_eq!(shown["discriminator"]["max_position_embeddings"], 77);
    // A vocabulary that is trained has as many tokens as there are rows, and no more.
    let book = scratch.book(150);
    let output = scratch.path("trained");
    let own = ["pretrain", "--train", &book, "--output", &output, "--base", name, "--seq-len", "32"];
    let own =
        [&own[..], &["--steps", "1", "--batch-size", "2", "--merge", "concat", "--device", "cpu"]].concat();
    fail(&[&own[..], &["--vocab-size", "951"]].concat(), &["--vocab-size 951", "950 rows"]);
    let said = String::from_utf8(elektron(&own).stderr).unwrap();
    assert!(said.contains("training a vocabulary of 950 tokens"), "{said}");
    // Too long for its positions, before anything is tokenized or written, and in a dry run too.
    for extra in [&["--seq-len", "78"][..], &["--seq-len", "78", "--dry-run"]] {
        let arguments = run.arguments(&scratch, "long", &[&["--base", name][..], extra].concat());
        fail(&arguments, &["78 tokens", "77 positions", "--seq-len 77"]);
        assert!(!Path::new(&scratch.path("long")).join("shards").exists());
    }
    for file in ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model-00001-of-00002.safetensors"]
    {
        fs::write(dir.join(file), b"x").unwrap();
        let arguments = run.arguments(&scratch, "other", &["--base", name]);
        fail(&arguments, &[name, file, "no weights"]);
        fs::remove_file(dir.join(file)).unwrap();
    }
    fail(
        &["detect", "--discriminator", name, "--tokenizer", &scratch.vocabulary(&book), "words"],
        &[name, "no weights", "elektron pretrain"],
    );
}

/// Nor does a run that ends with such weights leave models; negative numbers and names with `_` are
/// flags' values and names.
#[test]
fn the_last_update_is_looked_at() {
    let scratch = Scratch::new();
    let (book, vocabulary) = (scratch.book(60), repository("tests/data/wordpiece-8k.txt"));
    let output = scratch.path("run");
    let start =
        ["pretrain", "--train", &book, "--tokenizer", vocabulary.to_str().unwrap(), "--preset", "tiny"];
    let more = ["--max_steps=1", "--batch-size", "2", "--seq_len", "16", "--output_dir", &output, "--quiet"];
    let with = |extra: &[&'static str]| -> Vec<String> {
        [&start[..], &more, &["--device", "cpu"], extra].concat().iter().map(|s| (*s).to_owned()).collect()
    };
    let run = |extra: &[&'static str], words: &[&str]| {
        let arguments = with(extra);
        fail(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), words);
    };
    run(&["--clip", "-1"], &["--clip is -1"]);
    run(&["--adam-epsilon", "0"], &["--adam-epsilon is 0"]);
    run(
        &["--flavour", "txtai", "--learning-rate", "1e38", "--lr-scheduler", "constant"],
        &["after step 1", "NaN or infinite", "--learning-rate"],
    );
    assert!(!Path::new(&output).join("generator/model.safetensors").exists());
}

#[test]
fn a_directory_of_a_model_is_not_that_of_a_run() {
    let scratch = Scratch::new();
    let (book, model) = (scratch.book(60), scratch.path("model"));
    let from = golden("checkpoints").join("generator");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(&from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), Path::new(&model).join(file.file_name())).unwrap();
    }
    let before = fs::read(Path::new(&model).join("config.json")).unwrap();
    let vocabulary = repository("tests/data/wordpiece-8k.txt");
    let arguments =
        ["pretrain", "--train", &book, "--tokenizer", vocabulary.to_str().unwrap(), "--preset", "tiny"];
    fail(
        &[&arguments[..], &["--steps", "1", "--output", &model]].concat(),
        &["config.json", "another --output"],
    );
    assert_eq!(fs::read(Path::new(&model).join("config.json")).unwrap(), before);
}

#[test]
fn one_token_type_is_refused_at_the_beginning_and_leaves_the_settings_free() {
    let scratch = Scratch::new();
    let one = |name: &str| {
        altered(&scratch, &format!("one-{name}"), name, |config, tensors| {
            config.insert("type_vocab_size".to_owned(), json!(1));
            let types = tensors.get_mut("electra.embeddings.token_type_embeddings.weight").unwrap();
            types.data.truncate(types.data.len() / 2);
            types.shape[0] = 1;
        })
    };
    let (g, d) = (one("generator"), one("discriminator_pre"));
    let pair = ["--generator", g.to_str().unwrap(), "--discriminator", d.to_str().unwrap()];
    let words = ["one token type", "type_vocab_size", "--merge concat"];
    for (name, resume) in [("fresh", false), ("resumed", true)] {
        let run = Started { dir: PathBuf::from(scratch.path(name)), said: String::new() };
        let segments = |extra: &[&'static str]| {
            let mut arguments = run.arguments(&scratch, name, &pair);
            arguments.retain(|argument| !["--merge", "concat"].contains(argument));
            arguments.extend(extra);
            arguments
        };
        fail(&segments(&[]), &words);
        fail(&segments(&["--merge", "segments"]), &words);
        fail(&segments(&["--dry-run"]), &words);
        assert!(!run.dir.join("shards").exists() && !run.dir.join("config.json").exists());
        let mut arguments = run.arguments(&scratch, name, &pair);
        if resume {
            arguments.push("--resume");
        }
        succeed(&arguments);
        let (g, d) = (run.dir.join("generator"), run.dir.join("discriminator"));
        let eval = ["eval", "--generator", g.to_str().unwrap(), "--discriminator", d.to_str().unwrap()];
        let book = scratch.book(60);
        let eval = [&eval[..], &["--input", &book, "--seq-len", "32", "--merge", "segments"]].concat();
        fail(&eval, &words);
    }
}

#[test]
fn a_run_that_was_refused_before_its_first_step_leaves_its_settings_free() {
    let scratch = Scratch::new();
    let (g, d) = (checkpoint("generator"), checkpoint("discriminator_pre"));
    let run = Started { dir: PathBuf::from(scratch.path("run")), said: String::new() };
    let arguments = |extra: &[&'static str]| {
        let mut arguments = run.arguments(&scratch, "run", &["--generator", &g, "--discriminator", &d]);
        arguments.extend(extra);
        arguments
    };
    let short = scratch.path("short.txt");
    fs::write(&short, "A few words.\n").unwrap();
    let short: &'static str = short.leak();
    // The corpus is too small, which shows when the settings are written already.
    let mut refused = arguments(&[]);
    let at = refused.iter().position(|&argument| argument == "--train").unwrap();
    refused[at + 1] = short;
    fail(&refused, &["fill no row"]);
    assert!(run.dir.join("config.json").is_file());
    succeed(&arguments(&["--resume", "--seed", "7"]));
    fail(&arguments(&["--resume", "--seed", "8"]), &["`seed`", "7", "8"]);
    fail(&arguments(&["--seed", "7"]), &["already holds a run"]);
}
