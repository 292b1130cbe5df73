//! What a continued run must have as before.

use std::path::absolute;

use serde_json::Value;

use super::RunConfig;
use crate::{Error, Result};

impl RunConfig {
    /// Whether a vocabulary trained on the text by these settings is the one of `before`.
    pub fn same_vocabulary(&self, before: &Self) -> bool {
        let parts = |config: &Self| {
            (config.train.clone(), config.columns.clone(), config.vocab_size, config.vocabulary.clone())
        };
        parts(self) == parts(before)
    }

    /// Settings that a continued run must have as before: they decide its data and its parameters.
    pub fn continued_as(&self, before: &Self) -> Result<()> {
        let value = |config: &Self| serde_json::to_value(config).map_err(|e| Error::config(e.to_string()));
        let (now, then) = (value(self)?, value(before)?);
        const FIXED: [&str; 37] = [
            // First, since they decide the defaults of others.
            "flavour",
            "recipe",
            "objective",
            "train",
            "columns",
            "vocab-size",
            "kind",
            "pre-tokenizer",
            "cased",
            "accents",
            "chinese",
            "alphabet",
            "min-frequency",
            "sample-bytes",
            "dedup",
            "held-out",
            "merge",
            "seq-len",
            "preset",
            "base",
            "generator",
            "discriminator",
            "head",
            "share",
            "mlm-first",
            "init",
            "weight",
            "gen-weight",
            "mask-prob",
            "mask-style",
            "temperature",
            "disallow-correct",
            "batch-size",
            "grad-accumulation",
            "micro-batch",
            "bias-correction",
            "seed",
        ];
        if self.short_batches != before.short_batches {
            let (then, now) = match before.short_batches {
                true => ("ends every epoch with a short batch, as with --epochs", "--steps"),
                false => ("has full batches only, as with --steps in the electra flavour", "--epochs"),
            };
            return Err(Error::config(format!(
                "the run that is continued {then}; with {now} its rows would come in another \
                 order: keep to what it began with, or start a new run in another directory"
            )));
        }
        let same = |name: &str| match (now.get(name), then.get(name)) {
            (Some(Value::String(now)), Some(Value::String(then))) if STARTS.contains(&name) => {
                now == then || same_path(now, then)
            }
            (now, then) => now == then,
        };
        for name in FIXED {
            if !same(name) {
                let show = |v: &Value| v.get(name).map_or("nothing".to_owned(), Value::to_string);
                return Err(Error::config(format!(
                    "`{name}` is {}, but the run began with {}: keep it, or start a new run in \
                     another directory",
                    show(&now),
                    show(&then)
                )));
            }
        }
        Ok(())
    }
}

/// Settings that name what a network starts from.
const STARTS: [&str; 3] = ["base", "generator", "discriminator"];

/// Whether two texts, read as paths, mean the same place, such as `model` and `./model`.
fn same_path(one: &str, other: &str) -> bool {
    matches!((absolute(one), absolute(other)), (Ok(one), Ok(other)) if one == other)
}
