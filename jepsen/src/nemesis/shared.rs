//! Damage to the same entries on both nodes that have them. Whoever takes what is damaged for what was never
//! there loses what was acknowledged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use reelkv::disk::sim::SimDisk;

use crate::sim::Cluster;

/// How long one node hears nothing of what the others write.
const APART: Duration = Duration::from_millis(800);
/// How long the nodes run with the damage: they must wait.
const DAMAGED: Duration = Duration::from_secs(2);
/// Bytes of an entry behind its marker that tell it from others.
const TELLING_BYTES: usize = 24;
/// Most entries that are damaged.
const ENTRIES_MAX: usize = 4;
/// How a batch of the log begins; its number and the mark up to which all was synced follow, 8 bytes each.
const BATCH_MAGIC: &[u8] = b"RKVBATCH";

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
        let lacking = told_apart(cluster.disk(apart), &marker);
        let others: Vec<usize> = nodes.iter().copied().filter(|node| *node != apart).collect();
        let logs: Vec<_> = others
            .iter()
            .map(|node| synced(cluster.disk(*node), &marker))
            .collect();
        let chosen = chosen(&lacking, &logs);
        let mut damage = None;
        for (node, log) in others.into_iter().zip(&logs) {
            let places: Vec<Place> = chosen.iter().flat_map(|entry| log[*entry].clone()).collect();
            for (path, at) in &places {
                cluster.disk(node).corrupt(path, *at, 0x10);
            }
            damage = Some(Self { node, places });
        }
        for node in nodes {
            cluster.start_node(node).await?;
        }
        Ok(damage.filter(|damage| !damage.places.is_empty()))
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

/// Entries of a log by what tells them from one another, and where each of them lies.
type Entries = BTreeMap<Vec<u8>, Vec<Place>>;

fn told_apart(disk: &SimDisk, marker: &[u8]) -> Entries {
    let mut entries = Entries::new();
    for (path, bytes) in segments(disk) {
        for at in found(&bytes, marker) {
            let Some(telling) = bytes.get(at..at + marker.len() + TELLING_BYTES) else {
                continue;
            };
            let place = (path.clone(), at + marker.len());
            entries.entry(telling.to_vec()).or_default().push(place);
        }
    }
    entries
}

/// The same, without what lies behind the mark up to which the log was synced: what is bad there may be
/// torn, and was never acknowledged then.
fn synced(disk: &SimDisk, marker: &[u8]) -> Entries {
    let mut entries = told_apart(disk, marker);
    let number = |bytes: &[u8], at: usize| {
        let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
        field.map_or(0, u64::from_le_bytes)
    };
    let mut mark = 0;
    let mut batches: BTreeMap<Place, u64> = BTreeMap::new();
    for (path, bytes) in segments(disk) {
        for at in found(&bytes, BATCH_MAGIC) {
            batches.insert((path.clone(), at), number(&bytes, at + 8));
            mark = mark.max(number(&bytes, at + 16));
        }
    }
    let batch_of = |place: &Place| {
        let before = batches.range(..place).next_back();
        let begin = before.filter(|((path, _), _)| *path == place.0);
        begin.map_or(u64::MAX, |(_, number)| *number)
    };
    entries.retain(|_, places| places.iter().all(|place| batch_of(place) <= mark));
    entries
}

/// The log's segments at rest, and what is in them.
pub(super) fn segments(disk: &SimDisk) -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    let files = disk.contents().into_iter();
    files.filter(|(path, _)| path.extension().is_some_and(|extension| extension == "wal"))
}

/// Where these bytes stand.
pub(super) fn found<'b>(bytes: &'b [u8], wanted: &'b [u8]) -> impl Iterator<Item = usize> + 'b {
    let windows = bytes.windows(wanted.len()).enumerate();
    windows
        .filter(move |(_, window)| *window == wanted)
        .map(|(at, _)| at)
}

/// The last entries that one log lacks and all others have.
fn chosen<'e>(lacking: &Entries, logs: &'e [Entries]) -> Vec<&'e Vec<u8>> {
    let Some((first, others)) = logs.split_first() else {
        return Vec::new();
    };
    let shared = first.iter().filter(|(entry, _)| {
        !lacking.contains_key(*entry) && others.iter().all(|log| log.contains_key(*entry))
    });
    let mut shared: Vec<_> = shared.collect();
    shared.sort_by_key(|(_, places)| places.last());
    let from = shared.len().saturating_sub(ENTRIES_MAX);
    shared[from..].iter().map(|(entry, _)| *entry).collect()
}
