//! ReadIndex, shared: one round serves every read that was waiting when it began.

use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use reelkv_proto::types::ShardId;
use reelkv_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::hint;
use crate::error;
use crate::raft::Raft;

type Waiting = oneshot::Sender<Result<(), v1::Error>>;

/// Reads waiting at a time; each is bounded by its caller's deadline.
const WAITING_MAX: usize = 65_536;
/// A round without a quorum's answer ends after this long; callers try again until their deadline.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);

/// The barrier before a read: once passed, this replica led the shard at a moment after the read
/// began, and has applied everything committed before that moment.
#[derive(Clone)]
pub(super) struct ReadBarrier {
    waiting: mpsc::Sender<Waiting>,
}

impl ReadBarrier {
    pub fn start(raft: Raft, shard_id: ShardId, stop: CancellationToken) -> Self {
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = rounds(raft, shard_id, queue) => {}
                () = stop.cancelled() => {}
            }
        });
        Self { waiting }
    }

    /// Waits for the next round.
    ///
    /// # Errors
    /// `NotLeader`, or `Unavailable` without a quorum. Nothing was done.
    pub async fn pass(&self) -> Result<(), v1::Error> {
        let (done, passed) = oneshot::channel();
        self.waiting
            .try_send(done)
            .map_err(|_| error::busy(50, "too many reads are waiting"))?;
        passed
            .await
            .map_err(|_| error::unavailable("the replica is stopping"))?
    }
}

async fn rounds(raft: Raft, shard_id: ShardId, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        // Who is ready to read joins the round.
        tokio::task::yield_now().await;
        while let Ok(next) = queue.try_recv() {
            waiting.push(next);
        }
        let outcome = round(&raft, shard_id).await;
        for reader in waiting.drain(..) {
            // A reader past its deadline is gone.
            let _ = reader.send(outcome.clone());
        }
    }
}

async fn round(raft: &Raft, shard_id: ShardId) -> Result<(), v1::Error> {
    match tokio::time::timeout(ROUND_TIMEOUT, raft.ensure_linearizable(ReadPolicy::ReadIndex)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
            Err(hint::forward(shard_id, &to))
        }
        Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
            Err(error::unavailable(format!("shard {shard_id} has no quorum")))
        }
        Err(_) => {
            let seconds = ROUND_TIMEOUT.as_secs();
            tracing::warn!(
                shard_id,
                seconds,
                "no quorum confirmed this leader, or it is behind"
            );
            Err(error::unavailable(format!("shard {shard_id} has no quorum")))
        }
        Ok(Err(RaftError::Fatal(fatal))) => Err(error::unavailable(format!(
            "shard {shard_id} has stopped: {fatal}"
        ))),
    }
}
