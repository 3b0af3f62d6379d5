//! The place of an entry in a shard's log.

use std::fmt;

use reelkv_proto::v1;

/// Term and index of a log entry, ordered by term, then index. One leader per term, so these
/// two name one entry of a shard for all time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// Position in the log, from 0.
    pub index: u64,
}

impl LogId {
    /// The entry at `index` proposed in `term`.
    pub fn new(term: u64, index: u64) -> Self {
        Self { term, index }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{}.{}", self.term, self.index)
    }
}

impl From<v1::LogId> for LogId {
    fn from(id: v1::LogId) -> Self {
        Self {
            term: id.term,
            index: id.index,
        }
    }
}

impl From<LogId> for v1::LogId {
    fn from(id: LogId) -> Self {
        Self {
            term: id.term,
            index: id.index,
        }
    }
}
