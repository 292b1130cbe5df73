//! The values that fresh weights start from.
//!
//! `bert` is what google-research/electra and `transformers` draw: a normal distribution with the
//! standard deviation `initializer_range` (0.02) for every matrix and table. With it small networks
//! spend millions of tokens on the plateau of word frequencies, where the loss does not depend on the
//! context yet. Two changes together end that, neither of them alone:
//!
//! * Larger embeddings. An update of Adam moves every weight by about the learning rate, which at 2e-3
//!   is as much as an embedding of 0.02 within some ten steps. The embedding of \[MASK\], whose gradient
//!   has the same sign at all masked positions, then outweighs the position embedding added to it.
//! * Attention to neighbours. With weights of 0.02 all positions receive almost equal attention, so that
//!   the output of attention is an average over the row.
//!
//! `local` differs from `bert` as follows:
//!
//! * Word and type embeddings are ten times larger, and the LayerNorm of the generator's head is ten
//!   times smaller, so that logits have the usual scale.
//! * Position embeddings are sinusoids (Vaswani et al. 2017) in a subspace of P dimensions, which
//!   words leave free. The two parts have equal variance. A projection of the embeddings keeps the
//!   subspace as it is.
//! * In that subspace queries are the keys' matrix times the rotation that moves a position by δ, so
//!   that a head attends to the token at the offset δ: -1, 1, -2, 2, and so on cyclically over heads and layers.
//!   (Trockman & Kolter 2023 begin with queries and keys that are correlated in a similar way.)
//! * The discriminator's head keeps the variance of its inputs better: its matrices have a standard
//!   deviation of 0.7 / √C. With 0.02 its output hardly depends on the token at first, and training then
//!   removes that dependence instead of learning from it.
//!
//! Only initial values differ, no computation: models load everywhere as before. Measurements are in
//! `benches/records/2026-11-27_short-runs`.

use std::f64::consts::SQRT_2;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::config::ElectraConfig;
use crate::rng::{Philox, Site, open_unit};

/// How fresh weights are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Normal with the standard deviation `initializer_range`, as BERT's.
    #[default]
    Bert,
    /// Larger embeddings, sinusoidal positions, and heads that attend to neighbours: short runs leave
    /// the plateau of word frequencies much earlier.
    Local,
}

pub(super) const WORD: &str = "electra.embeddings.word_embeddings.weight";
const POSITION: &str = "electra.embeddings.position_embeddings.weight";
const PROJECTION: &str = "electra.embeddings_project.weight";
const HEAD_NORM: &str = "generator_predictions.LayerNorm.weight";

/// How many times larger the embeddings of `Init::Local` are than `initializer_range`.
const LARGER: f64 = 10.0;
/// Frequencies of the sinusoids fall geometrically from the first to the second, in radians per
/// position: wavelengths from 3 to 300 positions.
const FREQUENCIES: [f64; 2] = [2.0, 0.02];
/// Offsets that heads attend to.
const OFFSETS: [f64; 4] = [-1.0, 1.0, -2.0, 2.0];
/// Standard deviation of the matrices of the discriminator's head, times the root of their inputs.
const HEAD_GAIN: f64 = 0.7;
/// Expected attention logit at the offset of a head, where it is largest.
const PEAK: f64 = 12.0;

/// Fills a tensor of a network with `config`, drawing from the stream `number`: LayerNorm 1, biases
/// and the embedding of \[PAD\] 0, others by `init`.
pub(super) fn fresh(
    (name, shape): (&str, &[usize]),
    config: &ElectraConfig,
    init: Init,
    stream: (Philox, u32),
    target: &mut [f32],
) {
    if name.ends_with("LayerNorm.weight") {
        let scale = if init == Init::Local && name == HEAD_NORM { 1.0 / LARGER } else { 1.0 };
        target.fill(scale as f32);
    } else if !name.ends_with("bias") {
        normal(stream, config.initializer_range, target);
        if init == Init::Local {
            localize((name, shape), config, stream, target);
        }
        if let (true, Some(pad)) = (name == WORD, config.pad_token_id) {
            let width = config.embedding_size;
            target[pad as usize * width..][..width].fill(0.0);
        }
    }
}

/// P, the dimensions of the embeddings that hold positions: even, and few enough for a head's keys to
/// tell them apart.
fn position_width(config: &ElectraConfig) -> usize {
    (config.embedding_size / 4).min(config.head_size() / 2).min(config.hidden_size / 2) / 2 * 2
}

/// Changes a tensor of normal numbers to what it is in `Init::Local`.
fn localize(
    (name, shape): (&str, &[usize]),
    config: &ElectraConfig,
    stream: (Philox, u32),
    target: &mut [f32],
) {
    let &[_, columns] = shape else { return };
    let (width, embedding) = (position_width(config), config.embedding_size);
    if name == POSITION {
        sinusoids(config, target);
    } else if name.starts_with("electra.embeddings.") {
        target.iter_mut().for_each(|x| *x *= LARGER as f32);
        target.chunks_exact_mut(columns).for_each(|row| row[..width].fill(0.0));
    } else if name == PROJECTION {
        normal(stream, 1.0 / ((embedding - width) as f64).sqrt(), target);
        for (index, row) in target.chunks_exact_mut(columns).enumerate() {
            if index < width {
                row.fill(0.0);
                row[index] = 1.0;
            } else {
                row[..width].fill(0.0);
            }
        }
    } else if name.starts_with("discriminator_predictions.") || name.starts_with("classifier.") {
        normal(stream, HEAD_GAIN / (columns as f64).sqrt(), target);
    } else if name.ends_with("attention.self.key.weight") {
        // After LayerNorm half of the variance of the E dimensions is that of positions, and keys and
        // queries of one head have HS dimensions: a logit is σ² · HS · E/2 / √HS at the offset.
        let variance = PEAK / ((config.head_size() as f64).sqrt() * embedding as f64 / 2.0);
        let scale = variance.sqrt() / config.initializer_range;
        for row in target.chunks_exact_mut(columns) {
            row[..width].iter_mut().for_each(|x| *x *= scale as f32);
        }
    }
}

/// Frequency of each pair of dimensions.
fn frequencies(width: usize) -> impl Iterator<Item = f64> {
    let ([first, last], pairs) = (FREQUENCIES, width / 2);
    (0..pairs).map(move |k| first * (last / first).powf(k as f64 / (pairs.max(2) - 1) as f64))
}

/// Sine and cosine of position times frequency in the first P dimensions, 0 in the others. Together
/// they have as much variance as the word embeddings in the other dimensions.
fn sinusoids(config: &ElectraConfig, target: &mut [f32]) {
    let (width, embedding) = (position_width(config), config.embedding_size);
    target.fill(0.0);
    let words = LARGER * config.initializer_range;
    let amplitude = words * ((embedding - width) as f64 / width as f64).sqrt() * SQRT_2;
    for (position, row) in target.chunks_exact_mut(embedding).enumerate() {
        for (pair, frequency) in row.chunks_exact_mut(2).zip(frequencies(width)) {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            pair[0] = (amplitude * sin) as f32;
            pair[1] = (amplitude * cos) as f32;
        }
    }
}

/// Sets the position columns of a fresh layer's queries (C, C) to those of its keys, rotated by the
/// offset of each head.
pub(super) fn point_heads(config: &ElectraConfig, layer: usize, key: &[f32], query: &mut [f32]) {
    let (columns, width, size) = (config.hidden_size, position_width(config), config.head_size());
    for (index, (key, query)) in key.chunks_exact(columns).zip(query.chunks_exact_mut(columns)).enumerate() {
        let head = layer * config.num_attention_heads + index / size;
        let offset = OFFSETS[head % OFFSETS.len()];
        let pairs = key[..width].chunks_exact(2).zip(query[..width].chunks_exact_mut(2));
        for ((key, query), frequency) in pairs.zip(frequencies(width)) {
            // (sin, cos) of p ω times this is that of (p + offset) ω times the key's row.
            let (sin, cos) = (offset * frequency).sin_cos();
            let (a, b) = (f64::from(key[0]), f64::from(key[1]));
            query[0] = (a * cos - b * sin) as f32;
            query[1] = (a * sin + b * cos) as f32;
        }
    }
}

/// Normal numbers.
fn normal((philox, number): (Philox, u32), deviation: f64, target: &mut [f32]) {
    target.par_chunks_mut(4).with_min_len(1 << 12).enumerate().for_each(|(block, four)| {
        let words = philox.block(block as u32, number, Site::INIT, 0);
        for (x, z) in four.iter_mut().zip(normals(words)) {
            *x = (deviation * z) as f32;
        }
    });
}

/// Four independent standard normal numbers (Box & Muller 1958).
fn normals(words: [u32; 4]) -> [f64; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * f64::from(open_unit(a)).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * f64::from(open_unit(b))).sin_cos();
        (radius * cos, radius * sin)
    };
    let ((a, b), (c, d)) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "electra.encoder.layer.0.attention.self.query.weight";
    const KEY: &str = "electra.encoder.layer.0.attention.self.key.weight";

    fn tensor(name: &str, shape: [usize; 2], config: &ElectraConfig, number: u32) -> Vec<f32> {
        let mut target = vec![0.0; shape[0] * shape[1]];
        fresh((name, &shape), config, Init::Local, (Philox::new(5), number), &mut target);
        target
    }

    fn product(matrix: &[f32], x: &[f64]) -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
        matrix.chunks_exact(x.len()).map(row).collect()
    }

    /// By the definition of attention, from the embeddings of a row of different words: logits are
    /// largest at the offset of the head, and there about as large as they are meant to be.
    #[test]
    fn heads_attend_to_their_offsets() {
        let config = ElectraConfig {
            vocab_size: 100,
            hidden_size: 256,
            embedding_size: 256,
            max_position_embeddings: 64,
            ..ElectraConfig::default()
        };
        let (c, size) = (config.hidden_size, config.head_size());
        let words = tensor(WORD, [100, c], &config, 0);
        let positions = tensor(POSITION, [64, c], &config, 1);
        let key = tensor(KEY, [c, c], &config, 3);
        let mut query = tensor(QUERY, [c, c], &config, 2);
        point_heads(&config, 0, &key, &mut query);
        let hidden = |at: usize| -> Vec<f64> {
            let row = |table: &[f32], row: usize| table[row * c..][..c].to_vec();
            let (word, position) = (row(&words, 1 + at), row(&positions, at));
            let sum: Vec<f64> =
                word.iter().zip(position).map(|(&w, p)| f64::from(w) + f64::from(p)).collect();
            let mean = sum.iter().sum::<f64>() / c as f64;
            let variance = sum.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
            sum.iter().map(|x| (x - mean) / variance.sqrt()).collect()
        };
        let (keys, queries): (Vec<_>, Vec<_>) =
            (0..64).map(|at| (product(&key, &hidden(at)), product(&query, &hidden(at)))).unzip();
        for (head, offset) in OFFSETS.into_iter().enumerate() {
            let part = |x: &[f64]| x[head * size..][..size].to_vec();
            let logit = |at: usize, other: usize| {
                let products = part(&queries[at]).into_iter().zip(part(&keys[other]));
                products.map(|(q, k)| q * k).sum::<f64>() / (size as f64).sqrt()
            };
            let (mut found, mut peak) = (0, 0.0);
            for at in 4..60 {
                let best = (0..64).max_by(|&a, &b| logit(at, a).total_cmp(&logit(at, b))).unwrap();
                let wanted = (at as f64 + offset) as usize;
                found += usize::from(best == wanted);
                peak += logit(at, wanted) / 56.0;
            }
            assert!(found > 45, "head {head}: {found} of 56");
            assert!((0.5 * PEAK..1.5 * PEAK).contains(&peak), "head {head}: {peak}");
        }
    }

    #[test]
    fn parts_have_the_stated_variances() {
        let config = ElectraConfig { vocab_size: 2000, pad_token_id: Some(7), ..ElectraConfig::default() };
        let width = position_width(&config);
        assert_eq!(width, 32);
        let words = tensor(WORD, [2000, 128], &config, 0);
        let of = |values: &mut dyn Iterator<Item = f32>| -> f64 {
            let all: Vec<f64> = values.map(f64::from).collect();
            (all.iter().map(|x| x * x).sum::<f64>() / all.len() as f64).sqrt()
        };
        let rows = || words.chunks_exact(128);
        assert_eq!(of(&mut rows().flat_map(|row| row[..width].iter().copied())), 0.0);
        let words = of(&mut rows().flat_map(|row| row[width..].iter().copied()));
        approx::assert_relative_eq!(words, 0.2, max_relative = 0.02);
        let positions = tensor(POSITION, [512, 128], &config, 1);
        let energy = of(&mut positions.iter().copied()).powi(2) * 128.0;
        approx::assert_relative_eq!(energy, 0.04 * 96.0, max_relative = 1e-3);
        let norm = tensor(HEAD_NORM, [1, 128], &config, 2);
        assert!(norm.iter().all(|&x| x == 0.1));
        let head = tensor("discriminator_predictions.dense.weight", [256, 256], &config, 3);
        let head = of(&mut head.iter().copied());
        approx::assert_relative_eq!(head, 0.7 / 16.0, max_relative = 0.02);
        // The projection hands positions on as they are.
        let projection = tensor(PROJECTION, [256, 128], &config, 4);
        for (index, row) in projection.chunks_exact(128).enumerate() {
            let unit = |column: usize| if index == column { 1.0 } else { 0.0 };
            assert!(row[..width].iter().enumerate().all(|(column, &x)| x == unit(column)), "row {index}");
        }
    }
}
