//! Finds the replica that answers a request: here, or on the node that leads its shard.

use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::{KeyspaceId, SYSTEM_KEYSPACE, stored_key};
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::request::Op;
use reelkv_proto::v1::{self, peer_request, peer_response, response};

use super::directory::{self, shard_of};
use super::execute::{self, Target};
use super::member::Member;
use super::node::Node;
use crate::clock::{Instant, now};
use crate::error;

/// Pause before a shard without a known leader is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl Node {
    /// Answers a request of a client, or one forwarded by another node (`forwarded`), which is
    /// never forwarded again.
    pub(super) async fn answer(self: &Arc<Self>, request: v1::Request, forwarded: bool) -> v1::Response {
        let id = request.id;
        let result = match request.op {
            Some(op) => {
                let timeout = execute::timeout(request.timeout_ms);
                match self.require_member() {
                    Ok(member) => member.answer(op, now() + timeout, forwarded).await,
                    Err(error) => Err(error),
                }
            }
            None => Err(error::invalid("op", "the request asks nothing")),
        };
        let result = result.unwrap_or_else(response::Result::Error);
        v1::Response {
            id,
            result: Some(result),
        }
    }
}

impl Member {
    async fn answer(
        self: &Arc<Self>,
        op: Op,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<response::Result, v1::Error> {
        let target = execute::target(&op)?;
        let keyspace_id = match self.known_keyspace(&target) {
            Some(id) => id,
            None => Box::pin(self.keyspace(&target, deadline)).await?,
        };
        execute::check(keyspace_id, &op)?;
        match &target.route {
            Some(route) => self.answer_routed(route, keyspace_id, op, deadline).await,
            // On the heap, so that the many requests with a route take less memory.
            None => Box::pin(self.answer_unrouted(&target, keyspace_id, op, deadline, forwarded)).await,
        }
    }

    /// The caller has no map: answer, or find who can.
    async fn answer_unrouted(
        self: &Arc<Self>,
        target: &Target,
        keyspace_id: KeyspaceId,
        op: Op,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<response::Result, v1::Error> {
        // Nothing else in the request may be sent twice: without a token a write is tried until
        // it may have happened, not longer.
        let mut unsure = false;
        loop {
            let outcome = self.try_once(target, keyspace_id, &op, deadline, forwarded).await;
            let retry = match &outcome {
                Err(error) => !forwarded && may_be_tried_again(error),
                Ok(_) => false,
            };
            unsure |= outcome.as_ref().is_err_and(may_have_happened);
            if !retry {
                return outcome.map_err(|error| match unsure && !forwarded {
                    true => error::outcome_unknown(&error.message),
                    false => error,
                });
            }
            if now() + RETRY_PAUSE >= deadline {
                return Err(match unsure {
                    true => error::outcome_unknown("the deadline passed while the write was under way"),
                    false => at_deadline(&op, outcome.err()),
                });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// The keyspace's number, if this node's map has it. Never the system's.
    fn known_keyspace(&self, target: &Target) -> Option<KeyspaceId> {
        let directory = self.directory.get();
        let id = match (target.keyspace_id, target.keyspace.as_str()) {
            (SYSTEM_KEYSPACE, name) => directory::keyspace(&directory, name)?,
            (id, _) => {
                let mut known = directory.keyspaces.iter();
                known.any(|keyspace| keyspace.keyspace_id == id).then_some(id)?
            }
        };
        (id != SYSTEM_KEYSPACE).then_some(id)
    }

    /// The keyspace's number. This node's map may be old: only the meta shard can say that there
    /// is no such keyspace.
    async fn keyspace(self: &Arc<Self>, target: &Target, deadline: Instant) -> Result<KeyspaceId, v1::Error> {
        let mut definite = target.keyspace_id == SYSTEM_KEYSPACE && target.keyspace.is_empty();
        loop {
            if let Some(id) = self.known_keyspace(target) {
                return Ok(id);
            }
            if definite {
                return Err(error::unknown_keyspace(&target.keyspace, target.keyspace_id));
            }
            match self.ask_meta_shard(left(deadline)).await {
                Ok(()) => definite = true,
                Err(failed) if now() + RETRY_PAUSE >= deadline => {
                    let message = format!(
                        "this node does not know the keyspace, and the meta shard does not answer: {}",
                        failed.message
                    );
                    return Err(error::unavailable(message));
                }
                Err(_) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    self.refresh_directory().await;
                }
            }
        }
    }

    /// The caller has a map of its own: answer, or correct it.
    async fn answer_routed(
        self: &Arc<Self>,
        route: &v1::Route,
        keyspace_id: KeyspaceId,
        op: Op,
        deadline: Instant,
    ) -> Result<response::Result, v1::Error> {
        let Some(replica) = self.replicas.get(route.shard_id) else {
            let known = self.directory.get();
            return Err(match directory::shard(&known, route.shard_id) {
                Some(shard) => {
                    let leader = directory::node(&known, shard.leader_node_id);
                    let addr = leader.map_or("", |node| node.addr.as_str());
                    error::not_leader(route.shard_id, shard.leader_node_id, addr)
                }
                None => error::epoch_not_match(Vec::new()),
            });
        };
        replica.check_epoch(route.epoch)?;
        execute::execute(&replica, keyspace_id, op, left(deadline)).await
    }

    async fn try_once(
        self: &Arc<Self>,
        target: &Target,
        keyspace_id: KeyspaceId,
        op: &Op,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<response::Result, v1::Error> {
        let key = stored_key(keyspace_id, &target.key);
        let known = self.directory();
        let shard = shard_of(&known, &key).ok_or_else(|| error::unavailable("the map has a hole"))?;
        let refused = match self.replicas.get(shard.shard_id) {
            Some(replica) => {
                match execute::execute(&replica, keyspace_id, op.clone(), left(deadline)).await {
                    Err(refused) if matches!(refused.kind, Some(Kind::NotLeader(_))) => Some(refused),
                    answer => return answer,
                }
            }
            None => None,
        };
        if forwarded {
            return Err(refused.unwrap_or_else(|| error::not_leader(shard.shard_id, 0, "")));
        }
        let addr = self.leader_addr(shard, refused.as_ref(), &known);
        let addr = addr.ok_or_else(|| error::not_leader(shard.shard_id, 0, ""))?;
        self.forward(&addr, op.clone(), deadline).await
    }

    /// Where the shard's leader probably is, if not here.
    fn leader_addr(
        &self,
        shard: &v1::ShardDescriptor,
        refused: Option<&v1::Error>,
        known: &v1::Directory,
    ) -> Option<String> {
        if let Some(v1::Error {
            kind: Some(Kind::NotLeader(hint)),
            ..
        }) = refused
        {
            return (!hint.leader_addr.is_empty()).then(|| hint.leader_addr.clone());
        }
        let own = self.node_id();
        let hinted = directory::node(known, shard.leader_node_id).filter(|node| node.node_id != own);
        let elsewhere = || {
            let others: Vec<_> = shard
                .replicas
                .iter()
                .filter(|replica| replica.node_id != own)
                .collect();
            let pick = self.clock.random_u64() as usize % others.len().max(1);
            others.get(pick).map(|replica| replica.addr.clone())
        };
        hinted.map(|node| node.addr.clone()).or_else(elsewhere)
    }

    async fn forward(&self, addr: &str, op: Op, deadline: Instant) -> Result<response::Result, v1::Error> {
        let timeout = left(deadline);
        let write = execute::is_write(&op);
        let request = v1::Request {
            id: 0,
            timeout_ms: timeout.as_millis() as u32,
            op: Some(op),
        };
        let request = v1::PeerRequest {
            cluster_id: self.cluster_id(),
            from_node_id: self.node_id(),
            body: Some(peer_request::Body::Forward(request)),
            ..Default::default()
        };
        use crate::raft::transport::TransportError;
        match self.transport.call(addr, request, timeout).await {
            Ok(v1::PeerResponse {
                body: Some(peer_response::Body::Forward(response)),
                ..
            }) => match response.result {
                Some(response::Result::Error(error)) => Err(error),
                Some(result) => Ok(result),
                None => Err(error::internal("an empty answer")),
            },
            Ok(v1::PeerResponse {
                body: Some(peer_response::Body::Error(error)),
                ..
            }) => Err(error),
            Ok(_) => Err(error::internal("an answer of another kind")),
            Err(TransportError::Lost { .. } | TransportError::Damaged { .. }) if write => {
                Err(error::outcome_unknown("the leader's node did not answer"))
            }
            Err(unreachable) => Err(error::unavailable(unreachable.to_string())),
        }
    }
}

/// Whether a write that ended so may have happened, or may yet.
fn may_have_happened(error: &v1::Error) -> bool {
    matches!(&error.kind, Some(Kind::NotLeader(hint)) if hint.maybe_done)
}

/// Errors after which the same request may be sent again: nothing was done, or it has a token.
fn may_be_tried_again(error: &v1::Error) -> bool {
    matches!(
        error.kind,
        Some(
            Kind::NotLeader(_)
                | Kind::EpochNotMatch(_)
                | Kind::KeyNotInShard(_)
                | Kind::Busy(_)
                | Kind::Unavailable(_)
        )
    )
}

/// What to say when the deadline ends the tries: nothing was done.
fn at_deadline(op: &Op, last: Option<v1::Error>) -> v1::Error {
    let what = if execute::is_write(op) { "write" } else { "read" };
    let why = last.map_or_else(String::new, |error| format!(": {}", error.message));
    error::unavailable(format!("the {what}'s deadline passed without a leader{why}"))
}

pub(super) fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(now())
        .max(Duration::from_millis(1))
}
