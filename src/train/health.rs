//! Whether a run learns: a discriminator that gives every token the same score, and a generator
//! that has not left the plateau of word frequencies. The losses of such runs look ordinary.
//!
//! Each quarter of a run is judged as a whole, from the second on: before that every run lies on
//! the plateau. Where a quarter holds too little to tell, nothing is said.

use serde::{Deserialize, Serialize};

use super::baseline::Baseline;
use super::metrics::Metrics;
use super::window::add_counts;
use crate::model::Losses;

/// Shorter runs are not judged.
const FEWEST_STEPS: u64 = 200;
/// Positions showing \[MASK\]: the mean loss of fewer scatters by more than what the plateau is
/// told by.
const FEWEST_MASKED: u64 = 5000;
/// A standard error of the AUC above which the scores are not judged, about 200 replaced tokens.
const LARGEST_ERROR: f64 = 0.02;
/// An AUC that much above ½, or three standard errors if these are more, has been learnt from
/// context.
const LEAST_AUC: f64 = 0.02;
/// Scores with a smaller standard deviation are constant, whatever their order: e to this power
/// changes the odds by a twentieth.
const LEAST_DEVIATION: f64 = 0.05;

/// Something that a run does not learn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// The discriminator does not tell replaced tokens from others.
    Discriminator {
        /// Its AUC over the tokens that could have been masked.
        auc: f64,
        /// The standard deviation of its scores there.
        deviation: f64,
    },
    /// The generator predicts no better than by word frequencies.
    Generator {
        /// Its loss at the positions that show \[MASK\].
        loss: f64,
        /// That of word frequencies.
        unigram_loss: f64,
    },
}

/// What was found, first of the discriminator, then of the generator.
pub type Findings = [Option<Finding>; 2];

impl Finding {
    /// What it is, and what to change.
    pub fn in_words(&self) -> String {
        match self {
            Self::Discriminator { auc, deviation } => format!(
                "the discriminator does not tell replaced tokens from others: AUC {auc:.3} (chance is 0.5), standard \
                 deviation of its scores {deviation:.3}. Try --recipe short or --mlm-first 1 if it is not in use, larger \
                 batches, more --steps, shorter rows (--seq-len) or another --learning-rate"
            ),
            Self::Generator { loss, unigram_loss } => format!(
                "the generator has learnt no more than word frequencies: its loss at [MASK] is {loss:.2}, theirs is \
                 {unigram_loss:.2}. Try --recipe short or --init local if it is not in use, larger batches, more --steps, \
                 shorter rows (--seq-len), a smaller vocabulary (--vocab-size) or another --learning-rate"
            ),
        }
    }
}

/// Which networks are trained, so that the others are not judged.
#[derive(Clone, Copy, Debug)]
pub struct Trained {
    /// Whether the generator's loss has a weight.
    pub generator: bool,
    /// Whether the discriminator's loss has a weight.
    pub discriminator: bool,
}

/// Judges counts as [`Metrics::counts`](crate::backend::Metrics::counts) has them.
pub fn judge(counts: &[u64], baseline: Option<&Baseline>, trained: Trained) -> Findings {
    let m = Metrics::new(Losses::default(), counts);
    let margin = LEAST_AUC.max(3.0 * m.disc_auc_error);
    let is_dead = m.disc_auc < 0.5 + margin || m.disc_score_std < LEAST_DEVIATION;
    let discriminator = (trained.discriminator && m.disc_auc_error <= LARGEST_ERROR && is_dead)
        .then_some(Finding::Discriminator { auc: m.disc_auc, deviation: m.disc_score_std });
    let masked = counts.get(2).copied().unwrap_or(0);
    let behind = baseline.filter(|baseline| {
        trained.generator && masked >= FEWEST_MASKED && !baseline.is_left_behind(m.gen_mask_loss)
    });
    let generator = behind
        .map(|baseline| Finding::Generator { loss: m.gen_mask_loss, unigram_loss: baseline.unigram_loss });
    [discriminator, generator]
}

/// Counts of the quarter that a run is in, and what was said about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    counts: Vec<u64>,
    quarter: u64,
    /// Findings that a warning has told, which the run does not repeat.
    warned: [bool; 2],
    /// Those of the last quarter that was judged.
    #[serde(default)]
    pub last: Findings,
}

impl Health {
    /// What the device has counted meanwhile.
    pub fn add_counts(&mut self, counts: &[u64]) {
        add_counts(&mut self.counts, counts);
    }

    /// After `step` of `steps` steps: judges a quarter that has ended. Returns what is to be told
    /// for the first time.
    pub fn check(
        &mut self,
        (step, steps): (u64, u64),
        baseline: Option<&Baseline>,
        trained: Trained,
    ) -> Findings {
        let quarter = (4 * step).checked_div(steps).unwrap_or(0);
        if quarter <= self.quarter {
            return [None; 2];
        }
        self.quarter = quarter;
        let counts = std::mem::take(&mut self.counts);
        if quarter < 2 || step < FEWEST_STEPS {
            return [None; 2];
        }
        self.last = judge(&counts, baseline, trained);
        let mut told = [None; 2];
        for ((told, found), warned) in told.iter_mut().zip(self.last).zip(&mut self.warned) {
            *told = found.filter(|_| !*warned);
            *warned |= told.is_some();
        }
        told
    }

    /// That of a checkpoint, with what was said since.
    #[must_use]
    pub fn restored(self, now: &Self) -> Self {
        Self { warned: now.warned, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{COUNTS, GENERATOR_COUNTS, SCORE_BINS, loss_parts, score_bin};

    const BOTH: Trained = Trained { generator: true, discriminator: true };
    const BASELINE: Baseline =
        Baseline { unigram_loss: 5.7, unigram_acc: 0.05, fake_rate: 0.125, disc_loss: 0.37 };

    /// `tokens` tokens that could have been masked, every eighth of them replaced, scored by a
    /// function of number and class; the same number of special tokens with scores far below;
    /// `masked` positions of one loss.
    fn counts(tokens: u64, masked: u64, loss: f32, score: impl Fn(u64, bool) -> f32) -> Vec<u64> {
        let mut counts = vec![0; COUNTS];
        let [nats, rest] = loss_parts(loss);
        counts[..GENERATOR_COUNTS].copy_from_slice(&[masked, 0, masked, 0, masked * nats, masked * rest]);
        for i in 0..tokens {
            let fake = i % 8 == 3;
            counts[GENERATOR_COUNTS + usize::from(fake) * SCORE_BINS + score_bin(score(i, fake))] += 1;
            counts[GENERATOR_COUNTS + 2 * SCORE_BINS + score_bin(-9.0)] += 1;
        }
        counts
    }

    /// Scattered over about ±2, whatever the class.
    fn noise(i: u64) -> f32 {
        (i.wrapping_mul(2654435761) % 1009) as f32 / 1009.0 * 4.0 - 4.0
    }

    fn found(counts: &[u64]) -> [bool; 2] {
        judge(counts, Some(&BASELINE), BOTH).map(|finding| finding.is_some())
    }

    #[test]
    fn runs_that_learn_nothing_are_found_and_others_are_not() {
        assert_eq!(found(&counts(60_000, 9000, 5.68, |_, _| -1.97)), [true, true]);
        assert_eq!(found(&counts(60_000, 9000, 5.68, |i, _| noise(i))), [true, true], "scores at random");
        // In order, but of no use: all odds are the same.
        let narrow = |i: u64, fake: bool| -3.9 + 0.01 * noise(i) + if fake { 0.03 } else { 0.0 };
        assert!(found(&counts(60_000, 9000, 5.0, narrow))[0]);
        // An AUC of 0.56, and a generator that is 0.2 nats better than word frequencies.
        let healthy = counts(60_000, 9000, 5.5, |i, fake| noise(i) + if fake { 0.25 } else { 0.0 });
        let auc = Metrics::new(Losses::default(), &healthy).disc_auc;
        assert!((0.54..0.58).contains(&auc), "{auc}");
        assert_eq!(found(&healthy), [false, false]);
        assert_eq!(found(&counts(60_000, 9000, 0.1, |i, _| noise(i))), [true, false]);
        assert_eq!(
            found(&counts(60_000, 9000, 7.0, |i, fake| noise(i) + f32::from(u8::from(fake)))),
            [false, true]
        );
    }

    #[test]
    fn too_little_is_not_judged() {
        // Hardly anything is replaced where the generator is nearly always right.
        let mut perfect = counts(60_000, 9000, 0.01, |_, _| -9.0);
        perfect[GENERATOR_COUNTS + SCORE_BINS..GENERATOR_COUNTS + 2 * SCORE_BINS].fill(0);
        assert_eq!(found(&perfect), [false, false]);
        perfect[GENERATOR_COUNTS + SCORE_BINS + score_bin(-9.0)] = 40;
        assert_eq!(found(&perfect), [false, false]);
        assert_eq!(found(&counts(800, 120, 5.7, |_, _| -2.0)), [false, false]);
        assert_eq!(found(&[]), [false, false]);
        // Nor is what is not trained, or what cannot be compared.
        let dead = counts(60_000, 9000, 5.7, |_, _| -2.0);
        let none = Trained { generator: false, discriminator: false };
        assert_eq!(judge(&dead, Some(&BASELINE), none), [None; 2]);
        assert!(judge(&dead, None, BOTH)[1].is_none());
    }

    #[test]
    fn a_warning_comes_once_and_not_at_the_start() {
        let dead = counts(60_000, 9000, 5.7, |_, _| -2.0);
        let fine = counts(60_000, 9000, 4.0, |i, fake| noise(i) + f32::from(u8::from(fake)));
        let mut health = Health::default();
        let mut told = Vec::new();
        for step in (50..=1000).step_by(50) {
            health.add_counts(&dead);
            if health.check((step, 1000), Some(&BASELINE), BOTH).iter().any(Option::is_some) {
                told.push(step);
            }
        }
        assert_eq!(told, [500]);
        assert!(health.last.iter().all(Option::is_some), "the summary tells it again");
        // Kept in checkpoints, to the last bit.
        let text = serde_json::to_string(&health).unwrap();
        assert_eq!(serde_json::from_str::<Health>(&text).unwrap(), health);
        // A run that was on the plateau for its first quarter only, and one of few steps.
        let run = |steps: u64, at: &dyn Fn(u64) -> Vec<u64>| {
            let mut health = Health::default();
            let all = (1..=20).map(|line| line * steps / 20).map(|step| {
                health.add_counts(&at(step));
                health.check((step, steps), Some(&BASELINE), BOTH)
            });
            let told = all.flatten().flatten().count();
            (told, health.last)
        };
        let late = |step: u64| if step <= 250 { dead.clone() } else { fine.clone() };
        assert_eq!(run(1000, &late), (0, [None; 2]));
        assert_eq!(run(160, &|_| dead.clone()), (0, [None; 2]));
        assert_eq!(run(1000, &|_| dead.clone()).0, 2);
    }
}
