//! Replaces replicas: of shards led here by this node itself, at the word of the placement driver
//! or of whoever noticed that one lost its log.

use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, peer_request};

use super::directory;
use super::member::Member;
use crate::error;
use crate::health::{self, Action, Damage, Structure};
use crate::raft::PeerNode;
use crate::replica::{Comparison, Replica};

const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a replacement that goes on looks whether its node is still there.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Member {
    /// Replaces a replica of a shard led here; old id 0 adds one. One replacement per shard at a time; the call
    /// returns once the new replica is a voter.
    pub(super) async fn replace_replica(
        self: &Arc<Self>,
        request: v1::ReplaceReplicaRequest,
    ) -> Result<ReplicaId, v1::Error> {
        let shard_id = request.shard_id;
        if !self.replacing.lock().insert(shard_id) {
            return Err(error::busy(1_000, "a replica of the shard is being replaced"));
        }
        let target = request.member.as_ref().map_or(0, |member| member.node_id);
        let outcome = tokio::select! {
            biased;
            outcome = self.replace_replica_now(request) => outcome,
            () = self.is_retired(target) => Err(error::unavailable(format!(
                "node {target}, where the new replica was to be, is no more"
            ))),
        };
        self.replacing.lock().remove(&shard_id);
        outcome
    }

    /// Returns once the map says that a node is no more: nothing that it was asked for will come.
    async fn is_retired(&self, node_id: u64) {
        let retired = || {
            let known = self.directory.get();
            directory::node(&known, node_id).is_some_and(|node| node.retired)
        };
        while !retired() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn replace_replica_now(&self, request: v1::ReplaceReplicaRequest) -> Result<ReplicaId, v1::Error> {
        let (shard_id, old) = (request.shard_id, request.old_replica_id);
        let replica = self.replicas.get(shard_id);
        let replica = replica.ok_or_else(|| error::not_leader(shard_id, 0, ""))?;
        let target = request
            .member
            .ok_or_else(|| error::invalid("member", "missing"))?;
        let target = PeerNode {
            node_id: target.node_id,
            addr: target.addr,
        };
        replica.settle_membership().await?;
        let old_node = replica.members().remove(&old).map(|(node, _)| node);
        if old != 0 && old_node.is_none() {
            return Err(error::invalid("old_replica_id", "no such member"));
        }
        self.expel_learners_of_retired_nodes(&replica).await?;
        if let Some(old_node) = old_node.filter(|node| node.node_id == target.node_id) {
            // The old replica is no more on that node; its record must not be in the way.
            self.remove_on(&old_node, shard_id, old).await?;
        }
        let new = self.make_learner(&replica, &target, old).await?;
        replica.add_learner(new, target.clone()).await?;
        self.check_learner(&replica, new, &target).await?;
        replica.promote(new, (old != 0).then_some(old)).await?;
        tracing::info!(shard_id, old, new, "a replica was replaced or added");
        Ok(new)
    }

    /// Has a replica made on a node, which is to become a learner. One that an earlier attempt left
    /// there goes on from where it is.
    async fn make_learner(
        &self,
        replica: &Replica,
        target: &PeerNode,
        old: ReplicaId,
    ) -> Result<ReplicaId, v1::Error> {
        let begun = replica
            .members()
            .into_iter()
            .find(|(id, (node, role))| {
                node.node_id == target.node_id && *role == v1::ReplicaRole::Learner && *id != old
            })
            .map(|(id, _)| id);
        let new = match begun {
            Some(id) => id,
            None => replica.allocate_replica_id().await?,
        };
        let descriptor = v1::ReplicaDescriptor {
            replica_id: new,
            node_id: target.node_id,
            addr: target.addr.clone(),
            role: v1::ReplicaRole::Learner.into(),
        };
        let birth = replica.store().with_control(|control| control.birth().clone());
        let created = self
            .create_replica_on(&replica.descriptor(), &descriptor, Some(birth))
            .await;
        match created {
            Ok(()) => Ok(new),
            Err(refused) => {
                if begun.is_some() && !matches!(refused.kind, Some(Kind::Unavailable(_))) {
                    // The learner is lost as well; the next attempt begins with a new one.
                    replica.expel(new).await?;
                    self.remove_on(target, replica.id().shard_id, new).await?;
                }
                Err(refused)
            }
        }
    }

    /// Learners that were begun on nodes that are no more.
    async fn expel_learners_of_retired_nodes(&self, replica: &Replica) -> Result<(), v1::Error> {
        let known = self.directory.get();
        for (id, (node, role)) in replica.members() {
            let retired = directory::node(&known, node.node_id).is_some_and(|node| node.retired);
            if role == v1::ReplicaRole::Learner && retired {
                replica.expel(id).await?;
            }
        }
        Ok(())
    }

    /// A learner becomes a voter only if it holds what the others hold.
    async fn check_learner(
        &self,
        replica: &Replica,
        learner: ReplicaId,
        node: &PeerNode,
    ) -> Result<(), v1::Error> {
        let shard_id = replica.id().shard_id;
        let refused = |why: &str| {
            let message = format!("shard {shard_id}: replica {learner} is not made a voter: {why}");
            error::unavailable(message)
        };
        let comparison = replica.compare(learner).await?;
        if comparison != Comparison::Undecided {
            self.health.repaired(shard_id, Structure::Digest);
        }
        match comparison {
            Comparison::Equal => Ok(()),
            Comparison::LearnerDiffers => {
                tracing::error!(
                    shard_id,
                    learner,
                    "a learner does not hold what the voters hold; it is removed"
                );
                replica.expel(learner).await?;
                self.remove_on(node, shard_id, learner).await?;
                Err(refused("it does not hold what the voters hold"))
            }
            // It was reported with its tree, which is being refilled.
            Comparison::LeaderDiffers => Err(refused("the leader's own tree is the one that differs")),
            Comparison::Undecided => {
                let why = "no majority of the voters holds the same records";
                if !self.health.is_open(shard_id, Structure::Digest) {
                    self.health.damaged(Damage::of_replica(
                        (shard_id, replica.id().replica_id),
                        Structure::Digest,
                        health::Kind::Differs,
                        Action::Decide,
                        why,
                    ));
                }
                Err(refused(why))
            }
        }
    }

    /// Ends a replica on the node it was on.
    pub(super) async fn remove_on(
        &self,
        node: &PeerNode,
        shard_id: u64,
        replica_id: ReplicaId,
    ) -> Result<(), v1::Error> {
        let request = v1::RemoveReplicaRequest { shard_id, replica_id };
        if node.node_id == self.node_id() {
            return self.remove_replica_here(request).await;
        }
        self.ask(
            &node.addr,
            peer_request::Body::RemoveReplica(request),
            REMOVE_TIMEOUT,
        )
        .await
        .map(|_| ())
    }
}
