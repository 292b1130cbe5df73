//! Linear layers with their bias and activation function.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::gemm::{Job, Mat, MatMut, Scratch, To, par_matmul, par_matmuls};
use super::real::{Real, vectorized};
use super::working::{Full, Working, widen};
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

pub(super) fn linear_fwd<X: Working>(op: LinearFwd<'_, Cpu<X>>) {
    debug_assert_eq!(op.pitch, op.outputs, "rows are not padded here");
    let (inputs, outputs) = (op.inputs, op.outputs);
    let rows = op.inp.len() / inputs;
    let (inp, weight) = (Mat::new(op.inp, rows, inputs), Mat::new(op.weight, outputs, inputs));
    let (bias, out) = (op.bias, MatMut::new(op.out, rows, outputs));
    match op.activation {
        None => par_matmul(inp, weight.t(), &|part, first, col| {
            let (height, width) = (part.rows(), part.cols());
            // SAFETY: parts of a product do not overlap.
            let mut out = unsafe { out.block(first, height, col, width) };
            vectorized(
                #[inline(always)]
                || {
                    for row in 0..height {
                        let sums = part.row(row);
                        sums.iter_mut().zip(&bias[col..]).for_each(|(sum, b)| *sum += b.full());
                        X::narrow(sums, out.row(row));
                    }
                },
            );
        }),
        Some((activation, pre)) => {
            let pre = MatMut::new(pre, rows, outputs);
            par_matmul(inp, weight.t(), &|part, first, col| {
                let (height, width) = (part.rows(), part.cols());
                // SAFETY: parts of a product do not overlap.
                let (mut pre, mut out) =
                    unsafe { (pre.block(first, height, col, width), out.block(first, height, col, width)) };
                activate_part(activation, &bias[col..][..width], part, &mut pre, &mut out);
            });
        }
    }
}

/// pre = product + bias, out = act(pre): of what is stored, as the backward pass sees it.
fn activate_part<X: Working>(
    activation: Activation,
    bias: &[X],
    product: &mut MatMut<'_, Full<X>>,
    pre: &mut MatMut<'_, X>,
    out: &mut MatMut<'_, X>,
) {
    #[inline(always)]
    fn run<X: Working>(
        bias: &[X],
        product: &mut MatMut<'_, Full<X>>,
        pre: &mut MatMut<'_, X>,
        out: &mut MatMut<'_, X>,
        f: impl Fn(Full<X>) -> Full<X>,
    ) {
        vectorized(
            #[inline(always)]
            || {
                for row in 0..pre.rows() {
                    let (values, pre) = (product.row(row), pre.row(row));
                    values.iter_mut().zip(bias).for_each(|(x, b)| *x += b.full());
                    X::narrow(values, pre);
                    values.iter_mut().zip(&*pre).for_each(|(y, x)| *y = f(x.full()));
                    X::narrow(values, out.row(row));
                }
            },
        );
    }
    by_activation!(
        activation,
        KIND => run(
            bias,
            product,
            pre,
            out,
            #[inline(always)]
            |x| activate(KIND, x).0,
        )
    )
}

pub(super) fn linear_bwd<X: Working>(op: LinearBwd<'_, Cpu<X>>) {
    let (inputs, outputs, rows) = (op.inputs, op.outputs, op.rows);
    let (dout, dbias) = (op.dout, op.dbias);
    match op.activation {
        None => {
            if let Some(dbias) = dbias {
                bias_bwd(dout, outputs, dbias);
            }
        }
        Some((activation, pre)) => {
            let partials: Vec<Vec<Full<X>>> = dout
                .par_chunks_mut(SUM_ROWS * outputs)
                .zip(pre.par_chunks(SUM_ROWS * outputs))
                .map(|(dout, pre)| {
                    let (rows, mut sums) = (pre.len() / outputs, vec![Full::<X>::ZERO; outputs]);
                    let mut wide = Scratch::new(pre.len());
                    vectorized(
                        #[inline(always)]
                        || widen(dout, &mut wide),
                    );
                    let d = &mut MatMut::new(&mut wide, rows, outputs);
                    let (pre, dpre) = (Mat::new(pre, rows, outputs), &mut MatMut::new(dout, rows, outputs));
                    activation_bwd(activation, d, pre, dpre, None, &mut sums);
                    sums
                })
                .collect();
            if let Some(dbias) = dbias {
                add_partials(&partials, 0, dbias);
            }
        }
    }
    let dout = &*dout;
    if let Some((inp, dweight)) = op.dweight {
        weight_grads([WeightGrad { inputs, outputs, inp, dout, dweight }]);
    }
    let (write, dinp) = op.dinp;
    let (dout, weight) = (Mat::new(dout, rows, outputs), Mat::new(op.weight, outputs, inputs));
    let dinp = MatMut::new(dinp, rows, inputs);
    let Some(before) = op.before else {
        return par_matmul(dout, weight, &|part, first, col| {
            let (height, width) = (part.rows(), part.cols());
            // SAFETY: parts of a product do not overlap.
            let mut dinp = unsafe { dinp.block(first, height, col, width) };
            vectorized(
                #[inline(always)]
                || {
                    for row in 0..height {
                        let (sums, dinp) = (part.row(row), dinp.row(row));
                        if write == Write::Add {
                            sums.iter_mut().zip(&*dinp).for_each(|(sum, x)| *sum += x.full());
                        }
                        X::narrow(sums, dinp);
                    }
                },
            );
        });
    };
    let pre = Mat::new(before.pre, rows, inputs);
    let act = before.act.map(|act| MatMut::new(act, rows, inputs));
    let partials = Mutex::new(BTreeMap::new());
    par_matmul(dout, weight, &|part, row, col| {
        let (height, width) = (part.rows(), part.cols());
        let pre = pre.block(row, height, col, width);
        // SAFETY: parts of a product do not overlap.
        let mut dinp = unsafe { dinp.block(row, height, col, width) };
        // SAFETY: the same.
        let act = act.as_ref().map(|act| unsafe { act.block(row, height, col, width) });
        let mut sums = vec![Full::<X>::ZERO; width];
        activation_bwd(before.activation, part, pre, &mut dinp, act, &mut sums);
        partials.lock().unwrap_or_else(PoisonError::into_inner).insert((row, col), sums);
    });
    // In the order of the parts, whichever was done first.
    for ((_, col), sums) in partials.into_inner().unwrap_or_else(PoisonError::into_inner) {
        before.dbias[col..].iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
}

/// dW (O, I) += doutᵀ (O, N) · inp (N, I) of several layers.
pub(super) fn weight_grads<'a, X: Working>(ops: impl IntoIterator<Item = WeightGrad<'a, Cpu<X>>>) {
    let jobs = ops.into_iter().map(|op| {
        let rows = op.inp.len() / op.inputs;
        Job {
            a: Mat::new(op.dout, rows, op.outputs).t(),
            b: Mat::new(op.inp, rows, op.inputs),
            to: To::Sum(MatMut::new(op.dweight, op.outputs, op.inputs)),
        }
    });
    par_matmuls(jobs.collect());
}

/// db += column sums of dout (N, O), by partial sums over fixed row blocks.
pub(super) fn bias_bwd<X: Working>(dout: &[X], width: usize, dbias: &mut [Full<X>]) {
    let partials: Vec<Vec<Full<X>>> = dout
        .par_chunks(SUM_ROWS * width)
        .map(|rows| {
            let mut partial = vec![Full::<X>::ZERO; width];
            vectorized(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(width) {
                        partial.iter_mut().zip(row).for_each(|(p, x)| *p += x.full());
                    }
                },
            );
            partial
        })
        .collect();
    add_partials(&partials, 0, dbias);
}

/// d · act'(pre) of a part of a matrix, act(pre) where that is wanted, and the sums of the former's columns, for db.
fn activation_bwd<X: Working>(
    activation: Activation,
    d: &mut MatMut<'_, Full<X>>,
    pre: Mat<'_, X>,
    dpre: &mut MatMut<'_, X>,
    act: Option<MatMut<'_, X>>,
    sums: &mut [Full<X>],
) {
    #[inline(always)]
    fn run<X: Working>(
        d: &mut MatMut<'_, Full<X>>,
        pre: Mat<'_, X>,
        dpre: &mut MatMut<'_, X>,
        mut act: Option<MatMut<'_, X>>,
        sums: &mut [Full<X>],
        f: impl Fn(Full<X>) -> (Full<X>, Full<X>),
    ) {
        let mut values = vec![Full::<X>::ZERO; if act.is_some() { sums.len() } else { 0 }];
        vectorized(
            #[inline(always)]
            || {
                for row in 0..d.rows() {
                    let d = d.row(row);
                    let terms = d.iter_mut().zip(pre.row(row)).zip(&mut *sums);
                    match &mut act {
                        Some(act) => {
                            for (((d, x), sum), y) in terms.zip(&mut values) {
                                let slope;
                                (*y, slope) = f(x.full());
                                *d *= slope;
                                *sum += *d;
                            }
                            X::narrow(&values, act.row(row));
                        }
                        None => {
                            for ((d, x), sum) in terms {
                                *d *= f(x.full()).1;
                                *sum += *d;
                            }
                        }
                    }
                    X::narrow(d, dpre.row(row));
                }
            },
        );
    }
    by_activation!(
        activation,
        KIND => run(
            d,
            pre,
            dpre,
            act,
            sums,
            #[inline(always)]
            |x| activate(KIND, x),
        )
    );
}
