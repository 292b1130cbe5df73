//! The trainer's state: everything a run needs to go on as if it had never stopped.
//!
//! One safetensors file a checkpoint (weights, both moments; step and tokens in its metadata), whole or not there.
//! Random numbers and the order of the data are functions of the step, so nothing else needs to be kept.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::optim::{AdamW, AdamWState};
use crate::backend::Backend;
use crate::fsutil::{create_dir, sorted_entries, write_atomic};
use crate::model::TokenDetection;
use crate::model::hf::{HostTensor, map_file, to_f32};
use crate::{Error, Result};

/// No run counts so far; and one more is still a number.
const MOST: u64 = 1 << 53;

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Updates made.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
}

/// The checkpoints of one run.
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Of the run in `output`; the newest `keep` stay.
    pub fn new(output: &Path, keep: usize) -> Self {
        Self { dir: output.join("checkpoints"), keep }
    }

    /// Writes one, then removes those that are too many.
    pub fn save<B: Backend>(
        &self,
        model: &mut TokenDetection<B>,
        optimizer: &AdamW<B>,
        position: Position,
    ) -> Result<()> {
        create_dir(&self.dir)?;
        let path = self.dir.join(format!("step-{:09}.safetensors", position.step));
        let state = optimizer.state(model)?;
        let tensor = |data: Vec<f32>| HostTensor { shape: vec![data.len()], data };
        let tensors =
            [("m", tensor(state.m)), ("v", tensor(state.v)), ("weights", tensor(model.flat_weights()?))];
        let metadata = [
            ("step".to_owned(), position.step.to_string()),
            ("tokens".to_owned(), position.tokens.to_string()),
            ("updates".to_owned(), state.step.to_string()),
        ];
        write_atomic(&path, |out| {
            let views = tensors.iter().map(|(name, t)| t.view().map(|view| (*name, view)));
            let views = views.collect::<Result<Vec<_>, _>>().map_err(std::io::Error::other)?;
            let bytes =
                safetensors::serialize(views, Some(metadata.into())).map_err(std::io::Error::other)?;
            out.write_all(&bytes)
        })?;
        let all = self.list()?;
        for old in &all[..all.len().saturating_sub(self.keep)] {
            std::fs::remove_file(old).map_err(Error::io("remove", old))?;
        }
        Ok(())
    }

    /// All, oldest first.
    pub fn list(&self) -> Result<Vec<PathBuf>> {
        if !self.dir.is_dir() {
            return Ok(Vec::new());
        }
        let name = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).map(str::to_owned);
        let is_one =
            |p: &PathBuf| name(p).is_some_and(|n| n.starts_with("step-") && n.ends_with(".safetensors"));
        Ok(sorted_entries(&self.dir)?.into_iter().filter(is_one).collect())
    }

    /// Loads the newest that is whole; `None` if there is none. The files passed over are told to `warn`.
    pub fn restore<B: Backend>(
        &self,
        model: &mut TokenDetection<B>,
        optimizer: &mut AdamW<B>,
        mut warn: impl FnMut(&Error),
    ) -> Result<Option<Position>> {
        for path in self.list()?.iter().rev() {
            match read(path) {
                Ok((position, weights, state)) => {
                    model.load_flat_weights(&weights).map_err(|e| Error::file(path, e.to_string()))?;
                    optimizer.load_state(model, &state).map_err(|e| Error::file(path, e.to_string()))?;
                    return Ok(Some(position));
                }
                Err(error) => warn(&error),
            }
        }
        Ok(None)
    }
}

fn read(path: &Path) -> Result<(Position, Vec<f32>, AdamWState)> {
    let map = map_file(path)?;
    let broken = |e: &dyn std::fmt::Display| Error::file(path, format!("this checkpoint is not whole ({e})"));
    let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|e| broken(&e))?;
    let file = SafeTensors::deserialize(&map).map_err(|e| broken(&e))?;
    let number = |name: &str| {
        let text = metadata.metadata().as_ref().and_then(|m| m.get(name));
        text.and_then(|t| t.parse().ok())
            .filter(|&n: &u64| n < MOST)
            .ok_or_else(|| broken(&format!("no `{name}`")))
    };
    let tensor = |name: &str| {
        let view = file.tensor(name).map_err(|e| broken(&e))?;
        to_f32(&view).map(|t| t.data).ok_or_else(|| broken(&format!("`{name}` is not of floats")))
    };
    let position = Position { step: number("step")?, tokens: number("tokens")? };
    let state = AdamWState { step: number("updates")?, m: tensor("m")?, v: tensor("v")? };
    Ok((position, tensor("weights")?, state))
}
