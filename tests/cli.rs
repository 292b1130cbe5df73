//! The program as users meet it: runs that resume to the same bytes, results against `transformers`, and one clear
//! error for whatever is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::golden::HALF;
use crate::support::{golden, read_tensors, relative_l2, repository, widen};

pub(crate) fn elektron(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_elektron")).args(arguments).output().unwrap()
}

pub(crate) fn succeed(arguments: &[&str]) -> String {
    let out = elektron(arguments);
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The one error that a failing command prints, with exit code 1.
pub(crate) fn fail(arguments: &[&str], words: &[&str]) {
    let out = elektron(arguments);
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// The first lines of the book.
    pub(crate) fn book(&self, lines: usize) -> String {
        let text = fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
        let part: Vec<&str> = text.lines().take(lines).collect();
        let path = self.path("book.txt");
        fs::write(&path, part.join("\n")).unwrap();
        path
    }

    /// Trains the small networks of the golden checkpoints, whose vocabulary has 1,000 entries.
    pub(crate) fn pretrain(&self, output: &str, extra: &[&str]) -> String {
        let (book, output) = (self.book(150), self.path(output));
        let vocabulary = self.vocabulary(&book);
        let (g, d) = (checkpoint("generator"), checkpoint("discriminator_pre"));
        let mut arguments =
            vec!["pretrain", "--train", &book, "--tokenizer", &vocabulary, "--output", &output];
        arguments.extend(["--generator", &g, "--discriminator", &d, "--seq-len", "32", "--batch-size", "4"]);
        arguments.extend(["--log-every", "1", "--merge", "concat", "--quiet"]);
        arguments.extend(extra);
        succeed(&arguments);
        output
    }

    pub(crate) fn vocabulary(&self, book: &str) -> String {
        let path = self.path("vocabulary");
        if !Path::new(&path).exists() {
            succeed(&["tokenizer", "train", "--input", book, "--vocab-size", "900", "--output", &path]);
        }
        path
    }
}

pub(crate) fn checkpoint(name: &str) -> String {
    golden("checkpoints").join(name).to_str().unwrap().to_owned()
}

pub(crate) fn lines(run: &str) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(run).join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn weights(run: &str) -> [Vec<u8>; 2] {
    ["generator", "discriminator"]
        .map(|n| fs::read(Path::new(run).join(n).join("model.safetensors")).unwrap())
}

#[test]
fn a_run_leaves_everything_that_is_promised() {
    let scratch = Scratch::new();
    let validation = scratch.book(150);
    let run = scratch.pretrain("run", &["--steps", "6", "--validation", &validation, "--eval-every", "3"]);
    let lines = lines(&run);
    let keys = "step tokens loss gen_loss disc_loss gen_acc gen_mask_acc gen_mask_loss gen_kept_acc disc_acc disc_auc \
                disc_auc_error disc_precision disc_recall disc_score_std disc_constant_loss fake_rate disc_all_acc \
                disc_all_auc disc_all_precision disc_all_recall all_fake_rate lr grad_norm tok_per_s";
    let baseline = &lines[0]["baseline"];
    assert_eq!(lines[0]["step"], 0);
    let unigram_loss = baseline["unigram_loss"].as_f64().unwrap();
    assert!(unigram_loss > 3.0 && unigram_loss < 900f64.ln(), "{baseline}");
    assert!(baseline["unigram_acc"].as_f64().unwrap() > 0.01);
    for line in lines[1..].iter().filter(|line| line.get("eval").is_none()) {
        for key in keys.split_whitespace() {
            assert!(line[key].is_number(), "{key} in {line}");
        }
    }
    assert_eq!(lines.iter().filter(|line| line.get("eval").is_some()).count(), 2);
    assert_eq!(lines.last().unwrap()["step"], 6);
    for (network, class) in [("generator", "ElectraForMaskedLM"), ("discriminator", "ElectraForPreTraining")]
    {
        let dir = Path::new(&run).join(network);
        for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md"]
        {
            assert!(dir.join(file).is_file(), "{network}/{file}");
        }
        let config: Value =
            serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"][0], class);
    }
    let (g, d) = (format!("{run}/generator"), format!("{run}/discriminator"));
    let eval = [
        "eval",
        "--generator",
        &g,
        "--discriminator",
        &d,
        "--input",
        &validation,
        "--seq-len",
        "32",
        "--json",
    ];
    let metrics: Value = serde_json::from_str(&succeed(&eval)).unwrap();
    assert!(metrics["eval"]["gen_loss"].as_f64().unwrap() > 0.0);
    assert_eq!(metrics["baseline"], *baseline, "the run's, which is next to the models");
    assert_eq!(metrics["baseline_of"], "the run's training text");
    let detect = succeed(&["detect", "--discriminator", &d, "--json", "The man spoke."]);
    let detect: Value = serde_json::from_str(&detect).unwrap();
    for token in detect["tokens"].as_array().unwrap() {
        assert!((0.0..=1.0).contains(&token["replaced"].as_f64().unwrap()));
    }
}

#[test]
fn a_resumed_run_ends_in_the_same_bytes() {
    let scratch = Scratch::new();
    let settings = ["--steps", "8", "--save-every", "3", "--keep", "9", "--grad-accumulation", "2"];
    let straight = scratch.pretrain("straight", &settings);
    let broken = scratch.pretrain("broken", &settings);
    // As if it had been killed after step 3: later checkpoints and results are gone, the log ran on.
    for step in [6, 8] {
        fs::remove_file(format!("{broken}/checkpoints/step-{step:09}.safetensors")).unwrap();
    }
    fs::remove_dir_all(format!("{broken}/generator")).unwrap();
    fs::remove_dir_all(format!("{broken}/discriminator")).unwrap();
    // And while it was writing the next one.
    fs::write(format!("{broken}/checkpoints/step-000000005.safetensors"), b"half").unwrap();
    succeed(&["pretrain", "--resume", &broken, "--quiet", "--threads", "1"]);
    assert_eq!(weights(&straight), weights(&broken));
    let without_speed = |run: &str| {
        let mut all = lines(run);
        all.iter_mut().for_each(|line| line["tok_per_s"] = Value::Null);
        all
    };
    assert_eq!(without_speed(&straight), without_speed(&broken));
    fail(&["pretrain", "--resume", &broken, "--seed", "2"], &["`seed`", "2", "1"]);
    fail(&["pretrain", "--resume", &scratch.path("nothing")], &["no run to resume"]);
}

#[test]
fn another_run_is_not_overwritten() {
    let scratch = Scratch::new();
    let run = scratch.pretrain("run", &["--steps", "2"]);
    let before = weights(&run);
    let book = scratch.book(150);
    fail(&["pretrain", "--train", &book, "--output", &run], &["already holds a run", "--resume"]);
    assert_eq!(weights(&run), before);
}

#[test]
fn settings_come_from_flags_over_a_file() {
    let scratch = Scratch::new();
    let file = scratch.path("run.toml");
    let book = scratch.book(50);
    fs::write(&file, format!("train = ['{book}']\npreset = 'tiny'\nbatch_size = 4\nlearning-rate = 1e-3\n"))
        .unwrap();
    let out = scratch.path("out");
    let arguments =
        ["pretrain", "--config", &file, "--batch-size", "6", "--output", &out, "--dry-run", "--json"];
    let shown: Value = serde_json::from_str(&succeed(&arguments)).unwrap();
    assert_eq!(shown["config"]["batch-size"], 6);
    assert_eq!(shown["config"]["learning-rate"], 1e-3);
    assert!(shown["memory_bytes"].as_u64() > Some(1 << 20) && shown["parameters"].as_u64() > Some(500_000));
    assert!(!Path::new(&out).exists(), "a dry run writes nothing");
    assert!(succeed(&arguments[..8]).contains("MiB"));
    fs::write(&file, "batchsize = 4\n").unwrap();
    fail(&["pretrain", "--config", &file], &["run.toml", "`batchsize`", "batch-size"]);
    fs::write(&file, "batch-size = 'many'\n").unwrap();
    fail(&["pretrain", "--config", &file], &["run.toml"]);
    assert_eq!(elektron(&["pretrain", "--batch-size", "many"]).status.code(), Some(2));
    assert_eq!(elektron(&["pretend"]).status.code(), Some(2));
}

/// The golden batch as `elektron forward` reads it.
pub(crate) fn golden_batch(scratch: &Scratch) -> String {
    use safetensors::tensor::{Dtype, TensorView};
    let ints = read_tensors(&golden("inputs.safetensors")).ints;
    let names = ["input_ids", "labels", "attention_mask", "token_type_ids", "sampled"];
    let bytes: Vec<Vec<u8>> =
        names.iter().map(|n| ints[*n].iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let view = |(name, bytes)| {
        let shape = if name == "sampled" { vec![10] } else { vec![3, 17] };
        let name = if name == "sampled" { "sampled_ids" } else { name };
        (name, TensorView::new(Dtype::I64, shape, bytes).unwrap())
    };
    let data = names.into_iter().zip(bytes.iter().map(Vec::as_slice)).map(view);
    let path = scratch.path("batch.safetensors");
    fs::write(&path, safetensors::serialize(data, None).unwrap()).unwrap();
    path
}

#[test]
fn forward_equals_transformers() {
    let scratch = Scratch::new();
    let (batch, out) = (golden_batch(&scratch), scratch.path("out.safetensors"));
    let g = checkpoint("generator");
    for (case, discriminator, flavour, share) in [
        ("token_shared", "discriminator_token", "txtai", "word"),
        ("pre_unshared", "discriminator_pre", "txtai", "none"),
        ("pre_google", "discriminator_pre", "electra", "all"),
    ] {
        let d = checkpoint(discriminator);
        let mut arguments = vec!["forward", "--generator", &g, "--discriminator", &d, "--batch", &batch];
        arguments.extend(["--output", &out, "--flavour", flavour, "--share", share, "--gradients"]);
        let mut places = vec![("cpu", "fp32"), ("cpu", "bf16"), ("cpu", "fp64")];
        if cfg!(feature = "simt") {
            places.push(("simt", "fp32"));
        }
        for (device, precision) in places {
            let arguments = [&arguments[..], &["--device", device, "--precision", precision]].concat();
            succeed(&arguments);
            let (near, nearer) = if precision == "bf16" { (HALF.tensor, HALF.loss) } else { (1e-4, 1e-5) };
            let got = read_tensors(Path::new(&out));
            let want = read_tensors(&golden(case).join("forward.safetensors")).floats;
            for (name, reference) in
                [("loss", "total_loss"), ("gen_loss", "gen_loss"), ("disc_loss", "disc_loss")]
            {
                let error = relative_l2(name, &widen(&got.floats[name].data), &widen(&want[reference].data));
                assert!(error < nearer, "{case} {name}: {error}");
            }
            assert_eq!(got.floats["loss"].shape, Vec::<usize>::new());
            assert_eq!(got.floats["gen_logits"].shape, want["gen_logits_masked"].shape);
            assert_eq!(got.floats["disc_logits"].shape, want["disc_logits"].shape);
            let gradients = read_tensors(&golden(case).join("grads.safetensors")).floats;
            for (name, want) in gradients.iter().filter(|(name, _)| !name.ends_with("key.bias")) {
                let error =
                    relative_l2(name, &widen(&got.floats[&format!("grad.{name}")].data), &widen(&want.data));
                assert!(error < near, "{case} {name}: {error}");
            }
            assert_eq!(got.ints["sampled_ids"].len(), 10);
        }
    }
}

fn copy_checkpoint(scratch: &Scratch, name: &str) -> PathBuf {
    let to = scratch.0.path().join(name);
    fs::create_dir(&to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = golden("checkpoints").join("discriminator_pre").join(file);
        fs::write(to.join(file), fs::read(from).unwrap()).unwrap();
    }
    to
}

#[test]
fn bad_models_are_named() {
    let scratch = Scratch::new();
    let (batch, out, g) = (golden_batch(&scratch), scratch.path("out.safetensors"), checkpoint("generator"));
    let refuse = |d: &Path, words: &[&str]| {
        let d = d.to_str().unwrap();
        fail(
            &["forward", "--generator", &g, "--discriminator", d, "--batch", &batch, "--output", &out],
            words,
        );
    };
    let edit_config = |name: &str, from: &str, to: &str| {
        let dir = copy_checkpoint(&scratch, name);
        let text = fs::read_to_string(dir.join("config.json")).unwrap();
        assert!(text.contains(from));
        fs::write(dir.join("config.json"), text.replace(from, to)).unwrap();
        dir
    };
    refuse(Path::new("/nonexistent"), &["no such directory"]);
    refuse(&edit_config("bert", "\"electra\"", "\"bert\""), &["config.json", "bert", "electra"]);
    let shape = edit_config("wide", "\"intermediate_size\": 128", "\"intermediate_size\": 96");
    refuse(&shape, &["intermediate.dense", "[128]", "[96]"]);
    refuse(
        &edit_config("deep", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        &["layer.2", "missing"],
    );
    refuse(
        &edit_config("shallow", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
        &["layer.1", "not one of"],
    );
    refuse(
        &edit_config("flat", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0"),
        &["`num_hidden_layers` is 0", "positive integer"],
    );
    refuse(
        &edit_config("odd", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"swish\""),
        &["hidden_act", "gelu"],
    );
    refuse(&edit_config("heads", "\"num_attention_heads\": 4", "\"num_attention_heads\": 3"), &["multiple"]);
    let cut = copy_checkpoint(&scratch, "cut");
    let bytes = fs::read(cut.join("model.safetensors")).unwrap();
    for length in [0, 7, 100, bytes.len() - 1] {
        fs::write(cut.join("model.safetensors"), &bytes[..length]).unwrap();
        refuse(&cut, &["model.safetensors"]);
    }
    fs::remove_file(cut.join("model.safetensors")).unwrap();
    fs::write(cut.join("pytorch_model.bin"), b"x").unwrap();
    refuse(&cut, &["pytorch_model.bin", "save_pretrained"]);
    refuse(Path::new(&g), &["discriminator must be"]);
    let d = checkpoint("discriminator_pre");
    let wrong = scratch.path("wrong.safetensors");
    fs::write(&wrong, b"\x02\0\0\0\0\0\0\0{}").unwrap();
    fail(
        &["forward", "--generator", &g, "--discriminator", &d, "--batch", &wrong, "--output", &out],
        &["input_ids"],
    );
}

#[test]
fn bad_runs_are_refused() {
    let scratch = Scratch::new();
    let (book, out) = (scratch.book(60), scratch.path("out"));
    let vocabulary = scratch.vocabulary(&book);
    let (g, d) = (checkpoint("generator"), checkpoint("discriminator_pre"));
    let start =
        ["pretrain", "--output", &out, "--tokenizer", &vocabulary, "--generator", &g, "--discriminator", &d];
    let refuse = |extra: &[&str], words: &[&str]| fail(&[&start[..], extra].concat(), words);
    refuse(&["--train", &book, "--seq-len", "128"], &["128 tokens", "64 positions", "--seq-len"]);
    refuse(&["--train", "/nonexistent.txt", "--seq-len", "32"], &["/nonexistent.txt", "no such file"]);
    let unequal =
        ["pretrain", "--output", &out, "--train", &book, "--tokenizer", &vocabulary, "--seq-len", "32"];
    fail(&[&unequal[..], &["--preset", "tiny", "--discriminator", &d]].concat(), &["1000", "vocabulary"]);
    let unequal =
        [&unequal[..], &["--discriminator", "base", "--generator", "small", "--share", "all"]].concat();
    fail(&unequal, &["word_embeddings", "--share none"]);
    refuse(&["--seq-len", "32"], &["--train"]);
    refuse(&["--train", &book, "--mask-prob", "1.5"], &["--mask-prob"]);
    refuse(&["--train", &book, "--batch-size", "0"], &["--batch-size"]);
    let csv = scratch.path("x.csv");
    fs::write(&csv, "id,body\n1,words\n").unwrap();
    refuse(&["--train", &csv, "--seq-len", "32"], &["x.csv", "line 1", "`text`", "body"]);
    let large = repository("tests/data/wordpiece-8k.txt");
    let large = large.to_str().unwrap();
    fail(
        &[
            "pretrain",
            "--output",
            &out,
            "--train",
            &book,
            "--tokenizer",
            large,
            "--generator",
            &g,
            "--discriminator",
            &d,
            "--seq-len",
            "32",
        ],
        &["8192 tokens", "1000 rows"],
    );
    assert!(!Path::new(&out).join("generator").exists());
}

#[test]
fn a_full_disk_is_an_error_that_harms_nothing() {
    if !Path::new("/dev/full").exists() {
        crate::support::skipped("there is no /dev/full here to stand for a full disk");
        return;
    }
    use elektron::fsutil::write_atomic;
    let scratch = Scratch::new();
    let path = scratch.0.path().join("state");
    fs::write(&path, b"before").unwrap();
    let error = write_atomic(&path, |out| {
        out.write_all(b"part")?;
        fs::write("/dev/full", b"more than fits")
    });
    assert!(error.unwrap_err().to_string().contains("No space left"));
    assert_eq!(fs::read(&path).unwrap(), b"before");
    assert_eq!(fs::read_dir(scratch.0.path()).unwrap().count(), 1, "no temporary file is left");
    let missing = scratch.path("missing/out.safetensors");
    let (batch, g, d) = (golden_batch(&scratch), checkpoint("generator"), checkpoint("discriminator_pre"));
    fail(
        &["forward", "--generator", &g, "--discriminator", &d, "--batch", &batch, "--output", &missing],
        &["missing"],
    );
}

/// A step stays within what its fusions allow: kernels, and kB of device memory traffic a token, as shares of the roofline that leaves out weights
/// and optimizer. Around a library's products activations are passes of their own.
#[test]
fn a_dry_run_counts_a_gpu_step() {
    let scratch = Scratch::new();
    let (book, out) = (scratch.book(60), scratch.path("out"));
    let small: &[&str] = &["--preset", "small", "--generator", "small", "--batch-size", "128"];
    let base: &[&str] = &["--preset", "base", "--batch-size", "256"];
    for (products, sizes, seq_len, most_kernels, roofline, most) in [
        ("own", small, 128, 450, 1134.0, 1.1),
        ("own", base, 512, 490, 2223.0, 1.1),
        ("auto", small, 128, 560, 1134.0, 1.25),
        ("auto", base, 512, 575, 2223.0, 1.25),
    ] {
        let common = [
            "pretrain",
            "--train",
            &book,
            "--output",
            &out,
            "--dry-run",
            "--json",
            "--device",
            "cpu",
            "--products",
            products,
        ];
        let text = succeed(&[&common, sizes].concat());
        let plan: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(plan["config"]["seq-len"], seq_len);
        let kernels = plan["kernels_per_step"].as_u64().unwrap();
        let traffic = plan["kb_per_token"].as_f64().unwrap();
        assert!((300..=most_kernels).contains(&kernels), "{kernels} kernels");
        assert!((0.8 * roofline..most * roofline).contains(&traffic), "{traffic} kB a token");
        let each = plan["kernels"].as_array().unwrap();
        assert_eq!(each.iter().map(|k| k["launches"].as_u64().unwrap()).sum::<u64>(), kernels);
        assert!(!Path::new(&out).exists(), "a dry run writes nothing");
    }
}

#[test]
fn doctor_names_what_is_missing() {
    let out = elektron(&["doctor", "--json", "--arch", "sm_80"]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let libraries = report["libraries"].as_array().unwrap();
    assert_eq!(libraries.len(), 3);
    for library in libraries {
        let missing = library["found"].is_null();
        assert_eq!(missing, !library["problem"].is_null(), "{library}");
        assert!(!missing || library["problem"].as_str().unwrap().contains("install"), "{library}");
    }
    let out = Command::new(env!("CARGO_BIN_EXE_elektron"))
        .args(["doctor", "--arch", "sm_80"])
        .env_remove("ELEKTRON_CUDA_LIBS")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("libcuda") && text.contains("libnvrtc") && text.contains("devices"), "{text}");
    let cache = tempfile::tempdir().unwrap();
    let clear = Command::new(env!("CARGO_BIN_EXE_elektron"))
        .args(["doctor", "--clear-kernel-cache"])
        .env("ELEKTRON_CACHE", cache.path())
        .output()
        .unwrap();
    assert!(String::from_utf8(clear.stdout).unwrap().contains("deleted 0"));
}

/// Without a GPU `--device cuda` says why, and `auto` says so and goes on.
#[test]
fn a_missing_gpu_is_named() {
    if elektron::backend::gpu::driver::cuda::devices().is_ok_and(|devices| !devices.is_empty()) {
        crate::support::skipped("this machine has a GPU");
        return;
    }
    let scratch = Scratch::new();
    let (book, out) = (scratch.book(60), scratch.path("out"));
    let arguments = ["pretrain", "--train", &book, "--output", &out, "--preset", "tiny", "--dry-run"];
    fail(&[&arguments[..], &["--device", "cuda"]].concat(), &["libcuda", "driver"]);
    let auto = elektron(&arguments);
    assert!(auto.status.success());
    assert!(String::from_utf8(auto.stderr).unwrap().contains("no GPU is used"));
}
