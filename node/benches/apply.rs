//! A write's way through a shard without log and network: evaluated and encoded by the leader, decoded
//! by a follower, applied by all. Throughput: effects (puts); an entry has 1 or 64 of them.

#![allow(clippy::disallowed_methods)] // what is measured is real time

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use reelkv::clock::SystemClock;
use reelkv::health::Health;
use reelkv::raft::{AppliedPayload, EntryOutcome, ReplicaStore, StoreParts};
use reelkv::shard::{
    Applied, Command, Control, Evaluation, Evaluator, LogId, Write, WriteKind, WriteOperation,
};
use reelkv::storage::{Storage, StorageConfig};
use reelkv::wal::{GroupId, Identity, Wal, WalConfig};
use reelkv_proto::v1;
use tokio::runtime::Runtime;

mod common;

const TERM: u64 = 1;
const TIME_MS: u64 = 1_218_412_800_123;
const ID: GroupId = GroupId {
    shard_id: 2,
    replica_id: 1,
};
/// The writer of all puts, opened by the first entry.
const WRITER: v1::Incarnation = v1::Incarnation {
    shard_id: ID.shard_id,
    version: 1,
};
/// Effects per entry: a lonely client's, and what a busy shard's proposer gathers.
const ENTRY_EFFECTS: [u64; 2] = [1, 64];

fn main() {
    let mut criterion = common::criterion();
    evaluate(&mut criterion);
    codec(&mut criterion);
    control(&mut criterion);
    store(&mut criterion, &common::runtime());
    criterion.final_summary();
}

fn evaluate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply/evaluate");
    for effects in ENTRY_EFFECTS {
        group.throughput(Throughput::Elements(effects));
        group.bench_function(BenchmarkId::from_parameter(effects), |bencher| {
            let applied = opened();
            let writes: Vec<Write> = (1..=effects).map(write).collect();
            let routine = |mut evaluator: Evaluator| {
                evaluator.tell_time(Some(TIME_MS));
                for write in &writes {
                    let evaluation = evaluator.evaluate(black_box(write), &[], &applied);
                    assert!(matches!(evaluation, Evaluation::Proposed(_)), "{evaluation:?}");
                }
                evaluator.take_entry().expect("it has effects")
            };
            let setup = || Evaluator::new(&applied, TERM);
            bencher.iter_batched(setup, routine, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply/command");
    for effects in ENTRY_EFFECTS {
        group.throughput(Throughput::Elements(effects));
        let body = puts(2, effects);
        let encoded = Command::new(body.clone()).encoded().clone();
        group.bench_function(BenchmarkId::new("encode", effects), |bencher| {
            bencher.iter_batched(|| body.clone(), Command::new, BatchSize::SmallInput);
        });
        group.bench_function(BenchmarkId::new("decode", effects), |bencher| {
            bencher.iter(|| Command::decode(black_box(encoded.clone())).expect("it was encoded above"));
        });
    }
    group.finish();
}

/// The control state alone: numbers, range, tokens.
fn control(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply/control");
    for effects in ENTRY_EFFECTS {
        group.throughput(Throughput::Elements(effects));
        group.bench_function(BenchmarkId::from_parameter(effects), |bencher| {
            let mut control = opened();
            let (mut index, mut body) = (1, puts(2, effects));
            bencher.iter(|| {
                index += 1;
                let applied = control.apply(LogId::new(TERM, index), &body);
                advance(&mut body);
                match applied.expect("a put is known") {
                    Applied::Done(changes) => changes,
                    Applied::NotDone => panic!("entry {index} was refused"),
                }
            });
        });
    }
    group.finish();
}

/// Control state and tree, as a replica applies a committed entry.
fn store(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("apply/store");
    for effects in ENTRY_EFFECTS {
        group.throughput(Throughput::Elements(effects));
        group.bench_function(BenchmarkId::from_parameter(effects), |bencher| {
            // A fresh replica per sample: what came before must not count.
            bencher.iter_custom(|entries| {
                let mut replica = Replica::boot(runtime);
                let mut took = Duration::ZERO;
                for _ in 0..entries {
                    let (log_id, body) = replica.next_entry(effects);
                    let payload = AppliedPayload::Normal(&body);
                    let begun = Instant::now();
                    let applied = runtime.block_on(replica.store.apply(log_id, payload));
                    took += begun.elapsed();
                    assert!(matches!(applied, Ok(EntryOutcome::Done)), "{applied:?}");
                }
                replica.close(runtime);
                took
            });
        });
    }
    group.finish();
}

/// A shard whose only writer has opened its memory.
fn opened() -> Control {
    let mut control = Control::new(ID.shard_id, birth());
    control.apply_blank(LogId::new(TERM, 0));
    let body = opening();
    control
        .apply(LogId::new(TERM, 1), &body)
        .expect("the effect is known");
    control
}

fn descriptor() -> v1::ShardDescriptor {
    v1::ShardDescriptor {
        shard_id: ID.shard_id,
        epoch: Some(v1::ShardEpoch {
            conf_version: 0,
            range_version: 1,
        }),
        ..v1::ShardDescriptor::default()
    }
}

fn birth() -> v1::ShardBirth {
    Control::birth_of(&descriptor(), 1)
}

fn opening() -> v1::EntryBody {
    let kind = v1::effect::Kind::OpenIncarnation(v1::OpenIncarnationEffect {});
    v1::EntryBody {
        first_version: 1,
        range_version: 1,
        term: TERM,
        logged_time_ms: TIME_MS,
        effects: vec![v1::Effect { kind: Some(kind) }],
        executions: Vec::new(),
    }
}

/// The writer's put number `sequence`, as the leader evaluates it.
fn write(sequence: u64) -> Write {
    let operation = WriteOperation {
        key: common::key(sequence),
        put: Some((common::value(common::VALUE_BYTES), 0xfeed_beef)),
        ttl_ms: 0,
        condition: None,
    };
    Write {
        token: Some(token(sequence, 1)),
        kind: WriteKind::Operations(vec![operation]),
    }
}

fn token(sequence: u64, first_unacknowledged: u64) -> v1::Token {
    v1::Token {
        incarnation: Some(WRITER),
        sequence,
        first_unacknowledged,
    }
}

/// An entry of puts from a version on; everything before it has been answered.
fn puts(first_version: u64, effects: u64) -> v1::EntryBody {
    let value = common::value(common::VALUE_BYTES);
    let put = |version: u64| v1::Effect {
        kind: Some(v1::effect::Kind::Put(v1::PutEffect {
            key: common::key(version),
            value: value.clone(),
            client_crc: 0xfeed_beef,
            expires_at_ms: 0,
        })),
    };
    let execution = |version: u64| v1::Execution {
        token: Some(token(version, first_version)),
        version,
        sum: None,
    };
    let versions = first_version..first_version + effects;
    v1::EntryBody {
        first_version,
        range_version: 1,
        term: TERM,
        logged_time_ms: TIME_MS,
        effects: versions.clone().map(put).collect(),
        executions: versions.map(execution).collect(),
    }
}

/// Makes an entry of puts the one that follows it.
fn advance(body: &mut v1::EntryBody) {
    let effects = body.effects.len() as u64;
    body.first_version += effects;
    for execution in &mut body.executions {
        execution.version += effects;
        execution.token = Some(token(execution.version, body.first_version));
    }
}

/// A replica whose log and tree are in a directory of its own.
struct Replica {
    store: Arc<ReplicaStore>,
    wal: Wal,
    index: u64,
    next_version: u64,
    _directory: tempfile::TempDir,
}

impl Replica {
    fn boot(runtime: &Runtime) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (wal, store) = runtime.block_on(open_store(directory.path()));
        Self {
            store,
            wal,
            index: 1,
            next_version: 2,
            _directory: directory,
        }
    }

    /// The next committed entry.
    fn next_entry(&mut self, effects: u64) -> (LogId, v1::EntryBody) {
        self.index += 1;
        let body = puts(self.next_version, effects);
        self.next_version += effects;
        (LogId::new(TERM, self.index), body)
    }

    fn close(self, runtime: &Runtime) {
        runtime.block_on(async {
            self.store.close().await;
            self.wal.close().await;
        });
    }
}

async fn open_store(directory: &Path) -> (Wal, Arc<ReplicaStore>) {
    let who = Identity {
        cluster_id: [1; 16],
        node_id: 1,
    };
    let disk = common::unsynced_disk();
    let (wal, _) = Wal::open(disk.clone(), directory.join("wal"), WalConfig::default(), who)
        .await
        .expect("an empty log opens");
    let trees = directory.join("trees");
    let parts = StoreParts {
        group: wal.birth(ID, Bytes::new()).await.expect("a new id is free"),
        id: ID,
        storage: Storage::new(disk, trees, StorageConfig::default()).expect("an empty directory"),
        health: Arc::new(Health::new(Arc::new(SystemClock))),
    };
    let birth = v1::CreateReplicaRequest {
        birth: Some(birth()),
        descriptor: Some(descriptor()),
        replica_id: ID.replica_id,
        initialize: true,
    };
    let store = ReplicaStore::open(parts, &birth).await.expect("the store opens");
    let entries = [AppliedPayload::Blank, AppliedPayload::Normal(&opening())];
    for (index, payload) in (0..).zip(entries) {
        let applied = store.apply(LogId::new(TERM, index), payload).await;
        applied.expect("its effects are known");
    }
    (wal, store)
}
