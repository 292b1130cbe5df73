//! `elektron pretrain`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::device::{Choice, Multiply, OnBackend, Place, with_backend};
use super::summary::finish;
use super::{Outcome, check_pairs, corpus, report_left_out, set_threads};
use crate::backend::Backend;
use crate::config::{MicroBatch, RunConfig, Settings};
use crate::data::loader::{Batching, LoaderSpec};
use crate::data::mask::MaskSpec;
use crate::data::pack::Rows;
use crate::data::source::{Spooled, TextSource, moved_copy, spool};
use crate::data::tokenizer::{Tokenizer, Trained, train as train_vocabulary};
use crate::fsutil::{create_dir, remove_unfinished};
use crate::hub::{Part, locate};
use crate::model::{Flavour, Options, TokenDetection};
use crate::train::baseline::Baseline;
use crate::train::card::{Facts, write_cards};
use crate::train::lock::RunLock;
use crate::train::log::{Progress, is_begun};
use crate::train::micro_batch::Splits;
use crate::train::signals::Stop;
use crate::train::{Ending, Run, Summary, train, weights_not_finite};
use crate::{Error, Result};

mod first_stage;
mod inputs;
mod models;
mod plan;
mod settings;

use first_stage::{FirstStage, first_stage};
use inputs::Inputs;
use models::{Networks, Starts, refuse_moved, settle_share};
use plan::{DryRun, check_memory, plan};
use settings::{
    RESOLVED, SETTINGS_REMAIN, TYPED, gather, read_settings, with_defaults_of_run, write_settings,
};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron pretrain --train book.txt --preset tiny --steps 300 --output out/first
  elektron pretrain --config run.toml --learning-rate 3e-4
  elektron pretrain --train corpus/ --tokenizer my-vocab/ --preset small --output out/run --validation held-out.txt
  elektron pretrain --train corpus/ --output out/more --generator google/electra-small-generator \\
      --discriminator google/electra-small-discriminator
  elektron pretrain --train corpus/ --objective mlm --output out/bert
  elektron pretrain --resume out/run
  elektron pretrain --config run.toml --json | jq 'select(.event == \"eval\")'

Signals:
  SIGINT (Ctrl-C), SIGTERM and SIGUSR1 finish the step, save a checkpoint and exit with code 75; a second SIGINT leaves at
  once. With --resume a run goes on from its newest whole checkpoint, to the same bytes as if it had never stopped.

Exit codes:
  0 finished, 1 error, 2 wrong usage, 75 stopped by a signal and saved: start it again with --resume")]
pub(super) struct Arguments {
    /// TOML file of settings: the flags below without their dashes; flags win
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    config: Option<PathBuf>,
    /// Go on from the newest checkpoint of a run, with its settings
    #[arg(long, num_args = 0..=1, value_name = "DIR", help_heading = "Run")]
    resume: Option<Option<PathBuf>>,
    /// Show what would be done: settings, parameters, memory
    #[arg(long, help_heading = "Run")]
    dry_run: bool,
    /// For programs: progress and summary, or what --dry-run shows, as JSON on standard output, an object a line
    #[arg(long, help_heading = "Run")]
    json: bool,
    /// No progress; with --json the summary alone
    #[arg(long, help_heading = "Run")]
    quiet: bool,
    /// Name everything that is left out of folders and globs, such as hidden files
    #[arg(short, long, help_heading = "Run")]
    verbose: bool,
    /// Compile the GPU kernels anew, and keep nothing
    #[arg(long, help_heading = "Run")]
    no_kernel_cache: bool,
    /// Launch the kernels of every step one by one, instead of one recorded graph
    #[arg(long, help_heading = "Run")]
    no_cuda_graph: bool,
    /// Begin a kernel only when the one before has ended; from Hopper on their ends and beginnings overlap
    #[arg(long, help_heading = "Run")]
    no_overlap: bool,
    /// Who multiplies matrices on a GPU
    #[arg(long, value_enum, default_value_t = Multiply::Auto, help_heading = "Run")]
    products: Multiply,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(arguments: Arguments) -> Result<Outcome> {
    let resume = arguments.resume.is_some();
    let settings = gather(&arguments)?;
    let mut config = RunConfig::resolve(with_defaults_of_run(settings.clone(), resume)?)?;
    set_threads(config.threads)?;
    let choice = Choice {
        kernel_cache: !arguments.no_kernel_cache,
        graphs: !arguments.no_cuda_graph,
        overlap: !arguments.no_overlap,
        products: arguments.products.into(),
        ..Choice::new(config.device, config.precision)
    };
    let mut paths: Vec<PathBuf> = config.train.iter().chain(&config.validation).map(PathBuf::from).collect();
    let pipes = spool(&mut paths, &pipes_of(&config.output)?, resume)?;
    let mut paths = paths.iter().map(|path| path.to_string_lossy().into_owned());
    config.train = paths.by_ref().take(config.train.len()).collect();
    config.validation = paths.collect();
    if !arguments.quiet && !arguments.json && config.flavour == Flavour::Electra {
        crate::note!("{}", config.about_recipe());
    }
    if arguments.dry_run {
        let before = if resume { check_directory(&mut config, &settings, resume)? } else { None };
        let (starts, known) = starts(&mut config, &settings, arguments.json)?;
        let tokenizer = match known {
            None if resume => saved_tokenizer(&config, before.as_ref())?,
            known => known,
        };
        if let Some(tokenizer) = tokenizer.as_ref().filter(|_| resume) {
            Inputs::new(&config, tokenizer)?;
        }
        let (machine, products) = (arguments.json, choice.products);
        let frequencies = |tokenizer| {
            let mask = loader_spec(&config, tokenizer).mask;
            Baseline::new(&corpus::known_frequencies(&config, tokenizer)?, &mask)
        };
        let baseline = tokenizer.as_ref().and_then(frequencies);
        let networks = starts.networks(&config, tokenizer.as_ref(), machine)?;
        with_backend(choice, DryRun { config: &config, networks, baseline, machine, products })?;
        return Ok(Outcome::Done);
    }
    let stop = Stop::on_signals()?;
    let (quiet, verbose) = (arguments.quiet, arguments.verbose);
    let (_lock, before) = take_directory(&mut config, &settings, resume)?;
    let (starts, known) = starts(&mut config, &settings, quiet)?;
    for pipe in pipes.iter().filter(|pipe| pipe.is_kept() && !quiet) {
        crate::note!(
            "{}: the copy of this pipe that was made when the run began is read, not the pipe",
            pipe.name().display()
        );
    }
    pipes.iter().try_for_each(Spooled::copy)?;
    // Problems with the models are reported before an hour of tokenizing.
    let source = TextSource::new(&config.train, &config.columns)?.with_reading(config.reading()?);
    if !quiet {
        report_left_out(&source, verbose);
    }
    let tokenizer = match known {
        Some(tokenizer) => tokenizer,
        None => own_tokenizer(&config, &starts, before.as_ref(), &source, quiet)?,
    };
    check_pairs(&tokenizer, source.reading(), source.columns())?;
    let tokenizer = tokenizer.with_sample(&source);
    tokenizer.check_export()?;
    let inputs = Inputs::new(&config, &tokenizer)?;
    // What a continued run began with was reported when it began.
    let is_reported = quiet || (resume && is_begun(&config.output));
    let networks = starts.networks(&config, Some(&tokenizer), is_reported)?;
    settle_share(&mut config, settings.share, &networks, is_reported);
    let progress = match (arguments.quiet, arguments.json) {
        (true, _) => Progress::Quiet,
        (false, true) => Progress::Json,
        (false, false) => Progress::Text,
    };
    let settings = &settings;
    let mut training =
        Training { config: &config, settings, networks, tokenizer, inputs, resume, progress, verbose, stop };
    training.record()?;
    match first_stage(&training, choice)? {
        FirstStage::NotNeeded => {}
        FirstStage::Discriminator(network) => training.networks.discriminator = Some(*network),
        FirstStage::Interrupted(summary) => return Ok(finish(&config, &summary, arguments.json)),
    }
    let summary = with_backend(choice, training)?;
    Ok(finish(&config, &summary, arguments.json))
}

/// Where what pipes give is kept with the run, since a continued run needs it again. The path is
/// absolute, since it is compared then, however the directory is named.
fn pipes_of(output: &Path) -> Result<PathBuf> {
    std::path::absolute(output.join("pipes")).map_err(Error::io("find", output))
}

/// Locks the output directory for this process, if the run may use it; also returns the settings
/// that an earlier process left there.
fn take_directory(
    config: &mut RunConfig,
    settings: &Settings,
    resume: bool,
) -> Result<(RunLock, Option<RunConfig>)> {
    let output = &config.output.clone();
    create_dir(output)?;
    let lock = RunLock::take(output)?;
    let before = check_directory(config, settings, resume)?;
    for dir in ["", "generator", "discriminator", "model", "mlm", "mlm/model", "tokenizer", "shards", "pipes"]
    {
        remove_unfinished(&output.join(dir))?;
    }
    Ok((lock, before))
}

/// The settings that an earlier process left in the output directory. An error if a run with these
/// settings may not use the directory.
fn check_directory(config: &mut RunConfig, settings: &Settings, resume: bool) -> Result<Option<RunConfig>> {
    let output = &config.output.clone();
    let path = output.join(RESOLVED);
    let mut before = None;
    if is_begun(output) {
        if !resume {
            return Err(Error::file(
                output,
                "this directory already holds a run: continue it with --resume, or give another --output",
            ));
        }
        if path.is_file() {
            let mut earlier: RunConfig = read_settings(&path, SETTINGS_REMAIN)?;
            let pipes = pipes_of(output)?;
            for path in &mut earlier.train {
                if let Some(copy) = moved_copy(Path::new(path), &pipes) {
                    *path = copy.to_string_lossy().into_owned();
                }
            }
            if settings.vocab_size.is_none() {
                // It was that of the preset or of the models, which are compared.
                config.vocab_size = earlier.vocab_size;
            }
            config.continued_as(&earlier)?;
            before = Some(earlier);
        }
        refuse_moved(config)?;
    } else if path.is_file()
        && !output.join(TYPED).is_file()
        && read_settings::<RunConfig>(&path, "").is_err()
    {
        return Err(Error::file(
            &path,
            "this is not the config.json of a run, and would be overwritten: give another --output \
             (the directory of a model cannot be that of a run)",
        ));
    } else if path.is_file() {
        // That run ended before its first step: its settings, readable or not, need not be kept.
        before = read_settings(&path, "").ok();
    }
    Ok(before)
}

/// What the networks start from, if the settings fit it. Without --vocab-size a vocabulary has as
/// many tokens as they have rows of embeddings.
fn starts(config: &mut RunConfig, settings: &Settings, quiet: bool) -> Result<(Starts, Option<Tokenizer>)> {
    let starts = Starts::read(config, quiet)?;
    if let (None, Some(rows)) = (settings.vocab_size, starts.vocab_size()) {
        config.vocab_size = rows;
    }
    let tokenizer = known_tokenizer(config, settings, quiet)?;
    if settings.seq_len.is_none() {
        config.seq_len = config.default_seq_len(tokenizer.as_ref(), starts.positions());
    }
    starts.check(config)?;
    Ok((starts, tokenizer))
}

/// A run whose models are ready.
struct Training<'a> {
    config: &'a RunConfig,
    settings: &'a Settings,
    networks: Networks,
    tokenizer: Tokenizer,
    inputs: Inputs,
    resume: bool,
    progress: Progress,
    verbose: bool,
    stop: Stop,
}

impl Training<'_> {
    /// Writes the settings and the hashes of the inputs, so that --resume works whenever the process
    /// ends.
    fn record(&self) -> Result<()> {
        write_settings(&self.config.output.join(TYPED), self.settings)?;
        write_settings(&self.config.output.join(RESOLVED), self.config)?;
        self.inputs.write(&self.config.output)
    }
}

impl OnBackend for Training<'_> {
    type Output = Summary;
    fn run<B: Backend>(self, backend: B, place: &Place) -> Result<Summary> {
        // Before the text is read.
        self.record()?;
        let Self { config, tokenizer, mut inputs, resume, progress, verbose, stop, .. } = self;
        let networks = self.networks;
        let quiet = progress == Progress::Quiet;
        let auto = config.micro_batch == Some(MicroBatch::Auto);
        let least = if auto { config.split_into(1) } else { config.clone() };
        check_memory(&backend, &least, &networks, place)?;
        let layers = networks.deepest().num_hidden_layers;
        let planned = |config: &RunConfig| plan(&backend, config, &networks);
        let splits = auto.then(|| Splits::of(config, layers, place.free_bytes, planned)).transpose()?;
        let Networks { masked_lm, discriminator } = networks;
        let mut model = TokenDetection::with_options(backend, masked_lm, discriminator, options(config))?;
        model.set_tokenizer(tokenizer.clone());
        let (rows, validation) = corpus::rows(config, &tokenizer, quiet, verbose)?;
        inputs.set_texts(config, &rows, validation.as_ref());
        inputs.write(&config.output)?;
        let rows = Arc::new(rows);
        if !quiet {
            announce(config, model.parameter_count(), &rows, place);
        }
        let loader = LoaderSpec { on_device: B::RECORDS, ..loader_spec(config, &tokenizer) };
        let facts = Facts::new(config, &rows, model.parameter_count(), &place.name)?;
        stop.begin_training();
        let (model_ref, fault) = (&mut model, None);
        let run =
            Run { config, model: model_ref, rows, validation, loader, splits, resume, progress, stop, fault };
        let summary = train(run)?;
        if summary.ending == Ending::Finished {
            // No further step checks the update of the last one.
            if let Some(name) = weights_not_finite(&model)? {
                return Err(Error::run(format!(
                    "after step {} the weights `{name}` hold NaN or infinite numbers, so no models \
                     are written: start again with a lower --learning-rate or a larger \
                     --adam-epsilon",
                    summary.position.step
                )));
            }
            export(&model, config, &summary, &facts)?;
        }
        Ok(summary)
    }
}

/// Writes both models and their cards.
fn export<B: Backend>(
    model: &TokenDetection<B>,
    config: &RunConfig,
    summary: &Summary,
    facts: &Facts,
) -> Result<()> {
    model.save_pretrained(&config.output).and_then(|()| write_cards(config, summary, facts)).map_err(|e| {
        Error::run(format!(
            "{e}; training is finished and saved: `elektron pretrain --resume {}` writes the models again",
            config.output.display()
        ))
    })
}

/// The tokenizer that was named, or the one next to the models.
fn known_tokenizer(config: &RunConfig, settings: &Settings, quiet: bool) -> Result<Option<Tokenizer>> {
    if let Some(path) = &config.tokenizer {
        return Tokenizer::load(&locate(path, Part::Tokenizer, quiet)?).map(Some);
    }
    let names = [&config.base, &config.generator, &config.discriminator];
    let mut found: Option<(&String, Tokenizer)> = None;
    for name in names.into_iter().flatten() {
        if found.is_some() && !Path::new(name).exists() {
            // A second model of the hub is taken to have the same, rather than downloaded to see.
            continue;
        }
        let dir = locate(Path::new(name), Part::Tokenizer, quiet)?;
        if !Tokenizer::is_in(&dir) {
            continue;
        }
        settings.refuse_vocabulary(name)?;
        let tokenizer = Tokenizer::load(&dir)?;
        match &found {
            None => found = Some((name, tokenizer)),
            Some((first, other)) if other.inner().get_vocab(true) != tokenizer.inner().get_vocab(true) => {
                return Err(Error::config(format!(
                    "{first} and {name} have different tokenizers, but both networks read the same \
                     tokens: use models of one vocabulary, or say with --tokenizer which is right"
                )));
            }
            Some(_) => {}
        }
    }
    Ok(found.map(|(_, tokenizer)| tokenizer))
}

/// The tokenizer that this run trained before, if it is whole and still the one to use.
fn saved_tokenizer(config: &RunConfig, before: Option<&RunConfig>) -> Result<Option<Tokenizer>> {
    let own = config.output.join("tokenizer");
    let is_same = is_begun(&config.output) || before.is_some_and(|before| config.same_vocabulary(before));
    // The last of its files to be written: without it the tokenizer is not whole.
    let is_whole = own.join("tokenizer.json").is_file();
    (is_same && is_whole).then(|| Tokenizer::load(&own)).transpose()
}

/// The tokenizer that this run trained before, or a new one trained on the text.
fn own_tokenizer(
    config: &RunConfig,
    starts: &Starts,
    before: Option<&RunConfig>,
    source: &TextSource,
    quiet: bool,
) -> Result<Tokenizer> {
    if let Some(tokenizer) = saved_tokenizer(config, before)? {
        return Ok(tokenizer);
    }
    starts.check_new_vocabulary(config, quiet)?;
    if !quiet {
        crate::note!("training a vocabulary of {} tokens on the text", config.vocab_size);
    }
    let spec = config.vocabulary.spec(config.vocab_size)?;
    let Trained { tokenizer, remarks } = train_vocabulary(source, &spec)?;
    if !quiet {
        remarks.iter().for_each(|remark| crate::note!("{remark}"));
    }
    tokenizer.save(&config.output.join("tokenizer"), config.seq_len)?;
    Ok(tokenizer)
}

fn options(config: &RunConfig) -> Options {
    Options {
        flavour: config.flavour,
        share: config.share,
        gen_weight: config.gen_weight,
        disc_weight: config.weight,
        temperature: config.temperature,
        disallow_correct: config.disallow_correct,
        init: config.init,
        seed: config.seed,
    }
}

fn loader_spec(config: &RunConfig, tokenizer: &Tokenizer) -> LoaderSpec {
    let mask = MaskSpec {
        style: config.mask_style,
        probability: config.mask_prob,
        vocab_size: tokenizer.vocab_size(),
        special: tokenizer.special(),
        seq_len: config.seq_len,
    };
    let batch_size = config.rows_at_once();
    let batching = match config.short_batches {
        true => Batching::PerEpoch { batch_size: config.batch_size },
        false => Batching::Continuous,
    };
    LoaderSpec {
        batch_size,
        micro_batches: config.rows_per_step() / batch_size,
        batching,
        seed: config.seed,
        mask,
        on_device: false,
    }
}

fn announce(config: &RunConfig, parameters: usize, rows: &Rows, place: &Place) {
    let tokens = config.batch_size * config.grad_accumulation * config.seq_len;
    crate::note!(
        "{:.1} M parameters, {} rows of up to {} tokens, {} steps of up to {tokens} tokens, on {}",
        parameters as f64 / 1e6,
        rows.len(),
        config.seq_len,
        config.total_steps(rows.len()),
        place.name
    );
}
