//! Matrix products: which kernel or library serves which, and the launches of `kernels/gemm.cu`.
//!
//! Where there is a library (cuBLASLt) it serves everything, with passes of their own for activations: on Hopper it multiplies with `wgmma`, which
//! is worth more than the pass over memory or the launches that the project's own kernels save with `mma.sync` (`benches/records`).
//! Without it the project's own kernels take activations and their derivatives into their epilogues, and compute weight gradients that
//! have too few tiles to fill a GPU together.

use super::driver::gemm::{Tile, own_gemm};
use super::driver::{Argument, Driver, Gemm, Operand, Region};
use super::{Gpu, Working, size, tree_counters};
use crate::backend::WeightGrad;
use crate::model::config::Activation;
use crate::{Error, Result};

/// Who multiplies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// The library where there is one, own kernels elsewhere.
    #[default]
    Auto,
    /// As with a library, on every device: passes of their own around products.
    Library,
    /// Own kernels: the driver and the kernels' compiler are enough.
    Own,
}

/// Most products of one launch of `weight_grads`.
const MOST_GRADS: usize = 4;
/// Blocks that fill a GPU: the 132 multiprocessors of an H100. Not asked of the device, so that all devices add in the same order.
const FILLING: usize = 132;
/// Rows of a block of `weight_grads` are a multiple of it: `STEP` of the kernel.
const STEP: usize = 32;

/// `WeightGrad` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct WeightGradArgs {
    dout: u64,
    inp: u64,
    dweight: u64,
    outputs: u32,
    inputs: u32,
    first: u32,
    unused: u32,
}

/// The kernels' number of an activation.
fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    }
}

/// inp (N, I) or dout (N, O) by a weight (O, I).
pub(super) struct ByWeight {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) from: Region,
    pub(super) weight: Region,
}

impl<D: Driver, W: Working> Gpu<D, W> {
    /// Leaves the choice of who multiplies to `products`.
    pub fn with_products(mut self, products: Products) -> Self {
        self.products = products;
        self
    }

    /// Whether epilogues of the project's own products are used.
    pub(super) fn fuses(&self) -> bool {
        match self.products {
            Products::Auto => !self.driver.has_library(),
            Products::Library => false,
            Products::Own => true,
        }
    }

    /// A product without an activation.
    pub(super) fn multiply(&self, gemm: &Gemm) -> Result<()> {
        match self.products {
            Products::Own => own_gemm(&*self.driver, gemm),
            Products::Auto | Products::Library => self.driver.gemm(gemm),
        }
    }

    /// pre = inp · Wᵀ + b, out = act(pre).
    pub(super) fn activated(
        &self,
        by: &ByWeight,
        bias: Region,
        (activation, pre): (Activation, Region),
        out: Region,
    ) -> Result<()> {
        let (m, n, k) = (by.rows, by.outputs, by.inputs);
        let tile = Tile::of(m, n);
        let arguments = [
            by.from.into(),
            by.weight.into(),
            bias.into(),
            pre.into(),
            out.into(),
            size(m)?.into(),
            size(n)?.into(),
            size(k)?.into(),
            number(activation).into(),
        ];
        let kernel = tile.name(["gemm_activated_64", "gemm_activated_128"]);
        let bytes = by.from.bytes() + by.weight.bytes() + pre.bytes() + out.bytes();
        let shared_bytes = tile.shared_bytes(self.precision);
        self.launch(("gemm", kernel), tile.grid(m, n)?, tile.threads(), shared_bytes, bytes, &arguments)
    }

    /// dinp = (dout · W) ∘ act'(pre), dbias += its column sums.
    pub(super) fn derived(
        &self,
        by: &ByWeight,
        (activation, pre): (Activation, Region),
        dinp: Region,
        dbias: Region,
    ) -> Result<()> {
        let (m, n, k) = (by.rows, by.inputs, by.outputs);
        let tile = Tile::of(m, n);
        let grid = tile.grid(m, n)?;
        let sums = self.workspace(grid[1] as usize * n)?;
        let arguments = [
            by.from.into(),
            by.weight.into(),
            pre.into(),
            dinp.into(),
            dbias.into(),
            sums.into(),
            self.counters(grid[0] as usize * tree_counters(grid[1] as usize))?.into(),
            size(m)?.into(),
            size(n)?.into(),
            size(k)?.into(),
            number(activation).into(),
        ];
        let kernel = tile.name(["gemm_derived_64", "gemm_derived_128"]);
        let bytes = by.from.bytes() + by.weight.bytes() + pre.bytes() + dinp.bytes() + 2 * sums.bytes();
        self.launch(
            ("gemm", kernel),
            grid,
            tile.threads(),
            tile.shared_bytes(self.precision),
            bytes,
            &arguments,
        )
    }

    pub(super) fn weight_grads_op(&self, ops: Vec<WeightGrad<'_, Self>>) -> Result<()> {
        let alone = |op: &WeightGrad<'_, Self>| Tile::Large.count(op.outputs, op.inputs) >= FILLING;
        if self.fuses() && ops.len() > 1 && ops.len() <= MOST_GRADS && !ops.iter().any(alone) {
            return self.together(&ops);
        }
        ops.iter().try_for_each(|op| self.weight_grad(op, op.outputs))
    }

    /// Rows of dout are `pitch` apart.
    pub(super) fn weight_grad(&self, op: &WeightGrad<'_, Self>, pitch: usize) -> Result<()> {
        let rows = op.inp.len() / op.inputs;
        if rows == 0 {
            return Ok(());
        }
        self.multiply(&Gemm {
            m: op.outputs,
            n: op.inputs,
            k: rows,
            precision: self.precision,
            a: Operand::transposed(op.dout.region, pitch),
            b: Operand::rows(op.inp.region, op.inputs),
            c: op.dweight.region,
            pitch: op.inputs,
            exact: true,
            accumulate: true,
            bias: None,
        })
    }

    /// All in one launch, each sum over the rows cut into as many spans as fill a GPU.
    fn together(&self, ops: &[WeightGrad<'_, Self>]) -> Result<()> {
        let rows = ops.first().map_or(0, |op| op.inp.len() / op.inputs);
        if ops.iter().any(|op| op.inp.len() != rows * op.inputs || op.dout.len() != rows * op.outputs) {
            return Err(Error::argument("weight gradients that are computed together have the same rows"));
        }
        if rows == 0 {
            return Ok(());
        }
        let widest = ops.iter().map(|op| op.outputs.min(op.inputs)).max().unwrap_or(0);
        let tile = if widest >= Tile::Large.side() { Tile::Large } else { Tile::Small };
        let mut all = [WeightGradArgs::default(); MOST_GRADS];
        let mut tiles = 0;
        for (args, op) in all.iter_mut().zip(ops) {
            *args = WeightGradArgs {
                dout: op.dout.region.address(),
                inp: op.inp.region.address(),
                dweight: op.dweight.region.address(),
                outputs: size(op.outputs)?,
                inputs: size(op.inputs)?,
                first: size(tiles)?,
                unused: 0,
            };
            tiles += tile.count(op.outputs, op.inputs);
        }
        let wanted = (FILLING / tiles.max(1)).max(1);
        let span = rows.div_ceil(wanted).next_multiple_of(STEP).max(STEP);
        let splits = rows.div_ceil(span).max(1);
        let sums = match splits {
            1 => Region::NOTHING,
            _ => self.workspace(tiles * splits * tile.side() * tile.side())?,
        };
        let operands: usize = ops
            .iter()
            .map(|op| op.dout.region.bytes() + op.inp.region.bytes() + 2 * op.dweight.region.bytes())
            .sum();
        let arguments = [
            Argument::of(all),
            sums.into(),
            self.counters(tiles)?.into(),
            size(ops.len())?.into(),
            size(rows)?.into(),
            size(span)?.into(),
        ];
        self.launch(
            ("gemm", tile.name(["weight_grads_64", "weight_grads_128"])),
            [size(tiles)?, size(splits)?, 1],
            tile.threads(),
            tile.shared_bytes(self.precision),
            operands + 2 * sums.bytes(),
            &arguments,
        )
    }
}
