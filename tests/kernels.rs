//! The GPU backend on the emulated device: every op against the CPU in double precision, and the emulator itself.

use approx::relative_eq;
use elektron::backend::Gpu;
use elektron::backend::gpu::Working;
use elektron::backend::gpu::driver::gemm::{Tile, own_gemm_in};
use elektron::backend::gpu::driver::simt::{Order, Simt};
use elektron::backend::gpu::driver::{Argument, Driver, Gemm, Launch, Operand, Precision, Region};
use elektron::backend::selftest::{Case, compare};
use half::bf16;
use rayon::prelude::*;

/// Every case; its bits in five orders of threads.
fn all_orders<W: Working>() {
    Case::all().par_iter().for_each(|case| {
        let results = Order::ALL.map(|order| {
            let (test, outputs) = compare(case, &Gpu::<_, W>::new(Simt::new(order))).unwrap();
            assert!(test.passed, "{case:?}, {order:?}: {}", test.problem.unwrap_or_default());
            outputs.into_iter().flat_map(|o| o.values).map(f64::to_bits).collect::<Vec<_>>()
        });
        for (order, bits) in Order::ALL.iter().zip(&results) {
            assert!(*bits == results[0], "{case:?}: threads in order {order:?} give other bits");
        }
    });
}

#[test]
fn every_op_in_bf16() {
    all_orders::<bf16>();
}

#[test]
fn every_op_in_fp32() {
    all_orders::<f32>();
}

/// Runs one of the kernels with a planted fault on 64 threads; `Err` is the emulator's complaint.
fn planted(
    kernel: &'static str,
    order: Order,
    shared_bytes: u32,
    with_input: bool,
    n: Option<u32>,
) -> Result<Vec<f32>, String> {
    let device = Simt::new(order);
    let out = device.alloc(64 * 4).unwrap();
    let from = device.alloc(256 * 4).unwrap();
    let values: Vec<f32> = (0..256).map(|i| i as f32).collect();
    device.upload(bytemuck::cast_slice(&values), from).unwrap();
    device.fill(out, 0).unwrap();
    let mut arguments: Vec<Argument> = Vec::new();
    if with_input {
        arguments.push(from.into());
    }
    arguments.push(out.into());
    arguments.extend(n.map(Argument::from));
    let launch = Launch {
        file: "planted",
        kernel,
        precision: Precision::Fp32,
        grid: [1, 1, 1],
        threads: 64,
        shared_bytes,
        arguments: &arguments,
        bytes: 0,
    };
    device.launch(&launch).map_err(|e| e.to_string())?;
    let mut result = vec![0.0f32; 64];
    device.download(out, bytemuck::cast_slice_mut(&mut result)).unwrap();
    assert_ne!(out, Region::NOTHING);
    Ok(result)
}

#[test]
fn planted_faults_are_caught() {
    let orders = |kernel| Order::ALL.map(|order| planted(kernel, order, 256, false, None).unwrap());
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let agree = |results: &[Vec<f32>]| results.iter().all(|r| bits(r) == bits(&results[0]));
    assert!(agree(&orders("with_barrier")));
    assert!(!agree(&orders("missing_barrier")), "a missing barrier shows in the order of threads");

    let early = planted("out_of_turn", Order::Ascending, 256, false, None);
    assert!(early.unwrap_err().contains("does not wait for what was launched before"));

    let complaint = |kernel, n| planted(kernel, Order::Ascending, 256, false, n).unwrap_err();
    assert!(planted("one_past_the_end", Order::Ascending, 256, false, Some(62)).is_ok());
    assert!(planted("one_past_the_end", Order::Ascending, 256, false, Some(63)).is_ok());
    let beyond = planted_write(64);
    assert!(beyond.unwrap_err().contains("wrote beyond a buffer"));
    assert!(complaint("beyond_shared_memory", Some(1)).contains("beyond the shared memory"));
    assert!(complaint("mismatched_mask", None).contains("different masks"));
    assert!(complaint("missing_lanes", None).contains("never come"));

    let uninitialised = planted("uninitialised_read", Order::Ascending, 256, false, None).unwrap();
    assert!(uninitialised.iter().all(|x| x.is_nan()), "unwritten shared memory is NaN");
    let waited = planted("waited_copy", Order::Ascending, 1024, true, None).unwrap();
    assert_eq!(waited, (0..64).map(|i| i as f32).collect::<Vec<_>>());
    let unwaited = planted("unwaited_copy", Order::Ascending, 1024, true, None).unwrap();
    assert!(unwaited.iter().all(|x| x.is_nan()), "a copy arrives only at its wait");

    // With `wgmma` and without.
    for order in [Order::Ascending, Order::Descending] {
        assert_eq!(planted("awaited_product", order, 8192, false, None).unwrap(), [64.0; 64]);
    }
    let unawaited = planted("unawaited_product", Order::Ascending, 8192, false, None).unwrap();
    assert_eq!(unawaited, [0.0; 64], "a product arrives only at its wait");
}

/// A buffer of 63 floats that 64 threads write to.
fn planted_write(threads: u32) -> Result<(), String> {
    let device = Simt::new(Order::Ascending);
    let out = device.alloc(63 * 4).unwrap();
    let launch = Launch {
        file: "planted",
        kernel: "one_past_the_end",
        precision: Precision::Fp32,
        grid: [1, 1, 1],
        threads,
        shared_bytes: 0,
        arguments: &[out.into(), 63u32.into()],
        bytes: 0,
    };
    device.launch(&launch).map_err(|e| e.to_string())
}

#[test]
fn arguments_of_the_wrong_size_are_refused() {
    let device = Simt::new(Order::Ascending);
    let out = device.alloc(256).unwrap();
    let launch = Launch {
        file: "planted",
        kernel: "with_barrier",
        precision: Precision::Bf16,
        grid: [1, 1, 1],
        threads: 64,
        shared_bytes: 256,
        arguments: &[out.into(), 1u32.into()],
        bytes: 0,
    };
    assert!(device.launch(&launch).unwrap_err().to_string().contains("takes arguments of"));
}

/// The project's own product against the driver's, over layouts, precisions and awkward sizes.
#[test]
fn own_products() {
    let sizes = [(1, 1, 1), (7, 65, 33), (64, 64, 32), (65, 3, 130), (72, 88, 136)];
    let layouts = |size| (0..64u32).map(move |layout| (size, layout));
    sizes.into_iter().flat_map(layouts).collect::<Vec<_>>().par_iter().for_each(|&(size, layout)| {
        own_product(Precision::Bf16, size, layout);
        own_product(Precision::Fp32, size, layout);
    });
}

/// Bits of `layout`: A transposed, B transposed, C exact, added to C, bias, rows padded.
fn own_product(precision: Precision, (m, n, k): (usize, usize, usize), layout: u32) {
    let device = Simt::new(Order::Shuffled(9));
    let bytes = precision.bytes();
    let make = |seed: u64, count: usize, bytes: usize| {
        let region = device.alloc(count * bytes).unwrap();
        let values = crate::ops::noise(seed, count);
        let data: Vec<u8> = match bytes {
            2 => values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        };
        device.upload(&data, region).unwrap();
        region
    };
    let bit = |i: usize| layout >> i & 1 == 1;
    if bit(0) && bit(1) {
        return; // no pass multiplies two transposed matrices
    }
    let exact = bit(2);
    // Rows without gaps, or padded so that they start at multiples of 16 bytes.
    let pitch = |len: usize| if bit(5) { len.next_multiple_of(8) + 8 } else { len };
    let operand = |seed, rows: usize, cols: usize, transposed: bool| {
        let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
        Operand { at: make(seed, rows * pitch(cols), bytes), transposed, pitch: pitch(cols) }
    };
    let wide = if exact { 4 } else { bytes };
    let gemm = Gemm {
        m,
        n,
        k,
        precision,
        a: operand(1, m, k, bit(0)),
        b: operand(2, k, n, bit(1)),
        c: make(3, m * pitch(n), wide),
        pitch: pitch(n),
        exact,
        accumulate: bit(3),
        bias: bit(4).then(|| make(4, n, bytes)),
    };
    let read = |region: Region| -> Vec<f64> {
        let mut data = vec![0u8; region.bytes()];
        device.download(region, &mut data).unwrap();
        match wide {
            2 => data.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
            _ => data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect(),
        }
    };
    own_gemm_in(&device, &gemm, Tile::Small).unwrap();
    let got = read(gemm.c);
    if m > 64 {
        let large = Gemm { c: make(3, m * pitch(n), wide), ..gemm };
        own_gemm_in(&device, &large, Tile::Large).unwrap();
        assert!(read(large.c) == got, "{gemm:?}: large tiles give other bits than small ones");
    }
    let second = Gemm { c: make(3, m * pitch(n), wide), ..gemm };
    device.gemm(&second).unwrap();
    let want = read(second.c);
    let unit = if wide == 2 { 2f64.powi(-8) } else { 1e-5 };
    for (got, want) in got.iter().zip(&want) {
        assert!(
            relative_eq!(got, want, epsilon = unit, max_relative = unit),
            "{gemm:?}: {got} against {want}"
        );
    }
}

/// The fused products in both tiles: the same bits, whatever the order of threads.
#[test]
fn fused_products_do_not_depend_on_the_tile() {
    for precision in [Precision::Bf16, Precision::Fp32] {
        for (m, n, k) in [(150, 136, 40), (129, 7, 3)] {
            let both = [Tile::Small, Tile::Large].map(|tile| fused_products(precision, tile, [m, n, k]));
            let (small, large) = (&both[0], &both[1]);
            assert!(small[0] == large[0] && small[1] == large[1], "{precision:?}: activated {m}x{n}x{k}");
            assert!(small[2] == large[2], "{precision:?}: derived {m}x{n}x{k}");
            // Column sums are grouped by tiles.
            let close = |(a, b): (&f32, &f32)| relative_eq!(a, b, epsilon = 1e-5, max_relative = 1e-5);
            let (a, b): (&[f32], &[f32]) = (bytemuck::cast_slice(&small[3]), bytemuck::cast_slice(&large[3]));
            assert!(a.iter().zip(b).all(close), "{precision:?}: sums {a:?} against {b:?}");
        }
    }
}

/// `pre`, `out`, `dinp` and `dbias` of the fused products of kernels/gemm.cu.
fn fused_products(precision: Precision, tile: Tile, [m, n, k]: [usize; 3]) -> [Vec<u8>; 4] {
    let device = Simt::new(Order::Shuffled(4));
    let make = |seed: u64, count: usize| {
        let values = crate::ops::noise(seed, count);
        let data: Vec<u8> = match precision {
            Precision::Bf16 => values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        };
        let region = device.alloc(data.len()).unwrap();
        device.upload(&data, region).unwrap();
        region
    };
    let zeros = |bytes: usize| {
        let region = device.alloc(bytes).unwrap();
        device.fill(region, 0).unwrap();
        region
    };
    let read = |region: Region| {
        let mut data = vec![0u8; region.bytes()];
        device.download(region, &mut data).unwrap();
        data
    };
    let grid = tile.grid(m, n).unwrap();
    let run = |kernel, arguments: &[Argument]| {
        let shared_bytes = tile.shared_bytes(precision) as u32;
        let threads = tile.threads();
        let launch =
            Launch { file: "gemm", kernel, precision, grid, threads, shared_bytes, arguments, bytes: 0 };
        device.launch(&launch).unwrap();
    };
    let sizes = [m, n, k].map(|size| Argument::from(size as u32));
    let (a, bias, gelu) = (make(1, m * k), make(3, n), Argument::from(1u32));
    let (pre, out) = (make(8, m * n), make(9, m * n));
    let mut arguments = vec![a.into(), make(2, n * k).into(), bias.into(), pre.into(), out.into()];
    arguments.extend(sizes.into_iter().chain([gelu]));
    run(tile.name(["gemm_activated_64", "gemm_activated_128"]), &arguments);
    let (dinp, dbias) = (make(7, m * n), zeros(4 * n));
    let (sums, counters) = (zeros(4 * n * grid[1] as usize), zeros(4 * 32 * grid[0] as usize));
    let mut arguments = vec![a.into(), make(5, k * n).into(), pre.into(), dinp.into(), dbias.into()];
    arguments.extend([sums.into(), counters.into()].into_iter().chain(sizes).chain([gelu]));
    run(tile.name(["gemm_derived_64", "gemm_derived_128"]), &arguments);
    [pre, out, dinp, dbias].map(read)
}
