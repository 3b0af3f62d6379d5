//! Which replicas may become their shard's only voter, and what is then in the log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use prost::Message;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::*;
use crate::clock::SystemClock;
use crate::disk::{Disk, RealDisk, read_file, write_file_atomically};
use crate::raft::transport::{Transport, TransportError, ViewStream};
use crate::raft::{AppliedPayload, Doubts, ReplicaMark, ReplicaStore, StoreParts};
use crate::shard::{Control, LogId};
use crate::storage::{Storage, StorageConfig};
use crate::wal::{EntryKind, GroupId, WalEntry};

const IDENTITY: Identity = Identity {
    cluster_id: [7; 16],
    node_id: 1,
};
const ID: GroupId = GroupId {
    shard_id: 5,
    replica_id: 1,
};

/// What the other nodes answer, by address; the others are silent.
#[derive(Clone, Default)]
struct Others(BTreeMap<String, (v1::NodeStatus, v1::WatermarksMessage)>);

impl Transport for Others {
    fn call(
        &self,
        addr: &str,
        request: v1::PeerRequest,
        _: std::time::Duration,
    ) -> BoxFuture<'static, Result<v1::PeerResponse, TransportError>> {
        let answer = self.0.get(addr).map(|(status, memory)| v1::PeerResponse {
            body: Some(match request.body {
                Some(peer_request::Body::Status(_)) => {
                    peer_response::Body::Status(status.encode_to_vec().into())
                }
                _ => peer_response::Body::Watermarks(memory.clone()),
            }),
            ..Default::default()
        });
        let silent = TransportError::Unreachable {
            addr: addr.to_owned(),
            reason: "connection refused".to_owned(),
        };
        async move { answer.ok_or(silent) }.boxed()
    }

    fn fetch_view(
        &self,
        addr: &str,
        _: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<ViewStream, TransportError>> {
        let addr = addr.to_owned();
        async move {
            Err(TransportError::Unreachable {
                addr,
                reason: "no view".to_owned(),
            })
        }
        .boxed()
    }
}

/// Replica `node` of the shard runs there, up to this entry.
fn runs(node: u64, state: &str, last: LogId) -> (String, (v1::NodeStatus, v1::WatermarksMessage)) {
    let status = v1::NodeStatus {
        node: Some(v1::NodeDescriptor {
            node_id: node,
            ..Default::default()
        }),
        replicas: vec![v1::ReplicaStatus {
            shard_id: ID.shard_id,
            replica_id: node,
            state: state.to_owned(),
            term: last.term,
            last_log_term: last.term,
            last_log_index: last.index,
            ..Default::default()
        }],
        ..Default::default()
    };
    (format!("n{node}:1"), (status, v1::WatermarksMessage::default()))
}

fn birth() -> v1::CreateReplicaRequest {
    let replica = |id| v1::ReplicaDescriptor {
        replica_id: id,
        node_id: id,
        ..Default::default()
    };
    let descriptor = v1::ShardDescriptor {
        shard_id: ID.shard_id,
        replicas: (1..=5).map(replica).collect(),
        ..Default::default()
    };
    v1::CreateReplicaRequest {
        birth: Some(Control::birth_of(&descriptor, 1)),
        descriptor: Some(descriptor),
        replica_id: ID.replica_id,
        ..Default::default()
    }
}

fn membership(voters: &[u64]) -> v1::Membership {
    let member = |id| v1::Member {
        replica_id: id,
        node_id: id,
        addr: format!("n{id}:1"),
    };
    v1::Membership {
        configs: vec![v1::membership::ReplicaIds {
            replica_ids: voters.to_vec(),
        }],
        members: (1..=5).map(member).collect(),
    }
}

fn put(version: u64) -> v1::EntryBody {
    v1::EntryBody {
        first_version: version,
        range_version: 1,
        term: 2,
        logged_time_ms: 1_000,
        effects: vec![v1::Effect {
            kind: Some(v1::effect::Kind::Put(v1::PutEffect {
                key: format!("key {version}").into(),
                value: vec![b'v'; 300].into(),
                ..Default::default()
            })),
        }],
        executions: Vec::new(),
    }
}

const PUTS: u64 = 20;

fn entries(voters: &[u64]) -> Vec<WalEntry> {
    let mut entries = vec![WalEntry {
        log_id: LogId::new(0, 0),
        kind: EntryKind::Membership,
        payload: membership(voters).encode_to_vec().into(),
    }];
    entries.extend((1..=PUTS).map(|version| WalEntry {
        log_id: LogId::new(2, version),
        kind: EntryKind::Normal,
        payload: put(version).encode_to_vec().into(),
    }));
    entries
}

fn last() -> LogId {
    LogId::new(2, PUTS)
}

/// A node's directory, after its node was stopped.
struct Stopped {
    dir: tempfile::TempDir,
}

impl Stopped {
    async fn new(voters: &[u64]) -> Self {
        let stopped = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        identity::store(&RealDisk, stopped.path(), &IDENTITY).unwrap();
        let wal = stopped.wal().await;
        let group = wal.birth(ID, birth().encode_to_vec().into()).await.unwrap();
        let (done, durable) = oneshot::channel();
        let tell = Box::new(|result| done.send(result).unwrap());
        group.append(entries(voters), tell).unwrap();
        durable.await.unwrap().unwrap();
        // Its batch says that the one before, with the entries, was durable.
        let vote = Vote {
            term: 2,
            voted_for: 3,
            committed: true,
        };
        group.save_vote(vote).await.unwrap();
        wal.close().await;
        stopped
    }

    /// The same with a tree at an entry in the middle.
    async fn with_tree(voters: &[u64]) -> Self {
        let stopped = Self::new(voters).await;
        let wal = stopped.wal().await;
        let parts = StoreParts {
            group: wal.group(ID).unwrap(),
            id: ID,
            storage: Storage::new(
                Arc::new(RealDisk),
                stopped.path().join("trees"),
                StorageConfig::default(),
            )
            .unwrap(),
            health: Arc::new(Health::new(Arc::new(SystemClock))),
        };
        let store = ReplicaStore::open(parts, &birth()).await.unwrap();
        let began = AppliedPayload::Membership(membership(voters));
        store.apply(LogId::new(0, 0), began).await.unwrap();
        for version in 1..=PUTS / 2 {
            let (log_id, body) = (LogId::new(2, version), put(version));
            store.apply(log_id, AppliedPayload::Normal(&body)).await.unwrap();
        }
        store.checkpoint().await.unwrap();
        store.close().await;
        wal.close().await;
        stopped
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn wal(&self) -> Wal {
        let identity = crate::wal::Identity {
            cluster_id: IDENTITY.cluster_id,
            node_id: IDENTITY.node_id,
        };
        let (disk, dir) = (Arc::new(RealDisk), self.path().join("wal"));
        let opened = Wal::open(disk, dir, WalConfig::default(), identity).await;
        opened.unwrap().0
    }

    async fn examine(&self, shard_id: ShardId, others: Option<Others>) -> Result<Examined, Refused> {
        let options = RecoverOptions {
            data_dir: self.path().to_owned(),
            shard_id,
            offline: others.is_none(),
        };
        let transport = Arc::new(others.unwrap_or_default());
        examine(options, Arc::new(RealDisk), Arc::new(SystemClock), transport).await
    }

    async fn refusal(&self, others: Option<Others>) -> String {
        match self.examine(ID.shard_id, others).await {
            Ok(_) => panic!("it was not refused"),
            Err(refused) => {
                let why = refused.to_string();
                assert!(!why.contains('\n'), "{why}");
                why
            }
        }
    }

    /// Every file below the directory but the lock.
    fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let mut contents = BTreeMap::new();
        let mut dirs = vec![self.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in RealDisk.list(&dir).unwrap() {
                let path = dir.join(entry.name);
                match entry.is_dir {
                    true => dirs.push(path),
                    false => {
                        let bytes = read_file(&RealDisk, &path).unwrap();
                        contents.insert(path.display().to_string(), bytes);
                    }
                }
            }
        }
        contents.retain(|path, _| !path.ends_with("LOCK"));
        contents
    }

    /// Flips a bit of the last occurrence of some bytes in any file of a folder; whether there was one.
    fn damage(&self, folder: &str, needle: &[u8]) -> bool {
        let files = self.contents();
        for (path, mut bytes) in files.into_iter().filter(|(path, _)| path.contains(folder)) {
            let found = bytes.windows(needle.len()).rposition(|window| window == needle);
            if let Some(at) = found {
                bytes[at] ^= 0x10;
                write_file_atomically(&RealDisk, Path::new(&path), &bytes).unwrap();
                return true;
            }
        }
        false
    }
}

#[tokio::test]
async fn what_is_examined_is_said_and_not_changed() {
    let stopped = Stopped::with_tree(&[1, 2, 3]).await;
    let before = stopped.contents();
    let examined = stopped
        .examine(ID.shard_id, Some(Others::default()))
        .await
        .unwrap();
    let report = examined.report().clone();
    examined.close().await;
    assert_eq!(
        (report.last, report.checkpoint),
        (Some(last()), Some(LogId::new(2, PUTS / 2)))
    );
    assert_eq!((report.records, report.highest_term), (PUTS / 2, 2));
    assert_eq!(report.lost_nodes().into_iter().collect::<Vec<_>>(), [2, 3]);
    let silent = |voter: &&VoterReport| match &voter.state {
        VoterState::Lost { why } => why.contains("connection refused"),
        _ => false,
    };
    assert_eq!(report.voters.iter().filter(silent).count(), 2, "{report:#?}");
    assert!(stopped.contents() == before, "something was changed");
}

#[tokio::test]
async fn a_recovered_replica_is_the_only_voter_of_all_that_it_had() {
    for with_tree in [false, true] {
        let stopped = match with_tree {
            true => Stopped::with_tree(&[1, 2, 3]).await,
            false => Stopped::new(&[1, 2, 3]).await,
        };
        let before = stopped.wal().await;
        let kept = before
            .group(ID)
            .unwrap()
            .read(0, u64::MAX, usize::MAX)
            .await
            .unwrap();
        before.close().await;
        let examined = stopped.examine(ID.shard_id, None).await.unwrap();
        examined.carry_out().await.unwrap();

        let wal = stopped.wal().await;
        let group = wal.group(ID).unwrap();
        let vote = group.vote().unwrap();
        assert_eq!(
            (vote.term, vote.voted_for, vote.committed),
            (2 + TERMS_SKIPPED, 1, true)
        );
        let log = group.read(0, u64::MAX, usize::MAX).await.unwrap();
        assert_eq!(log[..kept.len()], kept, "what was there is there");
        let alone = &log[kept.len()];
        assert_eq!(alone.log_id, LogId::new(vote.term, last().index + 1));
        let membership = v1::Membership::decode(alone.payload.clone()).unwrap();
        assert_eq!(membership.configs[0].replica_ids, [1]);
        assert_eq!(membership.members.len(), 1);
        assert_eq!(membership.members[0].addr, "n1:1");
        wal.close().await;
        let lost = lost_nodes(&RealDisk, stopped.path()).unwrap();
        assert_eq!(lost.into_iter().collect::<Vec<_>>(), [2, 3]);
        let health = Health::open(
            Arc::new(RealDisk),
            stopped.path().join("events"),
            Arc::new(SystemClock),
            Some(IDENTITY.into()),
        );
        let told = health.events();
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(
            (told[0].structure.as_str(), told[0].shard_id),
            ("quorum", ID.shard_id)
        );
        assert!(told[0].position.contains("replica 2 on node 2"), "{told:#?}");

        let again = stopped.refusal(None).await;
        assert!(again.contains("its only voter already"), "{again}");
    }
}

#[tokio::test]
async fn what_is_no_directory_of_a_stopped_node_is_refused() {
    let empty = Stopped {
        dir: tempfile::tempdir().unwrap(),
    };
    let why = empty.refusal(None).await;
    assert!(why.contains("no node's data directory"), "{why}");
    assert!(empty.contents().is_empty());
    assert!(!empty.path().join("LOCK").exists(), "not even a lock was made");

    let stopped = Stopped::new(&[1, 2, 3]).await;
    let running = crate::disk::Disk::lock_dir(&RealDisk, stopped.path()).unwrap();
    let why = stopped.refusal(None).await;
    assert!(why.contains("stop that node first"), "{why}");
    drop(running);

    let unknown = stopped.examine(9, None).await.err().unwrap().to_string();
    assert!(
        unknown.contains("no replica of shard 9") && unknown.contains("shards here: 5"),
        "{unknown}"
    );

    let mut bytes = read_file(&RealDisk, &stopped.path().join("identity.1")).unwrap();
    bytes[11] = 9;
    let crc = crc32fast::hash(&bytes[..36]).to_be_bytes();
    bytes[36..].copy_from_slice(&crc);
    for copy in ["identity.1", "identity.2"] {
        write_file_atomically(&RealDisk, &stopped.path().join(copy), &bytes).unwrap();
    }
    let why = stopped.refusal(None).await;
    assert!(why.contains("format 9"), "{why}");
    for copy in ["identity.1", "identity.2"] {
        write_file_atomically(&RealDisk, &stopped.path().join(copy), b"junk").unwrap();
    }
    let why = stopped.refusal(None).await;
    assert!(why.contains("cannot be read any more"), "{why}");
}

#[tokio::test]
async fn a_replica_that_may_lack_something_is_refused() {
    let learner = Stopped::new(&[2, 3, 4]).await;
    let why = learner.refusal(None).await;
    assert!(why.contains("it is a learner"), "{why}");

    let alone = Stopped::new(&[1]).await;
    let why = alone.refusal(None).await;
    assert!(why.contains("only voter already"), "{why}");

    let refilling = Stopped::with_tree(&[1, 2, 3]).await;
    let wal = refilling.wal().await;
    let group = wal.group(ID).unwrap();
    let mark = ReplicaMark::decode(group.mark().unwrap()).unwrap();
    let without = ReplicaMark {
        tree: None,
        ..mark.clone()
    };
    group.put_mark(without.encode()).await.unwrap();
    wal.close().await;
    let why = refilling.refusal(None).await;
    assert!(why.contains("not refilled yet"), "{why}");

    let doubted = Stopped::with_tree(&[1, 2, 3]).await;
    let wal = doubted.wal().await;
    let group = wal.group(ID).unwrap();
    let unproven = KeyRange::new("b", "c").into();
    let mark = ReplicaMark::decode(group.mark().unwrap()).unwrap();
    let doubts = Doubts {
        unproven,
        ..Doubts::default()
    };
    group
        .put_mark(ReplicaMark { doubts, ..mark }.encode())
        .await
        .unwrap();
    wal.close().await;
    let why = doubted.refusal(None).await;
    assert!(why.contains("does not prove [b, c)"), "{why}");
}

#[tokio::test]
async fn a_damaged_tree_or_log_is_refused_and_left_as_it_is() {
    let tree = Stopped::with_tree(&[1, 2, 3]).await;
    assert!(tree.damage("/tables/", &[b'v'; 300]), "a table holds a value");
    let before = tree.contents();
    let why = tree.refusal(None).await;
    assert!(why.contains("its tree is not what was recorded"), "{why}");
    assert!(tree.contents() == before, "the damaged tree is kept");

    let log = Stopped::new(&[1, 2, 3]).await;
    let mut records = put(7).encode_to_vec();
    records.truncate(200);
    assert!(log.damage("/wal/", &records), "the log holds an entry");
    let why = log.refusal(None).await;
    assert!(why.contains("cannot be read"), "{why}");
}

#[tokio::test]
async fn a_shard_that_can_help_itself_and_a_replica_that_has_less_are_refused() {
    let stopped = Stopped::new(&[1, 2, 3]).await;
    let there = Others([runs(2, "trusted", last())].into());
    let why = stopped.refusal(Some(there.clone())).await;
    assert!(
        why.contains("2 of its 3 voters are there with this one, which is a majority"),
        "{why}"
    );
    // Asked or not, that is what --offline is for.
    stopped.examine(ID.shard_id, None).await.unwrap().close().await;

    let of_five = Stopped::new(&[1, 2, 3, 4, 5]).await;
    let more = [LogId::new(2, PUTS + 1), LogId::new(3, 4)];
    for last in more {
        let why = of_five
            .refusal(Some(Others([runs(2, "trusted", last)].into())))
            .await;
        assert!(
            why.contains("replica 2 on node 2 has more") && why.contains("recover that one"),
            "{why}"
        );
    }
    let starting = Others([runs(2, "starting", LogId::default())].into());
    let why = of_five.refusal(Some(starting)).await;
    assert!(why.contains("whether it has more cannot be told"), "{why}");
    let no_more = of_five.examine(ID.shard_id, Some(there)).await.unwrap();
    assert_eq!(
        no_more.report().lost_nodes().into_iter().collect::<Vec<_>>(),
        [3, 4, 5]
    );
    no_more.close().await;
}

#[tokio::test]
async fn a_node_that_has_lost_the_replica_is_not_declared_lost_itself() {
    let stopped = Stopped::new(&[1, 2, 3]).await;
    let others = Others([runs(2, "lost", last())].into());
    let examined = stopped.examine(ID.shard_id, Some(others)).await.unwrap();
    let report = examined.report().clone();
    examined.close().await;
    assert_eq!(report.voters[1].state, VoterState::Gone);
    assert_eq!(report.lost_nodes().into_iter().collect::<Vec<_>>(), [3]);
}

#[tokio::test]
async fn an_old_copy_of_a_directory_is_refused() {
    let stopped = Stopped::new(&[1, 2, 3]).await;
    let (addr, (mut status, mut memory)) = runs(2, "lost", last());
    status.replicas.clear();
    memory.watermarks = vec![v1::Watermark {
        node_id: 1,
        wal_batch: 1_000,
    }];
    let others = Others([(addr.clone(), (status.clone(), memory))].into());
    let why = stopped.refusal(Some(others)).await;
    assert!(why.contains("other nodes were shown batch 1000"), "{why}");
    let replaced = v1::WatermarksMessage {
        retired: true,
        ..Default::default()
    };
    let why = stopped
        .refusal(Some(Others([(addr, (status, replaced))].into())))
        .await;
    assert!(why.contains("was replaced by another"), "{why}");
}

/// A power cut in the middle of it leaves torn entries; it can be done again.
#[tokio::test]
async fn entries_that_a_power_cut_tore_are_cut_and_said() {
    let stopped = Stopped::new(&[1, 2, 3]).await;
    let torn = torn_entry(&stopped).await;
    let examined = stopped.examine(ID.shard_id, None).await.unwrap();
    assert_eq!(examined.report().torn, Some((1, torn)));
    assert_eq!(examined.report().last, Some(last()));
    examined.carry_out().await.unwrap();
    let wal = stopped.wal().await;
    let group = wal.group(ID).unwrap();
    assert!(group.faulty().is_empty());
    let next = group.log_id(last().index + 1).unwrap();
    assert_eq!(next.term, 2 + TERMS_SKIPPED, "the torn entry's place is taken");
    wal.close().await;
}

/// One more entry, in a batch that nothing says was durable, and that cannot be read.
async fn torn_entry(stopped: &Stopped) -> LogId {
    let identity = crate::wal::Identity {
        cluster_id: IDENTITY.cluster_id,
        node_id: IDENTITY.node_id,
    };
    let config = WalConfig {
        // Closed before it would be idle: the last batch is not marked synced.
        idle_mark_ms: 60_000,
        ..WalConfig::default()
    };
    let dir = stopped.path().join("wal");
    let (wal, _) = Wal::open(Arc::new(RealDisk), dir, config, identity)
        .await
        .unwrap();
    let log_id = LogId::new(2, last().index + 1);
    let payload = Bytes::from(vec![b't'; 5_000]);
    let (done, durable) = oneshot::channel();
    let entry = WalEntry {
        log_id,
        kind: EntryKind::Normal,
        payload: payload.clone(),
    };
    let tell = Box::new(|result| done.send(result).unwrap());
    wal.group(ID).unwrap().append(vec![entry], tell).unwrap();
    durable.await.unwrap().unwrap();
    wal.close().await;
    assert!(stopped.damage("/wal/", &payload), "the log holds the entry");
    log_id
}
