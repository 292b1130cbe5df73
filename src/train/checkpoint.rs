//! The trainer's state: everything a run needs to go on as if it had never stopped.
//!
//! One safetensors file a checkpoint, whole or not there:
//!
//! ```text
//! header: { trainer: state + checksum of each tensor } │ weights │ m │ v │ seal
//! ```
//!
//! The seal is the checksum of the header and is written last: a file without it was not finished. Random numbers and
//! the order of the data are functions of the state, so nothing else needs to be kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use super::health::Health;
use super::optim::{AdamW, AdamWState};
use super::window::{RecentLosses, Window};
use crate::backend::Backend;
use crate::fsutil::{create_dir, remove_unfinished, sorted_entries, write_atomic};
use crate::model::TokenDetection;
use crate::{Error, Result};

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps made.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
}

/// What a trainer knows besides weights and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// How far the run is.
    pub position: Position,
    /// How often it went back to a checkpoint; each time the data takes another order.
    pub rollbacks: u64,
    /// Steps that changed no weight, because the loss or a gradient was not finite.
    pub skipped: u64,
    /// How many of them came last, in a row.
    pub bad_in_row: u64,
    /// Rows that are computed at a time: other splits of a step round differently. 0 in checkpoints from before this was kept.
    #[serde(default)]
    pub micro_batch: usize,
    /// Length of `metrics.jsonl`.
    pub log_bytes: u64,
    /// Sums since the log's last line.
    pub window: Window,
    /// For spikes.
    pub losses: RecentLosses,
    /// Whether it learns.
    #[serde(default)]
    pub health: Health,
}

/// One checkpoint in memory.
pub struct Snapshot {
    /// The trainer's.
    pub state: TrainerState,
    weights: Vec<f32>,
    optimizer: AdamWState,
}

/// What the header says under [`TRAINER`].
#[derive(Serialize, Deserialize)]
struct Header {
    state: TrainerState,
    updates: u64,
    /// Of each tensor: XXH3, 128 bits.
    checksums: BTreeMap<String, String>,
}

/// In the names of checkpoints that are of no save point.
const STOP: &str = ".stop";
const TRAINER: &str = "trainer";
const TENSORS: [&str; 3] = ["weights", "m", "v"];
const SEAL_BYTES: usize = 16;
/// More than any header of ours.
const LONGEST_HEADER: u64 = 1 << 20;

impl Snapshot {
    /// Copies everything into host memory.
    pub fn take<B: Backend>(
        model: &mut TokenDetection<B>,
        optimizer: &AdamW<B>,
        state: TrainerState,
    ) -> Result<Self> {
        Ok(Self { state, weights: model.flat_weights()?, optimizer: optimizer.state(model)? })
    }

    /// Copies weights and moments back.
    pub fn restore<B: Backend>(&self, model: &mut TokenDetection<B>, optimizer: &mut AdamW<B>) -> Result<()> {
        let restored = model.load_flat_weights(&self.weights);
        restored.and_then(|()| optimizer.load_state(model, &self.optimizer)).map_err(|e| {
            Error::run(format!(
                "the checkpoint of step {} is of another model: {e}",
                self.state.position.step
            ))
        })
    }

    fn tensors(&self) -> [&[f32]; 3] {
        [&self.weights, &self.optimizer.m, &self.optimizer.v]
    }

    /// Length and JSON of the header, padded to 8 bytes.
    fn header(&self) -> io::Result<Vec<u8>> {
        let (mut infos, mut checksums, mut at) = (Vec::new(), BTreeMap::new(), 0);
        let mut place = |name: &str, dtype, len: usize, bytes: usize| {
            let data_offsets = (at, at + bytes);
            infos.push((name.to_owned(), TensorInfo { dtype, shape: vec![len], data_offsets }));
            at += bytes;
        };
        for (name, data) in TENSORS.into_iter().zip(self.tensors()) {
            place(name, Dtype::F32, data.len(), size_of_val(data));
            checksums.insert(name.to_owned(), checksum(bytemuck::cast_slice(data)));
        }
        place("seal", Dtype::U8, SEAL_BYTES, SEAL_BYTES);
        let header = Header { state: self.state.clone(), updates: self.optimizer.step, checksums };
        let metadata = [(TRAINER.to_owned(), serde_json::to_string(&header)?)].into();
        let metadata = Metadata::new(Some(metadata), infos).map_err(io::Error::other)?;
        let mut json = serde_json::to_vec(&metadata)?;
        json.resize(json.len().next_multiple_of(8), b' ');
        Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let header = self.header()?;
        out.write_all(&header)?;
        self.tensors().into_iter().try_for_each(|data| out.write_all(bytemuck::cast_slice(data)))?;
        out.write_all(&seal(&header))
    }

    /// Reads a file; an error if anything in it is not as it was written.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        Self::read_from(&mut file).map_err(|e| match e.raw_os_error() {
            // The file may be whole, on a disk that cannot be read at present.
            Some(_) => Error::io("read", path)(e),
            None => Error::file(path, format!("this checkpoint is not whole ({e})")),
        })
    }

    fn read_from(file: &mut File) -> io::Result<Self> {
        let broken = |what: &str| Err(io::Error::other(what.to_owned()));
        let file_len = file.metadata()?.len();
        let mut header = vec![0; 8];
        file.read_exact(&mut header)?;
        let json_len = u64::from_le_bytes(header[..].try_into().map_err(io::Error::other)?);
        if json_len > LONGEST_HEADER {
            return broken("it does not begin with a header");
        }
        header.resize(8 + json_len as usize, 0);
        file.read_exact(&mut header[8..])?;
        let metadata: Metadata = serde_json::from_slice(&header[8..])?;
        let trainer = metadata.metadata().as_ref().and_then(|m| m.get(TRAINER));
        let Some(trainer) = trainer else { return broken("it holds no trainer's state") };
        let Header { state, updates, checksums } = serde_json::from_str(trainer)?;
        // Three tensors of 4-byte elements, by the file's length: what the header says is not to be trusted yet.
        let body = file_len.saturating_sub((header.len() + SEAL_BYTES) as u64) as usize;
        let len = body / 12;
        if metadata.info("weights").is_none_or(|info| info.shape != [len]) || body != 12 * len {
            return broken("its length is not what its header says");
        }
        let mut tensors = Vec::new();
        for name in TENSORS {
            let mut data = vec![0f32; len];
            file.read_exact(bytemuck::cast_slice_mut(&mut data))?;
            if checksums.get(name) != Some(&checksum(bytemuck::cast_slice(&data))) {
                return broken(&format!("the checksum of `{name}` is wrong"));
            }
            tensors.push(data);
        }
        let mut end = [0; SEAL_BYTES];
        file.read_exact(&mut end)?;
        let Ok([weights, m, v]) = <[Vec<f32>; 3]>::try_from(tensors) else { return broken("no tensors") };
        match end == seal(&header) {
            true => Ok(Self { state, weights, optimizer: AdamWState { step: updates, m, v } }),
            false => broken("its seal is missing"),
        }
    }
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:032x}", XxHash3_128::oneshot(bytes))
}

fn seal(header: &[u8]) -> [u8; SEAL_BYTES] {
    XxHash3_128::oneshot(header).to_le_bytes()
}

/// Which moment of a run a checkpoint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A save point, or the end: every run of these settings comes by, and may go back to it when steps go bad.
    SavePoint,
    /// When a signal or an error came: only to be resumed from, and gone when there is a newer one.
    Stop,
}

/// The checkpoints of one run.
#[derive(Clone)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Of the run in `output`; the newest `keep` stay.
    pub fn new(output: &Path, keep: usize) -> Self {
        Self { dir: output.join("checkpoints"), keep }
    }

    fn path(&self, step: u64, moment: Moment) -> PathBuf {
        let stop = if moment == Moment::Stop { STOP } else { "" };
        self.dir.join(format!("step-{step:09}{stop}.safetensors"))
    }

    /// Makes the directory, without what a killed process left half written.
    pub fn prepare(&self) -> Result<()> {
        create_dir(&self.dir)?;
        remove_unfinished(&self.dir)
    }

    /// Writes one, then removes those that are too many. On a full disk the ones that are too many already go first;
    /// the newest `keep` stay in any case.
    pub fn write(&self, snapshot: &Snapshot, moment: Moment) -> Result<()> {
        let path = self.path(snapshot.state.position.step, moment);
        let write = || write_atomic(&path, |out| snapshot.write_to(out));
        match write() {
            Err(e) if e.is_no_space() && self.retain(&path)? > 0 => write()?,
            other => other?,
        }
        self.retain(&path).map(drop)
    }

    /// Removes all but the newest `keep` of those up to `newest`; returns how many went. What lies beyond belongs to a
    /// past that is being made again, and is written over.
    fn retain(&self, newest: &Path) -> Result<usize> {
        let all = self.list()?.into_iter().filter(|path| path <= newest);
        let (mut old, points): (Vec<_>, Vec<_>) = all.partition(|path| moment(path) == Moment::Stop);
        old.retain(|path| path != newest);
        old.extend_from_slice(&points[..points.len().saturating_sub(self.keep)]);
        old.iter().try_for_each(|path| fs::remove_file(path).map_err(Error::io("remove", path)))?;
        Ok(old.len())
    }

    /// An error if their directory is a link that leads nowhere, for example to a disk that is not mounted.
    pub fn check_reachable(&self) -> Result<()> {
        if !self.dir.is_symlink() || self.dir.exists() {
            return Ok(());
        }
        let problem = "this link leads nowhere, but the checkpoints of the run are stored where it points \
                       to: mount or restore that";
        Err(Error::file(&self.dir, problem))
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

    /// The newest that is whole, of the given moments. Damaged ones on the way are told to `warn` and set aside under
    /// another name. An error if there are some, and none is whole.
    pub fn newest(&self, moments: &[Moment], mut warn: impl FnMut(&Error)) -> Result<Option<Snapshot>> {
        let mut damaged = Vec::new();
        let mut found = None;
        let wanted = |path: &PathBuf| moments.contains(&moment(path));
        for path in self.list()?.into_iter().rev().filter(wanted) {
            match Snapshot::read(&path) {
                Ok(snapshot) => {
                    found = Some(snapshot);
                    break;
                }
                Err(error @ Error::Io { .. }) => return Err(error),
                Err(error) => {
                    warn(&error);
                    damaged.push(path);
                }
            }
        }
        if found.is_none() && !damaged.is_empty() {
            let problem = "none of the checkpoints here is whole: delete this directory to start over";
            return Err(Error::file(&self.dir, problem));
        }
        for path in damaged {
            fs::rename(&path, path.with_extension("damaged")).map_err(Error::io("rename", &path))?;
        }
        Ok(found)
    }

    /// Removes those after `step`: of a past that the run left.
    pub fn forget_after(&self, step: u64) -> Result<()> {
        let last = self.path(step, Moment::SavePoint);
        let later = self.list()?.into_iter().filter(|path| *path > last);
        later.into_iter().try_for_each(|path| fs::remove_file(&path).map_err(Error::io("remove", &path)))
    }
}

fn moment(path: &Path) -> Moment {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if name.ends_with(STOP) { Moment::Stop } else { Moment::SavePoint }
}
