//! One replica's part of the node's write-ahead log, as openraft wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};

use super::codec::{entry_from_wal, entry_to_wal, vote_from_wal, vote_to_wal};
use super::types::{RaftEntry, RaftLogId, RaftVote, TypeConfig};
use crate::limits::APPEND_BYTES_TARGET;
use crate::shard::LogId;
use crate::wal::WalGroup;

/// A replica's log. What openraft asks of a log (order, readable when `append` returns, durable
/// votes, completions as watermarks) is kept by the WAL; this type translates.
#[derive(Clone)]
pub struct LogStore {
    group: WalGroup,
    /// Entries up to here are applied for sure; a replica whose tree is unproven re-applies
    /// nothing at start.
    committed_at_start: Option<LogId>,
}

impl LogStore {
    /// The log of a replica. `committed_at_start` is reported instead of what the WAL
    /// remembers as committed, if given.
    pub fn new(group: WalGroup, committed_at_start: Option<LogId>) -> Self {
        Self {
            group,
            committed_at_start,
        }
    }

    async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let entries = self.group.read(start, end, max_bytes).await?;
        entries.into_iter().map(entry_from_wal).collect()
    }

    fn bounds(&self, range: impl RangeBounds<u64>) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => self.group.purged().map_or(0, |id| id.index + 1),
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.group.last().map_or(0, |id| id.index + 1),
        };
        (start, end)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftEntry>> {
        let (start, end) = self.bounds(range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        self.read(start, end, APPEND_BYTES_TARGET).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.group.vote().map(vote_from_wal))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = self.group.purged().map(RaftLogId::from);
        let last = self.group.last().map(RaftLogId::from);
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.group.save_vote(vote_to_wal(vote)).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        match committed {
            Some(id) => self.group.save_committed(id.into()),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        let committed = self.committed_at_start.or_else(|| self.group.committed());
        // What was lost of the lazily written mark is learnt again from the leader; a mark
        // beyond the log would make openraft look for entries that were never durable here.
        Ok(committed
            .min(self.group.last().or(self.group.purged()))
            .map(RaftLogId::from))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| entry_to_wal(&entry)).collect();
        self.group
            .append(entries, Box::new(move |result| callback.io_completed(result)))
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> io::Result<()> {
        self.group.truncate_after(last_log_id.map(LogId::from))
    }

    async fn purge(&mut self, log_id: RaftLogId) -> io::Result<()> {
        self.group.purge(log_id.into())
    }
}
