//! The whole model against `transformers`: losses, logits, every gradient, and parameters after three updates, for
//! both heads, all of its sharings, both flavours, in single and double precision.

use elektron::backend::{Backend, Cpu};
use elektron::model::hf::Checkpoint;
use elektron::model::{Flavour, Options, PaddedInput, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

use crate::steps::{HALF, check_twenty_steps};
use crate::support::{golden, read_tensors, relative_l2, widen};

const LR: f64 = 1e-3;

pub(crate) struct Case {
    name: &'static str,
    discriminator: &'static str,
    share: Share,
    flavour: Flavour,
}

pub(crate) const CASES: [Case; 5] = [
    Case {
        name: "token_shared",
        discriminator: "discriminator_token",
        share: Share::Word,
        flavour: Flavour::Txtai,
    },
    Case {
        name: "token_unshared",
        discriminator: "discriminator_token",
        share: Share::None,
        flavour: Flavour::Txtai,
    },
    Case {
        name: "pre_shared",
        discriminator: "discriminator_pre",
        share: Share::Word,
        flavour: Flavour::Txtai,
    },
    Case {
        name: "pre_unshared",
        discriminator: "discriminator_pre",
        share: Share::None,
        flavour: Flavour::Txtai,
    },
    Case {
        name: "pre_google",
        discriminator: "discriminator_pre",
        share: Share::All,
        flavour: Flavour::Electra,
    },
];

/// Largest relative errors allowed: of losses, of logits and gradients, and of parameters after three updates.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) loss: f64,
    pub(crate) tensor: f64,
    pub(crate) updated: f64,
    /// Of a gradient that is zero in exact arithmetic, absolute.
    pub(crate) zero: f32,
}

/// The stored numbers are rounded to single precision: 6e-8 relative.
const DOUBLE: Tolerance = Tolerance { loss: 1e-7, tensor: 1e-7, updated: 1e-7, zero: 1e-5 };
pub(crate) const SINGLE: Tolerance = Tolerance { loss: 1e-5, tensor: 1e-4, updated: 1e-4, zero: 1e-5 };

fn input() -> PaddedInput {
    let inputs = read_tensors(&golden("inputs.safetensors"));
    let take = |name: &str| inputs.ints[name].clone();
    PaddedInput {
        batch: 3,
        seq_len: 17,
        input_ids: take("input_ids"),
        labels: take("labels"),
        attention_mask: Some(take("attention_mask")),
        token_type_ids: Some(take("token_type_ids")),
        sampled_ids: Some(take("sampled")),
    }
}

fn model<B: Backend>(backend: B, case: &Case) -> TokenDetection<B> {
    let load = |name: &str| Checkpoint::load(&golden("checkpoints").join(name)).unwrap();
    let options = Options { flavour: case.flavour, share: case.share, ..Options::default() };
    TokenDetection::with_options(backend, load("generator"), load(case.discriminator), options).unwrap()
}

pub(crate) fn check<B: Backend>(backend: B, case: &Case, tolerance: Tolerance) {
    let mut model = model(backend, case);
    let folder = golden(case.name);
    let forward = read_tensors(&folder.join("forward.safetensors"));
    let scalar = |name: &str| f64::from(forward.floats[name].data[0]);
    let out = model.forward(&input()).unwrap();
    for (name, got) in [("gen_loss", out.gen_loss), ("disc_loss", out.disc_loss), ("total_loss", out.loss)] {
        let want = scalar(name);
        assert!((got - want).abs() <= tolerance.loss * want.abs(), "{} {name}: {got} {want}", case.name);
    }
    let logits =
        relative_l2("gen_logits", &out.gen_logits, &widen(&forward.floats["gen_logits_masked"].data));
    assert!(logits < tolerance.tensor, "{} gen_logits: {logits}", case.name);
    check_disc_logits(&out, &forward.floats["disc_logits"].data, case, tolerance);
    let inputs = read_tensors(&golden("inputs.safetensors"));
    assert_eq!(out.is_fake, inputs.ints["discriminator_labels"]);

    model.backward().unwrap();
    check_gradients(&model, &folder, case, tolerance);
    check_updates(&mut model, &folder, case, tolerance);
}

/// Padded positions of the pre-training head count in no loss and are not computed.
fn check_disc_logits(out: &elektron::model::Output, want: &[f32], case: &Case, tolerance: Tolerance) {
    let mask = input().attention_mask.unwrap();
    let labels = out.disc_labels;
    let counted = |i: &usize| labels == 2 || mask[i / labels] == 1;
    let pick = |x: &[f64]| (0..x.len()).filter(counted).map(|i| x[i]).collect::<Vec<_>>();
    let error = relative_l2("disc_logits", &pick(&out.disc_logits), &pick(&widen(want)));
    assert!(error < tolerance.tensor, "{} disc_logits: {error}", case.name);
}

fn check_gradients<B: Backend>(
    model: &TokenDetection<B>,
    folder: &std::path::Path,
    case: &Case,
    tolerance: Tolerance,
) {
    let mut want = read_tensors(&folder.join("grads.safetensors")).floats;
    for (name, got) in model.named_gradients().unwrap() {
        let want = want.remove(&name).unwrap_or_else(|| panic!("{name} has no reference"));
        assert_eq!(got.shape, want.shape, "{name}");
        if name.ends_with("self.key.bias") {
            // Softmax ignores a shift common to all keys: the true gradient is zero.
            let largest = got.data.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            assert!(largest < tolerance.zero, "{} {name}: {largest}", case.name);
            continue;
        }
        let error = relative_l2(&name, &widen(&got.data), &widen(&want.data));
        assert!(error < tolerance.tensor, "{} {name}: {error}", case.name);
    }
    assert!(want.is_empty(), "no gradient for {:?}", want.keys());
}

fn check_updates<B: Backend>(
    model: &mut TokenDetection<B>,
    folder: &std::path::Path,
    case: &Case,
    tolerance: Tolerance,
) {
    let electra = case.flavour == Flavour::Electra;
    let options =
        AdamWOptions { bias_correction: !electra, clip: electra.then_some(1.0), ..AdamWOptions::default() };
    let mut optimizer = AdamW::new(model, options).unwrap();
    optimizer.step(model, LR).unwrap();
    for _ in 0..2 {
        model.forward(&input()).unwrap();
        model.backward().unwrap();
        optimizer.step(model, LR).unwrap();
    }
    let (generator, discriminator) = model.checkpoints().unwrap();
    let want = read_tensors(&folder.join("after3.safetensors")).floats;
    for (name, want) in want {
        let got = match name.strip_prefix("generator.") {
            Some(name) => &generator.tensors[name],
            None => &discriminator.tensors[name.strip_prefix("discriminator.").unwrap()],
        };
        if name.ends_with("self.key.bias") {
            // Adam turns the rounding noise of a zero gradient into steps, here and in the reference: of the learning rate, or
            // of (1 - β₁) / √(1 - β₂) = 3.2 times that in the first ones without bias correction.
            let reach = 3.0 * LR * if electra { 3.2 } else { 1.0 };
            let largest = got.data.iter().zip(&want.data).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
            assert!(f64::from(largest) <= 2.0 * reach, "{} {name}: {largest}", case.name);
            continue;
        }
        let error = relative_l2(&name, &widen(&got.data), &widen(&want.data));
        assert!(error < tolerance.updated, "{} {name} after three updates: {error}", case.name);
    }
}

#[test]
fn every_case_in_double_precision() {
    for case in &CASES {
        check(Cpu::<f64>::new(), case, DOUBLE);
    }
}

#[test]
fn every_case_in_single_precision() {
    for case in &CASES {
        check(Cpu::<f32>::new(), case, SINGLE);
    }
}

#[test]
fn every_case_in_bf16() {
    for case in &CASES {
        check(Cpu::<bf16>::new(), case, HALF);
    }
}

#[test]
fn bf16_follows_single_precision_for_twenty_steps() {
    check_twenty_steps(Cpu::<f32>::new(), Cpu::<bf16>::new());
}
