//! Replicas that are no more: who must be replaced, and who was forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reelkv_proto::types::{NodeId, ReplicaId, ShardId};
use reelkv_proto::v1;

use crate::clock::Instant;

/// A member of a shard that its own node, though it answers, does not run; or one that there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// The shard.
    pub shard_id: ShardId,
    /// The replica that is no more; 0 when the shard has too few voters, as after its recovery from a
    /// minority.
    pub replica_id: ReplicaId,
    /// Where it was; 0 likewise.
    pub node_id: NodeId,
}

/// Replace a replica by a new one, or add one.
#[derive(Clone, Debug, PartialEq)]
pub struct Replacement {
    /// What is gone.
    pub missing: Missing,
    /// Where the new replica goes.
    pub to: v1::NodeDescriptor,
    /// The node that leads the shard and carries it out.
    pub leader: NodeId,
}

/// Since when each replica has been missing: one look is not enough, as a node reports its
/// replicas one after the other while it starts.
#[derive(Debug, Default)]
pub struct Sightings {
    since: BTreeMap<Missing, Instant>,
}

impl Sightings {
    /// Takes a look; returns what has been missing for at least `patience` and can be replaced.
    pub fn look(
        &mut self,
        directory: &v1::Directory,
        statuses: &BTreeMap<NodeId, v1::NodeStatus>,
        now: Instant,
        patience: Duration,
    ) -> Vec<Replacement> {
        let seen = missing(directory, statuses);
        self.since
            .retain(|missing, _| seen.iter().any(|(seen, ..)| seen == missing));
        let mut due = Vec::new();
        for (missing, leader, to) in seen {
            let since = *self.since.entry(missing).or_insert(now);
            if now.duration_since(since) >= patience {
                due.push(Replacement { missing, to, leader });
            }
        }
        due
    }
}

/// Members that their node does not run, with the shard's leader and the node for a new replica.
fn missing(
    directory: &v1::Directory,
    statuses: &BTreeMap<NodeId, v1::NodeStatus>,
) -> Vec<(Missing, NodeId, v1::NodeDescriptor)> {
    let mut found = Vec::new();
    for (leader, shard) in led_shards(statuses) {
        // A learner is a replacement that was begun: its node is where it goes on.
        let voters = || {
            let learner = v1::ReplicaRole::Learner;
            shard
                .replicas
                .iter()
                .filter(move |replica| replica.role() != learner)
        };
        let holders: BTreeSet<NodeId> = voters().map(|replica| replica.node_id).collect();
        for replica in voters() {
            let Some(to) = home(directory, statuses, &holders, shard.shard_id, replica) else {
                continue;
            };
            let missing = Missing {
                shard_id: shard.shard_id,
                replica_id: replica.replica_id,
                node_id: replica.node_id,
            };
            found.push((missing, leader, to));
        }
        if voters().count() < directory.replicas as usize
            && let Some(to) = home_of_another(directory, statuses, shard)
        {
            let missing = Missing {
                shard_id: shard.shard_id,
                replica_id: 0,
                node_id: 0,
            };
            found.push((missing, leader, to));
        }
    }
    found
}

/// Where a shard with too few voters gets another: where a learner was begun, else a node that answers and
/// holds nothing of it, in another zone if there is one, with the fewest replicas.
fn home_of_another(
    directory: &v1::Directory,
    statuses: &BTreeMap<NodeId, v1::NodeStatus>,
    shard: &v1::ShardDescriptor,
) -> Option<v1::NodeDescriptor> {
    let node = |id: NodeId| {
        directory
            .nodes
            .iter()
            .find(|node| node.node_id == id && !node.retired)
    };
    let learner = v1::ReplicaRole::Learner;
    let begun = shard.replicas.iter().filter(|replica| replica.role() == learner);
    if let Some(begun) = begun.filter_map(|replica| node(replica.node_id)).next() {
        return Some(begun.clone());
    }
    let members = || shard.replicas.iter().filter_map(|replica| node(replica.node_id));
    let free = directory.nodes.iter().filter(|candidate| {
        !candidate.retired
            && members().all(|member| member.node_id != candidate.node_id)
            && statuses.get(&candidate.node_id).is_some_and(|status| {
                status
                    .replicas
                    .iter()
                    .all(|replica| replica.shard_id != shard.shard_id)
            })
    });
    let order = |candidate: &&v1::NodeDescriptor| {
        let same_zone = members().any(|member| member.zone == candidate.zone);
        let load = statuses
            .get(&candidate.node_id)
            .map_or(0, |status| status.replicas.len());
        (same_zone, load, candidate.node_id)
    };
    free.min_by_key(order).cloned()
}

/// Shards with the node that leads them in the highest term.
fn led_shards(statuses: &BTreeMap<NodeId, v1::NodeStatus>) -> Vec<(NodeId, &v1::ShardDescriptor)> {
    let mut led: BTreeMap<ShardId, (u64, NodeId, &v1::ShardDescriptor)> = BTreeMap::new();
    for (node_id, status) in statuses {
        for replica in status.replicas.iter().filter(|replica| replica.is_leader) {
            let Some(shard) = &replica.descriptor else {
                continue;
            };
            let newest = led
                .get(&replica.shard_id)
                .is_none_or(|(term, ..)| *term < replica.term);
            if newest {
                led.insert(replica.shard_id, (replica.term, *node_id, shard));
            }
        }
    }
    led.into_values().map(|(_, node, shard)| (node, shard)).collect()
}

/// Where a replica's successor goes; `None` when the replica is not known to be gone.
fn home(
    directory: &v1::Directory,
    statuses: &BTreeMap<NodeId, v1::NodeStatus>,
    holders: &BTreeSet<NodeId>,
    shard_id: ShardId,
    replica: &v1::ReplicaDescriptor,
) -> Option<v1::NodeDescriptor> {
    let node = directory
        .nodes
        .iter()
        .find(|node| node.node_id == replica.node_id)?;
    if node.retired {
        // Its successor at the same address first, else any node that holds nothing of the shard.
        let free = |candidate: &&v1::NodeDescriptor| {
            !candidate.retired
                && !holders.contains(&candidate.node_id)
                && statuses.contains_key(&candidate.node_id)
        };
        let same_place = directory
            .nodes
            .iter()
            .filter(free)
            .find(|candidate| candidate.addr == node.addr);
        return same_place.or_else(|| directory.nodes.iter().find(free)).cloned();
    }
    let status = statuses.get(&replica.node_id)?;
    let runs = status.replicas.iter().any(|running| {
        running.shard_id == shard_id && running.replica_id == replica.replica_id && running.state != "lost"
    });
    (!runs).then(|| node.clone())
}

/// Replicas that a node runs though the shard's leader does not count them as members.
pub fn forgotten(statuses: &BTreeMap<NodeId, v1::NodeStatus>) -> Vec<Missing> {
    let mut found = Vec::new();
    for (leader, shard) in led_shards(statuses) {
        for (node_id, status) in statuses.iter().filter(|(node_id, _)| **node_id != leader) {
            let strays = status.replicas.iter().filter(|replica| {
                replica.shard_id == shard.shard_id
                    && !shard
                        .replicas
                        .iter()
                        .any(|member| member.replica_id == replica.replica_id)
            });
            found.extend(strays.map(|replica| Missing {
                shard_id: replica.shard_id,
                replica_id: replica.replica_id,
                node_id: *node_id,
            }));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn member(replica_id: u64, node_id: u64) -> v1::ReplicaDescriptor {
        v1::ReplicaDescriptor {
            replica_id,
            node_id,
            ..Default::default()
        }
    }

    fn status(replicas: &[(u64, bool)], shard: &v1::ShardDescriptor) -> v1::NodeStatus {
        let replica = |(replica_id, is_leader): &(u64, bool)| v1::ReplicaStatus {
            shard_id: shard.shard_id,
            replica_id: *replica_id,
            is_leader: *is_leader,
            state: "trusted".to_owned(),
            descriptor: Some(shard.clone()),
            ..Default::default()
        };
        v1::NodeStatus {
            replicas: replicas.iter().map(replica).collect(),
            ..Default::default()
        }
    }

    fn cluster() -> (v1::Directory, v1::ShardDescriptor) {
        let node = |node_id: u64| v1::NodeDescriptor {
            node_id,
            addr: format!("n{node_id}"),
            ..Default::default()
        };
        let shard = v1::ShardDescriptor {
            shard_id: 5,
            replicas: vec![member(1, 1), member(2, 2), member(3, 3)],
            ..Default::default()
        };
        (
            v1::Directory {
                nodes: (1..=3).map(node).collect(),
                ..Default::default()
            },
            shard,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_its_node_does_not_run_is_replaced_after_patience() {
        let (directory, shard) = cluster();
        let statuses = BTreeMap::from([
            (1, status(&[(1, true)], &shard)),
            (2, status(&[(2, false)], &shard)),
            (3, status(&[], &shard)),
        ]);
        let mut sightings = Sightings::default();
        let now = crate::clock::now();
        assert!(sightings.look(&directory, &statuses, now, PATIENCE).is_empty());
        let due = sightings.look(&directory, &statuses, now + PATIENCE, PATIENCE);
        assert_eq!(due.len(), 1);
        assert_eq!(
            (due[0].missing.replica_id, due[0].leader, due[0].to.node_id),
            (3, 1, 3)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_not_a_lost_one() {
        let (directory, shard) = cluster();
        let statuses = BTreeMap::from([
            (1, status(&[(1, true)], &shard)),
            (2, status(&[(2, false)], &shard)),
        ]);
        let now = crate::clock::now();
        assert!(
            Sightings::default()
                .look(&directory, &statuses, now, Duration::ZERO)
                .is_empty()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_retired_nodes_replicas_move_to_its_successor() {
        let (mut directory, shard) = cluster();
        directory.nodes[2].retired = true;
        directory.nodes.push(v1::NodeDescriptor {
            node_id: 4,
            addr: "n3".into(),
            ..Default::default()
        });
        let statuses = BTreeMap::from([(1, status(&[(1, true)], &shard)), (4, status(&[], &shard))]);
        let due = Sightings::default().look(&directory, &statuses, crate::clock::now(), Duration::ZERO);
        assert_eq!(due.iter().map(|due| due.to.node_id).collect::<Vec<_>>(), [4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replacement_that_was_begun_goes_on_where_its_learner_is() {
        let (mut directory, mut shard) = cluster();
        directory.nodes[2].retired = true;
        for node_id in [4, 5] {
            directory.nodes.push(v1::NodeDescriptor {
                node_id,
                addr: if node_id == 5 { "n3" } else { "n4" }.into(),
                ..Default::default()
            });
        }
        shard.replicas.push(v1::ReplicaDescriptor {
            role: v1::ReplicaRole::Learner.into(),
            ..member(4, 5)
        });
        let statuses = BTreeMap::from([
            (1, status(&[(1, true)], &shard)),
            (4, status(&[], &shard)),
            (5, status(&[], &shard)), // it may have lost the learner again
        ]);
        let due = Sightings::default().look(&directory, &statuses, crate::clock::now(), Duration::ZERO);
        let due: Vec<_> = due
            .iter()
            .map(|due| (due.missing.replica_id, due.to.node_id))
            .collect();
        assert_eq!(due, [(3, 5)], "the voter that is gone, and nothing else");
    }

    /// After a shard was recovered from a minority, which leaves it one voter.
    #[tokio::test(start_paused = true)]
    async fn a_shard_with_too_few_voters_gets_another_where_nothing_of_it_is() {
        let (mut directory, mut shard) = cluster();
        directory.replicas = 3;
        for (node, zone) in directory.nodes.iter_mut().zip(["a", "a", "b"]) {
            node.zone = zone.to_owned();
        }
        shard.replicas.truncate(1);
        let mut statuses = BTreeMap::from([
            (1, status(&[(1, true)], &shard)),
            (2, status(&[], &shard)),
            (3, status(&[], &shard)),
        ]);
        let due = |directory: &v1::Directory, statuses: &BTreeMap<NodeId, v1::NodeStatus>| {
            let mut sightings = Sightings::default();
            let due = sightings.look(directory, statuses, crate::clock::now(), Duration::ZERO);
            due.iter()
                .map(|due| (due.missing.replica_id, due.leader, due.to.node_id))
                .collect::<Vec<_>>()
        };
        assert_eq!(due(&directory, &statuses), [(0, 1, 3)], "in another zone");
        statuses.insert(3, status(&[(9, false)], &shard));
        assert_eq!(
            due(&directory, &statuses),
            [(0, 1, 2)],
            "what is left of the shard is in the way"
        );
        statuses.remove(&2);
        assert!(due(&directory, &statuses).is_empty(), "nobody is there");
        shard.replicas.push(v1::ReplicaDescriptor {
            role: v1::ReplicaRole::Learner.into(),
            ..member(9, 3)
        });
        statuses.insert(1, status(&[(1, true)], &shard));
        assert_eq!(
            due(&directory, &statuses),
            [(0, 1, 3)],
            "it goes on where it was begun"
        );
        directory.replicas = 1;
        assert!(due(&directory, &statuses).is_empty(), "one is enough");
    }

    #[test]
    fn a_replica_no_leader_counts_is_forgotten() {
        let (_, shard) = cluster();
        let statuses = BTreeMap::from([
            (1, status(&[(1, true)], &shard)),
            (3, status(&[(9, false)], &shard)),
        ]);
        assert_eq!(
            forgotten(&statuses),
            [Missing {
                shard_id: 5,
                replica_id: 9,
                node_id: 3
            }]
        );
    }
}
