//! Linear layers: products by the library or `kernels/gemm.cu` (see `products.rs`), `kernels/linear.cu` what no product takes along.

use super::driver::{Argument, Driver, Gemm, Operand, Region};
use super::products::ByWeight;
use super::{Gpu, Working, blocks, size, tree_counters};
use crate::Result;
use crate::backend::{LinearBwd, LinearFwd, WeightGrad, Write};
use crate::model::config::Activation;

const THREADS: u32 = 256;
/// Elements a thread of the forward pass, columns a lane of the backward pass.
const EIGHT: usize = 8;
/// Columns of a block of the backward pass.
const COLUMNS: usize = 256;
/// Rows of a block of the backward pass at the least.
const SPAN: usize = 64;
/// Blocks of the backward pass at the most: four rounds of an H100's 132 multiprocessors with three blocks each.
const BLOCKS: usize = 4 * 3 * 132;

/// Rows of one partial sum where `columns` blocks lie side by side: a function of sizes alone.
pub(super) fn span(rows: usize, columns: usize) -> usize {
    rows.div_ceil((BLOCKS / columns).max(1)).max(SPAN)
}

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn linear_fwd_op(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        let (inputs, outputs) = (op.inputs, op.outputs);
        let rows = op.inp.len() / inputs;
        if rows == 0 {
            return Ok(());
        }
        let product = |c: Region, bias: Option<Region>| {
            self.multiply(&Gemm {
                m: rows,
                n: outputs,
                k: inputs,
                precision: self.precision,
                a: Operand::rows(op.inp.region, inputs),
                b: Operand::transposed(op.weight.region, inputs),
                c,
                pitch: op.pitch,
                exact: false,
                accumulate: false,
                bias,
            })
        };
        let Some((activation, pre)) = op.activation else {
            return product(op.out.region, Some(op.bias.region));
        };
        if self.fuses() {
            let by = ByWeight { rows, inputs, outputs, from: op.inp.region, weight: op.weight.region };
            return self.activated(&by, op.bias.region, (activation, pre.region), op.out.region);
        }
        product(pre.region, Some(op.bias.region))?;
        self.activate(activation, pre.region, op.out.region)
    }

    /// out = act(pre)
    fn activate(&self, activation: Activation, pre: Region, out: Region) -> Result<()> {
        let kernel = match activation {
            Activation::Gelu => "gelu_fwd",
            Activation::GeluTanh => "gelu_tanh_fwd",
            Activation::Relu => "relu_fwd",
        };
        let elements = out.bytes() / size_of::<W>();
        let grid = [blocks(elements.div_ceil(EIGHT), THREADS)?, 1, 1];
        let arguments = [pre.into(), out.into(), (elements as u64).into()];
        self.launch(("linear", kernel), grid, THREADS, 0, 2 * out.bytes(), &arguments)
    }

    pub(super) fn linear_bwd_op(&self, op: LinearBwd<'_, Self>) -> Result<()> {
        let (inputs, outputs, rows) = (op.inputs, op.outputs, op.rows);
        if rows == 0 {
            return Ok(());
        }
        let dout = op.dout.region;
        if op.activation.is_some() || op.dbias.is_some() {
            let activation = op.activation.map(|(activation, pre)| (activation, pre.region));
            self.column_sums(dout, (outputs, op.pitch), activation, op.dbias.map(|dbias| dbias.region))?;
        }
        if let Some((inp, dweight)) = op.dweight {
            let grad = WeightGrad { inputs, outputs, inp, dout: op.dout.read(), dweight };
            self.weight_grad(&grad, op.pitch)?;
        }
        let (write, dinp) = op.dinp;
        if let Some(before) = op.before {
            let (activation, dbias) = ((before.activation, before.pre.region), before.dbias.region);
            if let Some(act) = before.act {
                self.activate(activation.0, activation.1, act.region)?;
            }
            if self.fuses() {
                let by = ByWeight { rows, inputs, outputs, from: dout, weight: op.weight.region };
                return self.derived(&by, activation, dinp.region, dbias);
            }
            self.data_gradient(
                (dout, op.pitch),
                op.weight.region,
                [rows, inputs, outputs],
                (Write::Set, dinp.region),
            )?;
            return self.column_sums(dinp.region, (inputs, inputs), Some(activation), Some(dbias));
        }
        self.data_gradient((dout, op.pitch), op.weight.region, [rows, inputs, outputs], (write, dinp.region))
    }

    fn data_gradient(
        &self,
        (dout, pitch): (Region, usize),
        weight: Region,
        [rows, inputs, outputs]: [usize; 3],
        (write, dinp): (Write, Region),
    ) -> Result<()> {
        self.multiply(&Gemm {
            m: rows,
            n: inputs,
            k: outputs,
            precision: self.precision,
            a: Operand::rows(dout, pitch),
            b: Operand::rows(weight, inputs),
            c: dinp,
            pitch: inputs,
            exact: false,
            accumulate: write == Write::Add,
            bias: None,
        })
    }

    /// d (N, width), rows `pitch` apart, times the activation's derivative, in place, and its column sums added to `dbias`.
    fn column_sums(
        &self,
        d: Region,
        (width, pitch): (usize, usize),
        activation: Option<(Activation, Region)>,
        dbias: Option<Region>,
    ) -> Result<()> {
        let kernel = match activation {
            None => "bias_bwd",
            Some((Activation::Gelu, _)) => "gelu_bwd",
            Some((Activation::GeluTanh, _)) => "gelu_tanh_bwd",
            Some((Activation::Relu, _)) => "relu_bwd",
        };
        let rows = d.bytes() / (pitch * size_of::<W>());
        let columns = width.div_ceil(COLUMNS);
        let span = span(rows, columns);
        let count = rows.div_ceil(span);
        let sums = self.workspace(count * width)?;
        let grid = [size(columns)?, size(count)?, 1];
        let mut arguments = vec![d.into()];
        arguments.extend(activation.map(|(_, pre)| Argument::from(pre)));
        let counters = self.counters(grid[0] as usize * tree_counters(count))?;
        arguments.extend([Argument::from(dbias), sums.into(), counters.into()]);
        for n in [rows, width, pitch, span] {
            arguments.push(size(n)?.into());
        }
        let passes = if activation.is_some() { 3 } else { 1 };
        let (shared_bytes, bytes) = (THREADS as usize * EIGHT * 4, passes * d.bytes() + 2 * sums.bytes());
        self.launch(("linear", kernel), grid, THREADS, shared_bytes, bytes, &arguments)
    }
}
