//! The simulator's golden images: three machines that lost power just after four entries were
//! acknowledged that no tree has checkpointed yet, with four records in their trees that no log has
//! any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reelkv::disk::sim::SimDisk;
use reelkv::storage::MemoryDevice;
use reelkv_client::Keyspace;
use reelkv_proto::types::{KeyRange, ShardId, stored_key};

use super::super::image::{KEYSPACE, client_keyspace};
use super::super::judge::{self, Model};
use super::super::world::NODES;
use super::{Damage, ITEMS, is_bad};
use crate::run::panics;
use crate::sim::{self, Cluster, Settings};

fn settings() -> Settings {
    Settings {
        nodes: NODES,
        shards: 2,
        replicas: NODES as u32,
        ..Settings::default()
    }
}

/// Entries behind the records, so that the log of the records is let go.
const FILLERS: u64 = 120;
/// Checkpoints and purges are done by then.
const SETTLED_WITHIN: Duration = Duration::from_secs(7);
/// The log is idle and its last batch marked as durable by then.
const IDLE_WITHIN: Duration = Duration::from_millis(120);
/// How often the entries may be written again because a checkpoint came in between.
const ATTEMPTS: usize = 60;

/// Everything that T4 needs of the simulator.
pub struct SimImage {
    /// All nodes have all entries.
    whole: Golden,
    /// A node lacks the last two entries; by node, where one could be made.
    lagging: Vec<Golden>,
    pub(super) keyspace_id: u32,
    pub(super) unhurt_all: Duration,
    pub(super) unhurt_one_off: Duration,
}

/// An entry that is damaged.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its index in the log.
    pub index: u64,
    /// Bytes that stand in its payload and nowhere else.
    marker: Bytes,
    /// Where its payload is in each node's log; empty where the node lacks it.
    places: Vec<Vec<(PathBuf, usize)>>,
}

/// Three machines, off.
pub struct Golden {
    machines: Vec<(SimDisk, Arc<MemoryDevice>)>,
    /// The entries that are damaged.
    pub entries: Vec<Entry>,
    /// The keys of the records that are damaged.
    pub records: Vec<Bytes>,
    /// What clients were told.
    pub model: Arc<Model>,
    /// The shard of all of them.
    pub shard_id: ShardId,
    range: KeyRange,
    keyspace_id: u32,
    lagging: Option<usize>,
}

impl SimImage {
    /// Makes them.
    ///
    /// # Errors
    /// Something went wrong before any fault.
    pub fn make(seed: u64) -> anyhow::Result<Self> {
        let panics = panics::watch();
        let make = |lagging: Option<usize>| -> anyhow::Result<Golden> {
            let runtime = sim::runtime(seed)?;
            let golden = runtime.block_on(async { Maker::start(seed).await?.make(lagging).await });
            runtime.shutdown_timeout(Duration::from_secs(5));
            golden
        };
        let whole = make(None).context("the simulator's golden image")?;
        let mut lagging = Vec::new();
        for node in 0..NODES {
            // A node that leads the shard cannot lag.
            let golden = make(Some(node)).context("a golden image with a lagging node")?;
            if golden.lagging == Some(node) {
                lagging.push(golden);
            }
        }
        ensure!(lagging.len() >= 2, "only {} nodes could lag", lagging.len());
        let mut image = Self {
            keyspace_id: whole.keyspace_id,
            whole,
            lagging,
            unhurt_all: Duration::ZERO,
            unhurt_one_off: Duration::ZERO,
        };
        ensure!(panics.seen().is_empty(), "panics: {:?}", panics.seen());
        drop(panics);
        image.measure_unhurt()?;
        Ok(image)
    }

    /// The image in which this node lags, or another if it cannot.
    pub(super) fn golden(&self, lagging: Option<usize>) -> &Golden {
        match lagging {
            None => &self.whole,
            Some(node) => &self.lagging[node % self.lagging.len()],
        }
    }

    /// The disk of the first machine, as it is when nothing was damaged.
    pub fn disk(&self, seed: u64) -> SimDisk {
        self.whole.machines[0].0.copy(seed)
    }

    /// A cluster of which only the first machine can be started, with this disk in it.
    pub fn with_disk(&self, disk: SimDisk, seed: u64) -> Cluster {
        let disks = vec![(disk, Arc::new(self.whole.machines[0].1.copy()))];
        Cluster::of_disks(settings(), seed, self.keyspace_id, disks)
    }
}

impl Golden {
    /// Whether a node has an entry at all.
    pub fn has_entry(&self, item: usize, node: usize) -> bool {
        !self.entries[item].places[node].is_empty()
    }

    /// Whether a key is of the shard that is struck.
    pub fn is_of_shard(&self, key: &[u8]) -> bool {
        self.range.contains(&stored_key(self.keyspace_id, key))
    }

    /// A cluster of copies with the damage in them, off.
    pub(super) fn struck(&self, image: &SimImage, damage: &Damage, seed: u64) -> anyhow::Result<Cluster> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut disks = Vec::new();
        for (node, (disk, device)) in self.machines.iter().enumerate() {
            let (disk, device) = (disk.copy(rng.random()), device.copy());
            for item in 0..ITEMS {
                if is_bad(damage.entries, item, node) {
                    for (path, at) in &self.entries[item].places[node] {
                        let at = at + rng.random_range(0..self.entries[item].marker.len());
                        ensure!(
                            disk.corrupt(path, at, 1 << rng.random_range(0..8)),
                            "no such byte"
                        );
                    }
                }
                if is_bad(damage.records, item, node) {
                    self.damage_record(&device, item)?;
                }
            }
            disks.push((disk, Arc::new(device)));
        }
        Ok(Cluster::of_disks(settings(), seed, image.keyspace_id, disks))
    }

    fn damage_record(&self, device: &MemoryDevice, item: usize) -> anyhow::Result<()> {
        let wanted = stored_key(self.keyspace_id, &self.records[item]);
        let mut trees = device.trees().into_iter();
        let tree = trees.find(|tree| tree.shard_id == self.shard_id);
        let tree = tree.context("a tree of the shard")?;
        // Which record a number chooses is found on a copy.
        let (scratch, mut pick) = (device.copy(), 0);
        loop {
            match scratch.damage_record(tree, pick) {
                Some(key) if key == wanted => break,
                Some(_) if pick < 10_000 => pick += 1,
                _ => bail!("the record is not in the tree"),
            }
        }
        device.damage_record(tree, pick).context("the record is there")?;
        Ok(())
    }
}

struct Maker {
    cluster: Cluster,
    keyspace: Keyspace,
    model: Model,
    rng: SmallRng,
    shard_id: ShardId,
    range: KeyRange,
}

fn record(item: usize) -> Bytes {
    Bytes::from(format!("\u{10}record {item}"))
}

impl Maker {
    async fn start(seed: u64) -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(settings(), seed);
        cluster.start(KEYSPACE).await?;
        cluster.whole(Duration::from_secs(60)).await?;
        let keyspace = client_keyspace(cluster.network(), seed).await?;
        let map = judge::directory(cluster.network(), &cluster.addrs())?;
        let stored = stored_key(keyspace.id(), &record(0));
        let mut shards = map.shards.iter();
        let shard = shards.find(|shard| KeyRange::of(shard).contains(&stored));
        let shard = shard.context("the shard of the records")?;
        Ok(Self {
            shard_id: shard.shard_id,
            range: KeyRange::of(shard),
            cluster,
            keyspace,
            model: Model::default(),
            rng: SmallRng::seed_from_u64(seed),
        })
    }

    async fn put(&mut self, key: Bytes, value: Bytes) -> anyhow::Result<()> {
        self.keyspace.put(&key, value.clone()).await?;
        self.model.extend([(key, Some(value))]);
        Ok(())
    }

    async fn make(mut self, lagging: Option<usize>) -> anyhow::Result<Golden> {
        for number in 0..40 {
            self.put(judge::key(number), judge::value(number, 0, 60)).await?;
        }
        for item in 0..ITEMS {
            self.put(record(item), judge::value(item as u64, 1, 80)).await?;
        }
        for number in 0..FILLERS {
            let filler = Bytes::from_static(b"\x11filler");
            self.put(filler, judge::value(number, 2, 30)).await?;
        }
        tokio::time::sleep(SETTLED_WITHIN).await;
        for _ in 0..ATTEMPTS {
            let leader = judge::leader_of(self.cluster.network(), &self.cluster.addrs(), self.shard_id);
            let lagging = lagging.filter(|node| leader != Some(*node));
            let mut entries = Vec::new();
            for item in 0..ITEMS {
                if let (2, Some(node)) = (item, lagging) {
                    tokio::time::sleep(IDLE_WITHIN).await;
                    ensure!(self.cluster.crash(node), "it was on");
                }
                entries.push(self.write_entry(item).await?);
            }
            tokio::time::sleep(IDLE_WITHIN).await;
            if self.is_in_log_only(entries[0].0, lagging)? {
                return self.cut_power(entries, lagging);
            }
            if let Some(node) = lagging {
                self.cluster.start_node(node).await?;
                self.cluster.whole(Duration::from_secs(60)).await?;
            }
            let pause = self.rng.random_range(100..900);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        bail!("a checkpoint always came in between")
    }

    async fn write_entry(&mut self, item: usize) -> anyhow::Result<(u64, Bytes)> {
        let marker = Bytes::from(format!("<entry {item}, {:032x}>", self.rng.random::<u128>()));
        let key = Bytes::from(format!("\u{12}entry {item}"));
        self.put(key, marker.clone()).await?;
        let addrs = self.cluster.addrs();
        let leader = judge::leader_of(self.cluster.network(), &addrs, self.shard_id);
        let node = leader.and_then(|leader| self.cluster.node(leader));
        let member = node.and_then(|node| node.member()).context("a leader")?;
        let replica = member.replicas().get(self.shard_id).context("its replica")?;
        Ok((replica.status().last_log_index, marker))
    }

    /// Whether no tree has these entries, and no log has those of the records.
    fn is_in_log_only(&self, first: u64, lagging: Option<usize>) -> anyhow::Result<bool> {
        for node in (0..NODES).filter(|node| lagging != Some(*node)) {
            let member = self.cluster.node(node).and_then(|node| node.member());
            let replica = member.and_then(|member| member.replicas().get(self.shard_id));
            let replica = replica.context("a replica of the shard")?;
            let purged = replica.store().group().purged().map_or(0, |purged| purged.index);
            ensure!(
                purged > ITEMS as u64 + 50,
                "the log of the records is kept: {purged}"
            );
            if replica.status().checkpoint_index >= first {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn cut_power(mut self, entries: Vec<(u64, Bytes)>, lagging: Option<usize>) -> anyhow::Result<Golden> {
        for node in 0..NODES {
            self.cluster.crash(node);
        }
        let machines: Vec<_> = (0..NODES)
            .map(|node| {
                let device = Arc::new(self.cluster.device(node).copy());
                (self.cluster.disk(node).copy(node as u64), device)
            })
            .collect();
        let mut found = Vec::new();
        for (item, (index, marker)) in entries.into_iter().enumerate() {
            let places: Vec<_> = machines.iter().map(|(disk, _)| places(disk, &marker)).collect();
            for (node, places) in places.iter().enumerate() {
                let lacks = lagging == Some(node) && item >= 2;
                ensure!(
                    places.is_empty() == lacks,
                    "entry {item} on node {}: {places:?}",
                    node + 1
                );
            }
            found.push(Entry {
                index,
                marker,
                places,
            });
        }
        Ok(Golden {
            machines,
            entries: found,
            records: (0..ITEMS).map(record).collect(),
            model: Arc::new(self.model),
            shard_id: self.shard_id,
            range: self.range,
            keyspace_id: self.keyspace.id(),
            lagging,
        })
    }
}

/// Where some bytes stand in the log at rest.
fn places(disk: &SimDisk, marker: &[u8]) -> Vec<(PathBuf, usize)> {
    let mut places = Vec::new();
    for (path, bytes) in disk.contents() {
        if path.extension().is_some_and(|extension| extension == "wal") {
            let windows = bytes.windows(marker.len()).enumerate();
            let found = windows.filter(|(_, window)| *window == marker);
            places.extend(found.map(|(at, _)| (path.clone(), at)));
        }
    }
    places
}
