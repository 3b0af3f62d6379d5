//! What is done to the nodes while they work, and how long they take over it.

use std::time::Duration;

use anyhow::Context;

use super::monitor::{Monitor, Seen};
use super::nodes::{NODES, Nodes};
use super::report::{Fault, FaultKind};
use super::{DemoArgs, Sabotage, damage, flips};
use crate::clock::{Clock, SystemClock, now};

/// The load runs undisturbed this long before the first fault.
const CALM: Duration = Duration::from_secs(1);
/// A killed node stays down at least this long.
const DOWN_MIN: Duration = Duration::from_millis(1_000);
/// The store must hold tables before any can be damaged.
const TABLES_PATIENCE: Duration = Duration::from_secs(40);
/// The cluster must notice a missing node, and be whole again after its return, within these.
const NOTICE_PATIENCE: Duration = Duration::from_secs(10);
const WHOLE_PATIENCE: Duration = Duration::from_secs(30);

/// Tells what happens.
pub(super) type Tell<'screen> = &'screen (dyn Fn(String) + Sync);

/// Kills one node and damages its store, then kills another and damages the third while it runs.
pub(super) async fn inflict(
    nodes: &mut Nodes,
    monitor: &Monitor,
    args: &DemoArgs,
    tell: Tell<'_>,
) -> anyhow::Result<Vec<Fault>> {
    let seed = args.seed;
    tokio::time::sleep(CALM).await;
    let victim = (seed % NODES as u64) as usize;
    await_tables(nodes, victim, tell).await?;
    let mut faults = kill_and_damage(nodes, monitor, victim, seed, tell).await?;
    tokio::time::sleep(CALM).await;
    let busiest = busiest_other(&monitor.seen(), victim);
    let third = (0..NODES).find(|node| ![victim, busiest].contains(node));
    let mut outage = Outage::begin(nodes, busiest, tell).await?;
    outage.notice(monitor, tell).await;
    if let Some(third) = third {
        let only_said = args.sabotage == Some(Sabotage::PretendDamage);
        faults.extend(flips::inflict(nodes, monitor, third, seed, only_said, tell).await?);
    }
    outage.end(nodes, tell)?;
    outage.await_whole(monitor, tell).await;
    faults.push(outage.fault);
    Ok(faults)
}

/// The node that leads most shards, `not` excepted.
fn busiest_other(seen: &Seen, not: usize) -> usize {
    let leads = |node: &usize| {
        let replicas = seen.nodes[*node].iter().flat_map(|status| &status.replicas);
        replicas.filter(|replica| replica.is_leader).count()
    };
    (0..NODES)
        .filter(|node| *node != not)
        .max_by_key(leads)
        .unwrap_or((not + 1) % NODES)
}

async fn await_tables(nodes: &Nodes, at: usize, tell: Tell<'_>) -> anyhow::Result<()> {
    let node = &nodes.all[at];
    let deadline = now() + TABLES_PATIENCE;
    let mut told = false;
    loop {
        let tables =
            damage::tables(&node.data_dir).with_context(|| format!("looking at {}'s store", node.name))?;
        if !damage::choose(&tables, 0).is_empty() {
            // Until the checkpoint that wrote them is complete, they belong to nothing.
            tokio::time::sleep(2 * damage::SETTLED_AFTER).await;
            return Ok(());
        }
        anyhow::ensure!(
            now() < deadline,
            "{} wrote no table that could be damaged",
            node.name
        );
        if !std::mem::replace(&mut told, true) {
            tell(format!(
                "waiting for {}'s first checkpoint, so that there is something to damage",
                node.name
            ));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Kills a node, overwrites bytes of its tables, and starts it again.
async fn kill_and_damage(
    nodes: &mut Nodes,
    monitor: &Monitor,
    at: usize,
    seed: u64,
    tell: Tell<'_>,
) -> anyhow::Result<Vec<Fault>> {
    let mut outage = Outage::begin(nodes, at, tell).await?;
    let mut places = overwrite(nodes, at, &outage.fault, seed, tell)?;
    outage.notice(monitor, tell).await;
    outage.end(nodes, tell)?;
    let damaged: Vec<_> = places.iter().map(|place| (place.shard_id, place.at_ms)).collect();
    let detected = |seen: &Seen| {
        damaged
            .iter()
            .all(|(shard, at_ms)| seen.damage(at, *shard, *at_ms).is_some())
    };
    if monitor.wait(WHOLE_PATIENCE, detected).await.is_some() {
        tell(format!(
            "{} found the damage and asks its peers",
            outage.fault.node
        ));
    }
    outage.await_whole(monitor, tell).await;
    let seen = monitor.seen();
    for place in &mut places {
        let found = seen.damage(at, place.shard_id, place.at_ms);
        place.detected_ms = found.map(|(detected, _)| detected - place.at_ms);
        place.repaired_ms = found
            .and_then(|(_, repaired)| repaired)
            .map(|repaired| repaired - place.at_ms);
    }
    if let Some(slowest) = places.iter().map(|place| place.repaired_ms).max().flatten() {
        tell(format!(
            "{} is repaired, {slowest} ms after the damage",
            outage.fault.node
        ));
    }
    places.insert(0, outage.fault);
    Ok(places)
}

fn overwrite(
    nodes: &Nodes,
    at: usize,
    kill: &Fault,
    seed: u64,
    tell: Tell<'_>,
) -> anyhow::Result<Vec<Fault>> {
    let node = &nodes.all[at];
    let mut tables =
        damage::tables(&node.data_dir).with_context(|| format!("looking at {}'s store", node.name))?;
    let now_ms = SystemClock.wall_ms();
    tables.retain(|table| damage::is_settled(&node.data_dir, table, now_ms));
    let mut faults = Vec::new();
    for place in damage::choose(&tables, seed) {
        let at_ms = SystemClock.wall_ms();
        damage::overwrite(&node.data_dir, &place, seed)
            .with_context(|| format!("damaging {}", place.file.path))?;
        tell(format!(
            "{}: {} bytes of {} at {} overwritten",
            node.name, place.bytes, place.file.path, place.offset
        ));
        faults.push(Fault {
            kind: FaultKind::Overwrite,
            node: node.name.clone(),
            pid: kill.pid,
            file: Some(place.file.path),
            offset: Some(place.offset),
            bytes: Some(place.bytes),
            detected_ms: None,
            repaired_ms: None,
            shard_id: place.file.shard_id,
            at_ms,
        });
    }
    Ok(faults)
}

/// A node that was killed and is to return.
struct Outage {
    at: usize,
    began: crate::clock::Instant,
    fault: Fault,
}

impl Outage {
    async fn begin(nodes: &mut Nodes, at: usize, tell: Tell<'_>) -> anyhow::Result<Self> {
        let at_ms = SystemClock.wall_ms();
        let began = now();
        let pid = nodes.kill(at).await?;
        let node = nodes.all[at].name.clone();
        tell(format!("{node} (process {pid}) killed with SIGKILL"));
        let fault = Fault {
            kind: FaultKind::Kill,
            node,
            pid,
            file: None,
            offset: None,
            bytes: None,
            detected_ms: None,
            repaired_ms: None,
            shard_id: 0,
            at_ms,
        };
        Ok(Self { at, began, fault })
    }

    /// Waits until the cluster says that something is wrong.
    async fn notice(&mut self, monitor: &Monitor, tell: Tell<'_>) {
        let seen = monitor.wait(NOTICE_PATIENCE, Seen::is_reported).await;
        if let Some(cluster) = seen.and_then(|seen| seen.cluster) {
            self.fault.detected_ms = Some(self.elapsed_ms());
            tell(format!("the cluster reports: {}", cluster.summary));
        }
        tokio::time::sleep(DOWN_MIN.saturating_sub(self.began.elapsed())).await;
    }

    fn end(&self, nodes: &mut Nodes, tell: Tell<'_>) -> anyhow::Result<()> {
        let pid = nodes.start(self.at)?;
        tell(format!("{} started again (process {pid})", self.fault.node));
        Ok(())
    }

    /// Waits until the cluster says that all is well.
    async fn await_whole(&mut self, monitor: &Monitor, tell: Tell<'_>) {
        if monitor.wait(WHOLE_PATIENCE, Seen::is_whole).await.is_some() {
            self.fault.repaired_ms = Some(self.elapsed_ms());
            tell(format!(
                "the cluster is whole again, {} ms after {} was killed",
                self.elapsed_ms(),
                self.fault.node
            ));
        } else {
            let cluster = monitor.seen().cluster;
            let summary = cluster.map_or("it does not answer".to_owned(), |cluster| cluster.summary);
            tell(format!("the cluster is not whole again: {summary}"));
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use reelkv_proto::v1;

    use super::*;

    #[test]
    fn the_node_that_leads_most_is_killed_but_never_the_damaged_one_again() {
        let leading = |count: usize| {
            let replica = v1::ReplicaStatus {
                is_leader: true,
                ..Default::default()
            };
            Some(v1::NodeStatus {
                replicas: vec![replica; count],
                ..Default::default()
            })
        };
        let seen = Seen {
            nodes: [leading(9), leading(2), leading(5)],
            ..Seen::default()
        };
        assert_eq!(busiest_other(&seen, 0), 2);
        assert_eq!(busiest_other(&seen, 2), 0);
    }
}
