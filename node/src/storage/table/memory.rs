//! A device in memory, which outlives a simulated crash of its node.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{Change, Rows, Store, Table, TableEngine, flip_a_bit, up_to};
use crate::mutants::Mutant;
use crate::storage::engine::Recovered;
use crate::storage::{Mark, StoredRecord, TreeError, TreeId};

/// What a simulated node's trees have checkpointed. The simulator holds it across crashes of the node.
#[derive(Default)]
pub struct MemoryDevice {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Rises at every crash; what was opened before it can write nothing.
    boot: u64,
    folders: BTreeMap<TreeId, Folder>,
}

#[derive(Default)]
struct Folder {
    rows: Rows,
    control: Option<Bytes>,
    version_id: u64,
    open: Weak<RwLock<Table>>,
    /// Rows of a checkpoint that reach the device with the next one (a mutant's).
    late: Rows,
}

/// A tree as it once was on its device.
#[derive(Clone, Debug)]
pub struct OldTree {
    id: TreeId,
    rows: Rows,
    control: Option<Bytes>,
    version_id: u64,
}

impl fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(
            f,
            "MemoryDevice(boot {}, {} trees)",
            state.boot,
            state.folders.len()
        )
    }
}

impl MemoryDevice {
    /// The node dies: every tree is at its last checkpoint, and handles opened before can write nothing.
    pub fn crash(&self) {
        let mut state = self.state.lock();
        state.boot += 1;
        for folder in state.folders.values_mut() {
            folder.open = Weak::new();
            folder.late.clear();
        }
    }

    /// Another device with the same checkpoints.
    pub fn copy(&self) -> Self {
        let mut copy = State::default();
        for (id, folder) in &self.state.lock().folders {
            let folder = Folder {
                rows: folder.rows.clone(),
                control: folder.control.clone(),
                version_id: folder.version_id,
                ..Folder::default()
            };
            copy.folders.insert(*id, folder);
        }
        Self {
            state: Mutex::new(copy),
        }
    }

    /// Trees on the device.
    pub fn trees(&self) -> Vec<TreeId> {
        self.state.lock().folders.keys().copied().collect()
    }

    /// Flips a bit in a checkpointed record, on the device and in the open tree. `pick` chooses it.
    /// Returns its key; `None` when the tree has no checkpointed record.
    pub fn damage_record(&self, tree: TreeId, pick: u64) -> Option<Bytes> {
        let mut state = self.state.lock();
        let folder = state.folders.get_mut(&tree)?;
        let place = pick.checked_rem(folder.rows.len() as u64)? as usize;
        let (key, row) = folder.rows.iter_mut().nth(place)?;
        *row = flip_a_bit(row);
        if let Some(table) = folder.open.upgrade() {
            table.write().damage(key);
        }
        Some(key.clone())
    }

    /// Loses a checkpointed record without a trace, on the device and in the open tree. `pick`
    /// chooses it. Returns its key; `None` when the tree has no checkpointed record.
    pub fn forget_record(&self, tree: TreeId, pick: u64) -> Option<Bytes> {
        let mut state = self.state.lock();
        let folder = state.folders.get_mut(&tree)?;
        let place = pick.checked_rem(folder.rows.len() as u64)? as usize;
        let key = folder.rows.keys().nth(place)?.clone();
        folder.rows.remove(&key);
        if let Some(table) = folder.open.upgrade() {
            table.write().forget(&key);
        }
        Some(key)
    }

    /// Loses a tree altogether. Returns whether there was one.
    pub fn lose(&self, tree: TreeId) -> bool {
        self.state.lock().folders.remove(&tree).is_some()
    }

    /// What a tree has checkpointed, to be put back later; `None` when there is no such tree.
    pub fn copy_of(&self, tree: TreeId) -> Option<OldTree> {
        let state = self.state.lock();
        let folder = state.folders.get(&tree)?;
        Some(OldTree {
            id: tree,
            rows: folder.rows.clone(),
            control: folder.control.clone(),
            version_id: folder.version_id,
        })
    }

    /// A tree is again what it was, as when an old copy of its folder is put back. Its node is off.
    /// Returns false when there is no such tree any more.
    pub fn put_back(&self, old: OldTree) -> bool {
        let mut state = self.state.lock();
        let Some(folder) = state.folders.get_mut(&old.id) else {
            return false;
        };
        folder.rows = old.rows;
        folder.control = old.control;
        folder.version_id = old.version_id;
        true
    }

    /// Empties a tree, as an engine does that loses all of it and opens all the same. Its node is off.
    /// Returns false when there is no such tree.
    pub fn empty(&self, tree: TreeId) -> bool {
        self.put_back(OldTree {
            id: tree,
            rows: Rows::new(),
            control: None,
            version_id: 0,
        })
    }

    pub(crate) fn create(self: &Arc<Self>, id: TreeId) -> Result<Recovered, TreeError> {
        let mut state = self.state.lock();
        if state.folders.contains_key(&id) {
            return Err(TreeError::Exists { tree: id });
        }
        let table = Arc::default();
        let open = Arc::downgrade(&table);
        state.folders.insert(
            id,
            Folder {
                open,
                ..Folder::default()
            },
        );
        let folder = OpenFolder {
            device: self.clone(),
            boot: state.boot,
            id,
        };
        drop(state);
        Ok(TableEngine::recovered(table, folder, None))
    }

    pub(crate) fn open(self: &Arc<Self>, id: TreeId, mark: Option<&Mark>) -> Result<Recovered, TreeError> {
        let mut state = self.state.lock();
        let boot = state.boot;
        let folder = state
            .folders
            .get_mut(&id)
            .ok_or(TreeError::Missing { tree: id })?;
        if let Some(mark) = mark.filter(|mark| folder.version_id < mark.version_id) {
            let position = format!("is at {}, recorded was {}", folder.version_id, mark.version_id);
            return Err(TreeError::damaged("folder", position));
        }
        let table = Arc::new(RwLock::new(Table::load(folder.rows.clone())));
        folder.open = Arc::downgrade(&table);
        let control = folder.control.clone();
        drop(state);
        Ok(TableEngine::recovered(
            table,
            OpenFolder {
                device: self.clone(),
                boot,
                id,
            },
            control,
        ))
    }

    pub(crate) fn remove(&self, id: TreeId) -> Result<(), TreeError> {
        self.lose(id).then_some(()).ok_or(TreeError::Missing { tree: id })
    }
}

struct OpenFolder {
    device: Arc<MemoryDevice>,
    boot: u64,
    id: TreeId,
}

impl OpenFolder {
    fn with<T>(&self, job: impl FnOnce(&mut Folder) -> T) -> Result<T, TreeError> {
        let mut state = self.device.state.lock();
        if state.boot != self.boot {
            return Err(TreeError::Closed);
        }
        let folder = state.folders.get_mut(&self.id).ok_or(TreeError::Closed)?;
        Ok(job(folder))
    }
}

impl Store for OpenFolder {
    fn write(&self, mut change: Change) -> Result<(), TreeError> {
        if Mutant::TombstoneDroppedEarly.is_on() {
            change.rows.retain(|_, row| !StoredRecord::may_be_deleted(row));
            change.dropped.clear();
        }
        self.with(|folder| {
            if Mutant::CheckpointNotAtomic.is_on() && change.control.is_some() {
                std::mem::swap(&mut folder.late, &mut change.rows);
            }
            folder.rows.extend(change.rows);
            for key in change.dropped {
                folder.rows.remove(&key);
            }
            folder.control = change.control.or(folder.control.take());
            folder.version_id += 1;
        })
    }

    fn version_id(&self) -> u64 {
        self.with(|folder| folder.version_id).unwrap_or(0)
    }

    fn kept(&self, after: Option<&Bytes>, max_bytes: u64) -> Result<Vec<(Bytes, Bytes)>, TreeError> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(&after[..]));
        self.with(|folder| {
            let range = folder.rows.range::<[u8], _>((from, Bound::Unbounded));
            up_to(max_bytes, range.map(|(key, row)| (key.clone(), row.clone())))
        })
    }

    fn disk_bytes(&self) -> u64 {
        let bytes = |(key, row): (&Bytes, &Bytes)| (key.len() + row.len()) as u64;
        self.with(|folder| folder.rows.iter().map(bytes).sum())
            .unwrap_or(0)
    }

    fn close(&self) -> Result<(), TreeError> {
        Ok(())
    }
}
