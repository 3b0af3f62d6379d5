//! WAL append: entries of several shards handed over together, until all of them are durable.
//!
//! `synced` is what the device gives; `unsynced` leaves out its syncs, so it is our own work and the
//! page cache's. Throughput: entries for the small ones, payload bytes for the coalesced one.

#![allow(clippy::disallowed_methods)] // what is measured is real time

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use reelkv::disk::{RealDisk, SharedDisk};
use reelkv::shard::LogId;
use reelkv::wal::{EntryKind, GroupId, Identity, Wal, WalConfig, WalEntry, WalGroup};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

mod common;

/// An entry into which a shard's proposer gathered what was waiting, in bytes.
const COALESCED_BYTES: usize = 64 << 10;

fn main() {
    let mut criterion = common::criterion();
    let runtime = common::runtime();
    for (name, disk) in [
        ("unsynced", common::unsynced_disk()),
        ("synced", Arc::new(RealDisk) as SharedDisk),
    ] {
        append(&mut criterion, &runtime, name, &disk);
    }
    criterion.final_summary();
}

fn append(criterion: &mut Criterion, runtime: &Runtime, name: &str, disk: &SharedDisk) {
    let mut group = criterion.benchmark_group(format!("wal/append/{name}"));
    for shards in [1, 8, 64] {
        group.throughput(Throughput::Elements(shards));
        group.bench_function(BenchmarkId::new("shards", shards), |bencher| {
            let mut log = Log::open(runtime, disk.clone(), shards);
            let payload = common::value(common::VALUE_BYTES);
            bencher.iter_custom(|rounds| log.append(runtime, rounds, &payload));
            log.close(runtime);
        });
    }
    group.throughput(Throughput::Bytes(COALESCED_BYTES as u64));
    group.bench_function(BenchmarkId::new("bytes", COALESCED_BYTES), |bencher| {
        let mut log = Log::open(runtime, disk.clone(), 1);
        let payload = common::value(COALESCED_BYTES);
        bencher.iter_custom(|rounds| log.append(runtime, rounds, &payload));
        log.close(runtime);
    });
    group.finish();
}

/// A node's log with some shards in it, in a directory of its own.
struct Log {
    wal: Wal,
    shards: Vec<WalGroup>,
    next_index: u64,
    _directory: tempfile::TempDir,
}

impl Log {
    fn open(runtime: &Runtime, disk: SharedDisk, shards: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let identity = Identity {
            cluster_id: [1; 16],
            node_id: 1,
        };
        let dir = directory.path().join("wal");
        let (wal, shards) = runtime.block_on(async {
            let (wal, _) = Wal::open(disk, dir, WalConfig::default(), identity)
                .await
                .expect("an empty log opens");
            let mut groups = Vec::new();
            for shard_id in 1..=shards {
                let id = GroupId {
                    shard_id,
                    replica_id: 1,
                };
                groups.push(wal.birth(id, Bytes::new()).await.expect("a new id is free"));
            }
            (wal, groups)
        });
        Self {
            wal,
            shards,
            next_index: 0,
            _directory: directory,
        }
    }

    /// Rounds of one entry per shard; each round is durable before the next begins.
    fn append(&mut self, runtime: &Runtime, rounds: u64, payload: &Bytes) -> Duration {
        let took = runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..rounds {
                self.round(payload).await;
            }
            start.elapsed()
        });
        for shard in &self.shards {
            let upto = LogId::new(1, self.next_index - 1);
            shard.purge(upto).expect("the log is healthy");
        }
        took
    }

    async fn round(&mut self, payload: &Bytes) {
        let mut waiting = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            let (done, durable) = oneshot::channel();
            let entry = WalEntry {
                log_id: LogId::new(1, self.next_index),
                kind: EntryKind::Normal,
                payload: payload.clone(),
            };
            let tell = Box::new(move |result| drop(done.send(result)));
            shard.append(vec![entry], tell).expect("the log is healthy");
            waiting.push(durable);
        }
        self.next_index += 1;
        for durable in waiting {
            durable.await.expect("it is told").expect("it is durable");
        }
    }

    fn close(self, runtime: &Runtime) {
        runtime.block_on(self.wal.close());
    }
}
