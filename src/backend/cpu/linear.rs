//! Linear layers with their bias and activation function.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::gemm::{Factors, Job, Mat, MatMut, par_matmul, par_matmuls};
use super::real::{Real, vectorized};
use super::{Cpu, ROW_BLOCK, add_partials};
use crate::backend::{LinearBwd, LinearFwd, WeightGrad, Write};
use crate::model::config::Activation;

/// Rows of a partial sum.
const SUM_ROWS: usize = 2 * ROW_BLOCK;
const GELU_TANH_SCALE: f64 = 0.797_884_560_802_865_4; // √(2/π)
const GELU_TANH_CUBIC: f64 = 0.044_715;

/// act(x) and act'(x), which have much in common.
#[inline(always)]
fn activate<R: Real>(activation: Activation, x: R) -> (R, R) {
    match activation {
        Activation::Gelu => {
            let (cdf, density) = x.normal();
            (x * cdf, cdf + x * density)
        }
        Activation::GeluTanh => {
            let cubic = R::of(GELU_TANH_CUBIC) * x * x;
            let t = (R::of(GELU_TANH_SCALE) * x * (R::ONE + cubic)).tanh();
            let slope = R::of(GELU_TANH_SCALE) * (R::ONE + R::of(3.0) * cubic);
            let half = R::of(0.5) * (R::ONE + t);
            (x * half, half + R::of(0.5) * x * (R::ONE - t * t) * slope)
        }
        Activation::Relu => {
            if x > R::ZERO {
                (x, R::ONE)
            } else {
                (R::ZERO, R::ZERO)
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

pub(super) fn linear_fwd<R: Real>(factors: Factors, op: LinearFwd<'_, Cpu<R>>) {
    debug_assert_eq!(op.pitch, op.outputs, "rows are not padded here");
    let (inputs, outputs) = (op.inputs, op.outputs);
    let rows = op.inp.len() / inputs;
    let (inp, weight) = (Mat::new(op.inp, rows, inputs), Mat::new(op.weight, outputs, inputs));
    let bias = op.bias;
    match op.activation {
        None => {
            par_matmul(
                factors,
                MatMut::new(op.out, rows, outputs),
                false,
                inp,
                weight.t(),
                |tile, _, col| {
                    vectorized(|| {
                        for row in 0..tile.rows() {
                            tile.row(row).iter_mut().zip(&bias[col..]).for_each(|(x, &b)| *x += b);
                        }
                    });
                },
            );
        }
        Some((activation, pre)) => {
            let out = MatMut::new(op.out, rows, outputs);
            par_matmul(
                factors,
                MatMut::new(pre, rows, outputs),
                false,
                inp,
                weight.t(),
                |tile, first, col| {
                    let (height, width) = (tile.rows(), tile.cols());
                    // SAFETY: tiles of a grid do not overlap, in `out` as in `pre`.
                    let mut result = unsafe { out.block(first, height, col, width) };
                    activate_tile(activation, &bias[col..col + width], tile, &mut result);
                },
            );
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
            |x| activate(KIND, x).0,
        )
    );
}

pub(super) fn linear_bwd<R: Real>(factors: Factors, op: LinearBwd<'_, Cpu<R>>) {
    let (inputs, outputs, rows) = (op.inputs, op.outputs, op.rows);
    let (dout, dbias) = (op.dout, op.dbias);
    match op.activation {
        None => {
            if let Some(dbias) = dbias {
                bias_bwd(dout, outputs, dbias);
            }
        }
        Some((activation, pre)) => {
            let partials: Vec<Vec<R>> = dout
                .par_chunks_mut(SUM_ROWS * outputs)
                .zip(pre.par_chunks(SUM_ROWS * outputs))
                .map(|(dout, pre)| {
                    let rows = pre.len() / outputs;
                    activation_bwd(
                        activation,
                        &mut MatMut::new(dout, rows, outputs),
                        Mat::new(pre, rows, outputs),
                        None,
                    )
                })
                .collect();
            if let Some(dbias) = dbias {
                add_partials(&partials, 0, dbias);
            }
        }
    }
    let dout = &*dout;
    if let Some((inp, dweight)) = op.dweight {
        weight_grads(factors, [WeightGrad { inputs, outputs, inp, dout, dweight }]);
    }
    let (write, dinp) = op.dinp;
    let accumulate = write == Write::Add && op.before.is_none();
    let (dout, weight) = (Mat::new(dout, rows, outputs), Mat::new(op.weight, outputs, inputs));
    let dinp = MatMut::new(dinp, rows, inputs);
    let Some(before) = op.before else {
        return par_matmul(factors, dinp, accumulate, dout, weight, |_, _, _| {});
    };
    let pre = Mat::new(before.pre, rows, inputs);
    let act = before.act.map(|act| MatMut::new(act, rows, inputs));
    let partials = Mutex::new(BTreeMap::new());
    par_matmul(factors, dinp, accumulate, dout, weight, |part, row, col| {
        let (height, width) = (part.rows(), part.cols());
        let pre = pre.block(row, height, col, width);
        // SAFETY: parts of a product do not overlap, in `act` as in `dinp`.
        let act = act.as_ref().map(|act| unsafe { act.block(row, height, col, width) });
        let sums = activation_bwd(before.activation, part, pre, act);
        partials.lock().unwrap_or_else(PoisonError::into_inner).insert((row, col), sums);
    });
    // In the order of the parts, whichever was done first.
    for ((_, col), sums) in partials.into_inner().unwrap_or_else(PoisonError::into_inner) {
        before.dbias[col..].iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
}

/// dW (O, I) += doutᵀ (O, N) · inp (N, I) of several layers.
pub(super) fn weight_grads<'a, R: Real>(
    factors: Factors,
    ops: impl IntoIterator<Item = WeightGrad<'a, Cpu<R>>>,
) {
    let jobs = ops.into_iter().map(|op| {
        let rows = op.inp.len() / op.inputs;
        Job {
            c: MatMut::new(op.dweight, op.outputs, op.inputs),
            a: Mat::new(op.dout, rows, op.outputs).t(),
            b: Mat::new(op.inp, rows, op.inputs),
        }
    });
    par_matmuls(factors, jobs.collect(), true, |_, _, _| {});
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

/// d *= act'(pre) on a part of a matrix, and act(pre) where that is wanted; returns the sums of d's columns, for db.
fn activation_bwd<R: Real>(
    activation: Activation,
    d: &mut MatMut<'_, R>,
    pre: Mat<'_, R>,
    act: Option<MatMut<'_, R>>,
) -> Vec<R> {
    #[inline(always)]
    fn run<R: Real>(
        d: &mut MatMut<'_, R>,
        pre: Mat<'_, R>,
        mut act: Option<MatMut<'_, R>>,
        f: impl Fn(R) -> (R, R),
    ) -> Vec<R> {
        let mut sums = vec![R::ZERO; d.cols()];
        vectorized(
            #[inline(always)]
            || {
                for row in 0..d.rows() {
                    let terms = d.row(row).iter_mut().zip(pre.row(row)).zip(&mut sums);
                    match &mut act {
                        Some(act) => {
                            for (((d, &x), sum), y) in terms.zip(act.row(row)) {
                                let slope;
                                (*y, slope) = f(x);
                                *d *= slope;
                                *sum += *d;
                            }
                        }
                        None => {
                            for ((d, &x), sum) in terms {
                                *d *= f(x).1;
                                *sum += *d;
                            }
                        }
                    }
                }
            },
        );
        sums
    }
    by_activation!(
        activation,
        KIND => run(
            d,
            pre,
            act,
            #[inline(always)]
            |x| activate(KIND, x),
        )
    )
}
