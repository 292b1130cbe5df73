//! The generator's loss: cross-entropy, its gradient and a Gumbel sample of each masked position in one visit of its
//! row of logits (122 KB for 30,522 tokens: the second and third sweep find it in the cache).

use rayon::prelude::*;

use super::Cpu;
use super::gemm::Scratch;
use super::real::{Real, exponentials, maximum, vectorized};
use super::working::{Full, Working, widen};
use crate::backend::{Dropout, Float, MlmLoss};
use crate::rng::{LANES, open_unit};

/// Numbers that [`Philox::blocks`](crate::rng::Philox::blocks) makes at once.
const WORDS: usize = 4 * LANES;

pub(super) fn mlm_loss<X: Working>(op: MlmLoss<'_, Cpu<X>>) {
    let vocabulary = op.vocabulary;
    debug_assert_eq!(op.pitch, vocabulary, "rows are not padded here");
    let inverse_temperature = Full::<X>::of(1.0 / op.temperature);
    let mut unused = Vec::new();
    let sampling = op.sampled.is_some();
    let sampled = match op.sampled {
        Some(sampled) => sampled,
        // Samples are given: zip needs as many items.
        None => {
            unused.resize(op.targets.len(), 0);
            &mut unused
        }
    };
    op.logits
        .par_chunks_exact_mut(vocabulary)
        .zip(op.nll.par_iter_mut().zip(op.best.par_iter_mut()).zip(sampled.par_iter_mut()))
        .enumerate()
        .with_max_len(4)
        .for_each(|(i, (logits, ((nll, best), sampled)))| {
            let target = op.targets[i] as usize;
            let mut row = Scratch::new(vocabulary);
            vectorized(
                #[inline(always)]
                || {
                    widen(logits, &mut row);
                    let highest = maximum(&row);
                    *best = row.iter().position(|&x| x == highest).unwrap_or(0) as u32;
                    if sampling {
                        let forbidden = op.disallow_correct.then_some(target);
                        *sampled =
                            gumbel_row(&row, inverse_temperature, forbidden, op.noise, op.masked_index[i]);
                    }
                    let target_logit = row[target];
                    let total = exponentials(&mut row, highest);
                    *nll = highest + total.ln() - target_logit;
                    if op.gradient {
                        let scale = op.weight[i] * Full::<X>::of(op.scale);
                        let counts = scale == Full::<X>::ZERO || nll.to_f64().is_finite();
                        let factor = if counts { scale / total } else { Full::<X>::of(f64::NAN) };
                        row.iter_mut().for_each(|x| *x *= factor);
                        row[target] -= scale;
                        X::narrow(&row, logits);
                    }
                },
            );
        });
}

/// arg-max of logits / temperature + Gumbel noise, with the first of equals.
#[inline(always)]
fn gumbel_row<R: Real>(
    logits: &[R],
    inverse_temperature: R,
    forbidden: Option<usize>,
    noise: Dropout,
    row: u32,
) -> u32 {
    let row = noise.clock.row0.wrapping_add(row);
    let tiny = R::of(1e-9);
    let (mut words, mut scores) = ([0; WORDS], [R::NEG_INFINITY; WORDS]);
    let (mut best, mut best_score) = (0, R::NEG_INFINITY);
    for (chunk, logits) in logits.chunks(WORDS).enumerate() {
        noise.rng.blocks::<false>((chunk * LANES) as u32, row, noise.site, noise.clock.step, &mut words);
        let scores = &mut scores[..logits.len()];
        for ((score, &logit), &word) in scores.iter_mut().zip(logits).zip(&words) {
            let u = R::of_f32(open_unit(word));
            let gumbel = -(-(u + tiny).ln() + tiny).ln();
            *score = logit * inverse_temperature + gumbel;
        }
        if let Some(target) =
            forbidden.and_then(|t| t.checked_sub(chunk * WORDS)).filter(|&t| t < scores.len())
        {
            scores[target] = R::NEG_INFINITY;
        }
        let highest = maximum(scores);
        if highest > best_score {
            best_score = highest;
            best = chunk * WORDS + scores.iter().position(|&x| x == highest).unwrap_or(0);
        }
    }
    best as u32
}
