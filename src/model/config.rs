//! The configuration of one ELECTRA network, as `config.json` holds it, and the sizes of the paper.

use serde_json::{Map, Value};

use crate::{Error, Result};

mod json;
mod tokens;

pub use json::ConfigFile;

/// The activation function of the feed-forward layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x · Φ(x) with the exact normal distribution function (Hendrycks & Gimpel 2016): ELECTRA's.
    #[default]
    Gelu,
    /// Its tanh approximation: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// Which of the model classes of `transformers` a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `ElectraForMaskedLM`: a generator.
    MaskedLm,
    /// `ElectraForPreTraining`: a discriminator with one logit a token.
    PreTraining,
    /// `ElectraForTokenClassification`: a discriminator with two.
    TokenClassification,
}

impl Architecture {
    /// The class name in `architectures`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::MaskedLm => "ElectraForMaskedLM",
            Self::PreTraining => "ElectraForPreTraining",
            Self::TokenClassification => "ElectraForTokenClassification",
        }
    }

    /// The architecture of a class name.
    pub fn from_class_name(name: &str) -> Option<Self> {
        [Self::MaskedLm, Self::PreTraining, Self::TokenClassification]
            .into_iter()
            .find(|a| a.class_name() == name)
    }
}

/// More parameters, in millions, than can be trained here: a mistyped or damaged size in a file
/// would otherwise end in a failed allocation.
const MOST_MILLIONS: f64 = 100_000.0;

/// Sizes and constants of one network. Defaults are those of `transformers`' `ElectraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct ElectraConfig {
    /// V.
    pub vocab_size: usize,
    /// E.
    pub embedding_size: usize,
    /// C.
    pub hidden_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// NH.
    pub num_attention_heads: usize,
    /// F.
    pub intermediate_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Token types.
    pub type_vocab_size: usize,
    /// Activation of the feed-forward layers and of the discriminator's head.
    pub hidden_act: Activation,
    /// Dropout of embeddings and of each sublayer's result.
    pub hidden_dropout_prob: f64,
    /// Dropout of attention probabilities.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the token classifier; `hidden_dropout_prob` where absent.
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Variance offset of every LayerNorm.
    pub layer_norm_eps: f64,
    /// The token whose lookups give no gradient.
    pub pad_token_id: Option<u32>,
    /// All other fields of the file, kept as they were: none changes what is computed.
    pub other: Map<String, Value>,
}

/// Deeper than any: the names of all parameters are held in memory.
const MOST_LAYERS: usize = 1024;

impl Default for ElectraConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            embedding_size: 128,
            hidden_size: 256,
            num_hidden_layers: 12,
            num_attention_heads: 4,
            intermediate_size: 1024,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            hidden_act: Activation::Gelu,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: Some(0),
            other: json::other_defaults(),
        }
    }
}

impl ElectraConfig {
    /// HS.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The approximate number of parameters, without a head.
    fn parameters(&self) -> f64 {
        let [v, e, c, f, l] = [
            self.vocab_size + self.max_position_embeddings + self.type_vocab_size,
            self.embedding_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
        ]
        .map(|size| size as f64);
        v * e + e * c + l * (4.0 * c * c + 2.0 * c * f)
    }

    /// Whether the sizes fit each other.
    pub fn validate(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::config(problem));
        let (c, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || c % heads != 0 {
            return fail(format!("`hidden_size` {c} must be a multiple of `num_attention_heads` {heads}"));
        }
        let layers = self.num_hidden_layers;
        if !(1..=MOST_LAYERS).contains(&layers) {
            return fail(format!("`num_hidden_layers` is {layers}, expected 1 to {MOST_LAYERS}"));
        }
        for (name, p) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
            ("classifier_dropout", self.classifier_dropout.unwrap_or(0.0)),
        ] {
            if !(0.0..1.0).contains(&p) {
                return fail(format!("`{name}` is {p}, expected a probability below 1"));
            }
        }
        for (name, x) in
            [("layer_norm_eps", self.layer_norm_eps), ("initializer_range", self.initializer_range)]
        {
            if !(x > 0.0 && x.is_finite()) {
                return fail(format!("`{name}` is {x}, expected a positive number"));
            }
        }
        let millions = self.parameters() / 1e6;
        if millions > MOST_MILLIONS {
            return fail(format!(
                "these sizes make {millions:.0} million parameters, expected {MOST_MILLIONS:.0} at the most"
            ));
        }
        if let Some(pad) = self.pad_token_id.filter(|&pad| pad as usize >= self.vocab_size) {
            return fail(format!(
                "`pad_token_id` {pad} is outside the vocabulary of {} tokens",
                self.vocab_size
            ));
        }
        Ok(())
    }
}

/// The sizes of the paper, and `tiny` for a first run.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// 2 layers, hidden 128; generator 64.
    Tiny,
    /// 12 layers, hidden 256, embeddings 128; generator 64.
    #[default]
    Small,
    /// 12 layers, hidden 768; generator 256.
    Base,
    /// 24 layers, hidden 1024; generator 256.
    Large,
}

impl Preset {
    /// The preset of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        <Self as clap::ValueEnum>::from_str(name, false).ok()
    }

    /// (E, C, L, hidden size of the generator)
    fn sizes(self) -> (usize, usize, usize, usize) {
        match self {
            Self::Tiny => (128, 128, 2, 64),
            Self::Small => (128, 256, 12, 64),
            Self::Base => (768, 768, 12, 256),
            Self::Large => (1024, 1024, 24, 256),
        }
    }

    fn config(self, hidden: usize, vocab_size: usize) -> ElectraConfig {
        let (embedding_size, _, layers, _) = self.sizes();
        ElectraConfig {
            vocab_size,
            embedding_size,
            hidden_size: hidden,
            num_hidden_layers: layers,
            num_attention_heads: (hidden / 64).max(1),
            intermediate_size: 4 * hidden,
            ..ElectraConfig::default()
        }
    }

    /// The discriminator.
    pub fn discriminator(self, vocab_size: usize) -> ElectraConfig {
        self.config(self.sizes().1, vocab_size)
    }

    /// The generator: 1/2 (tiny), 1/4 (small), 1/3 (base), 1/4 (large) of the discriminator's width, as deep.
    pub fn generator(self, vocab_size: usize) -> ElectraConfig {
        self.config(self.sizes().3, vocab_size)
    }

    /// Size of a vocabulary trained for it.
    pub fn vocab_size(self) -> usize {
        if self == Self::Tiny { 2048 } else { 30522 }
    }
}
