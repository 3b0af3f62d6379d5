//! Stops, kills and rolling restarts of real processes, under load.
#![allow(clippy::disallowed_methods)] // tests look at files directly

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::Cluster;
use reelkv_client::{Client, CreateKeyspace, ErrorKind, Keyspace};

/// What one writer knows: the last value acknowledged for each of its keys, and what may have
/// followed it without an answer.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeMap<String, u64>,
    unknown: BTreeMap<String, u64>,
    failed: Vec<String>,
    writes: u64,
}

/// Writers that overwrite their own keys and read them back until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<Ledger>>,
}

const WRITERS: usize = 16;
const KEYS: u64 = 40;

impl Load {
    fn start(keyspace: &Keyspace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..WRITERS).map(|writer| tokio::spawn(write(keyspace.clone(), writer, stop.clone())));
        Self {
            stop: stop.clone(),
            writers: writers.collect(),
        }
    }

    async fn finish(self) -> Vec<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledgers = Vec::new();
        for writer in self.writers {
            ledgers.push(writer.await.expect("a writer"));
        }
        ledgers
    }
}

async fn write(keyspace: Keyspace, writer: usize, stop: Arc<AtomicBool>) -> Ledger {
    let mut ledger = Ledger::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        // Writers spread over the first byte, and so over the shards.
        let key = format!(
            "{}-{writer}-{}",
            char::from(b'!' + (writer * 5) as u8),
            number % KEYS
        );
        match keyspace.put(&key, number.to_be_bytes().to_vec()).await {
            Ok(_) => {
                ledger.writes += 1;
                ledger.unknown.remove(&key);
                ledger.acknowledged.insert(key.clone(), number);
            }
            Err(error) => {
                if *error.kind() == ErrorKind::OutcomeUnknown {
                    ledger.unknown.insert(key.clone(), number);
                }
                ledger.failed.push(error.to_string());
            }
        }
        if number % 3 == 0
            && let Err(error) = keyspace.get(&key).await
        {
            ledger.failed.push(error.to_string());
        }
    }
    ledger
}

/// Every acknowledged write, or a later one of unknown outcome, is read.
async fn verify(keyspace: &Keyspace, ledgers: &[Ledger]) {
    for ledger in ledgers {
        for (key, number) in &ledger.acknowledged {
            let record = keyspace.get(key).await.expect("a read");
            let read =
                record.map(|record| u64::from_be_bytes(record.value[..].try_into().expect("eight bytes")));
            let possible = [Some(*number), ledger.unknown.get(key).copied()];
            assert!(
                read.is_some() && possible.contains(&read),
                "{key}: {number} was acknowledged, {read:?} is read"
            );
        }
    }
}

async fn open(cluster: &Cluster, name: &str) -> Keyspace {
    let client = Client::connect(cluster.addrs()).await.expect("a cluster");
    client
        .create_keyspace(
            name,
            CreateKeyspace {
                shards: Some(4),
                ..Default::default()
            },
        )
        .await
        .expect("a keyspace")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_fails_no_request_and_every_node_stops_within_ten_seconds() {
    let mut cluster = Cluster::new(4);
    let keyspace = open(&cluster, "rolling").await;
    let load = Load::start(&keyspace);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for at in 0..3 {
        let (status, took) = tokio::task::block_in_place(|| cluster.terminate(at));
        assert_eq!(status.code(), Some(0), "{}", cluster.logs());
        assert!(took < Duration::from_secs(10), "node {at} took {took:?}");
        cluster.start(at);
        tokio::task::block_in_place(|| cluster.await_healthy());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let ledgers = load.finish().await;
    let failed: Vec<_> = ledgers.iter().flat_map(|ledger| &ledger.failed).collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", cluster.logs());
    let writes: u64 = ledgers.iter().map(|ledger| ledger.writes).sum();
    assert!(writes >= 2 * WRITERS as u64, "{writes} writes are no load");
    verify(&keyspace, &ledgers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill_of_all_three_at_once() {
    let mut cluster = Cluster::new(4);
    let keyspace = open(&cluster, "killed").await;
    let load = Load::start(&keyspace.with_timeout(Duration::from_secs(2)));
    tokio::time::sleep(Duration::from_secs(4)).await;
    for at in 0..3 {
        cluster.kill(at);
    }
    let ledgers = load.finish().await;
    let writes: u64 = ledgers.iter().map(|ledger| ledger.writes).sum();
    assert!(writes >= 2 * WRITERS as u64, "{writes} writes are no load");
    for at in 0..3 {
        cluster.start(at);
    }
    tokio::task::block_in_place(|| cluster.await_healthy());
    verify(&keyspace, &ledgers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_requests_end_at_their_deadline_and_say_which_kind_of_end_it_is() {
    let mut cluster = Cluster::new(2);
    let keyspace = open(&cluster, "alone").await;
    keyspace.put("a", "1").await.expect("a write");
    // The two that are left in the end: whoever leads now may be among those that are stopped.
    cluster.kill(1);
    cluster.kill(2);
    let short = keyspace.with_timeout(Duration::from_secs(2));
    let begun = tokio::time::Instant::now();
    let read = short.get("a").await.expect_err("no quorum");
    assert_eq!(*read.kind(), ErrorKind::Unavailable, "{read}");
    let write = short.put("a", "2").await.expect_err("no quorum");
    assert!(
        matches!(write.kind(), ErrorKind::OutcomeUnknown | ErrorKind::Unavailable),
        "{write}"
    );
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let status = cluster.run(&["cluster", "status", "--timeout", "3s"]);
    assert_eq!(status.status.code(), Some(1), "{}", common::told(&status));
    cluster.start(1);
    cluster.start(2);
    tokio::task::block_in_place(|| cluster.await_healthy());
    let value = keyspace.get("a").await.expect("a read").expect("a record").value;
    let possible: &[&[u8]] = match write.kind() {
        ErrorKind::OutcomeUnknown => &[b"1", b"2"],
        _ => &[b"1"],
    };
    assert!(possible.contains(&&value[..]), "{value:?} after {write}");
    keyspace.put("a", "3").await.expect("a write");
}
