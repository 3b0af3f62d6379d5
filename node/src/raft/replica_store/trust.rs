//! What may be answered from a replica's tree.
//!
//! Damage to a tree costs only the keys that it concerns. Whoever meets some says so
//! ([`ReplicaStore::found`]); the tree is then *suspect*, until it was read whole and it is known
//! which keys are *unproven*. These are put on record in the log before anything else happens to
//! them. The other keys are served as before; unproven ones are read from a peer, until a
//! rebuilt tree takes the place of this one. A tree that cannot be used at all is set aside.

use std::io;

use reelkv_proto::types::KeyRange;
use tokio::sync::watch;

use super::{ReplicaStore, State, StoreParts};
use crate::health::{Action, Damage, Kind, Structure};
use crate::mutants::Mutant;
use crate::raft::Doubts;
use crate::shard::{LogId, RecordChange, Spans};
use crate::storage::{SweepReport, Tree, TreeError};

/// How far a replica may answer from its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Tree and WAL agree and no check failed.
    Trusted,
    /// Damage was met, and it is being looked where it lies. What is read is verified all the same.
    Suspect,
    /// Some keys are unproven, or some files are bad: another tree is being filled.
    Repairing,
    /// There is no tree: log and vote stay, no answer comes from here, peers fill another.
    Refilling,
}

impl State {
    pub(super) fn trust(&self) -> Trust {
        match &self.tree {
            None => Trust::Refilling,
            Some(_) if self.suspect => Trust::Suspect,
            Some(_) if self.worn || !self.proves_all() => Trust::Repairing,
            Some(_) => Trust::Trusted,
        }
    }

    /// Keys about which the tree proves nothing: all of them while there is no tree.
    pub(super) fn unproven(&self) -> Spans {
        match self.tree {
            Some(_) if self.rewritten.is_empty() => self.unproven.clone(),
            Some(_) => self.unproven.without(&self.rewritten.keys()),
            None => Spans::everything(),
        }
    }

    pub(super) fn doubts(&self) -> Doubts {
        Doubts {
            unproven: self.unproven(),
            uncompared: self.uncompared.clone(),
        }
    }

    /// Whether the tree proves what it says of every key.
    pub(super) fn proves_all(&self) -> bool {
        self.proves_range(&KeyRange::default())
    }

    /// Whether the tree proves what it says of every key of a range.
    pub(super) fn proves_range(&self, range: &KeyRange) -> bool {
        let proved = !self.unproven.intersects(range);
        let proves = || !self.rewritten.is_empty() && !self.unproven().intersects(range);
        self.tree.is_some() && (proved || proves())
    }

    /// Whether the tree proves what it says of a key.
    pub(super) fn proves(&self, key: &[u8]) -> bool {
        self.tree.is_some() && (!self.unproven.contains(key) || self.rewritten.contains(key))
    }

    /// What goes on record beside a tree that holds everything up to the entry `applied`: a key that a
    /// later entry has written is proven by that entry alone, which a restart applies again.
    pub(super) fn doubts_on_record(&mut self, applied: Option<LogId>) -> Doubts {
        let proven = self.rewritten.up_to(applied.map_or(0, |applied| applied.index));
        if !proven.is_empty() {
            self.unproven = self.unproven.without(&proven);
            self.rewritten.forget(&proven);
        }
        Doubts {
            unproven: self.unproven.clone(),
            uncompared: self.uncompared.clone(),
        }
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.trust() != Trust::Trusted
    }

    /// Puts another tree in the place of this one, which is returned.
    pub(super) fn replace_tree(&mut self, tree: Tree) -> Option<Tree> {
        self.replaced += 1;
        self.suspect = false;
        self.worn = false;
        self.rewritten.clear();
        self.next_expiry_ms = 0;
        self.tree.replace(tree)
    }
}

impl ReplicaStore {
    /// Somebody met damage while reading or merging. Log and vote stay, and what can be proven is
    /// served on.
    pub fn found(&self, damage: &TreeError) {
        let mut state = self.state.lock();
        let broken = state.tree.as_ref().is_none_or(Tree::is_broken);
        match damage {
            TreeError::Damaged { .. } if !broken => {
                if !state.is_damaged() {
                    Self::report(&self.parts, damage, Action::Repair);
                }
                state.suspect = true;
                self.tell_trust(&state);
            }
            _ => self.set_aside_locked(&mut state, damage),
        }
    }

    /// Stops trusting the tree: nothing is answered from it any more. Log and vote stay.
    pub fn set_aside(&self, error: &TreeError) {
        self.set_aside_locked(&mut self.state.lock(), error);
    }

    pub(super) fn set_aside_locked(&self, state: &mut State, error: &TreeError) {
        let of_the_tree = matches!(
            error,
            TreeError::Damaged { .. }
                | TreeError::Missing { .. }
                | TreeError::Unclean { .. }
                | TreeError::OtherEngine { .. }
                | TreeError::Io { .. }
        );
        if !of_the_tree {
            // A closed tree is being stopped; the rest are faults of the caller.
            tracing::warn!(id = ?self.parts.id, %error, "a tree could not answer");
            return;
        }
        if state.tree.take().is_some() {
            state.unproven = Spans::default();
            state.rewritten.clear();
            Self::report(&self.parts, error, Action::Refill);
            self.tell_trust(state);
        }
    }

    /// The tree was read whole: this is all that is wrong with it.
    ///
    /// # Errors
    /// The log refused to record it.
    pub async fn inspected(&self, tree: &Tree, report: &SweepReport) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            if state.tree.as_ref().map(Tree::id) != Some(tree.id()) {
                return Ok(()); // of a tree that is no more
            }
            state.suspect = false;
            state.worn |= !report.is_clean();
            state.unproven.extend(&unproven_by(report));
            if state.worn {
                // Where they lie is not known: a read of any may meet what is bad.
                state.rewritten.clear();
            }
            if Mutant::BlessByRescan.is_on() {
                state.worn = false;
                state.unproven = Spans::default();
            }
        }
        self.record_trust().await?;
        // Not before it is on record: what is waited for may now begin.
        let state = self.state.lock();
        self.tell_trust(&state);
        if !state.is_damaged() {
            tracing::info!(id = ?self.parts.id, "a tree was read whole again, and nothing was found");
            self.told_repaired();
        }
        Ok(())
    }

    /// Records in the log what is proven of the present tree, or that there is none.
    ///
    /// # Errors
    /// The log refused the record.
    pub async fn record_trust(&self) -> io::Result<()> {
        {
            let _one_at_a_time = self.checkpointing.lock().await;
            let (control, tree, doubts) = {
                let mut state = self.state.lock();
                let applied = state.marked.applied();
                let marked = (state.marked.control.clone(), state.marked.tree.clone());
                match (&state.tree, marked) {
                    (None, _) => {
                        let control = state.control.encode_without_tokens();
                        (Some(control), None, Doubts::default())
                    }
                    (Some(_), (Some(control), Some(mark))) => {
                        (Some(control), Some(mark), state.doubts_on_record(applied))
                    }
                    (Some(_), _) => (None, None, Doubts::default()),
                }
            };
            if let Some(control) = control {
                return self.put_mark(control, tree, doubts).await;
            }
        }
        // There is no record yet to add to.
        self.checkpoint().await.map(drop)
    }

    /// Another tree is in place and on record: ends what was said of the former.
    pub(super) async fn settle(&self) {
        let trust = {
            let state = self.state.lock();
            self.tell_trust(&state);
            state.trust()
        };
        if trust == Trust::Trusted {
            self.told_repaired();
        }
        self.remove_old_folders().await;
    }

    pub(super) fn tell_trust(&self, state: &State) {
        let trust = state.trust();
        self.trust
            .send_if_modified(|known| std::mem::replace(known, trust) != trust);
    }

    pub(super) fn report(parts: &StoreParts, damage: &TreeError, action: Action) {
        let kind = match damage {
            TreeError::Missing { .. } => Kind::Missing,
            _ => Kind::Checksum,
        };
        let replica = (parts.id.shard_id, parts.id.replica_id);
        let damage = Damage::of_replica(replica, Structure::Tree, kind, action, damage.to_string());
        parts.health.damaged(damage);
    }

    pub(super) fn told_repaired(&self) {
        let (health, shard_id) = (&self.parts.health, self.parts.id.shard_id);
        health.repaired(shard_id, Structure::Tree);
        health.repaired(shard_id, Structure::Record);
    }

    /// Follows how far the tree is trusted.
    pub fn watch_trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    /// How far the tree is trusted now.
    pub fn trust(&self) -> Trust {
        self.state.lock().trust()
    }

    /// Keys about which the tree proves nothing: all of them while there is no tree.
    pub fn unproven(&self) -> Spans {
        self.state.lock().unproven()
    }

    /// Whether files of the tree are bad, so that it is to be written again.
    pub fn is_worn(&self) -> bool {
        self.state.lock().worn
    }

    /// An entry that is being applied writes these records; those that were lost are proven by it, unless
    /// what is bad of them still lies in the tree.
    pub(super) fn note_rewritten(&self, state: &mut State, index: u64, changes: &[RecordChange]) {
        if state.worn || state.unproven.is_empty() {
            return;
        }
        let lost = changes
            .iter()
            .filter(|change| state.unproven.contains(&change.key));
        let lost: Vec<_> = lost.map(|change| change.key.clone()).collect();
        for key in &lost {
            state.rewritten.note(key, index);
        }
        if !lost.is_empty() {
            self.tell_trust(state);
        }
    }
}

/// The keys that a sweep could not prove.
fn unproven_by(report: &SweepReport) -> Spans {
    let ranges = report.bad_spans.iter().map(|span| {
        let (start, end) = span.range();
        KeyRange { start, end }
    });
    ranges.collect()
}
