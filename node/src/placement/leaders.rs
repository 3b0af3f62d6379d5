//! Even leadership: every node leads about as many shards as it can.

use std::collections::BTreeMap;

use reelkv_proto::types::{NodeId, ShardId};
use reelkv_proto::v1;

/// Hand a shard's leadership from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderMove {
    /// The shard.
    pub shard_id: ShardId,
    /// Who leads it now.
    pub from: NodeId,
    /// Who should.
    pub to: NodeId,
}

/// The next move that evens leadership out, if any: from the node that leads most to the one
/// that leads least among the nodes that answer, while they differ by two or more.
pub fn balance_leaders(statuses: &BTreeMap<NodeId, v1::NodeStatus>) -> Option<LeaderMove> {
    let led = |status: &v1::NodeStatus| status.replicas.iter().filter(|replica| replica.is_leader).count();
    let counts: BTreeMap<NodeId, usize> = statuses.iter().map(|(id, status)| (*id, led(status))).collect();
    let mut receivers: Vec<_> = counts.iter().map(|(id, count)| (*count, *id)).collect();
    receivers.sort_unstable();
    let mut givers = receivers.clone();
    givers.reverse();
    for (most, from) in &givers {
        for (least, to) in receivers.iter().take_while(|(least, _)| least + 2 <= *most) {
            let _ = least;
            if let Some(shard_id) = movable(&statuses[from], &statuses[to]) {
                return Some(LeaderMove {
                    shard_id,
                    from: *from,
                    to: *to,
                });
            }
        }
    }
    None
}

/// A shard that one leads and the other holds a trusted, nearly caught-up voter of.
fn movable(from: &v1::NodeStatus, to: &v1::NodeStatus) -> Option<ShardId> {
    const LAG_MAX: u64 = 256;
    from.replicas
        .iter()
        .filter(|leader| leader.is_leader)
        .find_map(|leader| {
            let ready = to.replicas.iter().any(|replica| {
                replica.shard_id == leader.shard_id
                    && replica.role() == v1::ReplicaRole::Voter
                    && replica.state == "trusted"
                    && leader.last_log_index.saturating_sub(replica.last_log_index) <= LAG_MAX
            });
            ready.then_some(leader.shard_id)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(leaders: &[(NodeId, &[ShardId])], shards: u64) -> BTreeMap<NodeId, v1::NodeStatus> {
        let status = |(node, led): &(NodeId, &[ShardId])| {
            let replica = |shard_id| v1::ReplicaStatus {
                shard_id,
                role: v1::ReplicaRole::Voter.into(),
                is_leader: led.contains(&shard_id),
                state: "trusted".to_owned(),
                ..Default::default()
            };
            (
                *node,
                v1::NodeStatus {
                    replicas: (1..=shards).map(replica).collect(),
                    ..Default::default()
                },
            )
        };
        leaders.iter().map(status).collect()
    }

    #[test]
    fn a_node_that_leads_nothing_is_given_a_shard() {
        let found = balance_leaders(&statuses(&[(1, &[1, 2, 3]), (2, &[4, 5]), (3, &[])], 5));
        assert_eq!(
            found,
            Some(LeaderMove {
                shard_id: 1,
                from: 1,
                to: 3
            })
        );
    }

    #[test]
    fn an_even_cluster_is_left_alone() {
        assert_eq!(
            balance_leaders(&statuses(&[(1, &[1, 2]), (2, &[3]), (3, &[4])], 4)),
            None
        );
    }

    #[test]
    fn a_refilling_replica_is_given_nothing() {
        let mut statuses = statuses(&[(1, &[1, 2, 3]), (2, &[])], 3);
        for replica in &mut statuses.get_mut(&2).unwrap().replicas {
            replica.state = "refilling".to_owned();
        }
        assert_eq!(balance_leaders(&statuses), None);
    }
}
