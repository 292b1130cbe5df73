//! The configuration of one ELECTRA network, as `config.json` holds it, and the sizes of the paper.

use serde_json::{Map, Value, json};

use crate::{Error, Result};

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
    /// All other fields of the file, kept as they were.
    pub other: Map<String, Value>,
}

/// Deeper than any: the names of all parameters are held in memory.
const MOST_LAYERS: usize = 1024;

/// The fields of `ElectraConfig` that training does not read, with the values `transformers` writes.
fn other_defaults() -> Map<String, Value> {
    let fields = json!({
        "add_cross_attention": false, "bos_token_id": null, "eos_token_id": null, "is_decoder": false,
        "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first",
        "summary_use_proj": true, "tie_word_embeddings": true, "transformers_version": "5.23.0",
        "use_cache": true,
    });
    if let Value::Object(map) = fields { map } else { Map::new() }
}

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
            other: other_defaults(),
        }
    }
}

/// Takes fields out of a JSON object, with defaults, and says which one is wrong.
struct Fields(Map<String, Value>);

impl Fields {
    fn size(&mut self, name: &str, default: usize) -> Result<usize> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_u64()
                .and_then(|x| usize::try_from(x).ok())
                .filter(|&x| x > 0 && x < 1 << 31)
                .ok_or_else(|| Error::config(format!("`{name}` is {value}, expected a positive integer"))),
        }
    }

    fn number(&mut self, name: &str, default: f64) -> Result<f64> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                value.as_f64().ok_or_else(|| Error::config(format!("`{name}` is {value}, expected a number")))
            }
        }
    }
}

impl ElectraConfig {
    /// HS.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Reads the object of a `config.json`; also returns its architecture, where it names one of ELECTRA's.
    pub fn from_json(object: Map<String, Value>) -> Result<(Self, Option<Architecture>)> {
        let mut f = Fields(object);
        match f.0.remove("model_type") {
            Some(Value::String(kind)) if kind == "electra" => {}
            Some(kind) => {
                return Err(Error::config(format!(
                    "`model_type` is {kind}, expected \"electra\": give an ELECTRA model"
                )));
            }
            None => {
                return Err(Error::config(
                    "there is no `model_type`, expected \"electra\": is this a model's config?",
                ));
            }
        }
        let named = f.0.remove("architectures");
        let architecture = named
            .as_ref()
            .and_then(|names| names.as_array())
            .and_then(|names| names.iter().filter_map(Value::as_str).find_map(Architecture::from_class_name));
        let hidden_act = match f.0.remove("hidden_act").as_ref().map_or(Some("gelu"), Value::as_str) {
            Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            other => {
                return Err(Error::config(format!(
                    "`hidden_act` is {other:?}; supported are gelu, gelu_new, gelu_pytorch_tanh and relu"
                )));
            }
        };
        let default = Self::default();
        let pad_token_id = match f.0.remove("pad_token_id") {
            None => default.pad_token_id,
            Some(Value::Null) => None,
            Some(value) => {
                Some(value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                    Error::config(format!("`pad_token_id` is {value}, expected a token id"))
                })?)
            }
        };
        let classifier_dropout = match f.0.remove("classifier_dropout") {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_f64().ok_or_else(|| {
                Error::config(format!("`classifier_dropout` is {value}, expected a number or null"))
            })?),
        };
        let config = Self {
            vocab_size: f.size("vocab_size", default.vocab_size)?,
            embedding_size: f.size("embedding_size", default.embedding_size)?,
            hidden_size: f.size("hidden_size", default.hidden_size)?,
            num_hidden_layers: f.size("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: f.size("num_attention_heads", default.num_attention_heads)?,
            intermediate_size: f.size("intermediate_size", default.intermediate_size)?,
            max_position_embeddings: f.size("max_position_embeddings", default.max_position_embeddings)?,
            type_vocab_size: f.size("type_vocab_size", default.type_vocab_size)?,
            hidden_act,
            hidden_dropout_prob: f.number("hidden_dropout_prob", default.hidden_dropout_prob)?,
            attention_probs_dropout_prob: f
                .number("attention_probs_dropout_prob", default.attention_probs_dropout_prob)?,
            classifier_dropout,
            initializer_range: f.number("initializer_range", default.initializer_range)?,
            layer_norm_eps: f.number("layer_norm_eps", default.layer_norm_eps)?,
            pad_token_id,
            other: {
                let mut other = other_defaults();
                f.0.remove("torch_dtype");
                f.0.remove("dtype");
                other.extend(f.0);
                other
            },
        };
        config.validate()?;
        Ok((config, architecture))
    }

    /// The object of a `config.json`, with every field of `ElectraConfig`.
    pub fn to_json(&self, architecture: Architecture) -> Value {
        let act = match self.hidden_act {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
            Activation::Relu => "relu",
        };
        let mut all = self.other.clone();
        let fields = json!({
            "architectures": [architecture.class_name()],
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "classifier_dropout": self.classifier_dropout,
            "dtype": "float32",
            "embedding_size": self.embedding_size,
            "hidden_act": act,
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "electra",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "pad_token_id": self.pad_token_id,
            "type_vocab_size": self.type_vocab_size,
            "vocab_size": self.vocab_size,
        });
        if let Value::Object(fields) = fields {
            all.extend(fields);
        }
        all.sort_keys();
        Value::Object(all)
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
        if self.layer_norm_eps <= 0.0 || self.layer_norm_eps.is_nan() {
            return fail(format!("`layer_norm_eps` is {}, expected a positive number", self.layer_norm_eps));
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
    /// 4 layers, hidden 128; generator 64.
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
            Self::Tiny => (128, 128, 4, 64),
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
        if self == Self::Tiny { 8192 } else { 30522 }
    }
}
