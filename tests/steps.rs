//! Training steps that the emulated and the real device are both held to.

use elektron::backend::{Backend, Cpu};
use elektron::model::config::Architecture;
use elektron::model::hf::Checkpoint;
use elektron::model::{Flavour, Options, Phase, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};

use crate::golden::Tolerance;
use crate::support::{relative_l2, widen};
use crate::whole::{SAMPLED, batch, config};

/// One unit in the last place of bf16 is 2⁻⁸; a gradient has passed through a few dozen roundings, and a first update of Adam
/// turns a small error of a small gradient into one of the size of the step.
pub(crate) const HALF: Tolerance = Tolerance { loss: 4e-3, tensor: 4e-2, updated: 2e-2, zero: 1e-2 };

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

/// Holds a device's gradients to the CPU's in double precision: every head and sharing, dropout on, two micro-batches.
pub(crate) fn check_gradients<B: Backend>(backend: impl Fn() -> B) {
    let heads = [Architecture::PreTraining, Architecture::TokenClassification];
    for (head, share) in
        heads.into_iter().flat_map(|h| [Share::All, Share::Word, Share::None, Share::Gdes].map(|s| (h, s)))
    {
        let want = gradients(Cpu::<f64>::new(), head, share);
        let got = gradients(backend(), head, share);
        let whole: f64 = want.iter().flat_map(|(_, g)| g).map(|x| x * x).sum::<f64>().sqrt();
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            let size: f64 = want.iter().map(|x| x * x).sum::<f64>().sqrt();
            if size < 1e-6 * whole {
                assert!(got.iter().all(|x| x.abs() < 1e-5 * whole), "{share:?} {name}");
            } else {
                let error = relative_l2(name, got, want);
                assert!(error < 1e-4, "{head:?} {share:?} {name}: {error}");
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

pub(crate) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}

/// Holds twenty steps in fp32 and bf16 to the CPU's, with the same masks and dropout; bf16 is given the same samples.
pub(crate) fn check_twenty_steps<A: Backend, B: Backend>(single: A, half: B) {
    let (want, weights, samples) = run(Cpu::<f32>::new(), 20, None);
    let (got, got_weights, drawn) = run(single, 20, None);
    assert_eq!(drawn, samples, "the same noise draws the same tokens");
    assert!(largest_difference(&got, &want) < 1e-4, "{got:?} {want:?}");
    let error = relative_l2("weights", &widen(&got_weights), &widen(&weights));
    assert!(error < 1e-3, "weights after twenty steps: {error}");
    let (half, _, _) = run(half, 20, Some(&samples));
    assert!(largest_difference(&half, &want) < 2e-2, "{half:?} {want:?}");
    assert!(want[19] < want[0], "it learns");
}
