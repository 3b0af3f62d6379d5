//! Entries that the log need not have any more, because a tree stands for them: this replica's own, or
//! a voter's, whose view is then taken before Raft starts.

use std::io;
use std::sync::Arc;

use reelkv_proto::v1::{self, PayloadState};

use super::super::transfer::Receiver;
use super::Healer;
use super::voters::{Answer, Asked};
use crate::raft::{ReplicaMark, ReplicaStore, StoreParts, Trust};
use crate::shard::LogId;
use crate::wal::{FaultyEntry, Vote};

impl Healer<'_> {
    /// Purges an entry that this replica's own tree, whole and on record, stands for.
    pub(super) async fn purge_to_checkpoint(&self, faulty: FaultyEntry) -> io::Result<bool> {
        let mark = self.group.mark().map(ReplicaMark::decode).transpose();
        let mark = mark.map_err(io::Error::other)?;
        let marked = mark.and_then(|mark| mark.tree.and(mark.control.applied));
        if marked.is_none_or(|applied| applied.index < faulty.log_id.index) {
            return Ok(false);
        }
        let store = self.store().await?;
        let stands_for_it = store.checkpointed().filter(|_| store.trust() == Trust::Trusted);
        let Some(checkpoint) = stands_for_it.filter(|applied| applied.index >= faulty.log_id.index) else {
            return Ok(false);
        };
        match self.group.log_id(checkpoint.index) == Some(checkpoint) {
            true => self.group.purge_now(faulty.log_id).await?,
            false => self.stand_at(checkpoint).await?,
        }
        tracing::info!(id = %self.group.id(), entry = %faulty.log_id, "a damaged entry was purged: the tree stands for it");
        Ok(true)
    }

    /// Takes the view of a voter that has applied the entry and cannot deliver it any more.
    pub(super) async fn take_view(&self, faulty: FaultyEntry, asked: &Asked) -> io::Result<bool> {
        let may_have =
            |answer: &&Answer| matches!(answer.state, PayloadState::Purged | PayloadState::Damaged);
        for answer in asked.answers.iter().filter(may_have) {
            match self.take_view_of(faulty, answer, asked).await {
                Ok(reached) => {
                    let id = self.group.id();
                    tracing::info!(%id, entry = %faulty.log_id, addr = answer.addr, %reached, "a peer's view stands for a damaged entry");
                    return Ok(true);
                }
                Err(error) if self.context.wal.is_poisoned() => return Err(error),
                Err(error) => {
                    tracing::info!(id = %self.group.id(), addr = answer.addr, %error, "a peer's view was not taken");
                }
            }
        }
        Ok(false)
    }

    /// In an order in which a power cut at any place leaves what the next start goes on from: a vote of the
    /// view's term first, then nothing in the log that contradicts the view, then the view on record,
    /// then the log purged to it.
    async fn take_view_of(&self, faulty: FaultyEntry, answer: &Answer, asked: &Asked) -> io::Result<LogId> {
        let store = self.store().await?;
        let applied = store.with_control(|control| control.applied());
        let least = [applied, self.group.purged()].into_iter().flatten();
        let least = least.map(|log_id| log_id.index).max().unwrap_or(0);
        let receiver = Receiver {
            context: self.context,
            store,
            addr: answer.addr.clone(),
            request: v1::FetchViewRequest {
                cluster_id: self.context.cluster_id.clone(),
                shard_id: self.group.id().shard_id,
                replica_id: answer.replica_id,
                min_index: least.max(faulty.log_id.index),
                ..Default::default()
            },
        };
        let may_lead: Vec<String> = asked.answers.iter().map(|answer| answer.addr.clone()).collect();
        if !receiver.sender().is_proven(&may_lead).await {
            return Err(io::Error::other("what it sent cannot be believed"));
        }
        let refill = receiver.fill().await.map_err(io::Error::other)?;
        let reached = refill.control.applied();
        let reached = reached.ok_or_else(|| io::Error::other("the view of an unborn shard"))?;
        self.raise_vote(reached.term).await?;
        self.cut_what_contradicts(reached).await?;
        store.install(refill).await?;
        self.group.purge_now(reached).await?;
        Ok(reached)
    }

    /// The log goes on from a committed entry that it does not hold.
    async fn stand_at(&self, reached: LogId) -> io::Result<()> {
        self.raise_vote(reached.term).await?;
        self.cut_what_contradicts(reached).await?;
        self.group.purge_now(reached).await
    }

    /// Nothing of an earlier term may be accepted once an entry of a later one is held. The vote is for
    /// this replica itself: it asks nobody for theirs.
    async fn raise_vote(&self, term: u64) -> io::Result<()> {
        if self.group.vote().is_some_and(|vote| vote.term >= term) {
            return Ok(());
        }
        let vote = Vote {
            term,
            voted_for: self.group.id().replica_id,
            committed: false,
        };
        self.group.save_vote(vote).await
    }

    /// Another entry in the place of a committed one never commits, nor what follows it.
    async fn cut_what_contradicts(&self, committed: LogId) -> io::Result<()> {
        let own = self.group.log_id(committed.index);
        match own.is_some_and(|own| own != committed) {
            true => self.group.cut_from(committed.index).await,
            false => Ok(()),
        }
    }

    /// The replica's applied state, opened when it is needed first.
    async fn store(&self) -> io::Result<&Arc<ReplicaStore>> {
        let open = || {
            let parts = StoreParts {
                group: self.group.clone(),
                id: self.group.id(),
                storage: self.context.storage.clone(),
                health: self.context.health.clone(),
            };
            ReplicaStore::open(parts, self.birth)
        };
        self.store.get_or_try_init(open).await
    }
}
