//! One replica's tree: writes, checkpoints and what surrounds an engine.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::checkpoint::{PendingSeal, Position};
use super::engine::Engine;
use super::error::{Contained, contain};
use super::view::View;
use super::views::Views;
use super::{EngineKind, StoredRecord, TreeError, TreeId};
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

/// Invariants: `visible <= begun`, equal between entries; seals are flushed in order; `durable`
/// is never ahead of what the engine made durable.
pub(crate) struct TreeInner {
    pub id: TreeId,
    pub kind: EngineKind,
    pub engine: Box<dyn Engine>,
    pub views: Views,
    disk: SharedDisk,
    pub(super) begun: AtomicU64,
    pub(super) active_bytes: AtomicU64,
    /// Memory of what is not durable yet, over all trees of the node.
    pub(super) memtables_bytes: Arc<AtomicU64>,
    pub(super) pending: Mutex<VecDeque<PendingSeal>>,
    pub(super) durable: Mutex<Position>,
    /// Once set, every call returns it.
    broken: OnceLock<TreeError>,
    /// Once set, nothing is made durable any more. A failed flush is never retried.
    pub(super) flush_failed: OnceLock<TreeError>,
    pub(super) flushing: Arc<tokio::sync::Mutex<()>>,
    pub(super) compacting: Arc<tokio::sync::Mutex<()>>,
}

impl TreeInner {
    pub(crate) fn new(
        id: TreeId,
        kind: EngineKind,
        engine: Box<dyn Engine>,
        disk: SharedDisk,
        durable: Position,
        memtables_bytes: Arc<AtomicU64>,
    ) -> Self {
        Self {
            id,
            kind,
            engine,
            views: Views::new(durable.last_version),
            disk,
            begun: AtomicU64::new(durable.last_version),
            active_bytes: AtomicU64::new(0),
            memtables_bytes,
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
}

impl Drop for TreeInner {
    fn drop(&mut self) {
        // What was not flushed is gone, and takes no memory any more.
        let left = self.memtable_bytes();
        self.memtables_bytes.fetch_sub(left, Ordering::Relaxed);
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
        inner.memtables_bytes.fetch_add(bytes, Ordering::Relaxed);
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

    /// Whether the tree was given up, or closed: nothing can be read from it any more.
    pub fn is_broken(&self) -> bool {
        self.inner.broken.get().is_some()
    }

    /// How many views are open.
    pub fn open_views(&self) -> usize {
        self.inner.views.open_count()
    }

    /// The oldest version that can be read; a view below it is refused.
    pub fn floor(&self) -> u64 {
        self.inner.views.floor()
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
