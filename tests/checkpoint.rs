//! Checkpoint directories: round trips, the forms that `transformers` has written over the years, presets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use elektron::model::config::{Architecture, ElectraConfig, Preset};
use elektron::model::hf::{Checkpoint, parameter_shapes};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::support::golden;

fn original() -> Checkpoint {
    Checkpoint::load(&golden("checkpoints/generator")).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn what_transformers_wrote_is_written_back_unchanged() {
    for name in ["generator", "discriminator_pre", "discriminator_token"] {
        let from = golden("checkpoints").join(name);
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::load(&from).unwrap();
        checkpoint.save(dir.path()).unwrap();
        assert_eq!(json(&dir.path().join("config.json")), json(&from.join("config.json")), "{name}");
        assert_eq!(Checkpoint::load(dir.path()).unwrap(), checkpoint);
        let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }
}

#[test]
fn names_and_shapes_are_those_of_transformers() {
    let all: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_value(json(&golden("hf_electra_param_names.json"))).unwrap();
    let mut compared = 0;
    for (class, want) in &all {
        let (name, size) = class.split_once('_').unwrap();
        let Some(architecture) = Architecture::from_class_name(name) else { continue };
        let config = match size {
            "small" | "small_2labels" => Preset::Small.discriminator(30522),
            "small_quarter_generator" => Preset::Small.generator(30522),
            other => panic!("{other}"),
        };
        let got: BTreeMap<_, _> = parameter_shapes(&config, architecture).into_iter().collect();
        let mut want = want.clone();
        want.remove("generator_lm_head.weight");
        assert_eq!(got, want, "{class}");
        compared += 1;
    }
    assert!(compared >= 3, "{:?}", all.keys());
}

/// Tensors as (name, type, shape, bytes).
type Raw = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn write(path: &Path, tensors: &Raw) {
    let view = |(n, d, s, b): &'_ (String, Dtype, Vec<usize>, Vec<u8>)| (n.clone(), *d, s.clone(), b.clone());
    let owned: Raw = tensors.iter().map(view).collect();
    let views = owned.iter().map(|(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The golden generator's tensors, each passed through `change`.
fn directory(change: impl Fn(&str, &[f32]) -> (String, Dtype, Vec<u8>)) -> (tempfile::TempDir, Raw) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("checkpoints/generator/config.json"), dir.path().join("config.json")).unwrap();
    let raw = original().tensors.into_iter().map(|(name, tensor)| {
        let (name, dtype, bytes) = change(&name, &tensor.data);
        (name, dtype, tensor.shape, bytes)
    });
    let raw = raw.collect();
    (dir, raw)
}

fn plain(data: &[f32]) -> Vec<u8> {
    data.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn legacy_names_are_accepted() {
    let (dir, mut raw) = directory(|name, data| {
        let name =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        (name, Dtype::F32, plain(data))
    });
    raw.push(("electra.embeddings.position_ids".to_owned(), Dtype::I64, vec![1, 1], vec![0; 8]));
    write(&dir.path().join("model.safetensors"), &raw);
    assert_eq!(Checkpoint::load(dir.path()).unwrap(), original());
}

#[test]
fn shards_are_read_through_their_index() {
    let (dir, raw) = directory(|name, data| (name.to_owned(), Dtype::F32, plain(data)));
    let mut map = serde_json::Map::new();
    for (i, part) in raw.chunks(raw.len().div_ceil(3)).enumerate() {
        let file = format!("model-0000{}-of-00003.safetensors", i + 1);
        write(&dir.path().join(&file), &part.to_vec());
        part.iter().for_each(|(name, ..)| {
            map.insert(name.clone(), file.clone().into());
        });
    }
    let index = serde_json::json!({ "weight_map": map });
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(Checkpoint::load(dir.path()).unwrap(), original());
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert!(Checkpoint::load(dir.path()).unwrap_err().to_string().contains("model-00002"));
}

#[test]
fn half_and_double_precision_are_converted() {
    use half::{bf16, f16};
    type Convert = fn(f32) -> (Vec<u8>, f32);
    let kinds: [(Dtype, Convert); 3] = [
        (Dtype::BF16, |x| (bf16::from_f32(x).to_le_bytes().to_vec(), bf16::from_f32(x).to_f32())),
        (Dtype::F16, |x| (f16::from_f32(x).to_le_bytes().to_vec(), f16::from_f32(x).to_f32())),
        (Dtype::F64, |x| (f64::from(x).to_le_bytes().to_vec(), x)),
    ];
    for (dtype, convert) in kinds {
        let (dir, raw) = directory(|name, data| {
            (name.to_owned(), dtype, data.iter().flat_map(|&x| convert(x).0).collect())
        });
        write(&dir.path().join("model.safetensors"), &raw);
        let got = Checkpoint::load(dir.path()).unwrap();
        for (name, tensor) in original().tensors {
            let want: Vec<f32> = tensor.data.iter().map(|&x| convert(x).1).collect();
            assert_eq!(got.tensors[&name].data, want, "{dtype:?} {name}");
        }
    }
}

#[test]
fn the_tied_decoder_may_stand_in_either_place() {
    const WORD: &str = "electra.embeddings.word_embeddings.weight";
    const DECODER: &str = "generator_lm_head.weight";
    let (dir, raw) = directory(|name, data| (name.to_owned(), Dtype::F32, plain(data)));
    let path = dir.path().join("model.safetensors");
    let word = raw.iter().find(|(name, ..)| name == WORD).unwrap().clone();
    let decoder = (DECODER.to_owned(), word.1, word.2.clone(), word.3.clone());
    let both = [&raw[..], std::slice::from_ref(&decoder)].concat();
    write(&path, &both);
    assert_eq!(Checkpoint::load(dir.path()).unwrap(), original());
    let alone: Raw = both.iter().filter(|(name, ..)| name != WORD).cloned().collect();
    write(&path, &alone);
    assert_eq!(Checkpoint::load(dir.path()).unwrap(), original());
    let mut other = decoder;
    other.3[2] ^= 1;
    write(&path, &[&raw[..], &[other]].concat());
    let error = Checkpoint::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains(WORD) && error.contains(DECODER), "{error}");
}

#[test]
fn a_discriminator_takes_another_head() {
    let pre = Checkpoint::load(&golden("checkpoints/discriminator_pre")).unwrap();
    let token = pre.clone().with_head(Architecture::TokenClassification);
    assert!(token.tensors.keys().all(|name| name.starts_with("electra.")));
    assert_eq!(pre.clone().with_head(Architecture::PreTraining), pre);
}

#[test]
fn presets_are_the_papers() {
    let sizes = |c: ElectraConfig| {
        let heads = c.num_attention_heads;
        (c.num_hidden_layers, c.embedding_size, c.hidden_size, heads, c.intermediate_size)
    };
    assert_eq!(sizes(Preset::Small.discriminator(1)), (12, 128, 256, 4, 1024));
    assert_eq!(sizes(Preset::Small.generator(1)), (12, 128, 64, 1, 256));
    assert_eq!(sizes(Preset::Base.discriminator(1)), (12, 768, 768, 12, 3072));
    assert_eq!(sizes(Preset::Base.generator(1)), (12, 768, 256, 4, 1024));
    assert_eq!(sizes(Preset::Large.discriminator(1)), (24, 1024, 1024, 16, 4096));
    assert_eq!(sizes(Preset::Large.generator(1)), (24, 1024, 256, 4, 1024));
    assert_eq!(sizes(Preset::Tiny.discriminator(1)), (2, 128, 128, 2, 512));
    assert_eq!(sizes(Preset::Tiny.generator(1)), (2, 128, 64, 1, 256));
}

/// A link to a disk that is not mounted is not a run without checkpoints.
#[cfg(unix)]
#[test]
fn checkpoints_behind_a_dead_link_are_not_started_over() {
    let scratch = crate::cli::Scratch::new();
    let output = scratch.pretrain("run", &["--steps", "2", "--save-every", "1"]);
    let (dir, disk) = (std::path::Path::new(&output).join("checkpoints"), scratch.path("disk"));
    std::fs::rename(&dir, &disk).unwrap();
    std::os::unix::fs::symlink(&disk, &dir).unwrap();
    let resume = ["pretrain", "--resume", &output, "--steps", "3", "--quiet", "--device", "cpu"];
    let log = std::path::Path::new(&output).join("metrics.jsonl");
    let before = std::fs::read(&log).unwrap();
    std::fs::rename(&disk, scratch.path("away")).unwrap();
    crate::cli::fail(&resume, &["checkpoints", "leads nowhere", "mount"]);
    assert_eq!(std::fs::read(&log).unwrap(), before);
    assert!(!std::path::Path::new(&disk).exists());
    std::fs::rename(scratch.path("away"), &disk).unwrap();
    crate::cli::succeed(&resume);
}
