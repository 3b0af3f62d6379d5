//! How things are: this node, and the cluster as this node can see it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use prost::Message;
use reelkv_proto::types::NodeId;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::member::Member;
use super::node::Node;
use super::proofs;
use crate::health;
use crate::metrics::Upkeep;
use crate::rpc::handler::Answer;

const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Open damage of one node that the cluster's status names.
const DAMAGE_NAMED_MAX: usize = 16;

impl Node {
    /// This node.
    pub(super) async fn node_status(self: &Arc<Self>) -> Answer<v1::NodeStatus> {
        let mut status = v1::NodeStatus {
            node: Some(v1::NodeDescriptor {
                addr: self.options.addr.clone(),
                http_addr: self.options.http_addr.clone(),
                zone: self.options.zone.clone(),
                ..Default::default()
            }),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            damage: self.health.events(),
            engine: self.options.storage.engine.to_string(),
            ..Default::default()
        };
        if let Some(member) = self.member() {
            member.fill_status(&mut status);
        }
        Ok(status)
    }

    /// This node, for the others: without the history of what was repaired.
    pub(super) async fn status_for_peers(self: &Arc<Self>) -> Answer<v1::NodeStatus> {
        let mut status = self.node_status().await?;
        status.damage.retain(health::is_open);
        Ok(status)
    }
}

impl Member {
    fn fill_status(&self, status: &mut v1::NodeStatus) {
        if let Some(node) = &mut status.node {
            node.node_id = self.node_id();
        }
        status.cluster_id = self.cluster_id();
        status.uptime_ms = self.started.elapsed().as_millis() as u64;
        status.replicas = self
            .replicas
            .all()
            .iter()
            .map(|replica| replica.status())
            .collect();
        if self.is_stopping() {
            for replica in &mut status.replicas {
                "stopping".clone_into(&mut replica.state);
            }
        }
        let mut healing = self.replicas.healing();
        healing.extend(self.healing.lock().iter());
        let not_running = [
            ("lost", self.lost.lock().clone()),
            ("healing", healing),
            ("starting", self.starting.lock().clone()),
        ];
        for (state, ids) in not_running {
            status.replicas.extend(ids.iter().map(|id| v1::ReplicaStatus {
                shard_id: id.shard_id,
                replica_id: id.replica_id,
                state: state.to_owned(),
                ..Default::default()
            }));
        }
        status.wal_bytes = self.wal.disk_bytes();
        status.wal_batch = self.wal.batch();
        status.tree_bytes = self.storage.disk_bytes();
        status.memtable_bytes = self.storage.memtable_bytes();
        status.memtable_budget_bytes = self.storage.memtable_budget_bytes();
    }

    /// What this node did besides answering.
    pub(super) fn upkeep(&self) -> Upkeep {
        Upkeep {
            checkpoints: self.storage.checkpoints(),
            wal_segments_removed: self.wal.segments_removed(),
        }
    }

    /// The status of every node that answers.
    pub(super) async fn statuses(self: &Arc<Self>) -> BTreeMap<NodeId, v1::NodeStatus> {
        let known = self.directory.get();
        let asked = known
            .nodes
            .iter()
            .filter(|node| !node.retired && node.node_id != self.node_id())
            .map(|node| {
                let addr = node.addr.clone();
                let node_id = node.node_id;
                async move {
                    let body = peer_request::Body::Status(v1::PeerStatusRequest {});
                    match self.ask(&addr, body, STATUS_TIMEOUT).await {
                        Ok(peer_response::Body::Status(bytes)) => {
                            Some((node_id, v1::NodeStatus::decode(bytes).ok()?))
                        }
                        _ => None,
                    }
                }
            });
        let mut statuses: BTreeMap<_, _> = join_all(asked).await.into_iter().flatten().collect();
        let mut own = v1::NodeStatus {
            damage: self.health.open_events(),
            ..Default::default()
        };
        self.fill_status(&mut own);
        statuses.insert(self.node_id(), own);
        statuses
    }

    /// The cluster.
    pub(super) async fn cluster_status(self: &Arc<Self>, _node: &Arc<Node>) -> Answer<v1::ClusterStatus> {
        let statuses = self.statuses().await;
        let known = self.directory.get();
        let nodes: Vec<_> = known
            .nodes
            .iter()
            .filter(|node| !node.retired)
            .map(|node| node_health(node, statuses.get(&node.node_id)))
            .collect();
        let shards: Vec<_> = known
            .shards
            .iter()
            .map(|shard| shard_status(shard, &statuses, known.replicas))
            .collect();
        let (health, summary) = verdict(&nodes, &shards, known.replicas);
        Ok(v1::ClusterStatus {
            health: health.into(),
            summary,
            cluster_id: self.cluster_id(),
            nodes,
            shards,
        })
    }
}

fn node_health(node: &v1::NodeDescriptor, status: Option<&v1::NodeStatus>) -> v1::NodeHealth {
    let replicas = status.map_or(&[][..], |status| &status.replicas);
    let damage = status.map_or(&[][..], |status| &status.damage);
    let open = || damage.iter().filter(|event| health::is_open(event));
    v1::NodeHealth {
        node: Some(node.clone()),
        reachable: status.is_some(),
        replicas: replicas.len() as u32,
        leaders: replicas.iter().filter(|replica| replica.is_leader).count() as u32,
        open_damage: open().count() as u32,
        damage: open().take(DAMAGE_NAMED_MAX).cloned().collect(),
    }
}

fn shard_status(
    shard: &v1::ShardDescriptor,
    statuses: &BTreeMap<NodeId, v1::NodeStatus>,
    wanted_replicas: u32,
) -> v1::ShardStatus {
    let replicas = || {
        statuses.iter().flat_map(|(node, status)| {
            status
                .replicas
                .iter()
                .filter(|replica| replica.shard_id == shard.shard_id)
                .map(|replica| (*node, replica))
        })
    };
    let leader = replicas()
        .filter(|(_, replica)| replica.is_leader)
        .max_by_key(|(_, replica)| replica.term);
    let descriptor = leader
        .and_then(|(_, replica)| replica.descriptor.clone())
        .unwrap_or_else(|| shard.clone());
    let counted = |id: u64| descriptor.replicas.iter().any(|member| member.replica_id == id);
    let healthy = || {
        replicas().map(|(_, replica)| replica).filter(|replica| {
            replica.state == "trusted"
                && replica.role() == v1::ReplicaRole::Voter
                && counted(replica.replica_id)
        })
    };
    let healthy_replicas = healthy().count() as u32;
    let proofs = proofs::of_shard(&descriptor, healthy(), wanted_replicas);
    // Any trusted replica can count records; the leader's own figures come first.
    let figures = leader
        .map(|(_, replica)| replica)
        .filter(|replica| replica.records > 0);
    let figures = figures.or_else(|| {
        replicas()
            .map(|(_, replica)| replica)
            .max_by_key(|replica| replica.records)
    });
    v1::ShardStatus {
        leader_node_id: leader.map_or(0, |(node, _)| node),
        term: leader.map_or(0, |(_, replica)| replica.term),
        applied_index: leader.map_or(0, |(_, replica)| replica.applied_index),
        records: figures.map_or(0, |replica| replica.records),
        data_bytes: figures.map_or(0, |replica| replica.data_bytes),
        healthy_replicas,
        oldest_proof_ms: proofs.as_ref().map(|proofs| proofs.oldest_ms),
        spans_under_two_copies: proofs
            .map(|proofs| proofs.spans_under_two_copies)
            .unwrap_or_default(),
        descriptor: Some(descriptor),
    }
}

fn verdict(nodes: &[v1::NodeHealth], shards: &[v1::ShardStatus], replicas: u32) -> (v1::Health, String) {
    let leaderless = shards.iter().filter(|shard| shard.leader_node_id == 0).count();
    let silent: Vec<_> = nodes.iter().filter(|node| !node.reachable).collect();
    let thin = shards
        .iter()
        .filter(|shard| shard.healthy_replicas < replicas)
        .count();
    let damage: u32 = nodes.iter().map(|node| node.open_damage).sum();
    let mut wrong = Vec::new();
    if leaderless > 0 {
        wrong.push(format!("{leaderless} of {} shards have no leader", shards.len()));
    }
    if !silent.is_empty() {
        let addrs: Vec<_> = silent
            .iter()
            .filter_map(|node| node.node.as_ref())
            .map(|node| node.addr.as_str())
            .collect();
        wrong.push(format!("no answer from {}", addrs.join(", ")));
    }
    if thin > 0 {
        wrong.push(format!(
            "{thin} shards have fewer than {replicas} healthy replicas"
        ));
    }
    if damage > 0 {
        wrong.push(format!("{damage} damaged places are not repaired yet"));
    }
    let health = match (leaderless, wrong.is_empty()) {
        (0, true) => v1::Health::Ok,
        (0, false) => v1::Health::Degraded,
        _ => v1::Health::Unavailable,
    };
    let summary = match wrong.is_empty() {
        true => format!(
            "healthy: {} nodes, {} shards, {replicas} replicas each",
            nodes.len(),
            shards.len()
        ),
        false => wrong.join("; "),
    };
    (health, summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(reachable: bool) -> v1::NodeHealth {
        v1::NodeHealth {
            node: Some(v1::NodeDescriptor::default()),
            reachable,
            ..Default::default()
        }
    }

    fn shard(leader_node_id: u64, healthy_replicas: u32) -> v1::ShardStatus {
        v1::ShardStatus {
            leader_node_id,
            healthy_replicas,
            ..Default::default()
        }
    }

    #[test]
    fn health_says_the_worst_there_is() {
        assert_eq!(verdict(&[node(true)], &[shard(1, 3)], 3).0, v1::Health::Ok);
        assert_eq!(verdict(&[node(false)], &[shard(1, 3)], 3).0, v1::Health::Degraded);
        assert_eq!(verdict(&[node(true)], &[shard(1, 2)], 3).0, v1::Health::Degraded);
        assert_eq!(
            verdict(&[node(false)], &[shard(0, 1), shard(1, 3)], 3).0,
            v1::Health::Unavailable
        );
    }
}
