//! Linear layers: products by the driver, `kernels/linear.cu` round them.

use super::driver::{Driver, Gemm, Operand, Region};
use super::{Gpu, Working, blocks, size};
use crate::Result;
use crate::backend::{LinearBwd, LinearFwd, Write};
use crate::model::config::Activation;

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
        let span = span(rows);
        let count = rows.div_ceil(span);
        let sums = self.workspace(count * outputs)?;
        let grid = [blocks(outputs, COLUMNS as u32)?, size(count)?, 1];
        let shared_bytes = THREADS as usize * EIGHT * 4;
        let (dout, sizes) = (op.dout.region, [size(rows)?, size(outputs)?, size(span)?]);
        let [rows_argument, width, span] = sizes.map(Into::into);
        match &op.activation {
            None => {
                let arguments = [dout.into(), sums.into(), rows_argument, width, span];
                self.launch(
                    ("linear", "bias_bwd"),
                    grid,
                    THREADS,
                    shared_bytes,
                    dout.bytes() + sums.bytes(),
                    &arguments,
                )?;
            }
            Some((activation, pre)) => {
                let kernel = match activation {
                    Activation::Gelu => "bias_gelu_bwd",
                    Activation::GeluTanh => "bias_gelu_tanh_bwd",
                    Activation::Relu => "bias_relu_bwd",
                };
                let arguments = [dout.into(), (*pre).into(), sums.into(), rows_argument, width, span];
                self.launch(
                    ("linear", kernel),
                    grid,
                    THREADS,
                    shared_bytes,
                    3 * dout.bytes() + sums.bytes(),
                    &arguments,
                )?;
            }
        }
        self.column_sums(sums, op.dbias.region, count, outputs, outputs)?;
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

    /// total (width) += the `count` rows of `sums`, which are `stride` floats apart, in order.
    pub(super) fn column_sums(
        &self,
        sums: Region,
        total: Region,
        count: usize,
        width: usize,
        stride: usize,
    ) -> Result<()> {
        let arguments =
            [sums.into(), total.into(), size(count)?.into(), size(width)?.into(), size(stride)?.into()];
        self.launch(
            ("linear", "column_sums"),
            [blocks(width, THREADS)?, 1, 1],
            THREADS,
            0,
            (count + 2) * width * 4,
            &arguments,
        )
    }
}
