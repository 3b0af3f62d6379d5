//! Replaces a replica: a new id as a learner, promoted when it has caught up, the old id removed
//! in the same change. A replica's id is never used again, so nothing the old one promised can
//! be broken by the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;
use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1;

use super::replica::Replica;
use crate::error;
use crate::raft::PeerNode;
use crate::shard::{Write, WriteKind};

/// A learner this many entries behind is caught up.
const LAG_MAX: u64 = 64;
/// How long a learner may take to catch up before the replacement is given up (and begun again).
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(300);
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

impl Replica {
    /// Takes the shard's next replica id.
    ///
    /// # Errors
    /// As any write.
    pub async fn allocate_replica_id(&self) -> Result<ReplicaId, v1::Error> {
        let write = Write {
            token: None,
            kind: WriteKind::AllocateReplicaId,
        };
        let result = self.write(write, STEP_TIMEOUT).await?;
        result
            .sum
            .map(|id| id as ReplicaId)
            .ok_or_else(|| error::internal("no replica id was allocated"))
    }

    /// Adds a learner that exists on its node already, and waits until it has caught up.
    ///
    /// # Errors
    /// `NotLeader`, or `Unavailable` when the learner does not catch up; the learner then stays
    /// and a later call with the same id goes on.
    pub async fn add_learner(&self, new: ReplicaId, node: PeerNode) -> Result<(), v1::Error> {
        bounded(self.raft().add_learner(new, node, false))
            .await?
            .map_err(|error| self.not_changed("adding a learner", &error))?;
        self.caught_up(new).await
    }

    /// Makes a learner a voter, in the place of `old` if given. The caller has compared it with the others.
    ///
    /// # Errors
    /// `NotLeader` or `Unavailable`.
    pub async fn promote(&self, learner: ReplicaId, old: Option<ReplicaId>) -> Result<(), v1::Error> {
        let mut changes = vec![ChangeMembers::AddVoterIds(BTreeSet::from([learner]))];
        changes.extend(old.map(|old| ChangeMembers::RemoveVoters(BTreeSet::from([old]))));
        bounded(
            self.raft()
                .change_membership(ChangeMembers::Batch(changes), false),
        )
        .await?
        .map(|_| ())
        .map_err(|error| self.not_changed("promoting a learner", &error))
    }

    fn not_changed(&self, what: &str, failed: &dyn std::fmt::Display) -> v1::Error {
        error::unavailable(format!("shard {}: {what}: {failed}", self.id().shard_id))
    }

    /// Removes a learner, or a voter that is being given up without a replacement.
    ///
    /// # Errors
    /// `NotLeader` or `Unavailable`.
    pub async fn expel(&self, replica_id: ReplicaId) -> Result<(), v1::Error> {
        let gone = BTreeSet::from([replica_id]);
        let is_voter = self.raft().voter_ids().any(|id| id == replica_id);
        let change = if is_voter {
            ChangeMembers::RemoveVoters(gone)
        } else {
            ChangeMembers::RemoveNodes(gone)
        };
        bounded(self.raft().change_membership(change, false))
            .await?
            .map(|_| ())
            .map_err(|error| error::unavailable(format!("removing replica {replica_id}: {error}")))
    }

    /// Finishes a change that a former leader left half done.
    ///
    /// # Errors
    /// `NotLeader` or `Unavailable`.
    pub async fn settle_membership(&self) -> Result<(), v1::Error> {
        let joint = {
            let metrics = crate::raft::metrics(self.raft());
            metrics.membership_config.membership().get_joint_config().len() > 1
        };
        if !joint {
            return Ok(());
        }
        let none = ChangeMembers::AddVoterIds(BTreeSet::new());
        bounded(self.raft().change_membership(none, false))
            .await?
            .map(|_| ())
            .map_err(|error| error::unavailable(format!("settling the membership: {error}")))
    }

    async fn caught_up(&self, learner: ReplicaId) -> Result<(), v1::Error> {
        let mut metrics = self.raft().metrics();
        let near = metrics.wait_until(|metrics| {
            let matched = metrics
                .replication
                .as_ref()
                .and_then(|peers| peers.get(&learner))
                .copied()
                .flatten();
            match (matched, metrics.last_log_index) {
                (Some(matched), Some(last)) => last.saturating_sub(matched.index) <= LAG_MAX,
                _ => metrics.replication.is_none(), // leadership is gone: noticed by the next step
            }
        });
        match tokio::time::timeout(CATCH_UP_TIMEOUT, near).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(error::unavailable(format!("replica {learner} does not catch up"))),
        }
    }

    /// Voters and learners with where they live.
    pub fn members(&self) -> BTreeMap<ReplicaId, (PeerNode, v1::ReplicaRole)> {
        let metrics = crate::raft::metrics(self.raft());
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<ReplicaId> = membership.voter_ids().collect();
        let role = |id: &ReplicaId| {
            if voters.contains(id) {
                v1::ReplicaRole::Voter
            } else {
                v1::ReplicaRole::Learner
            }
        };
        membership
            .nodes()
            .map(|(id, node)| (*id, (node.clone(), role(id))))
            .collect()
    }
}

async fn bounded<T>(step: impl Future<Output = T>) -> Result<T, v1::Error> {
    let timed = tokio::time::timeout(STEP_TIMEOUT, step).await;
    timed.map_err(|_| error::unavailable("a change of membership found no quorum in time"))
}
