//! Keys that were lost everywhere and have been written since: an entry holds all of a key's record,
//! so what was lost of it does not matter any more.

use std::collections::BTreeMap;

use bytes::Bytes;
use reelkv_proto::types::KeyRange;

use crate::shard::Spans;

/// No more keys than these are remembered at a time; others stay unproven until a peer proves them.
const KEYS_MAX: usize = 256;

/// Unproven keys, and the last entry that wrote each.
///
/// Invariant: the tree beside it holds what these entries wrote, and none of its files is bad.
#[derive(Debug, Default)]
pub(super) struct Rewritten(BTreeMap<Bytes, u64>);

impl Rewritten {
    /// The entry `index` has written a key.
    pub fn note(&mut self, key: &Bytes, index: u64) {
        if self.0.len() < KEYS_MAX || self.0.contains_key(key) {
            self.0.insert(key.clone(), index);
        }
    }

    /// Whether no key was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a key was written.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.0.contains_key(key)
    }

    /// All of them.
    pub fn keys(&self) -> Spans {
        self.up_to(u64::MAX)
    }

    /// Those whose last entry is `index` or an earlier one: a tree that holds it proves them.
    pub fn up_to(&self, index: u64) -> Spans {
        let keys = self.0.iter().filter(|(_, entry)| **entry <= index);
        keys.map(|(key, _)| only(key)).collect()
    }

    /// Forgets the keys of `spans`.
    pub fn forget(&mut self, spans: &Spans) {
        self.0.retain(|key, _| !spans.contains(key));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// The range that holds one key.
fn only(key: &Bytes) -> KeyRange {
    KeyRange::new(key.clone(), [&key[..], &[0]].concat())
}
