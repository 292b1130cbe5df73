//! The settings of a run: as they are typed, from a file, and from the run that is continued.

use std::fs;
use std::path::Path;

use super::Arguments;
use crate::config::{RunConfig, Settings};
use crate::fsutil::write_atomic;
use crate::hub::as_path;
use crate::model::{Flavour, Objective};
use crate::train::checkpoint::Checkpoints;
use crate::train::log::is_begun;
use crate::{Error, Result};

/// The settings as typed, kept in the run's directory.
pub(super) const TYPED: &str = "run.json";
/// The settings as resolved.
pub(super) const RESOLVED: &str = "config.json";
/// What to do where they cannot be read.
pub(super) const SETTINGS_REMAIN: &str = "delete it, the run goes on with the settings in run.json";

/// Flags over the TOML file over the settings of the run that is continued.
pub(super) fn gather(arguments: &Arguments) -> Result<Settings> {
    let mut settings = arguments.settings.clone();
    if let Some(path) = &arguments.config {
        settings = settings.over(&Settings::from_file(path)?)?;
    }
    if let Some(dir) = &arguments.resume {
        let dir = dir.clone().or(settings.output.clone()).filter(|dir| !dir.as_os_str().is_empty());
        let dir =
            dir.ok_or_else(|| Error::config("missing the directory of the run to resume: --resume DIR"))?;
        let path = dir.join(TYPED);
        if path.is_file() {
            let before = read_settings(&path, "delete it and give the run's settings again, with --resume")?;
            settings = settings.over(&before)?;
        } else if settings.train.is_none() {
            let problem = match Checkpoints::new(&dir, 1).list()?[..] {
                [] => "there is no run to resume here: start one with --train and --output",
                _ => "run.json with the run's settings is missing here: give them again, with --resume",
            };
            return Err(Error::file(&dir, problem));
        }
        let resolved = dir.join(RESOLVED);
        if settings.seq_len.is_none() && resolved.is_file() && is_begun(&dir) {
            // Rows keep their length, whatever the default would be now.
            settings.seq_len = read_settings::<RunConfig>(&resolved, SETTINGS_REMAIN)?.seq_len.into();
        }
        settings.output = Some(dir);
    }
    // So that a continued run does not ask the hub for a directory that was moved.
    let names = [&mut settings.base, &mut settings.generator, &mut settings.discriminator];
    for name in names.into_iter().flatten() {
        *name = as_path(Path::new(name)).to_string_lossy().into_owned();
    }
    if let Some(path) = &mut settings.tokenizer {
        *path = as_path(path);
    }
    Ok(settings)
}

/// The same, where the run that is continued had other defaults than there are now: it keeps its own.
pub(super) fn with_defaults_of_run(mut settings: Settings, resume: bool) -> Result<Settings> {
    let Some(output) = settings.output.as_ref().filter(|output| resume && is_begun(output)) else {
        return Ok(settings);
    };
    let path = output.join(RESOLVED);
    if !path.is_file() {
        return Ok(settings);
    }
    let before = read_settings::<RunConfig>(&path, SETTINGS_REMAIN)?;
    settings.batch_size = settings.batch_size.or(Some(before.batch_size));
    if before.flavour == Flavour::Electra && settings.flavour != Some(Flavour::Txtai) {
        settings.recipe = settings.recipe.or(Some(before.recipe));
    }
    if before.objective == Objective::Electra && settings.objective != Some(Objective::Mlm) {
        settings.share = settings.share.or(Some(before.share));
    }
    Ok(settings)
}

pub(super) fn read_settings<T: serde::de::DeserializeOwned>(path: &Path, advice: &str) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::file(path, format!("these settings cannot be read ({e}): {advice}")))
}

pub(super) fn write_settings(path: &Path, settings: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(settings).map_err(|e| Error::config(e.to_string()))?;
    write_atomic(path, |out| writeln!(out, "{text}"))
}
