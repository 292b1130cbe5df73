//! Losses and counts of a forward pass.

use super::Cpu;
use super::real::Real;
use super::working::{Full, Working};
use crate::backend::{Float, Metrics, SCORE_BINS, score_bin};

pub(super) fn metrics<X: Working>(op: Metrics<'_, Cpu<X>>) {
    let mean = |nll: &[Full<X>], weight: &[Full<X>]| {
        // Starts at 0, because `sum` of no numbers is -0.
        Full::<X>::of(nll.iter().zip(weight).fold(0.0, |sum, (x, w)| sum + x.to_f64() * w.to_f64()))
    };
    op.losses[0] = mean(op.mlm_nll, op.mlm_weight);
    op.losses[1] = mean(op.rtd_nll, op.rtd_weight);
    for ((best, target), &weight) in op.best.iter().zip(op.targets).zip(op.mlm_weight) {
        if weight > Full::<X>::ZERO {
            op.counts[0] += 1;
            op.counts[1] += u64::from(best == target);
        }
    }
    let scored = op.logits.chunks_exact(op.labels).zip(op.is_fake).zip(op.rtd_weight);
    for ((logits, &fake), _) in scored.filter(|&(_, &weight)| weight > Full::<X>::ZERO) {
        let score = match logits {
            [real, fake] => fake.to_f64() - real.to_f64(),
            _ => logits[0].to_f64(),
        };
        op.counts[2 + fake as usize * SCORE_BINS + score_bin(score as f32)] += 1;
    }
}
