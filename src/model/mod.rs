//! ELECTRA: generator, discriminator and the joint objective (Clark et al. 2020); and masked language
//! modelling alone, which pre-training is compared with.
//!
//! ```text
//! masked ids ─ generator: embed → encoder → mlm head ─┬─ loss_mlm
//!                                                     └─ sampled ids (no gradient crosses)
//! original ids + samples ─ discriminator: embed → encoder → rtd head ── loss_rtd
//! loss = gen_weight · loss_mlm + disc_weight · loss_rtd
//! ```
//!
//! **Sharing.** `word`: one table of word embeddings serves both lookups and the tied decoder. `all`: the whole
//! embedding block (word, position, type, LayerNorm). `none`: nothing. `gdes`: gradient-disentangled as in DeBERTa-v3
//! (He et al. 2021): the discriminator's table is the generator's, through which it sends no gradient, plus a delta of
//! its own. A discriminator directory always holds the sum, so that any program can load it; the trainer's state
//! keeps the delta exactly.

mod acts;
pub mod config;
mod detector;
mod encoder;
mod filler;
pub mod hf;
mod init;
mod input;
mod linear;
mod mlm_head;
mod norm;
mod params;
mod pass;
mod plan;
mod rows;
mod rtd_head;
mod step;

pub use acts::{BatchLimits, PlanEntry};
pub use detector::Discriminator;
pub use filler::{Candidate, Filler};
pub use init::Init;
pub use input::{IGNORE, PaddedInput};
pub use params::{ParamTable, Params, TensorSpec};
pub use pass::Losses;
pub use plan::{MemoryPlan, memory_plan, step_tally};
pub use step::{Output, Phase, StepOutput, TokenDetection};

use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// A generator and a discriminator, by replaced token detection.
    #[default]
    Electra,
    /// One network, by masked language modelling as BERT is.
    Mlm,
}

impl Objective {
    /// The directories in which the networks of a run are saved.
    pub fn directories(self) -> &'static [&'static str] {
        match self {
            Self::Electra => &["generator", "discriminator"],
            Self::Mlm => &["model"],
        }
    }
}

/// Whose details are followed where the two implementations of the objective differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// txtai's `TokenDetection`.
    Txtai,
    /// google-research/electra, the paper: denominators of the losses are Σw + 1e-6.
    #[default]
    Electra,
}

impl Flavour {
    /// Added to the denominators of both losses.
    fn tiny(self) -> f64 {
        match self {
            Self::Txtai => 0.0,
            Self::Electra => 1e-6,
        }
    }
}

/// What generator and discriminator have in common; see the module's page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// Word embeddings.
    Word,
    /// The whole embedding block.
    #[default]
    All,
    /// Nothing.
    None,
    /// Word embeddings, gradient-disentangled.
    Gdes,
}

/// The objective's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Details of the losses.
    pub flavour: Flavour,
    /// Shared parameters.
    pub share: Share,
    /// Multiplies the generator's loss.
    pub gen_weight: f64,
    /// Multiplies the discriminator's loss.
    pub disc_weight: f64,
    /// Divides the generator's logits before sampling.
    pub temperature: f64,
    /// Never sample the original token.
    pub disallow_correct: bool,
    /// How weights that no checkpoint gives are drawn.
    pub init: Init,
    /// Of initial weights, dropout and samples.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flavour: Flavour::default(),
            share: Share::default(),
            gen_weight: 1.0,
            disc_weight: 50.0,
            temperature: 1.0,
            disallow_correct: false,
            init: Init::default(),
            seed: 0,
        }
    }
}
