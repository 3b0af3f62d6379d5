//! openraft's own storage suite over our log and state machine.
//!
//! All cases run in one WAL, each on a replica of its own. While they run, a neighbour in the same
//! WAL appends, truncates, purges, votes and records marks at random from a seed. In the end the
//! neighbour must hold what its model says, and every replica must have after a power cut what it
//! had before.
//!
//! No case is left out. Three things that the suite expects of a state machine are otherwise in a
//! node; [`Machine`] completes them by the shortest way that is still true:
//!
//! - A node makes checkpoints apart from openraft, and the snapshot builder only says how far the
//!   last one goes. The suite wants a builder to take in what was just applied: here it makes the
//!   checkpoint first.
//! - What openraft gets as a snapshot is a view, which the sender streams and the receiver fills a tree
//!   from, before openraft sees it as `Incoming`. The suite hands the sender's snapshot straight to
//!   the receiver: here it is copied into a new tree, as the receiver does.
//! - The control state insists that no committed entry is skipped, which Raft promises; the case
//!   `last_applied_state` applies entries 3 and 5 only. Blank ones are put in between.
//!
//! What the suite does not reach: it applies no normal entries (it cannot make any) and knows no
//! failing disk.

#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reelkv_proto::v1;

use super::codec::RaftStoredMembership;
use super::state_machine::CheckpointReporter;
use super::{
    LogStore, RaftEntry, RaftLogId, Refill, ReplicaStore, SnapshotData, StateMachine, StoreParts, TypeConfig,
};
use crate::clock::SimClock;
use crate::disk::sim::SimDisk;
use crate::disk::{RealDisk, SharedDisk};
use crate::health::Health;
use crate::shard::{Control, LogId};
use crate::storage::{EngineKind, Storage, StorageConfig};
use crate::wal::{EntryKind, GroupId, Identity, Recovery, Vote, Wal, WalConfig, WalEntry, WalGroup};

type StorageError = openraft::StorageError<TypeConfig>;
type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

const WAL_DIR: &str = "/data/wal";
const NEIGHBOUR: GroupId = GroupId {
    shard_id: 8,
    replica_id: 1,
};

async fn open_wal(disk: &SimDisk) -> (Wal, Recovery) {
    let config = WalConfig {
        segment_bytes: 64 << 10,
        tail_cache_bytes: 4 << 10,
        idle_mark_ms: 5,
    };
    let who = Identity {
        cluster_id: [1; 16],
        node_id: 1,
    };
    Wal::open(disk.mount(), PathBuf::from(WAL_DIR), config, who)
        .await
        .expect("the log opens")
}

/// A state machine with the node's part of making and taking snapshots.
struct Machine(StateMachine);

/// Makes a checkpoint, then says how far it goes.
struct Checkpointer {
    store: Arc<ReplicaStore>,
    reporter: CheckpointReporter,
}

impl RaftSnapshotBuilder<TypeConfig> for Checkpointer {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.store.checkpoint().await?;
        self.reporter.build_snapshot().await
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Checkpointer;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        self.0.applied_state().await
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut applied = self.0.store().with_control(Control::applied);
        let without_gaps = entries.flat_map(move |next| stream::iter(fill_gap(&mut applied, next)));
        self.0.apply(without_gaps).await
    }

    async fn get_snapshot_builder(&mut self) -> Checkpointer {
        Checkpointer {
            store: self.0.store().clone(),
            reporter: self.0.get_snapshot_builder().await,
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let SnapshotData::Outgoing { view, control } = snapshot else {
            return self.0.install_snapshot(meta, snapshot).await;
        };
        let store = self.0.store();
        let applied = control.applied().expect("a snapshot stands at an entry");
        let tree = store
            .storage()
            .create(store.next_tree())
            .await
            .map_err(io::Error::other)?;
        let mut start = Some(Bytes::new());
        while let Some(from) = start {
            let page = view.scan_all(&from, usize::MAX).map_err(io::Error::other)?;
            page.records
                .iter()
                .try_for_each(|record| tree.insert(record))
                .map_err(io::Error::other)?;
            start = page.resume;
        }
        let sealed = tree
            .seal(&control.encode().encode_to_vec(), applied)
            .map_err(io::Error::other)?;
        let mark = tree.flush(sealed).await.map_err(io::Error::other)?;
        let incoming = SnapshotData::Incoming(Box::new(Refill {
            tree,
            control: *control,
            mark,
        }));
        self.0.install_snapshot(meta, incoming).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.0.get_current_snapshot().await
    }
}

/// An entry, after blank ones in the place of those that the suite left out before it.
fn fill_gap(
    applied: &mut Option<LogId>,
    next: io::Result<EntryResponder<TypeConfig>>,
) -> Vec<io::Result<EntryResponder<TypeConfig>>> {
    let Ok((entry, _)) = &next else { return vec![next] };
    let log_id = entry.log_id;
    let left_out = applied.map_or(log_id.index, |applied| applied.index + 1)..log_id.index;
    *applied = Some(log_id.into());
    let blank = |index| {
        Ok((
            RaftEntry::new_blank(RaftLogId::new(log_id.leader_id, index)),
            None,
        ))
    };
    left_out.map(blank).chain([next]).collect()
}

/// Makes a new replica in the one WAL for every case.
struct Builder {
    wal: Wal,
    storage: Arc<Storage>,
    health: Arc<Health>,
    built: AtomicU64,
}

impl StoreBuilder<TypeConfig, LogStore, Machine> for Arc<Builder> {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError> {
        let replica_id = self.built.fetch_add(1, Ordering::Relaxed) + 1;
        let id = GroupId {
            shard_id: 7,
            replica_id,
        };
        let group = self.wal.birth(id, Bytes::new()).await.expect("a new id is free");
        let descriptor = v1::ShardDescriptor {
            shard_id: id.shard_id,
            ..Default::default()
        };
        let birth = v1::CreateReplicaRequest {
            birth: Some(Control::birth_of(&descriptor, 1)),
            descriptor: Some(descriptor),
            replica_id,
            initialize: true,
        };
        let (storage, health) = (self.storage.clone(), self.health.clone());
        let parts = StoreParts {
            group: group.clone(),
            id,
            storage,
            health,
        };
        let store = ReplicaStore::open(parts, &birth)
            .await
            .expect("a new store opens");
        Ok((
            (),
            LogStore::new(group, None),
            Machine(StateMachine::new(store, None)),
        ))
    }
}

/// What a replica's log holds, read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    committed: Option<LogId>,
    mark: Option<Bytes>,
    entries: Vec<(LogId, EntryKind, Bytes)>,
}

impl Content {
    async fn of(group: &WalGroup) -> Self {
        let entries = group
            .read(0, u64::MAX, usize::MAX)
            .await
            .expect("every entry is readable");
        Self {
            vote: group.vote(),
            purged: group.purged(),
            last: group.last(),
            committed: group.committed(),
            mark: group.mark(),
            entries: entries
                .into_iter()
                .map(|entry| (entry.log_id, entry.kind, entry.payload))
                .collect(),
        }
    }

    /// Some cases begin at entry 1 or 2, which openraft itself never does: the log rightly reports the
    /// first ones as lost when it is opened again.
    fn has_hole(&self) -> bool {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        self.entries
            .iter()
            .zip(first..)
            .any(|((log_id, ..), expected)| log_id.index != expected)
    }
}

/// The other replica of the WAL, and what it must hold.
struct Neighbour {
    group: WalGroup,
    rng: SmallRng,
    entries: BTreeMap<u64, (LogId, Bytes)>,
    expected: Content,
    term: u64,
    next: u64,
    steps: u64,
}

impl Neighbour {
    fn new(group: WalGroup, seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            group,
            rng,
            entries: BTreeMap::new(),
            expected: Content::default(),
            term: 1,
            next: 0,
            steps: 0,
        }
    }

    async fn run(mut self, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Ordering::Relaxed) {
            self.step().await;
            self.steps += 1;
            if self.steps.is_multiple_of(50) {
                self.check().await;
            }
            tokio::time::sleep(Duration::from_micros(self.rng.random_range(0..800))).await;
        }
        self
    }

    async fn check(&mut self) {
        let entries = self
            .entries
            .values()
            .map(|(log_id, payload)| (*log_id, EntryKind::Normal, payload.clone()));
        self.expected.entries = entries.collect();
        self.expected.last = self
            .entries
            .values()
            .next_back()
            .map(|(log_id, _)| *log_id)
            .or(self.expected.purged);
        assert_eq!(
            Content::of(&self.group).await,
            self.expected,
            "the neighbour at step {}",
            self.steps
        );
    }

    async fn step(&mut self) {
        let kept: Vec<LogId> = self.entries.values().map(|(log_id, _)| *log_id).collect();
        let pick = (!kept.is_empty()).then(|| kept[self.rng.random_range(0..kept.len())]);
        match (self.rng.random_range(0..20), pick) {
            (0, _) => {
                self.term += 1;
                let vote = Vote {
                    term: self.term,
                    voted_for: 3,
                    committed: self.rng.random(),
                };
                self.group.save_vote(vote).await.expect("the log accepts");
                self.expected.vote = Some(vote);
            }
            (1, _) => {
                let mark = self.payload();
                self.group.put_mark(mark.clone()).await.expect("the log accepts");
                self.expected.mark = Some(mark);
            }
            (2, Some(last)) if self.expected.committed < Some(last) => {
                self.group.truncate_after(Some(last)).expect("the log accepts");
                self.entries.split_off(&(last.index + 1));
                self.next = last.index + 1;
                self.term += 1; // what takes the place of the cut comes from another leader
            }
            (3, Some(upto)) => {
                self.group.save_committed(upto).expect("the log accepts");
                self.expected.committed = self.expected.committed.max(Some(upto));
                self.group.purge(upto).expect("the log accepts");
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.expected.purged = Some(upto);
            }
            _ => self.append().await,
        }
    }

    fn payload(&mut self) -> Bytes {
        let len = self.rng.random_range(0..2_000);
        (0..len).map(|_| self.rng.random::<u8>()).collect()
    }

    async fn append(&mut self) {
        let mut batch = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let (log_id, payload) = (LogId::new(self.term, self.next), self.payload());
            self.next += 1;
            self.entries.insert(log_id.index, (log_id, payload.clone()));
            batch.push(WalEntry {
                log_id,
                kind: EntryKind::Normal,
                payload,
            });
        }
        let (sender, durable) = tokio::sync::oneshot::channel();
        let told = move |result: io::Result<()>| {
            result.expect("the log accepts");
            let _ = sender.send(()); // not always waited for
        };
        self.group.append(batch, Box::new(told)).expect("the log accepts");
        if self.rng.random() {
            durable.await.expect("told");
        }
    }
}

/// The whole suite on one engine.
async fn run_suite(engine: EngineKind, seed: u64) {
    let disk = SimDisk::new(seed);
    let (wal, _) = open_wal(&disk).await;
    let folder = tempfile::tempdir().expect("a folder for trees");
    let config = StorageConfig {
        engine,
        ..StorageConfig::default()
    };
    let trees_disk: SharedDisk = match engine {
        EngineKind::Memory => disk.mount(),
        _ => Arc::new(RealDisk),
    };
    let storage = Storage::new(trees_disk, folder.path().to_owned(), config).expect("a new folder");
    let health = Arc::new(Health::new(Arc::new(SimClock::new(seed))));
    let builder = Arc::new(Builder {
        wal: wal.clone(),
        storage,
        health: health.clone(),
        built: AtomicU64::new(0),
    });

    let stop = Arc::new(AtomicBool::new(false));
    let group = wal
        .birth(NEIGHBOUR, Bytes::new())
        .await
        .expect("a new id is free");
    let neighbour = tokio::spawn(Neighbour::new(group, seed).run(stop.clone()));
    Suite::test_all(builder.clone())
        .await
        .unwrap_or_else(|error| panic!("{engine:?}, seed {seed}: {error}"));
    stop.store(true, Ordering::Relaxed);
    let mut neighbour = neighbour
        .await
        .unwrap_or_else(|error| panic!("{engine:?}, seed {seed}: {error}"));
    neighbour.check().await;

    assert!(
        builder.built.load(Ordering::Relaxed) >= 46,
        "the suite ran its cases"
    );
    assert!(
        neighbour.steps > 1_000,
        "the neighbour was busy meanwhile: {} steps",
        neighbour.steps
    );
    assert!(neighbour.expected.purged.is_some() && neighbour.expected.vote.is_some());
    assert_eq!(health.open_count(), 0, "{:?}", health.events());
    survives_a_power_cut(&disk, wal, seed).await;
}

/// Everything that was written before the log was closed is there after a power cut.
async fn survives_a_power_cut(disk: &SimDisk, wal: Wal, seed: u64) {
    let mut before = BTreeMap::new();
    for id in wal.groups() {
        let group = wal.group(id).expect("it lives");
        before.insert(id, Content::of(&group).await);
    }
    assert!(before.len() > 46);
    wal.close().await;
    disk.crash(seed);
    let (wal, recovery) = open_wal(disk).await;
    let damaged: BTreeSet<GroupId> = recovery.damage.iter().filter_map(|damage| damage.group).collect();
    let holed = before
        .iter()
        .filter(|(_, content)| content.has_hole())
        .map(|(id, _)| *id);
    assert_eq!(damaged, holed.collect(), "{:?}", recovery.damage);
    for (id, expected) in before {
        let group = wal
            .group(id)
            .unwrap_or_else(|| panic!("{id} is gone after the power cut"));
        assert_eq!(Content::of(&group).await, expected, "{id} after the power cut");
    }
}

#[tokio::test(start_paused = true)]
async fn openraft_suite_with_a_busy_neighbour_in_the_same_wal_memory_engine() {
    for seed in 0..4 {
        run_suite(EngineKind::Memory, seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn openraft_suite_with_a_busy_neighbour_in_the_same_wal_lsm_engine() {
    run_suite(EngineKind::Lsm, 4).await;
}
