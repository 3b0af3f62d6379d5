//! Fault-injection correctness tests: workloads, nemeses, histories, checkers, and a seeded
//! simulator that runs whole clusters in one process on virtual time.
//!
//! - [`workload`] is what clients do, through the public client library.
//! - [`nemesis`] is what goes wrong meanwhile.
//! - [`history`] is what clients saw: invocations and completions.
//! - [`checker`] judges histories.
//! - [`sim`] is the world: real nodes (log, Raft, replicas, routing) over a simulated network
//!   and simulated disks, all of it from one seed.
//! - [`run`] puts them together, from a seed to a verdict; [`suite`] does so many times.
//! - [`matrix`] damages disks at rest, place by place, and judges what comes of it.
//! - [`cli`] is the command line.

pub mod checker;
pub mod cli;
pub mod history;
pub mod matrix;
pub mod mutants;
pub mod nemesis;
pub mod run;
pub mod sim;
pub mod suite;
pub mod workload;
