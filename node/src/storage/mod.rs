//! The stored records of one replica: a versioned tree, in an engine that is not trusted.
//!
//! # A tree
//!
//! Every effect of a shard's log has a *version*; a [`Tree`] keeps for each key the records that
//! effects wrote, by version. A [`View`] reads one version: it sees log entries whole or not at
//! all, because the visible version moves ([`Tree::publish`]) only after an entry's last effect.
//! The answer to a read is `Value`, `Absent` or `Unproven` ([`Lookup`]), never `Absent` because
//! something could not be read.
//!
//! A tree has no journal of its own: the shard's log is its journal. A *checkpoint* is taken
//! between two entries: [`Tree::seal`] writes a *control row* (the shard's control state, and the
//! log id everything so far stands for) and closes the memtable; [`Tree::flush`] makes it durable
//! and returns a [`Mark`], which the caller records in the WAL. After a crash the tree is exactly
//! at its last checkpoint, and the log is applied again from there.
//!
//! # What is checked, and when
//!
//! - Every record embeds its key, version, kind, checksums and its own CRC ([`StoredRecord`]); all
//!   of it is verified at every read, whatever the engine says.
//! - Before an engine opens a folder, its raw files are compared with the mark ([`Storage::open`]),
//!   because opening deletes what it takes for leftovers. A state *older* than the mark, or
//!   any checksum that is wrong, is damage. A *newer* one (the power failed between a flush and
//!   its record in the WAL) is accepted if it is whole and its control row is not older than the mark.
//! - An error ends a scan as an error: an engine that reads on past a bad block leaves out rows, or
//!   brings up older ones.
//! - A panic of an engine is contained, and closes the tree.
//!
//! # Old versions
//!
//! Open views keep old versions. Each flush and compaction first raises the tree's *floor* to the
//! oldest open view (or the visible version); a view below the floor is refused. Deleted records
//! are dropped once the floor has passed them, at different times on different replicas, so nothing
//! may depend on whether a deleted record is still there.
//!
//! # Engines
//!
//! [`EngineKind::Lsm`] is `lsm-tree`, one per replica. [`EngineKind::Memory`] is for the simulator.
//! [`EngineKind::Sled`] is the memory engine's table over a sled tree that is written at checkpoints
//! and holds every row in memory; sled does not survive a power cut, so after any unclean stop it
//! is refused ([`TreeError::Unclean`]). Nothing outside this module names an engine's library.

mod backing;
mod buckets;
mod checkpoint;
mod control_row;
mod engine;
mod error;
mod exhaustive;
mod lsm;
mod mark;
mod record;
mod salvage;
mod scrub;
mod store;
mod stretches;
mod sweep;
mod table;
mod table_note;
#[cfg(test)]
mod tests;
mod tree;
mod view;
mod views;

use std::fmt;
use std::str::FromStr;

pub use buckets::{Bucket, Buckets};
pub use checkpoint::Sealed;
pub use error::TreeError;
pub use exhaustive::{Exhausted, exhaustive};
pub use mark::{FileContents, FileSum, Mark};
pub use record::StoredRecord;
pub use salvage::Salvaged;
pub use scrub::{ScrubCursor, ScrubStep};
pub use store::{Opened, Storage, StorageConfig};
pub use stretches::{Stretch, Stretches};
pub use sweep::{BadSpan, SweepReport};
pub use table::{MemoryDevice, OldTree};
pub use table_note::TableNote;
pub use tree::Tree;
pub use view::{Digest, Expired, Lookup, Page, View};

/// Names one tree for all time; its folder's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId {
    /// The shard the tree is of.
    pub shard_id: u64,
    /// The replica of the shard.
    pub replica_id: u64,
    /// Counts the trees of the replica, from 1: a rebuilt one is another tree.
    pub generation: u64,
}

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shard_id,
            replica_id,
            generation,
        } = self;
        write!(f, "s{shard_id}-r{replica_id}-g{generation}")
    }
}

impl FromStr for TreeId {
    type Err = TreeError;

    fn from_str(name: &str) -> Result<Self, TreeError> {
        let parse = || {
            let (shard, rest) = name.strip_prefix('s')?.split_once("-r")?;
            let (replica, generation) = rest.split_once("-g")?;
            let id = Self {
                shard_id: shard.parse().ok()?,
                replica_id: replica.parse().ok()?,
                generation: generation.parse().ok()?,
            };
            (id.to_string() == name).then_some(id)
        };
        parse().ok_or_else(|| TreeError::invalid(format!("{name:?} is not the name of a tree")))
    }
}

/// What keeps the rows of a node's trees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// lsm-tree: the default.
    #[default]
    Lsm = 1,
    /// Memory only, for the simulator.
    Memory = 2,
    /// sled: does not survive a power cut; refilled from peers after an unclean stop.
    Sled = 3,
}

impl EngineKind {
    /// All engines.
    pub const ALL: [Self; 3] = [Self::Lsm, Self::Memory, Self::Sled];

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lsm => "lsm",
            Self::Memory => "memory",
            Self::Sled => "sled",
        })
    }
}

impl FromStr for EngineKind {
    type Err = TreeError;

    fn from_str(name: &str) -> Result<Self, TreeError> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == name);
        found.ok_or_else(|| TreeError::invalid(format!("no engine {name:?}; there are lsm, memory and sled")))
    }
}
