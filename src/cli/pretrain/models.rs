//! What the networks of a run start from: a preset's sizes, or directories that are read before
//! the text is, so that whatever does not fit is refused before an hour of tokenizing.

use std::path::Path;

use super::super::{check_positions, check_token_types, check_vocabulary};
use crate::config::{Head, RunConfig};
use crate::data::tokenizer::Tokenizer;
use crate::hub::{ModelName, Part, locate};
use crate::model::config::{Architecture, ElectraConfig, Preset};
use crate::model::hf::{Checkpoint, Source, StartingPoint};
use crate::model::{Flavour, Objective, Share};
use crate::{Error, Result};

/// What one network starts from.
enum Start {
    /// Untrained, of these sizes, for a vocabulary of any size.
    Preset(Box<ElectraConfig>),
    /// The directory with this number in [`Starts::points`].
    Read(usize),
}

/// What all networks start from.
pub(super) struct Starts {
    /// The first is a masked language model, as in [`Networks`].
    networks: Vec<Network>,
    /// Directories, as they were named.
    points: Vec<(String, StartingPoint)>,
}

/// One network that is to be.
struct Network {
    /// The name of its directory, and in messages.
    what: &'static str,
    architecture: Architecture,
    start: Start,
}

/// The networks of a run: a generator and a discriminator, or a masked language model alone.
pub(super) struct Networks {
    pub(super) masked_lm: Checkpoint,
    pub(super) discriminator: Option<Checkpoint>,
}

/// Decides what a pair shares that was read from directories: embeddings of the discriminator's that
/// differ from the generator's would be lost by sharing. Without --share they are kept apart.
pub(super) fn settle_share(config: &mut RunConfig, typed: Option<Share>, networks: &Networks, quiet: bool) {
    let Some(discriminator) = &networks.discriminator else { return };
    let theirs = discriminator.own_embeddings(config.share, &networks.masked_lm);
    if theirs.is_empty() {
        return;
    }
    let names = theirs.join(", ");
    if typed.is_none() && config.flavour == Flavour::Electra {
        config.share = Share::None;
        if !quiet {
            crate::note!(
                "the discriminator has other embeddings than the generator ({names}): they are not \
                 shared, as with --share none"
            );
        }
    } else if !quiet {
        crate::note!(
            "warning: the discriminator's own {names} are replaced by the generator's, since they \
             are shared; --share none keeps both"
        );
    }
}

impl Networks {
    /// Sizes and head of the discriminator.
    pub(super) fn sizes_of_discriminator(&self) -> Option<(&ElectraConfig, Architecture)> {
        self.discriminator.as_ref().map(|network| (&network.config, network.architecture))
    }

    /// The sizes of the discriminator, or of the only network.
    pub(super) fn deepest(&self) -> &ElectraConfig {
        &self.discriminator.as_ref().unwrap_or(&self.masked_lm).config
    }

    /// Each with the name of its directory.
    pub(super) fn named(&self) -> Vec<(&'static str, &Checkpoint)> {
        match &self.discriminator {
            Some(discriminator) => vec![("generator", &self.masked_lm), ("discriminator", discriminator)],
            None => vec![("model", &self.masked_lm)],
        }
    }
}

/// An error if a directory that a continued run starts from, or its tokenizer, is no longer where
/// it was. A checkpoint holds all weights, but the configurations of the networks are read from
/// their directories.
pub(super) fn refuse_moved(config: &RunConfig) -> Result<()> {
    let is_missing = |path: &Path| {
        let name = path.to_str();
        !path.exists() && name.is_none_or(|name| ModelName::parse(name).is_none())
    };
    for (setting, name) in
        [("base", &config.base), ("generator", &config.generator), ("discriminator", &config.discriminator)]
    {
        let Some(name) = name.as_ref().filter(|name| Preset::from_name(name).is_none()) else { continue };
        if is_missing(Path::new(name)) {
            let from = match Path::new(name).is_relative() {
                true => ", or resume from the working directory in which the run was started",
                false => "",
            };
            return Err(Error::file(
                name,
                format!(
                    "the run began with this directory as --{setting}, and it no longer exists; \
                     its config.json is needed to go on. Move it back, or put a symbolic link to \
                     its new place here{from}"
                ),
            ));
        }
    }
    match &config.tokenizer {
        Some(path) if is_missing(path) => Err(Error::file(
            path,
            "the run began with this --tokenizer, and it no longer exists: move it back, or give \
             its new place with --tokenizer",
        )),
        _ => Ok(()),
    }
}

/// The class of the discriminator.
pub(super) fn architecture(head: Head) -> Architecture {
    match head {
        Head::Pretraining => Architecture::PreTraining,
        Head::TokenClassification => Architecture::TokenClassification,
    }
}

impl Starts {
    /// Reads whatever the settings name.
    pub(super) fn read(config: &RunConfig, quiet: bool) -> Result<Self> {
        let mut points: Vec<(String, StartingPoint)> = Vec::new();
        let mut read = |name: &str| -> Result<Start> {
            if let Some(known) = points.iter().position(|(known, _)| known == name) {
                return Ok(Start::Read(known));
            }
            let point = StartingPoint::read(&locate(Path::new(name), Part::Model, quiet)?)?;
            points.push((name.to_owned(), point));
            Ok(Start::Read(points.len() - 1))
        };
        if let Some(base) = &config.base
            && Preset::from_name(base).is_some()
            && !Path::new(base).exists()
        {
            return Err(Error::config(format!(
                "--base {base}: a base is a directory or a name on the hub; networks of a preset's \
                 sizes are --preset {base}"
            )));
        }
        let mut start = |name: Option<&String>, default: ElectraConfig| match config.base.as_ref().or(name) {
            None => Ok(Start::Preset(Box::new(default))),
            Some(name) => match Preset::from_name(name).filter(|_| config.base.is_none()) {
                // By name a preset is its full size: the pair of the released checkpoints.
                Some(preset) => Ok(Start::Preset(Box::new(preset.discriminator(config.vocab_size)))),
                None => read(name),
            },
        };
        let (preset, vocabulary) = (config.preset, config.vocab_size);
        let (generator, discriminator) = (config.generator.as_ref(), config.discriminator.as_ref());
        let (masked_lm, full_size) = (Architecture::MaskedLm, preset.discriminator(vocabulary));
        let networks = match config.objective {
            Objective::Mlm => {
                let start = start(generator.or(discriminator), full_size)?;
                vec![Network { what: "model", architecture: masked_lm, start }]
            }
            Objective::Electra => {
                let ours = start(generator, preset.generator(vocabulary))?;
                let theirs = start(discriminator, full_size)?;
                let head = architecture(config.head);
                vec![
                    Network { what: "generator", architecture: masked_lm, start: ours },
                    Network { what: "discriminator", architecture: head, start: theirs },
                ]
            }
        };
        let starts = Self { networks, points };
        let is_discriminator = |start: &Start| match start {
            Start::Read(number) => {
                let class = Architecture::PreTraining.class_name();
                *starts.points[*number].1.source() == Source::Model(class.to_owned())
            }
            Start::Preset(_) => false,
        };
        if let (Some(name), [ours, _]) = (generator, &starts.networks[..])
            && is_discriminator(&ours.start)
        {
            return Err(Error::file(
                name,
                "this is a discriminator (ElectraForPreTraining), a generator is an \
                 ElectraForMaskedLM; --base takes the encoder of either for both networks",
            ));
        }
        Ok(starts)
    }

    /// The sizes of the networks; of a preset's, the size of the vocabulary is not final.
    fn sizes(&self) -> impl Iterator<Item = (&'static str, &ElectraConfig)> {
        self.networks.iter().map(|network| match &network.start {
            Start::Preset(sizes) => (network.what, &**sizes),
            Start::Read(number) => (network.what, self.points[*number].1.config()),
        })
    }

    /// Rows of word embeddings in the directories; the smaller number of two.
    pub(super) fn vocab_size(&self) -> Option<usize> {
        self.points.iter().map(|(_, point)| point.config().vocab_size).min()
    }

    /// The longest row that all networks have positions for.
    pub(super) fn positions(&self) -> usize {
        self.sizes().map(|(_, sizes)| sizes.max_position_embeddings).fold(usize::MAX, usize::min)
    }

    /// An error if the networks have too few positions or token types for rows of these settings.
    pub(super) fn check(&self, config: &RunConfig) -> Result<()> {
        for (what, sizes) in self.sizes() {
            check_positions(config.seq_len, sizes, what)?;
            check_token_types(config.uses_token_types(), sizes, what)?;
        }
        Ok(())
    }

    /// An error if the networks have too few rows of embeddings for a new vocabulary.
    pub(super) fn check_new_vocabulary(&self, config: &RunConfig, quiet: bool) -> Result<()> {
        for (name, point) in &self.points {
            let rows = point.config().vocab_size;
            if config.vocab_size > rows {
                return Err(Error::config(format!(
                    "--vocab-size {} is more than the {rows} rows of embeddings of {name}: use \
                     --vocab-size {rows} or less",
                    config.vocab_size
                )));
            }
            if !quiet && *point.source() != Source::Config {
                crate::note!(
                    "warning: {name} has no tokenizer, so a new vocabulary is trained, whose \
                     tokens are not those that its embeddings were trained for: give its own with \
                     --tokenizer"
                );
            }
        }
        Ok(())
    }

    /// The networks, for a vocabulary of `config`'s size or that of the tokenizer, whose ids of
    /// special tokens they take. Reports how they differ from their directories, unless `quiet`.
    pub(super) fn networks(
        &self,
        config: &RunConfig,
        tokenizer: Option<&Tokenizer>,
        quiet: bool,
    ) -> Result<Networks> {
        // A directory may have more rows of embeddings than the tokenizer has tokens; a network of
        // a preset's sizes that is trained with it gets as many.
        let tokens = tokenizer.map_or(config.vocab_size, Tokenizer::vocab_size);
        let vocabulary = self.vocab_size().unwrap_or(tokens);
        let make = |network: &Network| match &network.start {
            Start::Preset(sizes) => {
                let config = ElectraConfig { vocab_size: vocabulary, ..(**sizes).clone() };
                Ok(Checkpoint::fresh(config, network.architecture))
            }
            Start::Read(number) => self.points[*number].1.network(network.architecture),
        };
        let mut made: Vec<Checkpoint> = self.networks.iter().map(make).collect::<Result<_>>()?;
        if !quiet {
            self.report(&made);
        }
        if let Some(tokenizer) = tokenizer {
            for (checkpoint, Network { what, start, .. }) in made.iter_mut().zip(&self.networks) {
                check_vocabulary(tokenizer, &checkpoint.config, what)?;
                let changes = checkpoint.config.align_token_ids(tokenizer);
                if let (Start::Read(_), false, false) = (start, changes.is_empty(), quiet) {
                    crate::note!("{what}: {}, which is saved with the model", changes.join("; "));
                }
            }
        }
        let discriminator = if made.len() > 1 { made.pop() } else { None };
        let masked_lm = made.pop().ok_or_else(|| Error::config("there is no network to train"))?;
        Ok(Networks { masked_lm, discriminator })
    }

    /// Reports which weights start fresh, and what in the directories is not used.
    fn report(&self, made: &[Checkpoint]) {
        for (number, (name, point)) in self.points.iter().enumerate() {
            let is_this = |start: &Start| matches!(start, Start::Read(n) if *n == number);
            let of_this = self.networks.iter().zip(made).filter(|(network, _)| is_this(&network.start));
            let networks: Vec<(&str, &Checkpoint)> =
                of_this.map(|(network, checkpoint)| (network.what, checkpoint)).collect();
            for remark in point.remarks() {
                crate::note!("{name}: {remark}");
            }
            let whats: Vec<&str> = networks.iter().map(|(what, _)| *what).collect();
            let class = match point.source() {
                Source::Config => {
                    crate::note!(
                        "{}: untrained, of the sizes in {name}/config.json; the directory has no weights",
                        whats.join(" and ")
                    );
                    continue;
                }
                Source::Model(class) => class,
            };
            for (what, network) in &networks {
                let fresh = network.fresh_parameters();
                if !fresh.is_empty() {
                    crate::note!(
                        "{what}: the encoder of {name} ({class}); these weights start fresh: {}",
                        fresh.join(", ")
                    );
                }
            }
            let made: Vec<&Checkpoint> = networks.iter().map(|(_, network)| *network).collect();
            let unused = point.unused(&made);
            if !unused.is_empty() {
                crate::note!("{}: not used of {name}: {}", whats.join(" and "), listed(&unused));
            }
        }
    }
}

/// Names shown before the rest is only counted.
const NAMES_SHOWN: usize = 12;

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
