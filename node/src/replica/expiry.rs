//! Records that expire: ticks, and the removal of what has expired.
//!
//! A record counts as expired once the shard's *logged* time has reached its expiry. On an idle shard
//! that time stands still, so whoever meets a record that is due by the clocks proposes a tick, an
//! effect that does nothing but move the logged time on, and looks again.
//!
//! Removal is an effect like any other delete: the leader walks its newest views and proposes
//! deletes, and the evaluator lets through those of records that have expired. Nothing rests on
//! it but space. The store knows when the next record may expire, so nothing is walked before.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::v1::{self, error::Kind};
use tokio_util::sync::CancellationToken;

use super::replica::{Replica, refilling};
use crate::clock::now;
use crate::disk::offload;
use crate::error;
use crate::limits::{EXPIRED_REMOVED_MAX, PAGE_BYTES_MAX};
use crate::shard::{Write, WriteKind};

const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two pages of a walk.
const PAGE_PAUSE: Duration = Duration::from_millis(5);
/// A walk reads everything: reading may take one part in so many of the time.
const WALK_SHARE: u32 = 20;

/// Walks the shard now and then while this replica leads it.
pub(super) async fn run(replica: Arc<Replica>, stop: CancellationToken) {
    tokio::select! {
        () = rounds(&replica) => {}
        () = stop.cancelled() => {}
    }
}

async fn rounds(replica: &Replica) {
    let interval_ms = replica.context().settings.expiry_sweep_interval_ms.max(1);
    let interval = Duration::from_millis(interval_ms);
    // Replicas of a node do not all walk at once.
    let phase = replica.context().clock.random_u64() % interval_ms;
    tokio::time::sleep(Duration::from_millis(phase)).await;
    let mut pause = interval;
    loop {
        tokio::time::sleep(pause).await;
        // The first walk after a start only finds out when the next record expires.
        let mut reading = Duration::ZERO;
        let removed = async {
            remove_expired(replica, &mut reading).await?;
            remove_expired(replica, &mut reading).await
        };
        if let Err(error) = removed.await {
            replica.store().expires_by(0); // what was not walked
            tracing::debug!(id = ?replica.id(), error = error.message, "expired records were not all removed this time");
        }
        pause = interval.max(reading * WALK_SHARE);
    }
}

/// Removes what has expired, if anything may have; counts how long it read.
async fn remove_expired(replica: &Replica, reading: &mut Duration) -> Result<(), v1::Error> {
    let due_ms = replica.store().next_expiry_ms();
    let is_due = |now_ms| due_ms <= now_ms;
    if !replica.is_leader() || !replica.time().now_ms().is_some_and(is_due) {
        return Ok(());
    }
    replica.tick_to(due_ms).await?;
    replica.store().forget_next_expiry();
    let mut start = Bytes::new();
    loop {
        let (began, (view, logged_time_ms)) = (now(), replica.newest()?);
        let page = offload(&*replica.context().disk, move || {
            view.expired(&start, logged_time_ms, EXPIRED_REMOVED_MAX, PAGE_BYTES_MAX)
        });
        let page = page
            .await
            .map_err(|stopped| error::unavailable(stopped.to_string()))?;
        let page = page.map_err(|damage| {
            replica.store().found(&damage);
            refilling(replica.id().shard_id)
        })?;
        *reading += began.elapsed();
        if let Some(next_ms) = page.next_ms {
            replica.store().expires_by(next_ms);
        }
        if !page.keys.is_empty() {
            let kind = WriteKind::RemoveExpired { keys: page.keys };
            replica.write(Write { token: None, kind }, WRITE_TIMEOUT).await?;
        }
        match page.resume {
            Some(resume) => start = resume,
            None => return Ok(()),
        }
        tokio::time::sleep(PAGE_PAUSE).await;
    }
}

impl Replica {
    /// Has the shard log a time at or after `at_ms`, if the clocks agree that it has come. One
    /// proposal at a time; those who wait for it are served by it.
    ///
    /// # Errors
    /// It cannot be logged now; nothing is known of the time.
    pub(super) async fn tick_to(&self, at_ms: u64) -> Result<(), v1::Error> {
        let _one_at_a_time = self.ticking().lock().await;
        if self.store().with_control(|control| control.logged_time_ms()) >= at_ms {
            return Ok(());
        }
        let tick = Write {
            token: None,
            kind: WriteKind::Tick,
        };
        match self.write(tick, WRITE_TIMEOUT).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind, Some(Kind::OutcomeUnknown(_))) => {
                Err(error::unavailable("the shard could not log the time"))
            }
            Err(error) => Err(error),
        }
    }
}
