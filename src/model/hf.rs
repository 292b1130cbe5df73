//! Checkpoint directories of `transformers`: read whatever it has written over the years, write what it loads today.
//!
//! `generator_lm_head.weight` is tied to the word embeddings and left out of files. Under gradient-disentangled
//! sharing the discriminator's file holds the sum of both tables, so any program can load it.
//!
//! A directory is read as a [`StartingPoint`], which may be any of ELECTRA's classes, or a
//! `config.json` without weights. A [`Checkpoint`] is a network with one of the three heads that
//! are trained and used here.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use super::config::{Architecture, ElectraConfig};
use crate::fsutil::{create_dir, write_atomic};
use crate::{Error, Result};

mod files;
mod start;

pub(crate) use files::{WEIGHTS, WEIGHTS_INDEX, map_file, read_config, shard_names};
pub use start::{Source, StartingPoint};

/// A tensor in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostTensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f32>,
}

/// A network: configuration and weights under their Hugging Face names.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Sizes.
    pub config: ElectraConfig,
    /// Which head it has.
    pub architecture: Architecture,
    /// Weights; what is absent (everything, or a head that was swapped) starts fresh.
    pub tensors: BTreeMap<String, HostTensor>,
}

/// The sizes of a tensor, each with the name that it has in `config.json`.
type NamedShape = Vec<(&'static str, usize)>;

/// Every parameter's name and shape, in the order of `transformers`; the tied decoder weight excepted.
pub fn parameter_shapes(config: &ElectraConfig, architecture: Architecture) -> Vec<(String, Vec<usize>)> {
    let sizes = |shape: NamedShape| shape.into_iter().map(|(_, size)| size).collect();
    named_shapes(config, architecture).into_iter().map(|(name, shape)| (name, sizes(shape))).collect()
}

fn named_shapes(config: &ElectraConfig, architecture: Architecture) -> Vec<(String, NamedShape)> {
    let (v, e, c, f, labels, one) = (
        ("vocab_size", config.vocab_size),
        ("embedding_size", config.embedding_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_labels", 2),
        ("", 1),
    );
    let positions = ("max_position_embeddings", config.max_position_embeddings);
    let types = ("type_vocab_size", config.type_vocab_size);
    let mut all = Vec::new();
    let norm = |all: &mut Vec<_>, name: &str, n| {
        all.push((format!("{name}.LayerNorm.weight"), vec![n]));
        all.push((format!("{name}.LayerNorm.bias"), vec![n]));
    };
    let linear = |all: &mut Vec<_>, name: &str, outputs, inputs| {
        all.push((format!("{name}.weight"), vec![outputs, inputs]));
        all.push((format!("{name}.bias"), vec![outputs]));
    };
    let embeddings = "electra.embeddings";
    all.push((format!("{embeddings}.word_embeddings.weight"), vec![v, e]));
    all.push((format!("{embeddings}.position_embeddings.weight"), vec![positions, e]));
    all.push((format!("{embeddings}.token_type_embeddings.weight"), vec![types, e]));
    norm(&mut all, embeddings, e);
    if config.embedding_size != config.hidden_size {
        linear(&mut all, "electra.embeddings_project", c, e);
    }
    for l in 0..config.num_hidden_layers {
        let layer = format!("{LAYER}{l}");
        for part in ["query", "key", "value"] {
            linear(&mut all, &format!("{layer}.attention.self.{part}"), c, c);
        }
        linear(&mut all, &format!("{layer}.attention.output.dense"), c, c);
        norm(&mut all, &format!("{layer}.attention.output"), c);
        linear(&mut all, &format!("{layer}.intermediate.dense"), f, c);
        linear(&mut all, &format!("{layer}.output.dense"), c, f);
        norm(&mut all, &format!("{layer}.output"), c);
    }
    match architecture {
        Architecture::MaskedLm => {
            norm(&mut all, "generator_predictions", e);
            linear(&mut all, "generator_predictions.dense", e, c);
            all.push(("generator_lm_head.bias".to_owned(), vec![v]));
        }
        Architecture::PreTraining => {
            linear(&mut all, "discriminator_predictions.dense", c, c);
            linear(&mut all, "discriminator_predictions.dense_prediction", one, c);
        }
        Architecture::TokenClassification => linear(&mut all, "classifier", labels, c),
    }
    all
}

const TIED: &str = "generator_lm_head.weight";
const WORD: &str = "electra.embeddings.word_embeddings.weight";
/// The number of a layer follows.
const LAYER: &str = "electra.encoder.layer.";

impl Checkpoint {
    /// A network to be trained from scratch.
    pub fn fresh(config: ElectraConfig, architecture: Architecture) -> Self {
        Self { config, architecture, tensors: BTreeMap::new() }
    }

    /// Reads a directory that holds a network with its head. The error names the file, the tensor,
    /// what was expected and what was found.
    pub fn load(dir: &Path) -> Result<Self> {
        StartingPoint::read(dir)?.into_checkpoint()
    }

    /// The same body for another head, which starts fresh.
    pub fn with_head(mut self, architecture: Architecture) -> Self {
        if self.architecture != architecture {
            self.tensors.retain(|name, _| name.starts_with("electra."));
            self.architecture = architecture;
            self.config.remove_labels();
        }
        self
    }

    /// Writes `config.json` and `model.safetensors`; a failure leaves earlier files whole. What was
    /// written is read again and compared.
    pub fn save(&self, dir: &Path) -> Result<()> {
        create_dir(dir)?;
        let path = dir.join(WEIGHTS);
        write_atomic(&path, |out| {
            let metadata = [("format".to_owned(), "pt".to_owned())].into();
            let bytes = serialize(self.views()?, Some(metadata)).map_err(std::io::Error::other)?;
            out.write_all(&bytes)
        })?;
        let config = format!("{:#}\n", self.config.to_json(self.architecture));
        write_atomic(&dir.join("config.json"), |out| out.write_all(config.as_bytes()))?;
        self.verify(dir)
    }

    /// An error if the directory does not hold what [`Self::save`] was to write: the same
    /// configuration, and the same bytes of the same tensors.
    fn verify(&self, dir: &Path) -> Result<()> {
        let path = dir.join("config.json");
        let file = read_config(&path)?;
        let (meant, found) = (self.config.to_json(self.architecture), file.config.to_json(self.architecture));
        let differs = |(name, value): (&String, _)| found.get(name) != Some(value);
        let mut fields = meant.as_object().into_iter().flatten();
        let odd = fields.find(|field| differs(*field)).map(|(name, _)| name.as_str());
        let odd = odd.or((file.architecture() != Some(self.architecture)).then_some("architectures"));
        if let Some(name) = odd {
            return Err(Error::file(
                path,
                format!("`{name}` was read back with another value than was written"),
            ));
        }
        let path = dir.join(WEIGHTS);
        let map = map_file(&path)?;
        let broken = |problem: String| Error::file(&path, format!("what was read back {problem}"));
        let file = SafeTensors::deserialize(&map)
            .map_err(|e| broken(format!("is not a whole safetensors file ({e})")))?;
        if file.len() != self.tensors.len() {
            return Err(broken(format!("has {} tensors of {}", file.len(), self.tensors.len())));
        }
        for (name, tensor) in &self.tensors {
            let same = file.tensor(name).is_ok_and(|view| {
                let bytes: &[u8] = bytemuck::cast_slice(&tensor.data);
                view.dtype() == Dtype::F32 && view.shape() == tensor.shape && view.data() == bytes
            });
            if !same {
                return Err(broken(format!("has another tensor `{name}` than was written")));
            }
        }
        Ok(())
    }

    fn views<'a>(&'a self) -> std::io::Result<Vec<(&'a String, TensorView<'a>)>> {
        let view = |(name, tensor): (&'a String, &'a HostTensor)| match tensor.view() {
            Ok(view) => Ok((name, view)),
            Err(e) => Err(std::io::Error::other(e)),
        };
        self.tensors.iter().map(view).collect()
    }
}

impl HostTensor {
    /// As `safetensors` writes it.
    pub fn view(&self) -> Result<TensorView<'_>, safetensors::SafeTensorError> {
        TensorView::new(Dtype::F32, self.shape.clone(), bytemuck::cast_slice(&self.data))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_compared() {
        let config = ElectraConfig {
            vocab_size: 5,
            embedding_size: 4,
            hidden_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 4,
            max_position_embeddings: 3,
            ..ElectraConfig::default()
        };
        let architecture = Architecture::PreTraining;
        let mut checkpoint = Checkpoint::fresh(config, architecture);
        for (name, shape) in parameter_shapes(&checkpoint.config, architecture) {
            let data = vec![f32::NAN; shape.iter().product()];
            checkpoint.tensors.insert(name, HostTensor { shape, data });
        }
        let dir = tempfile::tempdir().unwrap();
        checkpoint.save(dir.path()).unwrap();
        let weights = dir.path().join(WEIGHTS);
        let whole = fs::read(&weights).unwrap();
        for damage in [whole.len() - 1, whole.len() / 2] {
            let mut bytes = whole.clone();
            bytes[damage] ^= 4;
            fs::write(&weights, bytes).unwrap();
            assert!(checkpoint.verify(dir.path()).unwrap_err().to_string().contains("read back"));
        }
        fs::write(&weights, &whole).unwrap();
        checkpoint.verify(dir.path()).unwrap();
        let path = dir.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, field) in [
            ("1e-12", "1e-11", "layer_norm_eps"),
            ("PreTraining", "MaskedLM", "architectures"),
            ("\"use_cache\": true", "\"use_cache\": false", "use_cache"),
        ] {
            assert!(text.contains(from));
            fs::write(&path, text.replace(from, to)).unwrap();
            assert!(checkpoint.verify(dir.path()).unwrap_err().to_string().contains(field));
        }
        checkpoint.tensors.remove(WORD);
        fs::write(&path, &text).unwrap();
        assert!(checkpoint.verify(dir.path()).unwrap_err().to_string().contains("tensors of"));
    }
}
