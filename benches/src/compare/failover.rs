//! A leader dies; all nodes start again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use reelkv_client::{Client, Keyspace, v1};
use reelkv_proto::types::{KeyRange, ShardId, stored_key};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::reelkv::KEYSPACE;
use crate::cluster::Cluster;
use crate::target::{Key, key};

/// How long any one step may take.
const STEP_MAX: Duration = Duration::from_secs(120);
/// How long a call to the cluster may take.
const CALL_MAX: Duration = Duration::from_secs(10);
/// How long leaders may take to spread over the nodes again, after which the next kill comes anyway.
const SPREAD_MAX: Duration = Duration::from_secs(20);
const POLL_PAUSE: Duration = Duration::from_millis(100);
/// Keys looked through for one in each shard.
const KEYS_TRIED: u64 = 1_000_000;

/// One kill of the node that leads most shards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failover {
    pub node: usize,
    /// From the kill to the first accepted write on each shard the node led, in ascending order.
    pub first_write_s: Vec<f64>,
    pub median_s: f64,
    pub max_s: f64,
    /// From starting the process again until it is ready.
    pub ready_s: f64,
}

/// All nodes killed at once and started again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Startup {
    /// Keys that were loaded.
    pub keys: u64,
    /// From starting the processes until all are ready.
    pub ready_s: f64,
    /// Until every shard has accepted a write.
    pub writable_s: f64,
}

struct Shards {
    client: Client,
    keyspace: Keyspace,
}

/// One key of a shard.
type Probe = (ShardId, Key);

/// Kills the node that leads most shards of the keyspace, and starts it again.
pub async fn kill_leader(cluster: &mut Cluster) -> anyhow::Result<Failover> {
    let shards = Shards::of(cluster).await?;
    let status = shards.healthy().await?;
    let (node, probes) = shards.most_led(cluster, &status)?;
    // Connections and routes are there, as those of a service that has been running.
    shards
        .write("a write before the kill", &probes, Instant::now())
        .await?;
    let killed = Instant::now();
    cluster.kill(node).await?;
    let mut first_write_s = shards.write("writes after the kill", &probes, killed).await?;
    first_write_s.sort_by(f64::total_cmp);
    let ready_s = cluster.restart(node).await?.as_secs_f64();
    shards.healthy().await?;
    shards.spread().await?;
    Ok(Failover {
        node,
        median_s: super::bars::median(&first_write_s).unwrap_or_default(),
        max_s: first_write_s.last().copied().unwrap_or_default(),
        first_write_s,
        ready_s,
    })
}

/// Kills all nodes and starts them again.
pub async fn restart_all(cluster: &mut Cluster, keys: u64) -> anyhow::Result<Startup> {
    let shards = Shards::of(cluster).await?;
    let status = shards.healthy().await?;
    let probes = shards.probes(&status, None)?;
    for node in 0..cluster.addrs().len() {
        cluster.kill(node).await?;
    }
    let started = Instant::now();
    let ready_s = cluster.restart_all().await?.as_secs_f64();
    let writable = shards
        .write("writes after all nodes were started", &probes, started)
        .await?;
    shards.healthy().await?;
    Ok(Startup {
        keys,
        ready_s,
        writable_s: writable.into_iter().fold(0.0, f64::max),
    })
}

impl Shards {
    async fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let client = Client::connect(cluster.addrs())
            .await
            .context("connect to reelkv")?;
        let keyspace = client.keyspace(KEYSPACE).await.context("find the keyspace")?;
        Ok(Self { client, keyspace })
    }

    async fn status(&self) -> Result<v1::ClusterStatus, String> {
        let admin = self.client.admin().with_timeout(CALL_MAX);
        admin.cluster_status().await.map_err(|error| error.to_string())
    }

    /// Waits until all is well and every shard has a leader.
    async fn healthy(&self) -> anyhow::Result<v1::ClusterStatus> {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            let why = match self.status().await {
                Ok(status) => {
                    let leaderless = status
                        .shards
                        .iter()
                        .filter(|shard| shard.leader_node_id == 0)
                        .count();
                    if status.health() == v1::Health::Ok && leaderless == 0 {
                        return Ok(status);
                    }
                    format!("{} ({leaderless} shards without a leader)", status.summary)
                }
                Err(error) => error,
            };
            anyhow::ensure!(
                Instant::now() < deadline,
                "the cluster is not healthy after {} s: {why}",
                STEP_MAX.as_secs()
            );
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }

    /// Waits until every node leads something again, for a while.
    async fn spread(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SPREAD_MAX;
        while Instant::now() < deadline {
            let status = self.healthy().await?;
            let nodes = status.nodes.iter();
            if nodes
                .map(|node| node.leaders)
                .min()
                .is_some_and(|leaders| leaders > 0)
            {
                break;
            }
            tokio::time::sleep(POLL_PAUSE).await;
        }
        Ok(())
    }

    /// The node that leads most shards of the keyspace, and a key of each of them.
    fn most_led(&self, cluster: &Cluster, status: &v1::ClusterStatus) -> anyhow::Result<(usize, Vec<Probe>)> {
        let mut led: BTreeMap<u64, Vec<Probe>> = BTreeMap::new();
        for node in &status.nodes {
            let Some(node) = &node.node else { continue };
            led.insert(node.node_id, self.probes(status, Some(node.node_id))?);
        }
        let most = led.into_iter().max_by_key(|(_, probes)| probes.len());
        let (node_id, probes) = most
            .filter(|(_, probes)| !probes.is_empty())
            .context("no node leads a shard")?;
        let descriptors = status.nodes.iter().filter_map(|node| node.node.as_ref());
        let addr = descriptors
            .filter(|node| node.node_id == node_id)
            .map(|node| &node.addr)
            .next();
        let at = cluster.addrs().iter().position(|known| Some(known) == addr);
        Ok((at.context("the leader is none of the nodes started")?, probes))
    }

    /// A key of each shard of the keyspace; with a leader given, of those it leads.
    fn probes(&self, status: &v1::ClusterStatus, leader: Option<u64>) -> anyhow::Result<Vec<Probe>> {
        let whole = KeyRange::of_keyspace(self.keyspace.id());
        let mut probes = Vec::new();
        for shard in &status.shards {
            let Some(descriptor) = &shard.descriptor else {
                continue;
            };
            let range = KeyRange::of(descriptor).intersect(&whole);
            let (Some(range), true) = (range, leader.is_none_or(|leader| leader == shard.leader_node_id))
            else {
                continue;
            };
            let inside = |key: &Key| range.contains(&stored_key(self.keyspace.id(), key));
            let found = (0..KEYS_TRIED).map(key).find(inside);
            let found =
                found.with_context(|| format!("no key of shard {} was found", descriptor.shard_id))?;
            probes.push((descriptor.shard_id, found));
        }
        Ok(probes)
    }

    /// Writes to every shard at once. Returns how long after `since` each had accepted one.
    async fn write(&self, step: &str, probes: &[Probe], since: Instant) -> anyhow::Result<Vec<f64>> {
        let mut writing = JoinSet::new();
        for (shard, key) in probes.iter().copied() {
            let keyspace = self.keyspace.with_timeout(STEP_MAX);
            writing.spawn(async move {
                let put = keyspace.put(key, "first").await;
                put.map(|_| since.elapsed().as_secs_f64())
                    .with_context(|| format!("shard {shard}"))
            });
        }
        let mut seconds = Vec::new();
        let all = async {
            while let Some(written) = writing.join_next().await {
                seconds.push(written??);
            }
            anyhow::Ok(())
        };
        // Longer than a put's own deadline, whose error says more.
        match timeout(STEP_MAX + CALL_MAX, all).await {
            Ok(done) => done.with_context(|| step.to_owned())?,
            Err(_) => anyhow::bail!(
                "{step}: not accepted by all shards after {} s",
                STEP_MAX.as_secs()
            ),
        }
        Ok(seconds)
    }
}
