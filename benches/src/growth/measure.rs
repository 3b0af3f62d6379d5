//! Points of a growth run: a cluster is started, filled, put under load or left alone.

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use reelkv_client::{Batch, Client, CreateKeyspace, Keyspace, v1};
use serde::Serialize;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::plan::{REPLICAS, Setup, Step, Times, VALUE_BYTES};
use crate::choice::Uniform;
use crate::cluster::{Cluster, Plan, READY_MAX};
use crate::drive::{Load, drive, value};
use crate::target::{Target, key};
use crate::usage::{Usage, disk_written_bytes};

/// Records of one atomic batch while loading; all lie in one shard.
const BATCH_RECORDS: u64 = 256;
/// Batches on their way at a time.
const BATCHES_IN_FLIGHT: u64 = 64;
/// How long a batch may take while loading: a node that catches up with compactions says `Busy`.
const BATCH_MAX: Duration = Duration::from_secs(60);
/// A sleep that takes this many times as long as it should is no measure of anything.
const PAUSED: f64 = 1.2;
/// How long an operation under load may take: the client library's own default.
const OPERATION_MAX: Duration = Duration::from_secs(10);
/// Shards that a keyspace of idle ones adds: all of one are made in one call.
const CUTS_MAX: u64 = 32;
/// How long such a call may take. One that is cut short leaves shards of no keyspace behind.
const MAKE_MAX: Duration = Duration::from_secs(300);
const SEED: u64 = 1;

/// One operation at one value of a factor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    pub value: u64,
    pub operation: &'static str,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// CPU time of all nodes over operations, in microseconds.
    pub node_cpu_us_per_op: f64,
    /// Memory of the node that holds most, at the end.
    pub rss_bytes_max: u64,
    pub errors: u64,
}

/// Nodes that are asked for nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IdlePoint {
    pub replicas_per_node: u64,
    /// CPU of the node that uses most, in percent of one core.
    pub cpu_percent_max: f64,
    pub cpu_percent_mean: f64,
    /// Memory of the node that holds most.
    pub rss_bytes_max: u64,
    /// Bytes written in a second to the disk that all nodes are on, by anybody; `None` if it counts none.
    pub written_bytes_per_second: Option<f64>,
    /// From the start of the processes to a healthy cluster.
    pub start_s: f64,
}

/// A cluster and the keys in it.
pub struct Running {
    cluster: Cluster,
    /// `None` for an idle cluster.
    keyspace: Option<Keyspace>,
    setup: Setup,
    start_s: f64,
    // Dropped last: the nodes have ended then.
    directory: TempDir,
}

impl Running {
    /// Starts what a step needs, without keys.
    pub async fn start(program: &Path, step: &Step) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("reelkv-growth-")
            .tempdir()
            .context("make a temporary directory")?;
        let begun = Instant::now();
        let is_idle = step.setup.clients == 0;
        let plan = Plan {
            nodes: step.setup.nodes as usize,
            replicas: REPLICAS,
            shards: 1, // the others come with keyspaces
            ..Plan::new(program.to_owned(), PathBuf::from(directory.path()))
        };
        let cluster = Cluster::start(plan).await?;
        let client = Client::builder()
            .addrs(cluster.addrs())
            .timeout(MAKE_MAX)
            .build()
            .await?;
        let keyspace = match is_idle {
            true => {
                add_shards(&client, step.setup.shards - 1).await?;
                None
            }
            false => Some(create_keyspace(&client, "growth", step.setup.shards).await?),
        };
        Ok(Self {
            cluster,
            keyspace,
            setup: Setup {
                keys: 0,
                ..step.setup
            },
            start_s: begun.elapsed().as_secs_f64(),
            directory,
        })
    }

    /// Adds keys until there are as many as a step wants.
    pub async fn load_up_to(&mut self, keys: u64) -> anyhow::Result<()> {
        if let Some(keyspace) = &self.keyspace {
            load(keyspace, self.setup.keys..keys, self.setup.shards).await?;
            self.setup.keys = keys;
        }
        Ok(())
    }

    /// Puts, then gets, each after a warm-up.
    pub async fn under_load(&self, step: &Step, times: Times) -> anyhow::Result<Vec<Point>> {
        let keyspace = self
            .keyspace
            .as_ref()
            .context("an idle cluster has no keyspace")?;
        let targets = [Target::ReelKv(keyspace.with_timeout(OPERATION_MAX))];
        let keys = step.setup.keys;
        let mut points = Vec::new();
        for (operation, choose) in [("put", Uniform::puts(keys)), ("get", Uniform::gets(keys))] {
            let load = |seconds| Load {
                clients: step.setup.clients as u32,
                value_bytes: VALUE_BYTES,
                seed: SEED,
                run: Duration::from_secs(seconds),
                per_second: None,
                choose: choose.clone(),
                is_shown: false,
            };
            drive(&targets, &load(times.warmup_s), ready(Ok(()))).await?;
            let before = Usage::sum(&self.cluster.pids())?;
            let summary = drive(&targets, &load(times.measure_s), ready(Ok(())))
                .await?
                .summary();
            let used = Usage::sum(&self.cluster.pids())?.since(before);
            ensure!(
                summary.operations > 0,
                "no {operation} succeeded: {:?}",
                summary.errors
            );
            points.push(Point {
                value: step.value,
                operation,
                per_second: summary.per_second,
                p50_ms: summary.p50_ms,
                p99_ms: summary.p99_ms,
                node_cpu_us_per_op: used.cpu.as_secs_f64() * 1e6 / summary.operations as f64,
                rss_bytes_max: self.rss_bytes_max()?,
                errors: summary.errors.values().sum(),
            });
        }
        Ok(points)
    }

    /// Watches nodes that are asked for nothing.
    pub async fn idle(&self, step: &Step, times: Times) -> anyhow::Result<IdlePoint> {
        tokio::time::sleep(Duration::from_secs(times.settle_s)).await;
        let written = || disk_written_bytes(self.directory.path());
        let (before, written_before, begun) = (self.each_node()?, written(), Instant::now());
        tokio::time::sleep(Duration::from_secs(times.idle_s)).await;
        let (after, written_after) = (self.each_node()?, written());
        let watched_s = begun.elapsed().as_secs_f64();
        // A machine that was paused for a while would make nodes look as if they did nothing.
        ensure!(
            watched_s < times.idle_s as f64 * PAUSED,
            "{} s took {watched_s:.1} s: the machine was paused or is far too busy",
            times.idle_s
        );
        let used: Vec<Usage> = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after.since(*before))
            .collect();
        let cpu_percent = |node: &Usage| node.cpu.as_secs_f64() * 100.0 / watched_s;
        let written = written_after.zip(written_before);
        Ok(IdlePoint {
            replicas_per_node: step.value,
            cpu_percent_max: used.iter().map(cpu_percent).fold(0.0, f64::max),
            cpu_percent_mean: used.iter().map(cpu_percent).sum::<f64>() / used.len() as f64,
            rss_bytes_max: used.iter().map(|node| node.rss_bytes).max().unwrap_or(0),
            written_bytes_per_second: written
                .map(|(after, before)| after.saturating_sub(before) as f64 / watched_s),
            start_s: self.start_s,
        })
    }

    fn rss_bytes_max(&self) -> anyhow::Result<u64> {
        Ok(self
            .each_node()?
            .iter()
            .map(|node| node.rss_bytes)
            .max()
            .unwrap_or(0))
    }

    fn each_node(&self) -> anyhow::Result<Vec<Usage>> {
        self.cluster.pids().into_iter().map(Usage::of).collect()
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.cluster.stop().await
    }
}

/// Makes keyspaces that nobody uses: each cut is another shard.
async fn add_shards(client: &Client, shards: u64) -> anyhow::Result<()> {
    let mut left = shards;
    while left > 0 {
        let cuts = left.min(CUTS_MAX);
        create_keyspace(client, &format!("idle-{left}"), cuts + 1).await?;
        left -= cuts;
    }
    Ok(())
}

/// A keyspace cut evenly; it is there when all its shards are healthy.
async fn create_keyspace(client: &Client, name: &str, shards: u64) -> anyhow::Result<Keyspace> {
    let options = CreateKeyspace {
        shards: (shards == 1).then_some(1),
        split_keys: (1..shards)
            .map(|n| Bytes::copy_from_slice(&cut(n, shards)))
            .collect(),
    };
    let keyspace = client
        .create_keyspace(name, options)
        .await
        .with_context(|| format!("make {shards} shards"))?;
    let deadline = Instant::now() + READY_MAX;
    loop {
        let why = match is_whole(client, name, shards).await {
            Ok(None) => return Ok(keyspace),
            Ok(Some(why)) => why,
            Err(error) => error.to_string(),
        };
        ensure!(
            Instant::now() < deadline,
            "{shards} shards are not healthy in time: {why}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// What a keyspace still lacks; `None` when all its shards are there and the cluster is healthy.
async fn is_whole(client: &Client, name: &str, shards: u64) -> reelkv_client::Result<Option<String>> {
    let known = client.keyspaces().await?;
    let made = known
        .iter()
        .find(|keyspace| keyspace.name == name)
        .map_or(0, |keyspace| keyspace.shards);
    if made as u64 != shards {
        return Ok(Some(format!("{made} of {shards} were made")));
    }
    let status = client.admin().cluster_status().await?;
    Ok((status.health() != v1::Health::Ok).then_some(status.summary))
}

/// The first key of shard `n`.
fn cut(n: u64, shards: u64) -> [u8; 2] {
    ((n << 16) / shards).to_be_bytes()[6..]
        .try_into()
        .expect("two bytes are left")
}

/// The shard that holds a key.
fn shard_of(key: &[u8], shards: u64) -> usize {
    ((u64::from(u16::from_be_bytes([key[0], key[1]])) * shards) >> 16) as usize
}

/// Writes keys in batches, shard by shard.
async fn load(keyspace: &Keyspace, keys: std::ops::Range<u64>, shards: u64) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(keys.start));
    let piece = BATCH_RECORDS * shards;
    let mut loaders = JoinSet::new();
    for n in 0..(BATCHES_IN_FLIGHT / shards).max(2) {
        let (keyspace, next) = (keyspace.with_timeout(BATCH_MAX), next.clone());
        loaders.spawn(async move {
            let mut rng = SmallRng::seed_from_u64(SEED ^ n ^ keys.start);
            loop {
                let first = next.fetch_add(piece, Ordering::Relaxed);
                if first >= keys.end {
                    return anyhow::Ok(());
                }
                write(
                    &keyspace,
                    batches(first..keys.end.min(first + piece), shards, &mut rng),
                )
                .await?;
            }
        });
    }
    while let Some(loaded) = loaders.join_next().await {
        loaded?.context("loading")?;
    }
    Ok(())
}

async fn write(keyspace: &Keyspace, batches: Vec<Batch>) -> anyhow::Result<()> {
    let mut writing = JoinSet::new();
    for batch in batches {
        let keyspace = keyspace.clone();
        writing.spawn(async move { keyspace.batch(batch).await });
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    Ok(())
}

/// Keys with random values, by the shard that holds them; none is larger than a batch may be.
fn batches(keys: std::ops::Range<u64>, shards: u64, rng: &mut SmallRng) -> Vec<Batch> {
    let mut by_shard = vec![Batch::new(); shards as usize];
    let mut full = Vec::new();
    for n in keys {
        let key = key(n);
        let batch = &mut by_shard[shard_of(&key, shards)];
        *batch = std::mem::take(batch).put(key, value(rng, VALUE_BYTES));
        if batch.len() as u64 >= 2 * BATCH_RECORDS {
            full.push(std::mem::take(batch));
        }
    }
    full.extend(by_shard.into_iter().filter(|batch| !batch.is_empty()));
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_shard_whose_cuts_surround_it() {
        for shards in [1, 8, 64, 512] {
            for key in (0..2_000).map(key) {
                let n = shard_of(&key, shards) as u64;
                assert!(n == 0 || cut(n, shards)[..] <= key[..2], "{shards} {n} {key:?}");
                assert!(
                    n + 1 == shards || key[..2] < cut(n + 1, shards)[..],
                    "{shards} {n} {key:?}"
                );
            }
        }
    }

    #[test]
    fn batches_hold_every_key_once() {
        let mut rng = SmallRng::seed_from_u64(1);
        for shards in [1, 8, 512] {
            let batches = batches(5..10_005, shards, &mut rng);
            assert_eq!(batches.iter().map(Batch::len).sum::<usize>(), 10_000);
            assert!(
                batches
                    .iter()
                    .all(|batch| batch.len() as u64 <= 2 * BATCH_RECORDS)
            );
        }
    }
}
