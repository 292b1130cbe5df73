//! Every parameter of the networks once, in one flat buffer described by one table.
//!
//! The table gives each tensor its Hugging Face name, shape, place, initial values and weight decay; checkpoints,
//! optimizer, gradients and tests all read it. A shared tensor stands in it once, under its generator name, with the
//! discriminator's name as an alias. Queries, keys and values of a layer lie side by side, so one product makes all.

use std::collections::BTreeMap;
use std::ops::Range;

use super::config::{Architecture, ElectraConfig};
use super::hf::{Checkpoint, HostTensor, parameter_shapes};
use super::init::{Init, WORD, fresh, point_heads};
use super::{Options, Share};
use crate::backend::{Backend, Float};
use crate::rng::Philox;
use crate::{Error, Result};

/// Tensors (but those that must touch) start at multiples of this many elements: 16-byte accesses on every device.
const ALIGNMENT: usize = 64;
/// Rows of what logits are computed from are a multiple of this: [`Backend::pitch`] at the most. Those behind the last token stay 0.
pub(super) const VOCABULARY_ROWS: usize = 128;

/// One tensor of the flat buffer.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// `generator.`, `discriminator.` or `model.` and the Hugging Face name.
    pub name: String,
    /// The other name of a shared tensor.
    pub alias: Option<String>,
    /// Shape as in checkpoints.
    pub shape: Vec<usize>,
    /// First element.
    pub offset: usize,
    /// Whether weight decay applies: not to LayerNorm, not to biases.
    pub decays: bool,
}

impl TensorSpec {
    /// Its place in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape.iter().product::<usize>()
    }
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct ParamTable {
    specs: Vec<TensorSpec>,
    by_name: BTreeMap<String, usize>,
    len: usize,
}

/// What the names of a network's parameters begin with.
pub(super) const GENERATOR: &str = "generator.";
/// The same for the discriminator.
pub(super) const DISCRIMINATOR: &str = "discriminator.";
/// The same for a masked language model that is trained alone.
pub(super) const MODEL: &str = "model.";

/// Suffix of the discriminator's own part of the word embeddings under gradient-disentangled sharing.
pub(crate) const DELTA: &str = "discriminator.electra.embeddings.word_embeddings.delta";
const DECODER_BIAS: &str = "generator_lm_head.bias";

/// Which tensors of the discriminator are the generator's.
pub(super) fn is_shared(name: &str, share: Share) -> bool {
    match share {
        Share::Word | Share::Gdes => name == WORD,
        Share::All => name.starts_with("electra.embeddings."),
        Share::None => false,
    }
}

impl ParamTable {
    /// Lays out generator and discriminator; an error if what is to be shared does not fit. Without a
    /// discriminator the first is a masked language model by itself.
    pub fn new(
        generator: &ElectraConfig,
        discriminator: Option<(&ElectraConfig, Architecture)>,
        share: Share,
    ) -> Result<Self> {
        let Some((discriminator, head)) = discriminator else {
            return Ok(Self::single(MODEL, generator, Architecture::MaskedLm));
        };
        let mut table = Self::default();
        let ours = parameter_shapes(generator, Architecture::MaskedLm);
        table.add_network(GENERATOR, &ours, |_| false);
        let theirs = parameter_shapes(discriminator, head);
        for (name, shape) in theirs.iter().filter(|(name, _)| is_shared(name, share)) {
            let Some(&index) = table.by_name.get(&format!("{GENERATOR}{name}")) else { continue };
            let spec = &mut table.specs[index];
            if spec.shape != *shape {
                return Err(Error::config(format!(
                    "`{name}` cannot be shared: the generator's is {:?}, the discriminator's {shape:?}; choose models \
                     with the same vocabulary and embedding size, or `--share none`",
                    spec.shape
                )));
            }
            let alias = format!("{DISCRIMINATOR}{name}");
            spec.alias = Some(alias.clone());
            table.by_name.insert(alias, index);
        }
        table.add_network(DISCRIMINATOR, &theirs, |name| is_shared(name, share));
        if share == Share::Gdes {
            table.align();
            table.push(DELTA.to_owned(), vec![discriminator.vocab_size, discriminator.embedding_size]);
        }
        table.align();
        Ok(table)
    }

    /// One network alone, the names of its tensors behind `prefix`.
    pub(super) fn single(prefix: &str, config: &ElectraConfig, architecture: Architecture) -> Self {
        let mut table = Self::default();
        table.add_network(prefix, &parameter_shapes(config, architecture), |_| false);
        table.align();
        table
    }

    fn add_network(&mut self, prefix: &str, shapes: &[(String, Vec<usize>)], skip: impl Fn(&str) -> bool) {
        const PARTS: [&str; 3] = ["query", "key", "value"];
        for (name, shape) in shapes.iter().filter(|(name, _)| !skip(name)) {
            if let Some(layer) = name.strip_suffix("attention.self.query.weight") {
                self.align();
                for kind in ["weight", "bias"] {
                    for part in PARTS {
                        let full = format!("{layer}attention.self.{part}.{kind}");
                        let shape = if kind == "weight" { shape.clone() } else { vec![shape[0]] };
                        self.push(format!("{prefix}{full}"), shape);
                    }
                }
            } else if !name.contains("attention.self.") {
                self.align();
                self.push(format!("{prefix}{name}"), shape.clone());
            }
        }
    }

    fn align(&mut self) {
        self.len = self.len.next_multiple_of(ALIGNMENT);
    }

    fn push(&mut self, name: String, shape: Vec<usize>) {
        let decays = !name.contains("LayerNorm") && !name.ends_with("bias");
        let spec = TensorSpec { name, alias: None, shape, offset: self.len, decays };
        self.len = spec.range().end;
        if spec.name.ends_with(WORD) || spec.name.ends_with(DECODER_BIAS) {
            let (rows, columns) = (spec.shape[0], spec.shape[1..].iter().product::<usize>());
            self.len = spec.offset + rows.next_multiple_of(VOCABULARY_ROWS) * columns;
        }
        self.by_name.insert(spec.name.clone(), self.specs.len());
        self.specs.push(spec);
    }

    /// Its tensors, by place.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Elements of the flat buffer, gaps included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// Parameters, each once.
    pub fn parameter_count(&self) -> usize {
        self.specs.iter().map(|spec| spec.range().len()).sum()
    }

    /// Ranges that decay.
    pub fn decayed(&self) -> Vec<Range<usize>> {
        self.specs.iter().filter(|spec| spec.decays).map(TensorSpec::range).collect()
    }

    /// A tensor by its own name or its alias.
    pub fn get(&self, name: &str) -> Result<&TensorSpec> {
        let index =
            self.by_name.get(name).ok_or_else(|| Error::argument(format!("no parameter named `{name}`")))?;
        Ok(&self.specs[*index])
    }

    pub(super) fn range(&self, name: &str) -> Result<Range<usize>> {
        self.get(name).map(TensorSpec::range)
    }

    /// The initial flat buffer: tensors of the checkpoints, and fresh ones (see
    /// [`Init`](super::Init)) where a checkpoint has none. Of one network alone the checkpoint is
    /// the first.
    pub fn initial(
        &self,
        generator: &Checkpoint,
        discriminator: Option<&Checkpoint>,
        options: &Options,
    ) -> Vec<f32> {
        let mut flat = vec![0.0; self.len];
        let philox = Philox::new(options.seed);
        for (number, spec) in self.specs.iter().enumerate() {
            let target = &mut flat[spec.range()];
            let (checkpoint, name) = match (discriminator, spec.name.strip_prefix(DISCRIMINATOR)) {
                (Some(discriminator), Some(_)) if spec.name == DELTA => {
                    initial_delta(generator, discriminator, target);
                    continue;
                }
                (Some(discriminator), Some(name)) => (discriminator, name),
                _ => (generator, spec.name.split_once('.').map_or(spec.name.as_str(), |(_, name)| name)),
            };
            match checkpoint.tensors.get(name) {
                Some(tensor) => target.copy_from_slice(&tensor.data),
                None => {
                    let stream = (philox, number as u32);
                    fresh((name, &spec.shape), &checkpoint.config, options.init, stream, target);
                }
            }
        }
        if options.init == Init::Local {
            self.point_heads(generator, discriminator, &mut flat);
        }
        flat
    }

    /// Makes the heads of fresh layers attend to neighbours.
    fn point_heads(&self, generator: &Checkpoint, discriminator: Option<&Checkpoint>, flat: &mut [f32]) {
        const QUERY: &str = "attention.self.query.weight";
        for spec in self.specs.iter().filter(|spec| spec.name.ends_with(QUERY)) {
            let checkpoint = match discriminator {
                Some(discriminator) if spec.name.starts_with(DISCRIMINATOR) => discriminator,
                _ => generator,
            };
            let layer = spec.name.split_once("layer.").and_then(|(_, rest)| rest.split_once('.'));
            let (Some((layer, _)), Some((_, own_name))) = (layer, spec.name.split_once('.')) else {
                continue;
            };
            let key =
                self.by_name.get(&spec.name.replace("query", "key")).map(|&key| self.specs[key].range());
            let (Ok(layer), Some(key)) = (layer.parse(), key) else { continue };
            if !checkpoint.tensors.contains_key(own_name) {
                // Queries lie in front of the keys.
                let (before, keys) = flat.split_at_mut(key.start);
                point_heads(&checkpoint.config, layer, &keys[..key.len()], &mut before[spec.range()]);
            }
        }
    }
}

/// A delta that makes the discriminator's table what its checkpoint holds; zero for fresh models.
fn initial_delta(generator: &Checkpoint, discriminator: &Checkpoint, delta: &mut [f32]) {
    if let (Some(ours), Some(theirs)) = (generator.tensors.get(WORD), discriminator.tensors.get(WORD)) {
        for ((d, &g), &t) in delta.iter_mut().zip(&ours.data).zip(&theirs.data) {
            *d = t - g;
        }
    }
}

/// The parameters on a device: masters, the working copy that ops read, and gradients.
pub struct Params<B: Backend> {
    /// What lies where.
    pub table: ParamTable,
    pub(crate) master: B::Buf<B::F>,
    pub(crate) working: B::Buf<B::X>,
    pub(crate) grads: B::Buf<B::F>,
}

impl<B: Backend> Params<B> {
    pub(super) fn new(backend: &B, table: ParamTable, initial: &[f32]) -> Result<Self> {
        let len = table.len();
        let mut params = Self {
            table,
            master: backend.alloc(len)?,
            working: backend.alloc(len)?,
            grads: backend.alloc(len)?,
        };
        params.load(backend, initial)?;
        Ok(params)
    }

    pub(super) fn load(&mut self, backend: &B, flat: &[f32]) -> Result<()> {
        let len = self.table.len();
        if flat.len() != len {
            return Err(Error::argument(format!("{} weights given, the model has {len}", flat.len())));
        }
        let flat: Vec<B::F> = flat.iter().map(|&x| B::F::from_f64(f64::from(x))).collect();
        backend.upload(&flat, B::slice_mut(&mut self.master, 0..len))?;
        backend.cast(B::slice(&self.master, 0..len), B::slice_mut(&mut self.working, 0..len))
    }

    pub(super) fn host(&self, backend: &B, buf: &B::Buf<B::F>) -> Result<Vec<f32>> {
        let values = backend.download(B::slice(buf, 0..self.table.len()))?;
        Ok(values.into_iter().map(|x| x.to_f64() as f32).collect())
    }

    /// The tensors of one network, under their Hugging Face names, from a flat host buffer.
    pub(super) fn tensors(&self, flat: &[f32], prefix: &str) -> BTreeMap<String, HostTensor> {
        let mut tensors = BTreeMap::new();
        for spec in self.table.specs().iter().filter(|spec| spec.name != DELTA) {
            for name in std::iter::once(&spec.name).chain(&spec.alias) {
                if let Some(name) = name.strip_prefix(prefix) {
                    let tensor = HostTensor { shape: spec.shape.clone(), data: flat[spec.range()].to_vec() };
                    tensors.insert(name.to_owned(), tensor);
                }
            }
        }
        if prefix == DISCRIMINATOR
            && let (Ok(delta), Some(word)) = (self.table.range(DELTA), tensors.get_mut(WORD))
        {
            word.data.iter_mut().zip(&flat[delta]).for_each(|(w, &d)| *w += d);
        }
        tensors
    }
}
