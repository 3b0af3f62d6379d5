//! All trees of a node: where they are, what they share, how much memory they take.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::backing::Backing;
use super::checkpoint::Position;
use super::control_row::ControlRow;
use super::engine::Recovered;
use super::error::contain;
use super::tree::{Tree, TreeInner};
use super::{EngineKind, Mark, MemoryDevice, TreeError, TreeId};
use crate::disk::{SharedDisk, offload};
use crate::shard::LogId;

/// How a node stores its trees.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    /// The engine of every tree.
    pub engine: EngineKind,
    /// Memory for blocks read from disk, shared by all trees, in bytes.
    pub cache_bytes: u64,
    /// Memory for what is not durable yet, over all trees, in bytes. Over it,
    /// [`Storage::over_budget`] names the tree to checkpoint.
    pub memtable_budget_bytes: u64,
    /// Table files kept open, over all trees.
    pub open_files_max: usize,
    /// Where [`EngineKind::Memory`] keeps checkpoints; its own when `None`.
    pub memory_device: Option<Arc<MemoryDevice>>,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            cache_bytes: 256 << 20,
            memtable_budget_bytes: 256 << 20,
            open_files_max: 512,
            memory_device: None,
        }
    }
}

/// A tree that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The tree, at its last checkpoint.
    pub tree: Tree,
    /// The control state of that checkpoint; empty before the first.
    pub control: Bytes,
    /// The last log entry it holds; the log is applied again from the one after it.
    pub applied: LogId,
    /// The checkpoint is newer than the mark: the WAL must record [`Tree::mark`] again.
    pub newer_than_mark: bool,
    /// Small files of it that were damaged, and were put back as the mark has them. Nothing was
    /// lost; whoever looks after the disk should know.
    pub healed: Vec<TreeError>,
}

/// The trees of one node.
pub struct Storage {
    pub(super) disk: SharedDisk,
    pub(super) root: PathBuf,
    engine: EngineKind,
    memtable_budget_bytes: u64,
    /// Memory of what is not durable yet, over all trees; each keeps its share of it.
    memtables_bytes: Arc<AtomicU64>,
    pub(super) backing: Backing,
    open: Mutex<BTreeMap<TreeId, Slot>>,
    compactions: tokio::sync::Mutex<()>,
    checkpoints: AtomicU64,
}

/// Invariant: one operation or one open tree per name.
enum Slot {
    Opening,
    Open(Weak<TreeInner>),
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Storage({} in {})", self.engine, self.root.display())
    }
}

/// Keeps a tree's name reserved while it is created, opened or removed.
pub(super) struct Reservation<'a> {
    storage: &'a Storage,
    id: TreeId,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut open = self.storage.open.lock();
        if matches!(open.get(&self.id), Some(Slot::Opening)) {
            open.remove(&self.id);
        }
    }
}

impl Storage {
    /// The trees in `root`, which is created if need be.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn new(disk: SharedDisk, root: PathBuf, config: StorageConfig) -> Result<Arc<Self>, TreeError> {
        let (engine, memtable_budget_bytes) = (config.engine, config.memtable_budget_bytes);
        let backing = Backing::new(config);
        backing.prepare(&*disk, &root)?;
        Ok(Arc::new(Self {
            disk,
            root,
            engine,
            memtable_budget_bytes,
            memtables_bytes: Arc::default(),
            backing,
            open: Mutex::default(),
            compactions: tokio::sync::Mutex::default(),
            checkpoints: AtomicU64::new(0),
        }))
    }

    /// Waits for a turn to compact one of the trees; it ends with the guard. While files are merged
    /// they are there twice: one tree at a time bounds that, and leaves the disk to others.
    pub async fn compaction_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.compactions.lock().await
    }

    /// Counts a checkpoint of one of the trees that is on record.
    pub fn count_checkpoint(&self) {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
    }

    /// Checkpoints of all trees since the start.
    pub fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Relaxed)
    }

    /// The engine of every tree.
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// Creates an empty tree; its name is durable when this returns.
    ///
    /// # Errors
    /// `Exists`: the name was used before, perhaps by a creation that was cut short; take the next generation.
    pub async fn create(&self, id: TreeId) -> Result<Tree, TreeError> {
        let reservation = self.reserve(id)?;
        let (backing, disk, root) = (self.backing.clone(), self.disk.clone(), self.root.clone());
        let create = move || backing.create(&disk, &root, id);
        let recovered = self.run("creating a tree", create).await?;
        Ok(self.register(&reservation, recovered, Position::default()))
    }

    /// Opens a tree, after its raw files have been compared with the mark that the WAL recorded last.
    /// What lies between the tree's last checkpoint and the crash is not there: apply the log again.
    /// For a boot that trusts nothing, [`Tree::sweep`] the tree next.
    ///
    /// # Errors
    /// [`TreeError::sets_tree_aside`] tells whether the tree must be set aside and filled from peers.
    pub async fn open(&self, id: TreeId, mark: Option<&Mark>) -> Result<Opened, TreeError> {
        if let Some(mark) = mark {
            if mark.tree != id {
                return Err(TreeError::invalid(format!("the mark of {} for {id}", mark.tree)));
            }
            if mark.engine != self.engine {
                return Err(TreeError::OtherEngine {
                    tree: id,
                    found: mark.engine,
                });
            }
        }
        let reservation = self.reserve(id)?;
        let (backing, disk, root) = (self.backing.clone(), self.disk.clone(), self.root.clone());
        let owned_mark = mark.cloned();
        let open = move || backing.open(&disk, &root, id, owned_mark.as_ref());
        let recovered = self.run("opening a tree", open).await?;
        let (position, control) = check_control(id, &recovered, mark)?;
        let (version_id, healed) = (recovered.version_id, recovered.healed.clone());
        Ok(Opened {
            control,
            healed,
            applied: position.applied,
            newer_than_mark: mark.map_or(version_id > 0, |mark| version_id > mark.version_id),
            tree: self.register(&reservation, recovered, position),
        })
    }

    /// Deletes a tree's folder, for ever. Close the tree, and drop its views, before.
    ///
    /// # Errors
    /// `InUse` while a handle or view is open; `Missing` when there is none.
    pub async fn remove(&self, id: TreeId) -> Result<(), TreeError> {
        let _reservation = self.reserve(id)?;
        let (backing, disk, root) = (self.backing.clone(), self.disk.clone(), self.root.clone());
        let remove = move || backing.remove(&*disk, &root, id);
        self.run("removing a tree", remove).await
    }

    /// Every tree there is a folder of, complete or not. Names of other things are left out.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<TreeId>, TreeError> {
        self.backing.list(&*self.disk, &self.root)
    }

    /// Memory of what is not durable yet, over all trees.
    pub fn memtable_bytes(&self) -> u64 {
        self.memtables_bytes.load(Ordering::Relaxed)
    }

    /// The bound on it.
    pub fn memtable_budget_bytes(&self) -> u64 {
        self.memtable_budget_bytes
    }

    /// The tree to checkpoint next: the one with the largest memtable, while the budget is exceeded.
    pub fn over_budget(&self) -> Option<TreeId> {
        // Every replica asks twice a second: only then are there many to look at.
        if self.memtable_bytes() <= self.memtable_budget_bytes {
            return None;
        }
        let trees = self.open_trees();
        let largest = trees.iter().map(|tree| (tree.memtable_bytes(), tree.id())).max();
        largest.map(|(_, id)| id)
    }

    /// Bytes on disk, over the open trees.
    pub fn disk_bytes(&self) -> u64 {
        self.open_trees().iter().map(Tree::disk_bytes).sum()
    }

    fn open_trees(&self) -> Vec<Tree> {
        let open = self.open.lock();
        let alive = open.values().filter_map(|slot| match slot {
            Slot::Open(tree) => tree.upgrade(),
            Slot::Opening => None,
        });
        alive.map(Tree::from_inner).collect()
    }

    pub(super) fn reserve(&self, id: TreeId) -> Result<Reservation<'_>, TreeError> {
        let mut open = self.open.lock();
        match open.get(&id) {
            Some(Slot::Opening) => return Err(TreeError::InUse { tree: id }),
            Some(Slot::Open(tree)) if tree.strong_count() > 0 => return Err(TreeError::InUse { tree: id }),
            _ => open.insert(id, Slot::Opening),
        };
        Ok(Reservation { storage: self, id })
    }

    fn register(&self, reservation: &Reservation<'_>, recovered: Recovered, position: Position) -> Tree {
        let id = reservation.id;
        let inner = TreeInner::new(
            id,
            self.engine,
            recovered.engine,
            self.disk.clone(),
            position,
            self.memtables_bytes.clone(),
        );
        inner.engine.begin_entry(position.last_version);
        let inner = Arc::new(inner);
        self.open.lock().insert(id, Slot::Open(Arc::downgrade(&inner)));
        Tree::from_inner(inner)
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        job: impl FnOnce() -> Result<T, TreeError> + Send + 'static,
    ) -> Result<T, TreeError> {
        let contained = offload(&*self.disk, move || contain(doing, job)).await;
        Ok(contained.map_err(|error| TreeError::io(doing, &error))??)
    }
}

/// The tree's own word on what it holds, which must not be older than the mark.
fn check_control(
    id: TreeId,
    recovered: &Recovered,
    mark: Option<&Mark>,
) -> Result<(Position, Bytes), TreeError> {
    let row = match &recovered.control {
        Some(row) => ControlRow::decode(id, row)?,
        None => ControlRow {
            tree: id,
            applied: LogId::default(),
            last_version: 0,
            control: Bytes::new(),
        },
    };
    if recovered.highest_version > row.last_version {
        let position = format!(
            "rows up to version {}, control {}",
            recovered.highest_version, row.last_version
        );
        return Err(TreeError::damaged("control row", position));
    }
    let ControlRow {
        applied,
        last_version,
        control,
        ..
    } = row;
    if let Some(mark) = mark
        && (applied < mark.applied || last_version < mark.last_version)
    {
        let position = format!("is at {applied}, recorded was {}", mark.applied);
        return Err(TreeError::damaged("control row", position));
    }
    Ok((
        Position {
            applied,
            last_version,
        },
        control,
    ))
}
