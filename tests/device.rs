//! The GPU backend on a real GPU. Without one these tests report on standard error that they are skipped
//! and pass, unless `ELEKTRON_REQUIRE_GPU` is set.

use approx::relative_eq;
use elektron::backend::gpu::Working;
use elektron::backend::gpu::driver::cuda::{Cuda, CudaOptions, devices};
use elektron::backend::gpu::driver::gemm::own_gemm;
use elektron::backend::gpu::driver::{Driver, Gemm, Operand, Precision};
use elektron::backend::selftest::{Case, compare};
use elektron::backend::{Backend, Cpu, Gpu};
use half::bf16;

use crate::golden::{CASES, check_as_near};
use crate::ops::noise;
use crate::recorded::{check_evened_out, check_masks, check_replays};
use crate::steps::{check_gradients, check_twenty_steps, run};
use crate::support::skipped;

fn has_gpu() -> bool {
    match devices() {
        Ok(devices) if !devices.is_empty() => true,
        found if std::env::var_os("ELEKTRON_REQUIRE_GPU").is_some() => panic!("a GPU is required: {found:?}"),
        found => {
            let reason = found.err().map_or("the driver finds none".to_owned(), |e| e.to_string());
            skipped(&format!("not tested on a GPU: {reason}"));
            false
        }
    }
}

fn gpu<W: Working>() -> Gpu<Cuda, W> {
    Gpu::new(Cuda::new(CudaOptions::default()).unwrap())
}

/// How often each op is run for bitwise equal results.
fn repeats() -> usize {
    std::env::var("ELEKTRON_REPEATS").ok().and_then(|n| n.parse().ok()).unwrap_or(10)
}

fn every_op<W: Working>() {
    let gpu = gpu::<W>();
    let mut problems = Vec::new();
    for case in Case::all() {
        let (test, first) = compare(&case, &gpu).unwrap();
        problems.extend(test.problem.map(|problem| format!("{case:?}: {problem}")));
        for repeat in 1..repeats() {
            let again = case.run(&gpu, false).unwrap();
            let equal = first
                .iter()
                .zip(&again)
                .all(|(a, b)| a.values.iter().zip(&b.values).all(|(a, b)| a.to_bits() == b.to_bits()));
            if !equal {
                problems.push(format!("{case:?}: other bits in repeat {repeat}"));
                break;
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_op_in_bf16() {
    if has_gpu() {
        every_op::<bf16>();
    }
}

#[test]
fn every_op_in_fp32() {
    if has_gpu() {
        every_op::<f32>();
    }
}

#[test]
fn golden_cases() {
    if !has_gpu() {
        return;
    }
    for case in &CASES {
        check_as_near(gpu::<f32>(), Cpu::<f32>::new(), case);
        check_as_near(gpu::<bf16>(), Cpu::<bf16>::new(), case);
    }
}

#[test]
fn gradients_equal_the_cpus() {
    if has_gpu() {
        check_gradients(gpu::<f32>);
    }
}

#[test]
fn twenty_steps_follow_the_cpu() {
    if has_gpu() {
        check_twenty_steps(gpu::<f32>, gpu::<bf16>());
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    if has_gpu() {
        let weights = || run(gpu::<bf16>(), 5, None).1.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(weights(), weights());
    }
}

#[test]
fn replayed_steps_are_the_steps_themselves() {
    if has_gpu() {
        check_replays(gpu::<bf16>, |_, _| {});
        check_evened_out(gpu::<f32>);
        check_masks(&gpu::<bf16>());
    }
}

/// cuBLASLt against the project's own kernel, which the emulated device has checked.
#[test]
fn products_agree() {
    if !has_gpu() {
        return;
    }
    let device = Cuda::new(CudaOptions::default()).unwrap();
    if !device.has_library() {
        skipped("cuBLASLt was not found on this machine");
        return;
    }
    for ((m, n, k), layout) in [(1, 1, 8), (128, 256, 64), (65, 33, 130), (152, 30522, 128)]
        .into_iter()
        .flat_map(|s| (0..32).map(move |l| (s, l)))
    {
        let bit = |i: usize| layout >> i & 1 == 1;
        if bit(0) && bit(1) {
            continue; // no pass multiplies two transposed matrices
        }
        let wide = if bit(2) { 4 } else { 2 };
        let make = |seed: u64, count: usize, bytes: usize| {
            let region = device.alloc(count * bytes).unwrap();
            let data: Vec<u8> = match bytes {
                2 => noise(seed, count).iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
                _ => noise(seed, count).iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            };
            device.upload(&data, region).unwrap();
            region
        };
        let gemm = Gemm {
            m,
            n,
            k,
            precision: Precision::Bf16,
            a: Operand { at: make(1, m * k, 2), transposed: bit(0), pitch: if bit(0) { m } else { k } },
            b: Operand { at: make(2, k * n, 2), transposed: bit(1), pitch: if bit(1) { k } else { n } },
            c: make(3, m * n, wide),
            pitch: n,
            exact: bit(2),
            accumulate: bit(3),
            bias: (bit(4) && !bit(2)).then(|| make(4, n, 2)),
        };
        let own = Gemm { c: make(3, m * n, wide), ..gemm };
        device.gemm(&gemm).unwrap();
        own_gemm(&device, &own).unwrap();
        let read = |region| {
            let mut data = vec![0u8; m * n * wide];
            device.download(region, &mut data).unwrap();
            let value = |b: &[u8]| match wide {
                2 => bf16::from_le_bytes([b[0], b[1]]).to_f64(),
                _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into(),
            };
            data.chunks(wide).map(value).collect::<Vec<f64>>()
        };
        let unit = if wide == 2 { 2f64.powi(-7) } else { 1e-4 };
        for (got, want) in read(gemm.c).iter().zip(&read(own.c)) {
            assert!(
                relative_eq!(got, want, epsilon = unit, max_relative = unit),
                "{gemm:?}: {got} against {want}"
            );
        }
        for region in [gemm.a.at, gemm.b.at, gemm.c, own.c].into_iter().chain(gemm.bias) {
            device.free(region);
        }
    }
}

/// A batch too large is refused by name, and the device still works.
#[test]
fn out_of_memory_is_an_error() {
    if has_gpu() {
        let gpu = gpu::<bf16>();
        let Err(error) = gpu.alloc::<f32>(1 << 42) else { panic!("16 TiB were given") };
        assert!(error.to_string().contains("MiB"), "{error}");
        assert!(gpu.alloc::<f32>(1024).is_ok());
    }
}
