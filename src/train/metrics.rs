//! What is measured of a step, and of a held-out text.

use serde::{Deserialize, Serialize};

use crate::backend::SCORE_BINS;
use crate::model::Losses;

/// Metrics of one step, of the mean over several, or of a whole text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// gen_weight · gen_loss + disc_weight · disc_loss.
    pub loss: f64,
    /// Cross-entropy at the masked positions.
    pub gen_loss: f64,
    /// Loss of the discriminator.
    pub disc_loss: f64,
    /// Share of masked positions where the most probable token is the original.
    pub gen_acc: f64,
    /// Share of tokens judged rightly.
    pub disc_acc: f64,
    /// Area under the ROC curve: chance that a replaced token scores above an original one.
    pub disc_auc: f64,
    /// Share of tokens called replaced that were.
    pub disc_precision: f64,
    /// Share of replaced tokens called so.
    pub disc_recall: f64,
    /// Share of tokens that were replaced.
    pub fake_rate: f64,
}

/// 0 of nothing.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl Metrics {
    /// From mean losses, and counts as [`Metrics::counts`](crate::backend::Metrics::counts) has them, over the same passes. Rates and
    /// areas are exact to the bins of the scores.
    pub fn new(losses: Losses, counts: &[u64]) -> Self {
        let (hits, originals, fakes) = match counts {
            [masked, hits, bins @ ..] if bins.len() == 2 * SCORE_BINS => {
                ((*hits, *masked), &bins[..SCORE_BINS], &bins[SCORE_BINS..])
            }
            _ => ((0, 0), &[][..], &[][..]),
        };
        let sum = |bins: &[u64]| bins.iter().sum::<u64>();
        let called = |bins: &[u64]| bins.iter().skip(SCORE_BINS / 2).sum::<u64>();
        let (found, wrongly) = (called(fakes), called(originals));
        let (all_fakes, all) = (sum(fakes), sum(fakes) + sum(originals));
        Self {
            loss: losses.loss,
            gen_loss: losses.gen_loss,
            disc_loss: losses.disc_loss,
            gen_acc: ratio(hits.0, hits.1),
            disc_acc: ratio(found + sum(originals) - wrongly, all),
            disc_auc: auc(originals, fakes),
            disc_precision: ratio(found, found + wrongly),
            disc_recall: ratio(found, all_fakes),
            fake_rate: ratio(all_fakes, all),
        }
    }
}

/// Area under the ROC curve from histograms of the scores: the chance that a positive scores above a negative, a tie counted half (Mann
/// & Whitney 1947); ½ where one class is missing.
pub fn auc(negatives: &[u64], positives: &[u64]) -> f64 {
    let total = |bins: &[u64]| bins.iter().sum::<u64>() as f64;
    let pairs = total(negatives) * total(positives);
    if pairs == 0.0 {
        return 0.5;
    }
    let (mut won, mut below) = (0.0, 0.0);
    for (&negative, &positive) in negatives.iter().zip(positives) {
        won += positive as f64 * (below + negative as f64 / 2.0);
        below += negative as f64;
    }
    won / pairs
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::backend::{COUNTS, score_bin};

    /// The definition: over all pairs of a positive and a negative.
    fn by_pairs(scores: &[f32], positive: &[bool]) -> f64 {
        let (mut won, mut pairs) = (0.0, 0.0);
        for (&a, _) in scores.iter().zip(positive).filter(|(_, p)| **p) {
            for (&b, _) in scores.iter().zip(positive).filter(|(_, p)| !**p) {
                pairs += 1.0;
                won += match a.partial_cmp(&b) {
                    Some(std::cmp::Ordering::Greater) => 1.0,
                    Some(std::cmp::Ordering::Equal) => 0.5,
                    _ => 0.0,
                };
            }
        }
        won / pairs
    }

    fn counts(scores: &[f32], positive: &[bool]) -> Vec<u64> {
        let mut counts = vec![0; COUNTS];
        for (&score, &positive) in scores.iter().zip(positive) {
            counts[2 + usize::from(positive) * SCORE_BINS + score_bin(score)] += 1;
        }
        counts
    }

    #[test]
    fn auc_matches_its_definition() {
        let positive: Vec<bool> = (0..2000).map(|i| (i * 31) % 7 < 2).collect();
        // Scores with three bits of mantissa have bins of their own: exact. Others share an eighth of an octave.
        let exact: Vec<f32> = (0..2000).map(|i| (((i * 7919) % 23) as f32 - 11.0) * 0.5).collect();
        let area = |scores: &[f32]| Metrics::new(Losses::default(), &counts(scores, &positive)).disc_auc;
        assert_abs_diff_eq!(area(&exact), by_pairs(&exact, &positive), epsilon = 1e-12);
        let smooth: Vec<f32> = (0..2000)
            .map(|i| ((i as f32) * 0.37).sin() * 3.0 - 2.0 + if positive[i] { 1.0 } else { 0.0 })
            .collect();
        assert_abs_diff_eq!(area(&smooth), by_pairs(&smooth, &positive), epsilon = 2e-3);
        for (positive, area) in [([false, true], 1.0), ([true, false], 0.0), ([false, false], 0.5)] {
            let metrics = Metrics::new(Losses::default(), &counts(&[1.0, 2.0], &positive));
            assert_eq!(metrics.disc_auc, area);
        }
    }

    #[test]
    fn metrics_by_hand() {
        let mut counts = counts(&[1.0, -1.0, 2.0, -3.0, 0.0], &[true, true, false, false, false]);
        (counts[0], counts[1]) = (4, 1);
        let m = Metrics::new(Losses { loss: 3.0, gen_loss: 1.0, disc_loss: 2.0 }, &counts);
        assert_eq!((m.loss, m.gen_loss, m.disc_loss, m.gen_acc), (3.0, 1.0, 2.0, 0.25));
        // A score of 0 calls nothing replaced.
        assert_eq!((m.disc_acc, m.fake_rate), (0.6, 0.4));
        assert_eq!((m.disc_precision, m.disc_recall), (0.5, 0.5));
        assert_eq!(Metrics::new(Losses::default(), &[]).disc_auc, 0.5);
    }

    #[test]
    fn bins_follow_the_order_of_numbers() {
        let scores =
            [f32::NEG_INFINITY, -1e30, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 1.2, 7.0, f32::INFINITY];
        let bins: Vec<usize> = scores.iter().map(|&s| score_bin(s)).collect();
        assert!(bins.is_sorted(), "{bins:?}");
        assert!(scores.iter().zip(&bins).all(|(&s, &b)| (s > 0.0) == (b >= SCORE_BINS / 2)));
    }
}
