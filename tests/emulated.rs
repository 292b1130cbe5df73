//! The whole training step on the emulated GPU: against `transformers`, against the CPU, resumed, accumulated, in any order of threads.

use approx::assert_abs_diff_eq;
use elektron::backend::gpu::driver::simt::{Asked, Order, Simt};
use elektron::backend::gpu::{Products, Working};
use elektron::backend::{Backend, Cpu, Gpu};
use elektron::model::config::Architecture;
use elektron::model::{Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

use crate::golden::{CASES, check_as_near};
use crate::place::{
    Place, assert_equal, assert_equal_but_for_rounding, metrics, signal, traces, wait_for_step,
};
use crate::recorded::{check_evened_out, check_masks, check_replays};
use crate::steps::{check_gradients, check_twenty_steps, model, run, train};
use crate::whole::batch;

fn gpu<W: Working>(order: Order) -> Gpu<Simt, W> {
    Gpu::new(Simt::new(order))
}

/// Epilogues fused, left to passes of their own, and every product by the project's own kernels.
const PRODUCTS: [Products; 3] = [Products::Auto, Products::Library, Products::Own];

#[test]
fn golden_cases_in_fp32() {
    for (case, products) in CASES.iter().flat_map(|case| PRODUCTS.map(|products| (case, products))) {
        check_as_near(gpu::<f32>(Order::Shuffled(4)).with_products(products), Cpu::<f32>::new(), case);
    }
}

#[test]
fn golden_cases_in_bf16() {
    for (case, products) in CASES.iter().flat_map(|case| PRODUCTS.map(|products| (case, products))) {
        check_as_near(gpu::<bf16>(Order::Ascending).with_products(products), Cpu::<bf16>::new(), case);
    }
}

#[test]
fn gradients_equal_the_cpus() {
    for products in PRODUCTS {
        check_gradients(|| gpu::<f32>(Order::Descending).with_products(products));
    }
}

#[test]
fn twenty_steps_follow_the_cpu() {
    check_twenty_steps(|| gpu::<f32>(Order::Ascending), gpu::<bf16>(Order::Ascending));
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

/// Both places of a batch run once and are recorded once: from then on the host only replays, allocates nothing and waits for nothing.
#[test]
fn a_step_is_one_replay() {
    for order in [Order::Ascending, Order::Shuffled(2)] {
        let mut asked: Vec<Asked> = Vec::new();
        check_replays(
            || gpu::<bf16>(order),
            |gpu, micro_batches| {
                let now = gpu.driver().asked();
                if let Some(before) = asked.last().filter(|before| {
                    before.replays > 2 * micro_batches as u64 && now.replays > before.replays
                }) {
                    assert_eq!(now.allocations, before.allocations);
                    assert_eq!(now.copies, before.copies);
                    assert_eq!(now.replays - before.replays, micro_batches as u64);
                    let told = now.launches - before.launches;
                    assert!(told <= 1 + micro_batches as u64, "clock and learning rate, not {told} launches");
                }
                asked.push(now);
            },
        );
        assert!(asked.iter().any(|asked| asked.replays > 2));
    }
}

#[test]
fn evened_out_batches_train_as_the_cpus_own() {
    check_evened_out(|| gpu::<f32>(Order::Descending));
}

/// The mask kernel draws the masks that the loader draws.
#[test]
fn masks_are_drawn_alike() {
    for order in [Order::Ascending, Order::Shuffled(3)] {
        check_masks(&gpu::<bf16>(order));
    }
}

/// The program on rows that need padding, two micro-batches a step: as the CPU trains, and stopped and resumed to the same bytes.
#[test]
fn a_whole_run_stops_and_goes_on() {
    let settings = "--merge none --grad-accumulation 2 --precision fp32 --steps 8 --save-every 5";
    let settings: Vec<&str> = settings.split(' ').collect();
    let place = Place::on("simt", &settings);
    let (want, output) = (place.undisturbed(), place.path("stopped"));
    let child = place.start(&output);
    wait_for_step(&output, 3);
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(75));
    place.finish(&output);
    assert_equal(&traces(&output), &want);

    let cpu = Place::on("cpu", &settings);
    let output = cpu.path("cpu");
    cpu.finish(&output);
    let (got, want) = (want.1, metrics(&output));
    assert_equal_but_for_rounding(&got, &want);
    for (got, want) in got.iter().zip(&want) {
        let value = |line: &serde_json::Value, name: &str| line[name].as_f64().unwrap();
        assert_abs_diff_eq!(value(got, "gen_acc"), value(want, "gen_acc"), epsilon = 0.02);
    }
}
