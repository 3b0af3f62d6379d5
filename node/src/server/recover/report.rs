//! What is left of a shard, for whoever must decide.

use std::collections::BTreeSet;

use reelkv_proto::types::{META_SHARD, NodeId, ReplicaId, ShardId};
use reelkv_proto::v1;

use super::super::identity::Identity;
use super::Refused;
use super::replica::OfflineReplica;
use super::survey::{Answer, Known};
use crate::shard::LogId;
use crate::wal::Recovery;

/// What this replica has, and what is known of the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The shard.
    pub shard_id: ShardId,
    /// Its replica here.
    pub replica_id: ReplicaId,
    /// This node.
    pub node_id: NodeId,
    /// The last entry that can be read; what others acknowledged beyond it is lost.
    pub last: Option<LogId>,
    /// What this replica knows to be committed: perhaps less than what is.
    pub committed: Option<LogId>,
    /// The entry the tree stands for; what follows is applied from the log.
    pub checkpoint: Option<LogId>,
    /// Live records at that entry.
    pub records: u64,
    /// Entries that a power cut may have torn, and that are cut: how many, and the first.
    pub torn: Option<(usize, LogId)>,
    /// Damage to the log of this node that concerns no replica, or others.
    pub log_damage: Vec<String>,
    /// All voters.
    pub voters: Vec<VoterReport>,
    /// The highest term that is known of the shard.
    pub highest_term: u64,
}

/// A voter of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct VoterReport {
    /// Its id.
    pub replica_id: ReplicaId,
    /// Where it lives.
    pub node_id: NodeId,
    /// host:port of its node.
    pub addr: String,
    /// How it is.
    pub state: VoterState,
}

/// How a voter is.
#[derive(Clone, Debug, PartialEq)]
pub enum VoterState {
    /// The one that was examined.
    This,
    /// Its node answers and has it.
    There {
        /// As its node calls it.
        state: String,
        /// Its last entry; `None` while it does not run.
        last: Option<LogId>,
    },
    /// Its node answers and does not have it any more.
    Gone,
    /// Its node does not answer, or was not asked: it is declared lost with all that it has.
    Lost {
        /// What was tried.
        why: String,
    },
}

impl Report {
    pub(super) fn of(
        identity: Identity,
        replica: &OfflineReplica,
        recovery: &Recovery,
        known: &Known,
    ) -> Self {
        let id = replica.group.id();
        let members = &replica.membership.members;
        let voters = voter_ids(&replica.membership).into_iter().map(|voter| {
            let member = members.iter().find(|member| member.replica_id == voter);
            let member = member.cloned().unwrap_or_default();
            let state = match known.answers.get(&voter) {
                _ if voter == id.replica_id => VoterState::This,
                None => VoterState::Lost {
                    why: "not asked".to_owned(),
                },
                Some(Answer::Silent(why)) => VoterState::Lost { why: why.clone() },
                Some(Answer::Lacks) => VoterState::Gone,
                Some(Answer::Runs(status)) => VoterState::There {
                    state: status.state.clone(),
                    last: last_entry(status),
                },
            };
            VoterReport {
                replica_id: voter,
                node_id: member.node_id,
                addr: member.addr,
                state,
            }
        });
        let other_terms = known.answers.values().map(|answer| match answer {
            Answer::Runs(status) => status.term.max(status.last_log_term),
            Answer::Lacks | Answer::Silent(_) => 0,
        });
        let own_terms = [
            replica.group.vote().map_or(0, |vote| vote.term),
            replica.group.last().map_or(0, |last| last.term),
            replica.control.applied().map_or(0, |applied| applied.term),
        ];
        Self {
            shard_id: id.shard_id,
            replica_id: id.replica_id,
            node_id: identity.node_id,
            last: replica.last.max(replica.control.applied()),
            committed: replica.group.committed(),
            checkpoint: replica.control.applied(),
            records: replica.records,
            torn: replica.torn.first().map(|first| (replica.torn.len(), *first)),
            log_damage: recovery
                .damage
                .iter()
                .map(|damage| format!("{} at {}: {}", damage.segment, damage.offset, damage.what))
                .collect(),
            voters: voters.collect(),
            highest_term: other_terms.chain(own_terms).max().unwrap_or(0),
        }
    }

    /// Refuses while the shard can help itself, or another voter has more.
    pub(super) fn check_quorum(&self, replica: &OfflineReplica) -> Result<(), Refused> {
        let shard = self.shard_id;
        if self.voters.len() == 1 {
            return Err(Refused(format!(
                "shard {shard}: this replica is its only voter already; start the node"
            )));
        }
        let there: BTreeSet<ReplicaId> = self
            .voters
            .iter()
            .filter(|voter| matches!(voter.state, VoterState::This | VoterState::There { .. }))
            .map(|voter| voter.replica_id)
            .collect();
        let has_majority = |config: &v1::membership::ReplicaIds| {
            let here = config.replica_ids.iter().filter(|id| there.contains(id)).count();
            here > config.replica_ids.len() / 2
        };
        if replica.membership.configs.iter().all(has_majority) {
            return Err(Refused(format!(
                "shard {shard}: {} of its {} voters are there with this one, which is a majority; start the node",
                there.len(),
                self.voters.len()
            )));
        }
        for voter in &self.voters {
            let VoterState::There { state, last } = &voter.state else {
                continue;
            };
            let (id, node) = (voter.replica_id, voter.node_id);
            match last {
                None => {
                    return Err(Refused(format!(
                        "shard {shard}: replica {id} on node {node} is {state}: whether it has more cannot be told; \
                         stop that node and compare the reports of both, or use --offline"
                    )));
                }
                Some(theirs) if Some(*theirs) > self.last => {
                    return Err(Refused(format!(
                        "shard {shard}: replica {id} on node {node} has more, up to {}; recover that one",
                        entry_text(*last)
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Whether it is the shard that holds the map of the cluster.
    pub fn is_meta(&self) -> bool {
        self.shard_id == META_SHARD
    }

    /// Voters that will not be any more.
    pub fn lost_voters(&self) -> impl Iterator<Item = &VoterReport> {
        let others = self.voters.iter();
        others.filter(|voter| voter.state != VoterState::This)
    }

    /// Nodes that are declared lost with everything on them.
    pub fn lost_nodes(&self) -> BTreeSet<NodeId> {
        let lost = self.voters.iter();
        let lost = lost.filter(|voter| matches!(voter.state, VoterState::Lost { .. }));
        lost.map(|voter| voter.node_id).collect()
    }

    pub(super) fn lost_voters_text(&self) -> String {
        let text = |voter: &VoterReport| format!("replica {} on node {}", voter.replica_id, voter.node_id);
        self.lost_voters().map(text).collect::<Vec<_>>().join(", ")
    }
}

fn voter_ids(membership: &v1::Membership) -> BTreeSet<ReplicaId> {
    let configs = membership.configs.iter();
    configs
        .flat_map(|config| config.replica_ids.iter().copied())
        .collect()
}

/// A replica that does not run says nothing of its log.
fn last_entry(status: &v1::ReplicaStatus) -> Option<LogId> {
    let runs = !["starting", "healing"].contains(&status.state.as_str());
    runs.then(|| LogId::new(status.last_log_term, status.last_log_index))
}

pub(super) fn entry_text(entry: Option<LogId>) -> String {
    entry.map_or_else(|| "no entry".to_owned(), |entry| format!("entry {entry}"))
}
