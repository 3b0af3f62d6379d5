//! A running replica: propose, read, apply, refill, hand over.
//!
//! - [`Replica`] is one shard's copy on this node from start to stop: its Raft, its store and
//!   the tasks around them.
//! - `proposer` turns waiting requests into entries, one proposer per shard and term.
//! - `reads` shares one ReadIndex round among all reads that were waiting when it began.
//! - `transfer` sends and receives a view; `repair` uses it to fill another tree in the place of one that is
//!   damaged, no faster than `rate` allows, and from nobody who sent something wrong (`senders`). Until
//!   then `proven` reads from peers what this replica cannot prove.
//! - `maintenance` checkpoints, purges and forgets.
//! - `time` is the shard's time by its voters' clocks; `expiry` logs it for records that are due, and
//!   removes them.
//! - `heal` gets back payloads that a replica's log lost, before its Raft starts and while it runs;
//!   `log_scrub` looks for such.
//! - `tree_scrub` reads the trees again and again, to find damage that no request meets; `pace` says how
//!   fast both scrubs read.
//! - `divergence` has all voters compare what they hold, and finds who is wrong.
//! - `membership` replaces a replica that lost its log or its node; `compare` shows before that the
//!   new one holds what the others hold.
//! - [`Replicas`] holds the node's replicas and restarts one whose Raft has stopped.

mod compare;
mod context;
mod divergence;
mod expiry;
mod heal;
mod hint;
mod log_scrub;
mod maintenance;
mod membership;
mod pace;
mod proposer;
mod proven;
mod rate;
mod reads;
mod repair;
#[allow(clippy::module_inception)]
mod replica;
mod replicas;
mod senders;
mod time;
mod transfer;
mod tree_scrub;

pub use compare::Comparison;
pub use context::{ReplicaContext, ReplicaSettings};
pub use divergence::{Verified, VerifiedVoter};
pub use heal::payload_of;
pub use rate::Rate;
pub use replica::Replica;
pub use replicas::{Replicas, StartOutcome};
pub use senders::Senders;
pub use time::Clocks;
