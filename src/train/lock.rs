//! One process to an output directory, by an advisory lock that the system lets go of when the process ends, however it
//! ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use crate::{Error, Result};

/// The lock, held as long as this lives.
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the directory; the error names the process that has it.
    pub fn take(output: &Path) -> Result<Self> {
        let path = output.join("run.lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Whoever holds the lock is named as well as can be.
                let _ = file.read_to_string(&mut owner);
                let owner = if owner.is_empty() { "another process" } else { owner.trim_end() };
                return Err(Error::file(
                    output,
                    format!(
                        "{owner} is training in this directory: wait for it, stop it, or give another --output"
                    ),
                ));
            }
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                crate::note!(
                    "warning: {} cannot be locked here: take care that one run writes to it",
                    path.display()
                );
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
        }
        // The text only serves messages: the lock holds without it, on a full disk too.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "process {}{}", std::process::id(), host()));
        Ok(Self { _file: file })
    }
}

/// ` on HOST`, where the system tells.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { String::new() } else { format!(" on {}", name.trim()) }
}
