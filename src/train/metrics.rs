//! What is measured of a step, and of a held-out text.

use serde::{Deserialize, Serialize};

use crate::backend::{COUNTS, GENERATOR_COUNTS, SCORE_BINS, score_of_bin};
use crate::model::Losses;

/// Metrics of one step, of the mean over several, or of a whole text.
///
/// Figures of the discriminator are over the tokens that could have been masked: special tokens are
/// never replaced, which a discriminator learns at once, and which would hide whether it has learnt
/// anything else. `disc_all_…` are over all tokens, as google-research/electra reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// gen_weight · gen_loss + disc_weight · disc_loss.
    pub loss: f64,
    /// Cross-entropy at the masked positions: what the generator is trained on.
    pub gen_loss: f64,
    /// Loss of the discriminator, over all tokens: what it is trained on.
    pub disc_loss: f64,
    /// Share of masked positions where the most probable token is the original.
    pub gen_acc: f64,
    /// The same of the masked positions that show \[MASK\], where the token must be found from its
    /// context.
    pub gen_mask_acc: f64,
    /// Cross-entropy at the masked positions that show \[MASK\].
    pub gen_mask_loss: f64,
    /// Share of right tokens at the masked positions that show a token, most of them the original.
    pub gen_kept_acc: f64,
    /// Share of tokens judged rightly.
    pub disc_acc: f64,
    /// Area under the ROC curve: chance that a replaced token scores above an original one.
    pub disc_auc: f64,
    /// Standard error of `disc_auc` where the scores tell nothing; ½ where there are no replaced or
    /// no original tokens.
    pub disc_auc_error: f64,
    /// Share of tokens called replaced that were.
    pub disc_precision: f64,
    /// Share of replaced tokens called so.
    pub disc_recall: f64,
    /// Standard deviation of the scores (log-odds that a token was replaced).
    pub disc_score_std: f64,
    /// Loss over all tokens of a discriminator that knows special tokens and gives every other
    /// token the same score.
    pub disc_constant_loss: f64,
    /// Share of tokens that were replaced.
    pub fake_rate: f64,
    /// As `disc_acc`, over all tokens.
    pub disc_all_acc: f64,
    /// As `disc_auc`, over all tokens.
    pub disc_all_auc: f64,
    /// As `disc_precision`, over all tokens.
    pub disc_all_precision: f64,
    /// As `disc_recall`, over all tokens.
    pub disc_all_recall: f64,
    /// As `fake_rate`, over all tokens.
    pub all_fake_rate: f64,
}

/// 0 of nothing.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl Metrics {
    /// From mean losses, and counts as [`Metrics::counts`](crate::backend::Metrics::counts) has them, over the same passes. Rates and
    /// areas are exact to the bins of the scores. Counts of another length say nothing.
    pub fn new(losses: Losses, counts: &[u64]) -> Self {
        let none = [0; COUNTS];
        let counts = if counts.len() == COUNTS { counts } else { &none };
        let (generator, bins) = counts.split_at(GENERATOR_COUNTS);
        let [masked, hits, shown, shown_hits, nats, rest] = *generator else { return Self::default() };
        let (originals, bins) = bins.split_at(SCORE_BINS);
        let (fakes, special) = bins.split_at(SCORE_BINS);
        let all_originals: Vec<u64> = originals.iter().zip(special).map(|(a, b)| a + b).collect();
        let (own, all) = (Detection::new(originals, fakes), Detection::new(&all_originals, fakes));
        let total = |bins: &[u64]| bins.iter().sum::<u64>();
        let maskable_share = ratio(total(originals) + total(fakes), total(&all_originals) + total(fakes));
        let mask_nats = nats as f64 + rest as f64 / 65536.0;
        Self {
            loss: losses.loss,
            gen_loss: losses.gen_loss,
            disc_loss: losses.disc_loss,
            gen_acc: ratio(hits, masked),
            gen_mask_acc: ratio(shown_hits, shown),
            gen_mask_loss: if shown == 0 { 0.0 } else { mask_nats / shown as f64 },
            gen_kept_acc: ratio(hits.saturating_sub(shown_hits), masked.saturating_sub(shown)),
            disc_acc: own.accuracy,
            disc_auc: auc(originals, fakes),
            disc_auc_error: auc_error(total(originals), total(fakes)),
            disc_precision: own.precision,
            disc_recall: own.recall,
            disc_score_std: score_std(originals, fakes),
            disc_constant_loss: maskable_share * entropy(own.rate),
            fake_rate: own.rate,
            disc_all_acc: all.accuracy,
            disc_all_auc: auc(&all_originals, fakes),
            disc_all_precision: all.precision,
            disc_all_recall: all.recall,
            all_fake_rate: all.rate,
        }
    }
}

/// Classification of original and replaced tokens by scores above 0.
struct Detection {
    accuracy: f64,
    precision: f64,
    recall: f64,
    rate: f64,
}

impl Detection {
    fn new(originals: &[u64], fakes: &[u64]) -> Self {
        let sum = |bins: &[u64]| bins.iter().sum::<u64>();
        let called = |bins: &[u64]| bins.iter().skip(SCORE_BINS / 2).sum::<u64>();
        let (found, wrongly) = (called(fakes), called(originals));
        let (replaced, all) = (sum(fakes), sum(fakes) + sum(originals));
        Self {
            accuracy: ratio(found + sum(originals) - wrongly, all),
            precision: ratio(found, found + wrongly),
            recall: ratio(found, replaced),
            rate: ratio(replaced, all),
        }
    }
}

/// Entropy in nats of an event of this probability: the loss of always predicting it.
pub fn entropy(p: f64) -> f64 {
    if p > 0.0 && p < 1.0 { -p * p.ln() - (1.0 - p) * (1.0 - p).ln() } else { 0.0 }
}

/// Standard deviation of the scores, from the middles of their bins. Scores that are not finite are
/// left out.
fn score_std(originals: &[u64], fakes: &[u64]) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for (bin, (a, b)) in originals.iter().zip(fakes).enumerate() {
        let (weight, score) = ((a + b) as f64, f64::from(score_of_bin(bin)));
        if weight > 0.0 && score.is_finite() {
            (count, sum, squares) = (count + weight, sum + weight * score, squares + weight * score * score);
        }
    }
    let mean = sum / count;
    if count > 0.0 { (squares / count - mean * mean).max(0.0).sqrt() } else { 0.0 }
}

/// Standard error of the area under the ROC curve of scores that tell nothing (Mann & Whitney
/// 1947); no estimate of it can be further from the truth than ½, which stands for classes without
/// a member.
fn auc_error(negatives: u64, positives: u64) -> f64 {
    let (n, m) = (negatives as f64, positives as f64);
    ((n + m + 1.0) / (12.0 * n * m)).sqrt().min(0.5)
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
    use crate::backend::{loss_parts, score_bin};

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
            counts[GENERATOR_COUNTS + usize::from(positive) * SCORE_BINS + score_bin(score)] += 1;
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
        // Eight masked positions, of which six show [MASK].
        let [nats, rest] = loss_parts(0.75);
        counts[..GENERATOR_COUNTS].copy_from_slice(&[8, 3, 6, 2, 6 * nats, 6 * rest]);
        // Two special tokens, one of them called replaced.
        let special = GENERATOR_COUNTS + 2 * SCORE_BINS;
        counts[special + score_bin(-9.0)] += 1;
        counts[special + score_bin(9.0)] += 1;
        let m = Metrics::new(Losses { loss: 3.0, gen_loss: 1.0, disc_loss: 2.0 }, &counts);
        assert_eq!((m.loss, m.gen_loss, m.disc_loss, m.gen_acc), (3.0, 1.0, 2.0, 0.375));
        assert_eq!((m.gen_mask_acc, m.gen_mask_loss, m.gen_kept_acc), (2.0 / 6.0, 0.75, 0.5));
        // A score of 0 calls nothing replaced.
        assert_eq!((m.disc_acc, m.fake_rate), (0.6, 0.4));
        assert_eq!((m.disc_precision, m.disc_recall), (0.5, 0.5));
        assert_eq!((m.disc_all_acc, m.all_fake_rate), (4.0 / 7.0, 2.0 / 7.0));
        assert_eq!((m.disc_all_precision, m.disc_all_recall), (1.0 / 3.0, 0.5));
        // Of six pairs the replaced tokens win 1 > -3, 1 > 0 and -1 > -3; of ten pairs 1 > -9 and
        // -1 > -9 as well.
        assert_abs_diff_eq!(m.disc_auc, 3.0 / 6.0, epsilon = 1e-12);
        assert_abs_diff_eq!(m.disc_all_auc, 5.0 / 10.0, epsilon = 1e-12);
        let constant = -(0.4 * 0.4f64.ln() + 0.6 * 0.6f64.ln());
        assert_abs_diff_eq!(m.disc_constant_loss, constant * 5.0 / 7.0, epsilon = 1e-12);
        let nothing = Metrics::new(Losses::default(), &[]);
        assert_eq!((nothing.disc_auc, nothing.disc_auc_error, nothing.gen_mask_loss), (0.5, 0.5, 0.0));
        let of_older_versions = Metrics::new(Losses::default(), &[9; 2 + 2 * SCORE_BINS]);
        assert_eq!(of_older_versions, nothing);
    }

    #[test]
    fn a_constant_score_has_no_deviation() {
        let deviation = |score: &dyn Fn(usize) -> f32| {
            let scores: Vec<f32> = (0..4000).map(score).collect();
            let positive: Vec<bool> = (0..4000).map(|i| i % 7 == 0).collect();
            (Metrics::new(Losses::default(), &counts(&scores, &positive)).disc_score_std, scores)
        };
        assert_eq!(deviation(&|_| -1.9).0, 0.0);
        let (binned, scores) = deviation(&|i| (i as f32 * 0.37).sin() * 2.0 - 1.0);
        let mean = scores.iter().map(|&x| f64::from(x)).sum::<f64>() / 4000.0;
        let exact = (scores.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / 4000.0).sqrt();
        assert_abs_diff_eq!(binned, exact, epsilon = 0.03 * exact);
    }

    #[test]
    fn the_error_of_an_auc_is_that_of_random_scores() {
        // 400 areas of 30 positives among 200 scores in random order.
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let areas: Vec<f64> = (0..400)
            .map(|_| {
                let scores: Vec<f32> = (0..200).map(|_| random()).collect();
                by_pairs(&scores, &(0..200).map(|i| i < 30).collect::<Vec<_>>())
            })
            .collect();
        let spread = (areas.iter().map(|a| (a - 0.5).powi(2)).sum::<f64>() / 400.0).sqrt();
        assert_abs_diff_eq!(auc_error(170, 30), spread, epsilon = 0.1 * spread);
    }

    #[test]
    fn bins_follow_the_order_of_numbers() {
        let scores =
            [f32::NEG_INFINITY, -1e30, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 1.2, 7.0, f32::INFINITY];
        let bins: Vec<usize> = scores.iter().map(|&s| score_bin(s)).collect();
        assert!(bins.is_sorted(), "{bins:?}");
        assert!(scores.iter().zip(&bins).all(|(&s, &b)| (s > 0.0) == (b >= SCORE_BINS / 2)));
        // The middle of a bin lies in it, and within a sixteenth of each of its scores.
        for bin in (0..SCORE_BINS).filter(|&bin| score_of_bin(bin).is_finite()) {
            assert_eq!(score_bin(score_of_bin(bin)), bin);
        }
        for score in [-3.0f32, -1.97, 0.3, 5.0] {
            assert_abs_diff_eq!(score_of_bin(score_bin(score)), score, epsilon = score.abs() / 16.0);
        }
        assert!(!score_of_bin(score_bin(f32::INFINITY)).is_finite());
    }
}
