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
