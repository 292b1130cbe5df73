//! What a run does when step after step has no finite loss and gradient: it says why, returns to a
//! checkpoint, and goes on with the data in another order, or ends.

use super::{Trainer, ordered, passed_over, phase};
use crate::backend::Backend;
use crate::data::loader::Loader;
use crate::train::checkpoint::{Moment, TrainerState};
use crate::train::diagnosis::diagnose;
use crate::{Error, Result};

/// Returns to a checkpoint before a run gives up.
const MOST_ROLLBACKS: u64 = 2;

impl<B: Backend> Trainer<'_, B> {
    /// After too many bad steps in a row: back to the last good checkpoint, with the data in another order.
    pub(super) fn go_back(&mut self) -> Result<()> {
        self.launched.clear();
        self.staged = None;
        self.run.model.unstage();
        let reason = self.diagnose()?;
        if let Err(error) = self.saver.wait() {
            self.unsaved(&error);
        }
        let (from, bad) = (self.state.position.step, self.state.bad_in_row);
        let saved = self.checkpoints.list()?;
        let give_up = |why: &str| {
            let next = match saved.is_empty() {
                false => "goes on from the last checkpoint",
                true => "starts again from the beginning, with the settings that are given with it",
            };
            Err(Error::run(format!(
                "{bad} steps in a row up to step {from} had no finite loss and gradient: {reason}. {why}. A lower \
                 --learning-rate, a smaller --clip or --precision fp32 may help; `{}` {next}",
                self.resume()
            )))
        };
        if self.state.rollbacks == MOST_ROLLBACKS {
            return give_up("Going back to a checkpoint twice, with other data, did not help");
        }
        let Some(snapshot) = self.checkpoints.newest(&[Moment::SavePoint], passed_over)? else {
            return give_up("No checkpoint had been saved that the run could go back to");
        };
        snapshot.restore(self.run.model, &mut self.optimizer)?;
        self.run.model.take_counts()?;
        let (rollbacks, skipped) = (self.state.rollbacks + 1, self.state.skipped);
        let micro_batch = self.state.micro_batch;
        let health = snapshot.state.health.clone().restored(&self.state.health);
        self.state =
            TrainerState { rollbacks, skipped, bad_in_row: 0, micro_batch, health, ..snapshot.state };
        let to = self.state.position.step;
        self.checkpoints.forget_after(to)?;
        self.timing.go_back(to);
        crate::note!(
            "warning: {bad} bad steps in a row up to step {from}: {reason}. The run goes back to step {to} and takes the \
             data in another order ({rollbacks} of at most {MOST_ROLLBACKS} times)"
        );
        self.log.go_back(to, self.state.log_bytes);
        self.log.rollback(from, to, &reason);
        self.loader = Loader::new(self.run.rows.clone(), ordered(self.run.loader, &self.state), to);
        Ok(())
    }

    /// Makes the last step again and says where it went bad.
    fn diagnose(&mut self) -> Result<String> {
        let spec = ordered(self.run.loader, &self.state);
        let step = self.state.position.step - 1;
        let rows = self.run.rows.len();
        let mut batches = Vec::new();
        for micro in 0..spec.micro_batches_of(rows, step) {
            let mut batch = spec.checked_batch(&self.run.rows, step, micro)?;
            if let Some(fault) = self.run.fault {
                fault(step, self.state.rollbacks, self.run.model, &mut batch)?;
            }
            let phase = phase(step, micro, &spec, rows);
            batches.push((batch, phase));
        }
        diagnose(self.run.model, batches)
    }
}
