//! Feeds committed entries to a replica's store.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use super::codec::{RaftStoredMembership, decode_stored_membership, encode_membership};
use super::replica_store::{AppliedPayload, Refill, ReplicaStore};
use super::types::{RaftLogId, TypeConfig};
use crate::shard::Control;
use crate::storage::View;

type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// What openraft hands around as a snapshot; never the bytes themselves.
pub enum SnapshotData {
    /// A view of this replica, to be streamed to another.
    Outgoing {
        /// The records.
        view: View,
        /// The control state of the same entry.
        control: Box<Control>,
    },
    /// A tree filled from another replica, to be switched in.
    Incoming(Box<Refill>),
    /// Says only up to where the tree is durable.
    Checkpoint,
    /// There is a snapshot by right, but the tree is being refilled: nothing to send.
    Untrusted,
}

/// openraft's state machine: a replica's store.
pub struct StateMachine {
    store: Arc<ReplicaStore>,
    /// Dropped with the state machine, so that a supervisor knows when openraft let go of it.
    _alive: Option<tokio::sync::oneshot::Sender<()>>,
}

impl StateMachine {
    /// The state machine over a store; `alive` is dropped when openraft has let go of it.
    pub fn new(store: Arc<ReplicaStore>, alive: Option<tokio::sync::oneshot::Sender<()>>) -> Self {
        Self { store, _alive: alive }
    }

    /// The store.
    pub fn store(&self) -> &Arc<ReplicaStore> {
        &self.store
    }
}

fn meta(control: &Control) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: control.applied().map(RaftLogId::from),
        last_membership: decode_stored_membership(control.membership())?,
    })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = CheckpointReporter;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, RaftStoredMembership)> {
        self.store.with_control(|control| {
            Ok((
                control.applied().map(RaftLogId::from),
                decode_stored_membership(control.membership())?,
            ))
        })
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let payload = match &entry.payload {
                EntryPayload::Blank => AppliedPayload::Blank,
                EntryPayload::Normal(command) => AppliedPayload::Normal(command.body()),
                EntryPayload::Membership(membership) => {
                    AppliedPayload::Membership(encode_membership(membership))
                }
            };
            let outcome = self.store.apply(entry.log_id.into(), payload).await?;
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointReporter {
        CheckpointReporter {
            store: self.store.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let SnapshotData::Incoming(incoming) = snapshot else {
            return Err(io::Error::other("only a filled tree can be installed"));
        };
        if incoming.control.applied().map(RaftLogId::from) != meta.last_log_id {
            return Err(io::Error::other(
                "the filled tree stands at another entry than its snapshot says",
            ));
        }
        self.store.install(*incoming).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let (meta, snapshot) = match self.store.view_with_control() {
            Some((view, control)) => (
                meta(&control)?,
                SnapshotData::Outgoing {
                    view,
                    control: Box::new(control),
                },
            ),
            None => (self.store.with_control(meta)?, SnapshotData::Untrusted),
        };
        Ok(meta.last_log_id.is_some().then_some(Snapshot { meta, snapshot }))
    }
}

/// Tells openraft up to where the tree is durable. Checkpoints themselves are made by the
/// replica, outside openraft, so that a tree's failure is never openraft's.
pub struct CheckpointReporter {
    store: Arc<ReplicaStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointReporter {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let membership = self.store.checkpointed_membership().unwrap_or_default();
        let meta = SnapshotMeta {
            last_log_id: self.store.checkpointed().map(RaftLogId::from),
            last_membership: decode_stored_membership(&membership)?,
        };
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Checkpoint,
        })
    }
}
