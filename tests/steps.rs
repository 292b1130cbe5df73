//! Training steps that the emulated and the real device are both held to.

use elektron::backend::{Backend, Cpu};
use elektron::model::config::Architecture;
use elektron::model::hf::Checkpoint;
use elektron::model::{Flavour, Options, Phase, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

use crate::golden::{HALF, SINGLE, Tolerance, UNIT_HALF, UNIT_SINGLE};
use crate::support::{largest, relative_l2, widen};
use crate::whole::{SAMPLED, batch, config};

pub(crate) fn model<B: Backend>(backend: B, head: Architecture, share: Share) -> TokenDetection<B> {
    let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let discriminator = Checkpoint::fresh(config(8), head);
    let options = Options { share, flavour: Flavour::Electra, seed: 3, ..Options::default() };
    TokenDetection::with_options(backend, generator, discriminator, options).unwrap()
}

pub(crate) fn train(step: u32) -> Phase {
    Phase::Train { step, row0: 0, divisor: 1.0 }
}

pub(crate) fn gradients<B: Backend>(backend: B, head: Architecture, share: Share) -> Vec<(String, Vec<f64>)> {
    let mut model = model(backend, head, share);
    // Twice: gradients accumulate. Another row0 is another mask.
    for row0 in [0, 12] {
        let phase = Phase::Train { step: 5, row0, divisor: 2.0 };
        model.step_forward(&batch(), phase, Some(&SAMPLED)).unwrap();
        model.step_backward().unwrap();
    }
    model.named_gradients().unwrap().into_iter().map(|(name, g)| (name, widen(&g.data))).collect()
}

/// The errors of two kinds of gradients: of those that are not zero in exact arithmetic, in the 2-norm,
/// relative; of those that are, the largest element, relative to the norm of all gradients.
fn gradient_errors(got: &[(String, Vec<f64>)], want: &[(String, Vec<f64>)]) -> [Vec<(String, f64)>; 2] {
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let whole = norm(&want.iter().flat_map(|(_, g)| g).copied().collect::<Vec<_>>());
    let mut errors = [Vec::new(), Vec::new()];
    for ((name, got), (_, want)) in got.iter().zip(want) {
        // In double precision a zero is some 1e-16 of the whole, any other gradient far more than 1e-8.
        let is_zero = norm(want) < f64::EPSILON.sqrt() * whole;
        let error = match is_zero {
            true => largest(got.iter().copied()) / whole,
            false => relative_l2(name, got, want),
        };
        errors[usize::from(is_zero)].push((name.clone(), error));
    }
    errors
}

/// Holds a device's gradients in single precision to the CPU's in double precision: they may be off by
/// twice as much as the CPU's in single precision, plus one rounding. Every head and sharing, dropout
/// on, two micro-batches.
pub(crate) fn check_gradients<B: Backend>(backend: impl Fn() -> B) {
    let heads = [Architecture::PreTraining, Architecture::TokenClassification];
    for (head, share) in
        heads.into_iter().flat_map(|h| [Share::All, Share::Word, Share::None, Share::Gdes].map(|s| (h, s)))
    {
        let want = gradients(Cpu::<f64>::new(), head, share);
        let naive = gradient_errors(&gradients(Cpu::<f32>::new(), head, share), &want);
        let got = gradient_errors(&gradients(backend(), head, share), &want);
        assert!(got.iter().all(|errors| !errors.is_empty()), "keys' biases have no gradient");
        for (got, naive) in got.iter().zip(&naive) {
            let allowed = 2.0 * largest(naive.iter().map(|(_, error)| *error)) + UNIT_SINGLE;
            for (name, error) in got {
                assert!(*error <= allowed, "{head:?} {share:?} {name}: {error:e}, {allowed:e} is allowed");
            }
        }
    }
}

/// Losses, and the flat weights at the end, of `steps` steps; samples are those of `reference` where given.
pub(crate) fn run<B: Backend>(
    backend: B,
    steps: u32,
    reference: Option<&[Vec<u32>]>,
) -> (Vec<f64>, Vec<f32>, Vec<Vec<u32>>) {
    let mut model = model(backend, Architecture::PreTraining, Share::All);
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
    let (mut losses, mut samples) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let given = reference.map(|r| &r[step as usize][..]);
        model.step_forward(&batch(), train(step), given).unwrap();
        let out = model.read_step().unwrap();
        losses.push(out.loss);
        samples.push(out.sampled_ids);
        model.step_backward().unwrap();
        optimizer.step(&mut model, 1e-3).unwrap();
    }
    (losses, model.flat_weights().unwrap(), samples)
}

/// The largest relative difference of two series.
pub(crate) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    largest(a.iter().zip(b).map(|(a, b)| (a - b) / b))
}

const STEPS: u32 = 20;

/// The losses of some steps, and the weights at the end.
type Steps = (Vec<f64>, Vec<f64>);

/// How far twenty steps are off from those in double precision on the same samples: the largest error of
/// a loss, and that of the weights at the end.
fn errors_of_steps<B: Backend>(backend: B, samples: &[Vec<u32>], exact: &Steps) -> [f64; 2] {
    let (losses, weights, _) = run(backend, STEPS, Some(samples));
    [largest_difference(&losses, &exact.0), relative_l2("weights", &widen(&weights), &exact.1)]
}

/// The samples that twenty steps in single precision draw, and losses and weights of twenty steps in
/// double precision on these samples.
fn reference() -> (Vec<Vec<u32>>, Steps) {
    let (_, _, samples) = run(Cpu::<f32>::new(), STEPS, None);
    let (losses, weights, _) = run(Cpu::<f64>::new(), STEPS, Some(&samples));
    assert!(losses[19] < losses[0], "it learns");
    (samples, (losses, widen(&weights)))
}

/// Holds twenty steps of a device in single precision and in bf16 to those of the CPU in double
/// precision: they may be off by twice as much as the CPU's in the same precision, plus one rounding, and
/// losses by no more than the CPU's may be ([`loss_after_steps`]). Masks and dropout are the same, and so
/// are the sampled tokens.
pub(crate) fn check_twenty_steps<A: Backend, B: Backend>(single: impl Fn() -> A, half: B) {
    let (samples, exact) = reference();
    let (_, _, drawn) = run(single(), STEPS, None);
    assert_eq!(drawn, samples, "the same noise draws the same tokens");
    let check = |(unit, tolerance): (f64, Tolerance), got: [f64; 2], naive: [f64; 2]| {
        for ((what, got), naive) in ["losses", "weights"].into_iter().zip(got).zip(naive) {
            assert!(got <= 2.0 * naive + unit, "unit {unit:e}, {what}: {got:e}, the CPU's {naive:e}");
        }
        assert!(got[0] <= loss_after_steps(tolerance), "unit {unit:e}, losses: {:e}", got[0]);
    };
    let naive = errors_of_steps(Cpu::<f32>::new(), &samples, &exact);
    check((UNIT_SINGLE, SINGLE), errors_of_steps(single(), &samples, &exact), naive);
    let naive = errors_of_steps(Cpu::<bf16>::new(), &samples, &exact);
    check((UNIT_HALF, HALF), errors_of_steps(half, &samples, &exact), naive);
}

/// The largest error of a loss within twenty steps: each step may add the error of one loss, and
/// independent errors add up to √20 of one.
fn loss_after_steps(tolerance: Tolerance) -> f64 {
    f64::from(STEPS).sqrt() * tolerance.loss
}

#[test]
fn low_precision_follows_double_precision_for_twenty_steps() {
    let (samples, exact) = reference();
    let [single, _] = errors_of_steps(Cpu::<f32>::new(), &samples, &exact);
    let [half, _] = errors_of_steps(Cpu::<bf16>::new(), &samples, &exact);
    assert!(single <= loss_after_steps(SINGLE), "single precision: {single:e}");
    assert!(half <= loss_after_steps(HALF), "bf16: {half:e}");
}
