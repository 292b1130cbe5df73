//! Linear layers: products by the driver, `kernels/linear.cu` round them.

use super::driver::{Argument, Driver, Gemm, Operand, Region};
use super::{Gpu, Working, blocks, size};
use crate::backend::{LinearBwd, LinearFwd, Write};
use crate::model::config::Activation;
use crate::{Error, Result};

const THREADS: u32 = 256;
/// Elements a thread of the forward pass, columns a lane of the backward pass.
const EIGHT: usize = 8;
/// Columns of a block of the backward pass.
const COLUMNS: usize = 256;
/// Rows of a block of the backward pass at the least, and blocks down a column at the most.
const SPAN: usize = 64;
const PARTIALS: usize = 128;

/// Rows of one partial sum: a function of the rows alone.
pub(super) fn span(rows: usize) -> usize {
    rows.div_ceil(PARTIALS).max(SPAN)
}

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn linear_fwd_op(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        let (inputs, outputs) = (op.inputs, op.outputs);
        let rows = op.inp.len() / inputs;
        let product = |c: Region, bias: Option<Region>| {
            self.driver.gemm(&Gemm {
                m: rows,
                n: outputs,
                k: inputs,
                precision: self.precision,
                a: Operand { at: op.inp.region, transposed: false },
                b: Operand { at: op.weight.region, transposed: true },
                c,
                exact: false,
                accumulate: false,
                bias,
            })
        };
        if rows == 0 {
            return Ok(());
        }
        let Some((activation, pre)) = op.activation else {
            return product(op.out.region, Some(op.bias.region));
        };
        product(pre.region, None)?;
        let kernel = match activation {
            Activation::Gelu => "bias_gelu_fwd",
            Activation::GeluTanh => "bias_gelu_tanh_fwd",
            Activation::Relu => "bias_relu_fwd",
        };
        let grid = [blocks(rows * outputs.div_ceil(EIGHT), THREADS)?, 1, 1];
        let arguments =
            [(&pre).into(), op.bias.into(), (&op.out).into(), size(rows)?.into(), size(outputs)?.into()];
        self.launch(("linear", kernel), grid, THREADS, 0, 3 * op.out.region.bytes(), &arguments)
    }

    pub(super) fn linear_bwd_op(&self, op: LinearBwd<'_, Self>) -> Result<()> {
        let (inputs, outputs) = (op.inputs, op.outputs);
        let rows = op.inp.len() / inputs;
        if rows == 0 {
            return Ok(());
        }
        let dout = op.dout.region;
        let kernel = match &op.activation {
            None => "bias_bwd",
            Some((Activation::Gelu, _)) => "bias_gelu_bwd",
            Some((Activation::GeluTanh, _)) => "bias_gelu_tanh_bwd",
            Some((Activation::Relu, _)) => "bias_relu_bwd",
        };
        if let Some(dbias) = &op.dbias {
            let span = span(rows);
            let count = rows.div_ceil(span);
            let sums = self.workspace(count * outputs)?;
            let grid = [blocks(outputs, COLUMNS as u32)?, size(count)?, 1];
            let mut arguments = vec![dout.into()];
            arguments.extend(op.activation.as_ref().map(|(_, pre)| Argument::from(*pre)));
            let counters = self.counters(grid[0] as usize)?;
            arguments.extend([Argument::from(dbias), sums.into(), counters.into()]);
            for n in [rows, outputs, span] {
                arguments.push(size(n)?.into());
            }
            let passes = if op.activation.is_some() { 3 } else { 1 };
            let (shared_bytes, bytes) = (THREADS as usize * EIGHT * 4, passes * dout.bytes() + sums.bytes());
            self.launch(("linear", kernel), grid, THREADS, shared_bytes, bytes, &arguments)?;
        } else if op.activation.is_some() {
            return Err(Error::argument("a linear layer with an activation adds its own bias gradient"));
        }
        self.driver.gemm(&Gemm {
            m: outputs,
            n: inputs,
            k: rows,
            precision: self.precision,
            a: Operand { at: dout, transposed: true },
            b: Operand { at: op.inp.region, transposed: false },
            c: op.dweight.region,
            exact: true,
            accumulate: true,
            bias: None,
        })?;
        let (write, dinp) = op.dinp;
        self.driver.gemm(&Gemm {
            m: rows,
            n: inputs,
            k: outputs,
            precision: self.precision,
            a: Operand { at: dout, transposed: false },
            b: Operand { at: op.weight.region, transposed: false },
            c: dinp.region,
            exact: false,
            accumulate: write == Write::Add,
            bias: None,
        })
    }
}
