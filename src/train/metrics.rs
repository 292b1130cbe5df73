//! What is measured of a step, and of a held-out text.

use serde::{Deserialize, Serialize};

use crate::model::StepOutput;

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
fn ratio(a: usize, b: usize) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

impl Metrics {
    /// Of one forward pass.
    pub fn of(step: &StepOutput) -> Self {
        let calls = |x: &&f32| **x > 0.0;
        let n = step.is_fake.len();
        let fakes = step.is_fake.iter().filter(|&&fake| fake).count();
        let called = step.disc_logits.iter().filter(calls).count();
        let hits = step.disc_logits.iter().zip(&step.is_fake).filter(|&(&x, &fake)| fake && x > 0.0).count();
        let right =
            step.disc_logits.iter().zip(&step.is_fake).filter(|&(&x, &fake)| fake == (x > 0.0)).count();
        Self {
            loss: step.loss,
            gen_loss: step.gen_loss,
            disc_loss: step.disc_loss,
            gen_acc: ratio(step.gen_correct.iter().filter(|&&c| c).count(), step.gen_correct.len()),
            disc_acc: ratio(right, n),
            disc_auc: auc(&step.disc_logits, &step.is_fake),
            disc_precision: ratio(hits, called),
            disc_recall: ratio(hits, fakes),
            fake_rate: ratio(fakes, n),
        }
    }

    /// Adds `other` times `weight`.
    pub fn add(&mut self, other: &Self, weight: f64) {
        for (to, from) in self.fields_mut().into_iter().zip(other.clone().fields_mut()) {
            *to += *from * weight;
        }
    }

    fn fields_mut(&mut self) -> [&mut f64; 9] {
        [
            &mut self.loss,
            &mut self.gen_loss,
            &mut self.disc_loss,
            &mut self.gen_acc,
            &mut self.disc_acc,
            &mut self.disc_auc,
            &mut self.disc_precision,
            &mut self.disc_recall,
            &mut self.fake_rate,
        ]
    }
}

/// Area under the ROC curve by ranks, ties counted half (Mann & Whitney 1947); ½ where one class is missing.
pub fn auc(scores: &[f32], positive: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let positives = positive.iter().filter(|&&p| p).count() as f64;
    let negatives = scores.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return 0.5;
    }
    let (mut rank_sum, mut start) = (0.0, 0);
    while start < order.len() {
        let tied = order[start..].iter().take_while(|&&i| scores[i] == scores[order[start]]).count().max(1);
        let rank = start as f64 + (tied as f64 + 1.0) / 2.0;
        let hits = order[start..start + tied].iter().filter(|&&i| positive[i]).count();
        rank_sum += rank * hits as f64;
        start += tied;
    }
    (rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: over all pairs of a positive and a negative.
    fn by_pairs(scores: &[f32], positive: &[bool]) -> f64 {
        let (mut won, mut pairs) = (0.0, 0.0);
        for (i, &a) in scores.iter().enumerate().filter(|&(i, _)| positive[i]) {
            for (j, &b) in scores.iter().enumerate().filter(|&(j, _)| !positive[j]) {
                assert_ne!(i, j);
                pairs += 1.0;
                won += if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                };
            }
        }
        won / pairs
    }

    #[test]
    fn auc_matches_its_definition() {
        let scores: Vec<f32> = (0..200).map(|i| ((i * 7919) % 23) as f32).collect();
        let positive: Vec<bool> = (0..200).map(|i| (i * 31) % 7 < 2).collect();
        assert!((auc(&scores, &positive) - by_pairs(&scores, &positive)).abs() < 1e-12);
        assert_eq!(auc(&[1.0, 2.0], &[false, true]), 1.0);
        assert_eq!(auc(&[1.0, 2.0], &[true, false]), 0.0);
        assert_eq!(auc(&[1.0, 2.0], &[false, false]), 0.5);
    }

    #[test]
    fn metrics_by_hand() {
        let step = StepOutput {
            gen_correct: vec![true, false],
            disc_logits: vec![1.0, -1.0, 2.0, -3.0],
            is_fake: vec![true, true, false, false],
            ..StepOutput::default()
        };
        let m = Metrics::of(&step);
        assert_eq!((m.gen_acc, m.disc_acc, m.fake_rate), (0.5, 0.5, 0.5));
        assert_eq!((m.disc_precision, m.disc_recall, m.disc_auc), (0.5, 0.5, 0.5));
    }
}
