//! The events in memory.

use std::collections::BTreeMap;

use reelkv_proto::types::{ReplicaId, ShardId};
use reelkv_proto::v1::DamageEvent;

use super::file::Owner;
use super::{Damage, Kind, Structure, is_open};

/// Most events kept; the oldest repaired ones go first.
pub(super) const EVENTS_MAX: usize = 1_024;

/// Upper bounds of the times a repair may take, in milliseconds; what takes longer counts in none.
const BUCKETS_MS: [u64; 7] = [100, 1_000, 5_000, 30_000, 120_000, 600_000, 3_600_000];

/// How long repairs took, from detection on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// How many there were.
    pub count: u64,
    /// All together, in milliseconds.
    pub sum_ms: u64,
    within: [u64; BUCKETS_MS.len()],
}

impl Repairs {
    fn observe(&mut self, took_ms: u64) {
        self.count += 1;
        self.sum_ms = self.sum_ms.saturating_add(took_ms);
        if let Some(bucket) = BUCKETS_MS.iter().position(|bound| took_ms <= *bound) {
            self.within[bucket] += 1;
        }
    }

    /// Upper bounds, in milliseconds, and how many repairs took that long and longer than the bound
    /// before; the last one is without bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let bounded: u64 = self.within.iter().sum();
        let within = BUCKETS_MS.iter().zip(&self.within);
        let within = within.map(|(bound, count)| (Some(*bound), *count));
        within.chain([(None, self.count - bounded)])
    }
}

/// Which open events are closed.
#[derive(Clone, Debug)]
pub(super) enum Which {
    /// One.
    Same(Damage),
    /// Those of a shard's structure.
    Structure { shard_id: ShardId, structure: Structure },
    /// Those of an earlier run that were not found again.
    CarriedOver {
        shard_id: ShardId,
        replica_id: ReplicaId,
        structure: Structure,
    },
    /// Those of a replica.
    Replica {
        shard_id: ShardId,
        replica_id: ReplicaId,
    },
    /// Those of any replica.
    AllReplicas,
}

#[derive(Clone, Debug)]
struct Entry {
    event: DamageEvent,
    /// Open since an earlier run, and not found again in this one.
    carried_over: bool,
}

/// The events. Invariants: at most `EVENTS_MAX`; an event is repaired no earlier than it was
/// detected, and never opened again.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: Vec<Entry>,
    /// Everything found in this run.
    pub counts: BTreeMap<(Structure, Kind), u64>,
    pub repairs: Repairs,
    pub owner: Owner,
    /// Grows with everything that the file should say.
    pub changes: u64,
}

impl Ledger {
    /// What an earlier run left.
    pub fn carried_over(events: Vec<DamageEvent>, owner: Owner) -> Self {
        let entry = |event: DamageEvent| Entry {
            carried_over: is_open(&event),
            event,
        };
        Self {
            entries: events.into_iter().map(entry).collect(),
            owner,
            ..Self::default()
        }
    }

    pub fn events(&self) -> impl Iterator<Item = &DamageEvent> {
        self.entries.iter().map(|entry| &entry.event)
    }

    pub fn set_owner(&mut self, owner: Owner) {
        self.changes += u64::from(self.owner != owner);
        self.owner = owner;
    }

    pub fn add(&mut self, damage: &Damage, now_ms: u64) {
        *self.counts.entry((damage.structure, damage.kind)).or_default() += 1;
        let known = self
            .entries
            .iter_mut()
            .find(|entry| is_same(&entry.event, damage));
        if let Some(known) = known {
            known.carried_over = false;
            return;
        }
        if self.entries.len() >= EVENTS_MAX {
            let repaired = self.entries.iter().position(|entry| !is_open(&entry.event));
            self.entries.remove(repaired.unwrap_or(0));
        }
        self.entries.push(Entry {
            event: DamageEvent {
                node_id: self.owner.node_id,
                shard_id: damage.shard_id,
                replica_id: damage.replica_id,
                structure: damage.structure.word().to_owned(),
                position: damage.position.clone(),
                kind: damage.kind.word().to_owned(),
                action: damage.action.word().to_owned(),
                // 0 would mean that it is not known.
                detected_at_ms: now_ms.max(1),
                repaired_at_ms: 0,
            },
            carried_over: false,
        });
        self.changes += 1;
    }

    /// Returns what was closed.
    pub fn close(&mut self, which: &Which, now_ms: u64) -> Vec<DamageEvent> {
        let mut closed = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| which.means(entry)) {
            // The clock may have gone back in between.
            entry.event.repaired_at_ms = now_ms.max(entry.event.detected_at_ms);
            entry.carried_over = false;
            self.repairs
                .observe(entry.event.repaired_at_ms - entry.event.detected_at_ms);
            closed.push(entry.event.clone());
        }
        self.changes += closed.len() as u64;
        closed
    }
}

impl Which {
    fn means(&self, entry: &Entry) -> bool {
        let event = &entry.event;
        let of =
            |shard: &ShardId, replica: &ReplicaId| (event.shard_id, event.replica_id) == (*shard, *replica);
        is_open(event)
            && match self {
                Self::Same(damage) => is_same(event, damage),
                Self::Structure { shard_id, structure } => {
                    event.shard_id == *shard_id && event.structure == structure.word()
                }
                Self::CarriedOver {
                    shard_id,
                    replica_id,
                    structure,
                } => entry.carried_over && of(shard_id, replica_id) && event.structure == structure.word(),
                Self::Replica { shard_id, replica_id } => of(shard_id, replica_id),
                Self::AllReplicas => event.replica_id != 0,
            }
    }
}

/// Whether an open event is of this very damage.
fn is_same(event: &DamageEvent, damage: &Damage) -> bool {
    is_open(event)
        && (event.shard_id, event.replica_id) == (damage.shard_id, damage.replica_id)
        && event.structure == damage.structure.word()
        && event.kind == damage.kind.word()
        && event.position == damage.position
}

#[cfg(test)]
mod tests {
    use super::super::Action;
    use super::*;

    fn tree(shard_id: ShardId, position: &str) -> Damage {
        Damage::of_replica(
            (shard_id, 1),
            Structure::Tree,
            Kind::Checksum,
            Action::Refill,
            position,
        )
    }

    fn open(ledger: &Ledger) -> Vec<&str> {
        let open = ledger.events().filter(|event| is_open(event));
        open.map(|event| event.position.as_str()).collect()
    }

    #[test]
    fn what_is_found_twice_is_one_event_and_counts_twice() {
        let mut ledger = Ledger::default();
        ledger.add(&tree(2, "a"), 10);
        ledger.add(&tree(2, "a"), 20);
        ledger.add(&tree(2, "b"), 30);
        assert_eq!(open(&ledger), ["a", "b"]);
        assert_eq!(ledger.events().next().unwrap().detected_at_ms, 10);
        assert_eq!(ledger.counts[&(Structure::Tree, Kind::Checksum)], 3);
        ledger.close(&Which::Same(tree(2, "a")), 40);
        ledger.add(&tree(2, "a"), 50);
        assert_eq!(open(&ledger), ["b", "a"], "after a repair it is damage anew");
    }

    #[test]
    fn what_was_carried_over_is_closed_when_verified_and_what_was_found_again_is_not() {
        let mut before = Ledger::default();
        for position in ["a", "b"] {
            before.add(&tree(2, position), 10);
        }
        before.add(&tree(3, "c"), 10);
        let mut ledger = Ledger::carried_over(before.events().cloned().collect(), Owner::default());
        assert_eq!(open(&ledger), ["a", "b", "c"], "a restart closes nothing");
        ledger.add(&tree(2, "b"), 20);
        ledger.add(&tree(2, "d"), 20);
        let verified = Which::CarriedOver {
            shard_id: 2,
            replica_id: 1,
            structure: Structure::Tree,
        };
        let closed = ledger.close(&verified, 30);
        assert_eq!(closed.len(), 1);
        assert_eq!(open(&ledger), ["b", "c", "d"]);
    }

    #[test]
    fn a_replica_that_is_gone_takes_only_its_own_events_along() {
        let mut ledger = Ledger::default();
        let of_successor = Damage {
            replica_id: 9,
            ..tree(2, "b")
        };
        ledger.add(&tree(2, "a"), 10);
        ledger.add(&of_successor, 10);
        let node = Damage::of_node(Structure::Identity, Kind::Checksum, Action::Rejoin, "c");
        ledger.add(&node, 10);
        let gone = Which::Replica {
            shard_id: 2,
            replica_id: 1,
        };
        ledger.close(&gone, 20);
        assert_eq!(open(&ledger), ["b", "c"]);
        ledger.close(&Which::AllReplicas, 30);
        assert_eq!(open(&ledger), ["c"]);
    }

    #[test]
    fn the_ledger_is_bounded_and_forgets_what_is_repaired_first() {
        let mut ledger = Ledger::default();
        ledger.add(&tree(1, "open"), 1);
        for at in 0..2 * EVENTS_MAX {
            let damage = tree(2, &at.to_string());
            ledger.add(&damage, 2);
            ledger.close(&Which::Same(damage), 3);
        }
        assert_eq!(ledger.events().count(), EVENTS_MAX);
        assert_eq!(open(&ledger), ["open"]);
    }

    #[test]
    fn a_repair_takes_no_negative_time_when_the_clock_goes_back() {
        let mut ledger = Ledger::default();
        ledger.add(&tree(1, "a"), 5_000);
        let closed = ledger.close(&Which::AllReplicas, 4_000);
        assert_eq!(closed[0].repaired_at_ms, 5_000);
    }

    #[test]
    fn times_of_repair_are_counted_by_how_long_they_were() {
        let mut repairs = Repairs::default();
        for took_ms in [0, 100, 101, 4_000_000] {
            repairs.observe(took_ms);
        }
        let buckets: Vec<_> = repairs.buckets().collect();
        assert_eq!(buckets[..2], [(Some(100), 2), (Some(1_000), 1)]);
        assert_eq!(buckets.last(), Some(&(None, 1)));
        assert_eq!((repairs.count, repairs.sum_ms), (4, 4_000_201));
    }
}
