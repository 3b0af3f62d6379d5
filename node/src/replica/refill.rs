//! Replaces a tree that is not trusted by a peer's view, while log and vote stay.

use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1;
use tokio_util::sync::CancellationToken;

use super::ReplicaContext;
use super::transfer::{Receiver, TransferError};
use crate::mutants::Mutant;
use crate::raft::{PeerNode, Raft, ReplicaStore, Trust};

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// Watches a replica's trust and refills it whenever it is lost. While it is refilled the
/// replica votes and appends, and does not campaign.
pub(super) struct Refiller {
    pub context: Arc<ReplicaContext>,
    pub store: Arc<ReplicaStore>,
    pub raft: Raft,
    pub stop: CancellationToken,
}

impl Refiller {
    pub async fn run(self) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = self.watch() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn watch(&self) {
        let mut trust = self.store.watch_trust();
        // The store owns the sender and lives as long as this task.
        while trust.wait_for(|trust| *trust == Trust::Refilling).await.is_ok() {
            self.raft.runtime_config().elect(false);
            self.hand_over().await;
            self.refill().await;
            self.raft.runtime_config().elect(true);
        }
    }

    async fn refill(&self) {
        let mut wait = RETRY_MIN;
        let mut attempt = self.context.clock.random_u64() as usize;
        if !Mutant::UnprovenNotPersisted.is_on()
            && let Err(error) = self.store.record_untrusted().await
        {
            tracing::error!(id = ?self.store.id(), %error, "the log refused to record an untrusted tree");
        }
        while self.store.trust() == Trust::Refilling {
            let peers = self.peers();
            if let Some((donor, peer)) = peers.get(attempt % peers.len().max(1)) {
                match self.refill_from(*donor, peer).await {
                    Ok(()) => tracing::info!(id = ?self.store.id(), addr = peer.addr, "refilled from a peer"),
                    Err(error) => {
                        self.store.release_hold();
                        tracing::info!(id = ?self.store.id(), addr = peer.addr, %error, "a refill did not succeed");
                    }
                }
            }
            if self.store.trust() == Trust::Refilling {
                attempt = attempt.wrapping_add(1);
                self.hand_over().await;
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }

    async fn refill_from(&self, donor: ReplicaId, peer: &PeerNode) -> Result<(), TransferError> {
        let applied = self.store.with_control(|control| control.applied());
        let receiver = Receiver {
            context: &self.context,
            store: &self.store,
            addr: peer.addr.clone(),
            request: v1::FetchViewRequest {
                cluster_id: self.context.cluster_id.clone(),
                shard_id: self.store.id().shard_id,
                replica_id: donor,
                min_index: applied.map_or(0, |applied| applied.index),
                view_id: 0,
                after_key: Default::default(),
            },
            hold: true,
        };
        let refill = receiver.fill().await?;
        let reached = refill.control.applied();
        self.store
            .offer_refill(refill)
            .await
            .map_err(|error| TransferError::Damaged(error.to_string()))?;
        // Entries up to the view's index may still have to arrive.
        let mut trust = self.store.watch_trust();
        let trusted = trust.wait_for(|trust| *trust == Trust::Trusted);
        match tokio::time::timeout(Duration::from_secs(30), trusted).await {
            Ok(_) => Ok(()),
            Err(_) => Err(TransferError::TooOld(reached.map_or(0, |applied| applied.index))),
        }
    }

    /// The other voters, as far as this one knows. A learner's records were not compared yet.
    fn peers(&self) -> Vec<(ReplicaId, PeerNode)> {
        let own = *self.raft.node_id();
        let metrics = crate::raft::metrics(&self.raft);
        let membership = metrics.membership_config.membership();
        membership
            .voter_ids()
            .filter(|id| *id != own)
            .filter_map(|id| Some((id, membership.get_node(&id)?.clone())))
            .collect()
    }

    /// A leader without a tree gives its place to a replica that has one.
    async fn hand_over(&self) {
        super::replica::transfer_leadership(&self.raft, None).await;
    }
}
