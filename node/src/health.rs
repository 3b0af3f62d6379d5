//! What the node has noticed about its disks: every damage, from detection to repair.
//!
//! A damage event is a log line, a counter and an entry in `node status`; the ledger below is
//! the one place all three come from.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use reelkv_proto::v1::DamageEvent;

use crate::clock::SharedClock;

/// Most events kept; the oldest repaired ones go first.
const EVENTS_MAX: usize = 1_024;

/// The node's damage ledger.
#[derive(Debug)]
pub struct Health {
    clock: SharedClock,
    events: Mutex<Vec<DamageEvent>>,
    /// Everything ever found, by structure and kind.
    counts: Mutex<BTreeMap<(String, String), u64>>,
}

impl Health {
    /// An empty ledger.
    pub fn new(clock: SharedClock) -> Self {
        Self {
            clock,
            events: Mutex::new(Vec::new()),
            counts: Mutex::default(),
        }
    }

    /// Records damage the moment it is seen. The detection time is filled in here.
    pub fn damaged(&self, mut event: DamageEvent) {
        event.detected_at_ms = self.clock.wall_ms();
        tracing::error!(
            shard_id = event.shard_id,
            replica_id = event.replica_id,
            structure = event.structure,
            position = event.position,
            kind = event.kind,
            action = event.action,
            "damage found"
        );
        *self
            .counts
            .lock()
            .entry((event.structure.clone(), event.kind.clone()))
            .or_default() += 1;
        let mut events = self.events.lock();
        if events.len() >= EVENTS_MAX {
            let oldest = events
                .iter()
                .position(|event| event.repaired_at_ms != 0)
                .unwrap_or(0);
            events.remove(oldest);
        }
        events.push(event);
    }

    /// Marks every open event of a shard's structure as repaired. Returns how many there were.
    pub fn repaired(&self, shard_id: u64, structure: &str) -> usize {
        let now_ms = self.clock.wall_ms();
        let mut events = self.events.lock();
        let open = events
            .iter_mut()
            .filter(|event| is_open_at(event, shard_id, structure));
        let mut repaired = 0;
        for event in open {
            event.repaired_at_ms = now_ms.max(event.detected_at_ms);
            repaired += 1;
        }
        if repaired > 0 {
            tracing::info!(shard_id, structure, repaired, "damage repaired");
        }
        repaired
    }

    /// Whether damage to a shard's structure is known and not repaired.
    pub fn is_open(&self, shard_id: u64, structure: &str) -> bool {
        let events = self.events.lock();
        events.iter().any(|event| is_open_at(event, shard_id, structure))
    }

    /// All events, oldest first.
    pub fn events(&self) -> Vec<DamageEvent> {
        self.events.lock().clone()
    }

    /// How often each kind of damage to each structure was found since the node started.
    pub fn counts(&self) -> BTreeMap<(String, String), u64> {
        self.counts.lock().clone()
    }

    /// Damage seen and not yet repaired.
    pub fn open_count(&self) -> usize {
        self.events
            .lock()
            .iter()
            .filter(|event| event.repaired_at_ms == 0)
            .count()
    }
}

fn is_open_at(event: &DamageEvent, shard_id: u64, structure: &str) -> bool {
    event.shard_id == shard_id && event.structure == structure && event.repaired_at_ms == 0
}
