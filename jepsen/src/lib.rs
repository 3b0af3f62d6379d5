//! Fault-injection correctness tests: workloads, histories, checkers, and a seeded simulator
//! that runs whole clusters in one process on virtual time.
//!
//! - [`history`] is what clients saw: invocations and completions.
//! - [`checker`] judges histories.
//! - [`sim`] is the world: real nodes (log, Raft, replicas, routing) over a simulated network
//!   and simulated disks, all of it from one seed.

pub mod checker;
pub mod history;
pub mod sim;
