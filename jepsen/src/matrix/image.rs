//! The golden image: three directories of a cluster that was used and stopped in order, an older copy
//! of each, and what its clients were told is in it. Made once per seed, in virtual time, so that the
//! same seed gives the same blocks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::Front;
use reelkv::storage::EngineKind;
use reelkv_client::{Client, Keyspace};
use reelkv_proto::v1;

use super::files::Snapshot;
use super::judge::{self, Model};
use super::world::{self, CHECKPOINT_INTERVAL_MS, NODES, Pace, World};
use crate::run::panics;
use crate::sim::{Network, SimConnector};

/// The keyspace of every case.
pub const KEYSPACE: &str = "matrix";
/// Data shards; the keyspace lies across both.
pub const SHARDS: u32 = 2;
/// Keys that are written, overwritten and deleted.
pub const KEYS: u64 = 300;
/// Writes that are under way at the same time.
pub const BURST: usize = 12;
/// Rounds of writing, with time for a checkpoint after each.
const ROUNDS: usize = 6;
const BURSTS_PER_ROUND: usize = 8;
/// After so many rounds the older copy is made.
const OLD_AFTER: usize = 3;
/// Bursts after the last checkpoint: live entries of the log.
const LAST_BURSTS: usize = 5;

/// The golden image.
pub struct Image {
    /// The engine of its trees.
    pub engine: EngineKind,
    /// Everything follows from it.
    pub seed: u64,
    /// The directories.
    pub nodes: Vec<Snapshot>,
    /// The same, earlier.
    pub old: Vec<Snapshot>,
    /// What clients were told.
    pub model: Arc<Model>,
}

impl Image {
    /// Makes it below `base`, which is left empty.
    ///
    /// # Errors
    /// Something went wrong before any fault.
    pub fn make(base: &Path, engine: EngineKind, seed: u64) -> anyhow::Result<Self> {
        let panics = panics::watch();
        let runtime = Pace::Virtual.runtime(seed, &panics)?;
        let image = runtime.block_on(async { Maker::new(base, engine, seed).make().await });
        runtime.shutdown_timeout(Duration::from_secs(5));
        super::files::remove(base);
        let image = image.context("the golden image")?;
        let seen = panics.seen();
        ensure!(seen.is_empty(), "while the golden image was made: {seen:?}");
        Ok(image)
    }
}

struct Maker<'a> {
    base: &'a Path,
    world: World,
    rng: SmallRng,
    model: Model,
    engine: EngineKind,
    seed: u64,
    written: u64,
}

impl<'a> Maker<'a> {
    fn new(base: &'a Path, engine: EngineKind, seed: u64) -> Self {
        Self {
            base,
            world: World::new(base, engine, Pace::Virtual, seed),
            rng: SmallRng::seed_from_u64(seed),
            model: Model::default(),
            engine,
            seed,
            written: 0,
        }
    }

    async fn make(mut self) -> anyhow::Result<Image> {
        self.start_all().await?;
        self.make_cluster().await?;
        for _ in 0..OLD_AFTER {
            self.round().await?;
        }
        let old = self.stop_and_read().await?;
        self.start_all().await?;
        for _ in OLD_AFTER..ROUNDS {
            self.round().await?;
        }
        // What is written from here on is in the log only.
        self.world.stop_all().await;
        self.world.checkpoint_every(3_600_000);
        self.start_all().await?;
        let keyspace = self.keyspace().await?;
        for _ in 0..LAST_BURSTS {
            self.burst(&keyspace).await?;
        }
        drop(keyspace);
        // Time for the memory of the others' logs to be written.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let nodes = self.stop_and_read().await?;
        Ok(Image {
            engine: self.engine,
            seed: self.seed,
            nodes,
            old,
            model: Arc::new(self.model),
        })
    }

    async fn start_all(&self) -> anyhow::Result<()> {
        let started = (0..NODES).map(|position| self.world.start(position));
        for started in futures::future::join_all(started).await {
            started?;
        }
        Ok(())
    }

    async fn make_cluster(&self) -> anyhow::Result<()> {
        let front = Front(
            self.world
                .network()
                .node(&world::addr(0))
                .context("node 1 runs")?,
        );
        let told = |error: v1::Error| anyhow::anyhow!(error.message);
        let init = v1::InitClusterRequest {
            shards: 1,
            replicas: NODES as u32,
        };
        front.init_cluster(init).await.map_err(told)?;
        let request = v1::CreateKeyspaceRequest {
            name: KEYSPACE.to_owned(),
            shards: SHARDS,
            ..Default::default()
        };
        for _ in 0..100 {
            if front.create_keyspace(request.clone()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        front.create_keyspace(request).await.map_err(told).map(drop)
    }

    async fn keyspace(&self) -> anyhow::Result<Keyspace> {
        client_keyspace(self.world.network(), self.seed).await
    }

    async fn round(&mut self) -> anyhow::Result<()> {
        let keyspace = self.keyspace().await?;
        for _ in 0..BURSTS_PER_ROUND {
            self.burst(&keyspace).await?;
        }
        tokio::time::sleep(Duration::from_millis(CHECKPOINT_INTERVAL_MS * 2)).await;
        Ok(())
    }

    /// Writes some keys at once: puts, overwrites and deletes.
    async fn burst(&mut self, keyspace: &Keyspace) -> anyhow::Result<()> {
        let mut numbers: Vec<u64> = (0..KEYS).collect();
        numbers = numbers.choose_multiple(&mut self.rng, BURST).copied().collect();
        let mut writes = Vec::new();
        for number in numbers {
            self.written += 1;
            let deletes = self.rng.random_ratio(1, 6);
            let len = self.rng.random_range(20..400);
            let value: Option<Bytes> = (!deletes).then(|| judge::value(number, self.written, len));
            writes.push((judge::key(number), value));
        }
        let done = writes.iter().map(|(key, value)| async move {
            match value {
                Some(value) => keyspace.put(key, value.clone()).await,
                None => keyspace.delete(key).await,
            }
        });
        for done in futures::future::join_all(done).await {
            done.context("a write of the golden image")?;
        }
        self.model.extend(writes);
        Ok(())
    }

    async fn stop_and_read(&self) -> anyhow::Result<Vec<Snapshot>> {
        self.world.stop_all().await;
        let read = |position| Snapshot::read(&world::dir(self.base, position));
        Ok((0..NODES).map(read).collect::<Result<_, _>>()?)
    }
}

/// The keyspace through a real client, over the network in memory.
///
/// # Errors
/// Nobody answers, or nobody knows it.
pub async fn client_keyspace(network: &Network, seed: u64) -> anyhow::Result<Keyspace> {
    let client = Client::builder()
        .addrs((0..NODES).map(world::addr))
        .connector(Arc::new(SimConnector::new(network.clone())))
        .seed(seed)
        .timeout(judge::CALL_MAX)
        .build()
        .await?;
    Ok(client.keyspace(KEYSPACE).await?)
}

/// Sizes of what is in a directory, by structure: for people.
pub fn census(snapshot: &Snapshot) -> BTreeMap<&'static str, (usize, usize)> {
    let mut census: BTreeMap<&'static str, (usize, usize)> = BTreeMap::new();
    let lookup = super::structure::Layout::of(snapshot);
    for (name, bytes) in &snapshot.files {
        for block in super::structure::blocks(bytes) {
            let entry = census
                .entry(lookup.of_block(name, bytes, block).name)
                .or_default();
            entry.0 += 1;
            entry.1 += usize::from(!super::structure::is_zero(bytes, block));
        }
    }
    census
}
