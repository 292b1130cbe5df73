//! Settings that are refused as they are typed.

use std::path::PathBuf;

use super::Settings;
use crate::{Error, Result};

/// Settings that only a generator and a discriminator together have.
pub(super) const OF_PAIRS: [&str; 6] =
    ["weight", "gen-weight", "share", "temperature", "disallow-correct", "head"];

/// An error if a setting is given that means nothing for one network.
pub(super) fn settings_of_pairs(settings: &Settings) -> Result<()> {
    let given = serde_json::to_value(settings).map_err(|e| Error::config(e.to_string()))?;
    if let Some((name, value)) = OF_PAIRS.iter().find_map(|name| Some((name, given.get(*name)?))) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        return Err(Error::config(format!(
            "--{name} {value} has no meaning with --objective mlm, which trains one network and no \
             discriminator: leave it out"
        )));
    }
    if settings.generator.is_some() && settings.discriminator.is_some() {
        return Err(Error::config(
            "--objective mlm trains one network, but both --generator and --discriminator say what it \
             starts from: give one of them",
        ));
    }
    Ok(())
}

/// An error if a path is given that is empty, as it is where a variable of a script is not set.
pub(super) fn blank_paths(settings: &Settings) -> Result<()> {
    let texts = |paths: &Option<Vec<String>>| paths.iter().flatten().map(PathBuf::from).collect();
    let text = |path: &Option<String>| path.iter().map(PathBuf::from).collect();
    let path = |path: &Option<PathBuf>| path.iter().cloned().collect();
    let given: [(&str, Vec<PathBuf>); 8] = [
        ("train", texts(&settings.train)),
        ("validation", texts(&settings.validation)),
        ("base", text(&settings.base)),
        ("generator", text(&settings.generator)),
        ("discriminator", text(&settings.discriminator)),
        ("tokenizer", path(&settings.tokenizer)),
        ("shards", path(&settings.shards)),
        ("output", path(&settings.output)),
    ];
    let is_blank = |path: &PathBuf| path.to_string_lossy().trim().is_empty();
    match given.iter().find(|(_, paths)| paths.iter().any(is_blank)) {
        Some((name, _)) => {
            Err(Error::config(format!("--{name} is empty: give a path, or leave the setting out")))
        }
        None => Ok(()),
    }
}
