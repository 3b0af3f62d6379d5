//! How each fault begins and ends.

use std::time::Duration;

use anyhow::{Context, ensure};
use rand::Rng;
use rand::rngs::SmallRng;
use reelkv::clock::{Instant, now};
use reelkv::disk::sim::{Refused, SimDisk};
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::Front;
use reelkv::storage::{OldTree, TreeId};

use super::Fault;
use super::shared::{SharedDamage, found, segments};
use crate::sim::{Cluster, Happened, Weather};

/// How long the cluster may take to be whole again.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// The voters of a shard may take so long to be compared.
const VERIFIED_WITHIN: Duration = Duration::from_secs(60);

/// A node sends so many messages within this long.
const SENDS_WITHIN: Duration = Duration::from_secs(5);

/// A fault that goes on.
pub(super) struct Active {
    pub(super) fault: Fault,
    /// Nodes it hinders.
    pub(super) hit: Vec<usize>,
    /// Whom it hits, for people.
    pub(super) detail: String,
    pub(super) began: Instant,
    /// What the network had done before.
    happened: Happened,
    /// What the victim's disk had refused before.
    refused: Refused,
    /// The victim's number in the cluster before.
    number: Option<u64>,
    /// How far the log was that is put back.
    log_batch: u64,
    /// Its log has forgotten what it has shown the others: it must come back under another number.
    has_forgotten: bool,
    /// Known to have taken effect; where that shows only at the end, not yet.
    took_effect: bool,
    old: Option<Old>,
    shared: Option<SharedDamage>,
}

/// What is put back later.
enum Old {
    Disk(SimDisk),
    Trees(Vec<OldTree>),
}

impl Active {
    /// Makes a fault begin; it hits this node, unless the kind of fault says otherwise.
    pub(super) async fn begin(
        fault: Fault,
        node: usize,
        cluster: &mut Cluster,
        rng: &mut SmallRng,
    ) -> anyhow::Result<Self> {
        let all: Vec<usize> = (0..cluster.addrs().len()).collect();
        let mut active = Self {
            fault,
            hit: vec![node],
            detail: String::new(),
            began: now(),
            happened: cluster.network().happened(),
            refused: cluster.disk(node).refused(),
            number: cluster.number(node),
            log_batch: 0,
            has_forgotten: fault == Fault::Wipe,
            took_effect: false,
            old: None,
            shared: None,
        };
        match fault {
            Fault::Crash | Fault::CrashLoop => active.crash(cluster)?,
            Fault::CrashLeader => {
                active.hit = vec![cluster.some_leader(rng)];
                active.crash(cluster)?;
            }
            Fault::CrashAtWrite => cluster.disk(node).power_off_after(rng.random_range(0..40)),
            Fault::CrashAtSend => {
                let messages = rng.random_range(0..200);
                let sent = tokio::time::timeout(SENDS_WITHIN, cluster.power_off_at_send(node, messages));
                if sent.await.is_ok() {
                    active.crash(cluster)?;
                }
            }
            Fault::CrashAll => {
                active.hit = all;
                active.crash(cluster)?;
            }
            Fault::Isolate | Fault::IsolateLeader => {
                if fault == Fault::IsolateLeader {
                    active.hit = vec![cluster.some_leader(rng)];
                }
                cluster.cut_off(&active.hit, true);
            }
            Fault::OneWay => cluster.cut_off(&active.hit, false),
            Fault::Halves => {
                active.hit = cluster.minority(rng);
                cluster.cut_off(&active.hit, true);
            }
            Fault::Bridge => {
                cluster.bridge(rng);
                active.hit = all;
            }
            Fault::Ring => {
                cluster.ring(rng);
                active.hit = all;
            }
            Fault::Loss | Fault::Delay | Fault::Duplicate | Fault::Corrupt => {
                cluster.network().weather(weather(fault, rng));
                active.hit = all;
            }
            Fault::ClockJump => {
                let by_ms = rng.random_range(-3_600_000..3_600_000);
                cluster.clock(node).jump_ms(by_ms);
                active.clock(format!("node {} by {by_ms} ms", node + 1));
            }
            Fault::ClockDrift => {
                let ppm = rng.random_range(-200_000..200_000);
                cluster.clock(node).drift_ppm(ppm);
                active.clock(format!("node {} by {ppm} ppm", node + 1));
            }
            Fault::ClockStrobe => {
                for _ in 0..20 {
                    cluster.clock(node).jump_ms(rng.random_range(-60_000..60_000));
                    tokio::time::sleep(Duration::from_millis(rng.random_range(1..100))).await;
                }
                active.clock(format!("node {}", node + 1));
            }
            _ => active.break_disk(node, cluster, rng).await?,
        }
        if active.detail.is_empty() {
            let names: Vec<String> = active.hit.iter().map(|node| format!("n{}", node + 1)).collect();
            active.detail = names.join(" ");
        }
        Ok(active)
    }

    /// A wrong clock hinders nobody.
    fn clock(&mut self, detail: String) {
        self.hit = Vec::new();
        self.detail = detail;
        self.took_effect = true;
    }

    fn crash(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        for node in &self.hit {
            ensure!(cluster.crash(*node), "node {} was off", node + 1);
        }
        self.took_effect = true;
        Ok(())
    }

    async fn break_disk(
        &mut self,
        victim: usize,
        cluster: &mut Cluster,
        rng: &mut SmallRng,
    ) -> anyhow::Result<()> {
        match self.fault {
            Fault::SyncError | Fault::SyncErrorAll => {
                if self.fault == Fault::SyncErrorAll {
                    self.hit = (0..cluster.addrs().len()).collect();
                }
                for node in &self.hit {
                    cluster.disk(*node).fail_syncs_after(rng.random_range(0..10));
                }
            }
            Fault::ReadError => {
                // Most reads of a log are those of a start.
                ensure!(cluster.crash(victim), "the victim was off");
                cluster.disk(victim).fail_reads(rng.random_range(20..300));
            }
            Fault::DiskFull => cluster.disk(victim).fill_up(true),
            Fault::DiskSlow => cluster
                .disk(victim)
                .slow_down(Some(Duration::from_millis(rng.random_range(5..100)))),
            Fault::RecordDamage => {
                let device = cluster.device(victim);
                let hit = device
                    .trees()
                    .into_iter()
                    .filter_map(|tree| device.damage_record(tree, rng.random()));
                self.took_effect = hit.count() > 0;
            }
            Fault::SharedDamage => {
                self.hit = (0..cluster.addrs().len()).collect();
                let damage = SharedDamage::begin(victim, cluster).await?;
                self.took_effect = damage.is_some();
                self.shared = damage;
            }
            Fault::RecordLoss => self.took_effect = lose_records(victim, cluster, rng).await?,
            Fault::OldDisk => {
                self.log_batch = cluster.log_batch(victim).await?;
                ensure!(cluster.crash(victim), "the victim was off");
                self.old = Some(Old::Disk(cluster.disk(victim).copy(rng.random())));
                cluster.start_node(victim).await?;
            }
            Fault::OldTrees => {
                let device = cluster.device(victim);
                let copies = device.trees().into_iter().filter_map(|tree| device.copy_of(tree));
                self.old = Some(Old::Trees(copies.collect()));
            }
            _ => {
                ensure!(cluster.crash(victim), "the victim was off");
                self.damage_at_rest(victim, cluster, rng);
            }
        }
        Ok(())
    }

    fn damage_at_rest(&mut self, victim: usize, cluster: &mut Cluster, rng: &mut SmallRng) {
        match self.fault {
            Fault::LogDamage => {
                for _ in 0..rng.random_range(1..4) {
                    self.took_effect |= flip_in_log(cluster.disk(victim), rng);
                }
            }
            Fault::PayloadDamage => {
                let marker = cluster.entry_marker();
                self.took_effect = flip_after(cluster.disk(victim), &marker, rng);
            }
            Fault::SpoiledView => {
                let device = cluster.device(victim);
                let lost = device.trees().into_iter().filter(|tree| device.lose(*tree));
                self.took_effect = lost.count() > 0;
                let addrs = cluster.addrs();
                let spoils = (victim + rng.random_range(1..addrs.len())) % addrs.len();
                cluster.network().spoil_views_of(Some(&addrs[spoils]));
            }
            Fault::TreeLoss | Fault::CrashInRepair | Fault::TreeEmptied => {
                let device = cluster.device(victim);
                let trees = device.trees();
                let at = rng.random_range(0..trees.len().max(1));
                self.took_effect = trees.get(at).is_some_and(|tree| match self.fault {
                    Fault::TreeEmptied => device.empty(*tree),
                    _ => device.lose(*tree),
                });
            }
            _ => {
                cluster.wipe(victim);
                self.took_effect = true;
            }
        }
    }

    /// Makes the fault end. Returns whether it took effect.
    pub(super) async fn end(mut self, cluster: &mut Cluster, rng: &mut SmallRng) -> anyhow::Result<bool> {
        let victim = self.hit.first().copied().unwrap_or(0);
        match self.fault {
            Fault::CrashAtSend if !self.took_effect => {
                cluster.crash(victim);
                cluster.start_node(victim).await?;
            }
            Fault::Crash | Fault::CrashLeader | Fault::CrashAtSend | Fault::CrashAll => {
                for node in &self.hit {
                    cluster.start_node(*node).await?;
                }
            }
            Fault::CrashLoop => {
                for _ in 0..rng.random_range(1..4) {
                    cluster.start_node(victim).await?;
                    tokio::time::sleep(Duration::from_millis(rng.random_range(1..800))).await;
                    cluster.crash(victim);
                }
                cluster.start_node(victim).await?;
            }
            Fault::CrashAtWrite => {
                self.took_effect = cluster.disk(victim).is_off();
                cluster.crash(victim);
                cluster.start_node(victim).await?;
            }
            Fault::ClockDrift => {
                for node in 0..cluster.addrs().len() {
                    cluster.clock(node).drift_ppm(0);
                }
            }
            Fault::ClockJump | Fault::ClockStrobe => {}
            Fault::Loss | Fault::Delay | Fault::Duplicate | Fault::Corrupt => {
                cluster.network().weather(Weather::default());
                self.took_effect = self.weather_was_felt(cluster.network().happened());
            }
            Fault::SyncErrorAll => {
                for node in &self.hit {
                    self.took_effect |= cluster.disk(*node).refused().syncs > 0;
                    cluster.crash(*node);
                }
                for node in &self.hit {
                    cluster.start_node(*node).await?;
                }
            }
            Fault::ReadError => {
                // It may start all the same, or say that it cannot, and be started again.
                if cluster.start_node(victim).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(1..3_000))).await;
                }
                self.mend_disk(victim, cluster).await?;
            }
            Fault::SyncError | Fault::DiskFull | Fault::DiskSlow => {
                self.mend_disk(victim, cluster).await?;
            }
            Fault::RecordDamage | Fault::RecordLoss => {}
            Fault::SpoiledView => {
                cluster.start_node(victim).await?;
                cluster.whole(WHOLE_WITHIN).await?;
                cluster.network().spoil_views_of(None);
                self.took_effect = cluster.network().happened().spoiled > self.happened.spoiled;
            }
            Fault::SharedDamage => {
                if let Some(damage) = self.shared.take() {
                    damage.end(cluster).await?;
                }
            }
            Fault::OldDisk | Fault::OldTrees => {
                if self.fault == Fault::OldDisk {
                    // What the log has got since, the others have been shown by then.
                    self.has_forgotten = cluster.log_batch(victim).await? > self.log_batch;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                ensure!(cluster.crash(victim), "the victim was off");
                match self.old.take() {
                    Some(Old::Disk(disk)) => {
                        cluster.put_back(victim, disk);
                        self.took_effect = true;
                    }
                    Some(Old::Trees(trees)) => {
                        let device = cluster.device(victim);
                        for tree in trees {
                            self.took_effect |= device.put_back(tree);
                        }
                    }
                    None => {}
                }
                cluster.start_node(victim).await?;
            }
            Fault::CrashInRepair => {
                for _ in 0..rng.random_range(2..8) {
                    cluster.start_node(victim).await?;
                    tokio::time::sleep(Duration::from_millis(rng.random_range(1..60))).await;
                    cluster.crash(victim);
                }
                cluster.start_node(victim).await?;
            }
            Fault::LogDamage | Fault::PayloadDamage | Fault::TreeLoss | Fault::TreeEmptied | Fault::Wipe => {
                cluster.start_node(victim).await?;
            }
            Fault::Isolate
            | Fault::IsolateLeader
            | Fault::Halves
            | Fault::Bridge
            | Fault::Ring
            | Fault::OneWay => {
                cluster.network().join();
                self.took_effect = cluster.network().happened().cut > self.happened.cut;
            }
        }
        if self.fault.destroys() {
            cluster.whole(WHOLE_WITHIN).await?;
        }
        if self.has_forgotten {
            let number = cluster.number(victim);
            ensure!(
                number != self.number,
                "node {} kept number {number:?} though its log has forgotten",
                victim + 1
            );
        }
        Ok(self.took_effect)
    }

    fn weather_was_felt(&self, now: Happened) -> bool {
        match self.fault {
            Fault::Loss => now.lost > self.happened.lost,
            Fault::Delay => now.delayed > self.happened.delayed,
            Fault::Duplicate => now.duplicated > self.happened.duplicated,
            _ => now.corrupted > self.happened.corrupted,
        }
    }

    /// Gives the node a healthy disk again, and restarts a process that gave its disk up.
    async fn mend_disk(&mut self, victim: usize, cluster: &mut Cluster) -> anyhow::Result<()> {
        let disk = cluster.disk(victim).clone();
        let (before, refused) = (self.refused, disk.refused());
        self.took_effect = match self.fault {
            Fault::SyncError => refused.syncs > before.syncs,
            Fault::ReadError => refused.reads > before.reads,
            Fault::DiskFull => refused.growth > before.growth,
            _ => refused.slow_jobs > before.slow_jobs,
        };
        disk.fail_reads(0);
        disk.fill_up(false);
        disk.slow_down(None);
        let member = cluster.node(victim).and_then(|node| node.member());
        let restarts = matches!(self.fault, Fault::SyncError | Fault::ReadError);
        if restarts || member.is_none_or(|member| member.is_poisoned()) {
            cluster.crash(victim);
            cluster.start_node(victim).await?;
        }
        Ok(())
    }
}

/// A follower loses a record of each of its shards without a trace. The voters are compared at once: a
/// follower that becomes the leader before would answer what it holds.
async fn lose_records(victim: usize, cluster: &Cluster, rng: &mut SmallRng) -> anyhow::Result<bool> {
    let before = cluster.told_to_differ(victim).await?;
    let node = cluster.node(victim).context("the victim is off")?;
    let status = Front(node.clone()).node_status().await;
    let replicas = status.map_err(|error| anyhow::anyhow!(error.message))?.replicas;
    let device = cluster.device(victim);
    for follower in replicas.iter().filter(|replica| !replica.is_leader) {
        let of_follower =
            |tree: &TreeId| (tree.shard_id, tree.replica_id) == (follower.shard_id, follower.replica_id);
        let tree = device.trees().into_iter().filter(of_follower).max();
        if tree
            .and_then(|tree| device.forget_record(tree, rng.random()))
            .is_some()
        {
            cluster.verify(follower.shard_id, VERIFIED_WITHIN).await?;
        }
    }
    Ok(cluster.told_to_differ(victim).await? > before)
}

fn weather(fault: Fault, rng: &mut SmallRng) -> Weather {
    let calm = Weather::default();
    match fault {
        Fault::Loss => Weather {
            loss_per_mille: rng.random_range(20..200),
            ..calm
        },
        Fault::Delay => Weather {
            delay_max: Duration::from_millis(rng.random_range(5..300)),
            ..calm
        },
        Fault::Duplicate => Weather {
            duplicate_per_mille: rng.random_range(100..600),
            delay_max: Duration::from_millis(rng.random_range(1..50)),
            ..calm
        },
        _ => Weather {
            corrupt_per_mille: rng.random_range(5..100),
            ..calm
        },
    }
}

/// Flips a bit somewhere in the log at rest. False when there is no log.
fn flip_in_log(disk: &SimDisk, rng: &mut SmallRng) -> bool {
    let segments: Vec<_> = disk
        .files()
        .into_iter()
        .filter(|(path, len)| *len > 0 && path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    let Some((path, len)) = segments.get(rng.random_range(0..segments.len().max(1))) else {
        return false;
    };
    disk.corrupt(path, rng.random_range(0..*len), 1 << rng.random_range(0..8))
}

/// Flips a bit in one of the two bytes after some place where `marker` stands in the log at rest:
/// within the payload of an entry. False when it stands nowhere.
fn flip_after(disk: &SimDisk, marker: &[u8], rng: &mut SmallRng) -> bool {
    let mut places = Vec::new();
    for (path, bytes) in segments(disk) {
        places.extend(found(&bytes, marker).map(|at| (path.clone(), at + marker.len())));
    }
    let Some((path, at)) = places.get(rng.random_range(0..places.len().max(1))) else {
        return false;
    };
    disk.corrupt(path, at + rng.random_range(0..2), 1 << rng.random_range(0..8))
}
