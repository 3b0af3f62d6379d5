//! The node's copy of the map: shards, nodes, keyspaces. It is what lets a node and its clients
//! read, write and elect while the whole meta shard is down, so it is kept on disk as well.
//!
//! File `directory` (`sealed`): an encoded `Directory`. A damaged file is dropped: the map is learnt
//! again from other nodes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use reelkv_proto::types::{KeyRange, KeyspaceId, NodeId, ShardId};
use reelkv_proto::v1;

use super::node::Past;
use super::sealed;
use crate::disk::SharedDisk;
use crate::health::{Action, Damage, Health, KeptFile, Kind, Structure};

/// The node's copy of the directory; a newer version replaces an older one.
pub(super) struct DirectoryCopy {
    file: Arc<KeptFile>,
    /// The version that was found at the start; `None`: nothing that could be read, which was told.
    found_version: Option<u64>,
    /// The version that is on the disk for certain.
    written_version: AtomicU64,
    current: RwLock<Arc<v1::Directory>>,
    writing: Mutex<()>,
}

impl DirectoryCopy {
    /// What the disk has, or an empty map: a damaged copy is told, and learnt again from the others.
    pub fn open(disk: SharedDisk, path: PathBuf, health: &Health, past: Past) -> Self {
        let missing = || (Kind::Missing, "the file is missing".to_owned());
        let mut copy = Self::fresh(disk.clone(), path.clone());
        let loaded = sealed::load(&*disk, &path).and_then(|content| match content {
            Some(content) => {
                copy.file.found(&sealed::seal(&content));
                v1::Directory::decode(&content[..]).map_err(|error| (Kind::Checksum, error.to_string()))
            }
            // A member has it before it has its number.
            None if past == Past::Recorded => Err(missing()),
            None => Ok(v1::Directory::default()),
        });
        copy.found_version = loaded.as_ref().ok().map(|directory| directory.version);
        let directory = loaded.unwrap_or_else(|(kind, what)| {
            let damage = Damage::of_node(Structure::Directory, kind, Action::Relearn, what);
            health.repaired_at_once(damage);
            v1::Directory::default()
        });
        copy.written_version = AtomicU64::new(directory.version);
        *copy.current.write() = Arc::new(directory);
        copy
    }

    /// An empty map, whatever the disk has.
    pub fn fresh(disk: SharedDisk, path: PathBuf) -> Self {
        Self {
            file: Arc::new(KeptFile::new(disk, path)),
            found_version: None,
            written_version: AtomicU64::new(0),
            current: RwLock::default(),
            writing: Mutex::new(()),
        }
    }

    /// The file it is kept in.
    pub fn file(&self) -> &Arc<KeptFile> {
        &self.file
    }

    /// The version that was found at the start, if it could be read.
    pub fn found_version(&self) -> Option<u64> {
        self.found_version
    }

    /// The version that is on the disk for certain.
    pub fn written_version(&self) -> u64 {
        self.written_version.load(Ordering::Acquire)
    }

    /// The map as known now.
    pub fn get(&self) -> Arc<v1::Directory> {
        self.current.read().clone()
    }

    /// Takes a newer map. An older or equal one changes nothing, but for the plan of a cluster
    /// that is being made: it has version 0 and is taken where there is nothing.
    pub fn learn(&self, directory: v1::Directory) {
        let _one_writer = self.writing.lock();
        let known = self.get();
        let first = known.shards.is_empty() && !directory.shards.is_empty();
        if directory.version <= known.version && !first {
            return;
        }
        match self.file.write(&sealed::seal(&directory.encode_to_vec())) {
            Ok(()) => self.written_version.store(directory.version, Ordering::Release),
            // The copy in memory serves; after a restart the map is learnt again.
            Err(error) => tracing::warn!(%error, "the directory copy could not be written"),
        }
        *self.current.write() = Arc::new(directory);
    }
}

/// The shard that holds a stored key.
pub(super) fn shard_of<'a>(directory: &'a v1::Directory, key: &[u8]) -> Option<&'a v1::ShardDescriptor> {
    directory
        .shards
        .iter()
        .find(|shard| KeyRange::of(shard).contains(key))
}

/// A shard by number.
pub(super) fn shard(directory: &v1::Directory, id: ShardId) -> Option<&v1::ShardDescriptor> {
    directory.shards.iter().find(|shard| shard.shard_id == id)
}

/// A node by number.
pub(super) fn node(directory: &v1::Directory, id: NodeId) -> Option<&v1::NodeDescriptor> {
    directory.nodes.iter().find(|node| node.node_id == id)
}

/// A keyspace by name.
pub(super) fn keyspace(directory: &v1::Directory, name: &str) -> Option<KeyspaceId> {
    directory
        .keyspaces
        .iter()
        .find(|keyspace| keyspace.name == name)
        .map(|keyspace| keyspace.keyspace_id)
}

/// Evenly spread points of the first key byte: `pieces - 1` cuts.
pub(super) fn even_cuts(pieces: u32) -> Vec<Bytes> {
    let pieces = pieces.clamp(1, 256);
    (1..pieces)
        .map(|piece| Bytes::copy_from_slice(&[(piece * 256 / pieces) as u8]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::disk::{Disk, RealDisk, read_file, write_file_atomically};

    /// A member's copy, and the kinds of damage that were told of it, all made good.
    fn opened(path: &std::path::Path) -> (DirectoryCopy, Vec<String>) {
        let health = Health::new(Arc::new(SystemClock));
        let copy = DirectoryCopy::open(Arc::new(RealDisk), path.to_owned(), &health, Past::Recorded);
        assert_eq!(health.open_count(), 0, "{:?}", health.events());
        let told = health.events().into_iter().map(|event| event.kind);
        (copy, told.collect())
    }

    #[test]
    fn a_newer_map_is_kept_across_restarts_and_an_older_one_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory");
        let open = || opened(&path).0;
        let copy = open();
        copy.learn(v1::Directory {
            version: 5,
            replicas: 3,
            ..Default::default()
        });
        copy.learn(v1::Directory {
            version: 4,
            replicas: 1,
            ..Default::default()
        });
        assert_eq!((copy.get().version, copy.get().replicas), (5, 3));
        assert_eq!(*open().get(), *copy.get());
    }

    #[test]
    fn a_plan_is_taken_where_there_is_nothing_and_gives_way_to_the_first_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory");
        let open = || opened(&path).0;
        let map = |version, replicas| v1::Directory {
            version,
            replicas,
            shards: vec![v1::ShardDescriptor::default()],
            ..Default::default()
        };
        open().learn(map(0, 3));
        assert_eq!(open().get().replicas, 3);
        open().learn(map(0, 5));
        assert_eq!(open().get().replicas, 3);
        open().learn(map(1, 5));
        open().learn(map(0, 3));
        assert_eq!(open().get().replicas, 5);
    }

    #[test]
    fn a_damaged_file_is_no_map_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory");
        opened(&path).0.learn(v1::Directory {
            version: 5,
            replicas: 3,
            ..Default::default()
        });
        let (whole, told) = opened(&path);
        assert_eq!((whole.get().version, told), (5, vec![]));
        let mut bytes = read_file(&RealDisk, &path).unwrap();
        bytes[6] ^= 1;
        write_file_atomically(&RealDisk, &path, &bytes).unwrap();
        let (copy, told) = opened(&path);
        assert_eq!((copy.get().version, told), (0, vec!["checksum".to_owned()]));
        RealDisk.remove_file(&path).unwrap();
        let (copy, told) = opened(&path);
        assert_eq!((copy.get().version, told), (0, vec!["missing".to_owned()]));
    }

    #[test]
    fn cuts_are_even_and_one_fewer_than_pieces() {
        assert!(even_cuts(1).is_empty());
        assert_eq!(even_cuts(4), [&[64_u8][..], &[128], &[192]]);
    }
}
