//! The values that fresh weights start from.
//!
//! `bert` is what google-research/electra and `transformers` draw: a normal distribution with the
//! standard deviation `initializer_range` (0.02) for every matrix and table. With it small networks
//! spend millions of tokens on the plateau of word frequencies, where the loss does not depend on the
//! context yet, for two reasons that can be measured:
//!
//! * An update of Adam moves every weight by about the learning rate. Embeddings of 0.02 are overrun
//!   by it within some ten steps. What is left of the position embeddings under the embedding of
//!   \[MASK\], which all masked positions push in the same direction, is too little to find a
//!   neighbour by.
//! * All positions receive almost equal attention, so that what a token hears from its neighbours is
//!   an average over the row.
//!
//! `local` begins with the same architecture at another point. Its steps are of one kind:
//!
//! * Word and type embeddings are ten times larger, and the LayerNorm of the generator's head is ten
//!   times smaller, so that logits have the usual scale.
//! * Position embeddings are sinusoids (Vaswani et al. 2017) in a subspace of P dimensions, which
//!   words leave free. The two parts have equal variance. A projection of the embeddings keeps the
//!   subspace as it is.
//! * In that subspace queries are the keys' matrix times the rotation that moves a position by δ, so
//!   that a head attends to the token at the offset δ: -1, 1, -2, 2 in turn over heads and layers.
//!   (Trockman & Kolter 2023 begin with queries and keys that are correlated in a similar way.)
//! * The discriminator's head keeps the variance of its inputs better: its matrices have a standard
//!   deviation of 0.7 / √C. With 0.02 its output hardly depends on the token at first, and what little
//!   there is gets suppressed as noise before it tells replaced tokens from original ones.
//!
//! All are ordinary values of ordinary parameters, which training changes as it likes: models load
//! everywhere as before.

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
