//! The files of a checkpoint directory: `config.json`, and weights in one file or several.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use super::HostTensor;
use crate::git_lfs::{POINTER_START, pointer_error};
use crate::model::config::{ConfigFile, ElectraConfig};
use crate::{Error, Result};

/// Names of the files of a directory's weights: one file, or an index of several.
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Reads a `config.json`: sizes, and the classes that it names.
pub(crate) fn read_config(path: &Path) -> Result<ConfigFile> {
    refuse_pointer(path)?;
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let object = match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(Error::file(path, "this is not a JSON object, as a model's config is")),
        Err(e) => return Err(Error::file(path, format!("this is not JSON ({e}); copy the file again"))),
    };
    ElectraConfig::from_json(object).map_err(|e| Error::file(path, e.to_string()))
}

/// An error if a file is the pointer that a clone without Git LFS has in the place of a large file.
pub(crate) fn refuse_pointer(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    let opened =
        File::open(path).and_then(|file| file.take(POINTER_START.len() as u64).read_to_end(&mut start));
    opened.map_err(Error::io("read", path))?;
    if start == POINTER_START { Err(pointer_error(path)) } else { Ok(()) }
}

/// The files that an index names.
pub(crate) fn shard_names(index: &Path) -> Result<Vec<String>> {
    refuse_pointer(index)?;
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

/// The safetensors files of a directory: one, or the shards that an index names; none if no file of
/// the directory looks like weights.
pub(super) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let (single, index) = (dir.join(WEIGHTS), dir.join(WEIGHTS_INDEX));
    if single.is_file() {
        return Ok(vec![single]);
    }
    if index.is_file() {
        return Ok(shard_names(&index)?.iter().map(|name| dir.join(name)).collect());
    }
    let names = fs::read_dir(dir).map_err(Error::io("read the directory", dir))?.flatten();
    let mut names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let Some(other) = names.into_iter().find(|name| looks_like_weights(name)) else { return Ok(Vec::new()) };
    let hint = match other.ends_with(".safetensors") {
        true => "expected model.safetensors or model.safetensors.index.json",
        false => "load it in transformers and call `save_pretrained(dir)`, which writes model.safetensors",
    };
    Err(Error::file(dir, format!("there are no weights to read, it holds {other} only: {hint}")))
}

/// Whether a file's name is that of weights in another format than the one that is read.
fn looks_like_weights(name: &str) -> bool {
    let ends = [".bin", ".h5", ".msgpack", ".pt", ".pth", ".safetensors", ".onnx", ".gguf", ".npz"];
    ends.iter().any(|end| name.ends_with(end))
        || name.contains(".ckpt")
        || name == "pytorch_model.bin.index.json"
}

/// The tensors of a directory: those that a network can be made of, and the names of all others.
#[derive(Clone, Debug, Default)]
pub(super) struct Tensors {
    pub(super) by_name: BTreeMap<String, HostTensor>,
    /// Names of other tensors, which are not read.
    pub(super) others: Vec<String>,
    files: Vec<PathBuf>,
    file_of: BTreeMap<String, usize>,
}

impl Tensors {
    pub(super) fn read(files: Vec<PathBuf>) -> Result<Self> {
        let mut tensors = Self { files, ..Self::default() };
        for number in 0..tensors.files.len() {
            tensors.read_file(number)?;
        }
        Ok(tensors)
    }

    /// The file that a tensor was read from.
    pub(super) fn file_of(&self, name: &str) -> Option<&Path> {
        self.file_of.get(name).map(|&number| self.files[number].as_path())
    }

    fn read_file(&mut self, number: usize) -> Result<()> {
        let path = self.files[number].clone();
        refuse_pointer(&path)?;
        let map = map_file(&path)?;
        let broken =
            |e| Error::file(&path, format!("this is not a whole safetensors file ({e}); copy it again"));
        let file = SafeTensors::deserialize(&map).map_err(broken)?;
        for (stored, view) in file.tensors() {
            // Buffers, and a bias under another name, that only older versions stored.
            if stored.ends_with("embeddings.position_ids")
                || stored.ends_with("embeddings.token_type_ids")
                || stored == "generator_lm_head.decoder.bias"
            {
                continue;
            }
            let name = current_name(&stored);
            if self.file_of.insert(name.clone(), number).is_some() {
                return Err(Error::file(
                    &path,
                    format!(
                        "tensor `{name}` is given for the second time, as `{stored}`: delete one of the two"
                    ),
                ));
            }
            if !is_of_a_network(&name) {
                self.others.push(name);
                continue;
            }
            let tensor = to_f32(&view).ok_or_else(|| {
                Error::file(
                    &path,
                    format!("tensor `{name}` is {:?}, expected F32, F64, F16 or BF16", view.dtype()),
                )
            })?;
            if tensor.data.iter().any(|x| !x.is_finite()) {
                return Err(Error::file(
                    &path,
                    format!(
                        "tensor `{name}` holds NaN or infinite numbers, from which nothing can be \
                         trained: use an earlier checkpoint of this model"
                    ),
                ));
            }
            self.by_name.insert(name, tensor);
        }
        Ok(())
    }
}

/// The name that a tensor has in a model with a head of current versions.
fn current_name(stored: &str) -> String {
    let name =
        stored.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    // The file of an ElectraModel has names without the prefix.
    match ["embeddings.", "embeddings_project.", "encoder."].iter().any(|start| name.starts_with(start)) {
        true => format!("electra.{name}"),
        false => name,
    }
}

/// Whether a tensor belongs to the encoder or to one of the heads that are trained here.
fn is_of_a_network(name: &str) -> bool {
    ["electra.", "generator_predictions.", "generator_lm_head.", "discriminator_predictions."]
        .iter()
        .any(|start| name.starts_with(start))
        || matches!(name, "classifier.weight" | "classifier.bias")
}

/// Maps a file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    // SAFETY: the map is read-only; a program that changes the file meanwhile changes what is read,
    // and every size in it is checked before use.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}

/// The elements of a floating-point tensor.
fn to_f32(view: &TensorView<'_>) -> Option<HostTensor> {
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
