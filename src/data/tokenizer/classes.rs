//! The tokenizer classes of `transformers` that are supported.
//!
//! A class either uses `tokenizer.json` as it is, or rebuilds a pipeline of its own around the
//! vocabulary. Settings of tokenizer_config.json override tokenizer.json where they do so in every
//! version of `transformers`; if the pipelines differ in anything else, versions 4 and 5 disagree
//! about the ids, and the tokenizer is refused.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Attributes of named special tokens, in the order of `transformers`.
pub(super) const ATTRIBUTES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The pipeline that a class builds from the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pipeline {
    /// `tokenizer.json` as it is.
    AsWritten,
    /// WordPiece with BERT's normalizer and pre-tokenizer.
    Bert,
    /// Byte-level BPE.
    ByteLevel,
    /// Unigram of XLM-RoBERTa.
    XlmRoberta,
    /// Unigram of ALBERT.
    Albert,
    /// Unigram of DeBERTa-v2 and v3.
    DebertaV2,
}

/// A class, or several with the same behaviour.
#[derive(Debug)]
pub(super) struct Class {
    names: &'static [&'static str],
    pub(super) pipeline: Pipeline,
    /// Names of the special tokens if the settings give none, in the order of [`ATTRIBUTES`].
    pub(super) defaults: [Option<&'static str>; 7],
}

const BERT_NAMES: [Option<&str>; 7] =
    [None, None, Some("[UNK]"), Some("[SEP]"), Some("[PAD]"), Some("[CLS]"), Some("[MASK]")];
const ROBERTA_NAMES: [Option<&str>; 7] =
    [Some("<s>"), Some("</s>"), Some("<unk>"), Some("</s>"), Some("<pad>"), Some("<s>"), Some("<mask>")];
const GPT2_NAMES: [Option<&str>; 7] =
    [Some("<|endoftext|>"), Some("<|endoftext|>"), Some("<|endoftext|>"), None, None, None, None];
const DEBERTA_NAMES: [Option<&str>; 7] = [
    Some("[CLS]"),
    Some("[SEP]"),
    Some("[UNK]"),
    Some("[SEP]"),
    Some("[PAD]"),
    Some("[CLS]"),
    Some("[MASK]"),
];
const ALBERT_NAMES: [Option<&str>; 7] = [
    Some("[CLS]"),
    Some("[SEP]"),
    Some("<unk>"),
    Some("[SEP]"),
    Some("<pad>"),
    Some("[CLS]"),
    Some("[MASK]"),
];

/// The class of a `tokenizer.json` whose class is not named.
pub(super) static AS_WRITTEN: Class = Class {
    names: &["PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend"],
    pipeline: Pipeline::AsWritten,
    defaults: [None; 7],
};

/// The class of a `vocab.txt` whose class is not named.
pub(super) static BERT: Class = Class {
    names: &[
        "BertTokenizer",
        "ElectraTokenizer",
        "DistilBertTokenizer",
        "MobileBertTokenizer",
        "ConvBertTokenizer",
        "LayoutLMTokenizer",
        "SqueezeBertTokenizer",
        "LxmertTokenizer",
        "DPRContextEncoderTokenizer",
        "DPRQuestionEncoderTokenizer",
    ],
    pipeline: Pipeline::Bert,
    defaults: BERT_NAMES,
};

/// The class of a `vocab.json` with `merges.txt` whose class is not named.
pub(super) static ROBERTA: Class = Class {
    names: &["RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer"],
    pipeline: Pipeline::ByteLevel,
    defaults: ROBERTA_NAMES,
};

static OTHERS: [Class; 5] = [
    Class { names: &["GPT2Tokenizer"], pipeline: Pipeline::ByteLevel, defaults: GPT2_NAMES },
    Class { names: &["DebertaTokenizer"], pipeline: Pipeline::ByteLevel, defaults: DEBERTA_NAMES },
    Class { names: &["XLMRobertaTokenizer"], pipeline: Pipeline::XlmRoberta, defaults: ROBERTA_NAMES },
    Class { names: &["AlbertTokenizer"], pipeline: Pipeline::Albert, defaults: ALBERT_NAMES },
    Class { names: &["DebertaV2Tokenizer"], pipeline: Pipeline::DebertaV2, defaults: DEBERTA_NAMES },
];

/// The class of a name, with or without `Fast`.
pub(super) fn class(name: &str) -> Option<&'static Class> {
    let name = name.strip_suffix("Fast").unwrap_or(name);
    let known =
        |class: &&Class| class.names.iter().any(|one| one.strip_suffix("Fast").unwrap_or(one) == name);
    [&AS_WRITTEN, &BERT, &ROBERTA].into_iter().chain(&OTHERS).find(known)
}

/// The class that `transformers` takes for a model of this type whose tokenizer names none.
pub(super) fn class_of_model(model_type: &str) -> Option<&'static str> {
    const OF_BERT: [&str; 18] = [
        "electra",
        "bert",
        "convbert",
        "distilbert",
        "dpr",
        "ernie",
        "layoutlm",
        "lxmert",
        "megatron-bert",
        "mobilebert",
        "nezha",
        "nomic_bert",
        "qdqbert",
        "realm",
        "retribert",
        "squeezebert",
        "visual_bert",
        "flava",
    ];
    const OF_ROBERTA: [&str; 8] =
        ["roberta", "bart", "data2vec-text", "ibert", "lilt", "longformer", "mra", "roberta-prelayernorm"];
    match model_type {
        _ if OF_BERT.contains(&model_type) => Some("BertTokenizer"),
        _ if OF_ROBERTA.contains(&model_type) => Some("RobertaTokenizer"),
        _ if TAKES_JSON.contains(&model_type) => Some("PreTrainedTokenizerFast"),
        "gpt2" | "gpt_neo" | "gptj" | "opt" => Some("GPT2Tokenizer"),
        "deberta" => Some("DebertaTokenizer"),
        "deberta-v2" => Some("DebertaV2Tokenizer"),
        "albert" | "yoso" => Some("AlbertTokenizer"),
        "xlm-roberta" | "xmod" => Some("XLMRobertaTokenizer"),
        _ => None,
    }
}

/// Models for which `transformers` takes `tokenizer.json` as it is, whatever class is named.
pub(super) const TAKES_JSON: [&str; 5] =
    ["modernbert", "modernbert-decoder", "nystromformer", "xlm-roberta-xl", "umt5"];

/// Changes the pipeline of a `tokenizer.json` to the one that a class builds, or returns an error
/// that names the part in which the two differ. Each setting of tokenizer_config.json that
/// overrides tokenizer.json is reported.
pub(super) fn apply(
    class: &Class,
    name: &str,
    unk: &str,
    settings: &Map<String, Value>,
    definition: &mut Value,
    path: &Path,
) -> Result<()> {
    let refuse = |part: &str, found: &Value| {
        let mut found = found.to_string();
        if let Some((at, _)) = found.char_indices().nth(120) {
            found.truncate(at);
            found.push('…');
        }
        Error::file(
            path,
            format!(
                "its {part} is {found}, but `tokenizer_class` in tokenizer_config.json is {name}, \
                 for which transformers 5 builds another pipeline than this file's, which \
                 transformers 4 uses: write PreTrainedTokenizerFast as `tokenizer_class` to use \
                 this file as it is"
            ),
        )
    };
    let (model_type, model_settings) = model_of(class, unk, &definition["model"]);
    let model = &definition["model"];
    // Older files name no type.
    if model.get("type").is_some_and(|found| *found != model_type) {
        return Err(refuse("model.type", &model["type"]));
    }
    for (key, allowed) in model_settings {
        let found = model.get(key).unwrap_or(&Value::Null);
        if !allowed.contains(found) {
            return Err(refuse(&format!("model.{key}"), found));
        }
    }
    let setting = |key: &str, default: Value| match settings.get(key) {
        None => default,
        Some(value) => value.clone(),
    };
    match class.pipeline {
        Pipeline::AsWritten => Ok(()),
        Pipeline::Bert => {
            if definition["pre_tokenizer"]["type"] != "BertPreTokenizer" {
                return Err(refuse("pre_tokenizer", &definition["pre_tokenizer"]));
            }
            let normalizer = &definition["normalizer"];
            if normalizer["type"] != "BertNormalizer" || normalizer["clean_text"] == false {
                return Err(refuse("normalizer", normalizer));
            }
            for (key, inner, default) in [
                ("do_lower_case", "lowercase", json!(true)),
                ("tokenize_chinese_chars", "handle_chinese_chars", json!(true)),
                ("strip_accents", "strip_accents", Value::Null),
            ] {
                override_with(&mut definition["normalizer"], inner, key, setting(key, default), path);
            }
            definition["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
            Ok(())
        }
        Pipeline::ByteLevel => {
            if !definition["normalizer"].is_null() {
                return Err(refuse("normalizer", &definition["normalizer"]));
            }
            let pre_tokenizer = &definition["pre_tokenizer"];
            if pre_tokenizer["type"] != "ByteLevel" || pre_tokenizer["use_regex"] == false {
                return Err(refuse("pre_tokenizer", pre_tokenizer));
            }
            let (key, wanted) = ("add_prefix_space", setting("add_prefix_space", json!(false)));
            override_with(&mut definition["pre_tokenizer"], key, key, wanted, path);
            definition["decoder"] = json!({
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
            });
            Ok(())
        }
        Pipeline::XlmRoberta | Pipeline::Albert | Pipeline::DebertaV2 => {
            let (normalizers, pre_tokenizer) = unigram_pipeline(class.pipeline, settings, definition);
            if steps(&definition["normalizer"], "normalizers") != normalizers {
                return Err(refuse("normalizer", &definition["normalizer"]));
            }
            let found = steps(&definition["pre_tokenizer"], "pretokenizers");
            if found.iter().map(metaspace).collect::<Vec<_>>() != pre_tokenizer {
                return Err(refuse("pre_tokenizer", &definition["pre_tokenizer"]));
            }
            // The last step is the Metaspace, whose inverse has the same settings.
            definition["decoder"] = pre_tokenizer.last().cloned().unwrap_or_default();
            Ok(())
        }
    }
}

/// The type of a class's model and, for each setting of the model, the values that agree with the
/// class.
fn model_of(class: &Class, unk: &str, model: &Value) -> (Value, Vec<(&'static str, Vec<Value>)>) {
    let off = || vec![Value::Null, json!(false)];
    let unigram = |id: usize| ("unk_id", vec![json!(id)]);
    let index_of_unk = || {
        let vocab = model["vocab"].as_array().map(Vec::as_slice).unwrap_or_default();
        vocab.iter().position(|token| token[0] == unk && token[1].as_f64() == Some(0.0)).unwrap_or(1)
    };
    match class.pipeline {
        Pipeline::AsWritten => (model["type"].clone(), Vec::new()),
        Pipeline::Bert => (
            json!("WordPiece"),
            vec![
                ("unk_token", vec![json!(unk)]),
                ("continuing_subword_prefix", vec![Value::Null, json!("##")]),
                ("max_input_chars_per_word", vec![Value::Null, json!(100)]),
            ],
        ),
        Pipeline::ByteLevel => (
            json!("BPE"),
            vec![
                ("unk_token", vec![Value::Null]),
                ("continuing_subword_prefix", vec![Value::Null, json!("")]),
                ("end_of_word_suffix", vec![Value::Null, json!("")]),
                ("fuse_unk", off()),
                ("byte_fallback", off()),
                ("ignore_merges", off()),
            ],
        ),
        Pipeline::XlmRoberta => (json!("Unigram"), vec![unigram(3), ("byte_fallback", off())]),
        Pipeline::Albert => (json!("Unigram"), vec![unigram(1), ("byte_fallback", off())]),
        Pipeline::DebertaV2 => (json!("Unigram"), vec![unigram(index_of_unk()), ("byte_fallback", off())]),
    }
}

/// Normalizers and pre-tokenizers of the classes with Unigram models.
fn unigram_pipeline(
    pipeline: Pipeline,
    settings: &Map<String, Value>,
    definition: &Value,
) -> (Vec<Value>, Vec<Value>) {
    let on = |key: &str, default: bool| settings.get(key).and_then(Value::as_bool).unwrap_or(default);
    let present = steps(&definition["normalizer"], "normalizers");
    let charsmap = present.iter().find(|step| step["type"] == "Precompiled").cloned();
    let replace =
        |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let spaces = replace(json!({ "Regex": " {2,}" }), " ");
    let mut normalizers = Vec::new();
    let scheme = |otherwise: &str| if on("add_prefix_space", true) { "always" } else { otherwise }.to_owned();
    let metaspace = |scheme: String| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true });
    let whitespace = json!({ "type": "WhitespaceSplit" });
    match pipeline {
        Pipeline::DebertaV2 => {
            if on("do_lower_case", false) {
                normalizers.push(json!({ "type": "Lowercase" }));
            }
            normalizers.push(replace(json!({ "Regex": r"\s{2,}|[\n\r\t]" }), " "));
            normalizers.push(json!({ "type": "NFC" }));
            normalizers.push(json!({ "type": "Strip", "strip_left": false, "strip_right": true }));
            let mut steps = Vec::new();
            if on("split_by_punct", false) {
                steps.push(json!({ "type": "Punctuation", "behavior": "Isolated" }));
            }
            steps.push(metaspace(scheme("first")));
            return (normalizers, steps);
        }
        Pipeline::Albert => {
            normalizers.push(replace(json!({ "String": "``" }), "\""));
            normalizers.push(replace(json!({ "String": "''" }), "\""));
            if !on("keep_accents", false) {
                normalizers.push(json!({ "type": "NFKD" }));
                normalizers.push(json!({ "type": "StripAccents" }));
            }
            if on("do_lower_case", true) {
                normalizers.push(json!({ "type": "Lowercase" }));
            }
            normalizers.extend(charsmap);
        }
        _ => normalizers.extend(charsmap),
    }
    // Words are split at white space next, so the number of spaces does not matter.
    if present.last() == Some(&spaces) {
        normalizers.push(spaces);
    }
    (normalizers, vec![whitespace, metaspace(scheme("never"))])
}

/// The steps of a pipeline: those of a sequence, or the one there is.
fn steps(value: &Value, key: &str) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        _ if value["type"] == "Sequence" => value[key].as_array().cloned().unwrap_or_default(),
        one => vec![one.clone()],
    }
}

/// A Metaspace step with the current names of its settings; older files have `add_prefix_space` and
/// `str_rep`.
fn metaspace(step: &Value) -> Value {
    if step["type"] != "Metaspace" {
        return step.clone();
    }
    let scheme = match (step["prepend_scheme"].as_str(), step["add_prefix_space"].as_bool()) {
        (Some(scheme), _) => scheme,
        (None, Some(false)) => "never",
        _ => "always",
    };
    let split = step["split"].as_bool().unwrap_or(true);
    json!({ "type": "Metaspace", "replacement": step["replacement"], "prepend_scheme": scheme, "split": split })
}

fn override_with(part: &mut Value, inner: &str, setting: &str, wanted: Value, path: &Path) {
    let found = part.get(inner).cloned().unwrap_or(Value::Null);
    if found != wanted {
        crate::note!(
            "{}: `{inner}` is {found}, but by `{setting}` of tokenizer_config.json or its class it \
             is {wanted}, which is used, as in transformers",
            path.display()
        );
        part[inner] = wanted;
    }
}
