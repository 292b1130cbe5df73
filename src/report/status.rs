//! How a run's folder stands, from the end of its log, its checkpoints and its lock: cheap enough for a thousand runs.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};

use super::run::read_object;
use crate::model::Objective;

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A process holds its lock.
    Running,
    /// All steps are made and the models are saved.
    Finished,
    /// It ended with a checkpoint of its last step: `--resume` loses nothing.
    Stopped,
    /// It ended after its last checkpoint: `--resume` makes some steps again.
    Crashed,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its folder.
    pub path: PathBuf,
    /// How it stands.
    pub state: State,
    /// Steps made, by the log.
    pub step: u64,
    /// Steps in all, if known.
    pub steps: Option<u64>,
    /// Step of the newest checkpoint.
    pub checkpoint: Option<u64>,
    /// Seconds since the log was written to.
    pub age_s: Option<u64>,
    /// The last line of training metrics.
    pub metrics: Map<String, Value>,
    /// The last held-out metrics.
    pub held_out: Option<Map<String, Value>>,
    /// What models have that know nothing; none in logs of earlier versions.
    pub baseline: Option<Map<String, Value>>,
}

/// Bytes of the beginning and of the end of the log that are read: some hundred lines.
const PART: u64 = 64 << 10;

/// Where in a log.
enum End {
    First,
    Last,
}

impl Status {
    /// Of a folder; none if it holds no run.
    pub fn of(dir: &Path) -> Option<Self> {
        if !["run.json", "metrics.jsonl"].iter().any(|name| dir.join(name).is_file()) {
            return None;
        }
        let log = dir.join("metrics.jsonl");
        let (metrics, held_out) = last_lines(&part(&log, End::Last).unwrap_or_default());
        let baseline = baseline(&part(&log, End::First).unwrap_or_default());
        let number = |object: &Map<String, Value>, key: &str| object.get(key).and_then(Value::as_u64);
        let config = read_object(&dir.join("config.json")).unwrap_or_default();
        let steps = number(&metrics, "steps").or_else(|| number(&config, "steps"));
        let step = number(&metrics, "step").unwrap_or_default();
        let checkpoint = newest_checkpoint(&dir.join("checkpoints"));
        let holds = |name: &&str| dir.join(name).join("model.safetensors").is_file();
        let whole = [Objective::Electra, Objective::Mlm].iter().any(|o| o.directories().iter().all(holds));
        let state = match steps {
            _ if is_locked(&dir.join("run.lock")) => State::Running,
            Some(steps) if whole && step >= steps => State::Finished,
            _ if checkpoint.is_some_and(|at| at >= step) => State::Stopped,
            _ => State::Crashed,
        };
        let written = fs::metadata(&log).and_then(|file| file.modified()).ok();
        let age_s = written.map(|at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs());
        Some(Self {
            path: dir.to_owned(),
            state,
            step,
            steps,
            checkpoint,
            age_s,
            metrics,
            held_out,
            baseline,
        })
    }

    /// All runs in a folder and in the folders below it, sorted by path.
    pub fn below(dir: &Path) -> crate::Result<Vec<Self>> {
        let mut found = Vec::new();
        collect(dir, 0, &mut found)?;
        Ok(found)
    }
}

/// Runs lie at most so deep: folders of experiments, not whole disks.
const DEEPEST: usize = 5;

fn collect(dir: &Path, depth: usize, found: &mut Vec<Status>) -> crate::Result<()> {
    if let Some(status) = Status::of(dir) {
        found.push(status);
        return Ok(());
    }
    for entry in crate::fsutil::sorted_entries(dir)? {
        // A link could lead in a circle; a folder that nobody may read holds no run to show.
        let is_dir = fs::symlink_metadata(&entry).is_ok_and(|file| file.is_dir());
        if is_dir && depth < DEEPEST && fs::read_dir(&entry).is_ok() {
            collect(&entry, depth + 1, found)?;
        }
    }
    Ok(())
}

fn part(path: &Path, end: End) -> std::io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        // Opening a FIFO would wait for its writer, and its lines are meant for another reader.
        return Ok(Vec::new());
    }
    let mut file = File::open(path)?;
    if let End::Last = end {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(PART)))?;
    }
    let mut bytes = Vec::new();
    file.take(PART).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last line of training metrics and the last of held-out ones, of lines that can be read.
fn last_lines(bytes: &[u8]) -> (Map<String, Value>, Option<Map<String, Value>>) {
    let (mut train, mut held_out) = (None, None);
    for line in bytes.rsplit(|&b| b == b'\n') {
        let Ok(mut object) = serde_json::from_slice::<Map<String, Value>>(line) else { continue };
        if let Some(Value::Object(mut metrics)) = object.remove("eval") {
            if let Some(step) = object.remove("step") {
                metrics.insert("step".to_owned(), step);
            }
            held_out.get_or_insert(metrics);
        } else if object.contains_key("gen_loss") {
            train.get_or_insert(object);
        }
        if train.is_some() && held_out.is_some() {
            break;
        }
    }
    (train.unwrap_or_default(), held_out)
}

/// The first line of what metrics are compared with.
fn baseline(bytes: &[u8]) -> Option<Map<String, Value>> {
    let lines = bytes.split(|&byte| byte == b'\n');
    let objects = lines.filter_map(|line| serde_json::from_slice::<Map<String, Value>>(line).ok());
    let mut baselines = objects.filter_map(|mut object| object.remove("baseline"));
    baselines.find_map(|baseline| match baseline {
        Value::Object(baseline) => Some(baseline),
        _ => None,
    })
}

fn newest_checkpoint(dir: &Path) -> Option<u64> {
    let step = |entry: std::io::Result<fs::DirEntry>| -> Option<u64> {
        let name = entry.ok()?.file_name();
        name.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
    };
    fs::read_dir(dir).ok()?.filter_map(step).max()
}

/// Whether a process holds the lock; shared, so that looking keeps no run from starting.
fn is_locked(path: &Path) -> bool {
    let held = |file: File| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock));
    File::open(path).is_ok_and(held)
}
