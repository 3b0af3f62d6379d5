//! The last entry of a shard turns bad wherever it is kept.
//!
//! One node is cut off and gets nothing of it. The second loses power the moment it is committed, so that its log
//! does not say yet that the entry was synced. The third goes on until its tree holds the entry, then loses power
//! as well. The payload is then bad in both logs, and what was acknowledged is in one tree alone.

use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use reelkv::clock::now;
use reelkv::disk::sim::SimDisk;
use reelkv::raft::ReplicaStore;
use reelkv::wal::GroupId;

use crate::sim::Cluster;

/// How long the cluster may take for each step.
const WITHIN: Duration = Duration::from_secs(12);
/// A key of the shard.
const FIRST: [u8; 7] = [1, 0, 0, 0, 0, 0, 0];
const LOOK_INTERVAL: Duration = Duration::from_micros(500);

/// Makes it happen, with three nodes: which are off in the end, and whether an entry was damaged.
///
/// # Errors
/// A node was off before.
pub(super) async fn damage(cluster: &mut Cluster, rng: &mut SmallRng) -> anyhow::Result<(Vec<usize>, bool)> {
    if cluster.addrs().len() != 3 {
        return Ok((Vec::new(), false));
    }
    let short = rng.random_range(0..3);
    cluster.cut_off(&[short], true);
    let caught = last_entry(cluster, short).await;
    let Some((follower, leader, id, index, payload)) = caught else {
        cluster.network().join();
        return Ok((Vec::new(), false));
    };
    ensure!(cluster.crash(follower), "node {} was off", follower + 1);
    let held = tree_holds(cluster, leader, id, index).await;
    ensure!(cluster.crash(leader), "node {} was off", leader + 1);
    cluster.network().join();
    let bad = held && is_there(cluster.disk(follower), &payload) && is_there(cluster.disk(leader), &payload);
    if bad {
        flip(cluster.disk(follower), &payload);
        flip(cluster.disk(leader), &payload);
    }
    Ok((vec![leader, follower], bad))
}

/// Waits for a follower and a leader of the first data shard that have just committed the same last entry:
/// the two, the leader's replica, the entry's index and payload.
async fn last_entry(cluster: &Cluster, short: usize) -> Option<(usize, usize, GroupId, u64, Bytes)> {
    let until = now() + WITHIN;
    let mut before = 0;
    while now() < until {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(leader) = cluster.leader_of(&FIRST).filter(|leader| *leader != short) else {
            continue;
        };
        let follower = 3 - leader - short;
        let (Some(led), Some(followed)) = (store(cluster, leader, None), store(cluster, follower, None))
        else {
            continue;
        };
        let last = followed.group().last();
        let index = last.map_or(0, |last| last.index);
        let is_new = index > before && before > 0;
        before = index;
        if !is_new || led.with_control(|control| control.applied()) != last {
            continue;
        }
        let entries = followed.group().read(index, index + 1, usize::MAX).await.ok()?;
        let payload = entries.into_iter().next()?.payload;
        if payload.len() > 16 {
            return Some((follower, leader, led.id(), index, payload));
        }
    }
    None
}

/// Waits until a checkpoint of a node's replica stands for an entry.
async fn tree_holds(cluster: &Cluster, node: usize, id: GroupId, index: u64) -> bool {
    let until = now() + WITHIN;
    while now() < until {
        let store = store(cluster, node, Some(id.shard_id));
        let durable = store.and_then(|store| store.checkpointed());
        if durable.is_some_and(|durable| durable.index >= index) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// A node's replica of a shard; of the first data shard if none is named.
fn store(cluster: &Cluster, node: usize, shard_id: Option<u64>) -> Option<std::sync::Arc<ReplicaStore>> {
    let member = cluster.node(node)?.member()?;
    let key = cluster.entry_marker();
    let holds = |id: GroupId, store: &ReplicaStore| match shard_id {
        Some(wanted) => id.shard_id == wanted,
        None => store.with_control(|control| control.range().contains(&key)),
    };
    let replicas = member.replicas().all().into_iter();
    let mut stores = replicas.map(|replica| (replica.id(), replica.store().clone()));
    stores
        .find(|(id, store)| holds(*id, store))
        .map(|(_, store)| store)
}

fn places(disk: &SimDisk, payload: &[u8]) -> Vec<(std::path::PathBuf, usize)> {
    let logs = disk
        .contents()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "wal"));
    let found = logs.flat_map(|(path, bytes)| {
        let windows = bytes.windows(payload.len()).enumerate();
        let found = windows.filter(|(_, window)| *window == payload);
        found.map(|(at, _)| (path.clone(), at)).collect::<Vec<_>>()
    });
    found.collect()
}

fn is_there(disk: &SimDisk, payload: &[u8]) -> bool {
    !places(disk, payload).is_empty()
}

fn flip(disk: &SimDisk, payload: &[u8]) {
    for (path, at) in places(disk, payload) {
        disk.corrupt(&path, at + payload.len() / 2, 1);
    }
}
