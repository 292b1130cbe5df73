//! The CPU backend: the clock on the wall.

use std::time::Instant;

use elektron::Result;
use elektron::backend::cpu::Working;
use elektron::backend::{Backend, Cpu, LinearFwd};
use rayon::prelude::*;

use super::cases::{Cases, Sizes, Work};
use super::common::Session;
use super::common::record::Case;

const SIZES: Sizes = Sizes {
    name: "small",
    tokens: 1024,
    seq_len: 128,
    width: 256,
    embedding: 128,
    vocabulary: 30522,
    parameters: 1 << 23,
};
const ROUNDS: usize = 15;

/// What this machine can do, all threads together.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    flops: f64,
    bytes: f64,
}

/// Milliseconds of a call in each round, after one to warm up; short ops are called so often that a round takes a millisecond.
fn rounds(mut op: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut round = |calls: u32| -> Result<f64> {
        let start = Instant::now();
        (0..calls).try_for_each(|_| op())?;
        Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(calls))
    };
    round(1)?;
    let calls = (1.0 / round(1)?).ceil().clamp(1.0, 10_000.0) as u32;
    (0..ROUNDS).map(|_| round(calls)).collect()
}

impl Bounds {
    /// A product of 1,024³ by the backend's own path, and a copy of 64 MiB by all threads.
    fn measure<X: Working>() -> Result<Self> {
        let (cpu, half) = (Cpu::<X>::new(), X::from_f64(0.5));
        let (x, b, mut out) = (vec![half; 1 << 20], vec![half; 1024], vec![half; 1 << 20]);
        let times = rounds(|| {
            let (inputs, outputs) = (1024, 1024);
            cpu.linear_fwd(LinearFwd {
                inputs,
                outputs,
                inp: &x,
                weight: &x,
                bias: &b,
                activation: None,
                out: &mut out,
                pitch: outputs,
            })
        })?;
        let flops = 2.0 * 1024f64.powi(3) / (Case::new("", "ms", times).least / 1e3);
        let (from, mut to) = (vec![0.5f32; 1 << 24], vec![0.0f32; 1 << 24]);
        let times = rounds(|| {
            let chunks = to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16));
            chunks.for_each(|(to, from)| to.copy_from_slice(from));
            Ok(())
        })?;
        Ok(Self { flops, bytes: 8.0 * f64::from(1 << 24) / (Case::new("", "ms", times).least / 1e3) })
    }
}

pub(super) fn run<X: Working>(session: &mut Session<'_>) -> Result<()> {
    let bounds = Bounds::measure::<X>()?;
    let talks = session.talks();
    if talks {
        println!("bounds measured here: {:.0} GFLOP/s, {:.1} GB/s", bounds.flops / 1e9, bounds.bytes / 1e9);
        println!("{:<52} {:>9} {:>21} {:>16} {:>6}", "op", "ms", "least to most", "rate", "share");
    }
    let (cpu, mut cases) = (Cpu::<X>::new(), Vec::new());
    let want = |name: &str| session.want(name);
    let measure = &mut |name: &str, work: Work, op: &mut dyn FnMut() -> Result<()>| {
        let case = Case::new(name, "ms", rounds(op)?);
        if talks {
            println!("{}", line(&case, work, bounds));
        }
        cases.push(case);
        Ok(())
    };
    Cases { b: &cpu, sizes: SIZES, want: &want, measure }.run()?;
    cases.into_iter().for_each(|case| session.add(case));
    Ok(())
}

/// Time, what was reached of the nearer bound, and the share of it.
fn line(case: &Case, work: Work, bounds: Bounds) -> String {
    let (seconds, flops, bytes) = (case.median / 1e3, work.flops as f64, work.bytes as f64);
    let (by_flops, by_bytes) = (flops / bounds.flops, bytes / bounds.bytes);
    let (rate, unit) = if by_flops > by_bytes { (flops, "GFLOP/s") } else { (bytes, "GB/s") };
    format!(
        "{:<52} {:>9.4} {:>9.4} to {:>8.4} {:>8.1} {unit:<7} {:>5.0}%",
        case.name,
        case.median,
        case.least,
        case.most,
        rate / seconds / 1e9,
        100.0 * by_flops.max(by_bytes) / seconds
    )
}
