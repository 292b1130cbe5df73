//! What the log shows between two of its lines, and which losses are out of the ordinary. Both are kept in checkpoints,
//! so that a continued run writes the lines that it would have written.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::metrics::Metrics;
use crate::model::Losses;

/// Losses that a loss is compared with.
const RECENT: usize = 128;
/// Fewer say nothing about what is ordinary.
const FEWEST: usize = 32;
/// Standard deviations above the mean from which on a loss is a spike.
const SPIKE: f64 = 6.0;

/// Sums since the last line of the log, over steps whose loss and gradients were finite; the counts are of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    losses: Losses,
    /// As [`Metrics::counts`](crate::backend::Metrics::counts); empty before the first.
    counts: Vec<u64>,
    grad_norm: f64,
    /// Tokens read.
    pub tokens: u64,
    /// Steps summed.
    steps: u64,
    /// Steps that were not, because something was not finite.
    pub skipped: u64,
    /// The highest spike, in standard deviations.
    pub spike: Option<f64>,
}

impl Window {
    /// One healthy step, and how far its loss stands out if it does.
    pub fn add(&mut self, losses: &Losses, grad_norm: f64, spike: Option<f64>) {
        self.losses.add(losses, 1.0);
        self.grad_norm += grad_norm;
        self.steps += 1;
        self.spike = [self.spike, spike].into_iter().flatten().reduce(f64::max);
    }

    /// What the device has counted meanwhile.
    pub fn add_counts(&mut self, counts: &[u64]) {
        add_counts(&mut self.counts, counts);
    }

    /// Means of the metrics and of the gradient norm; not numbers if no step was healthy.
    pub fn means(&self) -> (Metrics, f64) {
        let mut means = Losses::default();
        means.add(&self.losses, 1.0 / self.steps as f64);
        (Metrics::new(means, &self.counts), self.grad_norm / self.steps as f64)
    }
}

/// Adds counts to sums. Sums of another length are from a checkpoint of an earlier version, whose
/// counts had another meaning: they are dropped, so that the next line is of the steps since.
pub fn add_counts(sums: &mut Vec<u64>, counts: &[u64]) {
    if sums.len() != counts.len() {
        sums.clear();
        sums.resize(counts.len(), 0);
    }
    sums.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += count);
}

/// The losses of the last steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentLosses(VecDeque<f64>);

impl RecentLosses {
    /// Takes in one step's loss. By how many standard deviations it exceeds the mean of those before, if that makes it a
    /// spike.
    pub fn judge(&mut self, loss: f64) -> Option<f64> {
        let n = self.0.len() as f64;
        let mean = self.0.iter().sum::<f64>() / n;
        let variance = self.0.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let z = (loss - mean) / variance.sqrt();
        let spike = (self.0.len() >= FEWEST && z.is_finite() && z > SPIKE).then_some(z);
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(loss);
        spike
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_stands_out_and_what_is_ordinary_does_not() {
        let mut losses = RecentLosses::default();
        let ordinary = |i: u32| 10.0 + f64::from(i % 5) * 0.1;
        for i in 0..FEWEST as u32 - 1 {
            assert_eq!(losses.judge(ordinary(i)), None);
        }
        assert_eq!(losses.clone().judge(1e9), None, "too few to compare with");
        for i in 0..300 {
            assert_eq!(losses.judge(ordinary(i)), None);
        }
        assert_eq!(losses.0.len(), RECENT);
        assert_eq!(losses.clone().judge(1.0), None, "a fall is no spike");
        let z = losses.judge(11.5).unwrap();
        // Mean 10.2 and standard deviation 0.1 √2 of the five values.
        approx::assert_abs_diff_eq!(z, 1.3 / 0.02f64.sqrt(), epsilon = 0.1);
        assert!(losses.judge(11.5).unwrap() < z, "the first spike widens what is ordinary");
    }

    #[test]
    fn both_survive_a_checkpoint_to_the_last_bit() {
        let (mut window, mut losses) = (Window::default(), RecentLosses::default());
        for i in 0..50 {
            let loss = (f64::from(i) * 0.7).sin().exp() / 3.0;
            window.add(
                &Losses { loss, gen_loss: loss / 7.0, disc_loss: loss * 3.0 },
                loss * 1e-7,
                Some(loss),
            );
            losses.judge(loss);
            window.add_counts(&[i as u64, 1 << 40]);
        }
        let text = serde_json::to_string(&(&window, &losses)).unwrap();
        assert_eq!(serde_json::from_str::<(Window, RecentLosses)>(&text).unwrap(), (window, losses));
    }

    #[test]
    fn counts_of_an_earlier_version_are_dropped() {
        use crate::backend::{COUNTS, SCORE_BINS};
        let mut window = Window { counts: vec![7; 2 + 2 * SCORE_BINS], ..Window::default() };
        window.add(&Losses { loss: 3.0, gen_loss: 1.0, disc_loss: 2.0 }, 0.5, None);
        assert_eq!(window.means().0.gen_acc, 0.0, "nothing is known before the first new counts");
        let mut counts = vec![0; COUNTS];
        counts[..2].copy_from_slice(&[4, 3]);
        window.add_counts(&counts);
        assert_eq!(window.means().0.gen_acc, 0.75);
        window.add_counts(&counts);
        assert_eq!((window.counts[0], window.counts.len()), (8, COUNTS));
    }

    #[test]
    fn means_of_nothing_are_not_numbers() {
        let (metrics, norm) = Window::default().means();
        assert!(metrics.loss.is_nan() && norm.is_nan());
    }
}
