//! Views taken at markers, and what comparing them with the other voters' said.
//!
//! A marker is an entry that changes nothing. Every replica takes a view as it applies it, so all their
//! views are of the same entry, and two replicas that hold something else there differ for certain,
//! whatever the checksums of their records say. What is found is about the tree that the view was of: if
//! another has taken its place meanwhile, it says nothing any more.

use std::io;

use reelkv_proto::types::KeyRange;
use reelkv_proto::v1::{self, effect};
use tokio::sync::watch;

use super::{ReplicaStore, State};
use crate::health::{Action, Damage, Kind, Structure};
use crate::raft::Doubts;
use crate::shard::{LogId, Spans};
use crate::storage::View;

/// What a replica holds at a marker.
pub struct MarkedView {
    /// The marker's entry.
    pub index: u64,
    /// What is compared: from where the marker says to the end of the shard. Empty spans when the
    /// marker says a key outside of it.
    pub range: Option<KeyRange>,
    /// The records; `None` without a tree.
    pub view: Option<View>,
    /// What of them is not believed.
    pub doubts: Doubts,
    /// Of which tree it is: how often that was replaced before.
    pub replaced: u64,
}

impl ReplicaStore {
    /// Takes a view if an entry that was just applied holds a marker; it takes the place of an earlier
    /// one that nobody has read.
    pub(super) fn take_marked_view(&self, state: &mut State, log_id: LogId, body: &v1::EntryBody) {
        let marker = body.effects.iter().rev().find_map(|effect| match &effect.kind {
            Some(effect::Kind::Marker(marker)) => Some(marker),
            _ => None,
        });
        let Some(marker) = marker else { return };
        let rest = KeyRange::new(marker.start_key.clone(), Vec::new());
        state.marked_view = Some(MarkedView {
            index: log_id.index,
            range: state.control.range().intersect(&rest),
            view: state.tree.as_ref().map(|tree| tree.view()),
            doubts: state.doubts(),
            replaced: state.replaced,
        });
        self.marker.send_replace(log_id.index);
    }

    /// Follows the index of the last marker applied; 0 before the first.
    pub fn watch_marker(&self) -> watch::Receiver<u64> {
        self.marker.subscribe()
    }

    /// The view taken at the last marker, once.
    pub fn marked_view(&self) -> Option<MarkedView> {
        self.state.lock().marked_view.take()
    }

    /// Keys that came from another replica and that were not compared since.
    pub fn uncompared(&self) -> Spans {
        self.state.lock().uncompared.clone()
    }

    /// A majority of the voters holds the same of these keys, and so does this replica.
    ///
    /// # Errors
    /// The log refused to record it.
    pub async fn agreed(&self, replaced: u64, spans: &Spans) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            let still_uncompared = state.uncompared.without(spans);
            if state.replaced != replaced || state.uncompared == still_uncompared {
                return Ok(());
            }
            state.uncompared = still_uncompared;
        }
        self.record_trust().await
    }

    /// A majority of the voters holds something else of these keys: from now on nothing is answered,
    /// evaluated or given away of them here, and they are repaired. False if nothing has changed.
    ///
    /// # Errors
    /// The log refused to record it.
    pub async fn distrust(&self, replaced: u64, spans: &Spans, index: u64) -> io::Result<bool> {
        {
            let mut state = self.state.lock();
            let is_known = spans.without(&state.unproven()).is_empty();
            if state.tree.is_none() || state.replaced != replaced || is_known {
                return Ok(false);
            }
            state.rewritten.forget(spans);
            state.unproven.extend(spans);
            state.uncompared.extend(spans);
        }
        let id = self.parts.id;
        let position = format!("{spans} at entry {index}: not what most voters hold");
        self.parts.health.damaged(Damage::of_replica(
            (id.shard_id, id.replica_id),
            Structure::Record,
            Kind::Differs,
            Action::Repair,
            position,
        ));
        self.record_trust().await?;
        // Not before it is on record: the repair that waits for it may begin.
        self.tell_trust(&self.state.lock());
        Ok(true)
    }
}
