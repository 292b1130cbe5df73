//! That runs learn what their text holds: a world in which the context decides every token, and the
//! stages and defaults of short runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use elektron::config::{Recipe, RunConfig, Settings};
use elektron::model::{Flavour, Init, Share};
use serde_json::Value;
use tempfile::TempDir;

use crate::place::{metrics, signal, text, wait_for_step};

/// Words of the world.
const WORDS: usize = 50;

/// Paragraphs of a cycle of words, each from another word on: two neighbours decide what stands between
/// them. The vocabulary is that of the words.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let words: Vec<String> = "bcdfghklmn"
            .chars()
            .flat_map(|a| ["ab", "eb", "ib", "ob", "ub"].map(|b| format!("{a}{b}")))
            .collect();
        assert_eq!(words.len(), WORDS);
        let paragraph = |number: usize| {
            // 7 and 11 are prime to 50 and to each other: starts and lengths do not repeat together.
            let (start, length) = (number * 7 % WORDS, 20 + number * 11 % 41);
            (0..length).map(|i| words[(start + i) % WORDS].as_str()).collect::<Vec<_>>().join(" ")
        };
        let paragraphs: Vec<String> = (0..2000).map(paragraph).collect();
        fs::write(dir.path().join("cycle.txt"), paragraphs.join("\n\n")).unwrap();
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
        let vocabulary: Vec<String> = special.into_iter().chain(words).collect();
        fs::write(dir.path().join("vocab.txt"), vocabulary.join("\n")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, output: &Path, settings: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elektron"));
        command.args(["pretrain", "--preset", "tiny", "--merge", "concat", "--device", "cpu", "--train"]);
        command.arg(self.path("cycle.txt")).arg("--tokenizer").arg(self.path("vocab.txt"));
        command.args(["--seq-len", "16", "--held-out", "0.05", "--lr-scheduler", "linear"]).args(settings);
        command.arg("--output").arg(output);
        command
    }

    fn finish(&self, output: &Path, settings: &[&str]) -> String {
        let out = self.command(output, settings).output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stderr)
    }
}

/// The held-out figures of a finished run.
fn held_out(output: &Path) -> Value {
    metrics(output).into_iter().filter_map(|line| line.get("eval").cloned()).next_back().unwrap()
}

/// Word frequencies and a constant output reach an accuracy of 1 in 50 and an AUC of one half here.
#[test]
fn both_networks_learn_a_predictable_world() {
    let world = World::new();
    let output = world.path("run");
    world.finish(&output, &["--steps", "250", "--batch-size", "64", "--eval-rows", "500"]);
    let figure = |output: &Path, name: &str| held_out(output)[name].as_f64().unwrap();
    assert!(figure(&world.path("run/mlm"), "gen_mask_acc") >= 0.99, "{}", held_out(&world.path("run/mlm")));
    // The generator is half as wide, and has had no steps before.
    let learnt = figure(&output, "disc_auc") >= 0.99 && figure(&output, "gen_mask_acc") >= 0.9;
    assert!(learnt, "{}", held_out(&output));
}

fn weights(output: &Path) -> Vec<Vec<u8>> {
    let read = |name| fs::read(output.join(name).join("model.safetensors")).unwrap();
    ["mlm/model", "generator", "discriminator"].map(read).to_vec()
}

/// A run that is stopped in its first stage, and again in its second, ends in the same bytes as one that
/// is not; nothing else may use its directory meanwhile.
#[test]
fn both_stages_are_continued() {
    let world = World::new();
    let settings = ["--steps", "12", "--batch-size", "8", "--log-every", "1", "--threads", "1"];
    let whole = world.path("whole");
    let said = world.finish(&whole, &settings);
    assert!(said.contains("first stage") && said.contains("second stage"), "{said}");
    assert!(said.contains("recipe short, since 0.0 M tokens are fewer than 100 M"), "{said}");

    let output = world.path("stopped");
    let resumed = [&settings[..], &["--resume"]].concat();
    for stage in ["stopped/mlm", "stopped"] {
        let mut child = world.command(&output, &resumed).stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_for_step(&world.path(stage), 2);
        signal(&child, "TERM");
        let code = child.wait().unwrap().code();
        // On a fast machine the run may be over before the signal comes.
        assert!(matches!(code, Some(75 | 0)), "{code:?}");
        let again = world.command(&output, &settings).output().unwrap();
        let error = text(&again.stderr);
        assert!(!again.status.success() && error.contains("already holds a run"), "{error}");
    }
    world.finish(&output, &resumed);
    assert!(weights(&output) == weights(&whole), "the weights differ");
    assert_eq!(metrics(&world.path("stopped/mlm")), metrics(&world.path("whole/mlm")));
}

/// The discriminator begins with the encoder of the first stage: after one step at a learning rate of
/// almost 0 its weights are still those.
#[test]
fn the_discriminator_begins_with_the_encoder_of_the_first_stage() {
    let world = World::new();
    let output = world.path("run");
    world.finish(&output, &["--steps", "1", "--batch-size", "2", "--learning-rate", "1e-12"]);
    let tensors = |name: &str| {
        let bytes = fs::read(output.join(name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let named =
            |(name, view): (String, safetensors::tensor::TensorView<'_>)| (name, view.data().to_vec());
        file.tensors().into_iter().map(named).collect::<std::collections::BTreeMap<_, _>>()
    };
    let (first, second) = (tensors("mlm/model"), tensors("discriminator"));
    let encoder = second.iter().filter(|(name, _)| name.starts_with("electra.encoder."));
    let mut compared = 0;
    for (name, data) in encoder {
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
        };
        let pairs = numbers(data).into_iter().zip(numbers(&first[name]));
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-9, "{name}: {a} {b}"));
        compared += 1;
    }
    assert!(compared > 30, "{compared} tensors");
}

fn settings(typed: &str) -> Settings {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    fs::write(&path, format!("train = ['a.txt']\noutput = 'out'\n{typed}")).unwrap();
    Settings::from_file(&path).unwrap()
}

#[test]
fn defaults_follow_the_length_of_the_run() {
    let resolved = |typed: &str| RunConfig::resolve(settings(typed)).unwrap();
    // 32 rows of 64 tokens a step: 100 M tokens are 48,829 steps.
    for (typed, recipe) in [
        ("preset = 'tiny'\nsteps = 48828", Recipe::Short),
        ("preset = 'tiny'\nsteps = 48829", Recipe::Paper),
        ("preset = 'tiny'", Recipe::Short),
        ("preset = 'small'", Recipe::Paper),
        ("preset = 'small'\nsteps = 1000", Recipe::Short),
        ("preset = 'tiny'\nsteps = 10\nflavour = 'txtai'", Recipe::Paper),
        ("base = 'm'\nsteps = 10", Recipe::Paper),
        ("generator = 'g'\ndiscriminator = 'd'\nsteps = 10", Recipe::Paper),
        ("preset = 'base'\nsteps = 10\nrecipe = 'paper'", Recipe::Paper),
        ("recipe = 'short'", Recipe::Short),
    ] {
        assert_eq!(resolved(typed).recipe, recipe, "{typed}");
    }
    // google-research/electra's, in its words: `learning_rate`, `mask_prob`, `disc_weight`, clipping by
    // a norm of 1, no bias correction, one embedding block.
    let paper = resolved("preset = 'small'\nsteps = 1000\nrecipe = 'paper'");
    assert_eq!((paper.learning_rate, paper.mask_prob, paper.weight, paper.clip), (5e-4, 0.15, 50.0, 1.0));
    assert_eq!((paper.bias_correction, paper.share, paper.mlm_first), (false, Share::All, 0.0));
    assert_eq!((paper.init, paper.warmup(1_000_000), paper.betas), (Init::Bert, 10_000, [0.9, 0.999]));
    let large = resolved("preset = 'large'\nrecipe = 'paper'");
    assert_eq!((large.learning_rate, large.mask_prob), (2e-4, 0.25));
    let short = resolved("preset = 'tiny'\nsteps = 10");
    assert_eq!((short.init, short.share, short.mlm_first), (Init::Local, Share::None, 1.0));
    // What is typed wins.
    let typed = resolved("preset = 'tiny'\nsteps = 10\nshare = 'all'\nclip = 2.0\ninit = 'bert'");
    assert_eq!((typed.share, typed.mlm_first, typed.clip, typed.init), (Share::All, 0.0, 2.0, Init::Bert));
    assert_eq!(resolved("flavour = 'txtai'").flavour, Flavour::Txtai);
}

#[test]
fn settings_that_contradict_the_first_stage_are_refused() {
    for (typed, words) in [
        ("mlm-first = 1.0\nbase = 'm'", "--discriminator and --base"),
        ("mlm-first = 1.0\nshare = 'all'", "--share must be none"),
        ("mlm-first = 1.0\nobjective = 'mlm'", "throughout"),
        ("mlm-first = -1.0", "expected 0 or more"),
        ("recipe = 'short'\nflavour = 'txtai'", "txtai"),
    ] {
        let error = RunConfig::resolve(settings(typed)).unwrap_err().to_string();
        assert!(error.contains(words), "{typed}: {error}");
    }
}
