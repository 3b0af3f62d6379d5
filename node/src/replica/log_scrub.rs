//! Reads the node's log from the device all the time, so that damage is found while the other copies are
//! still there: one scrub per node, paced. What is found is told, and repaired at once.

use std::time::Duration;

use parking_lot::Mutex;

use super::Replicas;
use super::heal::Restorer;
use super::pace::{Pace, STEP_BYTES};
use super::replica::Replica;
use crate::health::{Action, Damage, Kind, Structure};
use crate::raft::Raft;
use crate::wal::{self, ScrubPosition, Scrubbed};

/// How long the writer has for what it is to write again, before the next cycle.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);
/// How often somebody looks whether an entry is to be healed.
const HEAL_INTERVAL: Duration = Duration::from_millis(100);
/// How long it waits when nobody could deliver one.
const HEAL_PAUSE: Duration = Duration::from_secs(1);
/// How often somebody looks whether a damaged segment is gone.
const GONE_INTERVAL: Duration = Duration::from_millis(100);

/// Damage as the log found it, and as it was told. What is needed of a damaged segment is written again
/// elsewhere, and the damage is repaired when the segment is gone.
type Unrepaired = Mutex<Vec<(wal::Damage, Damage)>>;

pub(super) async fn run(replicas: &Replicas) {
    let unrepaired = Unrepaired::default();
    // Whoever waits for a peer does not keep the scrub from going on.
    tokio::join!(
        read(replicas, &unrepaired),
        heal(replicas),
        close_gone(replicas, &unrepaired)
    );
}

async fn read(replicas: &Replicas, unrepaired: &Unrepaired) {
    let mut position = ScrubPosition::default();
    let mut pace = Pace::new(replicas.context().settings.scrub_cycle_ms);
    loop {
        let scrubbed = replicas.context().wal.scrub(position, STEP_BYTES).await;
        let Ok(step) = scrubbed else {
            return; // poisoned: the process is about to end
        };
        tell(replicas, &step, unrepaired);
        match step.cycle_ended {
            // Soon again, to see that what was written elsewhere is gone from here.
            true if !step.is_whole => pace.begin_after(REPAIR_PAUSE).await,
            true => pace.cycle().await,
            false => pace.step(step.bytes).await,
        }
        position = step.next;
    }
}

/// Puts on record what concerns no single replica; the rest is told with its replica's entries.
fn tell(replicas: &Replicas, step: &Scrubbed, unrepaired: &Unrepaired) {
    let health = &replicas.context().health;
    for of_log in step.damage.iter().filter(|damage| damage.group.is_none()) {
        let position = position_of(of_log);
        let damage = Damage::of_node(Structure::Wal, Kind::Checksum, Action::Heal, position);
        let known = health.open_events().into_iter();
        let mut known = known.filter(|event| event.structure == Structure::Wal.word());
        if known.all(|event| event.position != damage.position) {
            health.damaged(damage.clone());
        }
        let found = (of_log.clone(), damage);
        let mut unrepaired = unrepaired.lock();
        // A disk on which it cannot be written again gives the same in every cycle.
        if !unrepaired.contains(&found) {
            unrepaired.push(found);
        }
    }
    // Also what an earlier run has told, and the manifest, which is written again in its place.
    if step.is_whole {
        health.repaired(0, Structure::Wal);
        unrepaired.lock().clear();
    }
}

/// Puts on record that damage is gone with its segment.
async fn close_gone(replicas: &Replicas, unrepaired: &Unrepaired) {
    let context = replicas.context();
    loop {
        tokio::time::sleep(GONE_INTERVAL).await;
        let is_gone = |(of_log, _): &mut (wal::Damage, Damage)| context.wal.is_gone(of_log);
        let gone: Vec<_> = unrepaired.lock().extract_if(.., is_gone).collect();
        for (_, damage) in gone {
            context.health.repaired_same(damage);
        }
    }
}

/// As the node puts it when it finds the same at its start.
fn position_of(damage: &wal::Damage) -> String {
    format!("{} at {}: {}", damage.segment, damage.offset, damage.what)
}

/// Heals the logs of running replicas; those that do not run yet heal before they do.
async fn heal(replicas: &Replicas) {
    let mut pause = HEAL_INTERVAL;
    loop {
        tokio::time::sleep(pause).await;
        pause = HEAL_INTERVAL;
        for id in replicas.context().wal.faulty_groups() {
            let replica = replicas.get(id.shard_id).filter(|replica| replica.id() == id);
            if let Some(replica) = replica
                && !heal_one(replicas, &replica).await
            {
                pause = HEAL_PAUSE;
            }
        }
    }
}

/// Whether nothing is left to heal.
async fn heal_one(replicas: &Replicas, replica: &Replica) -> bool {
    let restorer = Restorer {
        context: replicas.context().clone(),
        group: replica.store().group().clone(),
    };
    match restorer.try_restore(0..u64::MAX).await {
        Ok(true) => true,
        Ok(false) => {
            let_go(replica, &restorer).await;
            false
        }
        Err(error) => {
            tracing::info!(id = ?replica.id(), %error, "a damaged log entry was not healed this time");
            false
        }
    }
}

/// What nobody can deliver is let go, once a checkpoint stands for it.
async fn let_go(replica: &Replica, restorer: &Restorer) {
    let Some(first) = restorer.group.first_fault() else {
        return;
    };
    if let Err(error) = replica.checkpoint().await {
        tracing::info!(id = ?replica.id(), %error, "no checkpoint could be recorded");
        return;
    }
    let durable = replica.store().checkpointed();
    if durable.is_some_and(|durable| durable.index >= first) {
        purge(replica.raft(), first).await;
    }
}

async fn purge(raft: &Raft, upto: u64) {
    // openraft purges only what it knows a snapshot of. A stopped Raft is the supervisor's matter.
    if raft.trigger().snapshot().await.is_ok() {
        let _ = raft.trigger().purge_log(upto).await;
    }
}
