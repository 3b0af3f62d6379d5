//! Identifiers, key ranges and stored keys: what client and node must read the same way.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::v1;

/// Number of a server process and its data directory; never reused in a cluster.
pub type NodeId = u64;
/// Number of a shard; never reused in a cluster.
pub type ShardId = u64;
/// Number of a replica; never reused in its shard.
pub type ReplicaId = u64;
/// Number of a keyspace; never reused in a cluster.
pub type KeyspaceId = u32;
/// Number of an effect in its shard; starts at 1, strictly increasing, never reused.
pub type Version = u64;

/// The shard that holds the directory of all others.
pub const META_SHARD: ShardId = 1;
/// The keyspace the directory is stored in; no user keyspace has this id.
pub const SYSTEM_KEYSPACE: KeyspaceId = 0;
/// The first key that belongs to users: keyspace 1, empty user key.
pub const FIRST_USER_KEY: [u8; 4] = [0, 0, 0, 1];
/// Length of the keyspace prefix of a stored key.
pub const KEYSPACE_PREFIX_BYTES: usize = 4;

/// Version of a shard's shape. Ordered by range first: a change of range is what misroutes keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardEpoch {
    /// One more with each change of the range.
    pub range_version: u64,
    /// One more with each change of membership.
    pub conf_version: u64,
}

impl From<v1::ShardEpoch> for ShardEpoch {
    fn from(epoch: v1::ShardEpoch) -> Self {
        Self {
            range_version: epoch.range_version,
            conf_version: epoch.conf_version,
        }
    }
}

impl From<ShardEpoch> for v1::ShardEpoch {
    fn from(epoch: ShardEpoch) -> Self {
        Self {
            range_version: epoch.range_version,
            conf_version: epoch.conf_version,
        }
    }
}

/// A half-open range of stored keys. An empty `end` means no upper bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// First key inside.
    pub start: Bytes,
    /// First key after; empty for no bound.
    pub end: Bytes,
}

impl KeyRange {
    /// The range `[start, end)`.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: end.into(),
        }
    }

    /// The range a descriptor names.
    pub fn of(descriptor: &v1::ShardDescriptor) -> Self {
        Self {
            start: descriptor.start_key.clone(),
            end: descriptor.end_key.clone(),
        }
    }

    /// The whole of a keyspace.
    pub fn of_keyspace(keyspace: KeyspaceId) -> Self {
        let end = keyspace
            .checked_add(1)
            .map_or_else(Bytes::new, |next| stored_key(next, b""));
        Self {
            start: stored_key(keyspace, b""),
            end,
        }
    }

    /// Whether `key` lies inside. The only place that knows what an empty end means.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// Whether all of `other` lies inside.
    pub fn covers(&self, other: &KeyRange) -> bool {
        other.start >= self.start && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end))
    }

    /// What both ranges share; `None` when they are disjoint.
    pub fn intersect(&self, other: &KeyRange) -> Option<KeyRange> {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        (end.is_empty() || start < end).then_some(KeyRange { start, end })
    }
}

/// A user's key as it is stored: the keyspace id, big endian, and the key.
pub fn stored_key(keyspace: KeyspaceId, user_key: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(KEYSPACE_PREFIX_BYTES + user_key.len());
    key.put_u32(keyspace);
    key.put_slice(user_key);
    key.freeze()
}

/// Takes a stored key apart; `None` when it is too short to be one.
pub fn split_stored_key(stored: &[u8]) -> Option<(KeyspaceId, &[u8])> {
    let (prefix, user_key) = stored.split_first_chunk::<KEYSPACE_PREFIX_BYTES>()?;
    Some((KeyspaceId::from_be_bytes(*prefix), user_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_end_has_no_bound() {
        let range = KeyRange::new(&b"b"[..], &b""[..]);
        assert!(!range.contains(b"a"));
        assert!(range.contains(b"b"));
        assert!(range.contains(&[0xff; 8]));
    }

    #[test]
    fn the_last_keyspace_ends_nowhere() {
        assert!(KeyRange::of_keyspace(u32::MAX).end.is_empty());
        assert!(KeyRange::of_keyspace(3).contains(&stored_key(3, b"x")));
        assert!(!KeyRange::of_keyspace(3).contains(&stored_key(4, b"")));
    }

    #[test]
    fn ranges_intersect_as_sets() {
        let all = KeyRange::default();
        let low = KeyRange::new(&b""[..], &b"m"[..]);
        let high = KeyRange::new(&b"m"[..], &b""[..]);
        assert_eq!(all.intersect(&low), Some(low.clone()));
        assert_eq!(low.intersect(&high), None);
        assert!(all.covers(&high) && !low.covers(&all));
    }

    #[test]
    fn stored_keys_come_apart_again() {
        assert_eq!(split_stored_key(&stored_key(9, b"film")), Some((9, &b"film"[..])));
        assert_eq!(split_stored_key(b"abc"), None);
    }
}
