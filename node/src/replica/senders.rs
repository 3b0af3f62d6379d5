//! The firewall between replicas: whoever sent records that are not what was written is *unproven* from then
//! on. Nothing is taken from it, for repairs, refills or reads, until the shard's voters were compared and it
//! was found to hold what a majority holds.
//!
//! What a frame's checksum finds is the way's fault, and is sent again. What is behind a good frame, a record
//! with a bad checksum or a wrong count or digest at the end, comes from the sender's disk or memory: no
//! second reading there would tell, but the comparison does. It is remembered in memory: after a restart
//! every record is verified again anyway.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::{KeyRange, ReplicaId, ShardId};
use reelkv_proto::v1::{self, peer_request, peer_response};
use tokio::sync::watch;

use super::ReplicaContext;
use crate::error;
use crate::health::{Action, Damage, Kind, Structure};
use crate::wal::GroupId;

/// How long the comparison of a whole shard may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(600);

/// The unproven senders of a node's shards; at most as many as these shards have replicas.
#[derive(Debug)]
pub struct Senders(watch::Sender<BTreeSet<GroupId>>);

impl Default for Senders {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeSet::new()))
    }
}

impl Senders {
    /// Whether nothing is to be taken from a replica.
    pub(super) fn is_unproven(&self, shard_id: ShardId, replica_id: ReplicaId) -> bool {
        self.0.borrow().contains(&GroupId { shard_id, replica_id })
    }

    /// Returns the unproven senders of a shard once there are any.
    pub(super) async fn unproven_of(&self, shard_id: ShardId) -> Vec<ReplicaId> {
        let of_shard = |unproven: &BTreeSet<GroupId>| -> Vec<ReplicaId> {
            let of_shard = unproven.iter().filter(|sender| sender.shard_id == shard_id);
            of_shard.map(|sender| sender.replica_id).collect()
        };
        let mut unproven = self.0.subscribe();
        let waited = unproven.wait_for(|unproven| !of_shard(unproven).is_empty()).await;
        // The sender of the channel is this one.
        waited.map(|unproven| of_shard(&unproven)).unwrap_or_default()
    }

    fn add(&self, sender: GroupId) {
        self.0.send_modify(|unproven| {
            unproven.insert(sender);
        });
    }

    /// Whether no sender of the shard is unproven any more.
    fn believe(&self, sender: GroupId) -> bool {
        self.0.send_modify(|unproven| {
            unproven.remove(&sender);
        });
        let left = self.0.borrow();
        left.iter().all(|left| left.shard_id != sender.shard_id)
    }
}

/// A replica as a sender of records, seen from one that receives them.
pub(super) struct SenderOf<'a> {
    pub context: &'a Arc<ReplicaContext>,
    /// The receiver.
    pub to: GroupId,
    /// The sender.
    pub replica_id: ReplicaId,
    /// Where it is.
    pub addr: &'a str,
}

impl SenderOf<'_> {
    fn id(&self) -> GroupId {
        GroupId {
            shard_id: self.to.shard_id,
            replica_id: self.replica_id,
        }
    }

    /// It sent what cannot be believed.
    pub fn failed(&self, what: &str) {
        self.context.senders.add(self.id());
        let (sender, addr) = (self.replica_id, self.addr);
        self.context.health.damaged(Damage::of_replica(
            (self.to.shard_id, self.to.replica_id),
            Structure::Transfer,
            Kind::Checksum,
            Action::Compare,
            format!("from replica {sender} at {addr}: {what}"),
        ));
    }

    /// Whether it is believed.
    pub fn is_believed(&self) -> bool {
        !self
            .context
            .senders
            .is_unproven(self.to.shard_id, self.replica_id)
    }

    /// Whether it is believed; if it was not, the voters are compared first, by whichever node of these
    /// leads the shard.
    pub async fn is_proven(&self, may_lead: &[String]) -> bool {
        if self.is_believed() {
            return true;
        }
        for addr in may_lead {
            match verify_at(self.context, addr, self.to.shard_id, KeyRange::default()).await {
                Ok(found) => return self.judge(&found),
                Err(error) => {
                    let why = error.message;
                    tracing::debug!(id = %self.id(), addr, why, "a sender was not compared");
                }
            }
        }
        false
    }

    fn judge(&self, found: &v1::VerifyShardResponse) -> bool {
        let mut voters = found.voters.iter();
        let sender = voters.find(|voter| voter.replica_id == self.replica_id);
        // One that is no voter any more sends nothing.
        let agrees = sender.is_none_or(|sender| {
            sender.answered && sender.buckets_differing == 0 && sender.buckets_agreed == found.buckets
        });
        if agrees && self.context.senders.believe(self.id()) {
            let health = &self.context.health;
            health.repaired(self.to.shard_id, Structure::Transfer);
        }
        agrees
    }
}

/// Has a shard's voters compared by the replica at an address, if that leads it.
///
/// # Errors
/// It does not lead, or they could not be compared.
pub(super) async fn verify_at(
    context: &ReplicaContext,
    addr: &str,
    shard_id: ShardId,
    range: KeyRange,
) -> Result<v1::VerifyShardResponse, v1::Error> {
    let request = peer_request::Body::VerifyShard(v1::VerifyShardRequest {
        shard_id,
        start_key: range.start,
        end_key: range.end,
        at_leisure: true,
    });
    match context.ask(addr, request, VERIFY_TIMEOUT).await? {
        peer_response::Body::VerifyShard(found) => Ok(found),
        _ => Err(error::internal("an answer of another kind")),
    }
}
