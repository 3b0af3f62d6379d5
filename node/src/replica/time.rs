//! What time it is for a shard, by the clocks of its voters.
//!
//! Every message between nodes says what its sender's clock shows. A node remembers it beside the
//! moment it came, by monotonic time, so a jump of its own clock changes nothing in what it knows of
//! the others'. A leader hears from a majority whenever an entry is committed, so it knows enough
//! clocks as long as it leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reelkv_proto::types::{NodeId, ReplicaId};
use reelkv_proto::v1;

use crate::clock::{Instant, SharedClock, now};
use crate::mutants::Mutant;
use crate::raft::ReplicaStore;
use crate::shard::majority_time;

/// A clock not heard of for this long is not known any more.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// The clocks of this node and of those it hears from.
#[derive(Debug)]
pub struct Clocks {
    node_id: NodeId,
    own: SharedClock,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    wall_ms: u64,
    at: Instant,
}

impl Clocks {
    /// Knows this node's clock only.
    pub fn new(node_id: NodeId, own: SharedClock) -> Self {
        Self {
            node_id,
            own,
            heard: Mutex::default(),
        }
    }

    /// What this node's clock shows, to tell others; milliseconds since 1970.
    pub fn own_ms(&self) -> u64 {
        self.own.wall_ms()
    }

    /// Another node's clock shows this now, or did when it sent what just came. 0 is not told.
    pub fn note(&self, node_id: NodeId, wall_ms: u64) {
        if node_id == 0 || wall_ms == 0 {
            return;
        }
        let heard = Heard { wall_ms, at: now() };
        self.heard.lock().insert(node_id, heard);
    }

    /// The lower median of the nodes' clocks; `None` when most of them are not known.
    pub fn majority_ms(&self, nodes: &[NodeId]) -> Option<u64> {
        if Mutant::TimeOfOneClock.is_on() {
            return Some(self.own.wall_ms());
        }
        let heard = self.heard.lock();
        let shows = |node_id: &NodeId| match heard.get(node_id) {
            _ if *node_id == self.node_id => Some(self.own.wall_ms()),
            Some(heard) if heard.at.elapsed() < HEARD_WITHIN => Some(
                heard
                    .wall_ms
                    .saturating_add(heard.at.elapsed().as_millis() as u64),
            ),
            _ => None,
        };
        majority_time(nodes.len(), nodes.iter().filter_map(shows).collect())
    }
}

/// The time of one shard.
#[derive(Clone)]
pub(super) struct ShardTime {
    pub clocks: Arc<Clocks>,
    pub store: Arc<ReplicaStore>,
}

impl ShardTime {
    /// What most of the shard's voters' clocks say, in milliseconds since 1970; `None` when not
    /// enough of them are known.
    pub fn now_ms(&self) -> Option<u64> {
        let voters = self
            .store
            .with_control(|control| voter_nodes(control.membership()));
        self.clocks.majority_ms(&voters)
    }
}

/// Nodes of the shard's voters, of both sets while they change.
fn voter_nodes(stored: &v1::StoredMembership) -> Vec<NodeId> {
    let Some(membership) = &stored.membership else {
        return Vec::new();
    };
    let mut voters: Vec<ReplicaId> = membership
        .configs
        .iter()
        .flat_map(|config| config.replica_ids.iter().copied())
        .collect();
    voters.sort_unstable();
    voters.dedup();
    let node_of = |id: ReplicaId| membership.members.iter().find(|member| member.replica_id == id);
    let nodes = voters
        .into_iter()
        .map(|id| node_of(id).map_or(0, |member| member.node_id));
    nodes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SimClock};

    const HOUR_MS: u64 = 3_600_000;

    fn clocks() -> (Arc<SimClock>, Clocks) {
        let clock = Arc::new(SimClock::new(1));
        (clock.clone(), Clocks::new(1, clock))
    }

    /// Whether two times are the same, but for the half second the clocks may be apart.
    fn near(one: Option<u64>, other: u64) -> bool {
        one.is_some_and(|one| one.abs_diff(other) <= 500)
    }

    #[tokio::test(start_paused = true)]
    async fn own_clock_alone_is_no_majority_of_three_but_one_of_one() {
        let (clock, clocks) = clocks();
        assert_eq!(clocks.majority_ms(&[]), None);
        assert_eq!(clocks.majority_ms(&[1]), Some(clock.wall_ms()));
        assert_eq!(
            clocks.majority_ms(&[2]),
            None,
            "a shard this node has no voter of"
        );
        assert_eq!(clocks.majority_ms(&[1, 2, 3]), None);
        clocks.note(0, clock.wall_ms());
        clocks.note(2, 0);
        assert_eq!(clocks.majority_ms(&[1, 2, 3]), None);
        clocks.note(2, clock.wall_ms());
        assert!(near(clocks.majority_ms(&[1, 2, 3]), clock.wall_ms()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_any_one_clock_of_three_moves_nothing() {
        for by_ms in [HOUR_MS as i64, -(HOUR_MS as i64)] {
            let (clock, clocks) = clocks();
            let right = clock.wall_ms();
            clocks.note(2, right);
            clocks.note(3, right + 100);
            clock.jump_ms(by_ms);
            assert!(near(clocks.majority_ms(&[1, 2, 3]), right), "own, by {by_ms}");

            clock.jump_ms(-by_ms);
            clocks.note(2, right.saturating_add_signed(by_ms));
            assert!(
                near(clocks.majority_ms(&[1, 2, 3]), right),
                "another's, by {by_ms}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_goes_on_and_is_forgotten_after_ten_seconds() {
        let (clock, clocks) = clocks();
        let began = clock.wall_ms();
        clocks.note(2, began);
        clocks.note(3, began);
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(near(clocks.majority_ms(&[2, 3]), began + 9_000));
        clocks.note(3, began + 9_000);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(clocks.majority_ms(&[2, 3]), None, "node 2 is silent");
        assert!(near(clocks.majority_ms(&[1, 2, 3]), began + 10_000));
    }

    #[test]
    fn voters_of_both_sets_count_once_and_learners_never() {
        let member = |replica_id| v1::Member {
            replica_id,
            node_id: replica_id * 10,
            ..Default::default()
        };
        let ids = |replica_ids: &[u64]| v1::membership::ReplicaIds {
            replica_ids: replica_ids.to_vec(),
        };
        let membership = v1::Membership {
            configs: vec![ids(&[1, 2, 3]), ids(&[2, 3, 4])],
            members: [1, 2, 3, 4, 5].map(member).to_vec(),
        };
        let stored = v1::StoredMembership {
            log_id: None,
            membership: Some(membership),
        };
        assert_eq!(voter_nodes(&stored), [10, 20, 30, 40]);
        assert!(voter_nodes(&v1::StoredMembership::default()).is_empty());
    }
}
