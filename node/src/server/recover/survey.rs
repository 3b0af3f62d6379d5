//! Asks what is left of a shard.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use prost::Message;
use reelkv_proto::types::{ReplicaId, ShardId};
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::super::identity::Identity;
use super::Refused;
use crate::raft::transport::SharedTransport;

const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// What a member's node says of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// The node runs the replica, or is about to.
    Runs(Box<v1::ReplicaStatus>),
    /// The node is there and does not have it any more.
    Lacks,
    /// No such node answers; why.
    Silent(String),
}

/// What the other members' nodes say; nobody is in it who was not asked.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub answers: BTreeMap<ReplicaId, Answer>,
    /// The last batch of this node's log that any of them was shown.
    shown_batch: u64,
    /// One of them knows that this node was replaced by another.
    replaced: bool,
}

/// Asks the node of every other member.
pub(super) async fn ask(
    transport: &SharedTransport,
    own: Identity,
    shard_id: ShardId,
    membership: &v1::Membership,
) -> Known {
    let members = membership.members.iter();
    let others = members.filter(|member| member.node_id != own.node_id);
    let asked = others.map(|member| async move {
        let answer = ask_one(transport, own, shard_id, member).await;
        (member, answer, ask_memory(transport, own, &member.addr).await)
    });
    let mut known = Known::default();
    for (member, answer, memory) in join_all(asked).await {
        known.answers.insert(member.replica_id, answer);
        let Some(memory) = memory else { continue };
        known.replaced |= memory.retired;
        let of_own = memory
            .watermarks
            .iter()
            .filter(|mark| mark.node_id == own.node_id);
        let shown = of_own.map(|mark| mark.wal_batch).max().unwrap_or(0);
        known.shown_batch = known.shown_batch.max(shown);
    }
    known
}

async fn ask_one(
    transport: &SharedTransport,
    own: Identity,
    shard_id: ShardId,
    member: &v1::Member,
) -> Answer {
    let body = peer_request::Body::Status(v1::PeerStatusRequest {});
    let status = match call(transport, own, &member.addr, body).await {
        Ok(peer_response::Body::Status(bytes)) => v1::NodeStatus::decode(bytes).map_err(|e| e.to_string()),
        Ok(_) => Err("an answer of another kind".to_owned()),
        Err(why) => Err(why),
    };
    let status = match status {
        Ok(status) => status,
        Err(why) => return Answer::Silent(why),
    };
    let node_id = status.node.as_ref().map_or(0, |node| node.node_id);
    if node_id != member.node_id {
        return Answer::Silent(format!("node {node_id} is at its address"));
    }
    let runs = |replica: &&v1::ReplicaStatus| {
        (replica.shard_id, replica.replica_id) == (shard_id, member.replica_id) && replica.state != "lost"
    };
    match status.replicas.iter().find(runs) {
        Some(replica) => Answer::Runs(Box::new(replica.clone())),
        None => Answer::Lacks,
    }
}

async fn ask_memory(transport: &SharedTransport, own: Identity, addr: &str) -> Option<v1::WatermarksMessage> {
    let told = v1::WatermarksMessage {
        cluster_id: own.cluster_id.to_vec().into(),
        ..Default::default()
    };
    match call(transport, own, addr, peer_request::Body::Watermarks(told)).await {
        Ok(peer_response::Body::Watermarks(answer)) => Some(answer),
        _ => None,
    }
}

async fn call(
    transport: &SharedTransport,
    own: Identity,
    addr: &str,
    body: peer_request::Body,
) -> Result<peer_response::Body, String> {
    let request = v1::PeerRequest {
        cluster_id: own.cluster_id.to_vec().into(),
        from_node_id: own.node_id,
        body: Some(body),
        ..Default::default()
    };
    let response = transport.call(addr, request, ASK_TIMEOUT).await;
    match response.map_err(|error| error.to_string())?.body {
        Some(peer_response::Body::Error(error)) => Err(error.message),
        Some(body) => Ok(body),
        None => Err("an empty answer".to_owned()),
    }
}

/// An old copy of a directory knows less than its node acknowledged, and must not serve.
pub(super) fn check_own_log(known: &Known, node_id: u64, last_whole_batch: u64) -> Result<(), Refused> {
    if known.replaced {
        let why = format!("node {node_id} was replaced by another; its data is of the past");
        return Err(Refused(why));
    }
    match known.shown_batch > last_whole_batch {
        true => Err(Refused(format!(
            "this log ends with batch {last_whole_batch}, other nodes were shown batch {}: \
             it has forgotten what it acknowledged",
            known.shown_batch
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_has_forgotten_or_was_replaced_is_refused() {
        let known = |shown_batch, replaced| Known {
            shown_batch,
            replaced,
            ..Known::default()
        };
        assert!(check_own_log(&known(10, false), 1, 10).is_ok());
        let forgot = check_own_log(&known(11, false), 1, 10).unwrap_err();
        assert!(forgot.to_string().contains("batch 11"), "{forgot}");
        assert!(check_own_log(&known(0, true), 1, 10).is_err());
    }
}
