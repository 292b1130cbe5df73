//! Attention as a textbook has it, in low precision.

use super::ops::geometry;
use super::{BEFORE, Kind, Output, dropout, input, rounded};

/// Textbook attention in fp32 whose probabilities, their gradients and results are stored as bf16.
pub(super) fn attention(lengths: &[(usize, usize)], (heads, size): (usize, usize), p: f64) -> Vec<Output> {
    let (cu, _) = geometry(lengths);
    let (n, c) = (cu[cu.len() - 1] as usize, heads * size);
    let (qkv, dout) = (input(1, 3 * n * c), input(2, n * c));
    let (mut out, mut lse, mut dqkv) = (vec![0.0; n * c], vec![0.0; n * heads], vec![0.0; 3 * n * c]);
    let scale = 1.0 / (size as f64).sqrt();
    let drop = dropout(p);
    for (&first, &(rows, keys)) in cu.iter().zip(lengths) {
        for head in 0..heads {
            let at = |row: usize, which: usize, i: usize| {
                (first as usize + row) * 3 * c + which * c + head * size + i
            };
            let place = |row: usize, i: usize| (first as usize + row) * c + head * size + i;
            for q in 0..rows {
                let dot = |k: usize, a: &dyn Fn(usize) -> f64, which: usize| -> f64 {
                    (0..size).map(|i| a(i) * qkv[at(k, which, i)]).sum()
                };
                let scores: Vec<f64> = (0..keys).map(|k| scale * dot(k, &|i| qkv[at(q, 0, i)], 1)).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
                lse[(first as usize + q) * heads + head] = highest + total.ln();
                let keep: Vec<f64> = (0..keys)
                    .map(|k| {
                        let half = drop.rng.half_of_key(
                            ((head as u32) << 20) + k as u32,
                            drop.clock.row0 + first + q as u32,
                            drop.site,
                            drop.clock.step,
                        );
                        if half < drop.threshold { 0.0 } else { drop.scale }
                    })
                    .collect();
                let probability: Vec<f64> =
                    scores.iter().map(|s| rounded((s - highest).exp() / total)).collect();
                let dropped: Vec<f64> = probability.iter().zip(&keep).map(|(p, k)| rounded(p * k)).collect();
                for i in 0..size {
                    out[place(q, i)] = rounded((0..keys).map(|k| dropped[k] * qkv[at(k, 2, i)]).sum());
                }
                let delta: f64 = (0..size).map(|i| out[place(q, i)] * dout[place(q, i)]).sum();
                for k in 0..keys {
                    let dp = dot(k, &|i| dout[place(q, i)], 2) * keep[k];
                    let ds = rounded(probability[k] * (dp - delta));
                    for i in 0..size {
                        dqkv[at(q, 0, i)] += ds * qkv[at(k, 1, i)] * scale;
                        dqkv[at(k, 1, i)] += ds * qkv[at(q, 0, i)] * scale;
                        dqkv[at(k, 2, i)] += dropped[k] * dout[place(q, i)];
                    }
                }
            }
        }
    }
    dqkv.iter_mut().for_each(|x| *x = rounded(*x));
    let dbias = (0..3 * c).map(|i| BEFORE + dqkv.iter().skip(i).step_by(3 * c).sum::<f64>()).collect();
    vec![
        Output { name: "out", kind: Kind::Working, values: out },
        Output {
            name: "lse",
            kind: Kind::Exact,
            values: lse.into_iter().map(|x| f64::from(x as f32)).collect(),
        },
        Output { name: "dqkv", kind: Kind::Working, values: dqkv },
        Output { name: "dbias", kind: Kind::Exact, values: dbias },
    ]
}

/// Half a unit in the last place of bf16, relative: what one rounding does at most.
const UNIT: f64 = 1.0 / 256.0;

/// The most that roundings to bf16 can change each element of `out` and `dqkv` by, to first order.
/// Rounded are the probabilities (once with and once without dropout's factor), their gradients, and the
/// results; the backward pass reads the rounded `out`.
pub(super) fn attention_reach(
    lengths: &[(usize, usize)],
    (heads, size): (usize, usize),
    p: f64,
) -> Vec<(&'static str, Vec<f64>)> {
    let (cu, _) = geometry(lengths);
    let (n, c) = (cu[cu.len() - 1] as usize, heads * size);
    let (qkv, dout) = (input(1, 3 * n * c), input(2, n * c));
    let (mut of_out, mut of_dqkv, mut dqkv) = (vec![0.0; n * c], vec![0.0; 3 * n * c], vec![0.0; 3 * n * c]);
    let (scale, drop) = (1.0 / (size as f64).sqrt(), dropout(p));
    for (&first, &(rows, keys)) in cu.iter().zip(lengths) {
        for (head, q) in (0..heads).flat_map(|head| (0..rows).map(move |q| (head, q))) {
            let at = |row: usize, which: usize| (first as usize + row) * 3 * c + which * c + head * size;
            let place = (first as usize + q) * c + head * size;
            let own = |which: usize, row: usize| &qkv[at(row, which)..][..size];
            let gradient = &dout[place..][..size];
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = (0..keys).map(|k| scale * dot(own(0, q), own(1, k))).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
            let keep = |k: usize| {
                let row = drop.clock.row0 + first + q as u32;
                let index = ((head as u32) << 20) + k as u32;
                let half = drop.rng.half_of_key(index, row, drop.site, drop.clock.step);
                if half < drop.threshold { 0.0 } else { drop.scale }
            };
            let weights: Vec<(f64, f64)> =
                scores.iter().enumerate().map(|(k, s)| ((s - highest).exp() / total, keep(k))).collect();
            let (mut delta, mut of_delta) = (0.0, 0.0);
            for (i, gradient) in gradient.iter().enumerate() {
                let terms = || weights.iter().enumerate().map(|(k, (p, keep))| p * keep * own(2, k)[i]);
                let out: f64 = terms().sum();
                of_out[place + i] = UNIT * (2.0 * terms().map(f64::abs).sum::<f64>() + out.abs());
                delta += out * gradient;
                of_delta += of_out[place + i] * gradient.abs();
            }
            for (k, &(p, keep)) in weights.iter().enumerate() {
                let dp = keep * dot(gradient, own(2, k));
                let ds = p * (dp - delta);
                let of_ds = UNIT * (p * (dp.abs() + delta.abs()) + ds.abs()) + p * of_delta;
                for (i, gradient) in gradient.iter().enumerate() {
                    let (query, key) = (own(0, q)[i], own(1, k)[i]);
                    let parts = [
                        (at(q, 0), scale * ds * key, scale * of_ds * key),
                        (at(k, 1), scale * ds * query, scale * of_ds * query),
                        (at(k, 2), p * keep * gradient, 2.0 * UNIT * p * keep * gradient),
                    ];
                    for (at, term, of_term) in parts {
                        dqkv[at + i] += term;
                        of_dqkv[at + i] += of_term.abs();
                    }
                }
            }
        }
    }
    of_dqkv.iter_mut().zip(&dqkv).for_each(|(reach, x)| *reach += UNIT * x.abs());
    // What the first order leaves out: products of two roundings.
    [("out", of_out), ("dqkv", of_dqkv)]
        .map(|(name, reach)| (name, reach.into_iter().map(|x| x * (1.0 + 4.0 * UNIT)).collect()))
        .into()
}
