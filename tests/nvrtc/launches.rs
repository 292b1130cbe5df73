//! What launchers ask for: threads and dynamic shared memory of every kernel, at the largest sizes that the kernels take.

use std::cell::RefCell;
use std::collections::BTreeMap;

use elektron::Result;
use elektron::backend::gpu::driver::gemm::{Tile, own_gemm_in};
use elektron::backend::gpu::driver::tally::Counter;
use elektron::backend::gpu::driver::{Driver, Gemm, Launch, Region};
use elektron::backend::gpu::{Products, Working};
use elektron::backend::selftest::Case;
use elektron::backend::{Gpu, Write};
use elektron::data::mask::MaskStyle;
use elektron::model::config::Activation;
use half::bf16;

/// By kernel and type: (threads, bytes of dynamic shared memory), the most that was asked for.
pub(super) type Asked = BTreeMap<(&'static str, &'static str), (u32, u32)>;

/// A device that does nothing but remember launches.
#[derive(Default)]
struct Recorder {
    memory: Counter,
    asked: RefCell<Asked>,
}

impl Driver for Recorder {
    fn alloc(&self, bytes: usize) -> Result<Region> {
        self.memory.alloc(bytes)
    }
    fn free(&self, region: Region) {
        self.memory.free(region);
    }
    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        self.memory.upload(from, to)
    }
    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        self.memory.download(from, to)
    }
    fn stage(&self, slot: usize, copies: &[(&[u8], Region)]) -> Result<()> {
        self.memory.stage(slot, copies)
    }
    fn begin(&self, slot: usize) -> Result<()> {
        self.memory.begin(slot)
    }
    fn fetch(&self, from: Region) -> Result<u64> {
        self.memory.fetch(from)
    }
    fn collect(&self, ticket: u64, to: &mut [u8]) -> Result<()> {
        self.memory.collect(ticket, to)
    }
    fn fill(&self, region: Region, value: u8) -> Result<()> {
        self.memory.fill(region, value)
    }
    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let mut asked = self.asked.borrow_mut();
        let most = asked.entry((launch.kernel, launch.precision.kernels())).or_default();
        *most = (most.0.max(launch.threads), most.1.max(launch.shared_bytes));
        Ok(())
    }
    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        own_gemm_in(self, gemm, Tile::Small)?;
        own_gemm_in(self, gemm, Tile::Large)
    }
    fn description(&self) -> String {
        "a device that only remembers launches".to_owned()
    }
}

/// The self-test's cases, and the sizes at which shared memory grows with the model: the widest row of each kernel, the longest sequence.
fn cases() -> Vec<Case> {
    let mut cases = Case::all();
    for width in [256, 512, 768, 1024] {
        cases.push(Case::Norm { rows: 2, width, p: 0.1, residual: true });
        cases.push(Case::Embed { tokens: 2, width, p: 0.1, delta: true, padding: None });
    }
    // As many tiles as large ones want.
    let (rows, inputs, outputs) = (17 * 128, 1, 16 * 128);
    let (activation, write) = (Activation::Gelu, Write::Set);
    cases.push(Case::Linear { rows, inputs, outputs, activation: Some(activation), write });
    cases.push(Case::LinearBefore { rows, inputs: outputs, outputs: inputs, activation });
    for style in [MaskStyle::Electra, MaskStyle::Txtai] {
        cases.push(Case::Mask { lengths: vec![512], style, slots: 77 });
    }
    cases
}

fn record<W: Working>() -> Asked {
    let mut asked = Asked::new();
    for products in [Products::Auto, Products::Library] {
        let gpu = Gpu::<_, W>::new(Recorder::default()).with_products(products);
        for case in cases() {
            case.run(&gpu, false).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        }
        asked.append(&mut gpu.driver().asked.take());
    }
    asked
}

/// Of every kernel that the self-test reaches, in both types.
pub(super) fn asked() -> Asked {
    let mut asked = record::<bf16>();
    asked.append(&mut record::<f32>());
    asked
}
