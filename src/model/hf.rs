//! Checkpoint directories of `transformers`: read whatever it has written over the years, write what it loads today.
//!
//! `generator_lm_head.weight` is tied to the word embeddings and left out of files. Under gradient-disentangled
//! sharing the discriminator's file holds the sum of both tables, so any program can load it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde_json::Value;

use super::config::{Architecture, ElectraConfig};
use crate::fsutil::{create_dir, write_atomic};
use crate::{Error, Result};

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

/// Every parameter's name and shape, in the order of `transformers`; the tied decoder weight excepted.
pub fn parameter_shapes(config: &ElectraConfig, architecture: Architecture) -> Vec<(String, Vec<usize>)> {
    let (v, e, c, f) =
        (config.vocab_size, config.embedding_size, config.hidden_size, config.intermediate_size);
    let mut all = Vec::new();
    let norm = |all: &mut Vec<_>, name: &str, n: usize| {
        all.push((format!("{name}.LayerNorm.weight"), vec![n]));
        all.push((format!("{name}.LayerNorm.bias"), vec![n]));
    };
    let linear = |all: &mut Vec<_>, name: &str, outputs: usize, inputs: usize| {
        all.push((format!("{name}.weight"), vec![outputs, inputs]));
        all.push((format!("{name}.bias"), vec![outputs]));
    };
    let embeddings = "electra.embeddings";
    all.push((format!("{embeddings}.word_embeddings.weight"), vec![v, e]));
    all.push((format!("{embeddings}.position_embeddings.weight"), vec![config.max_position_embeddings, e]));
    all.push((format!("{embeddings}.token_type_embeddings.weight"), vec![config.type_vocab_size, e]));
    norm(&mut all, embeddings, e);
    if e != c {
        linear(&mut all, "electra.embeddings_project", c, e);
    }
    for l in 0..config.num_hidden_layers {
        let layer = format!("electra.encoder.layer.{l}");
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
            linear(&mut all, "discriminator_predictions.dense_prediction", 1, c);
        }
        Architecture::TokenClassification => linear(&mut all, "classifier", 2, c),
    }
    all
}

const TIED: &str = "generator_lm_head.weight";
const WORD: &str = "electra.embeddings.word_embeddings.weight";

impl Checkpoint {
    /// A network to be trained from scratch.
    pub fn fresh(config: ElectraConfig, architecture: Architecture) -> Self {
        Self { config, architecture, tensors: BTreeMap::new() }
    }

    /// Reads a directory. The error names the file, the tensor, what was expected and what was found.
    pub fn load(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::file(
                dir,
                "no such directory; give one that holds config.json and model.safetensors",
            ));
        }
        let path = dir.join("config.json");
        let (config, architecture) = read_config(&path)?;
        let mut tensors = BTreeMap::new();
        for file in weight_files(dir)? {
            read_tensors(&file, &mut tensors)?;
        }
        let architecture = architecture.or_else(|| infer(&tensors)).ok_or_else(|| {
            Error::file(
                &path,
                "`architectures` names none of ElectraForMaskedLM, ElectraForPreTraining, \
                 ElectraForTokenClassification, and the weights have none of their heads",
            )
        })?;
        let mut checkpoint = Self { config, architecture, tensors };
        checkpoint.untie(dir)?;
        checkpoint.check(dir)?;
        Ok(checkpoint)
    }

    /// Drops the decoder's weight, which must be the word embeddings or stand in for them.
    fn untie(&mut self, dir: &Path) -> Result<()> {
        let Some(decoder) = self.tensors.remove(TIED) else { return Ok(()) };
        match self.tensors.get(WORD) {
            None => {
                self.tensors.insert(WORD.to_owned(), decoder);
            }
            Some(word) if *word == decoder => {}
            Some(_) => {
                return Err(Error::file(
                    dir,
                    format!(
                        "`{TIED}` and `{WORD}` differ, but ELECTRA ties them: delete the one that is not meant"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Every expected tensor is there in its shape, and no other.
    fn check(&self, dir: &Path) -> Result<()> {
        let mut expected: BTreeMap<String, Vec<usize>> =
            parameter_shapes(&self.config, self.architecture).into_iter().collect();
        for (name, tensor) in &self.tensors {
            match expected.remove(name) {
                Some(shape) if shape == tensor.shape => {}
                Some(shape) => {
                    return Err(Error::file(
                        dir,
                        format!(
                            "tensor `{name}` has shape {:?}, config.json asks for {shape:?}: weights and config are \
                             of different models",
                            tensor.shape
                        ),
                    ));
                }
                None => {
                    return Err(Error::file(
                        dir,
                        format!("tensor `{name}` is not one of {}'s", self.architecture.class_name()),
                    ));
                }
            }
        }
        match expected.into_iter().next() {
            None => Ok(()),
            Some((name, shape)) => Err(Error::file(
                dir,
                format!("tensor `{name}` {shape:?} of {} is missing", self.architecture.class_name()),
            )),
        }
    }

    /// The same body for another head, which starts fresh.
    pub fn with_head(mut self, architecture: Architecture) -> Self {
        if self.architecture != architecture {
            self.tensors.retain(|name, _| name.starts_with("electra."));
            self.architecture = architecture;
        }
        self
    }

    /// Writes `config.json` and `model.safetensors`; a failure leaves earlier files whole.
    pub fn save(&self, dir: &Path) -> Result<()> {
        create_dir(dir)?;
        let path = dir.join("model.safetensors");
        write_atomic(&path, |out| {
            let metadata = [("format".to_owned(), "pt".to_owned())].into();
            let bytes = serialize(self.views()?, Some(metadata)).map_err(std::io::Error::other)?;
            out.write_all(&bytes)
        })?;
        let config = format!("{:#}\n", self.config.to_json(self.architecture));
        write_atomic(&dir.join("config.json"), |out| out.write_all(config.as_bytes()))
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

/// Reads a `config.json`: sizes, and which of ELECTRA's heads it names.
pub(crate) fn read_config(path: &Path) -> Result<(ElectraConfig, Option<Architecture>)> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let object = match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(Error::file(path, "this is not a JSON object, as a model's config is")),
        Err(e) => return Err(Error::file(path, format!("this is not JSON ({e}); copy the file again"))),
    };
    ElectraConfig::from_json(object).map_err(|e| Error::file(path, e.to_string()))
}

/// Names of a directory's weights: one file, or an index of several.
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// The files that an index names.
pub(crate) fn shard_names(index: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(index).map_err(Error::io("read", index))?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| Error::file(index, format!("this is not JSON: {e}")))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map =
        map.ok_or_else(|| Error::file(index, "there is no `weight_map`, which names each tensor's file"))?;
    let mut files: Vec<_> = map.values().filter_map(Value::as_str).map(str::to_owned).collect();
    files.sort_unstable();
    files.dedup();
    if files.iter().any(|name| name.contains(['/', '\\']) || !name.ends_with(".safetensors")) {
        return Err(Error::file(index, "`weight_map` names what is no safetensors file of this directory"));
    }
    Ok(files)
}

/// The safetensors files of a directory: one, or the shards that an index names.
fn weight_files(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let (single, index) = (dir.join(WEIGHTS), dir.join(WEIGHTS_INDEX));
    if single.is_file() {
        return Ok(vec![single]);
    }
    if index.is_file() {
        return Ok(shard_names(&index)?.iter().map(|name| dir.join(name)).collect());
    }
    let hint = match dir.join("pytorch_model.bin").is_file() {
        true => "it holds pytorch_model.bin only: load it in transformers and call `save_pretrained(dir)`",
        false => "expected model.safetensors or model.safetensors.index.json",
    };
    Err(Error::file(dir, format!("there are no weights: {hint}")))
}

fn read_tensors(path: &Path, tensors: &mut BTreeMap<String, HostTensor>) -> Result<()> {
    let map = map_file(path)?;
    let broken = |e| Error::file(path, format!("this is not a whole safetensors file ({e}); copy it again"));
    let file = SafeTensors::deserialize(&map).map_err(broken)?;
    for (name, view) in file.tensors() {
        if name.ends_with("embeddings.position_ids") {
            continue;
        }
        let name =
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
        // Files from before the decoder's bias had its place in `generator_lm_head`.
        if name == "generator_lm_head.decoder.bias" {
            continue;
        }
        let tensor = to_f32(&view).ok_or_else(|| {
            Error::file(
                path,
                format!("tensor `{name}` is {:?}, expected F32, F64, F16 or BF16", view.dtype()),
            )
        })?;
        tensors.insert(name, tensor);
    }
    Ok(())
}

/// Maps a file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    // SAFETY: the map is read-only; a program that changes the file meanwhile changes what is read, and every size in
    // it is checked before use.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}

/// The elements of a floating-point tensor.
pub(crate) fn to_f32(view: &TensorView<'_>) -> Option<HostTensor> {
    let bytes = view.data();
    let data = match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F64 => bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
            .collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => return None,
    };
    Some(HostTensor { shape: view.shape().to_vec(), data })
}

fn infer(tensors: &BTreeMap<String, HostTensor>) -> Option<Architecture> {
    let has = |prefix: &str| tensors.keys().any(|name| name.starts_with(prefix));
    if has("generator_predictions.") {
        Some(Architecture::MaskedLm)
    } else if has("discriminator_predictions.") {
        Some(Architecture::PreTraining)
    } else if has("classifier.") {
        Some(Architecture::TokenClassification)
    } else {
        None
    }
}
