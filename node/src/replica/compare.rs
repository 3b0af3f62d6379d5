//! Compares what replicas hold at one and the same entry, before a learner becomes a voter.
//!
//! A learner's records were checked one by one, their count and sum as well; what the comparison
//! adds is that the replica they came from may have lost some without a trace. Who is wrong is
//! decided by a majority of the voters, never by rank: the leader itself may be. Without one nothing
//! is changed: the shard is named, and its learner stays one.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::Replica;
use super::replica::refilling;
use crate::error;
use crate::raft::PeerNode;
use crate::shard::Control;
use crate::storage::{TreeError, View};

/// How long another replica may take to reach the entry.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading all of a replica may take.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(300);
/// A replica that is past the entry already is asked again at a later one, this often.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// What a comparison at one entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The learner holds what the voters hold.
    Equal,
    /// The learner is not like the voters.
    LearnerDiffers,
    /// Most voters hold something else than the leader.
    LeaderDiffers,
    /// The voters differ, and there is no majority among them.
    Undecided,
}

/// What is compared: everything but the entry's place.
type Held = (Vec<u8>, u64, u64);

fn held(digest: &v1::ReplicaDigest) -> Held {
    (digest.digest.to_vec(), digest.records, digest.next_version)
}

/// Only voters count: a learner was filled from one of them.
fn judge(leader: &Held, learner: &Held, others: &[Held]) -> Comparison {
    let mut votes: BTreeMap<&Held, usize> = BTreeMap::new();
    for voter in others.iter().chain([leader]) {
        *votes.entry(voter).or_default() += 1;
    }
    let most = votes.values().max().copied().unwrap_or_default();
    let mut winners = votes.iter().filter(|(_, count)| **count == most);
    match (winners.next(), winners.next()) {
        (Some((winner, _)), None) if *winner != leader => Comparison::LeaderDiffers,
        (Some((winner, _)), None) if *winner != learner => Comparison::LearnerDiffers,
        (Some(_), None) => Comparison::Equal,
        _ => Comparison::Undecided,
    }
}

impl Replica {
    /// Count and digest of this replica's live records at its applied entry.
    ///
    /// # Errors
    /// `Unavailable` while the tree is not trusted.
    pub async fn digest(&self) -> Result<v1::ReplicaDigest, v1::Error> {
        let at_applied = self.store().view_with_control();
        let (view, control) = at_applied.ok_or_else(|| refilling(self.id().shard_id))?;
        self.digest_of(view, &control).await
    }

    /// The same at exactly the entry `index`, once that is applied here.
    ///
    /// # Errors
    /// `Busy` when the replica is past it, `Unavailable` when it does not get there or its tree is
    /// not trusted.
    pub async fn digest_at(&self, index: u64) -> Result<v1::ReplicaDigest, v1::Error> {
        let view = tokio::time::timeout(REACH_TIMEOUT, self.store().view_at(index)).await;
        let view = view.map_err(|_| error::unavailable(format!("entry {index} is not applied here yet")))?;
        match view {
            Some((view, control)) => self.digest_of(view, &control).await,
            None => Err(error::busy(
                PAUSE.as_millis() as u32,
                "the replica is past that entry",
            )),
        }
    }

    async fn digest_of(&self, view: View, control: &Control) -> Result<v1::ReplicaDigest, v1::Error> {
        let sum = view.digest().await.map_err(|damage| {
            self.store().set_aside(&damage);
            refilling(self.id().shard_id)
        })?;
        Ok(v1::ReplicaDigest {
            applied_index: control.applied().map_or(0, |applied| applied.index),
            digest: sum.digest.to_be_bytes().to_vec().into(),
            records: sum.records,
            next_version: control.next_version(),
        })
    }

    /// Compares a learner of this leader with it and with the other voters that answer.
    ///
    /// # Errors
    /// `Unavailable` when the learner cannot be asked, or one of the trees is not trusted.
    pub async fn compare(&self, learner: ReplicaId) -> Result<Comparison, v1::Error> {
        let mut members = self.members();
        members.remove(&self.id().replica_id);
        let (node, _) = members
            .remove(&learner)
            .ok_or_else(|| error::invalid("replica_id", "no such member"))?;
        for _ in 0..ATTEMPTS {
            let at_applied = self.store().view_with_control();
            let (view, control) = at_applied.ok_or_else(|| refilling(self.id().shard_id))?;
            let index = control.applied().map_or(0, |applied| applied.index);
            // The others are asked at once: what they hold at this entry cannot be had later.
            let voters = members
                .iter()
                .filter(|(_, (_, role))| *role == v1::ReplicaRole::Voter);
            let others = join_all(voters.map(|(id, (node, _))| self.ask_digest(*id, node, index)));
            let (own, theirs, others) = tokio::join!(
                self.digest_of(view, &control),
                self.ask_digest(learner, &node, index),
                others
            );
            let theirs = match theirs {
                Err(v1::Error {
                    kind: Some(v1::error::Kind::Busy(_)),
                    ..
                }) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                theirs => theirs?,
            };
            let others: Vec<Held> = others.iter().flatten().map(held).collect();
            let comparison = judge(&held(&own?), &held(&theirs), &others);
            if comparison == Comparison::LeaderDiffers {
                let position = format!("the digest at entry {index} is not that of the other replicas");
                self.store().set_aside(&TreeError::damaged("records", position));
            }
            return Ok(comparison);
        }
        Err(error::unavailable(format!(
            "replica {learner} could not be compared: it is always past the entry asked for"
        )))
    }

    async fn ask_digest(
        &self,
        replica_id: ReplicaId,
        node: &PeerNode,
        index: u64,
    ) -> Result<v1::ReplicaDigest, v1::Error> {
        let request = v1::PeerRequest {
            cluster_id: self.context().cluster_id.clone(),
            from_node_id: self.context().node_id,
            body: Some(peer_request::Body::Digest(v1::DigestRequest {
                shard_id: self.id().shard_id,
                replica_id,
                index,
            })),
            ..Default::default()
        };
        let answer = self
            .context()
            .transport
            .call(&node.addr, request, DIGEST_TIMEOUT)
            .await;
        match answer
            .map_err(|failed| error::unavailable(failed.to_string()))?
            .body
        {
            Some(peer_response::Body::Digest(digest)) if digest.applied_index == index => Ok(digest),
            Some(peer_response::Body::Error(error)) => Err(error),
            _ => Err(error::internal("an answer of another kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_of_the_voters_decides_who_differs() {
        let held = |digest: u8| (vec![digest], 10, 20);
        let (a, b, c) = (held(1), held(2), held(3));
        let of = |others: &[&Held]| others.iter().map(|held| (*held).clone()).collect::<Vec<_>>();
        for (leader, learner, others, comparison) in [
            (&a, &a, of(&[]), Comparison::Equal),
            (&a, &a, of(&[&a]), Comparison::Equal),
            (&a, &a, of(&[&a, &a, &b]), Comparison::Equal),
            (&a, &b, of(&[]), Comparison::LearnerDiffers),
            (&a, &b, of(&[&a]), Comparison::LearnerDiffers),
            (&a, &b, of(&[&b, &b]), Comparison::LeaderDiffers),
            (&a, &a, of(&[&b, &b]), Comparison::LeaderDiffers),
            // The learner may hold only what the leader gave it.
            (&a, &a, of(&[&b]), Comparison::Undecided),
            (&a, &b, of(&[&b]), Comparison::Undecided),
            (&a, &a, of(&[&b, &c]), Comparison::Undecided),
        ] {
            let told = format!("leader {leader:?}, learner {learner:?}, others {others:?}");
            assert_eq!(judge(leader, learner, &others), comparison, "{told}");
        }
    }

    #[test]
    fn records_and_versions_are_compared_as_well() {
        let held = |records, next_version| (vec![1], records, next_version);
        assert_ne!(judge(&held(1, 2), &held(2, 2), &[]), Comparison::Equal);
        assert_ne!(judge(&held(1, 2), &held(1, 3), &[]), Comparison::Equal);
    }
}
