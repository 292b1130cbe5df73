//! What training can start from: a directory of any of ELECTRA's classes, whose encoder is used,
//! and whose head is used if it is the one that is trained; or a `config.json` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{Tensors, read_config, weight_files};
use super::{Checkpoint, HostTensor, LAYER, NamedShape, TIED, WORD, named_shapes, parameter_shapes};
use crate::model::Share;
use crate::model::config::{Architecture, ConfigFile, ElectraConfig};
use crate::model::params::is_shared;
use crate::{Error, Result};

/// The classes of `transformers`, and how the names of the tensors of each head begin: the first
/// that is found is the class of weights whose configuration names none.
const CLASSES: [(&str, &str); 8] = [
    ("ElectraForMaskedLM", "generator_predictions."),
    ("ElectraForCausalLM", "generator_predictions."),
    ("ElectraForPreTraining", "discriminator_predictions."),
    ("ElectraForMultipleChoice", "sequence_summary."),
    ("ElectraForSequenceClassification", "classifier.dense."),
    ("ElectraForTokenClassification", "classifier."),
    ("ElectraForQuestionAnswering", "qa_outputs."),
    ("ElectraModel", ""),
];

/// Where the weights of a starting point come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// There are none: the directory holds a configuration alone.
    Config,
    /// A saved model of this class of `transformers`.
    Model(String),
}

/// The contents of a directory from which networks can be made.
#[derive(Clone, Debug)]
pub struct StartingPoint {
    dir: PathBuf,
    file: ConfigFile,
    source: Source,
    tensors: Tensors,
}

impl StartingPoint {
    /// Reads a directory. The error names the file, the tensor or field, what was expected and what
    /// was found.
    pub fn read(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            let problem = match dir.exists() {
                true => "this is a file; give the directory that holds config.json and model.safetensors",
                false => "no such directory; give one that holds config.json and model.safetensors",
            };
            return Err(Error::file(dir, problem));
        }
        let path = dir.join("config.json");
        let holds = |name: &str| dir.join(name).join("config.json").is_file();
        if holds("generator") && holds("discriminator") {
            let problem = "this is the directory of a run: give its generator/ or its discriminator/";
            return Err(Error::file(dir, problem));
        }
        if holds("model") && !has_weights(dir) {
            return Err(Error::file(dir, "this is the directory of a run: give its model/"));
        }
        let file = read_config(&path)?;
        let files = weight_files(dir)?;
        if files.is_empty() {
            let tensors = Tensors::default();
            return Ok(Self { dir: dir.to_path_buf(), file, source: Source::Config, tensors });
        }
        let tensors = Tensors::read(files)?;
        let class = class_of(&file, &tensors);
        let mut point = Self { dir: dir.to_path_buf(), file, source: Source::Model(class), tensors };
        point.tie()?;
        point.set_classifier_aside()?;
        point.check()?;
        Ok(point)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its sizes.
    pub fn config(&self) -> &ElectraConfig {
        &self.file.config
    }

    /// Where its weights come from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Remarks on fields of the configuration that are written differently, or that are unknown;
    /// neither changes what is computed.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if !self.file.tied {
            remarks.push(
                "`tie_word_embeddings` is false; Elektron ties a generator's head to the word \
                 embeddings, and saves true"
                    .to_owned(),
            );
        }
        let unknown: Vec<String> =
            self.file.config.unknown_fields().iter().map(|name| format!("`{name}`")).collect();
        if !unknown.is_empty() {
            remarks.push(format!(
                "{} in config.json: transformers knows no such field of ELECTRA, and nothing is done with it",
                unknown.join(", ")
            ));
        }
        remarks
    }

    /// A network with the head of `architecture`: the encoder of this directory, and its head where
    /// it is the same. What is missing starts fresh.
    pub fn network(&self, architecture: Architecture) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::fresh(self.file.config.clone(), architecture);
        if self.source == Source::Config {
            if architecture == Architecture::TokenClassification && checkpoint.config.num_labels() != 2 {
                checkpoint.config.remove_labels();
            }
            return Ok(checkpoint);
        }
        if architecture == Architecture::MaskedLm && self.tensors.by_name.contains_key(TIED) {
            return Err(Error::file(
                &self.dir,
                format!(
                    "`tie_word_embeddings` is false, and `{TIED}` differs from `{WORD}`: Elektron \
                     trains a generator whose head is tied to its word embeddings only"
                ),
            ));
        }
        for (name, _) in parameter_shapes(&self.file.config, architecture) {
            if let Some(tensor) = self.tensors.by_name.get(&name) {
                checkpoint.tensors.insert(name, tensor.clone());
            }
        }
        let head = |name: &&String| !name.starts_with("electra.");
        if let Some(missing) = checkpoint.fresh_parameters().iter().find(head)
            && checkpoint.tensors.keys().any(|name| head(&name))
        {
            return Err(self.missing(missing, architecture.class_name()));
        }
        // Labels of a head that is not kept are removed.
        let two = architecture != Architecture::TokenClassification || checkpoint.config.num_labels() == 2;
        if self.architecture() != Some(architecture) || !two {
            checkpoint.config.remove_labels();
        }
        Ok(checkpoint)
    }

    /// Names of tensors that are in none of the networks made of this directory.
    pub fn unused(&self, networks: &[&Checkpoint]) -> Vec<&str> {
        let read = self.tensors.by_name.keys().chain(&self.tensors.others).map(String::as_str);
        read.filter(|name| networks.iter().all(|network| !network.tensors.contains_key(*name))).collect()
    }

    /// The network that was saved here, whole.
    pub(super) fn into_checkpoint(self) -> Result<Checkpoint> {
        let Source::Model(class) = &self.source else {
            return Err(Error::file(
                &self.dir,
                "there are no weights: expected model.safetensors or model.safetensors.index.json; \
                 `elektron pretrain` trains a new model of the sizes in config.json",
            ));
        };
        let problem = match self.architecture() {
            Some(Architecture::TokenClassification) if self.file.config.num_labels() != 2 => {
                format!("this is an {class} of {} labels; expected", self.file.config.num_labels())
            }
            Some(architecture) => {
                let checkpoint = self.network(architecture)?;
                if let Some(name) = self.unused(&[&checkpoint]).first() {
                    return Err(Error::file(&self.dir, format!("tensor `{name}` is not one of {class}'s")));
                }
                return match checkpoint.fresh_parameters().first() {
                    Some(name) => Err(self.missing(name, class)),
                    None => Ok(checkpoint),
                };
            }
            None => format!("this is an {class}, whose head is of no use here; expected"),
        };
        Err(Error::file(
            &self.dir,
            format!(
                "{problem} a generator (ElectraForMaskedLM) or a discriminator \
                 (ElectraForPreTraining, or ElectraForTokenClassification of two labels); \
                 `elektron pretrain --base` makes both from the encoder of this one"
            ),
        ))
    }

    /// Which of the heads that are trained here the class has.
    fn architecture(&self) -> Option<Architecture> {
        match &self.source {
            Source::Config => None,
            Source::Model(class) => Architecture::from_class_name(class),
        }
    }

    /// Removes the decoder's weight, which must equal the word embeddings, and which is used for
    /// them if they are missing. It is kept if the configuration says that the two differ.
    fn tie(&mut self) -> Result<()> {
        let tensors = &mut self.tensors.by_name;
        let Some(decoder) = tensors.remove(TIED) else { return Ok(()) };
        match tensors.get(WORD) {
            None if self.file.tied => {
                tensors.insert(WORD.to_owned(), decoder);
            }
            Some(word) if *word == decoder => {}
            Some(_) if self.file.tied => {
                return Err(Error::file(
                    &self.dir,
                    format!(
                        "`{TIED}` and `{WORD}` differ, but ELECTRA ties them: delete the one that is not meant"
                    ),
                ));
            }
            _ => {
                tensors.insert(TIED.to_owned(), decoder);
            }
        }
        Ok(())
    }

    /// Marks a classifier as unused, unless it is one of tokens with two labels, which is trained
    /// here.
    fn set_classifier_aside(&mut self) -> Result<()> {
        let of_tokens = self.architecture() == Some(Architecture::TokenClassification);
        if let Some(weight) = self.tensors.by_name.get("classifier.weight") {
            let (rows, labels) = (weight.shape.first().copied().unwrap_or(0), self.file.config.num_labels());
            if of_tokens && rows != labels {
                return Err(Error::file(
                    self.file_of("classifier.weight"),
                    format!(
                        "`classifier.weight` has {rows} rows, but config.json has {labels} labels \
                         (`id2label`): weights and config are of different models"
                    ),
                ));
            }
            if of_tokens && rows == 2 {
                return Ok(());
            }
        }
        for name in ["classifier.weight", "classifier.bias"] {
            if self.tensors.by_name.remove(name).is_some() {
                self.tensors.others.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// An error if a tensor of the encoder is missing or unknown, or if a shape is wrong.
    fn check(&mut self) -> Result<()> {
        let config = &self.file.config;
        let mut expected: BTreeMap<String, NamedShape> = BTreeMap::new();
        for architecture in
            [Architecture::MaskedLm, Architecture::PreTraining, Architecture::TokenClassification]
        {
            expected.extend(named_shapes(config, architecture));
        }
        let layers = config.num_hidden_layers;
        expected.insert(
            TIED.to_owned(),
            vec![("vocab_size", config.vocab_size), ("embedding_size", config.embedding_size)],
        );
        for (name, tensor) in &self.tensors.by_name {
            if let Some(shape) = expected.get(name) {
                self.check_shape(name, tensor, shape)?;
            }
        }
        let (known, odd): (Vec<_>, Vec<_>) =
            self.tensors.by_name.keys().partition(|name| expected.contains_key(*name));
        if let Some(name) = odd.iter().find(|name| name.starts_with("electra.")) {
            let Source::Model(class) = &self.source else { return Ok(()) };
            return Err(Error::file(
                self.file_of(name),
                format!("tensor `{name}` is not one of {class}'s{}", self.layers(name, layers)),
            ));
        }
        let of_encoder = |name: &&String| name.starts_with("electra.");
        if let (None, Some(other)) = (known.iter().find(|name| of_encoder(name)), self.tensors.others.first())
        {
            return Err(Error::file(
                self.file_of(other),
                format!(
                    "no tensor is one of an ELECTRA encoder; the first is `{other}`, expected are \
                     names such as `{WORD}`"
                ),
            ));
        }
        let known: BTreeSet<_> = known.into_iter().collect();
        if let Some(name) = expected.keys().filter(of_encoder).find(|name| !known.contains(*name)) {
            let Source::Model(class) = &self.source else { return Ok(()) };
            return Err(self.missing(name, class));
        }
        for name in odd.into_iter().cloned().collect::<Vec<_>>() {
            self.tensors.by_name.remove(&name);
            self.tensors.others.push(name);
        }
        Ok(())
    }

    fn check_shape(&self, name: &str, tensor: &HostTensor, expected: &NamedShape) -> Result<()> {
        let sizes: Vec<usize> = expected.iter().map(|(_, size)| *size).collect();
        if tensor.shape == sizes {
            return Ok(());
        }
        let shapes = format!("its shape is {:?}, config.json asks for {sizes:?}", tensor.shape);
        let axis = (0..sizes.len()).find(|&axis| tensor.shape.get(axis) != Some(&sizes[axis]));
        let problem = match axis.filter(|_| tensor.shape.len() == sizes.len()) {
            Some(axis) if !expected[axis].0.is_empty() => {
                let (field, size) = expected[axis];
                let (found, what) = (tensor.shape[axis], ["rows", "columns"][axis.min(1)]);
                format!(
                    "`{field}` is {size} in config.json, but tensor `{name}` has {found} {what} ({shapes})"
                )
            }
            _ => format!("tensor `{name}` does not fit: {shapes}"),
        };
        let problem = format!("{problem}: weights and config are of different models");
        Err(Error::file(self.file_of(name), problem))
    }

    fn missing(&self, name: &str, class: &str) -> Error {
        let layers = self.layers(name, self.file.config.num_hidden_layers);
        Error::file(&self.dir, format!("tensor `{name}` of {class} is missing{layers}"))
    }

    /// The numbers of layers for an error about a tensor of a layer, if they differ.
    fn layers(&self, name: &str, expected: usize) -> String {
        let number = |name: &str| name.strip_prefix(LAYER)?.split('.').next()?.parse::<usize>().ok();
        let found = self.tensors.by_name.keys().filter_map(|name| number(name)).max().map_or(0, |l| l + 1);
        if number(name).is_none() || found == expected {
            return String::new();
        }
        format!(": config.json has `num_hidden_layers` {expected}, the weights have {found} layers")
    }

    fn file_of(&self, name: &str) -> &Path {
        self.tensors.file_of(name).unwrap_or(&self.dir)
    }
}

/// Whether weights lie in the directory itself.
fn has_weights(dir: &Path) -> bool {
    weight_files(dir).is_ok_and(|files| !files.is_empty())
}

/// The class that the configuration names, or whose head the weights have.
fn class_of(file: &ConfigFile, tensors: &Tensors) -> String {
    let named = file.classes.iter().find(|name| CLASSES.iter().any(|(class, _)| class == name));
    let names = || tensors.by_name.keys().chain(&tensors.others);
    let found = || {
        let of_head = |(_, head): &&(&str, &str)| names().any(|name| name.starts_with(*head));
        CLASSES.iter().find(of_head).map_or("ElectraModel", |(class, _)| class)
    };
    named.map_or_else(|| found().to_owned(), Clone::clone)
}

impl Checkpoint {
    /// The embeddings that would be lost if this discriminator shared `share` with `generator`: those
    /// that both have and that differ. With [`Share::Gdes`] none are, since the difference is kept.
    pub fn own_embeddings(&self, share: Share, generator: &Self) -> Vec<&str> {
        if share == Share::Gdes {
            return Vec::new();
        }
        let differs = |(name, tensor): &(&String, &HostTensor)| {
            is_shared(name, share)
                && generator
                    .tensors
                    .get(*name)
                    .is_some_and(|ours| ours.shape == tensor.shape && ours != *tensor)
        };
        self.tensors.iter().filter(differs).map(|(name, _)| name.as_str()).collect()
    }

    /// Names of the parameters without a tensor, which start fresh.
    pub fn fresh_parameters(&self) -> Vec<String> {
        let names = parameter_shapes(&self.config, self.architecture).into_iter().map(|(name, _)| name);
        names.filter(|name| !self.tensors.contains_key(name)).collect()
    }
}
