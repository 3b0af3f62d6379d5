//! Writes the ledger to its file, off everybody's path.
//!
//! An event is written at once, and what comes in the meantime is written together. What cannot be
//! written (a full disk) is told once, and tried again until it can: each time a new file, so no
//! failed sync is ever repeated.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Action, Damage, Health, Kind, Structure, file};
use crate::disk::{SharedDisk, offload, write_file_atomically};

/// Pause between two writes, so that a burst of events is a few writes.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Where the ledger is kept.
#[derive(Debug)]
pub(super) struct Place {
    disk: SharedDisk,
    path: PathBuf,
    /// One writer at a time.
    written: tokio::sync::Mutex<Written>,
}

/// What the file is like.
#[derive(Debug)]
struct Written {
    /// How many changes it has.
    changes: u64,
    /// It is not as it was written, and is to be kept beside.
    is_bad: bool,
}

impl Place {
    pub fn new(disk: SharedDisk, path: PathBuf, is_bad: bool) -> Self {
        Self {
            disk,
            path,
            written: tokio::sync::Mutex::new(Written { changes: 0, is_bad }),
        }
    }
}

impl Health {
    /// Keeps the file up to date until told to stop.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = stop.cancelled() => return,
            }
            let pause = match self.write().await {
                Ok(()) => PAUSE,
                Err(_) => {
                    // Told in the ledger; it must be tried again though nothing else changes.
                    self.changed.notify_one();
                    RETRY
                }
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Writes what is new, durably.
    ///
    /// # Errors
    /// The disk's. It is in the ledger then, once, until writing succeeds.
    pub async fn write(&self) -> io::Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let mut written = place.written.lock().await;
        let (bytes, changes) = {
            let ledger = self.ledger.lock();
            if ledger.changes == written.changes {
                return Ok(());
            }
            (file::encode(ledger.owner, ledger.events()), ledger.changes)
        };
        let (disk, path, is_bad) = (place.disk.clone(), place.path.clone(), written.is_bad);
        let write = move || {
            if is_bad && let Err(error) = file::set_aside(&*disk, &path) {
                tracing::warn!(path = %path.display(), %error, "a bad ledger of damage is not kept");
            }
            write_file_atomically(&*disk, &path, &bytes)
        };
        match offload(&*place.disk, write).await {
            Ok(Ok(())) => {
                *written = Written {
                    changes,
                    is_bad: false,
                };
                self.repaired(0, Structure::Events);
                Ok(())
            }
            Ok(Err(error)) | Err(error) => {
                if !self.is_open(0, Structure::Events) {
                    let what = error.to_string();
                    let (kind, action) = (Kind::Unwritable, Action::Retry);
                    self.damaged(Damage::of_node(Structure::Events, kind, action, what));
                }
                Err(error)
            }
        }
    }
}
