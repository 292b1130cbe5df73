//! Replaced token detection: the corrupted input and the discriminator's two losses.

use super::Cpu;
use super::real::Real;
use super::working::{Full, Working};
use crate::backend::{Corrupt, RtdLoss};

pub(super) fn corrupt<X: Working>(op: Corrupt<'_, Cpu<X>>) {
    op.corrupted.copy_from_slice(op.ids);
    op.is_fake.fill(0);
    for (&position, &sample) in op.masked_index.iter().zip(op.sampled) {
        let position = position as usize;
        let Some(&original) = op.ids.get(position) else { continue };
        op.corrupted[position] = sample;
        op.is_fake[position] = u32::from(sample != original);
    }
}

/// ln(1 + eˣ) without overflow, and without losing small values: x⁺ + ln(1 + e^-|x|).
fn softplus<R: Real>(x: R) -> R {
    x.max(R::ZERO) + R::of((-x.abs()).to_f64().exp().ln_1p())
}

/// 1 / (1 + e⁻ˣ)
fn sigmoid<R: Real>(x: R) -> R {
    R::of(1.0 / (1.0 + (-x.to_f64()).exp()))
}

/// The gradient of a loss, or no number if that is not finite and counts.
fn spoiled<R: Real>(nll: R, weight: R, gradient: R) -> R {
    if weight == R::ZERO || nll.to_f64().is_finite() { gradient } else { R::of(f64::NAN) }
}

pub(super) fn rtd_loss<X: Working>(op: RtdLoss<'_, Cpu<X>>) {
    for (n, (&fake, &weight)) in op.is_fake.iter().zip(op.weight).enumerate() {
        let scale = weight * Full::<X>::of(op.scale);
        let target = Full::<X>::of(f64::from(fake));
        match op.labels {
            1 => {
                let x = op.logits[n].full();
                op.nll[n] = softplus(x) - target * x;
                op.dlogits[n] = X::round(spoiled(op.nll[n], weight, scale * (sigmoid(x) - target)));
            }
            _ => {
                // Softmax over two labels is the logistic function of their difference.
                let x = op.logits[2 * n + 1].full() - op.logits[2 * n].full();
                op.nll[n] = softplus(x) - target * x;
                let gradient = spoiled(op.nll[n], weight, scale * (sigmoid(x) - target));
                (op.dlogits[2 * n], op.dlogits[2 * n + 1]) = (X::round(-gradient), X::round(gradient));
            }
        }
    }
}
