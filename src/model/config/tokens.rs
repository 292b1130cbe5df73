//! The token ids in a configuration: those of the tokenizer that the model is trained with.

use serde_json::Value;

use super::ElectraConfig;
use crate::data::mask::SpecialIds;
use crate::data::tokenizer::Tokenizer;

/// Stands for a token that a configuration does not name: no vocabulary is so large.
const NO_TOKEN: u32 = u32::MAX;

impl ElectraConfig {
    /// The special tokens that a configuration names, for batches that come without a tokenizer:
    /// padding, and \[CLS\], \[SEP\] and \[MASK\] where it has `cls_token_id` (or `bos_token_id`),
    /// `sep_token_id` (or `eos_token_id`) and `mask_token_id`. Where it does not name \[MASK\], no
    /// position counts as showing it.
    pub fn special_ids(&self) -> SpecialIds {
        let named = |names: &[&str]| {
            let ids = names.iter().filter_map(|name| self.other.get(*name)?.as_u64());
            ids.filter_map(|id| u32::try_from(id).ok()).next().unwrap_or(NO_TOKEN)
        };
        let pad = self.pad_token_id.unwrap_or(NO_TOKEN);
        let (cls, sep) = (named(&["cls_token_id", "bos_token_id"]), named(&["sep_token_id", "eos_token_id"]));
        let mask = named(&["mask_token_id"]);
        SpecialIds { never: [pad, cls, sep, mask, pad], mask }
    }

    /// Takes the ids of the special tokens from the tokenizer, as the Trainer of `transformers`
    /// does: padding always, the others if the tokenizer has such a token and the configuration
    /// names another one or none. Returns a description of each change.
    pub fn align_token_ids(&mut self, tokenizer: &Tokenizer) -> Vec<String> {
        let (special, [bos, eos]) = (tokenizer.special(), tokenizer.bos_eos());
        let mut changes = Vec::new();
        let mut note_change = |name: &str, before: &Value, now: u32| {
            changes.push(format!("`{name}` is {before}, the tokenizer's is {now}"));
        };
        if self.pad_token_id != Some(special.pad) {
            note_change("pad_token_id", &Value::from(self.pad_token_id), special.pad);
            self.pad_token_id = Some(special.pad);
        }
        for (name, id) in [("bos_token_id", bos), ("eos_token_id", eos)] {
            let Some(id) = id else { continue };
            let before = self.other.get(name).cloned().unwrap_or_default();
            let (list, is_it) = (before.as_array(), |value: &Value| value.as_u64() == Some(u64::from(id)));
            if list.map_or(is_it(&before), |ids| ids.iter().any(is_it)) {
                continue;
            }
            note_change(name, &before, id);
            // A model may have several end tokens: all of them are kept.
            let now = match list {
                Some(ids) => {
                    Value::Array(std::iter::once(Value::from(id)).chain(ids.iter().cloned()).collect())
                }
                None => Value::from(id),
            };
            self.other.insert(name.to_owned(), now);
        }
        // `ElectraConfig` has no such fields, but they are kept where a file has them.
        for (name, id) in [
            ("cls_token_id", special.cls),
            ("sep_token_id", special.sep),
            ("mask_token_id", special.mask),
            ("unk_token_id", special.unk),
        ] {
            let Some(before) = self.other.get(name).filter(|before| !before.is_null()) else { continue };
            if before.as_u64() != Some(u64::from(id)) {
                note_change(name, before, id);
                self.other.insert(name.to_owned(), Value::from(id));
            }
        }
        changes
    }
}
