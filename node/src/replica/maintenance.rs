//! Checkpoints, purges and forgetting: what a replica does besides answering.

use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::v1;
use tokio_util::sync::CancellationToken;

use super::replica::Replica;
use crate::clock::now;
use crate::mutants::Mutant;
use crate::raft::CheckpointOutcome;
use crate::shard::{Write, WriteKind};

/// Entries kept behind a checkpoint for followers that are a little behind.
const ENTRIES_KEPT: u64 = 64;
/// A leader keeps at most this many entries for a live follower; beyond it a view is cheaper.
const ENTRIES_KEPT_FOR_FOLLOWER: u64 = 4_096;
/// How often a replica's live records are counted at most, for figures.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// How often a leader looks for writers' memories to forget.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

pub(super) async fn run(replica: Arc<Replica>, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = rounds(&replica) => {}
        () = stop.cancelled() => {}
    }
}

async fn rounds(replica: &Arc<Replica>) {
    let settings = &replica.context().settings;
    let interval = Duration::from_millis(settings.maintenance_interval_ms);
    // Replicas of a node do not all start their rounds at once.
    let phase = replica.context().clock.random_u64() % settings.maintenance_interval_ms.max(1);
    tokio::time::sleep(Duration::from_millis(phase)).await;
    let (mut checkpointed, mut expired, mut counted) = (now(), now(), now());
    loop {
        tokio::time::sleep(interval).await;
        if Mutant::PurgeBeforeCheckpoint.is_on()
            && let Some(applied) = replica.store().checkpointed()
        {
            purge(replica, applied.index).await;
        }
        if checkpoint_due(replica, checkpointed) {
            if let Err(error) = checkpoint(replica).await {
                tracing::error!(id = ?replica.id(), %error, "a checkpoint could not be recorded");
            }
            checkpointed = now();
            if counted.elapsed() > COUNT_INTERVAL
                && let Some(_turn) = replica.context().counting.turn()
            {
                replica.count().await;
                counted = now();
            }
        }
        if expired.elapsed() > EXPIRE_INTERVAL {
            expired = now();
            expire(replica).await;
        }
    }
}

fn checkpoint_due(replica: &Replica, last: crate::clock::Instant) -> bool {
    let context = replica.context();
    let old = last.elapsed() > Duration::from_millis(context.settings.checkpoint_interval_ms);
    // The log goes on growing until what holds it back is durable.
    let log_large = context.wal.disk_bytes() > context.settings.wal_bytes_max / 4 * 3;
    let memory_large = context
        .storage
        .over_budget()
        .is_some_and(|id| id.shard_id == replica.id().shard_id);
    old || log_large || memory_large
}

/// Makes the tree durable, then lets the log go that it stands for.
pub(super) async fn checkpoint(replica: &Replica) -> std::io::Result<()> {
    let store = replica.store();
    let outcome = store.checkpoint().await?;
    if let Some(durable) = store.checkpointed() {
        purge(replica, durable.index).await;
    }
    // The log need not wait for it.
    match outcome {
        CheckpointOutcome::Recorded(_) => store.compact().await,
        CheckpointOutcome::Unchanged | CheckpointOutcome::Untrusted => Ok(()),
    }
}

async fn purge(replica: &Replica, durable: u64) {
    let raft = replica.raft();
    // openraft purges only what it knows a snapshot of.
    if raft.trigger().snapshot().await.is_ok() {
        let upto = purge_point(replica, durable);
        if upto > 0 {
            // A stopped Raft is the supervisor's matter.
            let _ = raft.trigger().purge_log(upto).await;
        }
    }
}

/// The last entry nobody needs any more.
fn purge_point(replica: &Replica, durable: u64) -> u64 {
    if Mutant::PurgeBeforeCheckpoint.is_on() {
        return durable;
    }
    let metrics = crate::raft::metrics(replica.raft());
    let last = metrics.last_log_index.unwrap_or(durable);
    let kept_from = match &metrics.replication {
        Some(followers) => followers
            .values()
            .map(|matched| matched.map_or(0, |id| id.index))
            .filter(|matched| last.saturating_sub(*matched) < ENTRIES_KEPT_FOR_FOLLOWER)
            .min()
            .unwrap_or(last),
        None => last,
    };
    let pinned = replica.store().pinned().unwrap_or(u64::MAX);
    durable.min(kept_from).saturating_sub(ENTRIES_KEPT).min(pinned)
}

async fn expire(replica: &Replica) {
    // By most of the clocks: one that jumps makes nobody forget early.
    let Some(now_ms) = replica.time().now_ms() else {
        return;
    };
    let expirable = replica
        .store()
        .with_control(|control| !control.incarnations().expirable(now_ms).is_empty());
    if !expirable || !replica.is_leader() {
        return;
    }
    let write = Write {
        token: None,
        kind: WriteKind::ExpireIncarnations { now_ms },
    };
    let refused: Result<_, v1::Error> = replica.write(write, Duration::from_secs(5)).await;
    if let Err(error) = refused {
        tracing::debug!(id = ?replica.id(), error = error.message, "old tokens were not forgotten this time");
    }
}
