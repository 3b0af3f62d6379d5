//! Compares what replicas hold at one and the same entry, before a learner becomes a voter.
//!
//! A learner's records were checked one by one, their count and sum as well; what the comparison
//! adds is that the replica they came from may have lost some without a trace. Who is wrong is
//! decided by a majority of the voters, never by rank: the leader itself may be. Without one nothing
//! is changed: the shard is named, and its learner stays one.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reelkv_proto::types::ReplicaId;
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::Replica;
use super::replica::refilling;
use crate::error;
use crate::raft::{PeerNode, Trust};
use crate::shard::{Command, Control};
use crate::storage::{TreeError, View};

/// How long a replica may take to reach the entry.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading all of a replica may take.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(300);
/// The entry compared at lies this many ahead, so that nobody has passed it when the question
/// arrives; twice as many at each further attempt.
const AHEAD_MIN: u64 = 8;
const ATTEMPTS: u32 = 10;
/// Pause between entries that fill the log up to there when nobody writes.
const FILL_PAUSE: Duration = Duration::from_millis(2);

/// What a comparison at one entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The learner holds what the voters hold.
    Equal,
    /// The learner is not like the voters.
    LearnerDiffers,
    /// Most voters hold something else than the leader.
    LeaderDiffers,
    /// No majority of the voters holds the same, or too few answered.
    Undecided,
}

/// What is compared: everything but the entry's place.
type Held = (Vec<u8>, u64, u64);

fn held(digest: &v1::ReplicaDigest) -> Held {
    (digest.digest.to_vec(), digest.records, digest.next_version)
}

/// Only voters count, for a learner was filled from one of them; and only a majority of all of
/// them, whether or not they answered.
fn judge(leader: &Held, learner: &Held, others: &[Held], voters: usize) -> Comparison {
    let mut votes: BTreeMap<&Held, usize> = BTreeMap::new();
    for voter in others.iter().chain([leader]) {
        *votes.entry(voter).or_default() += 1;
    }
    match votes.into_iter().find(|(_, count)| count * 2 > voters) {
        Some((majority, _)) if majority != leader => Comparison::LeaderDiffers,
        Some((majority, _)) if majority != learner => Comparison::LearnerDiffers,
        Some(_) => Comparison::Equal,
        None => Comparison::Undecided,
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
            None if self.store().trust() != Trust::Trusted => Err(refilling(self.id().shard_id)),
            None => Err(error::busy(0, "the replica is past that entry")),
        }
    }

    async fn digest_of(&self, view: View, control: &Control) -> Result<v1::ReplicaDigest, v1::Error> {
        let sum = view.digest().await.map_err(|damage| {
            self.store().found(&damage);
            refilling(self.id().shard_id)
        })?;
        Ok(v1::ReplicaDigest {
            applied_index: control.applied().map_or(0, |applied| applied.index),
            digest: sum.digest.to_be_bytes().to_vec().into(),
            records: sum.records,
            next_version: control.next_version(),
        })
    }

    /// Compares a learner of this leader with it and with the other voters.
    ///
    /// # Errors
    /// `Unavailable` when the learner cannot be asked, or its tree or the leader's is not trusted.
    pub async fn compare(&self, learner: ReplicaId) -> Result<Comparison, v1::Error> {
        let mut ahead = AHEAD_MIN;
        for _ in 0..ATTEMPTS {
            match self.compare_ahead(learner, ahead).await {
                Err(v1::Error {
                    kind: Some(Kind::Busy(_)),
                    ..
                }) => ahead *= 2,
                outcome => return outcome,
            }
        }
        Err(error::unavailable(format!(
            "replica {learner} could not be compared: some replica is always past the entry asked for"
        )))
    }

    /// One attempt; `Busy` when some replica had passed the entry already.
    async fn compare_ahead(&self, learner: ReplicaId, ahead: u64) -> Result<Comparison, v1::Error> {
        let index = crate::raft::metrics(self.raft()).last_log_index.unwrap_or(0) + ahead;
        let members = self.members();
        if !members.contains_key(&learner) {
            return Err(error::invalid("replica_id", "no such member"));
        }
        let own = self.id().replica_id;
        let voting = |role: &v1::ReplicaRole| *role == v1::ReplicaRole::Voter;
        let voters = members.values().filter(|(_, role)| voting(role)).count();
        let asked = members
            .iter()
            .filter(|(id, (_, role))| voting(role) || **id == learner);
        let mut answers: FuturesUnordered<_> = asked
            .map(|(id, (node, _))| async move {
                let answer = match *id == own {
                    true => self.digest_at(index).await,
                    false => self.ask_digest(*id, node, index).await,
                };
                (*id, answer)
            })
            .collect();
        let gather = async {
            let mut all = BTreeMap::new();
            while let Some((id, answer)) = answers.next().await {
                match answer {
                    Ok(digest) => {
                        all.insert(id, held(&digest));
                    }
                    // A voter that cannot say what it holds has no say.
                    Err(error) if id != own && id != learner && !is_busy(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(all)
        };
        tokio::pin!(gather);
        let all = tokio::select! {
            biased;
            all = &mut gather => all,
            () = self.fill_log_to(index) => gather.await,
        };
        let mut all = all?;
        let (Some(leader), Some(theirs)) = (all.remove(&own), all.remove(&learner)) else {
            return Err(error::unavailable("the leader is no voter any more"));
        };
        let others: Vec<Held> = all.into_values().collect();
        let comparison = judge(&leader, &theirs, &others, voters);
        if comparison == Comparison::LeaderDiffers {
            let position = format!("the digest at entry {index} is not that of the other voters");
            self.store().set_aside(&TreeError::damaged("records", position));
        }
        Ok(comparison)
    }

    /// Proposes entries that change nothing until the log has reached an index.
    async fn fill_log_to(&self, index: u64) {
        // Performed in no term: see `Control::apply`.
        let nothing = || Command::new(v1::EntryBody::default());
        while crate::raft::metrics(self.raft()).last_log_index.unwrap_or(0) < index {
            if self.raft().client_write(nothing()).await.is_err() {
                return; // no leader any more: the wait for the entry ends by itself
            }
            tokio::time::sleep(FILL_PAUSE).await;
        }
    }

    async fn ask_digest(
        &self,
        replica_id: ReplicaId,
        node: &PeerNode,
        index: u64,
    ) -> Result<v1::ReplicaDigest, v1::Error> {
        let request = peer_request::Body::Digest(v1::DigestRequest {
            shard_id: self.id().shard_id,
            replica_id,
            index,
        });
        match self.context().ask(&node.addr, request, DIGEST_TIMEOUT).await? {
            peer_response::Body::Digest(digest) if digest.applied_index == index => Ok(digest),
            _ => Err(error::internal("an answer of another kind")),
        }
    }
}

fn is_busy(error: &v1::Error) -> bool {
    matches!(error.kind, Some(Kind::Busy(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_of_all_voters_decides_who_differs() {
        let held = |digest: u8| (vec![digest], 10, 20);
        let (a, b, c) = (held(1), held(2), held(3));
        let of = |others: &[&Held]| others.iter().map(|held| (*held).clone()).collect::<Vec<_>>();
        for (leader, learner, others, voters, comparison) in [
            (&a, &a, of(&[]), 1, Comparison::Equal),
            (&a, &b, of(&[]), 1, Comparison::LearnerDiffers),
            (&a, &a, of(&[&a]), 3, Comparison::Equal),
            (&a, &b, of(&[&a]), 3, Comparison::LearnerDiffers),
            (&a, &b, of(&[&b, &b]), 3, Comparison::LeaderDiffers),
            (&a, &a, of(&[&b, &b]), 3, Comparison::LeaderDiffers),
            (&a, &a, of(&[&a, &b]), 3, Comparison::Equal),
            // The learner may hold only what the leader gave it.
            (&a, &a, of(&[&b]), 3, Comparison::Undecided),
            (&a, &b, of(&[&b]), 3, Comparison::Undecided),
            (&a, &a, of(&[&b, &c]), 3, Comparison::Undecided),
            // So it may when the others do not answer.
            (&a, &a, of(&[]), 3, Comparison::Undecided),
            (&a, &a, of(&[&a]), 5, Comparison::Undecided),
        ] {
            let told = format!("leader {leader:?}, learner {learner:?}, others {others:?} of {voters}");
            assert_eq!(judge(leader, learner, &others, voters), comparison, "{told}");
        }
    }

    #[test]
    fn records_and_versions_are_compared_as_well() {
        let held = |records, next_version| (vec![1], records, next_version);
        assert_ne!(judge(&held(1, 2), &held(2, 2), &[], 1), Comparison::Equal);
        assert_ne!(judge(&held(1, 2), &held(1, 3), &[], 1), Comparison::Equal);
    }
}
