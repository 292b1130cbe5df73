//! The optimizer over flat buffers.

use rayon::prelude::*;

use super::Cpu;
use super::real::{Real, dot, vectorized};
use super::working::{Full, Working};
use crate::backend::{AdamW, Float};

/// Elements of a unit of work: fixed, so that sums do not depend on the threads.
const CHUNK: usize = 1 << 16;

pub(super) fn norm_squared<R: Real>(x: &[R], out: &mut [R]) {
    let partials: Vec<f64> = x.par_chunks(CHUNK).map(|x| dot(x, x).to_f64()).collect();
    out[0] = R::of(partials.iter().sum());
}

/// The constants of one update.
#[derive(Clone, Copy)]
struct Update<R> {
    clip: R,
    beta1: R,
    beta2: R,
    eps: R,
    /// lr, divided by 1 - β₁ᵗ with bias correction.
    rate: R,
    /// 1 / √(1 - β₂ᵗ), or 1.
    root: R,
    /// Subtracted times p.
    decay: R,
}

pub(super) fn adamw<X: Working>(op: AdamW<'_, Cpu<X>>) {
    let norm = op.norm_squared[0].to_f64().sqrt();
    if !norm.is_finite() {
        op.grads.fill(Full::<X>::ZERO);
        return;
    }
    let clip = op.rule.max_norm.filter(|&limit| norm > limit).map_or(1.0, |limit| limit / norm);
    let (rate, root) = match op.rule.bias_correction {
        Some(t) => {
            let t = t as f64;
            (op.rule.lr / (1.0 - op.rule.beta1.powf(t)), 1.0 / (1.0 - op.rule.beta2.powf(t)).sqrt())
        }
        None => (op.rule.lr, 1.0),
    };
    let update = Update {
        clip: Full::<X>::of(clip),
        beta1: Full::<X>::of(op.rule.beta1),
        beta2: Full::<X>::of(op.rule.beta2),
        eps: Full::<X>::of(op.rule.eps),
        rate: Full::<X>::of(rate),
        root: Full::<X>::of(root),
        decay: Full::<X>::of(op.rule.lr * op.rule.weight_decay),
    };
    // Both variants subtract lr · wd · p of the old p: decoupled decay and the paper's differ in bias correction only.
    op.grads
        .par_chunks_mut(CHUNK)
        .zip(op.m.par_chunks_mut(CHUNK).zip(op.v.par_chunks_mut(CHUNK)))
        .zip(op.master.par_chunks_mut(CHUNK).zip(op.working.par_chunks_mut(CHUNK)))
        .enumerate()
        .for_each(|(index, ((g, (m, v)), (p, w)))| {
            let start = index * CHUNK;
            let mut at = 0;
            while at < g.len() {
                let (end, decays) = run_end(op.decayed, start + at, start + g.len());
                let part = at..end - start;
                at = part.end;
                let update = Update { decay: if decays { update.decay } else { Full::<X>::ZERO }, ..update };
                vectorized(
                    #[inline(always)]
                    || {
                        let part = || part.clone();
                        apply(
                            update,
                            &mut g[part()],
                            &mut m[part()],
                            &mut v[part()],
                            &mut p[part()],
                            &mut w[part()],
                        );
                    },
                );
            }
        });
}

/// Where the run of equal decay that holds `at` ends (`limit` at the latest), and whether it decays.
fn run_end(decayed: &[std::ops::Range<usize>], at: usize, limit: usize) -> (usize, bool) {
    match decayed.iter().find(|range| range.end > at) {
        Some(range) if range.start <= at => (range.end.min(limit), true),
        Some(range) => (range.start.min(limit), false),
        None => (limit, false),
    }
}

#[inline(always)]
fn apply<X: Working>(
    u: Update<Full<X>>,
    g: &mut [Full<X>],
    m: &mut [Full<X>],
    v: &mut [Full<X>],
    p: &mut [Full<X>],
    w: &mut [X],
) {
    let n = g.len();
    let (m, v, p, w) = (&mut m[..n], &mut v[..n], &mut p[..n], &mut w[..n]);
    for i in 0..n {
        let grad = g[i] * u.clip;
        g[i] = Full::<X>::ZERO;
        m[i] = u.beta1 * m[i] + (Full::<X>::ONE - u.beta1) * grad;
        v[i] = u.beta2 * v[i] + (Full::<X>::ONE - u.beta2) * grad * grad;
        p[i] = p[i] - u.decay * p[i] - u.rate * m[i] / (v[i].sqrt() * u.root + u.eps);
        w[i] = X::round(p[i]);
    }
}
