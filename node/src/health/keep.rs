//! Writes the ledger to its file, off everybody's path.
//!
//! An event is written at once, and what comes in the meantime is written together. What cannot be
//! written (a full disk) is told once, and tried again until it can: each time a new file, so no
//! failed sync is ever repeated. While the node runs, the file is read back again and again (`scrub`).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Action, Damage, Health, KeptFile, Kind, Structure, file};
use crate::disk::{SharedDisk, offload};

/// Pause between two writes, so that a burst of events is a few writes.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Where the ledger is kept.
#[derive(Debug)]
pub(super) struct Place {
    file: Arc<KeptFile>,
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
    /// The file as it was found.
    pub fn new(disk: SharedDisk, path: PathBuf, loaded: &file::Loaded) -> Self {
        let file = KeptFile::new(disk, path);
        let is_bad = loaded.damage.is_some();
        if let Some(content) = loaded.content.as_ref().filter(|_| !is_bad) {
            file.found(content);
        }
        Self {
            file: Arc::new(file),
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
        let (kept, is_bad) = (place.file.clone(), written.is_bad);
        let write = move || {
            if is_bad && let Err(error) = file::set_aside(&**kept.disk(), kept.path()) {
                let path = kept.path().display();
                tracing::warn!(%path, %error, "a bad ledger of damage is not kept");
            }
            kept.write(&bytes)
        };
        match offload(&**place.file.disk(), write).await {
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

    /// Compares the file with what was written; what is wrong with it is told, and so it is written again.
    pub async fn scrub(&self) {
        let Some(place) = &self.place else {
            return;
        };
        let flaw = {
            let _not_while_it_is_written = place.written.lock().await;
            let kept = place.file.clone();
            offload(&**place.file.disk(), move || kept.flaw()).await
        };
        // If the runtime ends, so does the scrub.
        if let Ok(Some((kind, what))) = flaw {
            self.repaired_at_once(Damage::of_node(Structure::Events, kind, Action::Heal, what));
        }
    }
}
