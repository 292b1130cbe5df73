//! The whole model against `transformers`: losses, logits, every gradient, and parameters after three updates, for
//! both heads, all of its sharings, both flavours, in single and double precision.

use elektron::backend::{Backend, Cpu};
use elektron::model::hf::Checkpoint;
use elektron::model::{Flavour, Options, PaddedInput, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

use crate::support::{golden, largest, read_tensors, relative_l2, widen};

const LR: f64 = 1e-3;

pub(crate) struct Case {
    pub(crate) name: &'static str,
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

/// What an error is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// A loss, relative.
    Loss,
    /// Logits, in the 2-norm, relative.
    Logits,
    /// A gradient, in the 2-norm, relative.
    Gradient,
    /// The largest element of a gradient that is zero in exact arithmetic, absolute.
    Zero,
    /// A parameter after three updates, in the 2-norm, relative.
    Updated,
}

pub(crate) type Errors = Vec<(Of, String, f64)>;

/// The largest errors allowed.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) loss: f64,
    pub(crate) tensor: f64,
    pub(crate) updated: f64,
    pub(crate) zero: f64,
}

impl Tolerance {
    /// Of a computation that rounds each stored number by up to `unit`, relative.
    ///
    /// - `tensor`: on the longest way through one of the small networks 22 numbers are stored one after
    ///   the other (embedding, projection, eight in each of two layers, four in the head), and as many on
    ///   the way back. One rounding has a standard deviation of unit · √(0.54 / 3) = 0.425 · unit (0.54 is
    ///   the mean of 1 / m² over significands m), so 44 independent ones have √44 · 0.425 · unit =
    ///   2.82 · unit. A tensor may be off by three of those.
    /// - `loss`: three standard deviations of 22 roundings in a mean over ten rows, the fewest here, would
    ///   be 3 · √22 · 0.425 / √10 · unit = 1.9 · unit. A loss must be closer than that: one unit.
    /// - `updated`: three updates move a parameter by a quarter of its norm at most (in `pre_google`), and
    ///   of Adam's quotient both parts are off by as much as a gradient: 2 · `tensor` / 4.
    /// - `zero`: an element of the gradient of the keys' bias sums up as much as one of the queries' bias,
    ///   about 1.16 (the largest norm is 9.3, of 64 elements), where three roundings do not cancel
    ///   (probability, gradient of the score, gradient of the key): 3 · √3 · 0.425 · 1.16 · unit.
    const fn of(unit: f64) -> Self {
        let tensor = 3.0 * 2.82 * unit;
        Self { loss: unit, tensor, updated: tensor / 2.0, zero: 2.56 * unit }
    }

    fn allows(&self, of: Of) -> f64 {
        match of {
            Of::Loss => self.loss,
            Of::Logits | Of::Gradient => self.tensor,
            Of::Zero => self.zero,
            Of::Updated => self.updated,
        }
    }
}

/// One rounding to bf16, which holds eight bits: half a unit in the last place, relative.
pub(crate) const UNIT_HALF: f64 = 1.0 / 256.0;
/// One rounding to single precision.
pub(crate) const UNIT_SINGLE: f64 = 1.0 / 16_777_216.0;
/// One rounding to double precision.
const UNIT_DOUBLE: f64 = UNIT_SINGLE * UNIT_SINGLE / 32.0;
/// What √1000 rounded terms add up to: a stored number is a sum of up to 1,000 (the vocabulary).
const SUM: f64 = 31.6;
/// What is compared is rounded to single precision, the reference and what is read of gradients and
/// weights: by 6e-8 each at most, which only a tensor of one element could reach on both sides.
const DOUBLE: Tolerance =
    Tolerance { loss: 1e-7, tensor: 1e-7, updated: 1e-7, zero: Tolerance::of(SUM * UNIT_DOUBLE).zero };
pub(crate) const SINGLE: Tolerance = Tolerance::of(SUM * UNIT_SINGLE);
/// Sums are in single precision, so that only stored numbers are rounded to bf16.
pub(crate) const HALF: Tolerance = Tolerance::of(UNIT_HALF);

pub(crate) fn input() -> PaddedInput {
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

pub(crate) fn model<B: Backend>(backend: B, case: &Case) -> TokenDetection<B> {
    let load = |name: &str| Checkpoint::load(&golden("checkpoints").join(name)).unwrap();
    let options = Options { flavour: case.flavour, share: case.share, ..Options::default() };
    TokenDetection::with_options(backend, load("generator"), load(case.discriminator), options).unwrap()
}

/// Holds every error to a tolerance.
pub(crate) fn check<B: Backend>(backend: B, case: &Case, tolerance: Tolerance) {
    for (of, name, error) in errors(backend, case) {
        assert!(error <= tolerance.allows(of), "{} {name}, {of:?}: {error:e}", case.name);
    }
}

/// Holds every error to the tolerance of its precision, and to twice the largest error of its kind that
/// `naive`, the CPU in the same precision, makes, plus one rounding.
pub(crate) fn check_as_near<B: Backend, N: Backend>(backend: B, naive: N, case: &Case) {
    let is_half = size_of::<B::X>() == 2;
    let (unit, tolerance) = if is_half { (UNIT_HALF, HALF) } else { (UNIT_SINGLE, SINGLE) };
    let naive = errors(naive, case);
    // A loss is made of logits.
    let kind = |of| if of == Of::Loss { Of::Logits } else { of };
    for (of, name, error) in errors(backend, case) {
        let naive = largest(naive.iter().filter(|(n, ..)| kind(*n) == kind(of)).map(|(.., error)| *error));
        assert!(
            error <= 2.0 * naive + unit && error <= tolerance.allows(of),
            "{} {name}, {of:?}: {error:e}, the CPU's {naive:e}, {:e} at most",
            case.name,
            tolerance.allows(of)
        );
    }
}

/// Everything that can be compared with `transformers`.
fn errors<B: Backend>(backend: B, case: &Case) -> Errors {
    let mut model = model(backend, case);
    let mut errors = Vec::new();
    let folder = golden(case.name);
    let forward = read_tensors(&folder.join("forward.safetensors"));
    let out = model.forward(&input()).unwrap();
    for (name, got) in [("gen_loss", out.gen_loss), ("disc_loss", out.disc_loss), ("total_loss", out.loss)] {
        let want = f64::from(forward.floats[name].data[0]);
        errors.push((Of::Loss, name.to_owned(), ((got - want) / want).abs()));
    }
    let mut logits = |name: &str, got: &[f64], want: &[f64]| {
        errors.push((Of::Logits, name.to_owned(), relative_l2(name, got, want)));
    };
    logits("gen_logits", &out.gen_logits, &widen(&forward.floats["gen_logits_masked"].data));
    // Padded positions of the pre-training head count in no loss and are not computed.
    let (mask, labels) = (input().attention_mask.unwrap(), out.disc_labels);
    let counted = |i: &usize| labels == 2 || mask[i / labels] == 1;
    let pick = |x: &[f64]| (0..x.len()).filter(counted).map(|i| x[i]).collect::<Vec<_>>();
    logits("disc_logits", &pick(&out.disc_logits), &pick(&widen(&forward.floats["disc_logits"].data)));
    let inputs = read_tensors(&golden("inputs.safetensors"));
    assert_eq!(out.is_fake, inputs.ints["discriminator_labels"]);

    model.backward().unwrap();
    gradient_errors(&model, &folder, &mut errors);
    update_errors(&mut model, &folder, case, &mut errors);
    errors
}

fn gradient_errors<B: Backend>(model: &TokenDetection<B>, folder: &std::path::Path, errors: &mut Errors) {
    let mut want = read_tensors(&folder.join("grads.safetensors")).floats;
    for (name, got) in model.named_gradients().unwrap() {
        let want = want.remove(&name).unwrap_or_else(|| panic!("{name} has no reference"));
        assert_eq!(got.shape, want.shape, "{name}");
        if name.ends_with("self.key.bias") {
            // Softmax ignores a shift common to all keys: the true gradient is zero.
            errors.push((Of::Zero, name, largest(widen(&got.data))));
            continue;
        }
        let error = relative_l2(&name, &widen(&got.data), &widen(&want.data));
        errors.push((Of::Gradient, name, error));
    }
    assert!(want.is_empty(), "no gradient for {:?}", want.keys());
}

fn update_errors<B: Backend>(
    model: &mut TokenDetection<B>,
    folder: &std::path::Path,
    case: &Case,
    errors: &mut Errors,
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
    let [(_, generator), (_, discriminator)] = <[_; 2]>::try_from(model.checkpoints().unwrap()).unwrap();
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
            let difference = largest(got.data.iter().zip(&want.data).map(|(x, y)| f64::from(x - y)));
            assert!(difference <= 2.0 * reach, "{} {name}: {difference}", case.name);
            continue;
        }
        let error = relative_l2(&name, &widen(&got.data), &widen(&want.data));
        errors.push((Of::Updated, name, error));
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
