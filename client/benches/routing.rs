//! Routing: finding the shard and leader of a key, and taking over a directory. Throughput: keys looked
//! up, and shards learned.

mod common;

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use reelkv_client::internals::Routes;
use reelkv_client::v1;
use reelkv_proto::types::stored_key;

/// Shards in the cluster.
const SHARDS: [u16; 3] = [8, 64, 1_024];
/// Nodes in the cluster.
const NODES: u64 = 5;
/// Keyspace of all keys.
const KEYSPACE: u32 = 1;
/// Different keys looked up.
const KEYS: u64 = 4_096;

fn main() {
    let mut criterion = common::criterion();
    lookup(&mut criterion);
    learn(&mut criterion);
    criterion.final_summary();
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing/lookup");
    group.throughput(Throughput::Elements(1));
    let keys: Vec<Bytes> = (0..KEYS).map(key).collect();
    for shards in SHARDS {
        let routes = Routes::default();
        routes.install(&directory(shards));
        group.bench_function(BenchmarkId::from_parameter(shards), |bencher| {
            let mut keys = keys.iter().cycle();
            bencher.iter(|| {
                let key = keys.next().expect("they never end");
                assert!(
                    routes.leads_to_a_leader(black_box(key)),
                    "all shards have leaders"
                );
            });
        });
    }
    group.finish();
}

fn learn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing/learn");
    for shards in SHARDS {
        group.throughput(Throughput::Elements(shards.into()));
        let directory = directory(shards);
        // As at every refresh: all is known.
        let routes = Routes::default();
        routes.install(&directory);
        group.bench_function(BenchmarkId::from_parameter(shards), |bencher| {
            bencher.iter(|| routes.install(black_box(&directory)));
        });
    }
    group.finish();
}

fn key(n: u64) -> Bytes {
    let spread = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    stored_key(KEYSPACE, &[spread.to_be_bytes(), n.to_be_bytes()].concat())
}

/// A cluster whose keyspace is cut evenly.
fn directory(shards: u16) -> v1::Directory {
    let node = |node_id| v1::NodeDescriptor {
        node_id,
        addr: format!("10.0.0.{node_id}:7301"),
        ..v1::NodeDescriptor::default()
    };
    v1::Directory {
        version: 1,
        nodes: (1..=NODES).map(node).collect(),
        shards: (0..shards).map(|n| shard(n, shards)).collect(),
        ..v1::Directory::default()
    }
}

fn shard(n: u16, shards: u16) -> v1::ShardDescriptor {
    let cut = |n: u16| match n == shards {
        true => stored_key(KEYSPACE + 1, b""),
        false => {
            let at = u32::from(n) * 65_536 / u32::from(shards);
            stored_key(KEYSPACE, &(at as u16).to_be_bytes())
        }
    };
    let replica = |offset: u64| {
        let node_id = (u64::from(n) + offset) % NODES + 1;
        v1::ReplicaDescriptor {
            replica_id: offset + 1,
            node_id,
            addr: format!("10.0.0.{node_id}:7301"),
            role: v1::ReplicaRole::Voter.into(),
        }
    };
    v1::ShardDescriptor {
        shard_id: u64::from(n) + 2,
        start_key: cut(n),
        end_key: cut(n + 1),
        epoch: Some(v1::ShardEpoch {
            conf_version: 1,
            range_version: 1,
        }),
        replicas: (0..3).map(replica).collect(),
        leader_node_id: u64::from(n) % NODES + 1,
    }
}
