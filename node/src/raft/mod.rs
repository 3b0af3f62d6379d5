//! openraft's traits on top of WAL and storage, and the seam to other nodes.
//!
//! The only place that implements openraft's traits. Why its defaults are not ours is said in
//! [`config`]; what openraft asks of a log is kept by `wal` and only translated in [`LogStore`].
//!
//! - [`TypeConfig`] fixes openraft's types: our replica ids are its node ids, a term has one
//!   leader, its timers and randomness are tokio's and the clock door's.
//! - [`LogStore`] is one replica's part of the node's WAL.
//! - [`ReplicaStore`] is what a replica has applied: control state and tree.
//! - [`StateMachine`] feeds committed entries to it.
//! - [`Network`] speaks to the other replicas over a [`transport::Transport`]; [`Quorum`] knows when a
//!   leader had better not.

mod codec;
mod config;
mod log_store;
mod mark;
mod metrics;
mod network;
mod quorum;
mod replica_store;
mod state_machine;
#[cfg(test)]
mod suite_test;
pub mod transport;
mod types;
mod views;

pub use codec::{decode_membership, encode_membership, entry_from_wire, entry_to_wire};
pub use config::{RaftTimes, config};
pub use log_store::{LogStore, PayloadSource};
pub use mark::{Doubts, ReplicaMark, spans_from_wire, spans_to_wire};
pub use metrics::metrics;
pub use network::{Acknowledged, Network, PeerEvents, handle_message, offered, snapshot_response};
pub use quorum::Quorum;
pub use replica_store::{
    AppliedPayload, CheckpointOutcome, Donation, LogPin, MarkedView, Part, Rebuild, RebuildBegun,
    RebuildError, Refill, ReplicaStore, StoreParts, Trust,
};
pub use state_machine::{SnapshotData, StateMachine};
pub use types::{EntryOutcome, PeerNode, Raft, RaftEntry, RaftLogId, RaftMembership, RaftVote, TypeConfig};
pub use views::OpenViews;
