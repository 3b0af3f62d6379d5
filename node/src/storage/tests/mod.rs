//! What every tree keeps to, whatever its engine.
#![allow(clippy::disallowed_methods)] // tests copy and damage folders

/// Runs each test of a suite for each engine, on a bench of its own.
macro_rules! for_every_engine {
    ($($test:ident),* $(,)?) => {
        mod lsm { $( #[tokio::test] async fn $test() { super::$test(super::Bench::new(super::EngineKind::Lsm)).await } )* }
        mod memory { $( #[tokio::test] async fn $test() { super::$test(super::Bench::new(super::EngineKind::Memory)).await } )* }
        mod sled { $( #[tokio::test] async fn $test() { super::$test(super::Bench::new(super::EngineKind::Sled)).await } )* }
    };
}

mod checkpoints;
mod contract;
mod damage;
mod faults;
mod model;
mod put_back;
mod salvage;
mod scrub;
mod spans;
mod together;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{
    Digest, EngineKind, Expired, Lookup, Mark, MemoryDevice, Opened, Page, Storage, StorageConfig,
    StoredRecord, Tree, TreeError, TreeId,
};
use crate::disk::RealDisk;
use crate::shard::LogId;

pub(super) const ID: TreeId = TreeId {
    shard_id: 12,
    replica_id: 3,
    generation: 1,
};

/// A node's storage that can be made to stop.
pub(super) struct Bench {
    pub engine: EngineKind,
    pub storage: Arc<Storage>,
    device: Arc<MemoryDevice>,
    root: tempfile::TempDir,
    boots: u32,
}

impl Bench {
    pub fn new(engine: EngineKind) -> Self {
        let (device, root) = (Arc::new(MemoryDevice::default()), tempfile::tempdir().unwrap());
        let storage = open_storage(engine, root.path().join("0"), &device);
        Self {
            engine,
            storage,
            device,
            root,
            boots: 0,
        }
    }

    fn trees(&self) -> PathBuf {
        self.root.path().join(self.boots.to_string())
    }

    pub fn folder(&self) -> PathBuf {
        self.trees().join(ID.to_string())
    }

    /// The node dies and starts again: files are what they are at this moment, memory is gone.
    pub fn crash(&mut self) {
        let before = self.trees();
        self.boots += 1;
        if before.exists() {
            copy_folder(&before, &self.trees());
        }
        self.device.crash();
        self.storage = open_storage(self.engine, self.trees(), &self.device);
    }

    /// The node stops cleanly and starts again.
    pub async fn restart(&mut self, tree: Tree) {
        tree.close().await.unwrap();
        self.storage = open_storage(self.engine, self.trees(), &self.device);
    }

    pub async fn reopen(&self, mark: Option<&Mark>) -> Result<Opened, TreeError> {
        self.storage.open(ID, mark).await
    }
}

fn open_storage(engine: EngineKind, root: PathBuf, device: &Arc<MemoryDevice>) -> Arc<Storage> {
    let config = StorageConfig {
        engine,
        memory_device: Some(device.clone()),
        cache_bytes: 1 << 20,
        memtable_budget_bytes: 64 << 10,
        ..StorageConfig::default()
    };
    Storage::new(Arc::new(RealDisk), root, config).unwrap()
}

pub(super) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(super) fn record(key: &str, version: u64, value: Option<&str>) -> StoredRecord {
    StoredRecord {
        key: Bytes::copy_from_slice(key.as_bytes()),
        version,
        value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        client_crc: crc32fast::hash(value.unwrap_or_default().as_bytes()),
        logged_time_ms: 1_000 + version,
        expires_at_ms: 0,
    }
}

/// Applies one entry: each effect takes the next version.
pub(super) fn apply(tree: &Tree, effects: &[(&str, Option<&str>)]) {
    let first = tree.visible() + 1;
    let last = tree.visible() + effects.len() as u64;
    tree.begin_entry(last);
    for (version, (key, value)) in (first..).zip(effects) {
        tree.insert(&record(key, version, *value)).unwrap();
    }
    tree.publish(last);
}

pub(super) async fn checkpoint(tree: &Tree, index: u64) -> Mark {
    let sealed = tree
        .seal(format!("control {index}").as_bytes(), LogId::new(1, index))
        .unwrap();
    tree.flush(sealed).await.unwrap()
}

/// The value of a key in a lookup, `None` when it is absent.
pub(super) fn value(lookup: Lookup) -> Option<String> {
    match lookup {
        Lookup::Value(record) => {
            let value = record.value.expect("a live record has a value");
            Some(String::from_utf8(value.to_vec()).unwrap())
        }
        Lookup::Absent { .. } => None,
        Lookup::Unproven(error) => panic!("unproven: {error}"),
    }
}

pub(super) fn get(tree: &Tree, key: &str) -> Option<String> {
    value(tree.view().get(key.as_bytes()))
}
