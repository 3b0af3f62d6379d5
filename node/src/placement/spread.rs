//! Replicas of a new shard: distinct zones first, then distinct nodes.

use std::collections::{BTreeMap, BTreeSet};

use reelkv_proto::types::NodeId;
use reelkv_proto::v1;

fn replica(replica_id: u64, node: &v1::NodeDescriptor) -> v1::ReplicaDescriptor {
    v1::ReplicaDescriptor {
        replica_id,
        node_id: node.node_id,
        addr: node.addr.clone(),
        role: v1::ReplicaRole::Voter.into(),
    }
}

/// Picks nodes in the order given, one per zone as long as there are zones left.
fn pick<'a>(ordered: &[&'a v1::NodeDescriptor], count: usize) -> Vec<&'a v1::NodeDescriptor> {
    let mut zones = BTreeSet::new();
    let (fresh, rest): (Vec<_>, Vec<_>) = ordered
        .iter()
        .copied()
        .partition(|node| zones.insert(node.zone.as_str()));
    fresh.into_iter().chain(rest).take(count).collect()
}

/// Replicas of a newborn cluster's shard: nodes take turns, beginning at `turn`. The first
/// replica is the one that tends to lead.
pub fn spread(nodes: &[v1::NodeDescriptor], count: usize, turn: usize) -> Vec<v1::ReplicaDescriptor> {
    let ordered: Vec<_> = (0..nodes.len())
        .map(|offset| &nodes[(turn + offset) % nodes.len()])
        .collect();
    pick(&ordered, count)
        .into_iter()
        .enumerate()
        .map(|(position, node)| replica(position as u64 + 1, node))
        .collect()
}

/// How many replicas each node holds, and how many of them come first in their shard.
pub fn replicas_per_node(directory: &v1::Directory) -> BTreeMap<NodeId, (usize, usize)> {
    let mut load: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
    let pending = directory.pending_splits.iter().flat_map(|split| &split.children);
    for shard in directory.shards.iter().chain(pending) {
        for (position, replica) in shard.replicas.iter().enumerate() {
            let entry = load.entry(replica.node_id).or_default();
            entry.0 += 1;
            entry.1 += usize::from(position == 0);
        }
    }
    load
}

/// Replicas of another shard: the least loaded nodes, the least leading one first. `load` is
/// brought up to date.
pub fn spread_least_loaded(
    nodes: &[v1::NodeDescriptor],
    count: usize,
    load: &mut BTreeMap<NodeId, (usize, usize)>,
) -> Vec<v1::ReplicaDescriptor> {
    let loaded = |node: &v1::NodeDescriptor| load.get(&node.node_id).copied().unwrap_or_default();
    let mut ordered: Vec<_> = nodes.iter().filter(|node| !node.retired).collect();
    ordered.sort_by_key(|node| (loaded(node).0, node.node_id));
    let mut picked = pick(&ordered, count);
    picked.sort_by_key(|node| (loaded(node).1, node.node_id));
    for (position, node) in picked.iter().enumerate() {
        let entry = load.entry(node.node_id).or_default();
        entry.0 += 1;
        entry.1 += usize::from(position == 0);
    }
    picked
        .into_iter()
        .enumerate()
        .map(|(position, node)| replica(position as u64 + 1, node))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(zones: &[&str]) -> Vec<v1::NodeDescriptor> {
        let node = |(position, zone): (usize, &&str)| v1::NodeDescriptor {
            node_id: position as u64 + 1,
            zone: (*zone).to_owned(),
            ..Default::default()
        };
        zones.iter().enumerate().map(node).collect()
    }

    fn ids(replicas: &[v1::ReplicaDescriptor]) -> Vec<u64> {
        replicas.iter().map(|replica| replica.node_id).collect()
    }

    #[test]
    fn zones_come_before_nodes() {
        assert_eq!(ids(&spread(&nodes(&["a", "a", "b", "c"]), 3, 0)), [1, 3, 4]);
        assert_eq!(
            ids(&spread(&nodes(&["a", "a", "a"]), 3, 1)),
            [2, 3, 1],
            "one zone: distinct nodes will do"
        );
    }

    #[test]
    fn load_and_first_places_even_out() {
        let nodes = nodes(&["a", "b", "c", "d"]);
        let mut load = BTreeMap::new();
        let mut held = BTreeMap::<u64, usize>::new();
        let mut first = BTreeMap::<u64, usize>::new();
        for _ in 0..40 {
            let replicas = ids(&spread_least_loaded(&nodes, 3, &mut load));
            *first.entry(replicas[0]).or_default() += 1;
            replicas.iter().for_each(|id| *held.entry(*id).or_default() += 1);
        }
        assert!(held.values().all(|count| *count == 30), "{held:?}");
        assert!(first.values().all(|count| (9..=11).contains(count)), "{first:?}");
    }

    #[test]
    fn a_retired_node_gets_nothing() {
        let mut nodes = nodes(&["a", "b", "c", "d"]);
        nodes[1].retired = true;
        let picked = ids(&spread_least_loaded(&nodes, 3, &mut BTreeMap::new()));
        assert!(!picked.contains(&2), "{picked:?}");
    }
}
