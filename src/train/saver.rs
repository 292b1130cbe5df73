//! Checkpoints written by a thread beside the training: the loop waits for the copy into host memory, not for the disk.
//!
//! One write is under way at most. Whether it worked is told at the next [`Saver::poll`] or [`Saver::wait`]; dropping
//! the saver waits too.

use std::fs::File;
use std::thread::JoinHandle;

use super::checkpoint::{Checkpoints, Moment, Snapshot};
use crate::{Error, Result};

/// Writes the checkpoints of one run.
pub struct Saver {
    checkpoints: Checkpoints,
    under_way: Option<(u64, JoinHandle<Result<()>>)>,
    saved: Option<u64>,
}

impl Saver {
    /// Nothing is written yet; `saved` is the step of the checkpoint that the run went on from.
    pub fn new(checkpoints: Checkpoints, saved: Option<u64>) -> Self {
        Self { checkpoints, under_way: None, saved }
    }

    /// The step of the last checkpoint that is whole on disk.
    pub fn saved(&self) -> Option<u64> {
        self.saved
    }

    /// Begins to write, once the previous write has succeeded. `log` is synced to disk first, because a run
    /// that resumes from the checkpoint appends to it.
    pub fn start(&mut self, snapshot: Snapshot, moment: Moment, log: Option<File>) -> Result<()> {
        self.wait()?;
        let (step, checkpoints) = (snapshot.state.position.step, self.checkpoints.clone());
        let write = move || {
            // A pipe cannot be synced, and an error of the log is no reason to lose a checkpoint.
            let _ = log.map(|log| log.sync_all());
            checkpoints.write(&snapshot, moment)
        };
        self.under_way = Some((step, std::thread::spawn(write)));
        Ok(())
    }

    /// The error of a write that failed since; does not wait.
    pub fn poll(&mut self) -> Result<()> {
        match &self.under_way {
            Some((_, thread)) if thread.is_finished() => self.wait(),
            _ => Ok(()),
        }
    }

    /// Waits for the write that is under way.
    pub fn wait(&mut self) -> Result<()> {
        let Some((step, thread)) = self.under_way.take() else { return Ok(()) };
        thread.join().map_err(|_| Error::run("the thread that writes checkpoints broke down"))??;
        self.saved = Some(step);
        Ok(())
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // Whoever cares for the error has waited before.
        let _ = self.wait();
    }
}
