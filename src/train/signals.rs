//! Signals that ask a run to stop: SIGINT (Ctrl-C), SIGTERM and SIGUSR1, which schedulers send before they take a machine
//! away.
//!
//! The first finishes the step, saves, and ends the process with [`INTERRUPTED`], on which a scheduler may start it again.
//! A second SIGINT leaves at once. Before training there is nothing to save, and any of them leaves at once with that
//! code: finished shards are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::{Error, Result};

/// Exit code of a run that was asked to stop and can be resumed: `EX_TEMPFAIL` of sysexits.h.
pub const INTERRUPTED: u8 = 75;
/// Exit code after a second SIGINT, as shells report it.
const LEFT_AT_ONCE: i32 = 128 + SIGINT;

/// Makes a write beyond the user's limit on the size of files (`ulimit -f`) fail with an error, as on a
/// full disk; without this the signal SIGXFSZ would end the process.
pub fn survive_file_size_limit() {
    #[cfg(unix)]
    {
        // With any handler the write returns an error. If none can be set, the signal keeps its effect.
        let handled = Arc::new(AtomicBool::new(false));
        let _ = flag::register(signal_hook::consts::signal::SIGXFSZ, handled);
    }
}

/// A wish to stop that may come at any time.
#[derive(Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    /// Whether there is nothing to save yet.
    idle: Arc<AtomicBool>,
}

impl Stop {
    /// Listens to the process's signals.
    pub fn on_signals() -> Result<Self> {
        let stop = Self { idle: Arc::new(AtomicBool::new(true)), ..Self::default() };
        stop.listen().map_err(|e| Error::config(format!("cannot listen to signals: {e}")))?;
        Ok(stop)
    }

    fn listen(&self) -> std::io::Result<()> {
        let interrupted = Arc::new(AtomicBool::new(false));
        flag::register_conditional_shutdown(SIGINT, LEFT_AT_ONCE, Arc::clone(&interrupted))?;
        flag::register(SIGINT, interrupted)?;
        #[cfg(unix)]
        let signals = [SIGINT, SIGTERM, signal_hook::consts::SIGUSR1];
        #[cfg(not(unix))]
        let signals = [SIGINT, SIGTERM];
        for signal in signals {
            flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), Arc::clone(&self.idle))?;
            flag::register(signal, Arc::clone(&self.asked))?;
        }
        Ok(())
    }

    /// From now on signals wait for the step's end.
    pub fn begin_training(&self) {
        self.idle.store(false, Ordering::SeqCst);
    }

    /// As a signal does.
    pub fn request(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Whether a signal came.
    pub fn requested(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}
