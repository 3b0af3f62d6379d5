//! Makes a replica's tree durable and puts it on record in the log.

use std::io;

use prost::Message;
use reelkv_proto::v1;

use super::{Marked, ReplicaStore, Trust};
use crate::mutants::Mutant;
use crate::raft::{Doubts, ReplicaMark};
use crate::shard::{Control, LogId, Spans};
use crate::storage::{Mark, Tree};

/// What a checkpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointOutcome {
    /// The tree holds everything up to this entry, durably and on record.
    Recorded(LogId),
    /// Nothing was applied since the last one.
    Unchanged,
    /// There is no tree to checkpoint.
    Untrusted,
}

/// A tree filled from a peer's view, to be installed with the log behind it.
pub struct Refill {
    /// Filled, checkpointed, not yet on record.
    pub tree: Tree,
    /// The control state at the view's index, with tokens.
    pub control: Control,
    /// What the WAL will record of the tree.
    pub mark: Mark,
}

impl ReplicaStore {
    /// Makes what is applied durable in the tree and puts it on record in the WAL.
    ///
    /// # Errors
    /// The WAL refused the record: its disk is not to be trusted. A tree that fails is set aside
    /// instead.
    pub async fn checkpoint(&self) -> io::Result<CheckpointOutcome> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let (tree, sealed, control, applied) = {
            let mut state = self.state.lock();
            let Some(tree) = state.tree.clone() else {
                return Ok(CheckpointOutcome::Untrusted);
            };
            let Some(applied) = state.control.applied() else {
                return Ok(CheckpointOutcome::Unchanged);
            };
            if state.marked.applied() == Some(applied) {
                return Ok(CheckpointOutcome::Unchanged);
            }
            let row = state.control.encode().encode_to_vec();
            match tree.seal(&row, applied) {
                Ok(sealed) => (tree, sealed, state.control.encode_without_tokens(), applied),
                Err(error) => {
                    self.set_aside_locked(&mut state, &error);
                    return Ok(CheckpointOutcome::Untrusted);
                }
            }
        };
        match tree.flush(sealed).await {
            Ok(mark) => {
                self.record(control, mark).await?;
                self.parts.storage.count_checkpoint();
            }
            Err(error) => {
                self.set_aside(&error);
                return Ok(CheckpointOutcome::Untrusted);
            }
        }
        let leftovers = self.state.lock().leftovers;
        if leftovers {
            self.remove_old_folders().await;
        }
        Ok(CheckpointOutcome::Recorded(applied))
    }

    /// Lets the tree merge its files, if it has something to merge. A tree with bad files waits for
    /// another to take its place.
    ///
    /// # Errors
    /// As for [`ReplicaStore::checkpoint`].
    pub async fn compact(&self) -> io::Result<()> {
        let _turn = self.parts.storage.compaction_turn().await;
        let _one_at_a_time = self.checkpointing.lock().await;
        let (tree, marked) = {
            let state = self.state.lock();
            let marked = state.marked.control.clone();
            let (Some(tree), Some(marked), false) = (state.tree.clone(), marked, state.is_damaged()) else {
                return Ok(());
            };
            (tree, marked)
        };
        match tree.compact().await {
            Ok(Some(mark)) => self.record(marked, mark).await,
            Ok(None) => Ok(()),
            Err(error) => {
                self.found(&error);
                Ok(())
            }
        }
    }

    /// Puts the present tree on record; the caller has the turn.
    async fn record(&self, control: v1::ControlState, mark: Mark) -> io::Result<()> {
        let (doubts, is_whole_again) = {
            let mut state = self.state.lock();
            let had_unproven = !state.unproven.is_empty();
            let doubts = state.doubts_on_record(control.applied.map(LogId::from));
            let is_whole_again = had_unproven && doubts.unproven.is_empty();
            (doubts, is_whole_again && state.trust() == Trust::Trusted)
        };
        self.put_mark(control, Some(mark), doubts).await?;
        if is_whole_again {
            tracing::info!(id = ?self.parts.id, "what was lost has been written again");
            self.told_repaired();
        }
        Ok(())
    }

    /// Puts a tree, or that there is none, on record.
    pub(crate) async fn put_mark(
        &self,
        control: v1::ControlState,
        tree: Option<Mark>,
        doubts: Doubts,
    ) -> io::Result<()> {
        let record = ReplicaMark {
            control,
            tree,
            generation: self.state.lock().generation,
            doubts,
        };
        self.parts.group.put_mark(record.encode()).await?;
        // Without a tree the log still holds what was not checkpointed.
        if record.tree.is_some() {
            self.state.lock().marked = Marked {
                control: Some(record.control),
                tree: record.tree,
            };
        } else {
            self.state.lock().marked.tree = None;
        }
        Ok(())
    }

    /// Replaces everything by a transferred view (openraft's snapshot install).
    pub async fn install(&self, incoming: Refill) -> io::Result<()> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let control = incoming.control.encode_without_tokens();
        let doubts = Doubts {
            unproven: Spans::default(),
            uncompared: Spans::everything(),
        };
        self.put_mark(control, Some(incoming.mark), doubts).await?;
        let old = {
            let mut state = self.state.lock();
            self.applied.send_replace(incoming.control.applied());
            state.control = incoming.control;
            let old = state.replace_tree(incoming.tree);
            state.unproven = Spans::default();
            state.uncompared = Spans::everything();
            state.give_views();
            old
        };
        drop(old);
        self.settle().await;
        Ok(())
    }

    /// The entry up to which everything is durable in the tree and on record.
    pub fn checkpointed(&self) -> Option<LogId> {
        let state = self.state.lock();
        if Mutant::PurgeBeforeCheckpoint.is_on() {
            return state.control.applied();
        }
        state.marked.applied()
    }

    /// The membership at the last recorded checkpoint.
    pub fn checkpointed_membership(&self) -> Option<v1::StoredMembership> {
        let state = self.state.lock();
        let marked = state.marked.control.as_ref()?;
        marked.membership.clone()
    }
}
