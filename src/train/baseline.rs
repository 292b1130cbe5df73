//! What models have that know nothing: a generator that draws by word frequencies, and a
//! discriminator whose output is constant. A loss is judged by its distance from these, which
//! depend on the text and the vocabulary.

use serde::{Deserialize, Serialize};

use super::metrics::{Metrics, entropy};
use crate::data::mask::MaskSpec;

/// Baselines of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Cross-entropy, in nats, of predicting every token by how often it occurs.
    pub unigram_loss: f64,
    /// Accuracy of always predicting the most frequent token.
    pub unigram_acc: f64,
    /// About the rate of replacements, among the tokens that can be masked, of a generator that
    /// keeps every token it sees and draws by word frequencies where it sees \[MASK\].
    pub fake_rate: f64,
    /// Loss of a discriminator that gives every token the same score, at that rate.
    pub disc_loss: f64,
}

/// A generator whose loss is not below the word frequencies' by this share has not learnt from
/// context. What topics and positions alone can give is less.
const MARGIN: f64 = 0.02;

impl Baseline {
    /// Of a text in which each token occurs so often. Tokens that cannot be masked are left out;
    /// none if there is no other.
    pub fn new(frequencies: &[f64], mask: &MaskSpec) -> Option<Self> {
        let never = mask.never();
        let maskable = |id: usize| !never.contains(&(id as u32));
        let counts =
            || frequencies.iter().enumerate().filter(|&(id, _)| maskable(id)).map(|(_, &count)| count);
        let total: f64 = counts().sum();
        if total <= 0.0 {
            return None;
        }
        let shares = || counts().map(|count| count / total).filter(|&share| share > 0.0);
        let repeated: f64 = shares().map(|share| share * share).sum();
        let [masked, random] = mask.shares();
        let fake_rate = mask.probability * (masked * (1.0 - repeated) + random);
        Some(Self {
            // `+ 0.0`: of a text of one word the sum is -0.
            unigram_loss: -shares().map(|share| share * share.ln()).sum::<f64>() + 0.0,
            unigram_acc: shares().fold(0.0, f64::max),
            fake_rate,
            disc_loss: entropy(fake_rate),
        })
    }

    /// Whether a generator of this loss at positions that show \[MASK\] has learnt from context.
    pub fn is_left_behind(&self, gen_mask_loss: f64) -> bool {
        gen_mask_loss < self.unigram_loss * (1.0 - MARGIN)
    }

    /// A generator's loss next to that of word frequencies, and whether it is lower.
    pub fn in_words(&self, m: &Metrics) -> String {
        let verdict = match m.gen_mask_loss {
            0.0 if m.gen_mask_acc == 0.0 => return "no position shows [MASK]".to_owned(),
            loss if self.is_left_behind(loss) => {
                format!("{:.2} nats learnt from context", self.unigram_loss - loss)
            }
            loss if loss > self.unigram_loss * (1.0 + MARGIN) => "word frequencies not learnt yet".to_owned(),
            _ => "no context learnt yet".to_owned(),
        };
        format!(
            "{:.2} at [MASK] against {:.2} for word frequencies: {verdict}",
            m.gen_mask_loss, self.unigram_loss
        )
    }

    /// All of it on one line.
    pub fn describe(&self) -> String {
        format!(
            "word frequencies alone have a generator loss of {:.3} and an accuracy of {:.3}; a discriminator of constant \
             output has a loss of about {:.3} where {:.1} % of the tokens are replaced, and an AUC of 0.5",
            self.unigram_loss,
            self.unigram_acc,
            self.disc_loss,
            100.0 * self.fake_rate
        )
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::data::mask::MaskStyle;
    use crate::data::tokenizer::SpecialTokens;

    fn mask(style: MaskStyle) -> MaskSpec {
        let special = SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
        MaskSpec { style, probability: 0.2, vocab_size: 8, special, seq_len: 16 }
    }

    #[test]
    fn baselines_by_hand() {
        // Half of the tokens, a quarter and a quarter; \[SEP\] does not count.
        let counts = [0.0, 0.0, 0.0, 9.0, 0.0, 4.0, 2.0, 2.0];
        let of = |style| Baseline::new(&counts, &mask(style)).unwrap();
        let electra = of(MaskStyle::Electra);
        assert_abs_diff_eq!(electra.unigram_loss, 1.5 * 2f64.ln(), epsilon = 1e-12);
        assert_eq!(electra.unigram_acc, 0.5);
        // Two draws are equal with probability 1/4 + 1/16 + 1/16.
        assert_abs_diff_eq!(electra.fake_rate, 0.2 * 0.85 * 0.625, epsilon = 1e-12);
        let rate = electra.fake_rate;
        let loss = -(rate * rate.ln() + (1.0 - rate) * (1.0 - rate).ln());
        assert_abs_diff_eq!(electra.disc_loss, loss, epsilon = 1e-12);
        assert_abs_diff_eq!(of(MaskStyle::Txtai).fake_rate, 0.2 * (0.8 * 0.625 + 0.1), epsilon = 1e-12);
        // The unknown token can be masked by electra's rule alone.
        let unknown = [0.0, 5.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(Baseline::new(&unknown, &mask(MaskStyle::Electra)).unwrap().unigram_loss, 0.0);
        assert_eq!(Baseline::new(&unknown, &mask(MaskStyle::Txtai)), None);
    }

    #[test]
    fn losses_in_words() {
        let counts = [0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 2.0, 2.0];
        let baseline = Baseline::new(&counts, &mask(MaskStyle::Electra)).unwrap();
        let words = |gen_mask_loss| baseline.in_words(&Metrics { gen_mask_loss, ..Metrics::default() });
        assert_eq!(words(1.03), "1.03 at [MASK] against 1.04 for word frequencies: no context learnt yet");
        assert!(words(1.5).ends_with("word frequencies not learnt yet"));
        assert!(words(0.64).ends_with("0.40 nats learnt from context"));
    }
}
