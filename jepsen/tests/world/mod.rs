//! A simulated cluster of three nodes, and what clients were told is in it: the stage of the stories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use reelkv::clock::now;
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::{Front, Member, Node};
use reelkv_jepsen::sim::{self, Cluster, Network, Settings};
use reelkv_proto::types::{KeyRange, stored_key};
use reelkv_proto::v1::{self, request::Op, response};

/// The machine that things happen to.
pub const VICTIM: usize = 1;

/// Runs a page for some seeds; a failure says which.
pub fn page<Story>(name: &str, story: impl Fn(World) -> Story)
where
    Story: Future<Output = anyhow::Result<()>>,
{
    page_of(Settings::default(), name, story);
}

/// As [`page`], on a cluster of another shape.
pub fn page_of<Story>(settings: Settings, name: &str, story: impl Fn(World) -> Story)
where
    Story: Future<Output = anyhow::Result<()>>,
{
    let seeds = match number("REELKV_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("REELKV_PAGE_SEEDS").unwrap_or(3),
    };
    for seed in seeds {
        let runtime = sim::runtime(seed).expect("a runtime");
        let outcome = runtime.block_on(async { story(World::start(settings, seed).await?).await });
        runtime.shutdown_timeout(Duration::from_secs(5));
        if let Err(error) = outcome {
            panic!(
                "seed {seed}: {error:?}\nreproduce with: REELKV_SEED={seed} cargo test -p reelkv-jepsen --test {} {name}",
                env!("CARGO_CRATE_NAME")
            );
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// A cluster and what clients were told is in it.
pub struct World {
    pub seed: u64,
    pub cluster: Cluster,
    pub client: Client,
    pub acknowledged: BTreeMap<Bytes, Bytes>,
    pub next: u64,
}

/// Sends single requests, to any node; knows no map.
#[derive(Clone)]
pub struct Client {
    pub network: Network,
    pub addrs: Vec<String>,
    pub keyspace_id: u32,
}

/// Keys spread over the first byte, and so over the shards.
pub fn key(number: u64) -> Bytes {
    let mut key = vec![(number * 41 % 256) as u8];
    key.extend(number.to_be_bytes());
    key.into()
}

pub fn value(number: u64) -> Bytes {
    format!("<the value of {number:08}>").repeat(4).into()
}

impl Client {
    /// One attempt at one node; `None` when it was not done or nobody knows.
    pub async fn once(&self, addr: &str, op: Op) -> Option<response::Result> {
        let request = v1::Request {
            id: 1,
            timeout_ms: 3_000,
            op: Some(op),
        };
        let response =
            tokio::time::timeout(Duration::from_millis(3_500), self.network.request(addr, request)).await;
        match response.ok().flatten()?.result? {
            response::Result::Error(_) => None,
            result => Some(result),
        }
    }

    pub fn put_op(&self, key: &Bytes, value: &Bytes) -> Op {
        let client_crc = Some(reelkv_proto::checksum::client_crc(self.keyspace_id, key, value));
        let (key, value, keyspace_id) = (key.clone(), value.clone(), self.keyspace_id);
        Op::Put(v1::PutRequest {
            keyspace_id,
            key,
            value,
            client_crc,
            ..Default::default()
        })
    }

    pub fn get_op(&self, key: &Bytes) -> Op {
        Op::Get(v1::GetRequest {
            keyspace_id: self.keyspace_id,
            key: key.clone(),
            ..Default::default()
        })
    }

    /// Tries an operation at one node after the other for at most `limit`.
    pub async fn insist(
        &self,
        addrs: &[String],
        op: Op,
        limit: Duration,
    ) -> anyhow::Result<response::Result> {
        let deadline = now() + limit;
        for attempt in 0.. {
            if let Some(result) = self.once(&addrs[attempt % addrs.len()], op.clone()).await {
                return Ok(result);
            }
            ensure!(now() < deadline, "not done within {limit:?}: {op:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!("the attempts end at the deadline")
    }

    /// Reads a key at one of `addrs`.
    pub async fn get(&self, addrs: &[String], key: &Bytes, limit: Duration) -> anyhow::Result<Option<Bytes>> {
        match self.insist(addrs, self.get_op(key), limit).await? {
            response::Result::Get(get) => Ok(get.record.map(|record| record.value)),
            other => bail!("a read was answered by {other:?}"),
        }
    }
}

impl World {
    pub async fn start(settings: Settings, seed: u64) -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(settings, seed);
        let keyspace = cluster.start("replacement").await?;
        let client = Client {
            network: cluster.network().clone(),
            addrs: cluster.addrs(),
            keyspace_id: keyspace.keyspace_id,
        };
        let mut world = Self {
            seed,
            cluster,
            client,
            acknowledged: BTreeMap::new(),
            next: 1,
        };
        world.healthy().await?;
        world.write(60).await?;
        Ok(world)
    }

    /// Writes fresh keys, each within ten seconds.
    pub async fn write(&mut self, count: u64) -> anyhow::Result<()> {
        let addrs = self.client.addrs.clone();
        self.write_through(&addrs, count).await
    }

    pub async fn write_through(&mut self, addrs: &[String], count: u64) -> anyhow::Result<()> {
        for _ in 0..count {
            let (key, value) = (key(self.next), value(self.next));
            self.next += 1;
            self.client
                .insist(addrs, self.client.put_op(&key, &value), Duration::from_secs(10))
                .await?;
            self.acknowledged.insert(key, value);
        }
        Ok(())
    }

    /// Everything acknowledged can be read through any of the nodes.
    pub async fn read_all_through(&self, addrs: &[String]) -> anyhow::Result<()> {
        for (key, value) in &self.acknowledged {
            let found = self.client.get(addrs, key, Duration::from_secs(10)).await?;
            ensure!(
                found.as_ref() == Some(value),
                "{key:?} was acknowledged as {value:?} and is {found:?}"
            );
        }
        Ok(())
    }

    pub fn front(&self, position: usize) -> anyhow::Result<Front> {
        Ok(Front(
            self.cluster
                .node(position)
                .with_context(|| format!("node {position} is off"))?,
        ))
    }

    /// Boots a machine and waits until its replicas run.
    pub async fn restart(&mut self, position: usize) -> anyhow::Result<()> {
        self.cluster.start_node(position).await?;
        let deadline = now() + Duration::from_secs(120);
        let started = |node: Arc<Node>| node.member().is_some_and(|member| member.is_started());
        while !self.cluster.node(position).is_some_and(started) {
            ensure!(now() < deadline, "node {position} does not start its replicas");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The number the node on a machine has in the cluster.
    pub fn node_number(&self, position: usize) -> anyhow::Result<u64> {
        Ok(self.member(position)?.node_id())
    }

    /// The member of the cluster on a machine.
    pub fn member(&self, position: usize) -> anyhow::Result<Arc<Member>> {
        let node = self.cluster.node(position).context("the machine is off")?;
        node.member().context("the node is no member")
    }

    pub async fn node_status(&self, position: usize) -> anyhow::Result<v1::NodeStatus> {
        self.front(position)?
            .node_status()
            .await
            .map_err(|error| anyhow::anyhow!(error.message))
    }

    /// Waits until every node says that nothing is wrong, for at most two minutes.
    pub async fn healthy(&self) -> anyhow::Result<()> {
        let deadline = now() + Duration::from_secs(120);
        for position in 0..self.client.addrs.len() {
            loop {
                let status = self.front(position)?.cluster_status().await;
                let status = status.map_err(|error| anyhow::anyhow!(error.message))?;
                if status.health() == v1::Health::Ok {
                    break;
                }
                if now() > deadline {
                    let damage = self.node_status(VICTIM).await?.damage;
                    let open: Vec<_> = damage.iter().filter(|event| event.repaired_at_ms == 0).collect();
                    bail!(
                        "node {position} says: {}; open damage of the victim: {open:#?}",
                        status.summary
                    );
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    /// The end of every page: all is well, the replicas agree, and nothing acknowledged is missing.
    pub async fn ends_well(&mut self) -> anyhow::Result<()> {
        self.healthy().await?;
        self.write(20).await?;
        let shards = self.cluster.agree().await?;
        ensure!(shards > 3, "only {shards} shards were compared");
        self.read_all_through(&self.client.addrs).await
    }

    /// Which machine leads each data shard that holds records, and in which term.
    pub async fn leaderships(&self) -> anyhow::Result<BTreeMap<u64, (usize, u64)>> {
        let mut leaders = BTreeMap::new();
        for position in 0..self.client.addrs.len() {
            let replicas = self.node_status(position).await?.replicas;
            let led = replicas
                .into_iter()
                .filter(|replica| replica.is_leader && self.records_of(replica) > 3);
            leaders.extend(led.map(|replica| (replica.shard_id, (position, replica.term))));
        }
        ensure!(leaders.len() > 1, "data shards with records: {leaders:?}");
        Ok(leaders)
    }

    /// How many acknowledged records lie in a replica's range.
    fn records_of(&self, replica: &v1::ReplicaStatus) -> usize {
        let range = replica.descriptor.as_ref().map(KeyRange::of).unwrap_or_default();
        let stored = |key: &Bytes| stored_key(self.client.keyspace_id, key);
        let keys = self.acknowledged.keys();
        keys.filter(|key| range.contains(&stored(key))).count()
    }

    /// Time for checkpoints to be made and the log to go idle.
    pub async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(6)).await;
    }

    /// The victim's power is lost, and then all of its trees.
    pub fn lose_all_trees(&mut self) -> anyhow::Result<()> {
        ensure!(self.cluster.crash(VICTIM), "the victim was off");
        let device = self.cluster.device(VICTIM).clone();
        for tree in device.trees() {
            ensure!(device.lose(tree), "{tree} was there");
        }
        Ok(())
    }

    /// Whether the victim's replicas run and trust their trees.
    pub async fn is_trusted(&self) -> anyhow::Result<bool> {
        let replicas = self.node_status(VICTIM).await?.replicas;
        Ok(!replicas.is_empty() && replicas.iter().all(|replica| replica.state == "trusted"))
    }
}
