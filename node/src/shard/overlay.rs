//! The newest effects of a shard, proposed but perhaps not yet applied.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use reelkv_proto::types::{KeyRange, Version};

use crate::mutants::Mutant;

/// Applied effects kept so that reads made a moment ago stay usable.
const APPLIED_KEPT: usize = 4_096;

/// The newest effect on each key among the shard's last effects.
///
/// Invariants: holds every effect with a version above `floor`, and no other; so what a view at
/// version v ≥ `floor` says of a key holds now unless the overlay knows a newer effect on it.
#[derive(Debug)]
pub(super) struct Overlay {
    floor: Version,
    newest: HashMap<Bytes, Effect>,
    order: VecDeque<(Version, Bytes)>,
}

/// The newest effect on a key.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub version: Version,
    /// `None` for a delete.
    pub value: Option<Bytes>,
    /// When a put expires, in logged time; 0 when it does not.
    pub expires_at_ms: u64,
}

impl Overlay {
    /// Knows nothing after `floor`, the last effect of the applied state.
    pub fn new(floor: Version) -> Self {
        Self {
            floor,
            newest: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Adds the next effect.
    pub fn insert(&mut self, key: Bytes, effect: Effect) {
        let version = effect.version;
        debug_assert!(self.order.back().is_none_or(|(last, _)| *last < version));
        self.order.push_back((version, key.clone()));
        self.newest.insert(key, effect);
    }

    /// The newest effect on a key, if it is one of the last.
    pub fn get(&self, key: &[u8]) -> Option<&Effect> {
        self.newest.get(key)
    }

    /// Whether a read at this version, together with the overlay, tells the present.
    pub fn completes(&self, read_at: Version) -> bool {
        read_at >= self.floor || Mutant::PrefetchAcrossCheckpoint.is_on()
    }

    /// Whether a put above `version` lies in the range.
    pub fn any_put_in(&self, range: &KeyRange, version: Version) -> bool {
        self.newest
            .iter()
            .any(|(key, effect)| effect.version > version && effect.value.is_some() && range.contains(key))
    }

    /// Forgets effects that are applied and not needed for recent reads.
    pub fn trim(&mut self, applied: Version) {
        while self.order.len() > APPLIED_KEPT
            && self.order.front().is_some_and(|(version, _)| *version <= applied)
        {
            let Some((version, key)) = self.order.pop_front() else {
                break;
            };
            self.floor = version;
            if self
                .newest
                .get(&key)
                .is_some_and(|effect| effect.version == version)
            {
                self.newest.remove(&key);
            }
        }
    }
}
