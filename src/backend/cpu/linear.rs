//! Linear layers with their bias and activation function.

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, par_matmul};
use super::real::{Real, vectorized};
use super::{Cpu, ROW_BLOCK, add_partials};
use crate::backend::{LinearBwd, LinearFwd, WeightGrad, Write};
use crate::model::config::Activation;

/// Rows of a partial sum.
const SUM_ROWS: usize = 2 * ROW_BLOCK;
const GELU_TANH_SCALE: f64 = 0.797_884_560_802_865_4; // √(2/π)
const GELU_TANH_CUBIC: f64 = 0.044_715;

/// act(x)
#[inline(always)]
fn activate<R: Real>(activation: Activation, x: R) -> R {
    match activation {
        Activation::Gelu => x * x.normal().0,
        Activation::GeluTanh => {
            let inner = R::of(GELU_TANH_SCALE) * (x + R::of(GELU_TANH_CUBIC) * x * x * x);
            R::of(0.5) * x * (R::ONE + inner.tanh())
        }
        Activation::Relu => x.max(R::ZERO),
    }
}

/// act'(x)
#[inline(always)]
fn derivative<R: Real>(activation: Activation, x: R) -> R {
    match activation {
        Activation::Gelu => {
            let (cdf, density) = x.normal();
            cdf + x * density
        }
        Activation::GeluTanh => {
            let cubic = R::of(GELU_TANH_CUBIC) * x * x;
            let t = (R::of(GELU_TANH_SCALE) * x * (R::ONE + cubic)).tanh();
            let slope = R::of(GELU_TANH_SCALE) * (R::ONE + R::of(3.0) * cubic);
            R::of(0.5) * (R::ONE + t + x * (R::ONE - t * t) * slope)
        }
        Activation::Relu => {
            if x > R::ZERO {
                R::ONE
            } else {
                R::ZERO
            }
        }
    }
}

/// Runs the code once for each activation with its name a constant: matched inside the loop, it would not become vector instructions.
macro_rules! by_activation {
    ($activation:expr, $kind:ident => $code:expr) => {
        match $activation {
            Activation::Gelu => {
                const $kind: Activation = Activation::Gelu;
                $code
            }
            Activation::GeluTanh => {
                const $kind: Activation = Activation::GeluTanh;
                $code
            }
            Activation::Relu => {
                const $kind: Activation = Activation::Relu;
                $code
            }
        }
    };
}

pub(super) fn linear_fwd<R: Real>(op: LinearFwd<'_, Cpu<R>>) {
    debug_assert_eq!(op.pitch, op.outputs, "rows are not padded here");
    let (inputs, outputs) = (op.inputs, op.outputs);
    let rows = op.inp.len() / inputs;
    let (inp, weight) = (Mat::new(op.inp, rows, inputs), Mat::new(op.weight, outputs, inputs));
    let bias = op.bias;
    match op.activation {
        None => {
            par_matmul(MatMut::new(op.out, rows, outputs), false, inp, weight.t(), |tile, _, col| {
                vectorized(|| {
                    for row in 0..tile.rows() {
                        tile.row(row).iter_mut().zip(&bias[col..]).for_each(|(x, &b)| *x += b);
                    }
                });
            });
        }
        Some((activation, pre)) => {
            let out = MatMut::new(op.out, rows, outputs);
            par_matmul(MatMut::new(pre, rows, outputs), false, inp, weight.t(), |tile, first, col| {
                let (height, width) = (tile.rows(), tile.row(0).len());
                // SAFETY: tiles of a grid do not overlap, in `out` as in `pre`.
                let mut result = unsafe { out.block(first, height, col, width) };
                activate_tile(activation, &bias[col..col + width], tile, &mut result);
            });
        }
    }
}

fn activate_tile<R: Real>(
    activation: Activation,
    bias: &[R],
    pre: &mut MatMut<'_, R>,
    out: &mut MatMut<'_, R>,
) {
    #[inline(always)]
    fn run<R: Real>(bias: &[R], pre: &mut MatMut<'_, R>, out: &mut MatMut<'_, R>, f: impl Fn(R) -> R) {
        vectorized(
            #[inline(always)]
            || {
                for row in 0..pre.rows() {
                    let (pre, out) = (pre.row(row), out.row(row));
                    for ((x, y), &b) in pre.iter_mut().zip(out).zip(bias) {
                        *x += b;
                        *y = f(*x);
                    }
                }
            },
        );
    }
    by_activation!(
        activation,
        KIND => run(
            bias,
            pre,
            out,
            #[inline(always)]
            |x| activate(KIND, x),
        )
    );
}

pub(super) fn linear_bwd<R: Real>(op: LinearBwd<'_, Cpu<R>>) {
    let (inputs, outputs) = (op.inputs, op.outputs);
    let rows = op.inp.len() / inputs;
    let (dout, dbias) = (op.dout, op.dbias);
    match op.activation {
        None => {
            if let Some(dbias) = dbias {
                bias_bwd(dout, outputs, dbias);
            }
        }
        Some((activation, pre)) => through(activation, dout, pre, outputs, dbias),
    }
    let dout = &*dout;
    if let Some(dweight) = op.dweight {
        weight_grad(WeightGrad { inputs, outputs, inp: op.inp, dout, dweight });
    }
    let (write, dinp) = op.dinp;
    let accumulate = write == Write::Add && op.before.is_none();
    let (dout, weight) = (Mat::new(dout, rows, outputs), Mat::new(op.weight, outputs, inputs));
    par_matmul(MatMut::new(dinp, rows, inputs), accumulate, dout, weight, |_, _, _| {});
    if let Some(before) = op.before {
        through(before.activation, dinp, before.pre, inputs, Some(before.dbias));
    }
}

pub(super) fn weight_grad<R: Real>(op: WeightGrad<'_, Cpu<R>>) {
    let (inputs, outputs) = (op.inputs, op.outputs);
    let rows = op.inp.len() / inputs;
    let (inp, dout) = (Mat::new(op.inp, rows, inputs), Mat::new(op.dout, rows, outputs));
    par_matmul(MatMut::new(op.dweight, outputs, inputs), true, dout.t(), inp, |_, _, _| {});
}

/// d *= act'(pre), and db from it in the same pass.
fn through<R: Real>(activation: Activation, d: &mut [R], pre: &[R], width: usize, dbias: Option<&mut [R]>) {
    by_activation!(
        activation,
        KIND => activation_bwd(
            d,
            pre,
            width,
            dbias,
            #[inline(always)]
            |x| derivative(KIND, x),
        )
    );
}

/// db += column sums of dout (N, O), by partial sums over fixed row blocks.
pub(super) fn bias_bwd<R: Real>(dout: &[R], width: usize, dbias: &mut [R]) {
    let partials: Vec<Vec<R>> = dout
        .par_chunks(SUM_ROWS * width)
        .map(|rows| {
            let mut partial = vec![R::ZERO; width];
            vectorized(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(width) {
                        partial.iter_mut().zip(row).for_each(|(p, &x)| *p += x);
                    }
                },
            );
            partial
        })
        .collect();
    add_partials(&partials, 0, dbias);
}

/// dout *= f(pre), and db from it in the same pass.
fn activation_bwd<R: Real>(
    dout: &mut [R],
    pre: &[R],
    width: usize,
    dbias: Option<&mut [R]>,
    f: impl Fn(R) -> R + Sync,
) {
    let partials: Vec<Vec<R>> = dout
        .par_chunks_mut(SUM_ROWS * width)
        .zip(pre.par_chunks(SUM_ROWS * width))
        .map(|(dout, pre)| {
            let mut partial = vec![R::ZERO; width];
            vectorized(
                #[inline(always)]
                || {
                    for (dout, pre) in dout.chunks_exact_mut(width).zip(pre.chunks_exact(width)) {
                        for ((d, &x), p) in dout.iter_mut().zip(pre).zip(&mut partial) {
                            *d *= f(x);
                            *p += *d;
                        }
                    }
                },
            );
            partial
        })
        .collect();
    if let Some(dbias) = dbias {
        add_partials(&partials, 0, dbias);
    }
}
