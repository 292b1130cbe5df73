//! Losses and counts of a forward pass.

use super::Cpu;
use super::real::Real;
use super::working::{Full, Working};
use crate::backend::{Float, GENERATOR_COUNTS, Metrics, SCORE_BINS, loss_parts, score_bin};

pub(super) fn metrics<X: Working>(op: Metrics<'_, Cpu<X>>) {
    let mean = |nll: &[Full<X>], weight: &[Full<X>]| {
        // Starts at 0, because `sum` of no numbers is -0.
        Full::<X>::of(nll.iter().zip(weight).fold(0.0, |sum, (x, w)| sum + x.to_f64() * w.to_f64()))
    };
    op.losses[0] = mean(op.mlm_nll, op.mlm_weight);
    op.losses[1] = mean(op.rtd_nll, op.rtd_weight);
    for (slot, (best, target)) in op.best.iter().zip(op.targets).enumerate() {
        let nll = op.mlm_nll[slot].to_f64() as f32;
        if op.mlm_weight[slot] <= Full::<X>::ZERO || !nll.is_finite() {
            continue;
        }
        let hit = u64::from(best == target);
        let mut counted = [1, hit, 0, 0, 0, 0];
        if op.masked_ids[op.masked_index[slot] as usize] == op.special.mask {
            let [nats, rest] = loss_parts(nll);
            counted = [1, hit, 1, hit, nats, rest];
        }
        op.counts.iter_mut().zip(counted).for_each(|(sum, count)| *sum += count);
    }
    let scored = op.logits.chunks_exact(op.labels).zip(op.is_fake).zip(op.ids).zip(op.rtd_weight);
    for (((logits, &fake), &id), _) in scored.filter(|&(_, &weight)| weight > Full::<X>::ZERO) {
        let score = match logits {
            [real, fake] => fake.to_f64() - real.to_f64(),
            _ => logits[0].to_f64(),
        };
        let histogram = match (fake, op.special.never.contains(&id)) {
            (1, _) => 1,
            (_, false) => 0,
            (_, true) => 2,
        };
        op.counts[GENERATOR_COUNTS + histogram * SCORE_BINS + score_bin(score as f32)] += 1;
    }
}
