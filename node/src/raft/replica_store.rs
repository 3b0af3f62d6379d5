//! What a replica has applied: its control state and its tree.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use reelkv_proto::types::Version;
use reelkv_proto::v1;
use tokio::sync::{oneshot, watch};

use super::ReplicaMark;
use super::types::EntryOutcome;
use crate::health::{Action, Damage, Health, Kind, Structure};
use crate::mutants::Mutant;
use crate::shard::{Applied, Control, LogId, RecordChange};
use crate::storage::{Mark, Storage, StoredRecord, Tree, TreeError, TreeId, View};
use crate::wal::{GroupId, WalGroup};

/// Whether a replica may answer from its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Tree and WAL agree and no check failed.
    Trusted,
    /// The tree was set aside: log and vote stay, no answer comes from here, a peer refills it.
    Refilling,
}

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

/// A tree filled from a peer's view, waiting for the replica to reach the view's index.
pub struct Refill {
    /// Filled, checkpointed, not yet on record.
    pub tree: Tree,
    /// The control state at the view's index, with tokens.
    pub control: Control,
    /// What the WAL will record of the tree.
    pub mark: Mark,
}

struct State {
    control: Control,
    tree: Option<Tree>,
    generation: u64,
    /// Control state at the last recorded checkpoint, without tokens.
    marked: Option<v1::ControlState>,
    refill: Option<Refill>,
    /// Who waits for a view of exactly an entry that is not applied yet.
    awaited: Vec<(u64, oneshot::Sender<(View, Control)>)>,
    /// No record in the tree expires before this logged time.
    next_expiry_ms: u64,
}

impl State {
    /// Gives views of the entry just applied to those who wait for it. Whoever waits for one that
    /// was passed over gets nothing.
    fn give_views(&mut self) {
        if self.awaited.is_empty() {
            return;
        }
        let applied = self.control.applied().map_or(0, |applied| applied.index);
        for (index, waiting) in std::mem::take(&mut self.awaited) {
            match &self.tree {
                _ if index > applied => self.awaited.push((index, waiting)),
                Some(tree) if index == applied => {
                    // Whoever does not wait any more needs no view.
                    let _ = waiting.send((tree.view(), self.control.clone()));
                }
                _ => {}
            }
        }
    }
}

/// A replica's applied state.
///
/// Invariants:
/// - control state and tree stand at the same entry whenever `state` is not locked; `seal` and
///   views taken with control happen under that lock, so always between two entries;
/// - a tree is used only after the WAL has it on record, or when it was born empty with the log
///   complete from its first entry;
/// - while `Refilling`, entries change control state only, and nothing is read.
pub struct ReplicaStore {
    parts: StoreParts,
    state: Mutex<State>,
    applied: watch::Sender<Option<LogId>>,
    trust: watch::Sender<Trust>,
    /// Entries beyond this index wait for a refill to be complete.
    hold_after: watch::Sender<u64>,
    checkpointing: tokio::sync::Mutex<()>,
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

impl ReplicaStore {
    /// Opens a replica's applied state from what the WAL has on record. Damage to the tree never
    /// fails this: the replica then starts out `Refilling`.
    ///
    /// # Errors
    /// Only what leaves no applied state to go on from: the record itself cannot be read, or no
    /// tree can be created.
    pub async fn open(parts: StoreParts, birth: &v1::CreateReplicaRequest) -> io::Result<Arc<Self>> {
        let mark = parts
            .group
            .mark()
            .map(ReplicaMark::decode)
            .transpose()
            .map_err(other)?;
        let newest_folder = Self::newest_generation(&parts)?;
        let (control, tree, generation, marked) = match mark {
            None => {
                let began = birth
                    .birth
                    .clone()
                    .ok_or_else(|| other("birth record without the shard's beginning"))?;
                let generation = newest_folder + 1;
                let tree = parts
                    .storage
                    .create(Self::tree_id(&parts, generation))
                    .await
                    .map_err(other)?;
                (
                    Control::new(parts.group.id().shard_id, began),
                    Some(tree),
                    generation,
                    None,
                )
            }
            Some(ReplicaMark {
                control,
                tree,
                generation,
            }) => {
                let generation = generation.max(newest_folder);
                match Self::open_tree(&parts, tree.as_ref(), &control).await {
                    Some((tree, applied_control)) => (applied_control, Some(tree), generation, Some(control)),
                    None => (Control::decode(control.clone()), None, generation, Some(control)),
                }
            }
        };
        let trust = if tree.is_some() {
            Trust::Trusted
        } else {
            Trust::Refilling
        };
        let store = Self {
            applied: watch::Sender::new(control.applied()),
            trust: watch::Sender::new(trust),
            hold_after: watch::Sender::new(u64::MAX),
            state: Mutex::new(State {
                control,
                tree,
                generation,
                marked,
                refill: None,
                awaited: Vec::new(),
                next_expiry_ms: 0,
            }),
            checkpointing: tokio::sync::Mutex::new(()),
            parts,
        };
        store.remove_old_folders().await;
        store.put_on_record().await?;
        Ok(Arc::new(store))
    }

    /// A tree may be ahead of its record: the log was lost to the disk between the two. openraft then
    /// lets the log go up to what is applied, so that must be on record first: were the tree
    /// lost later, neither log nor record would say how it can be filled again.
    async fn put_on_record(&self) -> io::Result<()> {
        let applied = self.with_control(Control::applied);
        match self.trust() == Trust::Trusted && applied > self.checkpointed() {
            true => self.checkpoint().await.map(drop),
            false => Ok(()),
        }
    }

    /// Opens the recorded tree; `None`, with the damage reported, when it is not what was recorded.
    async fn open_tree(
        parts: &StoreParts,
        mark: Option<&Mark>,
        recorded: &v1::ControlState,
    ) -> Option<(Tree, Control)> {
        let mark = mark?; // set aside before the restart: reported then
        let compared = Some(mark).filter(|_| !Mutant::TrustEngineIndex.is_on());
        let opened = match parts.storage.open(mark.tree, compared).await {
            Ok(opened) => opened,
            Err(error) => {
                Self::report(parts, &error.to_string());
                return None;
            }
        };
        let control = v1::ControlState::decode(&opened.control[..]).map(Control::decode);
        match control {
            Ok(control) if control.applied() >= recorded.applied.map(LogId::from) => {
                Some((opened.tree, control))
            }
            Ok(_) if Mutant::TrustEngineIndex.is_on() => {
                Some((opened.tree, Control::decode(recorded.clone())))
            }
            _ => {
                Self::report(parts, "control row does not fit the log's record");
                None
            }
        }
    }

    fn report(parts: &StoreParts, what: &str) {
        let kind = if what.contains("missing") {
            Kind::Missing
        } else {
            Kind::Checksum
        };
        let replica = (parts.id.shard_id, parts.id.replica_id);
        let damage = Damage::of_replica(replica, Structure::Tree, kind, Action::Refill, what);
        parts.health.damaged(damage);
    }

    fn tree_id(parts: &StoreParts, generation: u64) -> TreeId {
        TreeId {
            shard_id: parts.id.shard_id,
            replica_id: parts.id.replica_id,
            generation,
        }
    }

    fn folders(parts: &StoreParts) -> io::Result<Vec<TreeId>> {
        let mut trees = parts.storage.list().map_err(other)?;
        trees.retain(|id| id.shard_id == parts.id.shard_id && id.replica_id == parts.id.replica_id);
        Ok(trees)
    }

    fn newest_generation(parts: &StoreParts) -> io::Result<u64> {
        Ok(Self::folders(parts)?
            .iter()
            .map(|id| id.generation)
            .max()
            .unwrap_or(0))
    }

    /// Removes folders of trees that no record names any more.
    async fn remove_old_folders(&self) {
        let current = {
            let state = self.state.lock();
            let refill = state.refill.as_ref().map(|refill| refill.tree.id());
            [state.tree.as_ref().map(Tree::id), refill]
        };
        let Ok(folders) = Self::folders(&self.parts) else {
            return;
        };
        for id in folders.into_iter().filter(|id| !current.contains(&Some(*id))) {
            if let Err(error) = self.parts.storage.remove(id).await {
                tracing::warn!(%error, ?id, "an old tree could not be removed");
            }
        }
    }

    /// Applies one committed entry. Waits while a refill is being completed at an earlier index.
    ///
    /// # Errors
    /// An effect this release does not know; the replica halts.
    pub async fn apply(&self, log_id: LogId, payload: AppliedPayload<'_>) -> io::Result<EntryOutcome> {
        let mut hold = self.hold_after.subscribe();
        // The sender lives as long as `self`.
        let _ = hold.wait_for(|hold_after| log_id.index <= *hold_after).await;
        let outcome = self.apply_now(log_id, payload)?;
        if *self.trust.borrow() == Trust::Refilling {
            self.switch_if_reached().await?;
        }
        Ok(outcome)
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
                    let failed = state
                        .tree
                        .as_ref()
                        .and_then(|tree| write(tree, last_version, changes).err());
                    if let Some(error) = failed {
                        self.set_aside_locked(&mut state, &error);
                    }
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

    /// Stops trusting the tree: nothing is answered from it any more. Log and vote stay.
    pub fn set_aside(&self, error: &TreeError) {
        self.set_aside_locked(&mut self.state.lock(), error);
    }

    fn set_aside_locked(&self, state: &mut State, error: &TreeError) {
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
            Self::report(&self.parts, &error.to_string());
            self.trust.send_replace(Trust::Refilling);
        }
    }

    /// Records in the WAL that there is no tree to trust, before a refill begins.
    pub async fn record_untrusted(&self) -> io::Result<()> {
        let record = {
            let state = self.state.lock();
            let control = state.control.encode_without_tokens();
            ReplicaMark {
                control,
                tree: None,
                generation: state.generation,
            }
        };
        self.parts.group.put_mark(record.encode()).await
    }

    /// A new folder's id.
    pub fn next_tree(&self) -> TreeId {
        let mut state = self.state.lock();
        state.generation += 1;
        Self::tree_id(&self.parts, state.generation)
    }

    /// Lets entries up to `index` be applied and keeps later ones waiting, until
    /// [`ReplicaStore::release_hold`]. Returns false when the replica is past it already.
    pub fn hold_after(&self, index: u64) -> bool {
        self.hold_after.send_replace(index);
        let applied = self.state.lock().control.applied();
        let in_time = applied.is_none_or(|applied| applied.index <= index);
        if !in_time {
            self.release_hold();
        }
        in_time
    }

    /// Lets entries be applied again.
    pub fn release_hold(&self) {
        self.hold_after.send_replace(u64::MAX);
    }

    /// Takes a filled tree; it is switched in as soon as the replica has applied exactly the
    /// entry it stands for.
    pub async fn offer_refill(&self, refill: Refill) -> io::Result<()> {
        self.state.lock().refill = Some(refill);
        self.switch_if_reached().await
    }

    async fn switch_if_reached(&self) -> io::Result<()> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let record = {
            let mut state = self.state.lock();
            let Some(refill) = &state.refill else {
                return Ok(());
            };
            if refill.control.applied() != state.control.applied() {
                return Ok(());
            }
            if refill.control.next_version() != state.control.next_version()
                || refill.control.range() != state.control.range()
            {
                tracing::error!(id = ?self.parts.id, "a peer's view does not fit the log applied here; not installed");
                state.refill = None;
                return Err(other("a peer's view does not fit the log applied here"));
            }
            ReplicaMark {
                control: refill.control.encode_without_tokens(),
                tree: Some(refill.mark.clone()),
                generation: state.generation,
            }
        };
        // Entries beyond the refill's index are held back, so the state stays where it is.
        self.parts.group.put_mark(record.encode()).await?;
        {
            let mut state = self.state.lock();
            let Some(refill) = state.refill.take() else {
                return Ok(());
            };
            state.control = refill.control;
            state.next_expiry_ms = 0;
            state.tree = Some(refill.tree);
            state.marked = Some(record.control);
        }
        self.trust.send_replace(Trust::Trusted);
        self.release_hold();
        self.parts
            .health
            .repaired(self.parts.id.shard_id, Structure::Tree);
        self.remove_old_folders().await;
        Ok(())
    }

    /// Replaces everything by a transferred view (openraft's snapshot install).
    pub async fn install(&self, incoming: Refill) -> io::Result<()> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let record = ReplicaMark {
            control: incoming.control.encode_without_tokens(),
            tree: Some(incoming.mark.clone()),
            generation: self.state.lock().generation,
        };
        self.parts.group.put_mark(record.encode()).await?;
        let old = {
            let mut state = self.state.lock();
            self.applied.send_replace(incoming.control.applied());
            state.control = incoming.control;
            state.next_expiry_ms = 0;
            state.marked = Some(record.control);
            state.refill = None;
            let old = state.tree.replace(incoming.tree);
            state.give_views();
            old
        };
        drop(old);
        self.trust.send_replace(Trust::Trusted);
        self.release_hold();
        self.parts
            .health
            .repaired(self.parts.id.shard_id, Structure::Tree);
        self.remove_old_folders().await;
        Ok(())
    }

    /// Makes what is applied durable in the tree and puts it on record in the WAL.
    ///
    /// # Errors
    /// The WAL refused the record: its disk is not to be trusted. A tree that fails is set aside
    /// instead.
    pub async fn checkpoint(&self) -> io::Result<CheckpointOutcome> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let (tree, sealed, control, applied, generation) = {
            let mut state = self.state.lock();
            let Some(tree) = state.tree.clone() else {
                return Ok(CheckpointOutcome::Untrusted);
            };
            let Some(applied) = state.control.applied() else {
                return Ok(CheckpointOutcome::Unchanged);
            };
            if state
                .marked
                .as_ref()
                .and_then(|marked| marked.applied)
                .map(LogId::from)
                == Some(applied)
            {
                return Ok(CheckpointOutcome::Unchanged);
            }
            let row = state.control.encode().encode_to_vec();
            match tree.seal(&row, applied) {
                Ok(sealed) => (
                    tree,
                    sealed,
                    state.control.encode_without_tokens(),
                    applied,
                    state.generation,
                ),
                Err(error) => {
                    self.set_aside_locked(&mut state, &error);
                    return Ok(CheckpointOutcome::Untrusted);
                }
            }
        };
        match tree.flush(sealed).await {
            Ok(mark) => self.record(control, mark, generation).await?,
            Err(error) => {
                self.set_aside(&error);
                return Ok(CheckpointOutcome::Untrusted);
            }
        }
        Ok(CheckpointOutcome::Recorded(applied))
    }

    /// Lets the tree merge its files, if it has something to merge.
    ///
    /// # Errors
    /// As for [`ReplicaStore::checkpoint`].
    pub async fn compact(&self) -> io::Result<()> {
        let _turn = self.parts.storage.compaction_turn().await;
        let _one_at_a_time = self.checkpointing.lock().await;
        let (tree, marked, generation) = {
            let state = self.state.lock();
            let (Some(tree), Some(marked)) = (state.tree.clone(), state.marked.clone()) else {
                return Ok(());
            };
            (tree, marked, state.generation)
        };
        match tree.compact().await {
            Ok(Some(mark)) => self.record(marked, mark, generation).await,
            Ok(None) => Ok(()),
            Err(error) => {
                self.set_aside(&error);
                Ok(())
            }
        }
    }

    pub(crate) async fn record(
        &self,
        control: v1::ControlState,
        mark: Mark,
        generation: u64,
    ) -> io::Result<()> {
        let record = ReplicaMark {
            control,
            tree: Some(mark),
            generation,
        };
        self.parts.group.put_mark(record.encode()).await?;
        self.state.lock().marked = Some(record.control);
        Ok(())
    }

    /// A view of the newest applied entry; `None` while there is no tree to trust.
    pub fn view(&self) -> Option<View> {
        let tree = self.state.lock().tree.clone();
        tree.map(|tree| tree.view())
    }

    /// A view of the newest applied entry and the logged time there; `None` while there is no tree to
    /// trust. What expires is judged by this pair: a later time would hide what was written over.
    pub fn view_with_time(&self) -> Option<(View, u64)> {
        let state = self.state.lock();
        let tree = state.tree.as_ref();
        tree.map(|tree| (tree.view(), state.control.logged_time_ms()))
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

    /// A view and the control state of the same entry.
    pub fn view_with_control(&self) -> Option<(View, Control)> {
        let state = self.state.lock();
        state
            .tree
            .as_ref()
            .map(|tree| (tree.view(), state.control.clone()))
    }

    /// A view and the control state of exactly the entry `index`, once it is applied; `None` when
    /// the replica is past it, or has no tree to trust.
    pub async fn view_at(&self, index: u64) -> Option<(View, Control)> {
        let view = {
            let mut state = self.state.lock();
            let (waiting, view) = oneshot::channel();
            // Those who gave up make room.
            state.awaited.retain(|(_, waiting)| !waiting.is_closed());
            state.awaited.push((index, waiting));
            state.give_views();
            view
        };
        view.await.ok()
    }

    /// Looks at the control state.
    pub fn with_control<T>(&self, look: impl FnOnce(&Control) -> T) -> T {
        look(&self.state.lock().control)
    }

    /// The tree, for sweeps and figures.
    pub fn tree(&self) -> Option<Tree> {
        self.state.lock().tree.clone()
    }

    /// Follows the last applied entry.
    pub fn watch_applied(&self) -> watch::Receiver<Option<LogId>> {
        self.applied.subscribe()
    }

    /// Follows whether the tree is trusted.
    pub fn watch_trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    /// Whether the tree is trusted now.
    pub fn trust(&self) -> Trust {
        *self.trust.borrow()
    }

    /// The entry up to which everything is durable in the tree and on record.
    pub fn checkpointed(&self) -> Option<LogId> {
        let state = self.state.lock();
        if Mutant::PurgeBeforeCheckpoint.is_on() {
            return state.control.applied();
        }
        state
            .marked
            .as_ref()
            .and_then(|marked| marked.applied)
            .map(LogId::from)
    }

    /// The membership at the last recorded checkpoint.
    pub fn checkpointed_membership(&self) -> Option<v1::StoredMembership> {
        self.state
            .lock()
            .marked
            .as_ref()
            .and_then(|marked| marked.membership.clone())
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

fn write(tree: &Tree, last_version: Version, changes: Vec<RecordChange>) -> Result<(), TreeError> {
    tree.begin_entry(last_version);
    for change in changes {
        tree.insert(&StoredRecord {
            key: change.key,
            version: change.version,
            value: change.value,
            client_crc: change.client_crc,
            logged_time_ms: change.logged_time_ms,
            expires_at_ms: change.expires_at_ms,
        })?;
    }
    tree.publish(last_version);
    Ok(())
}
