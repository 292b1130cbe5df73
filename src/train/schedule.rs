//! Learning rates: linear warm-up, linear decay to 0.

use serde::{Deserialize, Serialize};

/// Where warm-up and decay start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// google-research/electra's: decay runs from the first step, warm-up multiplies it, the first update has rate 0.
    #[default]
    Electra,
    /// Decay starts when warm-up ends, and the first update has rate peak / warmup: the usual PyTorch form.
    Linear,
}

impl Schedule {
    /// Rate of update `step` (counted from 0) of `steps`.
    pub fn rate(self, peak: f64, step: u64, warmup: u64, steps: u64) -> f64 {
        let (t, w, n) = (step as f64, warmup as f64, steps as f64);
        let factor = match self {
            Self::Electra => {
                let rise = if warmup == 0 { 1.0 } else { (t / w).min(1.0) };
                rise * (1.0 - t / n)
            }
            Self::Linear => {
                let rise = if warmup == 0 { 1.0 } else { (t + 1.0) / w };
                rise.min((n - t) / (n - w).max(1.0))
            }
        };
        peak * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule::{Electra, Linear};

    #[test]
    fn rates_by_hand() {
        let near = |a: f64, b: f64| approx::assert_abs_diff_eq!(a, b, epsilon = 1e-15);
        near(Electra.rate(1.0, 0, 10, 100), 0.0);
        near(Electra.rate(1.0, 5, 10, 100), 0.5 * 0.95);
        near(Electra.rate(1.0, 10, 10, 100), 0.9);
        near(Electra.rate(2.0, 99, 10, 100), 0.02);
        near(Linear.rate(1.0, 0, 10, 100), 0.1);
        near(Linear.rate(1.0, 9, 10, 100), 1.0);
        near(Linear.rate(1.0, 10, 10, 100), 1.0);
        near(Linear.rate(1.0, 55, 10, 100), 0.5);
        near(Linear.rate(1.0, 0, 0, 4), 1.0);
        near(Linear.rate(1.0, 3, 0, 4), 0.25);
        near(Linear.rate(1.0, 200, 10, 100), 0.0);
    }
}
