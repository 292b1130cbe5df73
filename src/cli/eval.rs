//! `elektron eval`: held-out metrics of a saved pair, or of a masked language model.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::device::{Choice, OnBackend, Place, with_backend};
use super::prepare::tokenize;
use super::{
    check_pairs, check_positions, check_token_types, check_vocabulary, load_masked_lm, load_pair, print,
    report_left_out, set_threads,
};
use crate::backend::Backend;
use crate::config::{Device, Precision, reading, uses_token_types};
use crate::data::loader::{Batching, LoaderSpec};
use crate::data::mask::{MaskSpec, MaskStyle};
use crate::data::pack::{Merge, Rows};
use crate::data::prepare::Spec;
use crate::data::source::{TextSource, spool};
use crate::data::tokenizer::Tokenizer;
use crate::hub::{Part, locate};
use crate::model::hf::Checkpoint;
use crate::model::{Flavour, Objective, Options, Share, TokenDetection};
use crate::report::status::Status;
use crate::train::baseline::Baseline;
use crate::train::evaluate;
use crate::train::figures::figures;
use crate::train::metrics::Metrics;
use crate::{Error, Result};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron eval --generator out/run/generator --discriminator out/run/discriminator --input held-out.txt
  elektron eval --generator google/generator --discriminator google/discriminator --input held-out.txt --merge segments --json")]
pub(super) struct Arguments {
    /// Directory of the generator or another ElectraForMaskedLM, or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME", help_heading = "Models")]
    generator: PathBuf,
    /// Directory of the discriminator, or its name on the Hugging Face hub; without it the masked
    /// language model is evaluated alone
    #[arg(long, value_name = "DIR|NAME", help_heading = "Models")]
    discriminator: Option<PathBuf>,
    /// Tokenizer [default: the discriminator's, or that of the only model]
    #[arg(long, value_name = "PATH", help_heading = "Models")]
    tokenizer: Option<PathBuf>,
    /// Files, folders, globs and pipes, as for --train; - for standard input
    #[arg(long, num_args = 1.., required = true, value_name = "PATH", help_heading = "Text")]
    input: Vec<PathBuf>,
    /// Text columns of csv, tsv, JSON, Parquet and Arrow files; in txtai's flavour two are a pair
    #[arg(long, value_delimiter = ',', default_value = "text", value_name = "NAME", help_heading = "Text")]
    columns: Vec<String>,
    /// Whose details to follow
    #[arg(long, value_enum, default_value = "electra", help_heading = "Objective")]
    flavour: Flavour,
    /// How paragraphs become rows
    #[arg(long, value_enum, default_value = "concat", help_heading = "Text")]
    merge: Merge,
    /// Longest row
    #[arg(long, default_value_t = 128, value_name = "T", help_heading = "Text")]
    seq_len: usize,
    /// Rows at once
    #[arg(long, default_value_t = 16, value_name = "B", help_heading = "Run")]
    batch_size: usize,
    /// Rows in all
    #[arg(long, default_value_t = 1000, value_name = "N", help_heading = "Text")]
    rows: usize,
    /// Share of tokens that are masked
    #[arg(long, default_value_t = 0.15, value_name = "P", help_heading = "Objective")]
    mask_prob: f64,
    /// Of masks and samples
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Objective")]
    seed: u64,
    /// For machines
    #[arg(long, help_heading = "Run")]
    json: bool,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto", help_heading = "Run")]
    device: Device,
    /// What to compute with [default: bf16 on a GPU, fp32 on the CPU]
    #[arg(long, value_enum, help_heading = "Run")]
    precision: Option<Precision>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Run")]
    threads: Option<usize>,
}

/// What the figures are compared with: of the run that made the generator, if it lies in the run's
/// directory, else of the text that is evaluated.
fn baseline(generator: &Path, rows: &Rows, mask: &MaskSpec) -> Option<(Baseline, &'static str)> {
    let run = generator
        .parent()
        .and_then(|dir| Status::of(if dir.as_os_str().is_empty() { ".".as_ref() } else { dir }));
    let of_run = run.and_then(|run| serde_json::from_value(run.baseline?.into()).ok());
    match of_run {
        Some(baseline) => Some((baseline, "the run's training text")),
        None => {
            let own = Baseline::new(&rows.frequencies(mask.vocab_size), mask)?;
            Some((own, "the evaluated text"))
        }
    }
}

struct Evaluation<'a> {
    networks: (Checkpoint, Option<Checkpoint>),
    options: Options,
    rows: &'a Rows,
    spec: &'a LoaderSpec,
    limit: usize,
}

impl OnBackend for Evaluation<'_> {
    type Output = Metrics;
    fn run<B: Backend>(self, backend: B, _: &Place) -> Result<Metrics> {
        let (generator, discriminator) = self.networks;
        let mut model = TokenDetection::with_options(backend, generator, discriminator, self.options)?;
        evaluate(&mut model, self.rows, self.spec, self.limit)
    }
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    set_threads(a.threads)?;
    if a.batch_size == 0 || a.rows == 0 {
        return Err(Error::config("--batch-size and --rows must be 1 or more"));
    }
    let scratch = tempfile::tempdir().map_err(Error::io("create a directory in", std::env::temp_dir()))?;
    let mut input = a.input.clone();
    for pipe in spool(&mut input, scratch.path(), false)? {
        pipe.copy()?;
    }
    let reading = reading(a.flavour, a.merge, &a.columns)?;
    let source = TextSource::held_out(&input, &a.columns)?.with_reading(reading);
    report_left_out(&source, false);
    let of_models = a.discriminator.as_ref().unwrap_or(&a.generator);
    let tokenizer = a.tokenizer.as_ref().unwrap_or(of_models);
    let tokenizer = Tokenizer::load(&locate(tokenizer, Part::Tokenizer, false)?)?;
    check_pairs(&tokenizer, reading, &a.columns)?;
    let networks = match &a.discriminator {
        Some(discriminator) => {
            let (generator, discriminator) = load_pair(&a.generator, discriminator)?;
            (generator, Some(discriminator))
        }
        None => (load_masked_lm(&a.generator)?, None),
    };
    let named = [(Some(&networks.0), "generator"), (networks.1.as_ref(), "discriminator")];
    for (checkpoint, what) in named.into_iter().filter_map(|(network, what)| Some((network?, what))) {
        check_vocabulary(&tokenizer, &checkpoint.config, what)?;
        check_positions(a.seq_len, &checkpoint.config, what)?;
        check_token_types(uses_token_types(a.flavour, a.merge, &a.columns), &checkpoint.config, what)?;
    }
    // Each directory is complete on its own, whatever was shared in training.
    let options = Options { flavour: a.flavour, share: Share::None, seed: a.seed, ..Options::default() };
    let dataset = tokenize(&source, &tokenizer, scratch.path(), &Spec::default(), true)?;
    let rows = Rows::new(dataset, tokenizer.special(), a.merge, a.seq_len, a.seed)?;
    let style = if a.flavour == Flavour::Txtai { MaskStyle::Txtai } else { MaskStyle::Electra };
    let mask = MaskSpec {
        style,
        probability: a.mask_prob,
        vocab_size: tokenizer.vocab_size(),
        special: tokenizer.special(),
        seq_len: a.seq_len,
    };
    let spec = LoaderSpec {
        batch_size: a.batch_size,
        micro_batches: 1,
        batching: Batching::Continuous,
        seed: a.seed,
        mask,
        on_device: false,
    };
    let choice = Choice::new(a.device, a.precision);
    let evaluation = Evaluation { networks, options, rows: &rows, spec: &spec, limit: a.rows };
    let m = with_backend(choice, evaluation)?;
    let objective = if a.discriminator.is_some() { Objective::Electra } else { Objective::Mlm };
    let used = rows.len().min(a.rows);
    let baseline = baseline(&a.generator, &rows, &mask);
    if a.json {
        let mut object = json!({ "rows": used, "eval": figures(objective, &m) });
        if let Some((baseline, of)) = baseline {
            object["baseline"] = json!(baseline);
            object["baseline_of"] = json!(of);
        }
        return print(&object.to_string());
    }
    if objective == Objective::Mlm {
        let (words, of) = match &baseline {
            Some((baseline, of)) => (baseline.in_words(&m), format!(" (frequencies in {of})")),
            None => (format!("{:.2} at [MASK]", m.gen_mask_loss), String::new()),
        };
        return print(&format!(
            "{used} rows of up to {} tokens\nloss {words}{of}\n\
             [MASK] loss {:.4}  accuracy {:.4}; kept tokens accuracy {:.4}; all masked positions loss {:.4}  \
             accuracy {:.4}",
            a.seq_len, m.gen_mask_loss, m.gen_mask_acc, m.gen_kept_acc, m.gen_loss, m.gen_acc
        ));
    }
    let (generator, unigram) = match &baseline {
        Some((baseline, of)) => (
            format!("generator {} (frequencies in {of})", baseline.in_words(&m)),
            format!("  (word frequencies {:.4})", baseline.unigram_acc),
        ),
        None => (format!("generator {:.2} at [MASK]", m.gen_mask_loss), String::new()),
    };
    print(&format!(
        "{used} rows of up to {} tokens\n{generator}\n\
         generator      [MASK] loss {:.4}  accuracy {:.4}{unigram}\n\
         \u{20}              kept tokens accuracy {:.4}; all masked positions loss {:.4}  accuracy {:.4}\n\
         discriminator  AUC {:.4}  precision {:.4}  recall {:.4}  accuracy {:.4}  (always \"original\" {:.4})\n\
         \u{20}              loss {:.4}  (constant output {:.4})  standard deviation of the scores {:.4}\n\
         \u{20}              with special tokens AUC {:.4}  precision {:.4}  recall {:.4}  accuracy {:.4}\n\
         replaced       {:.4} of the tokens that can be masked, {:.4} of all",
        a.seq_len,
        m.gen_mask_loss,
        m.gen_mask_acc,
        m.gen_kept_acc,
        m.gen_loss,
        m.gen_acc,
        m.disc_auc,
        m.disc_precision,
        m.disc_recall,
        m.disc_acc,
        1.0 - m.fake_rate,
        m.disc_loss,
        m.disc_constant_loss,
        m.disc_score_std,
        m.disc_all_auc,
        m.disc_all_precision,
        m.disc_all_recall,
        m.disc_all_acc,
        m.fake_rate,
        m.all_fake_rate
    ))
}
