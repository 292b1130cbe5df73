//! `--objective mlm`: one network, whose losses and gradients are those of `transformers`'
//! `ElectraForMaskedLM` and, bit for bit, those of a pair's generator; and runs of it from end to end.

use std::fs;
use std::path::Path;

use approx::assert_relative_eq;
use elektron::backend::{Backend, Cpu};
use elektron::data::Batch;
use elektron::model::config::Architecture;
use elektron::model::hf::Checkpoint;
use elektron::model::{Flavour, Options, PaddedInput, Phase, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;
use serde_json::Value;

use crate::cli::{Scratch, checkpoint, elektron, fail, lines, succeed};
use crate::golden::{SINGLE, input};
use crate::support::{golden, largest, read_tensors, relative_l2, widen};
use crate::whole::{batch, config};

const ALONE: Option<Checkpoint> = None;

/// The golden generator by itself.
fn masked_lm<B: Backend>(backend: B) -> TokenDetection<B> {
    let generator = Checkpoint::load(&golden("checkpoints/generator")).unwrap();
    let options = Options { flavour: Flavour::Txtai, ..Options::default() };
    TokenDetection::with_options(backend, generator, ALONE, options).unwrap()
}

/// Loss, logits and gradients against those of `transformers`: in the golden case in which a pair shares
/// nothing, the generator's gradients are those of its own loss.
fn check_golden<B: Backend>(backend: B) {
    let mut model = masked_lm(backend);
    let folder = golden("pre_unshared");
    let want = read_tensors(&folder.join("forward.safetensors")).floats;
    let out = model.forward(&PaddedInput { sampled_ids: None, ..input() }).unwrap();
    assert_relative_eq!(out.gen_loss, f64::from(want["gen_loss"].data[0]), max_relative = SINGLE.loss);
    assert_eq!((out.loss, out.disc_loss), (out.gen_loss, 0.0));
    assert!(out.disc_logits.is_empty() && out.sampled_ids.is_empty() && out.is_fake.is_empty());
    let error = relative_l2("logits", &out.gen_logits, &widen(&want["gen_logits_masked"].data));
    assert!(error <= SINGLE.tensor, "{error:e}");

    model.backward().unwrap();
    let want = read_tensors(&folder.join("grads.safetensors")).floats;
    let gradients = model.named_gradients().unwrap();
    assert_eq!(gradients.len(), want.keys().filter(|name| name.starts_with("generator.")).count());
    for (name, got) in gradients {
        let name = name.strip_prefix("model.").unwrap();
        let got = widen(&got.data);
        if name.ends_with("self.key.bias") {
            // Softmax ignores a shift common to all keys: the true gradient is zero.
            assert!(largest(got) <= SINGLE.zero, "{name}");
            continue;
        }
        let error = relative_l2(name, &got, &widen(&want[&format!("generator.{name}")].data));
        assert!(error <= SINGLE.tensor, "{name}: {error:e}");
    }
    assert!(model.forward(&input()).unwrap_err().to_string().contains("no discriminator"));
}

#[test]
fn losses_and_gradients_are_those_of_transformers() {
    check_golden(Cpu::<f32>::new());
    check_golden(Cpu::<f64>::new());
}

#[cfg(feature = "simt")]
#[test]
fn losses_and_gradients_on_the_emulated_device_are_those_of_transformers() {
    use elektron::backend::Gpu;
    use elektron::backend::gpu::driver::simt::{Order, Simt};
    check_golden(Gpu::<Simt, f32>::new(Simt::new(Order::Shuffled(4))));
}

/// The batch of the joint model's tests, the phase of a training step with dropout, and what it leaves.
fn trained<B: Backend>(model: &mut TokenDetection<B>, batch: &Batch) -> (f64, Vec<(String, Vec<f32>)>) {
    for row0 in [0, 12] {
        model.step_forward(batch, Phase::Train { step: 5, row0, divisor: 2.0 }, None).unwrap();
        model.step_backward().unwrap();
    }
    let loss = model.collect_losses(model.fetch_losses().unwrap()).unwrap();
    let read = model.read_step().unwrap();
    assert_relative_eq!(loss.gen_loss, read.gen_loss, max_relative = 1e-2);
    let gradients = model.named_gradients().unwrap();
    (loss.gen_loss, gradients.into_iter().map(|(name, g)| (name, g.data)).collect())
}

/// Fresh weights, loss and gradients equal those of the generator of a pair whose discriminator has no
/// weight in the loss, to the last bit.
fn check_as_generator<B: Backend>(backend: impl Fn() -> B) {
    let generator = || Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let options = Options { share: Share::None, disc_weight: 0.0, seed: 3, ..Options::default() };
    let discriminator = Checkpoint::fresh(config(8), Architecture::PreTraining);
    let mut pair = TokenDetection::with_options(backend(), generator(), discriminator, options).unwrap();
    let mut alone = TokenDetection::with_options(backend(), generator(), ALONE, options).unwrap();
    assert!(alone.is_masked_lm() && !pair.is_masked_lm());
    let (weights, of_pair) = (alone.flat_weights().unwrap(), pair.flat_weights().unwrap());
    assert!(weights.iter().zip(&of_pair).all(|(a, b)| a.to_bits() == b.to_bits()));
    let (want, gradients_of_pair) = trained(&mut pair, &batch());
    let (got, gradients) = trained(&mut alone, &batch());
    assert_eq!(got.to_bits(), want.to_bits());
    for ((name, got), (of_pair, want)) in gradients.iter().zip(&gradients_of_pair) {
        assert_eq!(name.replace("model.", "generator."), *of_pair);
        assert!(got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
        assert!(name.ends_with("key.bias") || got.iter().any(|x| *x != 0.0), "{name}");
    }
    // Everything that is held is the generator's.
    assert_eq!(alone.parameter_count(), gradients.iter().map(|(_, g)| g.len()).sum::<usize>());
    assert!(gradients_of_pair.len() > gradients.len());
}

#[test]
fn a_model_alone_is_trained_as_the_generator_of_a_pair() {
    check_as_generator(Cpu::<f32>::new);
    check_as_generator(Cpu::<f64>::new);
    check_as_generator(Cpu::<bf16>::new);
}

#[cfg(feature = "simt")]
#[test]
fn a_model_alone_is_trained_as_the_generator_of_a_pair_on_the_emulated_device() {
    use elektron::backend::Gpu;
    use elektron::backend::gpu::driver::simt::{Order, Simt};
    check_as_generator(|| Gpu::<Simt, f32>::new(Simt::new(Order::Ascending)));
    check_as_generator(|| Gpu::<Simt, bf16>::new(Simt::new(Order::Descending)));
}

#[test]
fn updates_lower_the_loss() {
    let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let mut model =
        TokenDetection::with_options(Cpu::<f32>::new(), generator, ALONE, Options::default()).unwrap();
    let options = AdamWOptions { bias_correction: true, ..AdamWOptions::default() };
    let mut optimizer = AdamW::new(&mut model, options).unwrap();
    let mut losses = Vec::new();
    for step in 0..30 {
        model.step_forward(&batch(), Phase::Train { step, row0: 0, divisor: 1.0 }, None).unwrap();
        losses.push(model.read_step().unwrap().gen_loss);
        model.step_backward().unwrap();
        optimizer.step(&mut model, 1e-2).unwrap();
    }
    assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
}

/// Trains a masked language model on the encoder of the golden discriminator.
fn pretrain(scratch: &Scratch, output: &str, extra: &[&str]) -> String {
    let (book, output) = (scratch.book(150), scratch.path(output));
    let vocabulary = scratch.vocabulary(&book);
    let d = checkpoint("discriminator_pre");
    let mut arguments = vec!["pretrain", "--objective", "mlm", "--train", &book, "--tokenizer", &vocabulary];
    arguments.extend(["--output", &output, "--discriminator", &d, "--seq-len", "32", "--batch-size", "4"]);
    arguments.extend(["--log-every", "1", "--merge", "concat", "--quiet", "--threads", "1"]);
    arguments.extend(extra);
    succeed(&arguments);
    output
}

fn weights(run: &str) -> Vec<u8> {
    fs::read(Path::new(run).join("model/model.safetensors")).unwrap()
}

/// The log without its timings.
fn untimed(run: &str) -> Vec<Value> {
    let mut all: Vec<Value> = lines(run).into_iter().filter(|line| line.get("baseline").is_none()).collect();
    all.iter_mut().for_each(|line| line["tok_per_s"] = Value::Null);
    all
}

#[test]
fn a_run_leaves_one_model_and_its_own_figures() {
    let scratch = Scratch::new();
    let book = scratch.book(60);
    let held_out = scratch.path("held-out.txt");
    fs::copy(&book, &held_out).unwrap();
    let run = pretrain(&scratch, "run", &["--steps", "4", "--validation", &held_out, "--eval-every", "2"]);
    for name in ["generator", "discriminator"] {
        assert!(!Path::new(&run).join(name).exists(), "{name}");
    }
    let all = untimed(&run);
    assert_eq!(all.len(), 6);
    for line in &all {
        let figures = line.get("eval").unwrap_or(line).as_object().unwrap();
        assert_eq!(figures["loss"], figures["gen_loss"]);
        assert!(figures["gen_acc"].is_number(), "{line}");
        assert!(figures.keys().all(|key| !key.starts_with("disc") && key != "fake_rate"), "{line}");
    }
    let dir = Path::new(&run).join("model");
    let config: Value = serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "ElectraForMaskedLM");
    assert_eq!((&config["hidden_size"], &config["embedding_size"]), (&Value::from(64), &Value::from(32)));
    let card = fs::read_to_string(dir.join("README.md")).unwrap();
    for part in
        ["masked language model", "pipeline_tag: fill-mask", "masked-language-modeling", "| objective |"]
    {
        assert!(card.contains(part), "`{part}` is not in: {card}");
    }
    for part in ["generator | discriminator", "replaced", "| weight |", "| share |", "AUC"] {
        assert!(!card.contains(part), "`{part}` is in: {card}");
    }
    // What was saved is read by the other commands.
    let model = dir.to_str().unwrap();
    let filled = |model: &str| succeed(&["fill", "--model", model, "--json", "The [MASK] said"]);
    assert_eq!(filled(&run), filled(model));
    let eval = succeed(&["eval", "--generator", model, "--input", &book, "--seq-len", "32", "--json"]);
    let eval: Value = serde_json::from_str(&eval).unwrap();
    assert!(eval["eval"]["gen_loss"].as_f64().unwrap() > 0.0, "{eval}");
    assert!(eval["eval"].get("disc_loss").is_none(), "{eval}");
    let state: Value = serde_json::from_str(&succeed(&["runs", &run, "--json"])).unwrap();
    assert_eq!((&state[0]["state"], &state[0]["step"]), (&Value::from("finished"), &Value::from(4)));
    let page = scratch.path("report.html");
    succeed(&["report", &run, "--output", &page]);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("Generator loss") && !page.contains("Discriminator AUC"));
    assert!(!page.contains("NaN"));
    fail(&["pretrain", "--train", &book, "--output", &run], &["already holds a run"]);
    // Another run goes on from it: its whole network as a generator, its encoder as a discriminator.
    let before = weights(&run);
    let next = ["pretrain", "--train", &book, "--seq-len", "32", "--dry-run", "--json"];
    let output = scratch.path("next");
    let pair = elektron(&[&next[..], &["--base", model, "--output", &output]].concat());
    let said = String::from_utf8_lossy(&pair.stderr).into_owned();
    assert!(pair.status.success(), "{said}");
    let planned: Value = serde_json::from_slice(&pair.stdout).unwrap();
    for network in ["generator", "discriminator"] {
        assert_eq!(planned[network]["hidden_size"], 64, "{network}");
    }
    let own = ["--discriminator", model, "--share", "none", "--output", &output];
    let discriminator = succeed(&[&next[..], &own].concat());
    let planned: Value = serde_json::from_str(&discriminator).unwrap();
    assert_eq!(planned["discriminator"]["hidden_size"], 64);
    let of_run = ["pretrain", "--train", &book, "--base", &run, "--output", &output];
    fail(&of_run, &["this is the directory of a run: give its model/"]);
    assert_eq!(weights(&run), before);
}

#[test]
fn a_resumed_run_ends_in_the_same_bytes() {
    let scratch = Scratch::new();
    let settings = ["--steps", "6", "--save-every", "3", "--keep", "9", "--grad-accumulation", "2"];
    let straight = pretrain(&scratch, "straight", &settings);
    let broken = pretrain(&scratch, "broken", &settings);
    // As if it had been killed after step 3: the last checkpoint and the model are gone, the log ran on.
    fs::remove_file(format!("{broken}/checkpoints/step-000000006.safetensors")).unwrap();
    fs::remove_dir_all(format!("{broken}/model")).unwrap();
    succeed(&["pretrain", "--resume", &broken, "--quiet", "--threads", "1"]);
    assert!(weights(&straight) == weights(&broken));
    assert_eq!(untimed(&straight), untimed(&broken));
    let other = ["pretrain", "--resume", &broken, "--objective", "electra"];
    fail(&other, &["`objective` is \"electra\"", "\"mlm\""]);
    // Where rows are computed as the device likes it, the run is the same but for rounding.
    let auto = pretrain(&scratch, "auto", &[&settings[..], &["--micro-batch", "auto"]].concat());
    let losses = |run: &str| -> Vec<f64> {
        untimed(run).iter().filter_map(|line| line["gen_loss"].as_f64()).collect()
    };
    assert_eq!(losses(&auto).len(), 6);
    for (got, want) in losses(&auto).iter().zip(losses(&straight)) {
        assert_relative_eq!(*got, want, max_relative = 4.0 * SINGLE.loss);
    }
}

#[test]
fn runs_from_before_there_were_objectives_train_a_pair() {
    let scratch = Scratch::new();
    let run = scratch.pretrain("run", &["--steps", "2"]);
    let path = format!("{run}/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(config.as_object_mut().unwrap().remove("objective"), Some(Value::from("electra")));
    fs::write(&path, config.to_string()).unwrap();
    succeed(&["pretrain", "--resume", &run, "--quiet", "--steps", "3"]);
    assert_eq!(lines(&run).last().unwrap()["step"], 3);
    assert!(lines(&run).last().unwrap()["disc_loss"].is_number());
    let path = format!("{run}/run.json");
    let typed = fs::read_to_string(&path).unwrap();
    let alone = typed.replace(&checkpoint("generator"), "small").replace("\"discriminator\"", "\"license\"");
    fs::write(&path, alone).unwrap();
    let other = ["pretrain", "--resume", &run, "--objective", "mlm"];
    fail(&other, &["`objective` is \"mlm\", but the run began with \"electra\""]);
}

#[cfg(feature = "simt")]
#[test]
fn a_run_on_the_emulated_device_is_the_cpus() {
    let scratch = Scratch::new();
    let settings = ["--steps", "4", "--precision", "fp32", "--grad-accumulation", "2"];
    let on = |device: &str| {
        let run = pretrain(&scratch, device, &[&settings[..], &["--device", device]].concat());
        untimed(&run)
    };
    let (cpu, device) = (on("cpu"), on("simt"));
    assert_eq!((cpu.len(), device.len()), (4, 4));
    for (got, want) in device.iter().zip(&cpu) {
        assert_eq!((&got["step"], &got["tokens"]), (&want["step"], &want["tokens"]));
        assert!(got.get("disc_loss").is_none());
        let growth = (2.0 * want["step"].as_f64().unwrap()).sqrt();
        for (name, tolerance) in [("gen_loss", SINGLE.loss), ("grad_norm", SINGLE.tensor)] {
            let value = |line: &Value| line[name].as_f64().unwrap();
            assert_relative_eq!(value(got), value(want), max_relative = growth * tolerance);
        }
    }
}

#[test]
fn settings_of_pairs_are_refused() {
    let start = ["pretrain", "--objective", "mlm", "--train", "a.txt", "--output", "run"];
    for (flag, value) in [
        ("weight", "50"),
        ("gen-weight", "1"),
        ("share", "none"),
        ("temperature", "1"),
        ("disallow-correct", "false"),
        ("head", "pretraining"),
    ] {
        let (given, said) = (format!("--{flag}"), format!("--{flag} "));
        let words = [said.as_str(), "has no meaning with --objective mlm"];
        fail(&[&start[..], &[given.as_str(), value]].concat(), &words);
    }
    let both = ["--generator", "small", "--discriminator", "small"];
    fail(&[&start[..], &both].concat(), &["one network", "--generator", "--discriminator"]);
    fail(&[&start[..], &["--base", "a", "--generator", "b"]].concat(), &["--base and --generator"]);
    let scratch = Scratch::new();
    let file = scratch.path("run.toml");
    fs::write(&file, "objective = 'mlm'\ntrain = ['a.txt']\noutput = 'run'\nshare = 'all'\n").unwrap();
    fail(&["pretrain", "--config", &file], &["--share", "has no meaning"]);
    fs::write(&file, "objective = 'bert'\n").unwrap();
    fail(&["pretrain", "--config", &file], &["`objective`", "bert"]);
}

#[test]
fn the_plan_is_of_one_network_of_full_size() {
    let scratch = Scratch::new();
    let (book, output) = (scratch.book(20), scratch.path("run"));
    let plan = |more: &[&str]| -> Value {
        let start =
            ["pretrain", "--train", &book, "--output", &output, "--dry-run", "--json", "--preset", "small"];
        let text = succeed(&[&start[..], &["--device", "cpu"], more].concat());
        serde_json::from_str(&text).unwrap()
    };
    let (alone, pair) = (plan(&["--objective", "mlm"]), plan(&[]));
    let (v, e, c) = (30522, 128, 256);
    let encoder = 12 * (4 * c * c + 4 * c + 8 * c * c + 5 * c + 4 * c) + e * c + c;
    let head = c * e + e + 2 * e + v;
    assert_eq!(alone["parameters"], (v + 512 + 2 + 2) * e + encoder + head);
    assert_eq!(alone["model"]["architectures"][0], "ElectraForMaskedLM");
    assert!(alone.get("generator").is_none() && alone.get("discriminator").is_none());
    let families =
        |plan: &Value| plan["memory_families"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(families(&alone), ["parameters", "model", "scratch"]);
    assert_eq!(families(&pair), ["parameters", "generator", "discriminator", "scratch"]);
    assert_eq!((&alone["config"]["objective"], alone["config"].get("weight")), (&Value::from("mlm"), None));
    assert_eq!(
        (&pair["config"]["objective"], &pair["config"]["weight"]),
        (&Value::from("electra"), &Value::from(50.0))
    );
    let number = |plan: &Value, key: &str| plan[key].as_f64().unwrap();
    for key in ["kernels_per_step", "memory_bytes", "kb_per_token", "bytes_per_token"] {
        assert!(0.0 < number(&alone, key) && number(&alone, key) < number(&pair, key), "{key}");
    }
    let names = |plan: &Value| plan["kernels"].to_string();
    assert!(names(&pair).contains("corrupt") && names(&pair).contains("rtd"));
    assert!(!names(&alone).contains("corrupt") && !names(&alone).contains("rtd"), "{}", names(&alone));
}
