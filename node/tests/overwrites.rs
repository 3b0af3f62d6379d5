//! A hundred thousand keys overwritten again and again leave neither disks nor memory full.
#![allow(clippy::disallowed_methods)] // tests look at real processes

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Cluster, HEALTHY_MAX, files_below, told};
use reelkv_client::{Client, CreateKeyspace, Keyspace};

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 1_000;
const WRITERS: u64 = 64;
/// What memtables and block cache may use, by flags, and what the log keeps in memory (its default).
const BUDGET_MIB: u64 = 64 + 64 + 64;
/// Code, stacks, buffers of connections, requests under way, and what the allocator holds back.
const SLACK_MIB: u64 = 300;

/// How long the overwriting goes on; `REELKV_SOAK_S=300` is the full run.
fn duration() -> Duration {
    let seconds = std::env::var("REELKV_SOAK_S")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

fn key(n: u64) -> [u8; 8] {
    // Spread over the first byte, and so over the shards; a bijection, as the factor is odd.
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

/// Values that do not compress away.
fn value(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(VALUE_BYTES + 8);
    while bytes.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(VALUE_BYTES);
    bytes
}

async fn overwrite(keyspace: Keyspace, next: Arc<AtomicU64>, until: tokio::time::Instant) {
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        // Every key once, however long it takes; then until the time is over.
        if n >= KEYS && tokio::time::Instant::now() >= until {
            return;
        }
        keyspace.put(key(n % KEYS), value(n)).await.expect("a write");
    }
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// Bytes a directory takes up on its disk.
fn disk_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // A file may go between the listing and the look at it.
    files_below(dir)
        .iter()
        .filter_map(|file| file.metadata().ok())
        .map(|meta| meta.blocks() * 512)
        .sum()
}

fn resident_peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process of ours");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .expect("a peak");
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .expect("a number")
        >> 10
}

#[tokio::test(flavor = "multi_thread")]
async fn overwriting_leaves_disks_and_memory_within_their_bounds() {
    let mut cluster = Cluster::fresh();
    for at in 0..3 {
        cluster.kill(at);
        cluster.start_with(
            at,
            &[
                "--memtable-budget",
                "64MiB",
                "--cache",
                "64MiB",
                "--wal-max",
                "128MiB",
            ],
        );
    }
    cluster.await_listening();
    let init = cluster.run(&["cluster", "init", "--shards", "4"]);
    assert!(init.status.success(), "{}", told(&init));
    cluster.await_healthy();
    let client = Client::builder()
        .addrs(cluster.addrs())
        .timeout(HEALTHY_MAX)
        .build()
        .await
        .expect("a cluster");
    let options = CreateKeyspace {
        shards: Some(4),
        ..Default::default()
    };
    let keyspace = client.create_keyspace("film", options).await.expect("a keyspace");
    let next = Arc::new(AtomicU64::new(0));
    let until = tokio::time::Instant::now() + duration();
    let writers = (0..WRITERS).map(|_| tokio::spawn(overwrite(keyspace.clone(), next.clone(), until)));
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    let live_bytes = KEYS * (VALUE_BYTES as u64 + 8);
    let writes = next.load(Ordering::Relaxed);
    for at in 0..3 {
        let (disk, memory) = (
            disk_bytes(&cluster.nodes[at].data_dir),
            resident_peak_mib(cluster.pid(at)),
        );
        println!(
            "node {}: {writes} writes, {} MiB live, {} MiB on disk, {memory} MiB resident at most",
            at + 1,
            mib(live_bytes),
            mib(disk)
        );
        assert!(
            disk <= 4 * live_bytes,
            "node {at}: {} MiB on disk for {} MiB\n{}",
            mib(disk),
            mib(live_bytes),
            cluster.logs()
        );
        assert!(
            memory <= BUDGET_MIB + SLACK_MIB,
            "node {at}: {memory} MiB resident"
        );
    }
}
