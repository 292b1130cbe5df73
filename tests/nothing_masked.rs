//! Batches in which nothing is masked: the generator's loss is 0, the discriminator's is that of txtai,
//! and training continues.

use std::fs;
use std::path::Path;
use std::process::Command;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use elektron::backend::{Backend, Cpu};
use elektron::data::Batch;
use elektron::model::config::Architecture;
use elektron::model::{PaddedInput, Phase, Share};
use half::bf16;
use serde_json::Value;

use crate::golden::{self, CASES, HALF, SINGLE, Tolerance, UNIT_SINGLE};
use crate::steps;
use crate::support::{golden, widen};
use crate::whole::{SAMPLED, batch};

/// The discriminator's loss and the norm of all gradients of txtai's `TokenDetection` in double precision,
/// for `token_shared` and `pre_shared`, where all labels are -100. (The mean over no labels makes its
/// total loss NaN, but every gradient is finite.)
const TXTAI: [(&str, f64, f64); 2] = [
    ("token_shared", 1.5096220139531724, 815.0383797772031),
    ("pre_shared", 0.6154525279998779, 409.49250285718824),
];

fn check<B: Backend>(backend: impl Fn() -> B, tolerance: Tolerance) {
    for (name, loss, norm) in TXTAI {
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        let mut model = golden::model(backend(), case);
        let input = golden::input();
        let labels = vec![-100; input.labels.len()];
        let out = model.forward(&PaddedInput { labels, sampled_ids: None, ..input }).unwrap();
        assert!(out.gen_loss == 0.0 && out.gen_loss.is_sign_positive(), "{name}: {}", out.gen_loss);
        assert!(out.gen_logits.is_empty() && out.sampled_ids.is_empty());
        assert!(out.is_fake.iter().all(|&fake| fake == 0), "{name}");
        assert_relative_eq!(out.disc_loss, loss, max_relative = tolerance.loss);
        assert_relative_eq!(out.loss, 50.0 * out.disc_loss);

        model.backward().unwrap();
        let gradients = model.named_gradients().unwrap();
        let mut square = 0.0;
        for (name, gradient) in &gradients {
            let own = name.starts_with("generator.") && !name.ends_with("word_embeddings.weight");
            assert!(!own || gradient.data.iter().all(|&x| x == 0.0), "{name} has a gradient");
            square += widen(&gradient.data).iter().map(|x| x * x).sum::<f64>();
        }
        assert_relative_eq!(square.sqrt(), norm, max_relative = tolerance.tensor);
        let counts = model.take_counts().unwrap();
        assert_eq!(counts[..2], [0, 0], "masked positions, and those found");
    }
}

/// The references are rounded to single precision once: the loss of `pre_shared`, whose labels have that
/// type, and the gradients when they are read.
const DOUBLE: Tolerance = Tolerance { loss: UNIT_SINGLE, tensor: UNIT_SINGLE, updated: 0.0, zero: 0.0 };

#[test]
fn losses_and_gradients_are_those_of_txtai() {
    check(Cpu::<f64>::new, DOUBLE);
    check(Cpu::<f32>::new, SINGLE);
    check(Cpu::<bf16>::new, HALF);
    #[cfg(feature = "simt")]
    {
        use elektron::backend::Gpu;
        use elektron::backend::gpu::driver::simt::{Order, Simt};
        check(|| Gpu::<_, f32>::new(Simt::new(Order::Shuffled(3))), SINGLE);
        check(|| Gpu::<_, bf16>::new(Simt::new(Order::Ascending)), HALF);
    }
}

fn unmasked() -> Batch {
    let batch = batch();
    Batch { masked_ids: batch.ids.clone(), masked_index: vec![], masked_weight: vec![], ..batch }
}

/// A micro-batch without a masked token counts in a step's mean as any other does.
#[test]
fn it_counts_as_a_micro_batch() {
    let gradients = |batches: &[(Batch, &[u32])]| {
        let mut model = steps::model(Cpu::<f64>::new(), Architecture::PreTraining, Share::All);
        for (batch, sampled) in batches {
            let phase = Phase::Train { step: 5, row0: 0, divisor: batches.len() as f64 };
            model.step_forward(batch, phase, Some(sampled)).unwrap();
            model.step_backward().unwrap();
        }
        let gradients = model.named_gradients().unwrap();
        gradients.into_iter().flat_map(|(_, gradient)| widen(&gradient.data)).collect::<Vec<_>>()
    };
    let (masked, nothing) = ((batch(), &SAMPLED[..]), (unmasked(), &[][..]));
    let (one, other) = (gradients(std::slice::from_ref(&masked)), gradients(std::slice::from_ref(&nothing)));
    let both = gradients(&[masked, nothing]);
    assert!(other.iter().any(|&x| x != 0.0));
    for ((one, other), both) in one.iter().zip(&other).zip(both) {
        // Each of the three is read in single precision; 1e-12 is what double precision leaves of a zero.
        let rounded = UNIT_SINGLE * ((one.abs() + other.abs()) / 2.0 + both.abs()) + 1e-12;
        assert_abs_diff_eq!((one + other) / 2.0, both, epsilon = rounded);
    }
}

/// Weights that add up to nothing are no denominator, in txtai's flavour either.
#[test]
fn a_batch_in_which_nothing_counts_has_no_loss() {
    let case = CASES.iter().find(|case| case.name == "pre_shared").unwrap();
    let mut model = golden::model(Cpu::<f32>::new(), case);
    let ignored = Batch { masked_weight: vec![0.0; 4], rtd_weight: vec![0.0; 12], ..batch() };
    model.step_forward(&ignored, Phase::Train { step: 0, row0: 0, divisor: 1.0 }, None).unwrap();
    let out = model.read_step().unwrap();
    assert_eq!((out.loss, out.gen_loss, out.disc_loss), (0.0, 0.0, 0.0));
    model.step_backward().unwrap();
    let gradients = model.named_gradients().unwrap();
    assert!(gradients.iter().all(|(_, gradient)| gradient.data.iter().all(|&x| x == 0.0)));
}

fn elektron(arguments: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_elektron")).args(arguments).output().unwrap();
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The log of a run over rows of `text`, in many or all of which nothing is masked.
fn trained(dir: &Path, text: &str, device: &str, precision: &str) -> Vec<Value> {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    fs::write(path("rows.csv"), format!("text\n{}", format!("{text}\n").repeat(8))).unwrap();
    fs::write(path("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\n").unwrap();
    let checkpoints = golden("checkpoints");
    let model = |name: &str| checkpoints.join(name).to_str().unwrap().to_owned();
    let output = path(&format!("{device}-{precision}"));
    let fixed = "--flavour txtai --merge none --batch-size 1 --grad-accumulation 2 --epochs 1 --seq-len 8 \
                 --log-every 1 --allow-unknown --quiet";
    let mut arguments = vec!["pretrain"];
    arguments.extend(fixed.split(' '));
    let (rows, vocabulary) = (path("rows.csv"), path("vocab.txt"));
    let (generator, discriminator) = (model("generator"), model("discriminator_pre"));
    arguments.extend(["--train", &rows, "--validation", &rows, "--tokenizer", &vocabulary]);
    arguments.extend(["--generator", &generator, "--discriminator", &discriminator]);
    arguments.extend(["--output", &output, "--device", device, "--precision", precision]);
    elektron(&arguments);
    let log = fs::read_to_string(Path::new(&output).join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps = lines.iter().filter(|line| line.get("lr").is_some()).count();
    assert_eq!(steps, 4, "{log}");
    for line in &lines {
        assert!(!line.to_string().contains("null"), "a number is missing: {line}");
        assert!(line.get("skipped").is_none(), "{line}");
    }
    lines
}

#[test]
fn runs_train_on_on_every_device() {
    let dir = tempfile::tempdir().unwrap();
    // Most rows of one word are not masked; rows of a character that the vocabulary lacks cannot be.
    for (text, none) in [("dog", false), ("☃", true)] {
        let want = trained(dir.path(), text, "cpu", "fp64");
        let losses = |lines: &[Value], name: &str| -> Vec<f64> {
            let of = lines.iter().filter(|line| line.get("lr").is_some());
            of.map(|line| line[name].as_f64().unwrap()).collect()
        };
        assert!(losses(&want, "gen_loss").contains(&0.0), "{want:?}");
        assert!(!none || losses(&want, "gen_loss").iter().all(|&loss| loss == 0.0), "{want:?}");
        assert!(losses(&want, "disc_loss").iter().all(|&loss| loss > 0.0), "{want:?}");
        // Of a mean over as few as six tokens little cancels: a loss may be off by as much as a tensor.
        let mut places = vec![("cpu", "fp32", SINGLE.tensor), ("cpu", "bf16", HALF.tensor)];
        if cfg!(feature = "simt") {
            places.extend([("simt", "fp32", SINGLE.tensor), ("simt", "bf16", HALF.tensor)]);
        }
        for (device, precision, off) in places {
            let got = trained(dir.path(), text, device, precision);
            for name in ["gen_loss", "disc_loss"] {
                for (got, want) in losses(&got, name).into_iter().zip(losses(&want, name)) {
                    assert_relative_eq!(got, want, max_relative = off);
                }
            }
            fs::remove_dir_all(dir.path().join(format!("{device}-{precision}"))).unwrap();
        }
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (generator, discriminator) = (path("cpu-fp64/generator"), path("cpu-fp64/discriminator"));
        let evaluated = elektron(&[
            "eval",
            "--generator",
            &generator,
            "--discriminator",
            &discriminator,
            "--input",
            &path("rows.csv"),
            "--flavour",
            "txtai",
            "--merge",
            "none",
            "--seq-len",
            "8",
            "--batch-size",
            "1",
            "--device",
            "cpu",
            "--json",
        ]);
        assert!(!evaluated.contains("null") && !evaluated.contains("NaN"), "{evaluated}");
        fs::remove_dir_all(dir.path().join("cpu-fp64")).unwrap();
    }
}
