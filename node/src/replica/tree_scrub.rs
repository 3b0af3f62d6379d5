//! Reads the node's trees from the device all the time, one after the other, so that damage that no request
//! meets is found while other copies are still whole: one scrub per node, paced. A tree that is being
//! repaired is left alone.

use super::Replicas;
use super::pace::{Pace, STEP_BYTES};
use super::replica::Replica;
use crate::raft::Trust;
use crate::storage::{ScrubCursor, TreeError};

pub(super) async fn run(replicas: &Replicas) {
    let mut pace = Pace::new(replicas.context().settings.scrub_cycle_ms);
    loop {
        for replica in replicas.all() {
            read(&replica, &pace).await;
        }
        pace.cycle().await;
    }
}

/// Reads one replica's tree once, as long as nothing is known to be wrong with it. The first damage
/// is enough: the tree is then read whole to know all of it.
async fn read(replica: &Replica, pace: &Pace) {
    let store = replica.store();
    let Some(tree) = store.tree() else { return };
    let mut cursor = ScrubCursor::default();
    loop {
        let present = store.tree().map(|tree| tree.id());
        if store.trust() != Trust::Trusted || present != Some(tree.id()) {
            return;
        }
        match tree.scrub_step(cursor, STEP_BYTES).await {
            Ok(step) => {
                if let Some(damage) = step.bad.first() {
                    return store.found(damage);
                }
                if step.finished {
                    return;
                }
                cursor = step.cursor;
                pace.step(step.bytes).await;
            }
            Err(TreeError::Closed) => return,
            Err(error) => {
                tracing::debug!(id = ?replica.id(), %error, "a tree could not be read this time");
                return;
            }
        }
    }
}
