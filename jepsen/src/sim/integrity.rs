//! Whether a cluster is whole, and whether all replicas hold the same.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use reelkv::clock::now;
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::Front;
use reelkv_proto::types::{ShardId, Version};
use reelkv_proto::v1;

use super::Cluster;

/// How long replicas may take to agree once nothing is wrong any more.
const AGREE_WITHIN: Duration = Duration::from_secs(120);

/// What a replica holds: version and value of each stored key.
type Held = BTreeMap<Bytes, (Version, Bytes)>;

impl Cluster {
    /// Waits until every node says that nothing is wrong, for at most `limit`.
    ///
    /// # Errors
    /// One says otherwise then, and what.
    pub async fn whole(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = now() + limit;
        for position in 0..self.addrs().len() {
            loop {
                let node = self.node(position).context("a node is off")?;
                let said = match Front(node).cluster_status().await {
                    Ok(status) if status.health() == v1::Health::Ok => break,
                    Ok(status) => status.summary,
                    Err(error) => error.message,
                };
                ensure!(
                    now() < deadline,
                    "node {} says after {limit:?}: {said}",
                    position + 1
                );
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    /// Waits until every shard's replicas agree on all they hold. Returns how many shards there are.
    ///
    /// # Errors
    /// They do not within two minutes; says which shard and how they differ.
    pub async fn agree(&self) -> anyhow::Result<usize> {
        let deadline = now() + AGREE_WITHIN;
        loop {
            match self.compare_digests().await {
                Ok(shards) => return Ok(shards),
                Err(difference) if now() > deadline => return Err(difference),
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// Reads everything from every replica. Returns how many records were compared.
    ///
    /// # Errors
    /// Two replicas of a shard hold something different, or one cannot be read.
    pub async fn read_every_replica(&self) -> anyhow::Result<usize> {
        let mut compared = 0;
        for shard_id in self.shard_ids()? {
            let mut seen: Option<(String, Held)> = None;
            for addr in self.holders(shard_id)? {
                let held = self.read_replica(&addr, shard_id).await?;
                compared += held.len();
                match &seen {
                    None => seen = Some((addr, held)),
                    Some((_, other)) if *other == held => {}
                    Some((other_addr, other)) => {
                        let differs = |key: &&Bytes| other.get(*key) != held.get(*key);
                        let key = other.keys().chain(held.keys()).find(differs);
                        bail!(
                            "shard {shard_id}: of key {key:?} {other_addr} holds {:?} and {addr} {:?}",
                            key.and_then(|key| other.get(key)),
                            key.and_then(|key| held.get(key))
                        );
                    }
                }
            }
        }
        Ok(compared)
    }

    /// Has the voters of a shard compared, for at most `limit` until it can be done.
    ///
    /// # Errors
    /// It could not.
    pub async fn verify(
        &self,
        shard_id: ShardId,
        limit: Duration,
    ) -> anyhow::Result<v1::VerifyShardResponse> {
        let deadline = now() + limit;
        for attempt in 0.. {
            let node = self.node(attempt % self.addrs().len());
            let request = v1::VerifyShardRequest {
                shard_id,
                ..Default::default()
            };
            let said = match node {
                Some(node) => match Front(node).verify_shard(request).await {
                    Ok(found) => return Ok(found),
                    Err(error) => error.message,
                },
                None => "the node is off".to_owned(),
            };
            ensure!(now() < deadline, "shard {shard_id} was not verified: {said}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!("the attempts end at the deadline")
    }

    /// Has the voters of every shard compared.
    ///
    /// # Errors
    /// One of them does not hold, within two minutes, what the others hold.
    pub async fn verify_all(&self) -> anyhow::Result<()> {
        let deadline = now() + AGREE_WITHIN;
        for shard_id in self.shard_ids()? {
            loop {
                let found = self.verify(shard_id, AGREE_WITHIN).await?;
                let agrees = |voter: &v1::VoterVerification| voter.buckets_agreed == found.buckets;
                if found.buckets > 0 && found.voters.iter().all(agrees) {
                    break;
                }
                ensure!(
                    now() < deadline,
                    "shard {shard_id}: the voters do not agree: {found:?}"
                );
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        Ok(())
    }

    /// How often the node on a machine has told that it holds something else than most voters.
    ///
    /// # Errors
    /// The machine is off.
    pub async fn told_to_differ(&self, position: usize) -> anyhow::Result<usize> {
        let node = self.node(position).context("the machine is off")?;
        let status = Front(node).node_status().await;
        let damage = status.map_err(|error| anyhow::anyhow!(error.message))?.damage;
        let differs =
            |event: &&v1::DamageEvent| event.kind == "differs" && event.position.contains(" at entry ");
        Ok(damage.iter().filter(differs).count())
    }

    fn directory(&self) -> anyhow::Result<v1::Directory> {
        let first = self.node(0).context("node 1 is off")?;
        let member = first.member().context("node 1 belongs to no cluster")?;
        Ok(member.directory())
    }

    fn shard_ids(&self) -> anyhow::Result<Vec<ShardId>> {
        let shards = self.directory()?.shards;
        Ok(shards.iter().map(|shard| shard.shard_id).collect())
    }

    /// Addresses of a shard's voters.
    fn holders(&self, shard_id: ShardId) -> anyhow::Result<Vec<String>> {
        let directory = self.directory()?;
        let mut shards = directory.shards.iter();
        let shard = shards.find(|shard| shard.shard_id == shard_id);
        let replicas = &shard.context("the shard is gone")?.replicas;
        let votes = |replica: &&v1::ReplicaDescriptor| replica.role() == v1::ReplicaRole::Voter;
        let holders: Vec<String> = replicas
            .iter()
            .filter(votes)
            .map(|replica| replica.addr.clone())
            .collect();
        let wanted = self.settings().replicas as usize;
        ensure!(
            holders.len() >= wanted,
            "shard {shard_id} has {} of {wanted} voters",
            holders.len()
        );
        Ok(holders)
    }

    async fn compare_digests(&self) -> anyhow::Result<usize> {
        let shard_ids = self.shard_ids()?;
        for shard_id in &shard_ids {
            let mut seen: Option<(String, v1::ReplicaDigest)> = None;
            for addr in self.holders(*shard_id)? {
                let node = self.network().node(&addr);
                let front = Front(node.with_context(|| format!("{addr} is off"))?);
                let request = v1::GetReplicaDigestRequest { shard_id: *shard_id };
                let digest = match front.replica_digest(request).await {
                    Ok(digest) => digest,
                    Err(error) => bail!("{addr}: {}", error.message),
                };
                match &seen {
                    None => seen = Some((addr, digest)),
                    Some((_, other)) if *other == digest => {}
                    Some((other_addr, other)) => {
                        bail!("shard {shard_id}: {other_addr} has {other:?}, {addr} has {digest:?}")
                    }
                }
            }
        }
        Ok(shard_ids.len())
    }

    async fn read_replica(&self, addr: &str, shard_id: ShardId) -> anyhow::Result<Held> {
        let told = |error: v1::Error| anyhow::anyhow!("shard {shard_id} on {addr}: {}", error.message);
        let node = self.network().node(addr);
        let front = Front(node.with_context(|| format!("{addr} is off"))?);
        let request = v1::ReadReplicaRequest {
            shard_id,
            ..Default::default()
        };
        let mut pages = front.read_replica(request).await.map_err(told)?;
        let mut held = Held::new();
        while let Some(page) = pages.try_next().await.map_err(told)? {
            let records = page.records.into_iter();
            held.extend(records.map(|record| (record.key, (record.version, record.value))));
        }
        Ok(held)
    }
}
