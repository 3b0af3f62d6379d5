//! ReelKV: a horizontally sharded key-value store whose shards are replicated by Raft.
//!
//! `node/docs/architecture.md` walks through the life of a write and of a read. Each module
//! below uses only those listed after it (limits, clock, disk, health and mutants are open to all):
//! cli → process → {config, server, rpc} → placement → replica → raft → {wal, storage} → shard.

pub mod cli;
pub mod clock;
pub mod config;
pub mod disk;
pub mod error;
pub mod health;
pub mod limits;
pub mod logs;
pub mod metrics;
pub mod mutants;
pub mod placement;
pub mod process;
pub mod raft;
pub mod replica;
pub mod rpc;
pub mod server;
pub mod shard;
pub mod storage;
pub mod wal;
