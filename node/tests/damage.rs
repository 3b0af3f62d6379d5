//! Files of a data directory cut short, flipped, zeroed or gone: the node starts, the others
//! serve, the damage is told and repaired, and nothing wrong is ever answered.
#![allow(clippy::disallowed_methods)] // tests damage files directly

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Cluster, files_below, told};
use reelkv_client::{Client, CreateKeyspace, Keyspace};

const RECORDS: u32 = 2_000;
/// Checkpoints soon, so that there are tables to damage; and what is lost is replaced soon.
const SOON: [&str; 4] = ["--checkpoint-interval", "1s", "--replace-after", "3s"];

#[derive(Clone, Copy, Debug)]
enum Harm {
    CutShort,
    Flipped,
    Zeroed,
    Gone,
}

fn harm(path: &Path, how: Harm) {
    let mut bytes = std::fs::read(path).expect("a file");
    match how {
        Harm::CutShort => bytes.truncate(bytes.len() / 2),
        Harm::Flipped => {
            // Somewhere that matters: in the middle of what is not zero.
            let last = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            bytes[last / 2] ^= 0x10;
        }
        Harm::Zeroed => bytes.fill(0),
        Harm::Gone => {
            std::fs::remove_file(path).expect("a file");
            return;
        }
    }
    std::fs::write(path, bytes).expect("a file");
}

async fn fill(cluster: &Cluster) -> Keyspace {
    let client = Client::connect(cluster.addrs()).await.expect("a cluster");
    let options = CreateKeyspace {
        shards: Some(2),
        ..Default::default()
    };
    let keyspace = client.create_keyspace("film", options).await.expect("a keyspace");
    for chunk in (0..RECORDS).collect::<Vec<_>>().chunks(100) {
        let puts = chunk.iter().map(|n| keyspace.put(key(*n), value(*n)));
        for put in futures::future::join_all(puts).await {
            put.expect("a write");
        }
    }
    keyspace
}

/// Spread over the first byte, and so over the shards.
fn key(n: u32) -> Vec<u8> {
    let mut key = vec![(n % 250) as u8];
    key.extend_from_slice(&n.to_be_bytes());
    key
}

fn value(n: u32) -> Vec<u8> {
    format!("value {n} {}", "x".repeat(n as usize % 300)).into_bytes()
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

/// The replicas of every shard hold the same records.
fn assert_equal_digests(cluster: &Cluster) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let shards = cluster.json(&["shard", "list"]);
    for shard in shards.as_array().expect("a list") {
        let id = shard["shard_id"].as_u64().expect("a number");
        loop {
            let digests = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(digests(cluster, id))
            });
            if digests.len() == 3 && digests.windows(2).all(|pair| pair[0] == pair[1]) {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "shard {id}: {digests:?}\n{}",
                cluster.logs()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

async fn digests(cluster: &Cluster, shard: u64) -> Vec<(u64, Vec<u8>)> {
    let client = Client::connect(cluster.addrs()).await.expect("a cluster");
    let mut digests = Vec::new();
    for addr in cluster.addrs() {
        if let Ok(digest) = client.admin().replica_digest(&addr, shard).await {
            digests.push((digest.records, digest.digest.to_vec()));
        }
    }
    digests
}

/// A healthy cluster that checkpoints and replaces soon.
fn repairing_soon() -> Cluster {
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

/// One file of each kind that a node keeps.
fn file_of_each_kind(data_dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let files = files_below(data_dir);
    let largest = |part: &str| {
        let of_kind = files.iter().filter(|file| file.to_string_lossy().contains(part));
        let largest = of_kind.max_by_key(|file| file.metadata().map(|meta| meta.len()).unwrap_or(0));
        largest
            .unwrap_or_else(|| panic!("no file of kind {part} in {files:#?}"))
            .clone()
    };
    vec![
        ("a table", largest("/tables/")),
        ("a tree's version pointer", largest("/current")),
        ("a segment of the log", largest("/wal/")),
        ("one copy of the identity", largest("/identity.1")),
        ("the copy of the directory", largest("/directory")),
        ("what it remembers of the others' logs", largest("/watermarks")),
        ("the ledger of damage", data_dir.join("events")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_any_kind_is_told_repaired_and_never_answered_from() {
    let mut cluster = repairing_soon();
    let keyspace = fill(&cluster).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let harms = [Harm::Flipped, Harm::CutShort, Harm::Zeroed, Harm::Gone];
    for (round, how) in harms.into_iter().enumerate() {
        // Another node each time, so that no damage meets an older one.
        let at = round % 3;
        cluster.kill(at);
        for (kind, path) in file_of_each_kind(&cluster.nodes[at].data_dir) {
            eprintln!("node {at}: {kind}, {}: {how:?}", path.display());
            harm(&path, how);
        }
        cluster.start_with(at, &SOON);
        verify(&keyspace).await;
        tokio::task::block_in_place(|| {
            cluster.await_healthy();
            assert_equal_digests(&cluster);
        });
        let log = cluster.log(at);
        assert!(log.contains("damage found"), "{how:?} was not told of\n{log}");
        assert_told(&cluster, at, how);
        verify(&keyspace).await;
    }
}

/// What can always be told apart is in the node's ledger, and made good.
fn assert_told(cluster: &Cluster, at: usize, how: Harm) {
    let mut structures = vec!["identity", "directory"];
    if !matches!(how, Harm::Gone) {
        // Of these a missing one is like one that never was.
        structures.extend(["watermarks", "events"]);
    }
    let addr = &cluster.nodes[at].addr;
    let status = tokio::task::block_in_place(|| cluster.json(&["node", "status", "--node", addr]));
    let events = status["damage"].as_array().expect("a list");
    for structure in structures {
        let told = events.iter().any(|event| {
            event["structure"] == structure
                && event["repaired_at_ms"].as_u64() >= event["detected_at_ms"].as_u64()
        });
        assert!(told, "{how:?}: {structure} is not in {events:#?}");
    }
    let open: Vec<_> = events
        .iter()
        .filter(|event| event["repaired_at_ms"].is_null())
        .collect();
    assert!(open.is_empty(), "{how:?}: {open:#?}");
}

/// Nobody reads, nothing is restarted, and everything is in all caches.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_under_a_running_node_is_found_within_ten_seconds_and_repaired() {
    let cluster = repairing_soon();
    let keyspace = fill(&cluster).await;
    verify(&keyspace).await;
    let last = "the last value, which the log still holds";
    keyspace.put("last", last).await.expect("a write");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let files = files_below(&cluster.nodes[1].data_dir);
    let tables = files
        .iter()
        .filter(|file| file.to_string_lossy().contains("/tables/"));
    let table = tables.max_by_key(|file| file.metadata().map(|meta| meta.len()).unwrap_or(0));
    let table = table.expect("a table");
    let len = table.metadata().expect("a file").len();
    flip(table, len / 2);
    let (segment, offset) = find(&files, last.as_bytes());
    flip(&segment, offset);
    let flipped = std::time::Instant::now();

    for structure in ["tree", "wal"] {
        while !told_of(&cluster, 1, structure) {
            let waited = flipped.elapsed();
            assert!(
                waited < Duration::from_secs(10),
                "{structure}: {}",
                cluster.log(1)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    tokio::task::block_in_place(|| {
        cluster.await_healthy();
        assert_equal_digests(&cluster);
    });
    verify(&keyspace).await;
    let record = keyspace.get("last").await.expect("a read").expect("a record");
    assert_eq!(record.value, last.as_bytes());
}

/// Flips a bit in a file as it is, without replacing it.
fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path);
    let file = file.expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], offset).expect("a byte");
    file.sync_all().expect("a disk");
}

/// The segment of the log that holds some bytes, and where.
fn find(files: &[PathBuf], wanted: &[u8]) -> (PathBuf, u64) {
    let segments = files
        .iter()
        .filter(|file| file.extension().is_some_and(|end| end == "wal"));
    for segment in segments {
        let bytes = std::fs::read(segment).expect("a segment");
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
            return (segment.clone(), at as u64);
        }
    }
    panic!("no segment holds it");
}

/// Whether a node's ledger names a structure.
fn told_of(cluster: &Cluster, at: usize, structure: &str) -> bool {
    let addr = &cluster.nodes[at].addr;
    let status = tokio::task::block_in_place(|| cluster.json(&["node", "status", "--node", addr]));
    let events = status["damage"].as_array().expect("a list");
    events.iter().any(|event| event["structure"] == structure)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_directory_is_gone_comes_back_as_a_new_one() {
    let mut cluster = repairing_soon();
    let keyspace = fill(&cluster).await;
    cluster.kill(2);
    std::fs::remove_dir_all(&cluster.nodes[2].data_dir).expect("a directory");
    cluster.start_with(2, &SOON);
    verify(&keyspace).await;
    tokio::task::block_in_place(|| {
        cluster.await_healthy();
        assert_equal_digests(&cluster);
    });
    assert_eq!(
        node_ids(&cluster),
        [1, 2, 4],
        "the lost node's number is not used again"
    );
    verify(&keyspace).await;
}

fn node_ids(cluster: &Cluster) -> Vec<u64> {
    // It says so while the cluster is degraded, too.
    let output = tokio::task::block_in_place(|| cluster.run(&["cluster", "status", "--json"]));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = status["nodes"].as_array().expect("a list");
    nodes.iter().filter_map(|node| node["node_id"].as_u64()).collect()
}

/// A backup put back by hand, or a disk that went back in time.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_a_directory_is_set_aside_and_its_node_comes_back_as_a_new_one() {
    let mut cluster = repairing_soon();
    let data_dir = cluster.nodes[2].data_dir.clone();
    let copy = cluster.dir.path().join("copy");
    cluster.kill(2);
    copy_dir(&data_dir, &copy);
    cluster.start_with(2, &SOON);
    let keyspace = fill(&cluster).await;
    cluster.kill(2);
    std::fs::remove_dir_all(&data_dir).expect("a directory");
    std::fs::rename(&copy, &data_dir).expect("a directory");
    cluster.start_with(2, &SOON);
    verify(&keyspace).await;
    let deadline = std::time::Instant::now() + common::HEALTHY_MAX;
    while node_ids(&cluster) != [1, 2, 4] {
        assert!(std::time::Instant::now() < deadline, "{}", cluster.logs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::task::block_in_place(|| {
        cluster.await_healthy();
        assert_equal_digests(&cluster);
    });
    let log = cluster.log(2);
    assert!(log.contains("other nodes were shown batch"), "{log}");
    let kept = data_dir.join("lost-1");
    assert!(
        kept.join("wal").is_dir() && kept.join("identity.1").is_file(),
        "the old data is kept: {:?}",
        files_below(&data_dir)
    );
    verify(&keyspace).await;
}

fn copy_dir(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).expect("it is below"));
        std::fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
        std::fs::copy(&file, target).expect("a copy");
    }
}

/// Compared on demand: everything is proven within moments, and what cannot be compared is said so.
#[tokio::test(flavor = "multi_thread")]
async fn shards_are_verified_on_demand() {
    let mut cluster = tokio::task::block_in_place(|| Cluster::new(2));
    fill(&cluster).await;
    tokio::task::block_in_place(|| {
        let found = cluster.json(&["shard", "verify"]);
        let shards = found.as_array().expect("a list of shards");
        assert!(shards.len() >= 4, "the meta shard, and pieces of two: {found}");
        let records: u64 = shards.iter().filter_map(|shard| shard["records"].as_u64()).sum();
        assert!(records >= u64::from(RECORDS), "{found}");
        for shard in shards {
            assert_eq!(shard["agrees"], true, "{shard}");
            assert_eq!(shard["voters"].as_array().map(Vec::len), Some(3), "{shard}");
        }
        let says = |cluster: &Cluster, named: &[&str], status: i32, what: &str| {
            let output = cluster.run(&[&["shard", "verify"], named].concat());
            assert_eq!(output.status.code(), Some(status), "{}", told(&output));
            assert!(told(&output).contains(what), "{}", told(&output));
        };
        says(&cluster, &["1"], 0, "all voters hold the same");
        says(&cluster, &["999"], 2, "there is no shard 999");
        cluster.kill(2);
        says(&cluster, &[], 1, "did not answer");
    });
}
