//! One training step on a GPU, kernel by kernel.

use std::cell::RefCell;
use std::collections::BTreeMap;

use elektron::Result;
use elektron::backend::Gpu;
use elektron::backend::gpu::driver::cuda::{Cuda, CudaOptions};
use elektron::backend::gpu::driver::{Driver, Gemm, Launch, Region};
use elektron::data::Batch;
use elektron::model::config::{Architecture, Preset};
use elektron::model::hf::Checkpoint;
use elektron::model::{Options, Phase, Share, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

const FLOPS: f64 = 770e12;
const BYTES: f64 = 4.3e12;
/// More than the L2 cache of any GPU so far.
const FLUSH_BYTES: usize = 256 << 20;
const T: usize = 128;
const B: usize = 128;

#[derive(Default)]
struct Sum {
    calls: u64,
    ms: f64,
    bytes: u64,
    flops: u64,
}

/// A GPU that times everything it is asked to do.
struct Timed {
    gpu: Cuda,
    flush: Region,
    sums: RefCell<BTreeMap<String, Sum>>,
}

impl Timed {
    fn measure(&self, name: String, bytes: u64, flops: u64, work: impl Fn() -> Result<()>) -> Result<()> {
        self.gpu.fill(self.flush, 0)?;
        let (ms, ()) = self.gpu.time(work)?;
        let mut sums = self.sums.borrow_mut();
        let sum = sums.entry(name).or_default();
        sum.calls += 1;
        sum.ms += f64::from(ms);
        sum.bytes += bytes;
        sum.flops += flops;
        Ok(())
    }
}

impl Driver for Timed {
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
        self.measure("fill".to_owned(), region.bytes() as u64, 0, || self.gpu.fill(region, value))
    }
    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.measure(launch.kernel.to_owned(), launch.bytes, 0, || self.gpu.launch(launch))
    }
    fn gemm(&self, g: &Gemm) -> Result<()> {
        let kind = match (g.exact, g.b.transposed) {
            (true, _) => "weight gradient",
            (_, true) => "forward",
            _ => "data gradient",
        };
        let name = format!("product {kind} {} × {} × {}", g.m, g.n, g.k);
        self.measure(name, g.bytes(), g.flops(), || self.gpu.gemm(g))
    }
    fn description(&self) -> String {
        self.gpu.description()
    }
}

pub(super) fn run() {
    let gpu = Cuda::new(CudaOptions::default()).expect("a GPU");
    println!("{}", gpu.description());
    let flush = gpu.alloc(FLUSH_BYTES).expect("memory");
    let backend = Gpu::<_, bf16>::new(Timed { gpu, flush, sums: RefCell::default() });
    let size = Preset::Small.discriminator(30522);
    let mut model = TokenDetection::with_options(
        backend,
        Checkpoint::fresh(size.clone(), Architecture::MaskedLm),
        Checkpoint::fresh(size, Architecture::PreTraining),
        Options { share: Share::Word, ..Options::default() },
    )
    .expect("the model fits");
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).expect("memory");
    let batch = batch();
    for step in 0..4 {
        // The first steps compile kernels and choose algorithms.
        if step == 2 {
            model.backend().driver().sums.borrow_mut().clear();
        }
        model.step_forward(&batch, Phase::Train { step, row0: 0, micro_batches: 1 }, None).expect("forward");
        model.step_backward().expect("backward");
        optimizer.step(&mut model, 1e-4).expect("update");
    }
    report(&model.backend().driver().sums.borrow(), 2.0);
}

fn report(sums: &BTreeMap<String, Sum>, steps: f64) {
    let mut lines: Vec<_> = sums.iter().collect();
    lines.sort_by(|a, b| b.1.ms.total_cmp(&a.1.ms));
    println!(
        "{:<48} {:>5} {:>9} {:>9} {:>9} {:>7}",
        "kernel", "calls", "ms/step", "GB/s", "TFLOP/s", "share"
    );
    for (name, s) in lines {
        let seconds = s.ms / 1e3;
        let bound = (s.bytes as f64 / BYTES).max(s.flops as f64 / FLOPS);
        println!(
            "{name:<48} {:>5.0} {:>9.3} {:>9.0} {:>9.1} {:>6.0}%",
            s.calls as f64 / steps,
            s.ms / steps,
            s.bytes as f64 / seconds / 1e9,
            s.flops as f64 / seconds / 1e12,
            100.0 * bound / seconds
        );
    }
}

fn batch() -> Batch {
    let n = (T * B) as u32;
    let ids: Vec<u32> = (0..n).map(|i| 1000 + i.wrapping_mul(2_654_435_761) % 29_000).collect();
    let masked_index: Vec<u32> = (0..n).filter(|i| i % 20 < 3).collect();
    let mut masked_ids = ids.clone();
    masked_index.iter().for_each(|&i| masked_ids[i as usize] = 103);
    Batch {
        masked_ids,
        positions: (0..n).map(|i| i % T as u32).collect(),
        types: vec![0; n as usize],
        cu_seqlens: (0..=B as u32).map(|b| b * T as u32).collect(),
        key_len: vec![T as u32; B],
        masked_weight: vec![1.0; masked_index.len()],
        rtd_weight: vec![1.0; n as usize],
        masking: None,
        masked_index,
        ids,
    }
}
