//! Damage to the same entries on both nodes that have them. Whoever takes what is damaged for what was never
//! there loses what was acknowledged.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use reelkv::disk::sim::SimDisk;

use crate::sim::Cluster;

/// How long one node hears nothing of what the others write.
const APART: Duration = Duration::from_millis(1_500);
/// How long the nodes run with the damage: they must wait.
const DAMAGED: Duration = Duration::from_secs(4);
/// Bytes of an entry behind its marker that tell it from others.
const TELLING_BYTES: usize = 24;
/// Most entries that are damaged.
const ENTRIES_MAX: usize = 4;

/// A bit of a log.
type Place = (PathBuf, usize);

/// The damage to one of the nodes, which is taken back.
pub(super) struct SharedDamage {
    node: usize,
    places: Vec<Place>,
}

impl SharedDamage {
    /// Lets all nodes but one write for a while, loses the power of all, damages the last of what only those
    /// have, and starts all. `None` when nothing could be damaged: all nodes run.
    pub async fn begin(apart: usize, cluster: &mut Cluster) -> anyhow::Result<Option<Self>> {
        let nodes: Vec<usize> = (0..cluster.addrs().len()).collect();
        cluster.cut_off(&[apart], true);
        tokio::time::sleep(APART).await;
        for node in &nodes {
            ensure!(cluster.crash(*node), "node {} was off", node + 1);
        }
        cluster.network().join();
        let marker = cluster.entry_marker();
        let lacking = entries(cluster.disk(apart), &marker);
        let mut damaged = Vec::new();
        for node in nodes.iter().filter(|node| **node != apart) {
            let disk = cluster.disk(*node);
            let places = last_of_others(disk, &marker, &lacking);
            if places.iter().all(|(path, at)| disk.corrupt(path, *at, 0x10)) {
                damaged.push(Self { node: *node, places });
            }
        }
        for node in nodes {
            cluster.start_node(node).await?;
        }
        let all = damaged.iter().all(|damage| !damage.places.is_empty());
        Ok(damaged.pop().filter(|_| all))
    }

    /// Takes the damage back on one node.
    pub async fn end(self, cluster: &mut Cluster) -> anyhow::Result<()> {
        tokio::time::sleep(DAMAGED).await;
        ensure!(cluster.crash(self.node), "node {} was off", self.node + 1);
        for (path, at) in &self.places {
            cluster.disk(self.node).corrupt(path, *at, 0x10);
        }
        cluster.start_node(self.node).await?;
        Ok(())
    }
}

/// What tells the entries of a log from one another, each with the place of a byte in it.
fn told_apart(disk: &SimDisk, marker: &[u8]) -> Vec<(Vec<u8>, Place)> {
    let mut entries = Vec::new();
    for (path, bytes) in disk.contents() {
        if path.extension().is_none_or(|extension| extension != "wal") {
            continue;
        }
        let found = bytes
            .windows(marker.len() + TELLING_BYTES)
            .enumerate()
            .filter(|(_, window)| window.starts_with(marker));
        entries.extend(found.map(|(at, window)| (window.to_vec(), (path.clone(), at + marker.len()))));
    }
    entries
}

fn entries(disk: &SimDisk, marker: &[u8]) -> BTreeSet<Vec<u8>> {
    told_apart(disk, marker)
        .into_iter()
        .map(|(entry, _)| entry)
        .collect()
}

/// Places in the last entries of a log that another lacks.
fn last_of_others(disk: &SimDisk, marker: &[u8], lacking: &BTreeSet<Vec<u8>>) -> Vec<Place> {
    let own = told_apart(disk, marker).into_iter();
    let only_here = own.filter(|(entry, _)| !lacking.contains(entry));
    let places: Vec<Place> = only_here.map(|(_, place)| place).collect();
    places[places.len().saturating_sub(ENTRIES_MAX)..].to_vec()
}
