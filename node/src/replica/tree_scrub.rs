//! Reads the node's trees from the device all the time, one after the other, so that damage that no request
//! meets is found while other copies are still whole: one scrub per node, paced. A tree that is being
//! repaired is left alone.

use std::time::Duration;

use super::Replicas;
use super::replica::Replica;
use crate::clock::now;
use crate::limits::{TREE_SCRUB_BYTES_PER_S, TREE_SCRUB_CYCLE_MS};
use crate::raft::Trust;
use crate::storage::{ScrubCursor, TreeError};

/// Bytes read between two pauses.
const STEP_BYTES: u64 = 256 << 10;

pub(super) async fn run(replicas: &Replicas) {
    loop {
        let began = now();
        for replica in replicas.all() {
            read(&replica).await;
        }
        let cycle = Duration::from_millis(TREE_SCRUB_CYCLE_MS);
        // Never without a pause: others share the device.
        let pause = cycle.saturating_sub(began.elapsed());
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
    }
}

/// Reads one replica's tree once, as long as nothing is known to be wrong with it. The first damage
/// is enough: the tree is then read whole to know all of it.
async fn read(replica: &Replica) {
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
                let pause_ms = step.bytes * 1_000 / TREE_SCRUB_BYTES_PER_S;
                tokio::time::sleep(Duration::from_millis(pause_ms.max(1))).await;
            }
            Err(TreeError::Closed) => return,
            Err(error) => {
                tracing::debug!(id = ?replica.id(), %error, "a tree could not be read this time");
                return;
            }
        }
    }
}
