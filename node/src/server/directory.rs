//! The node's copy of the map: shards, nodes, keyspaces. It is what lets a node and its clients
//! read, write and elect while the whole meta shard is down, so it is kept on disk as well.
//!
//! File `directory` (`sealed`): an encoded `Directory`. A damaged file is dropped: the map is learnt
//! again from other nodes.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use reelkv_proto::types::{KeyRange, KeyspaceId, NodeId, ShardId};
use reelkv_proto::v1;

use super::sealed;
use crate::disk::SharedDisk;

/// The node's copy of the directory; a newer version replaces an older one.
pub(super) struct DirectoryCopy {
    disk: SharedDisk,
    path: PathBuf,
    current: RwLock<Arc<v1::Directory>>,
    writing: Mutex<()>,
}

impl DirectoryCopy {
    /// What the disk has, or an empty map.
    pub fn open(disk: SharedDisk, path: PathBuf) -> Self {
        let stored = sealed::load(&*disk, &path).and_then(|content| v1::Directory::decode(&content[..]).ok());
        let directory = stored.unwrap_or_default();
        Self {
            disk,
            path,
            current: RwLock::new(Arc::new(directory)),
            writing: Mutex::new(()),
        }
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
        if let Err(error) = sealed::store(&*self.disk, &self.path, &directory.encode_to_vec()) {
            // The copy in memory serves; after a restart the map is learnt again.
            tracing::warn!(%error, "the directory copy could not be written");
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
    use crate::disk::{RealDisk, read_file, write_file_atomically};

    #[test]
    fn a_newer_map_is_kept_across_restarts_and_an_older_one_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory");
        let open = || DirectoryCopy::open(Arc::new(RealDisk), path.clone());
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
        let open = || DirectoryCopy::open(Arc::new(RealDisk), path.clone());
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
    fn a_damaged_file_is_no_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory");
        DirectoryCopy::open(Arc::new(RealDisk), path.clone()).learn(v1::Directory {
            version: 5,
            replicas: 3,
            ..Default::default()
        });
        let mut bytes = read_file(&RealDisk, &path).unwrap();
        bytes[6] ^= 1;
        write_file_atomically(&RealDisk, &path, &bytes).unwrap();
        assert_eq!(DirectoryCopy::open(Arc::new(RealDisk), path).get().version, 0);
    }

    #[test]
    fn cuts_are_even_and_one_fewer_than_pieces() {
        assert!(even_cuts(1).is_empty());
        assert_eq!(even_cuts(4), [&[64_u8][..], &[128], &[192]]);
    }
}
