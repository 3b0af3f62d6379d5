//! What the node has noticed about its disks: every damage, from detection to repair.
//!
//! A damage event is a log line, a counter and an entry in `node status`; the ledger below is
//! the one place all three come from. It is kept in the data directory ([`file`]) and outlives
//! restarts: what was repaired stays told, with its time of repair.
//!
//! An event that was open when the node stopped is *carried over*. It stays open until what it names
//! is found again (the event then goes on), verified whole, repaired, or gone: never because of the
//! restart itself.

mod damage;
mod file;
mod keep;
mod kept;
mod ledger;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use reelkv_proto::types::{NodeId, ReplicaId, ShardId};
use reelkv_proto::v1::DamageEvent;
use tokio::sync::Notify;

pub use damage::{Action, Damage, Kind, Structure};
pub use file::Owner;
pub(crate) use kept::KeptFile;
pub use ledger::Repairs;
use ledger::{Ledger, Which};

use crate::clock::SharedClock;
use crate::disk::SharedDisk;

/// The node's damage ledger.
#[derive(Debug)]
pub struct Health {
    clock: SharedClock,
    ledger: Mutex<Ledger>,
    /// Something is to be written.
    changed: Notify,
    place: Option<keep::Place>,
}

impl Health {
    /// A ledger in memory only: for a part of a node that is looked at alone.
    pub fn new(clock: SharedClock) -> Self {
        Self {
            clock,
            ledger: Mutex::default(),
            changed: Notify::new(),
            place: None,
        }
    }

    /// The ledger of a data directory. A file that is not as it was written is told in the ledger, and
    /// never keeps a node from starting: its good records are kept.
    ///
    /// `owner` is who the node is, if it knows.
    pub fn open(disk: SharedDisk, path: PathBuf, clock: SharedClock, owner: Option<Owner>) -> Arc<Self> {
        let loaded = file::load(&*disk, &path, owner);
        let place = keep::Place::new(disk, path, &loaded);
        let mut ledger = Ledger::carried_over(loaded.events, loaded.owner);
        ledger.set_owner(owner.unwrap_or(loaded.owner));
        let health = Self {
            clock,
            ledger: Mutex::new(ledger),
            changed: Notify::new(),
            place: Some(place),
        };
        if let Some((kind, position)) = loaded.damage {
            let damage = Damage::of_node(Structure::Events, kind, Action::SetAside, position);
            health.repaired_at_once(damage);
        }
        // An earlier run could not write; if this one cannot either, it says so itself.
        health.verified(0, 0, Structure::Events);
        Arc::new(health)
    }

    /// The node has been given, or has found, its place in a cluster.
    pub fn belongs_to(&self, owner: Owner) {
        self.change(|ledger| ledger.set_owner(owner));
    }

    /// The node's place is lost, and its data is set aside: whatever of it was damaged is no more in
    /// use. What concerns the node itself stays open until it has a new place.
    pub fn set_aside(&self) {
        self.close(Which::AllReplicas);
        self.change(|ledger| ledger.set_owner(Owner::default()));
    }

    /// Records damage the moment it is seen. Seen again while it is open, it is the same event.
    pub fn damaged(&self, damage: Damage) {
        tracing::error!(
            node_id = self.node_id(),
            shard_id = damage.shard_id,
            replica_id = damage.replica_id,
            structure = damage.structure.word(),
            position = damage.position,
            kind = damage.kind.word(),
            action = damage.action.word(),
            "damage found"
        );
        let now_ms = self.clock.wall_ms();
        self.change(|ledger| ledger.add(&damage, now_ms));
    }

    /// Records damage that was made good the moment it was seen.
    pub fn repaired_at_once(&self, damage: Damage) {
        self.damaged(damage.clone());
        self.repaired_same(damage);
    }

    /// Marks one damage as repaired.
    pub fn repaired_same(&self, damage: Damage) {
        self.close(Which::Same(damage));
    }

    /// Marks every open event of a shard's structure as repaired.
    pub fn repaired(&self, shard_id: ShardId, structure: Structure) {
        self.close(Which::Structure { shard_id, structure });
    }

    /// What was carried over of a replica's structure, and not found again, is whole.
    pub fn verified(&self, shard_id: ShardId, replica_id: ReplicaId, structure: Structure) {
        self.close(Which::CarriedOver {
            shard_id,
            replica_id,
            structure,
        });
    }

    /// A replica is no more; what was damaged is gone with it.
    pub fn gone(&self, shard_id: ShardId, replica_id: ReplicaId) {
        self.close(Which::Replica { shard_id, replica_id });
    }

    /// Replicas that this node does not have any more; `lives` says whether it has one.
    pub fn gone_unless(&self, lives: impl Fn(ShardId, ReplicaId) -> bool) {
        let open = self.open_events();
        let of_replica = open.iter().filter(|event| event.replica_id != 0);
        for event in of_replica.filter(|event| !lives(event.shard_id, event.replica_id)) {
            self.gone(event.shard_id, event.replica_id);
        }
    }

    fn close(&self, which: Which) {
        let now_ms = self.clock.wall_ms();
        let closed = self.change(|ledger| ledger.close(&which, now_ms));
        for event in closed {
            tracing::info!(
                node_id = event.node_id,
                shard_id = event.shard_id,
                replica_id = event.replica_id,
                structure = event.structure,
                position = event.position,
                kind = event.kind,
                action = event.action,
                after_ms = event.repaired_at_ms - event.detected_at_ms,
                "damage repaired"
            );
        }
    }

    fn change<T>(&self, how: impl FnOnce(&mut Ledger) -> T) -> T {
        let outcome = how(&mut self.ledger.lock());
        self.changed.notify_one();
        outcome
    }

    /// Whether damage to a shard's structure is known and not repaired.
    pub fn is_open(&self, shard_id: ShardId, structure: Structure) -> bool {
        let structure = structure.word();
        let of_it = |event: &DamageEvent| event.shard_id == shard_id && event.structure == structure;
        self.open_events().iter().any(of_it)
    }

    /// All events, oldest first.
    pub fn events(&self) -> Vec<DamageEvent> {
        self.ledger.lock().events().cloned().collect()
    }

    /// Damage seen and not yet repaired, oldest first.
    pub fn open_events(&self) -> Vec<DamageEvent> {
        let ledger = self.ledger.lock();
        ledger.events().filter(|event| is_open(event)).cloned().collect()
    }

    /// How often each kind of damage to each structure was found since the node started.
    pub fn counts(&self) -> BTreeMap<(Structure, Kind), u64> {
        self.ledger.lock().counts.clone()
    }

    /// How long repairs took that ended since the node started.
    pub fn repairs(&self) -> Repairs {
        self.ledger.lock().repairs
    }

    /// Damage seen and not yet repaired.
    pub fn open_count(&self) -> usize {
        let ledger = self.ledger.lock();
        ledger.events().filter(|event| is_open(event)).count()
    }

    /// The node's number; 0 while it has none.
    pub fn node_id(&self) -> NodeId {
        self.ledger.lock().owner.node_id
    }
}

/// Whether an event's damage is not repaired yet.
pub fn is_open(event: &DamageEvent) -> bool {
    event.repaired_at_ms == 0
}
