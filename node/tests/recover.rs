//! Two of three directories are gone for good: the third node's replicas are made the only voters, serve
//! all that they had, and are joined by others again.
#![allow(clippy::disallowed_methods)] // tests delete directories

mod common;

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use common::{Cluster, reelkv, told};
use reelkv_client::{Client, CreateKeyspace, Keyspace};
use serde_json::Value;

const RECORDS: u32 = 500;
/// Checkpoints soon, so that there are trees; and what is missing is added soon.
const SOON: [&str; 4] = ["--checkpoint-interval", "1s", "--replace-after", "1s"];
const SURVIVOR: usize = 2;

fn key(n: u32) -> Vec<u8> {
    let mut key = vec![(n % 250) as u8];
    key.extend_from_slice(&n.to_be_bytes());
    key
}

fn value(n: u32) -> Vec<u8> {
    format!("value {n}").into_bytes()
}

async fn fill(cluster: &Cluster) -> Keyspace {
    // Elections and a replay lie between a restart and the first answer, on a busy machine.
    let client = Client::builder()
        .addrs(cluster.addrs())
        .timeout(Duration::from_secs(60));
    let client = client.build().await.expect("a cluster");
    let options = CreateKeyspace {
        shards: Some(2),
        ..Default::default()
    };
    let keyspace = client.create_keyspace("film", options).await.expect("a keyspace");
    let puts = (0..RECORDS).map(|n| keyspace.put(key(n), value(n)));
    for put in futures::future::join_all(puts).await {
        put.expect("a write");
    }
    // A majority has each of them. Whoever is left alone must have them too, or nobody could bring them back.
    let verified = tokio::task::block_in_place(|| cluster.run(&["shard", "verify"]));
    assert!(verified.status.success(), "{}", told(&verified));
    keyspace
}

async fn verify(keyspace: &Keyspace) {
    for chunk in (0..RECORDS).collect::<Vec<_>>().chunks(100) {
        let gets = chunk.iter().map(|n| keyspace.get(key(*n)));
        for (n, record) in chunk.iter().zip(futures::future::join_all(gets).await) {
            let record = record
                .expect("a read")
                .unwrap_or_else(|| panic!("record {n} is gone"));
            assert_eq!(record.value, value(*n), "record {n}");
        }
    }
}

/// Starts all nodes with more flags, in a cluster of two shards.
fn cluster() -> Cluster {
    tokio::task::block_in_place(|| {
        let mut cluster = Cluster::fresh();
        for at in 0..3 {
            cluster.kill(at);
            cluster.start_with(at, &SOON);
        }
        cluster.await_listening();
        let init = cluster.run(&["cluster", "init", "--shards", "2"]);
        assert!(init.status.success(), "{}", told(&init));
        cluster.await_healthy();
        cluster
    })
}

/// `shard recover` on a node's directory, with something typed.
fn recover(cluster: &Cluster, at: usize, shard: u64, more: &[&str], typed: &str) -> Output {
    let mut child = reelkv()
        .args(["shard", "recover", "--data-dir"])
        .arg(&cluster.nodes[at].data_dir)
        .args(["--shard", &shard.to_string()])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may refuse before it reads.
    let _ = stdin.write_all(typed.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// Status 2, the reason, and one line on standard error.
#[track_caller]
fn assert_refused(output: &Output, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(2), "{}", told(output));
    assert!(
        last.starts_with("error: ") && last.contains(why),
        "{}",
        told(output)
    );
}

fn shard_ids(cluster: &Cluster) -> Vec<u64> {
    let shards = cluster.json(&["shard", "list"]);
    let shards = shards.as_array().expect("a list");
    shards
        .iter()
        .filter_map(|shard| shard["shard_id"].as_u64())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_that_lost_two_of_three_directories_are_served_from_the_third_and_joined_by_others() {
    let mut cluster = cluster();
    let keyspace = fill(&cluster).await;
    let shards = shard_ids(&cluster);
    assert!(shards.len() > 2 && shards.contains(&1), "{shards:?}");
    for at in 0..3 {
        cluster.kill(at);
    }
    for at in (0..3).filter(|at| *at != SURVIVOR) {
        std::fs::remove_dir_all(&cluster.nodes[at].data_dir).expect("a directory");
    }
    for shard in &shards {
        let reported = recover(&cluster, SURVIVOR, *shard, &["--json"], "");
        assert!(reported.status.success(), "{}", told(&reported));
        let report: Value = serde_json::from_slice(&reported.stdout).expect("JSON");
        assert_eq!(report["outcome"], "reported");
        assert_eq!(report["lost_nodes"], serde_json::json!([1, 2]), "{report:#}");
        let mut flags = vec!["--unsafe"];
        if *shard == 1 {
            flags.push("--unsafe");
        }
        let recovered = recover(&cluster, SURVIVOR, *shard, &flags, &format!("{shard}\n"));
        assert!(recovered.status.success(), "{}", told(&recovered));
        let text = String::from_utf8_lossy(&recovered.stdout);
        assert!(text.contains("are lost, and no one can know how many"), "{text}");
    }

    // Alone at first: it waits for nobody.
    cluster.start_with(SURVIVOR, &SOON);
    verify(&keyspace).await;
    let written = keyspace
        .put(b"after".to_vec(), b"one voter is enough".to_vec())
        .await;
    written.expect("a write");
    for at in (0..3).filter(|at| *at != SURVIVOR) {
        cluster.start_with(at, &SOON);
    }
    tokio::task::block_in_place(|| {
        cluster.await_healthy();
        for shard in cluster.json(&["shard", "list"]).as_array().expect("a list") {
            assert_eq!(shard["replicas"].as_array().map(Vec::len), Some(3), "{shard:#}");
        }
    });
    verify(&keyspace).await;
    let events = tokio::task::block_in_place(|| {
        let addr = cluster.nodes[SURVIVOR].addr.clone();
        cluster.json(&["node", "status", "--node", &addr])["damage"].clone()
    });
    let of_recovery = events.as_array().expect("a list").iter();
    let of_recovery = of_recovery.filter(|event| event["structure"] == "quorum").count();
    assert_eq!(of_recovery, shards.len(), "{events:#}");

    // The others can do without it now.
    cluster.kill(SURVIVOR);
    verify(&keyspace).await;
    let after = keyspace
        .get(b"after".to_vec())
        .await
        .expect("a read")
        .expect("a record");
    assert_eq!(after.value, b"one voter is enough"[..]);
}

/// Together the two are a majority of the old voters: they must not serve another past of the shards.
#[tokio::test(flavor = "multi_thread")]
async fn voters_declared_lost_that_come_back_with_their_old_directories_join_as_new_ones() {
    let mut cluster = cluster();
    let keyspace = fill(&cluster).await;
    let shards = shard_ids(&cluster);
    for at in 0..3 {
        cluster.kill(at);
    }
    for shard in &shards {
        let flags = ["--offline", "--unsafe", "--unsafe", "--yes"];
        let recovered = recover(&cluster, SURVIVOR, *shard, &flags, "");
        assert!(recovered.status.success(), "{}", told(&recovered));
    }
    cluster.start_with(SURVIVOR, &SOON);
    verify(&keyspace).await;
    let written = keyspace.put(b"after".to_vec(), b"only here".to_vec()).await;
    written.unwrap_or_else(|error| panic!("{error}\n{}", cluster.logs()));
    for at in (0..3).filter(|at| *at != SURVIVOR) {
        cluster.start_with(at, &SOON);
    }
    tokio::task::block_in_place(|| {
        let deadline = std::time::Instant::now() + common::HEALTHY_MAX;
        loop {
            cluster.await_healthy();
            let status = cluster.json(&["cluster", "status"]);
            let nodes = status["nodes"].as_array().expect("a list");
            let ids: Vec<_> = nodes.iter().filter_map(|node| node["node_id"].as_u64()).collect();
            if ids == [3, 4, 5] {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{ids:?}\n{}",
                cluster.logs()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    for at in (0..3).filter(|at| *at != SURVIVOR) {
        let aside = cluster.nodes[at].data_dir.join("lost-1/wal");
        assert!(aside.is_dir(), "what node {at} held is kept");
    }
    verify(&keyspace).await;
    let after = keyspace
        .get(b"after".to_vec())
        .await
        .expect("a read")
        .expect("a record");
    assert_eq!(after.value, b"only here"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_cost_data_without_saying_so_is_refused_with_status_2() {
    let mut cluster = cluster();
    let keyspace = fill(&cluster).await;
    let shard = *shard_ids(&cluster)
        .iter()
        .find(|id| **id != 1)
        .expect("a data shard");

    let running = recover(&cluster, SURVIVOR, shard, &["--unsafe", "--yes"], "");
    assert_refused(&running, "stop that node first");
    let (status, _) = tokio::task::block_in_place(|| cluster.terminate(SURVIVOR));
    assert!(status.success());
    let majority = recover(&cluster, SURVIVOR, shard, &["--unsafe", "--yes"], "");
    assert_refused(&majority, "which is a majority");
    let unknown = recover(&cluster, SURVIVOR, 999, &["--unsafe", "--yes"], "");
    assert_refused(&unknown, "no replica of shard 999 is here");
    let meta_once = recover(&cluster, SURVIVOR, 1, &["--offline", "--unsafe", "--yes"], "");
    assert_refused(&meta_once, "give --unsafe twice");
    for typed in ["", "yes\n", "998\n"] {
        let unconfirmed = recover(&cluster, SURVIVOR, shard, &["--offline", "--unsafe"], typed);
        assert_refused(&unconfirmed, "not confirmed");
    }

    // Nothing of it has changed anything.
    cluster.start_with(SURVIVOR, &SOON);
    tokio::task::block_in_place(|| cluster.await_healthy());
    verify(&keyspace).await;
}
