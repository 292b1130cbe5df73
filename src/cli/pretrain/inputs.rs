//! The inputs of a run other than its settings: the tokenizer and the text. Their hashes are stored
//! next to the settings, so that a continued run can check whether they are what it began with.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{read_settings, write_settings};
use crate::config::RunConfig;
use crate::data::pack::Rows;
use crate::data::tokenizer::Tokenizer;
use crate::report::thousands;
use crate::train::log::is_begun;
use crate::{Error, Result};

/// The file of the hashes, in the directory of the run.
const FILE: &str = "inputs.json";

/// Hashes of a run's tokenizer and texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Inputs {
    /// SHA-256 of the tokenizer's definition and the ids of its special tokens.
    tokenizer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    train: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    validation: Option<Text>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Text {
    sha256: String,
    documents: usize,
    tokens: usize,
    rows: usize,
}

impl Text {
    fn of(rows: &Rows) -> Self {
        let sha256 = hex(&rows.digest());
        Self { sha256, documents: rows.documents(), tokens: rows.tokens(), rows: rows.len() }
    }

    fn counts(&self) -> String {
        let [documents, tokens, rows] =
            [self.documents, self.tokens, self.rows].map(|count| thousands(count as u64));
        format!("{documents} documents, {tokens} tokens, {rows} rows")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Inputs {
    /// The hashes of a run with this tokenizer; the texts are those that the run had when it last
    /// started or continued. An error if the run that is continued began with another tokenizer.
    pub(super) fn new(config: &RunConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let mut hash = Sha256::new_with_prefix(tokenizer.hash()?);
        tokenizer.special().all().iter().for_each(|id| hash.update(id.to_le_bytes()));
        let now = Self { tokenizer: hex(&hash.finalize()), train: None, validation: None };
        // A run that ended before its first step may start with another tokenizer.
        if !is_begun(&config.output) {
            return Ok(now);
        }
        let path = config.output.join(FILE);
        if !path.is_file() {
            crate::note!(
                "{FILE} is missing from {}, so it cannot be checked whether the tokenizer and the \
                 text are those that the run began with: make sure that they are",
                config.output.display()
            );
            return Ok(now);
        }
        let advice = "delete it, then the tokenizer and the text are assumed to be the same";
        let before: Self = read_settings(&path, advice)?;
        if before.tokenizer != now.tokenizer {
            return Err(Error::config(format!(
                "{} is not the tokenizer that this run began with, so the same ids would mean \
                 other tokens: give that one with --tokenizer, or start a new run in another \
                 directory",
                place(config)
            )));
        }
        Ok(before)
    }

    /// Compares the texts with those that the run had before, and warns of differences and their
    /// consequences.
    pub(super) fn set_texts(&mut self, config: &RunConfig, rows: &Rows, validation: Option<&Rows>) {
        let train = Text::of(rows);
        if let Some(before) = self.train.as_ref().filter(|before| before.sha256 != train.sha256) {
            let (then, now) = (config.total_steps(before.rows), config.total_steps(train.rows));
            let steps = match then == now {
                true => String::new(),
                false => format!(
                    "; the run now has {} steps in all instead of {}",
                    thousands(now),
                    thousands(then)
                ),
            };
            crate::note!(
                "warning: the training text is not the one that this run had before: {}. Training \
                 continues with the text as it is now; its rows come in another order, so this run \
                 does not end in the same bytes as one of either text alone{steps}",
                changed(before, &train)
            );
        }
        let validation = validation.map(Text::of);
        if let (Some(before), Some(now)) = (&self.validation, &validation)
            && before.sha256 != now.sha256
        {
            crate::note!(
                "warning: the held-out text is not the one that this run had before: {}. Held-out \
                 metrics from here on cannot be compared with earlier ones",
                changed(before, now)
            );
        }
        (self.train, self.validation) = (Some(train), validation);
    }

    /// Writes the hashes next to the settings.
    pub(super) fn write(&self, output: &Path) -> Result<()> {
        write_settings(&output.join(FILE), self)
    }
}

fn changed(before: &Text, now: &Text) -> String {
    match (before.counts(), now.counts()) {
        (before, now) if before == now => {
            format!("{now} as before, but with other content, or in shards of another size")
        }
        (before, now) => format!("{before} then, {now} now"),
    }
}

/// Where the tokenizer was taken from.
fn place(config: &RunConfig) -> String {
    match &config.tokenizer {
        Some(path) => path.display().to_string(),
        None => "the tokenizer in the directory of a model or of the run".to_owned(),
    }
}
