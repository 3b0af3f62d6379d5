//! What a replica has applied: its control state and its tree.
//!
//! - [`mod@open`] opens it from what the log has on record;
//! - `trust` is about damage: what may be answered from the tree, and what the log is told of it;
//! - `marker` takes the views that replicas compare, and keeps what came of it;
//! - `checkpoint` makes the tree durable and puts it on record;
//! - `rebuild` fills another tree in its place, while entries go on being applied;
//! - `rewritten` are lost keys that entries have written since.

mod checkpoint;
mod marker;
mod open;
mod rebuild;
mod rewritten;
#[cfg(test)]
mod tests;
mod trust;
mod views;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use reelkv_proto::types::Version;
use reelkv_proto::v1;
use tokio::sync::{oneshot, watch};

use super::types::EntryOutcome;
use crate::health::Health;
use crate::mutants::Mutant;
use crate::shard::{Applied, Control, LogId, RecordChange, Spans};
use crate::storage::{Mark, Storage, StoredRecord, Tree, TreeError, TreeId, View};
use crate::wal::{GroupId, WalGroup};

pub use checkpoint::{CheckpointOutcome, Refill};
pub use marker::MarkedView;
pub use rebuild::{LogPin, Part, Rebuild, RebuildBegun, RebuildError};
pub use trust::Trust;
pub use views::Donation;

use rewritten::Rewritten;

/// What a store is made of.
#[derive(Clone)]
pub struct StoreParts {
    /// The replica's log.
    pub group: WalGroup,
    /// Whose log it is.
    pub id: GroupId,
    /// The node's trees.
    pub storage: Arc<Storage>,
    /// The node's damage ledger.
    pub health: Arc<Health>,
}

/// What the log has on record.
#[derive(Clone, Debug, Default)]
struct Marked {
    /// Control state at the last recorded checkpoint, without tokens.
    control: Option<v1::ControlState>,
    /// The tree's files at that checkpoint or later; `None` when no tree is on record.
    tree: Option<Mark>,
}

impl Marked {
    fn applied(&self) -> Option<LogId> {
        let control = self.control.as_ref()?;
        control.applied.map(LogId::from)
    }
}

struct State {
    control: Control,
    tree: Option<Tree>,
    generation: u64,
    marked: Marked,
    /// Keys about which the tree proved nothing when it was read or filled.
    unproven: Spans,
    /// Those of them that it proves since, as entries have written them.
    rewritten: Rewritten,
    /// Keys that came from another replica and were not compared since.
    uncompared: Spans,
    /// Something is wrong with the tree, and nobody has looked yet where.
    suspect: bool,
    /// Files of the tree are bad, or were: it is to be written again, even if no key is unproven.
    worn: bool,
    /// How often the tree was replaced by another.
    replaced: u64,
    /// A folder that no record names was in use when it was to be removed.
    leftovers: bool,
    /// Entries after this index stay in the log.
    pinned: Option<u64>,
    /// Who waits for a view of exactly an entry that is not applied yet.
    awaited: Vec<(u64, oneshot::Sender<(View, Control)>)>,
    /// The view taken at the last marker, until somebody reads it.
    marked_view: Option<MarkedView>,
    /// No record in the tree expires before this logged time.
    next_expiry_ms: u64,
}

/// A replica's applied state.
///
/// Invariants:
/// - control state and tree stand at the same entry whenever `state` is not locked; `seal` and
///   views taken with control happen under that lock, so always between two entries;
/// - a tree is used only after the WAL has it on record, or when it was born empty with the log
///   complete from its first entry;
/// - nothing is answered, evaluated or given to a peer from keys that are unproven; without a
///   tree, entries change control state only.
///
/// Locks, in this order: `checkpointing`, `applying`, `state`.
pub struct ReplicaStore {
    parts: StoreParts,
    state: Mutex<State>,
    applied: watch::Sender<Option<LogId>>,
    trust: watch::Sender<Trust>,
    /// Index of the last marker applied.
    marker: watch::Sender<u64>,
    /// Held while an entry is applied, and while a rebuilt tree takes the other's place.
    applying: tokio::sync::Mutex<()>,
    checkpointing: tokio::sync::Mutex<()>,
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

impl ReplicaStore {
    /// Applies one committed entry.
    ///
    /// # Errors
    /// An effect this release does not know; the replica halts.
    pub async fn apply(&self, log_id: LogId, payload: AppliedPayload<'_>) -> io::Result<EntryOutcome> {
        let _turn = self.applying.lock().await;
        self.apply_now(log_id, payload)
    }

    fn apply_now(&self, log_id: LogId, payload: AppliedPayload<'_>) -> io::Result<EntryOutcome> {
        let mut state = self.state.lock();
        let outcome = match payload {
            AppliedPayload::Blank => {
                state.control.apply_blank(log_id);
                EntryOutcome::Done
            }
            AppliedPayload::Membership(membership) => {
                state.control.apply_membership(log_id, membership);
                EntryOutcome::Done
            }
            AppliedPayload::Normal(body) => match state.control.apply(log_id, body).map_err(other)? {
                Applied::NotDone => EntryOutcome::NotDone,
                Applied::Done(mut changes) => {
                    if Mutant::ApplySkipsEffect.is_on() {
                        changes.retain(|change| !self.skips(change.version));
                    }
                    let last_version = state.control.last_version();
                    let expiries = changes.iter().map(|change| change.expires_at_ms);
                    if let Some(first) = expiries.filter(|at_ms| *at_ms != 0).min() {
                        state.next_expiry_ms = state.next_expiry_ms.min(first);
                    }
                    self.note_rewritten(&mut state, log_id.index, &changes);
                    let failed = state
                        .tree
                        .as_ref()
                        .and_then(|tree| write(tree, last_version, changes).err());
                    if let Some(error) = failed {
                        self.set_aside_locked(&mut state, &error);
                    }
                    self.take_marked_view(&mut state, log_id, body);
                    EntryOutcome::Done
                }
            },
        };
        state.give_views();
        self.applied.send_replace(Some(log_id));
        Ok(outcome)
    }

    /// Whether this replica, unless it leads, leaves an effect out (a mutant).
    fn skips(&self, version: Version) -> bool {
        let own = self.parts.id.replica_id;
        let vote = self.parts.group.vote();
        let leads = vote.is_some_and(|vote| vote.committed && vote.voted_for == own);
        let draw = crc32fast::hash(&[own.to_le_bytes(), version.to_le_bytes()].concat());
        !leads && draw.is_multiple_of(97)
    }

    /// A new folder's id.
    pub fn next_tree(&self) -> TreeId {
        let mut state = self.state.lock();
        state.generation += 1;
        Self::tree_id(&self.parts, state.generation)
    }

    fn tree_id(parts: &StoreParts, generation: u64) -> TreeId {
        TreeId {
            shard_id: parts.id.shard_id,
            replica_id: parts.id.replica_id,
            generation,
        }
    }

    /// No record expires before this logged time; 0 when nobody has looked.
    pub fn next_expiry_ms(&self) -> u64 {
        self.state.lock().next_expiry_ms
    }

    /// Somebody begins to look at all records, and tells what is found by
    /// [`ReplicaStore::expires_by`]; what is applied from here on counts by itself.
    pub fn forget_next_expiry(&self) {
        self.state.lock().next_expiry_ms = u64::MAX;
    }

    /// Some record may expire at this logged time.
    pub fn expires_by(&self, at_ms: u64) {
        let mut state = self.state.lock();
        state.next_expiry_ms = state.next_expiry_ms.min(at_ms);
    }

    /// Looks at the control state.
    pub fn with_control<T>(&self, look: impl FnOnce(&Control) -> T) -> T {
        look(&self.state.lock().control)
    }

    /// Follows the last applied entry.
    pub fn watch_applied(&self) -> watch::Receiver<Option<LogId>> {
        self.applied.subscribe()
    }

    /// The replica's log.
    pub fn group(&self) -> &WalGroup {
        &self.parts.group
    }

    /// Shard and replica.
    pub fn id(&self) -> GroupId {
        self.parts.id
    }

    /// The node's trees.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.parts.storage
    }

    /// Lets go of the tree's files.
    pub async fn close(&self) {
        let tree = self.state.lock().tree.take();
        if let Some(tree) = tree
            && let Err(error) = tree.close().await
        {
            tracing::warn!(id = ?self.parts.id, %error, "a tree was not closed in order");
        }
    }
}

/// An entry's payload as the store sees it.
pub enum AppliedPayload<'a> {
    /// Nothing.
    Blank,
    /// Effects.
    Normal(&'a v1::EntryBody),
    /// A change of membership.
    Membership(v1::Membership),
}

impl From<RecordChange> for StoredRecord {
    fn from(change: RecordChange) -> Self {
        Self {
            key: change.key,
            version: change.version,
            value: change.value,
            client_crc: change.client_crc,
            logged_time_ms: change.logged_time_ms,
            expires_at_ms: change.expires_at_ms,
        }
    }
}

fn write(tree: &Tree, last_version: Version, changes: Vec<RecordChange>) -> Result<(), TreeError> {
    tree.begin_entry(last_version);
    for change in changes {
        tree.insert(&StoredRecord::from(change))?;
    }
    tree.publish(last_version);
    Ok(())
}
