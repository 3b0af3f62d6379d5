//! What a replica's record in the log says after a power cut, on simulated disks.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1;

use super::{AppliedPayload, CheckpointOutcome, ReplicaStore, StoreParts, Trust};
use crate::clock::SimClock;
use crate::disk::sim::SimDisk;
use crate::health::Health;
use crate::shard::{Control, LogId, Spans};
use crate::storage::{EngineKind, Lookup, MemoryDevice, Storage, StorageConfig};
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

/// Applies an entry that writes one record, whose version is the entry's index.
async fn put(store: &ReplicaStore, index: u64, key: &'static [u8]) {
    let effect = v1::Effect {
        kind: Some(v1::effect::Kind::Put(v1::PutEffect {
            key: Bytes::from_static(key),
            value: Bytes::from(index.to_string()),
            ..Default::default()
        })),
    };
    let body = v1::EntryBody {
        first_version: index,
        range_version: store.with_control(|control| control.encode().range_version),
        term: 1,
        logged_time_ms: 1_000,
        effects: vec![effect],
        executions: Vec::new(),
    };
    let applied = store.apply(LogId::new(1, index), AppliedPayload::Normal(&body));
    applied.await.expect("a put is known");
}

/// What the store answers of a key; `None` when it proves nothing.
fn answer(store: &ReplicaStore, key: &[u8]) -> Option<Option<Bytes>> {
    let (view, _) = store.view_of_key(key)?;
    match view.get(key) {
        Lookup::Value(record) => Some(record.value),
        Lookup::Absent { .. } => Some(None),
        Lookup::Unproven(_) => None,
    }
}

fn only(key: &[u8]) -> Spans {
    Spans::from(KeyRange::new(key.to_vec(), [key, &[0]].concat()))
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
    assert_eq!(
        store.parts.storage.checkpoints(),
        1,
        "one of the two is on record"
    );
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

/// An entry that writes a lost key holds all of its record: it proves the key, and the checkpoint that
/// holds it puts that on record. Until then a restart has to apply it again.
#[tokio::test]
async fn a_lost_key_is_proven_by_the_entry_that_writes_it_again() {
    let machine = Machine::new();
    let store = machine.boot().await;
    put(&store, 1, b"kept").await;
    put(&store, 2, b"lost").await;
    store.checkpoint().await.expect("all is well");
    let lost = only(b"lost");
    assert!(store.distrust(0, &lost, 2).await.expect("it is on record"));
    assert_eq!(store.trust(), Trust::Repairing);
    put(&store, 3, b"kept").await;
    assert_eq!(answer(&store, b"lost"), None);

    put(&store, 4, b"lost").await;
    assert_eq!(answer(&store, b"lost"), Some(Some(Bytes::from("4"))));
    assert_eq!(
        (store.trust(), store.unproven()),
        (Trust::Trusted, Spans::default())
    );
    // On record it is with the tree that holds it, whatever else is recorded before.
    store.record_trust().await.expect("all is well");
    machine.cut_power();
    let store = machine.boot().await;
    assert_eq!((answer(&store, b"lost"), store.unproven()), (None, lost));
    put(&store, 3, b"kept").await;
    assert_eq!(answer(&store, b"lost"), None);
    put(&store, 4, b"lost").await;
    store.checkpoint().await.expect("all is well");
    machine.cut_power();
    let store = machine.boot().await;
    assert_eq!(store.trust(), Trust::Trusted);
    assert_eq!(answer(&store, b"lost"), Some(Some(Bytes::from("4"))));
}

/// What most voters hold differently is in doubt again, also when it was written since.
#[tokio::test]
async fn a_key_written_again_can_be_doubted_again() {
    let store = Machine::new().boot().await;
    put(&store, 1, b"lost").await;
    store.checkpoint().await.expect("all is well");
    let lost = only(b"lost");
    assert!(store.distrust(0, &lost, 1).await.expect("it is on record"));
    put(&store, 2, b"lost").await;
    assert_eq!(store.trust(), Trust::Trusted);
    assert!(store.distrust(0, &lost, 2).await.expect("it is on record"));
    assert_eq!((store.trust(), store.unproven()), (Trust::Repairing, lost));
    assert_eq!(answer(&store, b"lost"), None);
}

/// While bad files are in the tree, nobody knows that a read of the key will not meet them.
#[tokio::test]
async fn a_key_written_into_a_tree_with_bad_files_stays_unproven() {
    let machine = Machine::new();
    let store = machine.boot().await;
    put(&store, 1, b"lost").await;
    store.checkpoint().await.expect("all is well");
    let tree = store.tree().expect("there is one");
    let bad = machine.device.damage_record(tree.id(), 0);
    assert_eq!(bad.as_deref(), Some(&b"lost"[..]));
    let report = tree.sweep().await.expect("it can be read");
    store.inspected(&tree, &report).await.expect("it is on record");
    assert!(store.is_worn() && store.unproven().contains(b"lost"));
    put(&store, 2, b"lost").await;
    assert_eq!(answer(&store, b"lost"), None);
    assert_eq!(store.trust(), Trust::Repairing);
}
