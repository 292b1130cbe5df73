//! Which figures are drawn, and what each is compared with: the value of a model that has learnt
//! nothing.

use super::run::Metric;

/// What a model has that learnt nothing but how often tokens are replaced.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Baseline {
    None,
    /// Loss of predicting tokens by how often they occur.
    UnigramLoss,
    /// Accuracy of always predicting the most frequent token.
    UnigramAccuracy,
    /// Accuracy of always saying "original".
    Original,
    /// Loss of the same score for all tokens: the entropy of the rate of replacements.
    Entropy,
    /// AUC of chance.
    Half,
    /// Precision of calling tokens replaced by chance.
    Rate,
    /// As `Original`, of all tokens.
    OriginalOfAll,
    /// As `Rate`, of all tokens.
    RateOfAll,
}

pub(super) struct Kind {
    pub(super) metric: Metric,
    pub(super) title: &'static str,
    pub(super) baseline: Baseline,
    pub(super) note: &'static str,
    pub(super) from_zero: bool,
    pub(super) log: bool,
    pub(super) marks: bool,
    /// Whether the first steps are far off and would flatten the rest: they may leave the plot.
    pub(super) settles: bool,
    /// Whether it is drawn only where a run has no figures without special tokens, because an
    /// earlier version logged it.
    pub(super) earlier: bool,
}

const fn kind(metric: Metric, title: &'static str, baseline: Baseline, note: &'static str) -> Kind {
    Kind {
        metric,
        title,
        baseline,
        note,
        from_zero: false,
        log: false,
        marks: false,
        settles: false,
        earlier: false,
    }
}

pub(super) const KINDS: [Kind; 18] = {
    use Baseline as B;
    use Metric as M;
    [
        kind(
            M::GenMaskLoss,
            "Generator loss at [MASK]",
            B::UnigramLoss,
            "dashed: word frequencies only; context shows below",
        ),
        Kind {
            marks: true,
            ..kind(M::GenLoss, "Generator loss", B::None, "at all masked tokens, kept ones too")
        },
        Kind {
            marks: true,
            settles: true,
            ..kind(M::DiscLoss, "Discriminator loss", B::Entropy, "dashed: a constant output")
        },
        kind(M::DiscAuc, "Discriminator AUC", B::Half, "without special tokens; dashed: chance"),
        kind(
            M::GenMaskAcc,
            "Generator accuracy at [MASK]",
            B::UnigramAccuracy,
            "dashed: always the most frequent token",
        ),
        kind(M::GenAcc, "Generator accuracy", B::None, "of all masked tokens, kept ones too"),
        Kind {
            settles: true,
            ..kind(M::DiscAcc, "Discriminator accuracy", B::Original, "dashed: always saying “original”")
        },
        kind(
            M::DiscPrecision,
            "Discriminator precision",
            B::Rate,
            "of tokens called replaced; dashed: by chance",
        ),
        Kind {
            from_zero: true,
            ..kind(
                M::DiscRecall,
                "Discriminator recall",
                B::None,
                "replaced tokens called so; always “original”: 0",
            )
        },
        Kind {
            from_zero: true,
            ..kind(
                M::DiscScoreStd,
                "Spread of the discriminator's scores",
                B::None,
                "standard deviation; 0: a constant output",
            )
        },
        kind(M::DiscAllAuc, "Discriminator AUC, all tokens", B::Half, "special tokens too; dashed: chance"),
        Kind {
            settles: true,
            earlier: true,
            ..kind(
                M::DiscAllAcc,
                "Discriminator accuracy, all tokens",
                B::OriginalOfAll,
                "dashed: always saying “original”",
            )
        },
        Kind {
            earlier: true,
            ..kind(
                M::DiscAllPrecision,
                "Discriminator precision, all tokens",
                B::RateOfAll,
                "of tokens called replaced; dashed: by chance",
            )
        },
        Kind {
            from_zero: true,
            earlier: true,
            ..kind(
                M::DiscAllRecall,
                "Discriminator recall, all tokens",
                B::None,
                "replaced tokens called so; always “original”: 0",
            )
        },
        Kind { from_zero: true, ..kind(M::Lr, "Learning rate", B::None, "of the last step of each line") },
        Kind {
            log: true,
            marks: true,
            ..kind(M::GradNorm, "Gradient norm", B::None, "before clipping, logarithmic")
        },
        Kind {
            from_zero: true,
            ..kind(M::TokPerS, "Tokens a second", B::None, "of training, without pauses")
        },
        Kind { from_zero: true, ..kind(M::GpuMemory, "GPU memory", B::None, "MiB in use") },
    ]
};
