//! Fault-injection correctness tests: workloads, histories, checkers, and a seeded simulator
//! that runs whole clusters in one process on virtual time.
//!
//! - [`history`] is what clients saw: invocations and completions.
//! - [`versions`] judges a register history, per key, by the order its versions claim;
//!   [`linearizable`] judges it again by searching for an order of its own.
//! - [`register`] is the workload: reads, writes and conditional writes of a few keys.
//! - [`sim`] is the world: real nodes (log, Raft, replicas, routing) over a simulated network
//!   and simulated disks, all of it from one seed.

pub mod history;
pub mod linearizable;
pub mod register;
pub mod sim;
pub mod versions;
