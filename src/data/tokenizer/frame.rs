//! The frame of special tokens around a text: `[CLS] a [SEP]`, and `[CLS] a [SEP] b [SEP]` with
//! token types 0 and 1.
//!
//! Every row in training has this frame, so every tokenizer that is written has it too, whatever
//! its own was.

use serde_json::{Value, json};
use tokenizers::{Encoding, PostProcessorWrapper, Token};

use super::Inner;
use crate::{Error, Result};

/// Name and id of a special token.
pub(super) type Named<'a> = (&'a str, u32);

/// Whether texts and pairs are framed as in training.
pub(super) fn is_training_frame(inner: &Inner, (_, cls): Named<'_>, (_, sep): Named<'_>) -> bool {
    const TEXT: u32 = u32::MAX;
    let dummy = |type_id| Encoding::from_tokens(vec![Token::new(TEXT, "a".to_owned(), (0, 1))], type_id);
    let framed = |pair: Option<Encoding>| inner.post_process(dummy(0), pair, true);
    let (Ok(single), Ok(pair)) = (framed(None), framed(Some(dummy(1)))) else { return false };
    single.get_ids() == [cls, TEXT, sep]
        && single.get_type_ids() == [0, 0, 0]
        && pair.get_ids() == [cls, TEXT, sep, TEXT, sep]
        && pair.get_type_ids() == [0, 0, 0, 1, 1]
}

/// Gives a tokenizer the frame of training. A step that trims offsets is kept in front of it.
pub(super) fn set_training_frame(inner: &mut Inner, cls: Named<'_>, sep: Named<'_>) -> Result<()> {
    let template = template(cls, sep);
    let processor = match byte_level(inner)? {
        Some(bytes) => json!({ "type": "Sequence", "processors": [bytes, template] }),
        None => template,
    };
    let processor: PostProcessorWrapper = serde_json::from_value(processor)
        .map_err(|e| Error::config(format!("cannot set up the frame {} … {}: {e}", cls.0, sep.0)))?;
    inner.with_post_processor(Some(processor));
    Ok(())
}

/// Written as JSON, since the library's template syntax allows no names with spaces or `$`.
fn template(cls: Named<'_>, sep: Named<'_>) -> Value {
    let special =
        |(name, _): Named<'_>, type_id: u32| json!({ "SpecialToken": { "id": name, "type_id": type_id } });
    let text = |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
    let mut tokens = serde_json::Map::new();
    for (name, id) in [cls, sep] {
        tokens.insert(name.to_owned(), json!({ "id": name, "ids": [id], "tokens": [name] }));
    }
    json!({
        "type": "TemplateProcessing",
        "single": [special(cls, 0), text("A", 0), special(sep, 0)],
        "pair": [special(cls, 0), text("A", 0), special(sep, 0), text("B", 1), special(sep, 1)],
        "special_tokens": tokens,
    })
}

/// The step of the present post-processor that trims the offsets of byte-level tokens.
fn byte_level(inner: &Inner) -> Result<Option<Value>> {
    let present = serde_json::to_value(inner.get_post_processor())
        .map_err(|e| Error::config(format!("cannot read the tokenizer's post-processor: {e}")))?;
    Ok(find_byte_level(&present))
}

fn find_byte_level(processor: &Value) -> Option<Value> {
    match processor["type"].as_str()? {
        "ByteLevel" => Some(processor.clone()),
        "RobertaProcessing" => Some(json!({
            "type": "ByteLevel",
            "add_prefix_space": processor["add_prefix_space"],
            "trim_offsets": processor["trim_offsets"],
            "use_regex": true,
        })),
        "Sequence" => processor["processors"].as_array()?.iter().find_map(find_byte_level),
        _ => None,
    }
}

/// Names of the tokens that a post-processor puts before and after a text.
pub(super) fn frame_names(processor: &Value) -> (Option<String>, Option<String>) {
    let name = |value: &Value| value.as_str().map(str::to_owned);
    match processor["type"].as_str() {
        Some("BertProcessing" | "RobertaProcessing") => {
            (name(&processor["cls"][0]), name(&processor["sep"][0]))
        }
        Some("TemplateProcessing") => {
            let single = processor["single"].as_array().map(Vec::as_slice).unwrap_or_default();
            let special = |piece: Option<&Value>| piece.and_then(|piece| name(&piece["SpecialToken"]["id"]));
            (special(single.first()), special(single.last()))
        }
        Some("Sequence") => {
            let all = processor["processors"].as_array().map(Vec::as_slice).unwrap_or_default();
            let names = |named: (Option<String>, Option<String>)| (named != (None, None)).then_some(named);
            all.iter().find_map(|one| names(frame_names(one))).unwrap_or((None, None))
        }
        _ => (None, None),
    }
}
