//! Where else a caller should ask.

use openraft::errors::ForwardToLeader;
use reelkv_proto::types::ShardId;
use reelkv_proto::v1;

use crate::error;
use crate::raft::{PeerNode, Raft, TypeConfig, metrics};

/// The leader as the local replica knows it.
pub(super) fn known_leader(raft: &Raft) -> Option<(u64, PeerNode)> {
    let metrics = metrics(raft);
    let leader = metrics.current_leader?;
    let node = metrics.membership_config.membership().get_node(&leader)?.clone();
    Some((leader, node))
}

/// "Not here" with the leader as far as it is known.
pub(super) fn not_leader(raft: &Raft, shard_id: ShardId) -> v1::Error {
    let own = *raft.node_id();
    match known_leader(raft) {
        Some((leader, node)) if leader != own => error::not_leader(shard_id, node.node_id, &node.addr),
        _ => error::not_leader(shard_id, 0, ""),
    }
}

/// The same from openraft's own refusal.
pub(super) fn forward(shard_id: ShardId, to: &ForwardToLeader<TypeConfig>) -> v1::Error {
    match &to.leader_node {
        Some(node) => error::not_leader(shard_id, node.node_id, &node.addr),
        None => error::not_leader(shard_id, 0, ""),
    }
}
