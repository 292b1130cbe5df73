//! A file of the log, to which a run adds records one by one.
//!
//! A record that cannot be written is no reason to stop training. Whatever the cause (no space, a limit,
//! a permission, a directory that was removed, a FIFO without a reader), the record waits in memory, up to
//! a limit, and the write is tried again with every further record.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// The most bytes that wait in memory: some ten thousand lines.
const MOST_PENDING: usize = 16 << 20;

/// How long a run waits at its end for the reader of a FIFO.
const PATIENCE: Duration = Duration::from_secs(5);

/// An open file of the log, or one that is opened as soon as that succeeds.
pub(super) struct Sink {
    path: PathBuf,
    open: Box<dyn FnMut() -> Result<File>>,
    file: Option<File>,
    /// Records that are still to be written. The beginning of the first may be written already.
    pending: Vec<u8>,
    /// How many records these are.
    waiting: u64,
    /// How many records were dropped, because the limit in memory was reached.
    lost: u64,
    warned: bool,
}

impl Sink {
    /// A sink for the file that `open` opens, which is called until it succeeds.
    pub(super) fn new(path: PathBuf, open: impl FnMut() -> Result<File> + 'static) -> Self {
        let (open, pending) = (Box::new(open), Vec::new());
        let mut sink = Self { path, open, file: None, pending, waiting: 0, lost: 0, warned: false };
        sink.flush();
        sink
    }

    /// Adds a record.
    pub(super) fn add(&mut self, record: &[u8]) {
        if self.pending.len() + record.len() > MOST_PENDING {
            self.flush();
        }
        // If there is no room, the newest record is dropped, and those that wait already are kept.
        match self.pending.len() + record.len() > MOST_PENDING {
            true => self.lost += 1,
            false => {
                self.pending.extend_from_slice(record);
                self.waiting += 1;
            }
        }
        self.flush();
    }

    /// Writes what waits, if that is possible now. Only the first failure gives a warning.
    pub(super) fn flush(&mut self) {
        if let Err(error) = self.try_flush()
            && !self.warned
        {
            self.warned = true;
            crate::note!("warning: {error}; the run goes on, and lines of the log wait in memory");
        }
    }

    fn try_flush(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert((self.open)()?),
        };
        while !self.pending.is_empty() {
            match file.write(&self.pending) {
                Ok(0) => return Err(Error::io("write", &self.path)(ErrorKind::WriteZero.into())),
                Ok(written) => drop(self.pending.drain(..written)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("write", &self.path)(e)),
            }
        }
        self.waiting = 0;
        Ok(())
    }

    /// The length of the file once all that waits is written, in bytes; not known while it is not open.
    pub(super) fn bytes(&self) -> Option<u64> {
        let file = self.file.as_ref().and_then(|file| file.metadata().ok());
        file.map(|file| file.len() + self.pending.len() as u64)
    }

    /// The file itself, for another thread to sync to disk.
    pub(super) fn file(&self) -> Option<File> {
        self.file.as_ref().and_then(|file| file.try_clone().ok())
    }

    /// Takes what waits.
    pub(super) fn take_pending(&mut self) -> Vec<u8> {
        self.waiting = 0;
        std::mem::take(&mut self.pending)
    }

    /// The last attempt; a warning counts the records that the file lacks.
    pub(super) fn close(&mut self) {
        let start = Instant::now();
        while self.try_flush().is_err_and(|error| is_busy(&error)) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.flush();
        let missing = self.waiting + self.lost;
        if missing > 0 {
            crate::note!("warning: {missing} entries of the log are not in {}", self.path.display());
        }
    }
}

/// Whether the reader of a FIFO is behind.
fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Fails to open twice, and after that writes to the file.
    #[test]
    fn records_wait_in_order_and_within_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (place, mut failures) = (path.clone(), 2);
        let mut sink = Sink::new(path.clone(), move || match failures {
            0 => File::create(&place).map_err(Error::io("write", &place)),
            _ => {
                failures -= 1;
                Err(Error::io("write", &place)(ErrorKind::StorageFull.into()))
            }
        });
        assert!(sink.warned);
        sink.add(b"one\n");
        assert_eq!((sink.waiting, sink.bytes(), path.exists()), (1, None, false));
        sink.add(b"two\n");
        assert_eq!((sink.waiting, sink.bytes()), (0, Some(8)));
        sink.add(b"three\n");
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\nthree\n");

        let never = path.clone();
        let mut sink =
            Sink::new(path, move || Err(Error::io("write", &never)(ErrorKind::StorageFull.into())));
        let record = vec![b'x'; MOST_PENDING / 3];
        (0..5).for_each(|_| sink.add(&record));
        assert_eq!((sink.waiting, sink.lost, sink.pending.len()), (3, 2, 3 * record.len()));
    }
}
