//! The model card: the README.md beside a saved model, with the front matter that the Hugging Face hub reads.
//!
//! Whatever a user gave (names of files, a language) may hold any character: in the front matter it stands in quotes
//! with escapes, in the text in code spans.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::Summary;
use super::baseline::Baseline;
use super::metrics::Metrics;
use crate::Result;
use crate::config::{Head, RunConfig};
use crate::data::pack::Rows;
use crate::data::source::TextSource;
use crate::fsutil::write_atomic;
use crate::model::Objective;
use crate::report::thousands;

/// What a run was made from and on.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Names of the text's files, without their folders.
    pub files: Vec<String>,
    /// Documents.
    pub documents: usize,
    /// Tokens of the text, without special ones.
    pub tokens: usize,
    /// Rows made from it.
    pub rows: usize,
    /// Parameters, each once.
    pub parameters: usize,
    /// The device.
    pub device: String,
}

impl Facts {
    /// Of rows that are ready.
    pub fn new(config: &RunConfig, rows: &Rows, parameters: usize, device: &str) -> Result<Self> {
        let source = TextSource::new(&config.train, &config.columns)?;
        Ok(Self {
            files: source.files().iter().map(|path| file_name(path)).collect(),
            documents: rows.documents(),
            tokens: rows.tokens(),
            rows: rows.len(),
            parameters,
            device: device.to_owned(),
        })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// One of the networks.
#[derive(Clone, Copy)]
struct Network {
    name: &'static str,
    class: &'static str,
    /// The hub's word for what it does.
    task: &'static str,
}

impl Network {
    /// Of what is saved in the directory `name`.
    fn of(name: &'static str, head: Head) -> Self {
        let (class, task) = match (name, head) {
            ("discriminator", Head::Pretraining) => ("ElectraForPreTraining", "token-classification"),
            ("discriminator", Head::TokenClassification) => {
                ("ElectraForTokenClassification", "token-classification")
            }
            _ => ("ElectraForMaskedLM", "fill-mask"),
        };
        Self { name, class, task }
    }
}

/// Writes a card into the directory of every network.
pub fn write_cards(config: &RunConfig, summary: &Summary, facts: &Facts) -> Result<()> {
    for name in config.objective.directories() {
        let text = card(config, summary, facts, Network::of(name, config.head))?;
        write_atomic(&config.output.join(name).join("README.md"), |out| out.write_all(text.as_bytes()))?;
    }
    Ok(())
}

fn card(config: &RunConfig, summary: &Summary, facts: &Facts, network: Network) -> Result<String> {
    let Network { name, class, .. } = network;
    let what = match config.objective {
        Objective::Electra => format!(
            "# ELECTRA {name}\n\nThe {name} of a pair pre-trained by replaced token detection \
             ([Clark et al. 2020](https://arxiv.org/abs/2003.10555)) with Elektron."
        ),
        Objective::Mlm => "# ELECTRA masked language model\n\nOne network of ELECTRA's architecture, \
                           pre-trained by masked language modelling \
                           ([Devlin et al. 2018](https://arxiv.org/abs/1810.04805)) with Elektron."
            .to_owned(),
    };
    Ok(format!(
        "{}\n{what}\n\n## Use\n\n\
         ```python\nfrom transformers import AutoTokenizer, {class}\n\n\
         tokenizer = AutoTokenizer.from_pretrained(\"path/to/this/folder\")\n\
         model = {class}.from_pretrained(\"path/to/this/folder\")\n```\n\n{}\n## Training\n\n{}{}\n## Settings\n\n{}\n\
         ## Limits\n\n{}",
        front_matter(config, summary, network),
        purpose(network),
        training(summary, facts),
        held_out(config.objective, summary.held_out.as_ref(), summary.baseline.as_ref()),
        settings(config)?,
        limits(config, facts),
    ))
}

/// A quoted scalar of YAML: everything but plain ASCII escaped, so that no reader takes a character for a line break.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            ' '..='~' => write!(out, "{c}"),
            '\0'..='\u{ffff}' => write!(out, "\\u{:04X}", c as u32),
            _ => write!(out, "\\U{:08X}", c as u32),
        };
    }
    out + "\""
}

/// A code span of Markdown that also stands in a table.
fn code(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let space = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{space}{}{space}{fence}", text.replace('|', "\\|"))
}

fn front_matter(config: &RunConfig, summary: &Summary, network: Network) -> String {
    let mut yaml = String::from("---\nlibrary_name: transformers\n");
    if let Some(language) = &config.language {
        let _ = writeln!(yaml, "language: {}", quoted(language));
    }
    let license = config.license.as_deref().unwrap_or("unknown");
    let _ = writeln!(yaml, "license: {}", quoted(license));
    let _ = writeln!(yaml, "pipeline_tag: {}", network.task);
    let trained_by = match config.objective {
        Objective::Electra => "replaced-token-detection",
        Objective::Mlm => "masked-language-modeling",
    };
    let _ = writeln!(yaml, "tags:\n- electra\n- {trained_by}\n- elektron");
    if let Some(metrics) = &summary.held_out {
        yaml += &model_index(metrics, network);
    }
    yaml + "---\n"
}

/// The held-out metrics as the hub reads them.
fn model_index(m: &Metrics, network: Network) -> String {
    let metrics = if network.task == "fill-mask" {
        vec![
            ("loss", "Cross-entropy where [MASK] is shown", m.gen_mask_loss),
            ("accuracy", "Tokens found where [MASK] is shown", m.gen_mask_acc),
        ]
    } else {
        vec![
            ("loss", "Loss", m.disc_loss),
            ("accuracy", "Tokens judged rightly, without special tokens", m.disc_acc),
            ("roc_auc", "AUC, without special tokens", m.disc_auc),
            ("precision", "Precision of \"replaced\"", m.disc_precision),
            ("recall", "Recall of \"replaced\"", m.disc_recall),
        ]
    };
    let Network { name, task, .. } = network;
    let mut yaml = format!(
        "model-index:\n- name: {}\n  results:\n  - task:\n      type: {task}\n    dataset:\n      type: held-out\n      \
         name: {}\n    metrics:\n",
        quoted(&format!("electra-{name}")),
        quoted("held-out text")
    );
    for (kind, label, value) in metrics.into_iter().filter(|metric| metric.2.is_finite()) {
        let _ = write!(yaml, "    - type: {kind}\n      name: {}\n      value: {value:.6}\n", quoted(label));
    }
    yaml
}

fn purpose(network: Network) -> &'static str {
    match network.name {
        "model" => {
            "It fills masked tokens, and its encoder is what one fine-tunes: \
             `AutoModelForSequenceClassification.from_pretrained(…)` and the like put a new head on it.\n"
        }
        "generator" => {
            "It fills masked tokens. It is the smaller of the two and served to train the discriminator, which is what one \
             fine-tunes.\n"
        }
        _ => {
            "It tells for each token whether it was replaced, and is what one fine-tunes: \
             `AutoModelForSequenceClassification.from_pretrained(…)` and the like put a new head on it.\n"
        }
    }
}

/// Names shown before the rest is only counted.
const FILES_SHOWN: usize = 20;

fn training(summary: &Summary, facts: &Facts) -> String {
    let mut files: Vec<String> = facts.files.iter().take(FILES_SHOWN).map(|name| code(name)).collect();
    if facts.files.len() > FILES_SHOWN {
        files.push(format!("and {} more", facts.files.len() - FILES_SHOWN));
    }
    let number = |n: usize| thousands(n as u64);
    format!(
        "| | |\n|---|---|\n| text | {} files, {} documents, {} tokens, {} rows: {} |\n| seen | {} tokens in {} of {} steps |\n\
         | parameters | {} |\n| made by | elektron {} on {} |\n",
        number(facts.files.len()),
        number(facts.documents),
        number(facts.tokens),
        number(facts.rows),
        files.join(", "),
        thousands(summary.position.tokens),
        thousands(summary.position.step),
        thousands(summary.steps),
        number(facts.parameters),
        env!("ELEKTRON_VERSION"),
        code(&facts.device),
    )
}

fn held_out(objective: Objective, metrics: Option<&Metrics>, baseline: Option<&Baseline>) -> String {
    let Some(m) = metrics else { return String::new() };
    let unigram = |of: fn(&Baseline) -> f64| baseline.map_or("–".to_owned(), |b| format!("{:.4}", of(b)));
    if objective == Objective::Mlm {
        return format!(
            "\n## Held-out metrics\n\n| | this model | word frequencies of the training text |\n|---|---|---|\n\
             | loss where [MASK] is shown | {:.4} | {} |\n| accuracy there | {:.4} | {} |\n\
             | loss at all masked positions | {:.4} | |\n| accuracy there | {:.4} | |\n",
            m.gen_mask_loss,
            unigram(|baseline| baseline.unigram_loss),
            m.gen_mask_acc,
            unigram(|baseline| baseline.unigram_acc),
            m.gen_loss,
            m.gen_acc
        );
    }
    let mut text = format!(
        "\n## Held-out metrics\n\n\
         | generator | this model | word frequencies of the training text |\n|---|---|---|\n\
         | loss where [MASK] is shown | {:.4} | {} |\n| accuracy there | {:.4} | {} |\n\
         | loss at all masked positions | {:.4} | |\n| accuracy there | {:.4} | |\n\n\
         | discriminator | this model | constant output |\n|---|---|---|\n\
         | AUC | {:.4} | 0.5 |\n| loss, of all tokens | {:.4} | {:.4} |\n\
         | accuracy | {:.4} | {:.4} |\n| precision, recall of \"replaced\" | {:.4}, {:.4} | |\n\
         | AUC of all tokens | {:.4} | |\n\n",
        m.gen_mask_loss,
        unigram(|baseline| baseline.unigram_loss),
        m.gen_mask_acc,
        unigram(|baseline| baseline.unigram_acc),
        m.gen_loss,
        m.gen_acc,
        m.disc_auc,
        m.disc_loss,
        m.disc_constant_loss,
        m.disc_acc,
        1.0 - m.fake_rate,
        m.disc_precision,
        m.disc_recall,
        m.disc_all_auc,
    );
    text += "Figures of the discriminator leave out special tokens, which are never replaced, where nothing else is said.";
    if let Some(baseline) = baseline {
        let _ = write!(text, " Generator: {}.", baseline.in_words(m));
    }
    text + "\n"
}

/// Everything that `--config` would need to do it again, but for the places of files on this machine.
fn settings(config: &RunConfig) -> Result<String> {
    const PLACES: [&str; 8] =
        ["train", "validation", "tokenizer", "shards", "output", "language", "license", "log-to"];
    let mut table = String::from("| setting | value |\n|---|---|\n");
    for (key, value) in &config.shown()? {
        if PLACES.contains(&key.as_str()) || value.is_null() {
            continue;
        }
        let text = match value {
            // A model that training began with is named, its place on this machine is not.
            Value::String(path) => file_name(Path::new(path)),
            other => other.to_string(),
        };
        let _ = writeln!(table, "| {key} | {} |", code(&text));
    }
    Ok(table)
}

fn limits(config: &RunConfig, facts: &Facts) -> String {
    let mut text = format!(
        "* Rows of up to {} tokens were seen.\n* Trained on the text above alone, with whatever is missing, wrong or unfair \
         in it; nothing was filtered by its content.\n* Only the held-out metrics above were measured, if any: no \
         fine-tuned task was.\n",
        config.seq_len
    );
    if facts.tokens < 100_000_000 {
        text += "* The text is small: the paper's models saw over 3 billion tokens of text, many times.\n";
    }
    if config.license.is_none() {
        text += "* No licence was given for the models: ask whoever trained them.\n";
    }
    text
}
