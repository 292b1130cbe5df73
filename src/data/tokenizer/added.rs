//! Tokens that are added to the model's vocabulary, registered in the order and with the flags of
//! `transformers`.

use std::collections::BTreeMap;

use ahash::AHashMap;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::Inner;
use super::classes::{ATTRIBUTES, Class};
use super::settings::Settings;
use crate::{Error, Result};

/// The tokens that the files name.
pub(super) struct Tokens {
    /// By the ids that the files give them.
    by_id: BTreeMap<i64, AddedToken>,
    /// The file of the ids, if `transformers` may give other ids than it says.
    ids_from: Option<&'static str>,
    named: Vec<Named>,
    /// Further special tokens.
    extra: Vec<Special>,
}

/// A special token. In Python a token given as a string is not equal to one with flags, which
/// decides the flags if two attributes name the same token.
#[derive(Clone, PartialEq)]
struct Special {
    token: AddedToken,
    is_text: bool,
}

struct Named {
    attribute: String,
    special: Special,
    /// Whether the settings name it rather than the class.
    explicit: bool,
}

impl Tokens {
    /// From the settings, and from the definition in `tokenizer.json`.
    pub(super) fn new(settings: &Settings, class: &Class, definition: &Value) -> Result<Self> {
        let refuse = |problem: String| Error::file(settings.path(), problem);
        let mut init = settings.config.clone();
        let mut extra =
            list(init.get("extra_special_tokens")).or(list(init.get("additional_special_tokens")));
        let mut models = model_specific(&init);
        let (mut by_id, mut ids_from) = (BTreeMap::new(), None);
        if let Some(decoder) = init.get("added_tokens_decoder").filter(|value| !value.is_null()) {
            let decoder =
                decoder.as_object().ok_or_else(|| refuse("`added_tokens_decoder` is no object".into()))?;
            for (id, token) in decoder {
                let (Ok(id), Some(token)) = (id.parse(), added(token, false)) else {
                    return Err(refuse(format!("`added_tokens_decoder` has no token at `{id}`")));
                };
                by_id.insert(id, token);
            }
            ids_from = Some("added_tokens_decoder in tokenizer_config.json");
        } else {
            for (key, value) in &settings.special_tokens {
                init.insert(key.clone(), value.clone());
            }
            let more = list(settings.special_tokens.get("extra_special_tokens"));
            if let Some(more) = more {
                extra.get_or_insert_default().extend(more);
            }
            extra = extra.or(list(settings.special_tokens.get("additional_special_tokens")));
            models.extend(model_specific(&settings.special_tokens));
            Self::older_files(settings, definition, &mut by_id)?;
            if !settings.added_tokens.is_empty() {
                ids_from = Some("added_tokens.json");
            }
        }
        let flags: BTreeMap<&str, &AddedToken> =
            by_id.values().map(|token| (token.content.as_str(), token)).collect();
        let mut named = Vec::new();
        for (attribute, default) in ATTRIBUTES.iter().zip(class.defaults) {
            let given = init.get(*attribute).filter(|value| !value.is_null());
            let special = match (given, default) {
                (None, None) => continue,
                (None, Some(default)) => Special { token: AddedToken::from(default, true), is_text: true },
                (Some(value), _) => {
                    let special = special(value, true)
                        .ok_or_else(|| refuse(format!("`{attribute}` is {value}, which is no token")))?;
                    match flags.get(special.token.content.as_str()) {
                        Some(&found) => Special { token: found.clone(), is_text: false },
                        None => special,
                    }
                }
            };
            named.push(Named { attribute: (*attribute).to_owned(), special, explicit: given.is_some() });
        }
        let own = |(attribute, special)| Named { attribute, special, explicit: true };
        named.extend(models.into_iter().map(own));
        let extra = extra.unwrap_or_default();
        Ok(Self { by_id, ids_from, named, extra })
    }

    /// Reads the files that were used before `added_tokens_decoder`: added_tokens.json, then
    /// tokenizer.json.
    fn older_files(
        settings: &Settings,
        definition: &Value,
        by_id: &mut BTreeMap<i64, AddedToken>,
    ) -> Result<()> {
        // What tokenizer_config.json gives as an object is not recognised by its name.
        let (config, map) = (&settings.config, &settings.special_tokens);
        let items = |object: &Map<String, Value>, key: &str| {
            object.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let mut specials: Vec<String> = ATTRIBUTES
            .iter()
            .filter_map(|key| match map.get(*key) {
                Some(value) => Some(added(value, true)?.content),
                None => config.get(*key)?.as_str().map(str::to_owned),
            })
            .collect();
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            specials.extend(items(config, key).iter().filter_map(|value| value.as_str().map(str::to_owned)));
        }
        let mapped = items(map, "extra_special_tokens");
        specials.extend(mapped.iter().filter_map(|value| added(value, true)).map(|token| token.content));
        for (content, id) in &settings.added_tokens {
            let id = id.as_i64().ok_or_else(|| {
                Error::file(
                    settings.path().with_file_name("added_tokens.json"),
                    format!("the id of `{content}` is no number"),
                )
            })?;
            by_id.insert(id, AddedToken::from(content.clone(), specials.contains(content)));
        }
        for token in definition["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default() {
            if let (Some(id), Some(token)) = (token["id"].as_i64(), added(token, false)) {
                by_id.insert(id, token);
            }
        }
        Ok(())
    }

    /// Registers every token with the library, which gives ids to those that have none.
    pub(super) fn register(&self, inner: &mut Inner, settings: &Settings) -> Result<()> {
        let mut known: Vec<String> =
            inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        known.extend(self.by_id.values().map(|token| token.content.clone()));
        let given = self.by_id.values().map(|token| Special { token: token.clone(), is_text: false });
        let mut all: Vec<Special> = given.collect();
        for special in self.named.iter().map(|named| &named.special).chain(&self.extra) {
            if !known.contains(&special.token.content) && !all.contains(special) {
                all.push(special.clone());
            }
        }
        let mut all: Vec<AddedToken> = all.into_iter().map(|special| special.token).collect();
        for token in &mut all {
            token.special |= self.named.iter().any(|named| named.special.token.content == token.content);
        }
        let before = inner.get_vocab_size(true);
        for Named { attribute, special: Special { token, .. }, .. } in &self.named {
            if !self.has_id(&token.content, inner) {
                crate::note!(
                    "{}: `{attribute}` is `{}`, which is not in the vocabulary; it is added with \
                     an id above {}, as in transformers",
                    settings.path().display(),
                    token.content,
                    before - 1
                );
            }
        }
        inner
            .add_tokens(all)
            .map_err(|e| Error::file(settings.path(), format!("cannot register the added tokens: {e}")))?;
        self.refuse_shared_ids(inner, settings)?;
        if let Some(source) = self.ids_from {
            for (id, token) in &self.by_id {
                let given = inner.token_to_id(&token.content);
                if given.map(i64::from) != Some(*id) {
                    crate::note!(
                        "{}: {source} gives `{}` the id {id}; it has the id {}, as in the fast \
                         tokenizers of transformers",
                        settings.path().display(),
                        token.content,
                        given.unwrap_or_default()
                    );
                }
            }
        }
        Ok(())
    }

    /// The library numbers added tokens from the size of the vocabulary on, which is the id of a
    /// token if a line of the vocabulary was repeated.
    fn refuse_shared_ids(&self, inner: &Inner, settings: &Settings) -> Result<()> {
        let vocab = inner.get_vocab(false);
        let owners: AHashMap<u32, &String> = vocab.iter().map(|(token, &id)| (id, token)).collect();
        for (id, token) in inner.get_added_tokens_decoder() {
            let owner = owners.get(&id).filter(|_| !vocab.contains_key(&token.content));
            if let Some(owner) = owner {
                return Err(Error::file(
                    settings.path(),
                    format!(
                        "the added token `{}` would have the id {id} of `{owner}`, since a token \
                         occurs twice in the vocabulary or ids are missing: rename the repeated \
                         tokens",
                        token.content
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The token that the settings, or else the class, give to an attribute.
    pub(super) fn name(&self, attribute: &str) -> Option<&str> {
        self.names().find(|(name, _)| *name == attribute).map(|(_, content)| content)
    }

    /// Whether a token is in the vocabulary or among the added tokens of the files.
    pub(super) fn has_id(&self, content: &str, inner: &Inner) -> bool {
        inner.token_to_id(content).is_some() || self.by_id.values().any(|token| token.content == content)
    }

    /// Whether the settings name this attribute.
    pub(super) fn is_explicit(&self, attribute: &str) -> bool {
        self.named.iter().any(|named| named.attribute == attribute && named.explicit)
    }

    /// The attributes and the texts of their tokens.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|named| (named.attribute.as_str(), named.special.token.content.as_str()))
    }
}

/// A token: its text, or an object with its flags.
fn added(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let content = value.get("content")?.as_str()?;
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

/// A special token: its text, or an object with its flags.
fn special(value: &Value, special: bool) -> Option<Special> {
    Some(Special { token: added(value, special)?, is_text: value.is_string() })
}

/// A list of special tokens, unless it is missing or empty.
fn list(value: Option<&Value>) -> Option<Vec<Special>> {
    let is_special = |token: &Value| token.is_string() || token.get("special").is_none();
    let tokens: Vec<Special> =
        value?.as_array()?.iter().filter_map(|token| special(token, is_special(token))).collect();
    (!tokens.is_empty()).then_some(tokens)
}

/// Special tokens of a model's own, such as `image_token`, and those of an `extra_special_tokens`
/// that names them.
fn model_specific(init: &Map<String, Value>) -> Vec<(String, Special)> {
    let own = init.iter().filter(|(key, value)| {
        key.ends_with("_token") && value.is_string() && !ATTRIBUTES.contains(&key.as_str())
    });
    let named = init.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
    own.chain(named).filter_map(|(key, value)| Some((key.clone(), special(value, true)?))).collect()
}
