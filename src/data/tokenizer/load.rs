//! Reading a tokenizer: the ids of a text are those of `AutoTokenizer.from_pretrained(dir)`.

use std::path::Path;

use ahash::AHashMap;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper};

use super::added::Tokens;
use super::classes::{self, Class, Pipeline};
use super::files::{Source, directory, read, read_json, read_vocab};
use super::frame::{frame_names, set_training_frame};
use super::settings::Settings;
use super::{Inner, ROLES, Tokenizer, bert, check_ids};
use crate::{Error, Result};

/// Other names of the special tokens, in the order of [`ROLES`], for a `tokenizer.json` without
/// settings.
const OTHER_NAMES: [&[&str]; 5] =
    [&["<pad>"], &["<unk>"], &["<s>", "<cls>"], &["</s>", "<sep>"], &["<mask>"]];

/// Settings that a saved tokenizer keeps as they are.
const KEPT: [&str; 4] =
    ["clean_up_tokenization_spaces", "padding_side", "truncation_side", "split_special_tokens"];

impl Tokenizer {
    /// Reads a `tokenizer.json`, a `vocab.txt`, a `vocab.json` with its `merges.txt`, or a
    /// directory of these, with the settings in the same directory.
    pub fn load(path: &Path) -> Result<Self> {
        let source = Source::find(path)?;
        let settings = Settings::read(if path.is_dir() { path } else { directory(path) })?;
        let (class, class_name) = settings.class(&source)?;
        settings.refuse_the_unknown()?;
        let mut definition = match &source {
            Source::Json(path) => read_json(path)?,
            _ => Value::Null,
        };
        refuse_randomness(&definition, source.path())?;
        let tokens = Tokens::new(&settings, class, &definition)?;
        let unk = tokens.name("unk_token").unwrap_or("[UNK]");
        let mut inner = match &source {
            Source::Json(path) => {
                classes::apply(class, &class_name, unk, &settings.config, &mut definition, path)?;
                parse(class, &mut definition, path)?
            }
            Source::Vocab(path) => wordpiece(path, unk, &settings)?,
            Source::Merges(vocab, merges) => byte_level(vocab, merges, &settings)?,
        };
        let names = role_names(&tokens, &settings, &definition, &inner);
        require_roles(&names, &tokens, &inner, &source)?;
        check_ids(&inner).map_err(|e| Error::file(source.path(), e.to_string()))?;
        if matches!(source, Source::Json(_)) {
            refuse_shared_ids(&inner, source.path())?;
        }
        tokens.register(&mut inner, &settings)?;
        register_roles(&names, &mut inner, source.path())?;
        require_unknown_token(&inner, source.path())?;
        if settings.config.get("split_special_tokens") == Some(&Value::Bool(true)) {
            inner.set_encode_special_tokens(true);
        }
        let lowercase = settings.config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false);
        let mut tokenizer =
            Self::assemble(inner, names, lowercase).map_err(|e| Error::file(source.path(), e.to_string()))?;
        if !matches!(source, Source::Json(_)) {
            // The class frames texts by itself.
            let (cls, sep) = tokenizer.frame();
            set_training_frame(&mut tokenizer.inner, (&cls.0, cls.1), (&sep.0, sep.1))?;
        }
        tokenizer.model_max_length = settings.model_max_length();
        let kept = KEPT.iter().filter_map(|key| settings.config.get_key_value(*key));
        tokenizer.kept = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        let named = tokens.names().filter(|(attribute, _)| ROLES.iter().all(|(role, _)| role != attribute));
        tokenizer.kept.extend(named.map(|(attribute, name)| (attribute.to_owned(), name.into())));
        Ok(tokenizer)
    }

    /// Whether a directory holds a tokenizer in any format, even one that is refused.
    pub fn is_in(dir: &Path) -> bool {
        Source::is_in(dir)
    }
}

/// An error if a part of the definition makes ids random.
fn refuse_randomness(definition: &Value, path: &Path) -> Result<()> {
    let model = &definition["model"];
    for key in ["dropout", "alpha", "nbest_size", "enable_sampling"] {
        let value = &model[key];
        let off = value.is_null() || *value == false || value.as_f64() == Some(0.0);
        if !off {
            return Err(Error::file(
                path,
                format!(
                    "`{key}` of its model is {value}, so a text has other tokens each time, and no \
                     run could be repeated: set `{key}` to null"
                ),
            ));
        }
    }
    Ok(())
}

fn parse(class: &Class, definition: &mut Value, path: &Path) -> Result<Inner> {
    if let Value::Object(object) = definition {
        // Left from the training of the tokenizer; rows are cut and padded by the settings of the
        // run.
        object.insert("truncation".to_owned(), Value::Null);
        object.insert("padding".to_owned(), Value::Null);
        if class.pipeline != Pipeline::AsWritten {
            object.insert("added_tokens".to_owned(), Value::Array(Vec::new()));
        }
    }
    definition.to_string().parse().map_err(|e: tokenizers::Error| {
        Error::file(path, format!("this is not a tokenizer of the tokenizers library: {e}"))
    })
}

/// BERT's tokenizer around a `vocab.txt`.
fn wordpiece(path: &Path, unk: &str, settings: &Settings) -> Result<Inner> {
    let setting = |name: &str| settings.config.get(name).and_then(Value::as_bool);
    let normalizer = BertNormalizer::new(
        true,
        setting("tokenize_chinese_chars").unwrap_or(true),
        setting("strip_accents"),
        setting("do_lower_case").unwrap_or(true),
    );
    let model = WordPiece::builder()
        .vocab(read_vocab(path)?.into_iter().collect::<AHashMap<_, _>>())
        .unk_token(unk.to_owned())
        .max_input_chars_per_word(100)
        .build()
        .map_err(|e| Error::file(path, format!("this is not a WordPiece vocabulary: {e}")))?;
    Ok(bert(model, normalizer))
}

/// A byte-level BPE tokenizer around a `vocab.json` and its `merges.txt`.
fn byte_level(vocab: &Path, merges: &Path, settings: &Settings) -> Result<Inner> {
    // The library reads these files itself, but does not report which of them is wrong.
    read_json(vocab)?;
    read(merges)?;
    let name = |path: &Path| path.to_string_lossy().into_owned();
    let model = BPE::from_file(&name(vocab), &name(merges))
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(String::new())
        .build()
        .map_err(|e| Error::file(merges, format!("this file and vocab.json are not one BPE model: {e}")))?;
    let prefix = settings.config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    let mut inner = Inner::new(model);
    inner.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
    inner.with_post_processor(Some(ByteLevel::new(prefix, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    Ok(inner)
}

/// Names of the five special tokens, from the first of these that has one: the settings and the
/// class, the map, the definition's own frame and model, the usual names.
fn role_names(tokens: &Tokens, settings: &Settings, definition: &Value, inner: &Inner) -> [String; 5] {
    let (cls, sep) = frame_names(&definition["post_processor"]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let own =
        [text(&definition["padding"]["pad_token"]), text(&definition["model"]["unk_token"]), cls, sep, None];
    let mut own = own.into_iter();
    let mut others = OTHER_NAMES.iter();
    ROLES.map(|(role, default)| {
        let own = own.next().flatten().filter(|name| inner.token_to_id(name).is_some());
        let others = others.next().copied().unwrap_or_default();
        let mapped = || {
            let value = settings.special_tokens.get(role)?;
            text(value).or_else(|| text(&value["content"]))
        };
        let usual = || [default].iter().chain(others).find(|name| inner.token_to_id(name).is_some()).copied();
        tokens
            .name(role)
            .map(str::to_owned)
            .or_else(mapped)
            .or(own)
            .unwrap_or_else(|| usual().unwrap_or(default).to_owned())
    })
}

/// An error if a special token is neither in the vocabulary nor named by the settings; those that
/// the settings name are added to the vocabulary.
fn require_roles(names: &[String; 5], tokens: &Tokens, inner: &Inner, source: &Source) -> Result<()> {
    for ((role, _), name) in ROLES.iter().zip(names) {
        // In a file that begins with a byte order mark, transformers reads the mark as a part of
        // the first token.
        let marked =
            matches!(source, Source::Vocab(_)) && inner.token_to_id(&format!("\u{feff}{name}")).is_some();
        if !tokens.has_id(name, inner) && !tokens.is_explicit(role) && !marked {
            return Err(Error::file(source.path(), missing(role, name)));
        }
    }
    Ok(())
}

/// What to do about a special token that is not in the vocabulary.
pub(super) fn missing(role: &str, name: &str) -> String {
    format!(
        "the vocabulary has no `{name}`; masking needs [PAD], [UNK], [CLS], [SEP] and [MASK] \
         (other names are read from `{role}` in tokenizer_config.json or special_tokens_map.json)"
    )
}

/// Registers the special tokens that have not been registered yet, as `transformers` does when it
/// reads the saved tokenizer.
fn register_roles(names: &[String; 5], inner: &mut Inner, path: &Path) -> Result<()> {
    let known: Vec<String> =
        inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let new = names.iter().filter(|name| !known.contains(name));
    inner
        .add_tokens(new.map(|name| AddedToken::from(name.clone(), true)))
        .map_err(|e| Error::file(path, format!("cannot register the special tokens: {e}")))?;
    Ok(())
}

/// An error if two tokens have the same id: a vocabulary is saved by its ids, so that one of the
/// two would be lost.
fn refuse_shared_ids(inner: &Inner, path: &Path) -> Result<()> {
    let mut owners: AHashMap<u32, String> = AHashMap::new();
    for (token, id) in inner.get_vocab(false) {
        if let Some(other) = owners.insert(id, token.clone()) {
            let (first, second) = if token < other { (token, other) } else { (other, token) };
            return Err(Error::file(
                path,
                format!(
                    "the tokens `{first}` and `{second}` have the same id {id}: give each an id of its own"
                ),
            ));
        }
    }
    Ok(())
}

/// An error if the model has no token for unknown words: it would fail in the middle of a text.
fn require_unknown_token(inner: &Inner, path: &Path) -> Result<()> {
    let vocab = inner.get_vocab(false);
    let name = match inner.get_model() {
        ModelWrapper::WordPiece(model) => &model.unk_token,
        ModelWrapper::WordLevel(model) => &model.unk_token,
        _ => return Ok(()),
    };
    match vocab.contains_key(name) {
        true => Ok(()),
        false => Err(Error::file(
            path,
            format!("the model's unknown token `{name}` is not in its vocabulary, so other words have no id"),
        )),
    }
}
