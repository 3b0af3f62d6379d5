//! openraft's types, fixed once.

use std::fmt;

use openraft::impls::leader_id_std;
use openraft_rt::deterministic_rng::DeterministicRng;
use reelkv_proto::types::{NodeId, ReplicaId};

use crate::raft::StateMachine;
use crate::shard::{Command, LogId};

openraft::declare_raft_types!(
    /// openraft's associated types as ReelKV uses them. openraft's node is our replica.
    pub TypeConfig:
        D = Command,
        R = EntryOutcome,
        NodeId = ReplicaId,
        Node = PeerNode,
        LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = DeterministicRng<openraft::TokioRuntime>,
);

/// A replica's Raft instance.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;
/// A log entry in memory.
pub type RaftEntry = openraft::alias::EntryOf<TypeConfig>;
/// A log id as openraft has it.
pub type RaftLogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote as openraft has it.
pub type RaftVote = openraft::alias::VoteOf<TypeConfig>;
/// A membership as openraft has it.
pub type RaftMembership = openraft::Membership<ReplicaId, PeerNode>;

/// Where a replica lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNode {
    /// The node.
    pub node_id: NodeId,
    /// host:port of its gRPC listener.
    pub addr: String,
}

/// What became of an entry when it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryOutcome {
    /// Performed (blank and membership entries always are).
    Done,
    /// Its preconditions did not hold: it changed nothing and may be evaluated again.
    NotDone,
}

impl fmt::Display for EntryOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl From<LogId> for RaftLogId {
    fn from(id: LogId) -> Self {
        RaftLogId::new(id.term.into(), id.index)
    }
}

impl From<RaftLogId> for LogId {
    fn from(id: RaftLogId) -> Self {
        LogId::new(id.leader_id.term, id.index)
    }
}
