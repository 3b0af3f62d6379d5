//! Opens a replica's applied state from what the log has on record.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1;
use tokio::sync::watch;

use super::{Marked, ReplicaStore, Rewritten, State, StoreParts, Trust, other};
use crate::health::{Action, Damage, Kind, Structure};
use crate::mutants::Mutant;
use crate::raft::{Doubts, ReplicaMark};
use crate::shard::{Control, LogId};
use crate::storage::{Mark, Salvaged, Tree, TreeError, TreeId};

/// A replica's applied state as it was found.
struct Found {
    control: Control,
    tree: Option<Tree>,
    generation: u64,
    marked: Marked,
    doubts: Doubts,
}

impl ReplicaStore {
    /// Opens a replica's applied state from what the WAL has on record. Damage to the tree never
    /// fails this: the replica then starts out without it.
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
        let found = match mark {
            None => Self::newborn(&parts, birth, newest_folder + 1).await?,
            Some(mark) => Self::recorded(&parts, mark, newest_folder).await,
        };
        let state = State {
            control: found.control,
            tree: found.tree,
            generation: found.generation,
            marked: found.marked,
            unproven: found.doubts.unproven,
            rewritten: Rewritten::default(),
            uncompared: found.doubts.uncompared,
            suspect: false,
            worn: false,
            replaced: 0,
            leftovers: false,
            pinned: None,
            awaited: Vec::new(),
            marked_view: None,
            next_expiry_ms: 0,
        };
        let store = Self {
            applied: watch::Sender::new(state.control.applied()),
            trust: watch::Sender::new(state.trust()),
            marker: watch::Sender::new(0),
            state: Mutex::new(state),
            applying: tokio::sync::Mutex::new(()),
            checkpointing: tokio::sync::Mutex::new(()),
            parts,
        };
        store.remove_old_folders().await;
        store.put_on_record().await?;
        Ok(Arc::new(store))
    }

    /// The applied state of a replica that has checkpointed nothing yet.
    async fn newborn(
        parts: &StoreParts,
        birth: &v1::CreateReplicaRequest,
        generation: u64,
    ) -> io::Result<Found> {
        let began = birth
            .birth
            .clone()
            .ok_or_else(|| other("birth record without the shard's beginning"))?;
        let tree = parts.storage.create(Self::tree_id(parts, generation)).await;
        Ok(Found {
            control: Control::new(parts.group.id().shard_id, began),
            tree: Some(tree.map_err(other)?),
            generation,
            marked: Marked::default(),
            doubts: Doubts::default(),
        })
    }

    async fn recorded(parts: &StoreParts, mark: ReplicaMark, newest_folder: u64) -> Found {
        let marked = Marked {
            control: Some(mark.control.clone()),
            tree: mark.tree.clone(),
        };
        let generation = mark.generation.max(newest_folder);
        if let Some((tree, control)) = Self::open_tree(parts, mark.tree.as_ref(), &mark.control).await {
            return Found {
                control,
                tree: Some(tree),
                generation,
                marked,
                doubts: mark.doubts,
            };
        }
        if let Some(salvaged) = Self::salvage(parts, &mark, generation + 1).await {
            return salvaged;
        }
        Found {
            control: Control::decode(mark.control),
            tree: None,
            generation,
            marked: Marked { tree: None, ..marked },
            doubts: Doubts::default(),
        }
    }

    /// Saves what can be proven of a damaged tree into another one and puts that on record, with the
    /// keys that were lost. `None` when nothing can be, or when the control state of its checkpoint is
    /// lost as well: tokens are nowhere else on this node.
    async fn salvage(parts: &StoreParts, mark: &ReplicaMark, generation: u64) -> Option<Found> {
        let damaged = mark.tree.as_ref()?;
        let into = Self::tree_id(parts, generation);
        let salvaged = match parts.storage.salvage(damaged.tree, damaged, into).await {
            Ok(salvaged) => salvaged,
            Err(error) => {
                tracing::info!(id = ?parts.id, %error, "nothing could be saved of a damaged tree");
                return None;
            }
        };
        let mut doubts = mark.doubts.clone();
        for span in &salvaged.bad_spans {
            let (start, end) = span.range();
            doubts.unproven.add(&KeyRange { start, end });
        }
        let (records, lost_blocks) = (salvaged.records, salvaged.lost_blocks);
        match Self::put_salvaged_on_record(parts, mark, salvaged, &doubts).await {
            Ok((tree, control, marked)) => {
                let unproven = &doubts.unproven;
                tracing::info!(id = ?parts.id, records, lost_blocks, %unproven, "a damaged tree was saved");
                if unproven.is_empty() {
                    parts.health.repaired(parts.id.shard_id, Structure::Tree);
                }
                Some(Found {
                    control,
                    tree: Some(tree),
                    generation,
                    marked,
                    doubts,
                })
            }
            Err(error) => {
                tracing::info!(id = ?parts.id, %error, "a tree that was saved cannot be used");
                if let Err(error) = parts.storage.remove(into).await {
                    tracing::warn!(%error, ?into, "a tree that was saved could not be removed");
                }
                None
            }
        }
    }

    async fn put_salvaged_on_record(
        parts: &StoreParts,
        mark: &ReplicaMark,
        salvaged: Salvaged,
        doubts: &Doubts,
    ) -> io::Result<(Tree, Control, Marked)> {
        let row = salvaged.control.ok_or_else(|| other("its control row is lost"))?;
        let control = Control::decode(v1::ControlState::decode(&row[..])?);
        if control.applied() != mark.control.applied.map(LogId::from) {
            return Err(other("its control row does not fit the log's record"));
        }
        let tree = salvaged.tree;
        let sealed = tree
            .seal(&row, control.applied().unwrap_or_default())
            .map_err(other)?;
        let files = tree.flush(sealed).await.map_err(other)?;
        let record = ReplicaMark {
            control: control.encode_without_tokens(),
            tree: Some(files.clone()),
            generation: tree.id().generation,
            doubts: doubts.clone(),
        };
        parts.group.put_mark(record.encode()).await?;
        let marked = Marked {
            control: Some(record.control),
            tree: Some(files),
        };
        Ok((tree, control, marked))
    }

    /// A tree may be ahead of its record: the log was lost to the disk between the two. openraft then
    /// lets the log go up to what is applied, so that must be on record first: were the tree
    /// lost later, neither log nor record would say how it can be filled again.
    async fn put_on_record(&self) -> io::Result<()> {
        let applied = self.with_control(Control::applied);
        match self.trust() != Trust::Refilling && applied > self.checkpointed() {
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
                Self::report(parts, &error, Action::Repair);
                return None;
            }
        };
        for healed in &opened.healed {
            let replica = (parts.id.shard_id, parts.id.replica_id);
            let (kind, position) = (Kind::Checksum, healed.to_string());
            let damage = Damage::of_replica(replica, Structure::Tree, kind, Action::Heal, position);
            parts.health.repaired_at_once(damage);
        }
        let control = v1::ControlState::decode(&opened.control[..]).map(Control::decode);
        match control {
            Ok(control) if control.applied() >= recorded.applied.map(LogId::from) => {
                Some((opened.tree, control))
            }
            Ok(_) if Mutant::TrustEngineIndex.is_on() => {
                Some((opened.tree, Control::decode(recorded.clone())))
            }
            _ => {
                let position = "does not fit the log's record".to_owned();
                let what = "control row".to_owned();
                Self::report(parts, &TreeError::Damaged { what, position }, Action::Repair);
                None
            }
        }
    }

    fn folders(parts: &StoreParts) -> io::Result<Vec<TreeId>> {
        let mut trees = parts.storage.list().map_err(other)?;
        trees.retain(|id| id.shard_id == parts.id.shard_id && id.replica_id == parts.id.replica_id);
        Ok(trees)
    }

    fn newest_generation(parts: &StoreParts) -> io::Result<u64> {
        let folders = Self::folders(parts)?;
        Ok(folders.iter().map(|id| id.generation).max().unwrap_or(0))
    }

    /// Removes folders of trees that no record names any more. While there is no tree, all are
    /// kept: what is left of the former one lies there.
    pub(super) async fn remove_old_folders(&self) {
        let current = self.state.lock().tree.as_ref().map(Tree::id);
        let (Some(current), Ok(folders)) = (current, Self::folders(&self.parts)) else {
            return;
        };
        self.state.lock().leftovers = false;
        for id in folders.into_iter().filter(|id| *id != current) {
            match self.parts.storage.remove(id).await {
                Ok(()) => {}
                // It is being filled, or a scrub or a view still reads it.
                Err(TreeError::InUse { .. }) => self.state.lock().leftovers = true,
                Err(error) => tracing::warn!(%error, ?id, "an old tree could not be removed"),
            }
        }
    }
}
