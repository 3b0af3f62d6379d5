//! Checkpoints and compactions of a tree.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::control_row::ControlRow;
use super::tree::{Tree, TreeInner};
use super::{Mark, TreeError, TreeId};
use crate::shard::LogId;

/// A closed memtable that is to be made durable by [`Tree::flush`].
#[derive(Debug)]
#[must_use = "a sealed memtable holds memory until it is flushed"]
pub struct Sealed {
    tree: TreeId,
    applied: LogId,
    bytes: u64,
}

impl Sealed {
    /// The log entry it goes up to.
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// Its size in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a checkpoint stands for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position {
    pub applied: LogId,
    pub last_version: u64,
}

pub(super) struct PendingSeal {
    position: Position,
    bytes: u64,
}

impl TreeInner {
    pub(super) fn memtable_bytes(&self) -> u64 {
        let sealed: u64 = self.pending.lock().iter().map(|seal| seal.bytes).sum();
        self.active_bytes.load(Ordering::Relaxed) + sealed
    }

    fn flush(&self) -> Result<Mark, TreeError> {
        if let Some(error) = self.flush_failed.get() {
            return Err(error.clone());
        }
        let oldest_view = self.views.raise_floor();
        let flushed = self.guard("flushing", || self.engine.flush(oldest_view));
        if let Err(error) = flushed {
            self.flush_failed.get_or_init(|| error.clone());
            return Err(error);
        }
        self.settle_seals()?;
        self.mark()
    }

    /// Takes the seals that a flush made durable off the list.
    fn settle_seals(&self) -> Result<(), TreeError> {
        let mut pending = self.pending.lock();
        let still_sealed = self.guard("counting memtables", || Ok(self.engine.sealed_count()))?;
        while pending.len() > still_sealed {
            let seal = pending.pop_front().expect("the list is not empty");
            *self.durable.lock() = seal.position;
            self.memtables_bytes.fetch_sub(seal.bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn compact(&self, full: bool) -> Result<Option<Mark>, TreeError> {
        let oldest_view = self.views.raise_floor();
        let changed = self.guard("compacting", || self.engine.compact(oldest_view, full))?;
        if !changed {
            return Ok(None);
        }
        // What was merged stays for views of before. By now most of them are gone, and the files need
        // not wait for the next checkpoint.
        let oldest_view = self.views.raise_floor();
        self.guard("deleting merged files", || self.engine.forget(oldest_view))?;
        self.mark().map(Some)
    }

    /// The position is read first: files may be newer than it says, never older.
    fn mark(&self) -> Result<Mark, TreeError> {
        let Position {
            applied,
            last_version,
        } = *self.durable.lock();
        let manifest = self.guard("listing files", || self.engine.manifest())?;
        Ok(Mark {
            tree: self.id,
            engine: self.kind,
            applied,
            last_version,
            version_id: manifest.version_id,
            files: manifest.files,
            contents: manifest.contents,
            tables: manifest.tables,
        })
    }
}

impl Tree {
    /// Begins a checkpoint, between two entries: what was inserted so far, and `control`, stand for
    /// the log up to `applied`. Fast: nothing is synced.
    ///
    /// # Errors
    /// The tree is broken or closed.
    pub fn seal(&self, control: &[u8], applied: LogId) -> Result<Sealed, TreeError> {
        let inner = &self.inner;
        let last_version = inner.begun.load(Ordering::Acquire);
        assert_eq!(
            last_version,
            inner.views.visible(),
            "a checkpoint is taken between two entries"
        );
        let row = ControlRow {
            tree: inner.id,
            applied,
            last_version,
            control: Bytes::copy_from_slice(control),
        };
        // The list and the engine change together, or a flush would count wrongly.
        let mut pending = inner.pending.lock();
        inner.guard("sealing", || inner.engine.seal(row.encode()))?;
        let bytes = inner.active_bytes.swap(0, Ordering::AcqRel);
        let position = Position {
            applied,
            last_version,
        };
        pending.push_back(PendingSeal { position, bytes });
        Ok(Sealed {
            tree: inner.id,
            applied,
            bytes,
        })
    }

    /// Ends a checkpoint: makes the sealed memtable, and those sealed before it, durable. The mark
    /// returned is to be recorded in the WAL, which may then be purged up to `mark.applied` (at or
    /// above what was sealed).
    ///
    /// # Errors
    /// After an error no flush of this tree is tried again; the memtables stay readable.
    pub async fn flush(&self, sealed: Sealed) -> Result<Mark, TreeError> {
        assert_eq!(
            sealed.tree, self.inner.id,
            "a memtable is flushed by its own tree"
        );
        let turn = self.inner.flushing.clone().lock_owned().await;
        let inner = self.inner.clone();
        let job = move || {
            let _turn = turn;
            inner.flush()
        };
        self.inner.offload("flushing", job).await
    }

    /// One step of compaction, if one is due. A mark returned is to be recorded in the WAL; it may
    /// be called again until it returns `None`.
    ///
    /// # Errors
    /// `Damaged` when an input cannot be read: the tree must be rebuilt; flushes go on meanwhile.
    pub async fn compact(&self) -> Result<Option<Mark>, TreeError> {
        self.run_compaction(false).await
    }

    /// Compacts everything at once: for a tree just filled, and for tests.
    ///
    /// # Errors
    /// As [`Tree::compact`].
    pub async fn compact_fully(&self) -> Result<Option<Mark>, TreeError> {
        self.run_compaction(true).await
    }

    async fn run_compaction(&self, full: bool) -> Result<Option<Mark>, TreeError> {
        let turn = self.inner.compacting.clone().lock_owned().await;
        let inner = self.inner.clone();
        let job = move || {
            let _turn = turn;
            inner.compact(full)
        };
        self.inner.offload("compacting", job).await
    }

    /// The mark of the durable state as it is now.
    ///
    /// # Errors
    /// A file cannot be read.
    pub async fn mark(&self) -> Result<Mark, TreeError> {
        let inner = self.inner.clone();
        self.inner.offload("listing files", move || inner.mark()).await
    }
}
