//! One replica's part of the node's write-ahead log, as openraft wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};
use std::sync::Arc;

use futures::future::BoxFuture;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};

use super::codec::{entry_from_wal, entry_to_wal, vote_from_wal, vote_to_wal};
use super::types::{RaftEntry, RaftLogId, RaftVote, TypeConfig};
use crate::limits::APPEND_BYTES_TARGET;
use crate::shard::LogId;
use crate::wal::{WalEntry, WalGroup};

/// Where payloads come from that this node's log lost.
pub trait PayloadSource: Send + Sync {
    /// Puts back what the log lost of a range of indexes, durably, within a bounded time. Returns once every
    /// entry of the range can be read, or with an error: then the shard's Raft stops and the replica
    /// waits for its payloads before it starts again.
    fn restore(&self, range: Range<u64>) -> BoxFuture<'_, io::Result<()>>;
}

/// A replica's log. What openraft asks of a log (order, readable when `append` returns, durable
/// votes, completions as watermarks) is kept by the WAL; this type translates.
#[derive(Clone)]
pub struct LogStore {
    group: WalGroup,
    /// Entries up to here are applied for sure; a replica whose tree is unproven re-applies
    /// nothing at start.
    committed_at_start: Option<LogId>,
    payloads: Option<Arc<dyn PayloadSource>>,
}

impl LogStore {
    /// The log of a replica. `committed_at_start` is reported instead of what the WAL
    /// remembers as committed, if given.
    pub fn new(group: WalGroup, committed_at_start: Option<LogId>) -> Self {
        Self {
            group,
            committed_at_start,
            payloads: None,
        }
    }

    /// The same log, which gets back from there what it cannot read.
    #[must_use]
    pub fn with_payloads_from(self, source: Arc<dyn PayloadSource>) -> Self {
        Self {
            payloads: Some(source),
            ..self
        }
    }

    async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<RaftEntry>> {
        let entries = match (self.group.read(start, end, max_bytes).await, &self.payloads) {
            (Err(damaged), Some(source)) if damaged.kind() == io::ErrorKind::InvalidData => {
                self.restore(&**source, start, end, max_bytes).await?
            }
            (read, _) => read?,
        };
        entries.into_iter().map(entry_from_wal).collect()
    }

    /// Reads what can only be read once it is restored. Each attempt may meet another damaged entry.
    async fn restore(
        &self,
        source: &dyn PayloadSource,
        start: u64,
        end: u64,
        max_bytes: usize,
    ) -> io::Result<Vec<WalEntry>> {
        loop {
            let faulty = self.group.faulty_in(start..end).len();
            source.restore(start..end).await?;
            match self.group.read(start, end, max_bytes).await {
                Err(damaged) if damaged.kind() == io::ErrorKind::InvalidData && faulty > 0 => {}
                read => return read,
            }
        }
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

    /// The last entry of each term: from the identities alone, no payload is read.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<RaftLogId>) -> io::Result<Vec<RaftLogId>> {
        let (first, last) = (range.start().index, range.end().index);
        let keys = self.group.last_of_each_term(first, last);
        Ok(keys.into_iter().map(RaftLogId::from).collect())
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

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures::FutureExt;
    use prost::Message;
    use reelkv_proto::v1::{self, effect};

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::wal::{EntryKind, GroupId, Identity, Wal, WalConfig};

    fn payload(index: u64) -> Bytes {
        let put = v1::PutEffect {
            key: Bytes::from_static(b"key"),
            value: format!("the value of entry {index:04}").repeat(40).into(),
            ..Default::default()
        };
        let body = v1::EntryBody {
            effects: vec![v1::Effect {
                kind: Some(effect::Kind::Put(put)),
            }],
            ..Default::default()
        };
        body.encode_to_vec().into()
    }

    /// Six entries, of which no payload is in memory any more.
    async fn log(disk: &SimDisk) -> WalGroup {
        let config = WalConfig {
            segment_bytes: 64 << 10,
            tail_cache_bytes: 0,
            idle_mark_ms: 5,
        };
        let who = Identity {
            cluster_id: [1; 16],
            node_id: 1,
        };
        let (wal, _) = Wal::open(disk.mount(), PathBuf::from("/data/wal"), config, who)
            .await
            .unwrap();
        let id = GroupId {
            shard_id: 1,
            replica_id: 1,
        };
        let group = wal.birth(id, Bytes::new()).await.unwrap();
        let entry = |index| WalEntry {
            log_id: LogId::new(1 + index / 3, index),
            kind: EntryKind::Normal,
            payload: payload(index),
        };
        let (sender, durable) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        group.append((0..6).map(entry).collect(), done).unwrap();
        durable.await.unwrap().unwrap();
        group
    }

    fn damage(disk: &SimDisk, index: u64) {
        let wanted = payload(index);
        for (path, bytes) in disk.contents() {
            let found = bytes
                .windows(wanted.len())
                .position(|window| window == &wanted[..]);
            if let Some(at) = found {
                assert!(disk.corrupt(&path, at + 30, 1));
            }
        }
    }

    /// Puts back as many entries as it has left.
    struct Source {
        group: WalGroup,
        left: AtomicUsize,
    }

    impl PayloadSource for Source {
        fn restore(&self, range: Range<u64>) -> BoxFuture<'_, io::Result<()>> {
            async move {
                for faulty in self.group.faulty_in(range) {
                    let spent = self
                        .left
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                    spent.map_err(|_| io::Error::other("nobody delivers it"))?;
                    self.group
                        .heal(faulty.log_id, payload(faulty.log_id.index))
                        .await?;
                }
                Ok(())
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_damaged_payload_is_got_back_before_openraft_sees_anything_of_it() {
        let disk = SimDisk::new(1);
        let group = log(&disk).await;
        let source = Source {
            group: group.clone(),
            left: AtomicUsize::new(2),
        };
        let mut store = LogStore::new(group.clone(), None).with_payloads_from(Arc::new(source));
        for index in [1, 4] {
            damage(&disk, index);
        }
        let entries = store.try_get_log_entries(0..6).await.unwrap();
        assert_eq!(entries.len(), 6);
        assert_eq!(group.first_fault(), None);
        // Durably: after a restart nothing is faulty.
        disk.crash(1);
        let again = Wal::open(
            disk.mount(),
            PathBuf::from("/data/wal"),
            WalConfig::default(),
            Identity {
                cluster_id: [1; 16],
                node_id: 1,
            },
        );
        let (_, recovery) = again.await.unwrap();
        assert!(recovery.groups[0].faulty.is_empty(), "{:?}", recovery.groups);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_delivers_is_an_error_and_what_is_whole_can_be_read() {
        let disk = SimDisk::new(1);
        let group = log(&disk).await;
        let source = Source {
            group: group.clone(),
            left: AtomicUsize::new(0),
        };
        let mut store = LogStore::new(group.clone(), None).with_payloads_from(Arc::new(source));
        damage(&disk, 4);
        assert!(store.limited_get_log_entries(0, 6).await.is_err());
        assert_eq!(group.first_fault(), Some(4));
        assert_eq!(store.try_get_log_entries(0..4).await.unwrap().len(), 4);
        let id = |term, index| RaftLogId::from(LogId::new(term, index));
        let keys = store.get_key_log_ids(id(1, 0)..=id(2, 5)).await.unwrap();
        assert_eq!(keys, [id(1, 2), id(2, 5)], "identities are enough");
    }
}
