//! Ranges and ticks of an axis.

/// A range of values, shown evenly or by their logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) log: bool,
}

impl Scale {
    /// Around all of `values`, with a little room; from zero where that is asked.
    pub(super) fn around(values: impl Iterator<Item = f64>, from_zero: bool, log: bool) -> Self {
        let usable = |x: &f64| x.abs() < 1e300 && (!log || *x > 0.0);
        let (mut low, mut high) = values
            .filter(usable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        if low > high {
            (low, high) = if log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if log {
            let (low, high) = if low == high { (low / 2.0, high * 2.0) } else { (low * 0.9, high * 1.1) };
            return Self { low, high, log };
        }
        if from_zero {
            low = low.min(0.0);
        }
        // Sums of equal values differ in their last bits.
        let apart = high - low > 1e-9 * high.abs().max(low.abs());
        let room = if apart { 0.05 * (high - low) } else { (0.1 * high.abs()).max(1e-9) };
        Self { low: if from_zero && low == 0.0 { 0.0 } else { low - room }, high: high + room, log }
    }

    /// Where a value lies: 0 at the low end, 1 at the high; what is beyond lies on the edge.
    pub(super) fn place(&self, x: f64) -> f64 {
        let share = if self.log {
            (x.max(self.low).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (x - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values within the range, about `wanted` of them.
    pub(super) fn ticks(&self, wanted: usize) -> Vec<f64> {
        let ticks = if self.log { self.log_ticks(wanted) } else { Vec::new() };
        if ticks.len() >= 2 {
            return ticks;
        }
        let raw = (self.high - self.low) / wanted as f64;
        let power = 10f64.powf(raw.log10().floor());
        let off = |step: &f64| (step / raw).ln().abs();
        let steps = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
        let step = steps.into_iter().min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(power);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }

    /// The labels of `ticks`; those of even steps are alike in form.
    pub(super) fn labels(&self, ticks: &[f64]) -> Vec<String> {
        if self.log { ticks.iter().flat_map(|tick| labels(&[*tick])).collect() } else { labels(ticks) }
    }

    fn log_ticks(&self, wanted: usize) -> Vec<f64> {
        let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let within = |x: &f64| (self.low..=self.high).contains(x);
        let of = |digits: &[f64]| -> Vec<f64> {
            powers
                .clone()
                .flat_map(|p| digits.iter().map(move |d| d * 10f64.powi(p)))
                .filter(within)
                .collect()
        };
        let all = of(&[1.0, 2.0, 5.0]);
        if all.len() <= wanted + 2 { all } else { of(&[1.0]) }
    }
}

fn labels(ticks: &[f64]) -> Vec<String> {
    let largest = ticks.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let step = ticks.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    let form = |&x: &f64| match largest {
        _ if x == 0.0 => "0".to_owned(),
        1e9.. => trimmed(x / 1e9) + "G",
        1e6.. => trimmed(x / 1e6) + "M",
        1e4.. => trimmed(x / 1e3) + "k",
        ..0.01 => format!("{x:.1e}").replace(".0e", "e").replace('-', "−"),
        _ if ticks.len() == 1 => trimmed(x),
        _ => format!("{x:.*}", (-(step * 1.001).log10().floor()).max(0.0) as usize),
    };
    ticks.iter().map(form).collect()
}

fn trimmed(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Scale { low: 0.0, high: 1523.0, log: false };
        assert_eq!(scale.ticks(4), [0.0, 500.0, 1000.0, 1500.0]);
        let scale = Scale { low: 5.93, high: 9.1, log: false };
        assert_eq!(labels(&scale.ticks(4)), ["6", "7", "8", "9"]);
        let scale = Scale { low: 0.0, high: 0.19, log: false };
        assert_eq!(labels(&scale.ticks(4)), ["0", "0.05", "0.10", "0.15"]);
        let scale = Scale { low: 0.4, high: 45.0, log: true };
        assert_eq!(scale.ticks(4), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(labels(&[0.0, 2e6, 4e6]), ["0", "2M", "4M"]);
        assert_eq!(labels(&[0.0, 2.5e-4, 5e-4]), ["0", "2.5e−4", "5e−4"]);
    }

    #[test]
    fn a_range_of_nothing_or_of_one_value_is_still_a_range() {
        let nearly = vec![0.86, 0.86 + f64::EPSILON];
        for values in [vec![], vec![f64::NAN], vec![3.0], vec![0.0], vec![-2.0, -2.0], nearly] {
            for (zero, log) in [(false, false), (true, false), (false, true)] {
                let scale = Scale::around(values.iter().copied(), zero, log);
                assert!(scale.low < scale.high && scale.high.is_finite(), "{values:?} {scale:?}");
                let labels = scale.labels(&scale.ticks(4));
                assert!(!labels.is_empty() && labels.iter().all(|l| l.len() < 12), "{values:?} {labels:?}");
                assert!(values.iter().all(|&x| x.is_nan() || (0.0..=1.0).contains(&scale.place(x))));
            }
        }
    }
}
