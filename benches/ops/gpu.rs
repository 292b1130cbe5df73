//! The GPU backend: each kernel between two events, after the L2 cache was flushed; ops one by one, then a whole training step.

use std::cell::RefCell;
use std::collections::BTreeMap;

use elektron::Result;
use elektron::backend::Gpu;
use elektron::backend::gpu::driver::cuda::{Cuda, CudaOptions};
use elektron::backend::gpu::driver::{Driver, Gemm, Launch, Operand, Precision, Region};
use half::bf16;

use super::cases::{Cases, Sizes, Work};
use super::common::record::Case;
use super::common::{Arguments, Session};
use super::step;

/// More than the L2 cache of any GPU so far.
const FLUSH_BYTES: usize = 256 << 20;
const WARM_UP: usize = 2;
const ROUNDS: usize = 9;

const SMALL: Sizes = Sizes {
    name: "small",
    tokens: 16_384,
    seq_len: 128,
    width: 256,
    embedding: 128,
    vocabulary: 30522,
    parameters: 27 << 20,
};
const BASE: Sizes =
    Sizes { name: "base", seq_len: 512, width: 768, embedding: 768, parameters: 140 << 20, ..SMALL };

/// Something that was asked of the device.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    name: String,
    seconds: f64,
    bytes: u64,
    flops: u64,
}

/// Seconds that work takes on a device.
type Clock<D> = fn(&D, &dyn Fn() -> Result<()>) -> Result<f64>;

/// A GPU that times everything it is asked to do.
pub(super) struct Timed<D> {
    gpu: D,
    clock: Clock<D>,
    flush: Region,
    log: RefCell<Vec<Asked>>,
}

impl<D: Driver> Timed<D> {
    fn new(gpu: D, clock: Clock<D>, flush_bytes: usize) -> Result<Self> {
        let flush = gpu.alloc(flush_bytes)?;
        Ok(Self { gpu, clock, flush, log: RefCell::default() })
    }

    fn measure(&self, name: String, bytes: u64, flops: u64, work: &dyn Fn() -> Result<()>) -> Result<()> {
        self.gpu.fill(self.flush, 0)?;
        let seconds = (self.clock)(&self.gpu, work)?;
        self.log.borrow_mut().push(Asked { name, seconds, bytes, flops });
        Ok(())
    }

    /// What was asked for since the last call.
    pub(super) fn take(&self) -> Vec<Asked> {
        self.log.take()
    }
}

impl<D: Driver> Driver for Timed<D> {
    fn alloc(&self, bytes: usize) -> Result<Region> {
        self.gpu.alloc(bytes)
    }
    fn free(&self, region: Region) {
        self.gpu.free(region);
    }
    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        self.gpu.upload(from, to)
    }
    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        self.gpu.download(from, to)
    }
    fn stage(&self, slot: usize, copies: &[(&[u8], Region)]) -> Result<()> {
        self.gpu.stage(slot, copies)
    }
    fn begin(&self, slot: usize) -> Result<()> {
        self.gpu.begin(slot)
    }
    fn fetch(&self, from: Region) -> Result<u64> {
        self.gpu.fetch(from)
    }
    fn collect(&self, ticket: u64, to: &mut [u8]) -> Result<()> {
        self.gpu.collect(ticket, to)
    }
    fn fill(&self, region: Region, value: u8) -> Result<()> {
        self.measure("fill".to_owned(), region.bytes() as u64, 0, &|| self.gpu.fill(region, value))
    }
    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.measure(launch.kernel.to_owned(), launch.bytes, 0, &|| self.gpu.launch(launch))
    }
    fn gemm(&self, g: &Gemm) -> Result<()> {
        let kind = match (g.exact, g.b.transposed) {
            (true, _) => "weight gradient",
            (_, true) => "forward",
            _ => "data gradient",
        };
        let name = format!("product {kind} {} × {} × {}", g.m, g.n, g.k);
        self.measure(name, g.bytes(), g.flops(), &|| self.gpu.gemm(g))
    }
    fn description(&self) -> String {
        self.gpu.description()
    }
}

/// What the device can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    flops: f64,
    bytes: f64,
}

impl Bounds {
    /// A product of `side`³ in bf16, and writing `bytes` of memory.
    fn measure<D: Driver>(gpu: &Timed<D>, side: usize, bytes: usize) -> Result<Self> {
        let (a, memory) = (gpu.alloc(2 * side * side)?, gpu.alloc(bytes)?);
        let (a_in, b_in) = (Operand::rows(a, side), Operand::transposed(a, side));
        let c = gpu.alloc(2 * side * side)?;
        let precision = Precision::Bf16;
        let (m, n, k, pitch) = (side, side, side, side);
        let (exact, accumulate) = (false, false);
        let product = Gemm { m, n, k, precision, a: a_in, b: b_in, c, pitch, exact, accumulate, bias: None };
        gpu.gpu.fill(a, 0)?;
        for _ in 0..WARM_UP + ROUNDS {
            gpu.gemm(&product)?;
            gpu.fill(memory, 0)?;
        }
        for region in [a, c, memory] {
            gpu.free(region);
        }
        let asked = gpu.take();
        let best = |rate: fn(&Asked) -> f64| asked.iter().map(rate).fold(0.0, f64::max);
        let (flops, bytes) = (best(|x| x.flops as f64 / x.seconds), best(|x| x.bytes as f64 / x.seconds));
        Ok(Self { flops, bytes })
    }

    fn share(self, flops: f64, bytes: f64, seconds: f64) -> f64 {
        100.0 * (flops / self.flops).max(bytes / self.bytes) / seconds
    }
}

const TABLE: &str = "ms              least to most     GB/s  TFLOP/s  share";

fn line(name: &str, case: &Case, flops: f64, bytes: f64, bounds: Bounds) -> String {
    let seconds = case.median / 1e3;
    format!(
        "{name:<52} {:>9.4} {:>9.4} to {:>8.4} {:>8.0} {:>8.1} {:>5.0}%",
        case.median,
        case.least,
        case.most,
        bytes / seconds / 1e9,
        flops / seconds / 1e12,
        bounds.share(flops, bytes, seconds)
    )
}

/// Rounds of the same work: a case for each kind of thing that was asked for, with its bytes and operations a round; dearest first.
fn by_kind(rounds: &[Vec<Asked>], prefix: &str) -> Vec<(Case, f64, f64)> {
    let mut kinds: BTreeMap<&str, (Vec<f64>, f64, f64)> = BTreeMap::new();
    for (round, asked) in rounds.iter().enumerate() {
        for a in asked {
            let (ms, flops, bytes) =
                kinds.entry(&a.name).or_insert_with(|| (vec![0.0; rounds.len()], 0.0, 0.0));
            ms[round] += a.seconds * 1e3;
            *flops += a.flops as f64 / rounds.len() as f64;
            *bytes += a.bytes as f64 / rounds.len() as f64;
        }
    }
    let case = |(name, (ms, flops, bytes)): (&str, (Vec<f64>, f64, f64))| {
        (Case::new(format!("{prefix}{name}"), "ms", ms), flops, bytes)
    };
    let mut cases: Vec<_> = kinds.into_iter().map(case).collect();
    cases.sort_by(|a, b| b.0.median.total_cmp(&a.0.median));
    cases
}

fn total_ms(asked: &[Asked]) -> f64 {
    asked.iter().map(|a| a.seconds * 1e3).sum()
}

/// Every op of these sizes.
fn ops<D: Driver>(
    gpu: &Gpu<Timed<D>, bf16>,
    sizes: Sizes,
    bounds: Bounds,
    session: &mut Session<'_>,
) -> Result<()> {
    let (talks, mut cases) = (session.talks(), Vec::new());
    let want = |name: &str| session.want(name);
    let measure = &mut |name: &str, work: Work, op: &mut dyn FnMut() -> Result<()>| {
        let mut rounds = Vec::new();
        for round in 0..WARM_UP + ROUNDS {
            gpu.driver().take();
            op()?;
            let asked = gpu.driver().take();
            if round >= WARM_UP {
                rounds.push(asked);
            }
        }
        let case = Case::new(name, "ms", rounds.iter().map(|asked| total_ms(asked)).collect());
        if talks {
            println!("{}", line(name, &case, work.flops as f64, work.bytes as f64, bounds));
            let kinds = by_kind(&rounds, "    ");
            for (kind, flops, bytes) in kinds.iter().filter(|_| kinds.len() > 1) {
                println!("{}", line(&kind.name, kind, *flops, *bytes, bounds));
            }
        }
        cases.push(case);
        Ok(())
    };
    Cases { b: gpu, sizes, want: &want, measure }.run()?;
    cases.into_iter().for_each(|case| session.add(case));
    Ok(())
}

/// A training step, kernel by kernel.
fn whole_step<D: Driver>(
    gpu: Timed<D>,
    shape: step::Shape,
    bounds: Bounds,
    session: &mut Session<'_>,
) -> Result<()> {
    let name = format!("step of {}", shape.name);
    if !session.want(&name) {
        return Ok(());
    }
    let rounds = step::kernels(Gpu::new(gpu), &shape, WARM_UP, ROUNDS)?;
    let all = Case::new(name.as_str(), "ms", rounds.iter().map(|asked| total_ms(asked)).collect());
    let prefix = format!("{name}: ");
    let kinds = by_kind(&rounds, &prefix);
    let (flops, bytes) = kinds.iter().fold((0.0, 0.0), |sum, kind| (sum.0 + kind.1, sum.1 + kind.2));
    if session.talks() {
        println!("\n{}", line(&name, &all, flops, bytes, bounds));
        for (case, flops, bytes) in &kinds {
            println!("    {}", line(case.name.trim_start_matches(&prefix), case, *flops, *bytes, bounds));
        }
    }
    session.add(all);
    kinds.into_iter().for_each(|(case, ..)| session.add(case));
    Ok(())
}

/// On this device: bounds, then every op of all sizes, then a step.
fn run<D: Driver>(
    device: impl Fn() -> Result<Timed<D>>,
    (side, bytes): (usize, usize),
    sizes: &[Sizes],
    shape: step::Shape,
    session: &mut Session<'_>,
) -> Result<()> {
    let gpu = device()?;
    let bounds = Bounds::measure(&gpu, side, bytes)?;
    if session.talks() {
        println!("bounds measured here: {:.1} TFLOP/s, {:.0} GB/s", bounds.flops / 1e12, bounds.bytes / 1e9);
        println!("{:<59} {TABLE}", "op, and its kernels");
    }
    let gpu = Gpu::new(gpu);
    for &sizes in sizes {
        ops(&gpu, sizes, bounds, session)?;
    }
    drop(gpu);
    whole_step(device()?, shape, bounds, session)
}

pub(super) fn cuda(arguments: &Arguments) -> Result<(), String> {
    let name = match Cuda::new(CudaOptions::default()) {
        Ok(gpu) => gpu.info().name.clone(),
        Err(e) => return arguments.without_gpu(&e),
    };
    let mut session = Session::new("ops", "cuda", Some(name), arguments);
    let clock: Clock<Cuda> = |gpu, work| gpu.time(work).map(|(ms, ())| f64::from(ms) / 1e3);
    let device = || Timed::new(Cuda::new(CudaOptions::default())?, clock, FLUSH_BYTES);
    run(device, (8192, 1 << 30), &[SMALL, BASE], step::Shape::SMALL, &mut session)
        .map_err(|e| e.to_string())?;
    session.finish(true)
}

/// The same code on the emulated device, at sizes that it bears: its times say nothing of a GPU.
#[cfg(feature = "simt")]
pub(super) fn simt(arguments: &Arguments) -> Result<(), String> {
    use elektron::backend::gpu::driver::simt::{Order, Simt};

    let mut session = Session::new("ops", "simt", Some("emulated".to_owned()), arguments);
    let clock: Clock<Simt> = |_, work| {
        let start = std::time::Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let device = || Timed::new(Simt::new(Order::Ascending), clock, 1 << 10);
    let sizes = Sizes {
        name: "emulated",
        tokens: 64,
        seq_len: 32,
        width: 64,
        embedding: 32,
        vocabulary: 1000,
        parameters: 4096,
    };
    run(device, (64, 1 << 16), &[sizes], step::Shape::EMULATED, &mut session).map_err(|e| e.to_string())?;
    session.finish(true)
}

#[cfg(not(feature = "simt"))]
pub(super) fn simt(_: &Arguments) -> Result<(), String> {
    Err("--device simt needs the feature simt: cargo bench --features simt --bench ops -- --device simt"
        .to_owned())
}
