//! The `config.json` of `transformers`, read and written.
//!
//! Every field that changes what `transformers` computes is either honoured or refused by name, so
//! that a model computes the same there before and after training. Of the others, those that
//! `transformers` knows are kept as they were, and those that it does not know are kept and named
//! by [`ElectraConfig::unknown_fields`].

use serde_json::{Map, Value, json};

use super::{Activation, Architecture, ElectraConfig};
use crate::{Error, Result};

/// What a `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    /// Sizes and constants.
    pub config: ElectraConfig,
    /// The class names in `architectures`.
    pub classes: Vec<String>,
    /// `tie_word_embeddings`: whether the generator's head has the word embeddings as its weight.
    /// Elektron always ties the two, and writes `true`.
    pub tied: bool,
}

impl ConfigFile {
    /// The first of the classes that has one of the heads trained here.
    pub fn architecture(&self) -> Option<Architecture> {
        self.classes.iter().find_map(|name| Architecture::from_class_name(name))
    }
}

/// What a field must be, so that the model computed here is the one that `transformers` computes.
enum Rule {
    /// `true` or `false`: either changes nothing.
    Bool,
    /// As `Bool`, or null.
    OptionalBool,
    /// Any string.
    Text,
    /// Any number.
    Number,
    /// A whole number from 0 on.
    Count,
    /// A token id or null.
    TokenId,
    /// A token id, a list of them, or null.
    TokenIds,
    /// Null or an object.
    Object,
    /// Null or an object of labels by their numbers.
    Labels,
    /// Null or one of these texts.
    OneOf(&'static [&'static str]),
    /// Only values that the function accepts, since any other makes a different model; the text
    /// says what is expected and why.
    Only(fn(&Value) -> bool, &'static str),
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// The fields of `PretrainedConfig` and `ElectraConfig`, of `transformers` 4 and 5, that are not in
/// [`ElectraConfig`]'s own.
const RULES: &[(&str, Rule)] = &[
    ("is_decoder", Rule::Only(is_false, "expected false: a decoder attends to earlier tokens only")),
    ("add_cross_attention", Rule::Only(is_false, "expected false: Elektron has no cross-attention")),
    ("is_encoder_decoder", Rule::Only(is_false, "expected false: ELECTRA is an encoder")),
    (
        "position_embedding_type",
        Rule::Only(|v| v == "absolute", "expected \"absolute\": Elektron has no relative positions"),
    ),
    ("pruned_heads", Rule::Only(is_empty, "expected {}: Elektron does not read pruned attention heads")),
    (
        "quantization_config",
        Rule::Only(
            is_empty,
            "expected none: Elektron does not read quantized weights; save the model unquantized",
        ),
    ),
    (
        "per_layer_config",
        Rule::Only(is_empty, "expected none: in Elektron all layers have the same settings"),
    ),
    (
        "auto_map",
        Rule::Only(
            is_empty,
            "expected none: Elektron cannot run a model's own Python code; remove the field if the \
             model is a plain ELECTRA",
        ),
    ),
    (
        "configuration_files",
        Rule::Only(is_empty, "expected none: copy the file that it names to config.json"),
    ),
    (
        "transformers_weights",
        Rule::Only(is_empty, "expected none: rename the file that it names to model.safetensors"),
    ),
    ("use_cache", Rule::Bool),
    ("tie_encoder_decoder", Rule::Bool),
    ("tie_last_hidden_states", Rule::OptionalBool),
    ("torchscript", Rule::Bool),
    ("use_bfloat16", Rule::Bool),
    ("tf_legacy_loss", Rule::Bool),
    ("gradient_checkpointing", Rule::Bool),
    ("output_attentions", Rule::OptionalBool),
    ("output_hidden_states", Rule::OptionalBool),
    ("output_past", Rule::OptionalBool),
    ("return_dict", Rule::OptionalBool),
    ("summary_use_proj", Rule::Bool),
    ("summary_proj_to_labels", Rule::Bool),
    ("summary_type", Rule::Text),
    ("summary_activation", Rule::Text),
    ("summary_first_dropout", Rule::Number),
    ("summary_last_dropout", Rule::Number),
    ("chunk_size_feed_forward", Rule::Count),
    ("bos_token_id", Rule::TokenId),
    ("sep_token_id", Rule::TokenId),
    ("cls_token_id", Rule::TokenId),
    ("mask_token_id", Rule::TokenId),
    ("unk_token_id", Rule::TokenId),
    ("decoder_start_token_id", Rule::TokenId),
    ("eos_token_id", Rule::TokenIds),
    ("id2label", Rule::Labels),
    ("label2id", Rule::Object),
    ("task_specific_params", Rule::Object),
    (
        "problem_type",
        Rule::OneOf(&["regression", "single_label_classification", "multi_label_classification"]),
    ),
];

/// Fields that may be anything: where a model came from, how `transformers` computes the same
/// attention, and settings of generation, which `transformers` 4 kept in the configuration.
const FREE: &[&str] = &[
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "_num_labels",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "experts_implementation",
    "_experts_implementation_internal",
    "cross_attention_hidden_size",
    "finetuning_task",
    "prefix",
    "tokenizer_class",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

impl Rule {
    /// What was expected, where `value` is not that.
    fn broken_by(&self, value: &Value) -> Option<String> {
        let token = |value: &Value| value.as_u64().is_some_and(|id| id <= u64::from(u32::MAX));
        let (kept, expected) = match self {
            Self::Bool => (value.is_boolean(), "expected true or false"),
            Self::OptionalBool => (value.is_boolean() || value.is_null(), "expected true or false"),
            Self::Text => (value.is_string(), "expected a text"),
            Self::Number => (value.is_number(), "expected a number"),
            Self::Count => (value.is_u64(), "expected a whole number from 0 on"),
            Self::TokenId => (value.is_null() || token(value), "expected a token id or null"),
            Self::TokenIds => {
                let list = value.as_array().is_some_and(|ids| ids.iter().all(token));
                (list || value.is_null() || token(value), "expected a token id, a list of them, or null")
            }
            Self::Object => (value.is_null() || value.is_object(), "expected an object"),
            Self::Labels => {
                let numbered = |map: &Map<String, Value>| map.keys().all(|key| key.parse::<i64>().is_ok());
                let object = value.as_object().is_some_and(numbered);
                (object || value.is_null(), "expected an object of labels by their numbers")
            }
            Self::OneOf(known) => {
                let one = value.as_str().is_some_and(|text| known.contains(&text));
                if one || value.is_null() {
                    return None;
                }
                return Some(format!("expected null or one of {}", known.join(", ")));
            }
            Self::Only(fits, why) => (fits(value), *why),
        };
        (!kept).then(|| expected.to_owned())
    }
}

/// The fields of `ElectraConfig` that training does not read, with the values that `transformers`
/// writes.
pub(super) fn other_defaults() -> Map<String, Value> {
    let fields = json!({
        "add_cross_attention": false, "bos_token_id": null, "eos_token_id": null, "is_decoder": false,
        "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first",
        "summary_use_proj": true, "transformers_version": "5.23.0", "use_cache": true,
    });
    if let Value::Object(map) = fields { map } else { Map::new() }
}

/// Takes fields out of a JSON object, with defaults, and says which one is wrong.
struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a field, converted by `read`, which returns `None` if the value is not as expected.
    fn take<T>(
        &mut self,
        name: &str,
        default: T,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        match self.0.remove(name) {
            None => Ok(default),
            Some(value) => {
                read(&value).ok_or_else(|| Error::config(format!("`{name}` is {value}, {expected}")))
            }
        }
    }

    fn size(&mut self, name: &str, default: usize) -> Result<usize> {
        let read = |value: &Value| {
            value.as_u64().and_then(|x| usize::try_from(x).ok()).filter(|&x| x > 0 && x < 1 << 31)
        };
        self.take(name, default, "expected a positive integer", read)
    }

    fn number(&mut self, name: &str, default: f64) -> Result<f64> {
        self.take(name, default, "expected a number", Value::as_f64)
    }
}

fn activation(name: &Value) -> Option<Activation> {
    // Several names are of one function, computed in different ways.
    match name.as_str()? {
        "gelu" | "gelu_python" => Some(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
            Some(Activation::GeluTanh)
        }
        "relu" => Some(Activation::Relu),
        _ => None,
    }
}

impl ElectraConfig {
    /// Reads the object of a `config.json`. The error names the field, what it is and what was
    /// expected.
    pub fn from_json(object: Map<String, Value>) -> Result<ConfigFile> {
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
        let classes = f.take("architectures", Vec::new(), "expected a list of class names", |value| {
            let names = value.as_array().map_or(&[][..], Vec::as_slice);
            let names: Option<Vec<_>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
            names.filter(|_| value.is_array() || value.is_null())
        })?;
        let tied = f.take("tie_word_embeddings", true, "expected true or false", Value::as_bool)?;
        let default = Self::default();
        let optional = |value: &Value, inner: Option<f64>| match (value, inner) {
            (Value::Null, _) => Some(None),
            (_, Some(number)) => Some(Some(number)),
            _ => None,
        };
        let pad_token_id =
            f.take("pad_token_id", default.pad_token_id, "expected a token id or null", |v| {
                let id = v.as_u64().and_then(|id| u32::try_from(id).ok());
                if v.is_null() { Some(None) } else { id.map(Some) }
            })?;
        let config = Self {
            vocab_size: f.size("vocab_size", default.vocab_size)?,
            embedding_size: f.size("embedding_size", default.embedding_size)?,
            hidden_size: f.size("hidden_size", default.hidden_size)?,
            num_hidden_layers: f.size("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: f.size("num_attention_heads", default.num_attention_heads)?,
            intermediate_size: f.size("intermediate_size", default.intermediate_size)?,
            max_position_embeddings: f.size("max_position_embeddings", default.max_position_embeddings)?,
            type_vocab_size: f.size("type_vocab_size", default.type_vocab_size)?,
            hidden_act: f.take(
                "hidden_act",
                Activation::Gelu,
                "supported are gelu, gelu_new, gelu_pytorch_tanh and relu",
                activation,
            )?,
            hidden_dropout_prob: f.number("hidden_dropout_prob", default.hidden_dropout_prob)?,
            attention_probs_dropout_prob: f
                .number("attention_probs_dropout_prob", default.attention_probs_dropout_prob)?,
            classifier_dropout: f.take("classifier_dropout", None, "expected a number or null", |value| {
                optional(value, value.as_f64())
            })?,
            initializer_range: f.number("initializer_range", default.initializer_range)?,
            layer_norm_eps: f.number("layer_norm_eps", default.layer_norm_eps)?,
            pad_token_id,
            other: other(f.0)?,
        };
        config.validate()?;
        Ok(ConfigFile { config, classes, tied })
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
            "tie_word_embeddings": true,
            "type_vocab_size": self.type_vocab_size,
            "vocab_size": self.vocab_size,
        });
        if let Value::Object(fields) = fields {
            all.extend(fields);
        }
        all.sort_keys();
        Value::Object(all)
    }

    /// The fields that neither `transformers` nor Elektron knows: they change nothing.
    pub fn unknown_fields(&self) -> Vec<&str> {
        let known = |name: &str| FREE.contains(&name) || RULES.iter().any(|(known, _)| *known == name);
        self.other.keys().map(String::as_str).filter(|name| !known(name)).collect()
    }

    /// Labels of a classification head: those in `id2label`, else two.
    pub fn num_labels(&self) -> usize {
        self.other.get("id2label").and_then(Value::as_object).map_or(2, Map::len)
    }

    /// Removes the labels of a head that is not kept.
    pub fn remove_labels(&mut self) {
        for name in ["id2label", "label2id", "problem_type", "finetuning_task"] {
            self.other.remove(name);
        }
    }
}

/// The fields that change nothing. An error if the value of one is not what its rule allows.
fn other(mut fields: Map<String, Value>) -> Result<Map<String, Value>> {
    // The weights are written in fp32, whatever they were read from.
    fields.remove("torch_dtype");
    fields.remove("dtype");
    for (name, rule) in RULES {
        if let Some(value) = fields.get(*name)
            && let Some(expected) = rule.broken_by(value)
        {
            return Err(Error::config(format!("`{name}` is {value}, {expected}")));
        }
    }
    labels(&mut fields)?;
    let mut other = other_defaults();
    other.extend(fields);
    Ok(other)
}

/// Replaces `num_labels` by `id2label` and `label2id`, as `transformers` stores it.
fn labels(fields: &mut Map<String, Value>) -> Result<()> {
    let Some(number) = fields.remove("num_labels").filter(|number| !number.is_null()) else {
        return Ok(());
    };
    let count = number.as_u64().filter(|&count| (1..1 << 20).contains(&count));
    let count = count
        .ok_or_else(|| Error::config(format!("`num_labels` is {number}, expected a positive integer")))?;
    match fields.get("id2label").and_then(Value::as_object).map(Map::len) {
        Some(named) if named as u64 != count => Err(Error::config(format!(
            "`num_labels` is {count}, but `id2label` names {named} labels: remove the one that is wrong"
        ))),
        Some(_) => Ok(()),
        None => {
            let name = |i: u64| format!("LABEL_{i}");
            let by_id = (0..count).map(|i| (i.to_string(), Value::from(name(i))));
            fields.insert("id2label".to_owned(), Value::Object(by_id.collect()));
            let by_name = (0..count).map(|i| (name(i), Value::from(i)));
            fields.insert("label2id".to_owned(), Value::Object(by_name.collect()));
            Ok(())
        }
    }
}
