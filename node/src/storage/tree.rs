//! One replica's tree: writes, checkpoints and what surrounds an engine.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::engine::Engine;
use super::error::{Contained, contain};
use super::mark::ControlRow;
use super::view::View;
use super::views::Views;
use super::{EngineKind, Mark, StoredRecord, TreeError, TreeId};
use crate::disk::{SharedDisk, offload};
use crate::shard::LogId;

/// Versions stay below this, so that an engine may shift them by 20 bits.
pub(crate) const VERSION_LIMIT: u64 = 1 << 43;
/// Longest stored key, in bytes: the longest user key, its keyspace, and room for encodings.
const KEY_BYTES_MAX: usize = 32 << 10;

/// A handle on one replica's tree; clones are handles on the same one.
///
/// One task writes: for each log entry [`Tree::begin_entry`], [`Tree::insert`] of its effects in order,
/// [`Tree::publish`]; between entries, [`Tree::seal`]. Any task reads. Reads and inserts take
/// microseconds, but may wait some milliseconds while an engine syncs its list of files.
#[derive(Clone)]
pub struct Tree {
    pub(crate) inner: Arc<TreeInner>,
}

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

struct PendingSeal {
    position: Position,
    bytes: u64,
}

/// Invariants: `visible <= begun`, equal between entries; seals are flushed in order; `durable`
/// is never ahead of what the engine made durable.
pub(crate) struct TreeInner {
    pub id: TreeId,
    pub kind: EngineKind,
    pub engine: Box<dyn Engine>,
    pub views: Views,
    disk: SharedDisk,
    begun: AtomicU64,
    active_bytes: AtomicU64,
    pending: Mutex<VecDeque<PendingSeal>>,
    durable: Mutex<Position>,
    /// Once set, every call returns it.
    broken: OnceLock<TreeError>,
    /// Once set, nothing is made durable any more. A failed flush is never retried.
    flush_failed: OnceLock<TreeError>,
    flushing: Arc<tokio::sync::Mutex<()>>,
    compacting: Arc<tokio::sync::Mutex<()>>,
}

impl TreeInner {
    pub(crate) fn new(
        id: TreeId,
        kind: EngineKind,
        engine: Box<dyn Engine>,
        disk: SharedDisk,
        durable: Position,
    ) -> Self {
        Self {
            id,
            kind,
            engine,
            views: Views::new(durable.last_version),
            disk,
            begun: AtomicU64::new(durable.last_version),
            active_bytes: AtomicU64::new(0),
            pending: Mutex::default(),
            durable: Mutex::new(durable),
            broken: OnceLock::new(),
            flush_failed: OnceLock::new(),
            flushing: Arc::default(),
            compacting: Arc::default(),
        }
    }

    /// Runs a call into the engine. A panic breaks the tree.
    pub(crate) fn guard<T>(
        &self,
        doing: &str,
        job: impl FnOnce() -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        if let Some(error) = self.broken.get() {
            return Err(error.clone());
        }
        contain(doing, job).map_err(|contained| {
            if let Contained::Panicked(error) = &contained {
                tracing::error!(tree = %self.id, %error, "tree given up");
                self.broken.get_or_init(|| error.clone());
            }
            contained.into()
        })
    }

    pub(crate) async fn offload<T: Send + 'static>(
        &self,
        doing: &str,
        job: impl FnOnce() -> Result<T, TreeError> + Send + 'static,
    ) -> Result<T, TreeError> {
        let done = offload(&*self.disk, job).await;
        done.map_err(|error| TreeError::io(doing, &error))?
    }

    fn memtable_bytes(&self) -> u64 {
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
        }
        Ok(())
    }

    fn compact(&self, full: bool) -> Result<Option<Mark>, TreeError> {
        let oldest_view = self.views.raise_floor();
        let changed = self.guard("compacting", || self.engine.compact(oldest_view, full))?;
        changed.then(|| self.mark()).transpose()
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
        })
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({})", self.inner.id)
    }
}

impl Tree {
    pub(crate) fn from_inner(inner: Arc<TreeInner>) -> Self {
        Self { inner }
    }

    /// The tree's name.
    pub fn id(&self) -> TreeId {
        self.inner.id
    }

    /// Announces an entry by its last effect's version, before its first insert.
    ///
    /// A tree that is being filled announces the version it is filled at, publishes it, and
    /// inserts records of that version or below: each key's in rising order, all of them before
    /// the first entry.
    pub fn begin_entry(&self, last_version: u64) {
        assert!(last_version < VERSION_LIMIT, "out of versions");
        self.inner.engine.begin_entry(last_version);
        self.inner.begun.fetch_max(last_version, Ordering::AcqRel);
    }

    /// Adds one effect. Versions of a key rise; the caller sees to it.
    ///
    /// # Errors
    /// The tree is broken or closed, or the record cannot be stored by any tree.
    pub fn insert(&self, record: &StoredRecord) -> Result<(), TreeError> {
        let inner = &self.inner;
        if record.key.len() > KEY_BYTES_MAX {
            return Err(TreeError::invalid("a stored key is too long"));
        }
        let begun = inner.begun.load(Ordering::Acquire);
        if record.version == 0 || record.version > begun {
            return Err(TreeError::invalid(format!(
                "version {} in an entry up to {begun}",
                record.version
            )));
        }
        let row = record.encode();
        let bytes = inner.guard("inserting", || {
            inner.engine.insert(&record.key, record.version, row)
        })?;
        inner.active_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes an entry visible, after its last insert.
    pub fn publish(&self, version: u64) {
        assert!(
            version <= self.inner.begun.load(Ordering::Acquire),
            "an entry is announced before it is published"
        );
        self.inner.views.publish(version);
    }

    /// The newest visible version.
    pub fn visible(&self) -> u64 {
        self.inner.views.visible()
    }

    /// Opens a view at the visible version.
    pub fn view(&self) -> View {
        View::opened(self.clone(), self.inner.views.open_newest())
    }

    /// Opens a view at an older version.
    ///
    /// # Errors
    /// `BelowFloor` when that state is not whole any more, `NotVisible` when it does not exist yet.
    pub fn view_at(&self, version: u64) -> Result<View, TreeError> {
        self.inner.views.open_at(version)?;
        Ok(View::opened(self.clone(), version))
    }

    /// How many views are open.
    pub fn open_views(&self) -> usize {
        self.inner.views.open_count()
    }

    /// The oldest version that can be read; a view below it is refused.
    pub fn floor(&self) -> u64 {
        self.inner.views.floor()
    }

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
            control: bytes::Bytes::copy_from_slice(control),
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

    /// The last log entry that is durable in the tree.
    pub fn durable(&self) -> LogId {
        self.inner.durable.lock().applied
    }

    /// Memory of what is not durable yet. (Old memtables that open views hold are not counted: a
    /// checkpoint does not free them.)
    pub fn memtable_bytes(&self) -> u64 {
        self.inner.memtable_bytes()
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        let bytes = self
            .inner
            .guard("measuring", || Ok(self.inner.engine.disk_bytes()));
        bytes.unwrap_or(0)
    }

    /// A clean stop, after running flushes and compactions. What was not flushed is dropped.
    ///
    /// # Errors
    /// The engine could not stop cleanly; what it had made durable before still is.
    pub async fn close(self) -> Result<(), TreeError> {
        let _flushing = self.inner.flushing.clone().lock_owned().await;
        let _compacting = self.inner.compacting.clone().lock_owned().await;
        let inner = self.inner.clone();
        let job = move || {
            let closed = inner.guard("closing", || inner.engine.close());
            inner.broken.get_or_init(|| TreeError::Closed);
            closed
        };
        self.inner.offload("closing", job).await
    }
}
