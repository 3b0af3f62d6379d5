//! What a replica's record in the log says after a power cut, on simulated disks.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use reelkv_proto::v1;

use super::{AppliedPayload, CheckpointOutcome, ReplicaStore, StoreParts, Trust};
use crate::clock::SimClock;
use crate::disk::sim::SimDisk;
use crate::health::Health;
use crate::shard::{Control, LogId};
use crate::storage::{EngineKind, MemoryDevice, Storage, StorageConfig};
use crate::wal::{GroupId, Identity, Wal, WalConfig};

const ID: GroupId = GroupId {
    shard_id: 7,
    replica_id: 1,
};

/// A machine: its log's disk, and the device of its trees.
struct Machine {
    disk: SimDisk,
    device: Arc<MemoryDevice>,
}

impl Machine {
    fn new() -> Self {
        Self {
            disk: SimDisk::new(1),
            device: Arc::default(),
        }
    }

    async fn boot(&self) -> Arc<ReplicaStore> {
        let who = Identity {
            cluster_id: [1; 16],
            node_id: 1,
        };
        let dir = PathBuf::from("/data/wal");
        let (wal, _) = Wal::open(self.disk.mount(), dir, WalConfig::default(), who)
            .await
            .expect("the log opens");
        let group = match wal.group(ID) {
            Some(group) => group,
            None => wal.birth(ID, Bytes::new()).await.expect("a new id is free"),
        };
        let config = StorageConfig {
            engine: EngineKind::Memory,
            memory_device: Some(self.device.clone()),
            ..StorageConfig::default()
        };
        let parts = StoreParts {
            group,
            id: ID,
            storage: Storage::new(self.disk.mount(), PathBuf::from("/data/trees"), config).expect("a folder"),
            health: Arc::new(Health::new(Arc::new(SimClock::new(1)))),
        };
        let descriptor = v1::ShardDescriptor {
            shard_id: ID.shard_id,
            ..Default::default()
        };
        let birth = v1::CreateReplicaRequest {
            birth: Some(Control::birth_of(&descriptor, 1)),
            descriptor: Some(descriptor),
            replica_id: ID.replica_id,
            initialize: true,
        };
        ReplicaStore::open(parts, &birth).await.expect("the store opens")
    }

    fn cut_power(&self) {
        self.disk.crash(1);
        self.device.crash();
    }
}

async fn apply(store: &ReplicaStore, index: u64) -> LogId {
    let log_id = LogId::new(1, index);
    let applied = store.apply(log_id, AppliedPayload::Blank).await;
    applied.expect("it changes nothing");
    log_id
}

#[tokio::test]
async fn a_tree_ahead_of_its_record_is_on_record_before_raft_starts() {
    let machine = Machine::new();
    let store = machine.boot().await;
    let recorded = apply(&store, 0).await;
    assert_eq!(
        store.checkpoint().await.expect("all is well"),
        CheckpointOutcome::Recorded(recorded)
    );
    let ahead = apply(&store, 1).await;
    machine.disk.fail_syncs_after(0);
    // The tree is flushed; the log cannot say so.
    store.checkpoint().await.expect_err("the log's disk fails");
    assert_eq!(store.checkpointed(), Some(recorded));
    machine.cut_power();

    let store = machine.boot().await;
    assert_eq!(store.trust(), Trust::Trusted);
    assert_eq!(store.with_control(Control::applied), Some(ahead));
    assert_eq!(store.checkpointed(), Some(ahead));
    // And durably so.
    machine.cut_power();
    for tree in machine.device.trees() {
        assert!(machine.device.lose(tree), "{tree} was there");
    }
    let store = machine.boot().await;
    assert_eq!(store.trust(), Trust::Refilling);
    assert_eq!(store.with_control(Control::applied), Some(ahead));
}
