//! Defaults that depend on how long a run is.
//!
//! The paper's settings are made for 10¹⁰ tokens and more. A run of some million tokens that follows
//! them stays on the plateau of word frequencies: its generator never uses the context, and the
//! output of its discriminator becomes constant. `short` leaves the plateau within half a million
//! tokens; `benches/records/2026-11-27_short-runs` has the measurements.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{RunConfig, Settings};
use crate::model::config::Preset;
use crate::model::{Flavour, Init, Objective, Share};
use crate::{Error, Result};

/// Where the defaults come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// `short` for untrained networks and fewer than 100 million tokens (with --epochs, for the
    /// preset tiny), `paper` otherwise and in txtai's flavour.
    #[default]
    Auto,
    /// Masked language modelling first, structured initial weights, twice as many masked tokens, and
    /// higher learning rates.
    Short,
    /// google-research/electra's.
    Paper,
}

/// Tokens from which on the paper's settings are the default.
const LONG: f64 = 1e8;

/// The defaults of a recipe.
pub(super) struct Defaults {
    pub(super) recipe: Recipe,
    /// Why this recipe.
    pub(super) reason: String,
    pub(super) init: Init,
    pub(super) mlm_first: f64,
    pub(super) mask_prob: f64,
    pub(super) learning_rate: f64,
    pub(super) bias_correction: bool,
    pub(super) clip: f64,
}

impl Defaults {
    /// The recipe of these settings, for steps of `tokens_per_step` tokens.
    pub(super) fn of(s: &Settings, tokens_per_step: usize) -> Result<Self> {
        let preset = s.preset.unwrap_or_default();
        let is_txtai = s.flavour == Some(Flavour::Txtai);
        let is_fresh =
            |name: &Option<String>| name.as_ref().is_none_or(|name| Preset::from_name(name).is_some());
        let all_fresh = s.base.is_none() && is_fresh(&s.generator) && is_fresh(&s.discriminator);
        let tokens = s.steps.map(|steps| steps as f64 * tokens_per_step as f64);
        let (recipe, reason) = match s.recipe.unwrap_or_default() {
            Recipe::Short if is_txtai => {
                return Err(Error::config(
                    "--recipe short is of the electra flavour, --flavour txtai follows txtai's own \
                     settings: leave one of them out",
                ));
            }
            Recipe::Auto if is_txtai => (Recipe::Paper, "the txtai flavour has its own".to_owned()),
            Recipe::Auto if !all_fresh => (Recipe::Paper, "trained networks are continued".to_owned()),
            Recipe::Auto => match tokens {
                Some(tokens) if tokens < LONG => {
                    (Recipe::Short, format!("{:.1} M tokens are fewer than 100 M", tokens / 1e6))
                }
                Some(tokens) => (Recipe::Paper, format!("{:.0} M tokens are 100 M or more", tokens / 1e6)),
                None if preset == Preset::Tiny => (Recipe::Short, "the preset is tiny".to_owned()),
                None => (Recipe::Paper, "the number of --steps is not given".to_owned()),
            },
            given => (given, "--recipe asks for it".to_owned()),
        };
        let big = matches!(preset, Preset::Base | Preset::Large);
        Ok(match recipe {
            Recipe::Short => Self {
                recipe,
                reason,
                init: Init::Local,
                mlm_first: if s.discriminator.is_none() && s.base.is_none() { 1.0 } else { 0.0 },
                mask_prob: 0.3,
                // Measured for tiny; the others follow the paper's, whose rates fall with the width.
                learning_rate: match preset {
                    Preset::Tiny => 2e-3,
                    Preset::Small => 1e-3,
                    Preset::Base | Preset::Large => 5e-4,
                },
                bias_correction: true,
                clip: 20.0,
            },
            _ => Self {
                recipe,
                reason,
                init: Init::Bert,
                mlm_first: 0.0,
                mask_prob: if preset == Preset::Large { 0.25 } else { 0.15 },
                learning_rate: match (is_txtai, big) {
                    (true, _) => 5e-5,
                    (_, true) => 2e-4,
                    _ => 5e-4,
                },
                bias_correction: is_txtai,
                clip: 1.0,
            },
        })
    }
}

/// An error if masked language modelling first is asked for where nothing could begin with it.
pub(super) fn check_mlm_first(s: &Settings, factor: f64) -> Result<()> {
    if !(factor >= 0.0 && factor.is_finite()) {
        return Err(Error::config(format!("--mlm-first is {factor}, expected 0 or more")));
    }
    if factor == 0.0 {
        return Ok(());
    }
    let problem = match s.objective {
        Some(Objective::Mlm) => "--objective mlm is masked language modelling throughout",
        _ if s.base.is_some() || s.discriminator.is_some() => {
            "it gives the discriminator its first weights, which --discriminator and --base do too"
        }
        _ if s.share.is_some_and(|share| share != Share::None) => {
            "the discriminator has embeddings of its own then, so that --share must be none"
        }
        _ => return Ok(()),
    };
    Err(Error::config(format!("--mlm-first {factor}: {problem}; leave one of them out")))
}

impl RunConfig {
    /// The recipe, why it is this one, and what it decides, in a sentence.
    pub fn about_recipe(&self) -> String {
        let Self { mask_prob, learning_rate, clip, mlm_first, .. } = self;
        let (name, other) = match self.recipe {
            Recipe::Short => ("short", "paper"),
            _ => ("paper", "short"),
        };
        let named = |value: Option<clap::builder::PossibleValue>| {
            value.map_or(String::new(), |value| value.get_name().to_owned())
        };
        let of_pair = match self.objective {
            Objective::Electra => {
                format!(" --mlm-first {mlm_first} --share {}", named(self.share.to_possible_value()))
            }
            Objective::Mlm => String::new(),
        };
        format!(
            "recipe {name}, since {}: --init {} --mask-prob {mask_prob} --learning-rate {learning_rate} \
             --clip {clip} --bias-correction {}{of_pair} (--recipe {other} for the other one)",
            self.recipe_reason,
            named(self.init.to_possible_value()),
            self.bias_correction,
        )
    }
}
