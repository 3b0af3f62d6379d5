//! The node's one write-ahead log, shared by all its shards.
//!
//! # Files
//!
//! Segments `NNNNNNNN.wal`, preallocated, never reopened for writing: each start of a node begins
//! a new one. A segment grows from both ends towards the middle; a block has 4,096 bytes.
//!
//! ```text
//! block 0        header                    (copy 1)
//! block 1 ..     data frames, upwards      one per batch: batch header, records, zero padding
//!   ...          free, zero
//! .. block n-2   identity frames, downwards  one per batch: identities, zero padding, footer
//! block n-1      header                    (copy 2)
//! ```
//!
//! A batch is what one `fdatasync` makes durable: one data frame and one identity frame, each
//! padded to whole blocks, so that no sector holding acknowledged bytes is written again. The
//! byte layouts stand above the code that reads them in `format`.
//!
//! Every record's *identity* (kind, shard, replica, log id, length, CRC, position) is kept a
//! second time in the identity frame, apart from the payload. Control records (votes, marks,
//! births, memberships, ...) are kept there in full. Every batch says up to which batch
//! everything was known to be durable when it was written (the *synced mark*); when the log goes
//! idle an empty batch says so of the last one.
//!
//! The first batch of a segment repeats the control state of all replicas, so that an old segment
//! is held by live entries only; the few that hold the oldest one back are carried forward.
//! The numbers of the oldest and the newest segment stand in a small file that is kept twice
//! (`manifest`): a missing segment is noticed, the newest one as well. One in whose place another node's was put is
//! missing; a log in which all segments are another node's is refused.
//!
//! # What a bad record means
//!
//! - In a batch at or before the highest synced mark: damage, never a tail to cut. If the
//!   identity is known, only the payload is missing: the entry is *faulty* and can be healed from
//!   a peer by log id and CRC. If not, the replicas concerned must be replaced; when it cannot be
//!   told which, all of them.
//! - In the last batch, beyond the mark, it may be a write the power cut tore. Identity good and
//!   payload bad: faulty too, but it may also be cut, once every other voter has said that it has
//!   no such entry. Payload good and identity bad: nothing is lost. Both bad: it is cut there.
//!
//! A replica that lost more than payloads is *lost*: a record says so from the next segment on, as the
//! segment in which it was seen may be deleted before the replica is replaced.
//!
//! # While it runs
//!
//! The log is read again from the device, all the time (`scrub`). A payload that is bad makes its entry
//! faulty. If anything else is, all that counts up to its segment is written again elsewhere (`carry`), and the
//! segment is deleted.
//!
//! # Rules kept for Raft
//!
//! Entries are readable when `append` returns. Completions run in order, after the batch they are
//! in is durable. `save_vote` and `put_mark` return when they and everything before is durable.
//! Truncations, purges and committed marks wait for the next batch: one FIFO log, so whatever
//! depends on them comes later. After any failed write or sync the log is poisoned: everything
//! queued and everything later fails, nothing is tried again.

mod carry;
mod check;
#[doc(hidden)]
pub mod exhaustive;
mod format;
mod group;
mod log;
mod manifest;
mod recovery;
mod repair;
mod replay;
mod scrub;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use reelkv_proto::types::{ReplicaId, ShardId};

pub use group::WalGroup;
pub use log::Wal;
pub use recovery::{Damage, FaultyEntry, GroupRecovery, Recovery, owners};

pub use scrub::{ScrubPosition, Scrubbed};

use crate::shard::LogId;

/// A replica as the log knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    /// The shard.
    pub shard_id: ShardId,
    /// Its replica here.
    pub replica_id: ReplicaId,
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {} replica {}", self.shard_id, self.replica_id)
    }
}

/// A replica's hard state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Highest term seen.
    pub term: u64,
    /// Who has this replica's vote in it.
    pub voted_for: ReplicaId,
    /// Whether that one won.
    pub committed: bool,
}

/// What kind of entry a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Nothing.
    Blank,
    /// Effects.
    Normal,
    /// A membership: a control payload, kept twice in full.
    Membership,
}

/// A log entry as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalEntry {
    /// Where it stands.
    pub log_id: LogId,
    /// What it is.
    pub kind: EntryKind,
    /// Its bytes.
    pub payload: Bytes,
}

/// Called once the entries are durable, or with the error that poisoned the log.
pub type AppendDone = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The log's settings.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// Size of a segment, in bytes; at least 64 KiB, a multiple of 4 KiB.
    pub segment_bytes: u64,
    /// Newest payloads kept in memory over all replicas, in bytes.
    pub tail_cache_bytes: usize,
    /// The log counts as idle after this long without work, in milliseconds.
    pub idle_mark_ms: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            tail_cache_bytes: 64 << 20,
            idle_mark_ms: 5,
        }
    }
}

/// Whose log it is; written into every segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The node.
    pub node_id: u64,
}

/// Why a log cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Its segments belong to another cluster or node.
    #[error("{path}: the log of another node; this is node {expected}")]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// The node that tried to open it.
        expected: u64,
    },
    /// A segment was written by a newer release.
    #[error("{path}: written in format {found}, this release reads format {supported}; use a newer release")]
    NewerFormat {
        /// The segment.
        path: PathBuf,
        /// Its format number.
        found: u32,
        /// The newest this release reads.
        supported: u32,
    },
    /// The directory cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// A setting is out of its limits.
    #[error("segment size {0} is not a multiple of 4 KiB of at least 64 KiB")]
    SegmentSize(u64),
}
