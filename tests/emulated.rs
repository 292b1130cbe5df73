//! The whole training step on the emulated GPU: against `transformers`, against the CPU, resumed, accumulated, in any order of threads.

use elektron::backend::gpu::Working;
use elektron::backend::gpu::driver::simt::{Order, Simt};
use elektron::backend::{Backend, Cpu, Gpu};
use elektron::data::Batch;
use elektron::model::config::Architecture;
use elektron::model::hf::Checkpoint;
use elektron::model::{Flavour, Options, Phase, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

use crate::golden::{CASES, SINGLE, Tolerance, check};
use crate::support::{relative_l2, widen};
use crate::whole::{SAMPLED, batch, config};

/// One unit in the last place of bf16 is 2⁻⁸; a gradient has passed through a few dozen roundings, and a first update of Adam
/// turns a small error of a small gradient into one of the size of the step.
const HALF: Tolerance = Tolerance { loss: 4e-3, tensor: 4e-2, updated: 2e-2, zero: 1e-2 };

fn gpu<W: Working>(order: Order) -> Gpu<Simt, W> {
    Gpu::new(Simt::new(order))
}

#[test]
fn golden_cases_in_fp32() {
    for case in &CASES {
        check(gpu::<f32>(Order::Shuffled(4)), case, SINGLE);
    }
}

#[test]
fn golden_cases_in_bf16() {
    for case in &CASES {
        check(gpu::<bf16>(Order::Ascending), case, HALF);
    }
}

fn model<B: Backend>(backend: B, head: Architecture, share: Share) -> TokenDetection<B> {
    let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let discriminator = Checkpoint::fresh(config(8), head);
    let options = Options { share, flavour: Flavour::Electra, seed: 3, ..Options::default() };
    TokenDetection::with_options(backend, generator, discriminator, options).unwrap()
}

fn train(step: u32) -> Phase {
    Phase::Train { step, row0: 0, micro_batches: 1 }
}

fn gradients<B: Backend>(backend: B, head: Architecture, share: Share) -> Vec<(String, Vec<f64>)> {
    let mut model = model(backend, head, share);
    // Twice: gradients accumulate. Another row0 is another mask.
    for row0 in [0, 12] {
        let phase = Phase::Train { step: 5, row0, micro_batches: 2 };
        model.step_forward(&batch(), phase, Some(&SAMPLED)).unwrap();
        model.step_backward().unwrap();
    }
    model.named_gradients().unwrap().into_iter().map(|(name, g)| (name, widen(&g.data))).collect()
}

/// Every head and sharing, dropout on, two micro-batches.
#[test]
fn gradients_equal_the_cpus() {
    let heads = [Architecture::PreTraining, Architecture::TokenClassification];
    for (head, share) in
        heads.into_iter().flat_map(|h| [Share::All, Share::Word, Share::None, Share::Gdes].map(|s| (h, s)))
    {
        let want = gradients(Cpu::<f64>::new(), head, share);
        let got = gradients(gpu::<f32>(Order::Descending), head, share);
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
fn run<B: Backend>(
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

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
}

#[test]
fn twenty_steps_follow_the_cpu() {
    let (want, weights, samples) = run(Cpu::<f32>::new(), 20, None);
    let (got, got_weights, drawn) = run(gpu::<f32>(Order::Ascending), 20, None);
    assert_eq!(drawn, samples, "the same noise draws the same tokens");
    assert!(largest_difference(&got, &want) < 1e-4, "{got:?} {want:?}");
    let error = relative_l2("weights", &widen(&got_weights), &widen(&weights));
    assert!(error < 1e-3, "weights after twenty steps: {error}");
    let (half, _, _) = run(gpu::<bf16>(Order::Ascending), 20, Some(&samples));
    assert!(largest_difference(&half, &want) < 2e-2, "{half:?} {want:?}");
    assert!(want[19] < want[0], "it learns");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let (_, first, _) = run(gpu::<bf16>(Order::Ascending), 3, None);
    for order in [Order::Ascending, Order::Descending, Order::Shuffled(5)] {
        let (_, again, _) = run(gpu::<bf16>(order), 3, None);
        assert!(first.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()), "{order:?}");
    }
}

#[test]
fn a_resumed_run_goes_on_exactly() {
    let (_, undisturbed, _) = run(gpu::<bf16>(Order::Ascending), 6, None);
    let (flat, state) = {
        let mut model = model(gpu::<bf16>(Order::Ascending), Architecture::PreTraining, Share::All);
        let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
        advance(&mut model, &mut optimizer, 0..3);
        (model.flat_weights().unwrap(), optimizer.state(&mut model).unwrap())
    };
    let mut model = model(gpu::<bf16>(Order::Ascending), Architecture::PreTraining, Share::All);
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
    model.load_flat_weights(&flat).unwrap();
    optimizer.load_state(&mut model, &state).unwrap();
    advance(&mut model, &mut optimizer, 3..6);
    assert_eq!(model.flat_weights().unwrap(), undisturbed);
}

fn advance<B: Backend>(model: &mut TokenDetection<B>, optimizer: &mut AdamW<B>, steps: std::ops::Range<u32>) {
    for step in steps {
        model.step_forward(&batch(), train(step), None).unwrap();
        model.step_backward().unwrap();
        optimizer.step(model, 1e-3).unwrap();
    }
}

/// A gradient that is not finite leaves the weights as they are.
#[test]
fn an_infinite_gradient_changes_no_weight() {
    let mut model = model(gpu::<bf16>(Order::Ascending), Architecture::PreTraining, Share::All);
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
    let before = model.flat_weights().unwrap();
    let huge = Batch { rtd_weight: vec![f32::INFINITY; 12], ..batch() };
    model.step_forward(&huge, train(0), None).unwrap();
    model.step_backward().unwrap();
    assert!(!optimizer.step(&mut model, 1e-3).unwrap().is_finite());
    assert_eq!(model.flat_weights().unwrap(), before);
    advance(&mut model, &mut optimizer, 1..2);
    assert!(model.flat_weights().unwrap().iter().all(|x| x.is_finite()));
}
