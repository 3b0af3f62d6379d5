//! A replica's tree: inserts into the memtable, entry by entry, and point reads. Throughput: records.

#![allow(clippy::disallowed_methods)] // what is measured is real time

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use reelkv::disk::RealDisk;
use reelkv::shard::LogId;
use reelkv::storage::{EngineKind, Lookup, Storage, StorageConfig, StoredRecord, Tree, TreeId};
use tokio::runtime::Runtime;

mod common;

/// Different keys.
const KEYS: u64 = 50_000;
/// From one key read to the next: far, and all are met.
const STRIDE: usize = 7_919;
/// Effects of one log entry.
const ENTRY_RECORDS: u64 = 64;

fn main() {
    let mut criterion = common::criterion();
    let runtime = common::runtime();
    insert(&mut criterion, &runtime);
    get(&mut criterion, &runtime);
    criterion.final_summary();
}

fn insert(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("tree/insert");
    group.throughput(Throughput::Elements(ENTRY_RECORDS));
    for engine in [EngineKind::Lsm, EngineKind::Memory] {
        group.bench_function(BenchmarkId::from_parameter(engine), |bencher| {
            // A fresh tree per sample: what came before must not count.
            bencher.iter_custom(|entries| Fresh::create(runtime, engine).insert(entries));
        });
    }
    group.finish();
}

fn get(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("tree/get");
    group.throughput(Throughput::Elements(1));
    let written: Vec<Bytes> = (0..KEYS / ENTRY_RECORDS * ENTRY_RECORDS)
        .map(common::key)
        .collect();
    let absent: Vec<Bytes> = (KEYS..2 * KEYS).map(common::key).collect();
    for place in ["memtable", "table"] {
        let fresh = Fresh::create(runtime, EngineKind::Lsm);
        fresh.insert(KEYS / ENTRY_RECORDS);
        if place == "table" {
            checkpoint(runtime, &fresh.tree);
        }
        group.bench_function(place, |bencher| {
            let (view, mut n) = (fresh.tree.view(), 0);
            bencher.iter(|| {
                n = (n + STRIDE) % written.len();
                let found = view.get(&written[n]);
                assert!(matches!(found, Lookup::Value(_)), "key {n} was written");
            });
        });
        group.bench_function(format!("{place}/absent"), |bencher| {
            let (view, mut n) = (fresh.tree.view(), 0);
            bencher.iter(|| {
                n = (n + STRIDE) % absent.len();
                let found = view.get(&absent[n]);
                assert!(
                    matches!(found, Lookup::Absent { .. }),
                    "key {n} was never written"
                );
            });
        });
    }
    group.finish();
}

/// An empty tree in a directory of its own.
struct Fresh {
    tree: Tree,
    _storage: Arc<Storage>,
    _directory: tempfile::TempDir,
}

impl Fresh {
    fn create(runtime: &Runtime, engine: EngineKind) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = StorageConfig {
            engine,
            ..StorageConfig::default()
        };
        let root: PathBuf = directory.path().join("trees");
        let storage = Storage::new(Arc::new(RealDisk), root, config).expect("an empty directory");
        let id = TreeId {
            shard_id: 2,
            replica_id: 1,
            generation: 1,
        };
        let tree = runtime.block_on(storage.create(id)).expect("a new tree");
        Self {
            tree,
            _storage: storage,
            _directory: directory,
        }
    }

    /// Inserts and publishes whole entries; each key's versions rise.
    fn insert(&self, entries: u64) -> Duration {
        let keys: Vec<Bytes> = (0..KEYS.min(entries * ENTRY_RECORDS)).map(common::key).collect();
        let value = common::value(common::VALUE_BYTES);
        let (mut version, start) = (0, Instant::now());
        for _ in 0..entries {
            self.tree.begin_entry(version + ENTRY_RECORDS);
            for _ in 0..ENTRY_RECORDS {
                let key = keys[version as usize % keys.len()].clone();
                version += 1;
                let record = StoredRecord {
                    key,
                    version,
                    value: Some(value.clone()),
                    client_crc: 0xfeed_beef,
                    logged_time_ms: 1_218_412_800_123,
                    expires_at_ms: 0,
                };
                self.tree.insert(&record).expect("the tree is healthy");
            }
            self.tree.publish(version);
        }
        start.elapsed()
    }
}

fn checkpoint(runtime: &Runtime, tree: &Tree) {
    let sealed = tree.seal(&[], LogId::new(1, 1)).expect("a memtable");
    runtime.block_on(tree.flush(sealed)).expect("the disk is healthy");
}
