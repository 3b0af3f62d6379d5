//! A replica's side of the conversation with the shard's other replicas.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1::{self, raft_request, raft_response};

use super::Donation;
use super::codec::{
    RaftStoredMembership, decode_stored_membership, encode_stored_membership, entry_from_wire, entry_to_wire,
    id_from_wire, id_to_wire, invalid, vote_from_wire, vote_to_wire,
};
use super::quorum::Quorum;
use super::state_machine::SnapshotData;
use super::transport::{SharedTransport, TransportError};
use super::types::{PeerNode, Raft, RaftLogId, RaftVote, TypeConfig};
use super::views::OpenViews;
use crate::limits::VIEW_LIFE_MS_MAX;
use crate::shard::Spans;
use crate::wal::GroupId;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// A peer that answers heartbeats may still be slow to sync a large append.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_millis(2_000);

/// What a leader notices about its followers.
pub trait PeerEvents: Send + Sync + 'static {
    /// A follower denies an entry it had acknowledged: it lost its log and must be replaced
    /// under a new id, never repaired by sending the entry again.
    fn lost_log(&self, replica_id: ReplicaId);
}

/// Makes clients to the shard's other replicas.
#[derive(Clone)]
pub struct Network {
    /// The local replica.
    pub id: GroupId,
    /// The local node.
    pub node_id: u64,
    /// The cluster, in every message.
    pub cluster_id: bytes::Bytes,
    /// How messages travel.
    pub transport: SharedTransport,
    /// Views being transferred.
    pub views: Arc<OpenViews>,
    /// Who hears of followers that lost their log.
    pub events: Arc<dyn PeerEvents>,
    /// What followers have acknowledged.
    pub acknowledged: Arc<Acknowledged>,
    /// Whether a quorum still answers, when the local replica leads.
    pub quorum: Arc<Quorum>,
}

/// The last entry each follower acknowledged to this leader in its present term. openraft keeps
/// several clients for one follower and makes new ones; what one of them was told, all must know:
/// a denial that reaches openraft ends the leader's core.
#[derive(Debug, Default)]
pub struct Acknowledged(Mutex<BTreeMap<ReplicaId, (u64, RaftLogId)>>);

impl Acknowledged {
    fn note(&self, follower: ReplicaId, term: u64, upto: Option<RaftLogId>) {
        let Some(upto) = upto else { return };
        let mut acknowledged = self.0.lock();
        match acknowledged.get_mut(&follower) {
            Some((known_term, known)) if *known_term == term => *known = upto.max(*known),
            _ => {
                acknowledged.insert(follower, (term, upto));
            }
        }
    }

    /// Whether a follower has acknowledged an entry, in this term, at or after `index`.
    fn covers(&self, follower: ReplicaId, term: u64, index: u64) -> bool {
        let acknowledged = self.0.lock();
        let known = acknowledged.get(&follower);
        known.is_some_and(|(known_term, upto)| *known_term == term && index <= upto.index)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: ReplicaId, node: &PeerNode) -> PeerClient {
        PeerClient {
            network: self.clone(),
            to: target,
            addr: node.addr.clone(),
        }
    }
}

/// A client to one replica.
pub struct PeerClient {
    network: Network,
    to: ReplicaId,
    addr: String,
}

impl PeerClient {
    async fn call(&self, body: raft_request::Body, timeout: Duration) -> Rpc<raft_response::Body> {
        let raft = v1::RaftRequest {
            shard_id: self.network.id.shard_id,
            from_replica_id: self.network.id.replica_id,
            to_replica_id: self.to,
            body: Some(body),
        };
        let request = v1::PeerRequest {
            cluster_id: self.network.cluster_id.clone(),
            from_node_id: self.network.node_id,
            body: Some(v1::peer_request::Body::Raft(raft)),
            ..Default::default()
        };
        let response = self
            .network
            .transport
            .call(&self.addr, request, timeout)
            .await
            .map_err(rpc_error)?;
        match response.body {
            Some(v1::peer_response::Body::Raft(v1::RaftResponse { body: Some(body) })) => Ok(body),
            Some(v1::peer_response::Body::Error(error)) => Err(unreachable_because(&error.message)),
            _ => Err(network_error(&invalid("an answer of another kind"))),
        }
    }

    /// Refuses what would keep followers from electing another leader.
    fn check_quorum(&self, term: u64) -> Rpc<()> {
        match self.network.quorum.is_lost(term) {
            true => Err(unreachable_because(
                "no quorum answers this leader; it keeps quiet",
            )),
            false => Ok(()),
        }
    }

    /// Notices a follower that denies what it had acknowledged.
    fn check_conflict(&self, term: u64, prev: Option<RaftLogId>) -> Rpc<()> {
        let lost = prev.is_some_and(|prev| self.network.acknowledged.covers(self.to, term, prev.index));
        if lost {
            self.network.events.lost_log(self.to);
            return Err(unreachable_because(
                "the replica lost its log and is being replaced",
            ));
        }
        Ok(())
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let term = rpc.vote.leader_id.term;
        self.check_quorum(term)?;
        let prev = rpc.prev_log_id;
        let last = rpc.entries.last().map(|entry| entry.log_id).or(prev);
        let body = raft_request::Body::Append(v1::AppendEntriesRequest {
            vote: Some(vote_to_wire(&rpc.vote)),
            prev_log_id: id_to_wire(prev),
            entries: rpc.entries.iter().map(entry_to_wire).collect(),
            leader_commit: id_to_wire(rpc.leader_commit),
        });
        let timeout = option.hard_ttl().max(APPEND_TIMEOUT_MIN);
        let raft_response::Body::Append(answer) = self.call(body, timeout).await? else {
            return Err(network_error(&invalid("not an append's answer")));
        };
        use v1::append_entries_response::Result as Answer;
        let answer = answer
            .result
            .ok_or_else(|| network_error(&invalid("an empty append's answer")))?;
        Ok(match answer {
            Answer::Success(_) => {
                self.network.acknowledged.note(self.to, term, last);
                AppendEntriesResponse::Success
            }
            Answer::PartialSuccess(partial) => {
                let matching = id_from_wire(partial.matching);
                self.network.acknowledged.note(self.to, term, matching);
                AppendEntriesResponse::PartialSuccess(matching)
            }
            Answer::Conflict(_) => {
                self.check_conflict(term, prev)?;
                AppendEntriesResponse::Conflict
            }
            Answer::HigherVote(vote) => {
                AppendEntriesResponse::HigherVote(vote_from_wire(Some(vote)).map_err(|e| network_error(&e))?)
            }
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        match self
            .call(raft_request::Body::Vote(vote_request(&rpc)), option.hard_ttl())
            .await?
        {
            raft_response::Body::Vote(answer) => vote_response(answer),
            _ => Err(network_error(&invalid("not a vote's answer"))),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        match self
            .call(raft_request::Body::PreVote(vote_request(&rpc)), option.hard_ttl())
            .await?
        {
            raft_response::Body::PreVote(answer) => vote_response(answer),
            _ => Err(network_error(&invalid("not a pre-vote's answer"))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Outgoing { view, control } = snapshot.snapshot else {
            return Err(unreachable_because("the tree is being refilled; there is nothing to send").into());
        };
        self.check_quorum(vote.leader_id.term)?;
        let donation = Donation {
            view,
            control: *control,
            withheld: Spans::default(),
        };
        let Some(view_id) = self.network.views.open(donation) else {
            return Err(unreachable_because("too many transfers at a time").into());
        };
        let body = raft_request::Body::Snapshot(v1::SnapshotOffer {
            vote: Some(vote_to_wire(&vote)),
            last_log_id: id_to_wire(snapshot.meta.last_log_id),
            membership: Some(encode_stored_membership(&snapshot.meta.last_membership)),
            view_id,
        });
        let answer = tokio::select! {
            biased;
            answer = self.call(body, Duration::from_millis(VIEW_LIFE_MS_MAX)) => answer,
            closed = cancel => {
                self.network.views.close(view_id);
                return Err(closed.into());
            }
        };
        self.network.views.close(view_id);
        match answer? {
            raft_response::Body::Snapshot(answer) => {
                let vote = vote_from_wire(answer.vote).map_err(|error| network_error(&error))?;
                Ok(SnapshotResponse::new(vote))
            }
            _ => Err(network_error(&invalid("not a snapshot's answer")).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let body = raft_request::Body::TransferLeader(v1::TransferLeaderMessage {
            from_leader: Some(vote_to_wire(rpc.from_leader())),
            to_replica_id: *rpc.to_node_id(),
            last_log_id: id_to_wire(rpc.last_log_id().copied()),
        });
        match self.call(body, option.hard_ttl()).await? {
            raft_response::Body::TransferLeader(answer) if answer.accepted => Ok(Ok(())),
            raft_response::Body::TransferLeader(_) => {
                Err(unreachable_because("the transfer was not accepted"))
            }
            _ => Err(network_error(&invalid("not a transfer's answer"))),
        }
    }
}

fn vote_request(rpc: &VoteRequest<TypeConfig>) -> v1::VoteRequest {
    v1::VoteRequest {
        vote: Some(vote_to_wire(&rpc.vote)),
        last_log_id: id_to_wire(rpc.last_log_id),
        leader_transfer: rpc.leadership_transfer,
    }
}

fn vote_response(answer: v1::VoteResponse) -> Rpc<VoteResponse<TypeConfig>> {
    let vote = vote_from_wire(answer.vote).map_err(|error| network_error(&error))?;
    Ok(VoteResponse::new(
        vote,
        id_from_wire(answer.last_log_id),
        answer.granted,
    ))
}

fn network_error(error: &(impl std::error::Error + 'static)) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(error))
}

fn unreachable_because(why: &str) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&io::Error::other(why.to_owned())))
}

fn rpc_error(error: TransportError) -> RPCError<TypeConfig> {
    match error {
        TransportError::Unreachable { .. } | TransportError::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
        TransportError::Lost { .. } | TransportError::Damaged { .. } => network_error(&error),
    }
}

/// Answers a message for the local replica, snapshots and reads apart.
///
/// # Errors
/// The Raft instance has stopped, or the message is not one a node of a known release sends.
pub async fn handle_message(raft: &Raft, body: raft_request::Body) -> io::Result<raft_response::Body> {
    let stopped = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    match body {
        raft_request::Body::Append(rpc) => {
            let entries = rpc
                .entries
                .into_iter()
                .map(entry_from_wire)
                .collect::<io::Result<Vec<_>>>()?;
            let request = AppendEntriesRequest {
                vote: vote_from_wire(rpc.vote)?,
                prev_log_id: id_from_wire(rpc.prev_log_id),
                entries,
                leader_commit: id_from_wire(rpc.leader_commit),
            };
            use v1::append_entries_response::Result as Answer;
            let answer = match raft
                .append_entries(request)
                .await
                .map_err(|error| stopped(&error))?
            {
                AppendEntriesResponse::Success => Answer::Success(v1::Blank {}),
                AppendEntriesResponse::PartialSuccess(matching) => {
                    Answer::PartialSuccess(v1::PartialSuccess {
                        matching: id_to_wire(matching),
                    })
                }
                AppendEntriesResponse::Conflict => Answer::Conflict(v1::Blank {}),
                AppendEntriesResponse::HigherVote(vote) => Answer::HigherVote(vote_to_wire(&vote)),
            };
            Ok(raft_response::Body::Append(v1::AppendEntriesResponse {
                result: Some(answer),
            }))
        }
        raft_request::Body::Vote(rpc) => {
            let answer = raft
                .vote(wire_vote_request(rpc)?)
                .await
                .map_err(|error| stopped(&error))?;
            Ok(raft_response::Body::Vote(wire_vote_response(answer)))
        }
        raft_request::Body::PreVote(rpc) => {
            let answer = raft
                .pre_vote(wire_vote_request(rpc)?)
                .await
                .map_err(|error| stopped(&error))?;
            Ok(raft_response::Body::PreVote(wire_vote_response(answer)))
        }
        raft_request::Body::TransferLeader(rpc) => {
            let from = vote_from_wire(rpc.from_leader)?;
            let request = TransferLeaderRequest::new(from, rpc.to_replica_id, id_from_wire(rpc.last_log_id));
            let accepted = raft
                .handle_transfer_leader(request)
                .await
                .map_err(|error| stopped(&error))?
                .is_ok();
            Ok(raft_response::Body::TransferLeader(v1::TransferLeaderReply {
                accepted,
            }))
        }
        raft_request::Body::Snapshot(_) | raft_request::Body::ReadIndex(_) => {
            Err(invalid("a message the replica answers itself"))
        }
    }
}

fn wire_vote_request(rpc: v1::VoteRequest) -> io::Result<VoteRequest<TypeConfig>> {
    Ok(VoteRequest {
        vote: vote_from_wire(rpc.vote)?,
        last_log_id: id_from_wire(rpc.last_log_id),
        leadership_transfer: rpc.leader_transfer,
    })
}

fn wire_vote_response(answer: VoteResponse<TypeConfig>) -> v1::VoteResponse {
    v1::VoteResponse {
        vote: Some(vote_to_wire(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: id_to_wire(answer.last_log_id),
    }
}

/// What a snapshot offer says, in openraft's terms.
///
/// # Errors
/// The offer is incomplete.
pub fn offered(offer: &v1::SnapshotOffer) -> io::Result<(RaftVote, Option<RaftLogId>, RaftStoredMembership)> {
    let vote = vote_from_wire(offer.vote)?;
    let membership = offer
        .membership
        .as_ref()
        .map(decode_stored_membership)
        .transpose()?
        .unwrap_or_default();
    Ok((vote, id_from_wire(offer.last_log_id), membership))
}

/// The answer to a snapshot offer.
pub fn snapshot_response(response: &SnapshotResponse<TypeConfig>) -> v1::SnapshotResponse {
    v1::SnapshotResponse {
        vote: Some(vote_to_wire(&response.vote)),
    }
}
