//! Directories of models: configurations that are honoured or refused by name, and weights that do
//! not fit them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use elektron::model::config::{Architecture, ElectraConfig};
use elektron::model::hf::{Checkpoint, HostTensor, parameter_shapes};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::cli::Scratch;
use crate::support::{golden, read_tensors};

pub(crate) const WORD: &str = "electra.embeddings.word_embeddings.weight";

pub(crate) type Tensors = BTreeMap<String, HostTensor>;

pub(crate) fn config_of(dir: &Path) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
}

pub(crate) fn write_config(dir: &Path, config: &Map<String, Value>) {
    fs::write(dir.join("config.json"), serde_json::to_string(config).unwrap()).unwrap();
}

fn write_weights(path: &Path, tensors: &Tensors) {
    let bytes: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, t)| (name.as_str(), &t.shape[..], t.data.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn weights_of(dir: &Path) -> Tensors {
    read_tensors(&dir.join("model.safetensors")).floats
}

/// A golden checkpoint with another configuration and other weights.
pub(crate) fn altered(
    scratch: &Scratch,
    name: &str,
    from: &str,
    change: impl FnOnce(&mut Map<String, Value>, &mut Tensors),
) -> PathBuf {
    let (from, dir) = (golden("checkpoints").join(from), PathBuf::from(scratch.path(name)));
    let (mut config, mut tensors) = (config_of(&from), weights_of(&from));
    change(&mut config, &mut tensors);
    fs::create_dir_all(&dir).unwrap();
    write_config(&dir, &config);
    write_weights(&dir.join("model.safetensors"), &tensors);
    dir
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let scratch = Scratch::new();
    let name = "electra.encoder.layer.0.output.dense.bias";
    let dir = altered(&scratch, "nan", "generator", |_, tensors| {
        tensors.get_mut(name).unwrap().data[1] = f32::NAN;
    });
    let error = Checkpoint::load(&dir).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains(name) && error.contains("NaN"), "{error}");
}

/// Numbers that no trained model has.
pub(crate) fn tensor(shape: &[usize]) -> HostTensor {
    let len = shape.iter().product::<usize>();
    HostTensor { shape: shape.to_vec(), data: (0..len).map(|i| 0.01 * (i % 7) as f32 - 0.02).collect() }
}

fn load_with(field: &str, value: Value) -> Result<Checkpoint, String> {
    let scratch = Scratch::new();
    let set = |config: &mut Map<String, Value>, _: &mut Tensors| {
        config.insert(field.to_owned(), value);
    };
    Checkpoint::load(&altered(&scratch, "model", "generator", set)).map_err(|e| e.to_string())
}

#[test]
fn fields_that_change_the_model_are_refused_by_name() {
    let cases = [
        ("is_decoder", json!(true), "decoder"),
        ("is_decoder", json!("false"), "expected false"),
        ("is_decoder", json!(null), "expected false"),
        ("add_cross_attention", json!(true), "cross-attention"),
        ("is_encoder_decoder", json!(true), "encoder"),
        ("position_embedding_type", json!("relative_key"), "absolute"),
        ("position_embedding_type", json!(null), "absolute"),
        ("pruned_heads", json!({"0": [1]}), "pruned"),
        ("quantization_config", json!({"load_in_8bit": true}), "quantized"),
        ("per_layer_config", json!({"0": {"hidden_act": "relu"}}), "layers"),
        ("auto_map", json!({"AutoModel": "modeling.Mine"}), "Python"),
        ("configuration_files", json!(["config.4.0.0.json"]), "config.json"),
        ("transformers_weights", json!("other.safetensors"), "model.safetensors"),
        ("model_type", json!("bert"), "electra"),
        ("model_type", json!("roberta"), "electra"),
        ("model_type", json!(5), "electra"),
        ("architectures", json!("ElectraForMaskedLM"), "list"),
        ("architectures", json!([5]), "list"),
        ("tie_word_embeddings", json!("no"), "true or false"),
        ("hidden_act", json!("swish"), "is \"swish\", supported are gelu"),
        ("hidden_act", json!(5), "is 5, supported are gelu"),
        ("hidden_act", json!(null), "is null, supported are gelu"),
        ("hidden_size", json!("32"), "positive integer"),
        ("hidden_size", json!(32.0), "positive integer"),
        ("hidden_size", json!(null), "positive integer"),
        ("hidden_size", json!(-32), "positive integer"),
        ("vocab_size", json!(0), "positive integer"),
        ("layer_norm_eps", json!(0), "positive number"),
        ("layer_norm_eps", json!(-1e-12), "positive number"),
        ("layer_norm_eps", json!("1e-12"), "expected a number"),
        ("layer_norm_eps", json!({"__float__": "NaN"}), "expected a number"),
        ("initializer_range", json!(-0.02), "positive number"),
        ("initializer_range", json!(0.0), "positive number"),
        ("hidden_dropout_prob", json!(1.0), "below 1"),
        ("num_attention_heads", json!(5), "multiple"),
        ("attention_probs_dropout_prob", json!(-0.1), "below 1"),
        ("classifier_dropout", json!(true), "number or null"),
        ("pad_token_id", json!(-1), "token id"),
        ("pad_token_id", json!(1000), "1000 tokens"),
        ("eos_token_id", json!("[SEP]"), "token id"),
        ("use_cache", json!(3), "true or false"),
        ("chunk_size_feed_forward", json!(-4), "whole number"),
        ("problem_type", json!("guess"), "regression"),
        ("id2label", json!(["a", "b"]), "labels"),
        ("num_labels", json!(0), "positive integer"),
        ("summary_type", json!(5), "text"),
    ];
    for (field, value, words) in cases {
        let error = load_with(field, value.clone()).expect_err(&format!("{field} {value}"));
        for word in [field, words, "config.json"] {
            assert!(error.contains(word), "{field} {value}: {error}");
        }
        assert!(!error.contains("Some(") && !error.contains("String("), "{error}");
    }
    let scratch = Scratch::new();
    let both = altered(&scratch, "labels", "generator", |config, _| {
        config.insert("num_labels".to_owned(), json!(3));
        config.insert("id2label".to_owned(), json!({"0": "a", "1": "b"}));
    });
    let error = Checkpoint::load(&both).unwrap_err().to_string();
    assert!(error.contains("`num_labels` is 3") && error.contains("2 labels"), "{error}");
    let huge = load_with("intermediate_size", json!(1u64 << 30)).unwrap_err();
    assert!(huge.contains("million parameters") && huge.contains("config.json"), "{huge}");
}

#[test]
fn fields_that_change_nothing_are_kept() {
    let scratch = Scratch::new();
    let kept = json!({
        "use_cache": false, "chunk_size_feed_forward": 4, "attn_implementation": "eager",
        "output_hidden_states": true, "torchscript": true, "pruned_heads": {}, "auto_map": null,
        "position_embedding_type": "absolute", "problem_type": "regression", "num_beams": 3,
        "summary_type": "cls_index", "eos_token_id": [3, 4], "my_own_field": {"x": 1},
    });
    let dir = altered(&scratch, "model", "generator", |config, _| {
        config.extend(kept.as_object().unwrap().clone());
        config.insert("torch_dtype".to_owned(), json!("float16"));
    });
    let loaded = Checkpoint::load(&dir).unwrap();
    assert_eq!(loaded.config.unknown_fields(), ["my_own_field"]);
    let out = PathBuf::from(scratch.path("out"));
    loaded.save(&out).unwrap();
    let written = config_of(&out);
    for (name, value) in kept.as_object().unwrap() {
        assert_eq!(written.get(name), Some(value), "{name}");
    }
    assert_eq!(written["dtype"], "float32", "what the weights are written as");
    assert!(!written.contains_key("torch_dtype"));
    assert_eq!(Checkpoint::load(&out).unwrap(), loaded);
    for (name, function) in [("gelu_python", "gelu"), ("gelu_new", "gelu_pytorch_tanh"), ("relu", "relu")] {
        let config = load_with("hidden_act", json!(name)).unwrap().config;
        assert_eq!(config.to_json(Architecture::MaskedLm)["hidden_act"], function);
    }
}

#[test]
fn sizes_that_disagree_are_both_named_with_the_file() {
    let scratch = Scratch::new();
    for (field, size, words) in [
        (
            "vocab_size",
            900,
            "`vocab_size` is 900 in config.json, but tensor `electra.embeddings.word_embeddings.weight` has 1000 rows",
        ),
        (
            "max_position_embeddings",
            512,
            "is 512 in config.json, but tensor `electra.embeddings.position_embeddings.weight` has 64 rows",
        ),
        (
            "type_vocab_size",
            1,
            "is 1 in config.json, but tensor `electra.embeddings.token_type_embeddings.weight` has 2 rows",
        ),
        (
            "intermediate_size",
            96,
            "is 96 in config.json, but tensor `electra.encoder.layer.0.intermediate.dense.bias` has 128 rows",
        ),
        ("hidden_size", 48, "is 48 in config.json, but tensor"),
        ("embedding_size", 16, "is 16 in config.json, but tensor"),
        ("num_hidden_layers", 3, "`num_hidden_layers` 3, the weights have 2 layers"),
        ("num_hidden_layers", 1, "`num_hidden_layers` 1, the weights have 2 layers"),
    ] {
        let dir = altered(&scratch, &format!("{field}{size}"), "discriminator_pre", |config, _| {
            config.insert(field.to_owned(), json!(size));
        });
        let error = Checkpoint::load(&dir).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(field), "{field}: {error}");
        let file = if size == 3 { &field[..0] } else { "model.safetensors" };
        assert!(error.contains(file) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn a_pointer_of_git_lfs_is_called_that() {
    let scratch = Scratch::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 54236116\n";
    for file in ["config.json", "model.safetensors", "model.safetensors.index.json"] {
        let dir = altered(&scratch, file, "generator", |_, _| {});
        if file.ends_with("index.json") {
            fs::remove_file(dir.join("model.safetensors")).unwrap();
        }
        fs::write(dir.join(file), pointer).unwrap();
        let error = Checkpoint::load(&dir).unwrap_err().to_string();
        assert!(error.contains("Git LFS pointer") && error.contains(file), "{error}");
    }
}

#[test]
fn tensors_of_another_model_are_named() {
    let scratch = Scratch::new();
    let prefixed = altered(&scratch, "prefixed", "generator", |_, tensors| {
        let all = std::mem::take(tensors).into_iter();
        *tensors = all.map(|(name, tensor)| (format!("module.{name}"), tensor)).collect();
    });
    let error = Checkpoint::load(&prefixed).unwrap_err().to_string();
    for word in ["model.safetensors", "`module.", WORD] {
        assert!(error.contains(word), "{error}");
    }
    let twice = altered(&scratch, "twice", "generator", |_, tensors| {
        let bare = WORD.trim_start_matches("electra.").to_owned();
        tensors.insert(bare, tensors[WORD].clone());
    });
    let error = Checkpoint::load(&twice).unwrap_err().to_string();
    assert!(error.contains("second time") && error.contains(WORD), "{error}");
    let half = altered(&scratch, "half", "generator", |_, tensors| {
        tensors.remove("generator_lm_head.bias");
    });
    let error = Checkpoint::load(&half).unwrap_err().to_string();
    assert!(error.contains("generator_lm_head.bias") && error.contains("missing"), "{error}");
    let pair = altered(&scratch, "pair", "generator", |_, _| {});
    for network in ["generator", "discriminator"] {
        fs::create_dir(pair.join(network)).unwrap();
        fs::write(pair.join(network).join("config.json"), "{}").unwrap();
    }
    assert!(Checkpoint::load(&pair).unwrap_err().to_string().contains("directory of a run"));
    let file = pair.join("config.json");
    assert!(Checkpoint::load(&file).unwrap_err().to_string().contains("this is a file"));
}

#[test]
fn every_class_has_the_shapes_that_its_configuration_names() {
    let config = ElectraConfig { hidden_size: 64, embedding_size: 32, ..ElectraConfig::default() };
    let shapes: BTreeMap<_, _> =
        parameter_shapes(&config, Architecture::TokenClassification).into_iter().collect();
    assert_eq!(shapes["classifier.weight"], [2, 64]);
    assert_eq!(shapes["electra.embeddings_project.weight"], [64, 32]);
}
