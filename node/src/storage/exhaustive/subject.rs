//! A small tree at rest, and its damaged copies.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::sim::SimDisk;
use crate::disk::{Mode, RealDisk, SharedDisk, read_file};
use crate::shard::LogId;
use crate::storage::{Mark, Storage, StorageConfig, StoredRecord, Tree, TreeError, TreeId};

pub(super) const ID: TreeId = TreeId {
    shard_id: 1,
    replica_id: 2,
    generation: 3,
};
const KEYS: u32 = 72;
/// A damage: which bytes files have instead of their own. `None` is a file that is gone.
pub(super) type Damage<'a> = &'a [(&'a str, Option<Vec<u8>>)];

/// A tree at rest, and what it holds.
pub(super) struct Subject {
    pub mark: Mark,
    pub folder: PathBuf,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Newest records, deleted ones included.
    pub records: BTreeMap<Bytes, StoredRecord>,
}

impl Subject {
    /// Three tables: one compacted, of several blocks, and two flushed ones above it. With another
    /// `text` of the same length, every record is another one, and lies at the same place.
    pub async fn build(root: &Path, text: &str) -> Result<Self, String> {
        let build = async {
            let (disk, config) = (Arc::new(RealDisk), StorageConfig::default());
            let storage = Storage::new(disk, root.to_owned(), config)?;
            let tree = storage.create(ID).await?;
            let mut records = BTreeMap::new();
            let mut round = Round {
                tree: &tree,
                text,
                records: &mut records,
            };
            round.write(1)?;
            checkpoint(&tree, 1).await?;
            tree.compact_fully().await?;
            round.write(4)?;
            checkpoint(&tree, 2).await?;
            round.write(7)?;
            let mark = checkpoint(&tree, 3).await?;
            tree.close().await?;
            let folder = root.join(ID.to_string());
            let mut files = BTreeMap::new();
            for file in &mark.files {
                let bytes = read_file(&RealDisk, &folder.join(&file.name));
                let bytes = bytes.map_err(|error| TreeError::io("reading a table", &error))?;
                files.insert(file.name.clone(), bytes);
            }
            Ok::<_, TreeError>(Self {
                mark,
                folder,
                files,
                records,
            })
        };
        build.await.map_err(|error| format!("building a tree: {error}"))
    }

    pub fn tables(&self) -> impl Iterator<Item = &str> {
        let names = self.files.keys().map(String::as_str);
        names.filter(|name| name.starts_with("tables/"))
    }

    /// The table with the most blocks.
    pub fn largest(&self) -> &str {
        let largest = self.tables().max_by_key(|table| self.blocks(table).len());
        largest.unwrap_or_default()
    }

    /// Where the data blocks of a table are.
    pub fn blocks(&self, table: &str) -> Vec<Range<usize>> {
        let list = self
            .mark
            .note(table)
            .map(|note| note.stretches.list.clone())
            .unwrap_or_default();
        let mut at = 0;
        list.iter()
            .map(|stretch| {
                let from = at;
                at += stretch.bytes as usize;
                from..at
            })
            .collect()
    }

    /// A device that holds the tree and refuses this share of all reads, in parts per thousand.
    pub fn refusing(&self, per_mille: u32, seed: u64) -> Result<SharedDisk, String> {
        let device = SimDisk::new(seed);
        let disk = self.fill(device.mount(), &[])?;
        device.fail_reads(per_mille);
        Ok(disk)
    }

    /// A device with the tree as it is after a damage.
    pub fn damaged(&self, damage: Damage<'_>) -> Result<SharedDisk, String> {
        self.fill(SimDisk::new(1).mount(), damage)
    }

    fn fill(&self, disk: SharedDisk, damage: Damage<'_>) -> Result<SharedDisk, String> {
        let write = |name: &str, bytes: &[u8]| {
            let file = disk.open(&self.folder.join(name), Mode::CreateNew)?;
            file.write_at(0, bytes)
        };
        let fill = || {
            disk.create_dir_all(&self.folder.join("tables"))?;
            for (name, bytes) in &self.files {
                match damage.iter().find(|(damaged, _)| damaged == name) {
                    None => write(name, bytes)?,
                    Some((_, Some(bytes))) => write(name, bytes)?,
                    Some((_, None)) => {}
                }
            }
            std::io::Result::Ok(())
        };
        fill().map_err(|error| format!("the simulated disk: {error}"))?;
        Ok(disk)
    }
}

struct Round<'a> {
    tree: &'a Tree,
    text: &'a str,
    records: &'a mut BTreeMap<Bytes, StoredRecord>,
}

impl Round<'_> {
    /// Writes every `step`th key, and deletes some of them when it is not the first round.
    fn write(&mut self, step: u32) -> Result<(), TreeError> {
        for key in (0..KEYS).step_by(step as usize) {
            let version = self.tree.visible() + 1;
            let value = format!("{}-{version}-{}", self.text, "v".repeat(60));
            let deleted = step > 1 && key % 5 == 0;
            let record = StoredRecord {
                key: format!("key{key:04}").into(),
                version,
                value: (!deleted).then(|| value.clone().into()),
                client_crc: crc32fast::hash(value.as_bytes()),
                logged_time_ms: version,
                expires_at_ms: 0,
            };
            self.tree.begin_entry(version);
            self.tree.insert(&record)?;
            self.tree.publish(version);
            self.records.insert(record.key.clone(), record);
        }
        Ok(())
    }
}

async fn checkpoint(tree: &Tree, index: u64) -> Result<Mark, TreeError> {
    let sealed = tree.seal(b"control", LogId::new(1, index))?;
    tree.flush(sealed).await
}
