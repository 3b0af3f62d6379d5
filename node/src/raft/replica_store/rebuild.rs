//! Fills another tree and puts it in the place of the present one, while entries go on being applied.
//!
//! A tree is rebuilt from *parts*: what this replica's own view proves, and what peers' views say of
//! the keys that it does not. Each part is complete as of its own entry. From the earliest of these
//! on, the log is applied to the new tree as it was to the old one, leaving out what a part already
//! holds; so all parts come to stand at one entry. What a part says of the control state must be
//! what the log says there: a peer that differs in that is not believed.
//!
//! Entries are applied to the present tree meanwhile. Once the new one is close behind, it is made
//! durable and put on record; then applying waits while it is given the last few entries.

use std::io;
use std::sync::Arc;

use prost::Message;
use reelkv_proto::types::Version;
use reelkv_proto::v1;

use super::{ReplicaStore, Rewritten};
use crate::mutants::Mutant;
use crate::raft::Doubts;
use crate::shard::{Applied, Command, Control, LogId, Spans};
use crate::storage::{StoredRecord, Tree, TreeError};
use crate::wal::{EntryKind, WalEntry};

/// Entries read from the log at a time, in bytes.
const READ_BYTES: usize = 1 << 20;
/// Applying waits for no more than so many entries.
const LAG_MAX: u64 = 16;

/// Why a tree was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The new tree failed.
    #[error("the new tree failed: {0}")]
    Tree(#[from] TreeError),
    /// The log could not be read or written.
    #[error("the log: {0}")]
    Log(#[from] io::Error),
    /// A part's control state is not what the log says.
    #[error("a view of entry {0} does not fit the log applied here")]
    Differs(LogId),
    /// The tree was replaced by something else meanwhile.
    #[error("the tree was replaced meanwhile")]
    Overtaken,
}

/// What one view says.
pub struct Part {
    /// Of which keys it says everything.
    pub spans: Spans,
    /// Whether it is another replica's.
    pub is_a_peers: bool,
    /// The control state of the entry that the view is of, with tokens.
    pub control: Control,
}

impl Part {
    fn index(&self) -> u64 {
        index(&self.control)
    }
}

fn index(control: &Control) -> u64 {
    control.applied().map_or(0, |applied| applied.index)
}

/// Keeps the log from being purged beyond an entry.
pub struct LogPin(Arc<ReplicaStore>);

impl Drop for LogPin {
    fn drop(&mut self) {
        self.0.state.lock().pinned = None;
    }
}

/// A tree being filled in the place of another.
///
/// Invariant: of each part's keys it holds what the log says up to `control`'s entry or up to the
/// part's, whichever is later; of other keys, what was written since the earliest part (`rewritten`).
pub struct Rebuild {
    tree: Tree,
    control: Control,
    parts: Vec<Part>,
    begun: RebuildBegun,
    /// Keys that no part says anything of, and that entries have written to it.
    rewritten: Rewritten,
}

/// How things stood when a rebuild began.
#[derive(Clone, Debug)]
pub struct RebuildBegun {
    /// Keys that this replica did not prove.
    pub unproven: Spans,
    /// The entry it had applied.
    pub applied: u64,
    replaced: u64,
}

impl Rebuild {
    /// All parts have been inserted into `tree`, since the rebuild was begun.
    ///
    /// # Errors
    /// Two parts of the same entry differ.
    pub fn new(tree: Tree, parts: Vec<Part>, begun: RebuildBegun) -> Result<Self, RebuildError> {
        let earliest = parts.iter().min_by_key(|part| part.index());
        let Some(control) = earliest.map(|part| part.control.clone()) else {
            return Err(RebuildError::Overtaken);
        };
        let rebuild = Self {
            tree,
            control,
            parts,
            begun,
            rewritten: Rewritten::default(),
        };
        rebuild.compare_parts()?;
        Ok(rebuild)
    }

    /// The version up to which a key's records are complete; `None` if no part says anything of it.
    fn complete_to(&self, key: &[u8]) -> Option<Version> {
        let of_key = self.parts.iter().filter(|part| part.spans.contains(key));
        of_key.map(|part| part.control.last_version()).max()
    }

    /// The entry that every part has reached.
    fn last_part(&self) -> u64 {
        self.parts.iter().map(Part::index).max().unwrap_or(0)
    }

    /// Whatever a view says of the control state at this entry, the log says as well.
    fn compare_parts(&self) -> Result<(), RebuildError> {
        let here = self.control.applied();
        let mut same_entry = self
            .parts
            .iter()
            .filter(|part| part.index() == index(&self.control));
        let own = self.control.encode_without_tokens();
        match same_entry.any(|part| part.control.encode_without_tokens() != own) {
            true => Err(RebuildError::Differs(here.unwrap_or_default())),
            false => Ok(()),
        }
    }

    fn apply(&mut self, entry: WalEntry) -> Result<(), RebuildError> {
        match entry.kind {
            EntryKind::Blank => self.control.apply_blank(entry.log_id),
            EntryKind::Membership => {
                let membership = v1::Membership::decode(entry.payload).map_err(io::Error::other)?;
                self.control.apply_membership(entry.log_id, membership);
            }
            EntryKind::Normal => {
                let command = Command::decode(entry.payload).map_err(io::Error::other)?;
                let applied = self.control.apply(entry.log_id, command.body());
                if let Applied::Done(changes) = applied.map_err(io::Error::other)? {
                    let last_version = self.control.last_version();
                    self.tree.begin_entry(last_version);
                    for change in changes {
                        let complete_to = self.complete_to(&change.key);
                        if complete_to.is_none() {
                            self.rewritten.note(&change.key, entry.log_id.index);
                        }
                        if complete_to.is_none_or(|version| change.version > version) {
                            self.tree.insert(&StoredRecord::from(change))?;
                        }
                    }
                    // A part may be of a later entry.
                    self.tree.publish(last_version.max(self.tree.visible()));
                }
            }
        }
        self.compare_parts()
    }
}

impl ReplicaStore {
    /// Begins to rebuild the tree: entries after what is applied now stay in the log. One at a time.
    pub fn begin_rebuild(self: &Arc<Self>) -> (LogPin, RebuildBegun) {
        let mut state = self.state.lock();
        let applied = index(&state.control);
        state.pinned = Some(applied);
        let begun = RebuildBegun {
            unproven: state.unproven(),
            applied,
            replaced: state.replaced,
        };
        (LogPin(self.clone()), begun)
    }

    /// The entry that the log must not be purged beyond.
    pub fn pinned(&self) -> Option<u64> {
        self.state.lock().pinned
    }

    /// Applies the log to a tree being filled, up to what is applied here.
    async fn feed(&self, rebuild: &mut Rebuild) -> Result<(), RebuildError> {
        loop {
            let from = rebuild.control.applied().map_or(0, |applied| applied.index + 1);
            let end = self
                .with_control(Control::applied)
                .map_or(0, |applied| applied.index + 1);
            if from >= end {
                return Ok(());
            }
            let entries = self.parts.group.read(from, end, READ_BYTES).await?;
            if entries.first().is_none_or(|entry| entry.log_id.index != from) {
                return Err(RebuildError::Overtaken); // purged: a snapshot was installed
            }
            for entry in entries {
                rebuild.apply(entry)?;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Brings a filled tree up to what is applied here and puts it in the place of the present one.
    /// Waits until this replica has applied what the parts stand for.
    ///
    /// # Errors
    /// Nothing was changed, or, if the log failed, nothing that matters any more.
    pub async fn switch(&self, mut rebuild: Rebuild) -> Result<(), RebuildError> {
        let last_part = rebuild.last_part();
        let mut applied = self.watch_applied();
        let reached = applied.wait_for(|applied| applied.is_some_and(|applied| applied.index >= last_part));
        reached.await.map_err(io::Error::other)?;
        if Mutant::RepairBeforeApplied.is_on() {
            rebuild.control = self.with_control(Control::clone);
            let last_version = rebuild.control.last_version();
            rebuild.tree.begin_entry(last_version);
            rebuild.tree.publish(last_version.max(rebuild.tree.visible()));
        }
        while self.lag(&rebuild) > LAG_MAX {
            self.feed(&mut rebuild).await?;
        }
        let _one_at_a_time = self.checkpointing.lock().await;
        self.feed(&mut rebuild).await?;
        let row = rebuild.control.encode().encode_to_vec();
        let at = rebuild.control.applied().unwrap_or_default();
        let sealed = rebuild.tree.seal(&row, at)?;
        let mark = rebuild.tree.flush(sealed).await?;
        let mut doubts = self.doubts_after(&rebuild)?;
        doubts.unproven = doubts.unproven.without(&rebuild.rewritten.keys());
        let control = rebuild.control.encode_without_tokens();
        self.put_mark(control, Some(mark), doubts).await?;
        while self.lag(&rebuild) > LAG_MAX {
            self.feed(&mut rebuild).await?;
        }
        let _nothing_is_applied = self.applying.lock().await;
        self.feed(&mut rebuild).await?;
        let doubts = self.doubts_after(&rebuild)?;
        let old = {
            let mut state = self.state.lock();
            if state.control.encode_without_tokens() != rebuild.control.encode_without_tokens() {
                return Err(RebuildError::Differs(state.control.applied().unwrap_or_default()));
            }
            state.control = rebuild.control;
            state.unproven = doubts.unproven;
            state.uncompared = doubts.uncompared;
            let old = state.replace_tree(rebuild.tree);
            state.rewritten = rebuild.rewritten;
            old
        };
        drop((old, _nothing_is_applied));
        self.settle().await;
        Ok(())
    }

    fn lag(&self, rebuild: &Rebuild) -> u64 {
        self.with_control(index).saturating_sub(index(&rebuild.control))
    }

    /// What is not believed once the new tree is in place. Unproven is what no part said, and what was
    /// found to be wrong since then; uncompared is what peers said.
    fn doubts_after(&self, rebuild: &Rebuild) -> Result<Doubts, RebuildError> {
        let state = self.state.lock();
        if state.replaced != rebuild.begun.replaced {
            return Err(RebuildError::Overtaken);
        }
        let (mut said, mut uncompared) = (Spans::default(), state.uncompared.clone());
        for part in &rebuild.parts {
            said.extend(&part.spans);
            if part.is_a_peers {
                uncompared.extend(&part.spans);
            }
        }
        let mut unproven = said.complement();
        unproven.extend(&state.unproven().without(&rebuild.begun.unproven));
        Ok(Doubts { unproven, uncompared })
    }
}
