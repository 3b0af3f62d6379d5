//! Folders of trees, by engine. Calls block.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::engine::{Recovered, Remains};
use super::{EngineKind, Mark, MemoryDevice, StorageConfig, TreeError, TreeId, lsm, table};
use crate::disk::{Disk, SharedDisk};

/// An engine, and what its trees share.
#[derive(Clone)]
pub(crate) enum Backing {
    Lsm(lsm::Shared),
    Memory(Arc<MemoryDevice>),
    Sled,
}

impl Backing {
    pub(crate) fn new(config: StorageConfig) -> Self {
        match config.engine {
            EngineKind::Lsm => Self::Lsm(lsm::Shared::new(config.cache_bytes, config.open_files_max)),
            EngineKind::Memory => Self::Memory(config.memory_device.unwrap_or_default()),
            EngineKind::Sled => Self::Sled,
        }
    }

    /// Makes the directory of trees.
    pub(crate) fn prepare(&self, disk: &dyn Disk, root: &Path) -> Result<(), TreeError> {
        if matches!(self, Self::Memory(_)) {
            return Ok(());
        }
        let made = disk.create_dir_all(root).and_then(|()| {
            disk.sync_dir(root)?;
            root.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
        });
        made.map_err(|error| TreeError::io("creating the directory of trees", &error))
    }

    pub(crate) fn create(&self, disk: &SharedDisk, root: &Path, id: TreeId) -> Result<Recovered, TreeError> {
        let folder = root.join(id.to_string());
        match self {
            Self::Memory(device) => device.create(id),
            Self::Lsm(shared) => {
                create_folder(&**disk, root, &folder, id)?;
                lsm::create(disk, &folder, shared)
            }
            Self::Sled => {
                create_folder(&**disk, root, &folder, id)?;
                table::sled::create(disk, &folder, id)
            }
        }
    }

    pub(crate) fn open(
        &self,
        disk: &SharedDisk,
        root: &Path,
        id: TreeId,
        mark: Option<&Mark>,
    ) -> Result<Recovered, TreeError> {
        let folder = root.join(id.to_string());
        match self {
            Self::Lsm(shared) => lsm::open(disk, &folder, shared, id, mark),
            Self::Memory(device) => device.open(id, mark),
            Self::Sled => table::sled::open(disk, &folder, id, mark),
        }
    }

    /// What can still be read of the tree of a mark, without opening it.
    pub(crate) fn remains(
        &self,
        disk: &dyn Disk,
        root: &Path,
        mark: &Mark,
    ) -> Result<Box<dyn Remains>, TreeError> {
        match self {
            Self::Lsm(_) => {
                let folder = root.join(mark.tree.to_string());
                Ok(Box::new(lsm::salvage(disk, &folder, mark)?))
            }
            Self::Memory(_) | Self::Sled => Err(TreeError::NotSalvageable { tree: mark.tree }),
        }
    }

    pub(crate) fn remove(&self, disk: &dyn Disk, root: &Path, id: TreeId) -> Result<(), TreeError> {
        if let Self::Memory(device) = self {
            return device.remove(id);
        }
        let remove = || -> io::Result<bool> {
            let folder = root.join(id.to_string());
            let exists = disk.exists(&folder)?;
            if exists {
                disk.remove_dir_all(&folder)?;
                disk.sync_dir(root)?;
            }
            Ok(exists)
        };
        match remove() {
            Ok(true) => Ok(()),
            Ok(false) => Err(TreeError::Missing { tree: id }),
            Err(error) => Err(TreeError::io("removing a tree", &error)),
        }
    }

    pub(crate) fn list(&self, disk: &dyn Disk, root: &Path) -> Result<Vec<TreeId>, TreeError> {
        if let Self::Memory(device) = self {
            return Ok(device.trees());
        }
        let entries = disk.list(root);
        let entries = entries.map_err(|error| TreeError::unreadable("the directory of trees", &error))?;
        let mut ids: Vec<TreeId> = entries
            .iter()
            .filter_map(|entry| entry.name.parse().ok())
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }
}

fn create_folder(disk: &dyn Disk, root: &Path, folder: &Path, id: TreeId) -> Result<(), TreeError> {
    let io = |error: io::Error| TreeError::io("creating a tree", &error);
    if disk.exists(folder).map_err(io)? {
        return Err(TreeError::Exists { tree: id });
    }
    disk.create_dir_all(folder).map_err(io)?;
    disk.sync_dir(root).map_err(io)
}
