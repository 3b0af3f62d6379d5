//! The routing cache: which shard holds a key, and who was last seen leading it.
//!
//! It is a hint throughout. A request names the shard and epoch it was routed by, so a node that
//! knows better refuses it and says what it knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use reelkv_proto::types::{KeyRange, KeyspaceId, NodeId, ShardEpoch, ShardId};
use reelkv_proto::v1;

/// A node's `host:port`.
pub(crate) type Addr = Arc<str>;

/// What is known of one shard. Replaced, never changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ShardRoute {
    pub(crate) shard_id: ShardId,
    pub(crate) range: KeyRange,
    pub(crate) epoch: ShardEpoch,
    pub(crate) replicas: Vec<(NodeId, Addr)>,
    /// Where its leader was last seen.
    pub(crate) leader: Option<Addr>,
}

impl ShardRoute {
    fn of(descriptor: &v1::ShardDescriptor, nodes: &BTreeMap<NodeId, Addr>) -> Self {
        let addr_of = |replica: &v1::ReplicaDescriptor| match nodes.get(&replica.node_id) {
            Some(addr) => addr.clone(),
            None => Addr::from(replica.addr.as_str()),
        };
        let voters_first = |replica: &&v1::ReplicaDescriptor| replica.role() == v1::ReplicaRole::Learner;
        let mut descriptors: Vec<_> = descriptor.replicas.iter().collect();
        descriptors.sort_by_key(voters_first);
        let replicas: Vec<_> = descriptors
            .into_iter()
            .map(|replica| (replica.node_id, addr_of(replica)))
            .filter(|(_, addr)| !addr.is_empty())
            .collect();
        let leader = replicas
            .iter()
            .find(|(node, _)| *node == descriptor.leader_node_id);
        Self {
            shard_id: descriptor.shard_id,
            range: KeyRange::of(descriptor),
            epoch: descriptor.epoch.unwrap_or_default().into(),
            leader: leader.map(|(_, addr)| addr.clone()),
            replicas,
        }
    }

    fn led_by(&self, leader: Option<Addr>) -> Self {
        Self {
            shard_id: self.shard_id,
            range: self.range.clone(),
            epoch: self.epoch,
            replicas: self.replicas.clone(),
            leader,
        }
    }

    /// What calls have found out beats what a map says, which may be older than the leader.
    fn keep_leader_of(&mut self, known: &Self) {
        let is_member = |leader: &Addr| self.replicas.iter().any(|(_, addr)| addr == leader);
        if self.leader.is_none() || known.leader.as_ref().is_some_and(is_member) {
            self.leader = known.leader.clone();
        }
    }

    /// As it is named in requests.
    pub(crate) fn to_wire(&self) -> v1::Route {
        v1::Route {
            shard_id: self.shard_id,
            epoch: Some(self.epoch.into()),
        }
    }
}

/// Key → shard → leader.
///
/// Every call looks here: nothing it does may take longer the more shards there are.
#[derive(Default)]
pub(crate) struct RoutingCache(Mutex<Map>);

/// Invariants: the ranges of `shards` do not overlap, and each is filed under its own start; `starts`
/// has that start of each of them, and nothing else.
#[derive(Default)]
struct Map {
    version: u64,
    cluster_id: Bytes,
    nodes: BTreeMap<NodeId, Addr>,
    shards: BTreeMap<Bytes, Arc<ShardRoute>>,
    starts: HashMap<ShardId, Bytes>,
    keyspaces: BTreeMap<String, KeyspaceId>,
}

impl RoutingCache {
    /// Takes over a directory, unless it is older than what is known. Of shards it takes only what is news.
    pub(crate) fn install(&self, directory: &v1::Directory) {
        let mut map = self.0.lock();
        if directory.version < map.version {
            return;
        }
        map.version = directory.version;
        map.cluster_id = directory.cluster_id.clone();
        let live = directory
            .nodes
            .iter()
            .filter(|node| !node.retired && !node.addr.is_empty());
        map.nodes = live
            .map(|node| (node.node_id, Addr::from(node.addr.as_str())))
            .collect();
        let keyspaces = directory.keyspaces.iter();
        map.keyspaces = keyspaces
            .map(|keyspace| (keyspace.name.clone(), keyspace.keyspace_id))
            .collect();
        for descriptor in &directory.shards {
            map.learn(descriptor);
        }
    }

    /// Takes over descriptors that a node answered with.
    pub(crate) fn learn(&self, descriptors: &[v1::ShardDescriptor]) {
        let mut map = self.0.lock();
        for descriptor in descriptors {
            map.learn(descriptor);
        }
    }

    /// The shard that holds a stored key, as far as is known.
    pub(crate) fn lookup(&self, stored_key: &[u8]) -> Option<Arc<ShardRoute>> {
        let map = self.0.lock();
        let below = (std::ops::Bound::Unbounded, std::ops::Bound::Included(stored_key));
        let (_, route) = map.shards.range::<[u8], _>(below).next_back()?;
        route.range.contains(stored_key).then(|| route.clone())
    }

    /// Where a shard's leader was last seen.
    pub(crate) fn leader_of(&self, shard: ShardId) -> Option<Addr> {
        let map = self.0.lock();
        map.by_id(shard)?.leader.clone()
    }

    /// Notes where a shard's leader is.
    pub(crate) fn leader_is(&self, shard: ShardId, addr: &str) {
        self.0.lock().replace(shard, |route| {
            (route.leader.as_deref() != Some(addr)).then(|| route.led_by(Some(Addr::from(addr))))
        });
    }

    /// Notes that the node at `addr` does not lead the shard.
    pub(crate) fn leader_is_not(&self, shard: ShardId, addr: &str) {
        self.0.lock().replace(shard, |route| {
            (route.leader.as_deref() == Some(addr)).then(|| route.led_by(None))
        });
    }

    pub(crate) fn keyspace(&self, name: &str) -> Option<KeyspaceId> {
        self.0.lock().keyspaces.get(name).copied()
    }

    /// Name, number and count of shards of every keyspace.
    pub(crate) fn keyspaces(&self) -> Vec<(String, KeyspaceId, usize)> {
        let map = self.0.lock();
        let shards_of = |id| {
            let whole = KeyRange::of_keyspace(id);
            map.shards
                .values()
                .filter(|route| route.range.intersect(&whole).is_some())
                .count()
        };
        map.keyspaces
            .iter()
            .map(|(name, &id)| (name.clone(), id, shards_of(id)))
            .collect()
    }

    /// All nodes known, in the order of their numbers.
    pub(crate) fn nodes(&self) -> Vec<Addr> {
        let map = self.0.lock();
        let mut nodes: Vec<_> = map.nodes.iter().collect();
        nodes.sort();
        nodes.into_iter().map(|(_, addr)| addr.clone()).collect()
    }

    /// Whether a node that belongs to a cluster has been heard.
    pub(crate) fn is_of_a_cluster(&self) -> bool {
        !self.0.lock().cluster_id.is_empty()
    }
}

impl Map {
    /// Files a shard, unless what is known of its range or of itself is newer.
    fn learn(&mut self, descriptor: &v1::ShardDescriptor) {
        let mut route = ShardRoute::of(descriptor, &self.nodes);
        let overlapping = self.overlapping(&route);
        for known in &overlapping {
            let is_newer = match known.shard_id == route.shard_id {
                true => known.epoch > route.epoch,
                false => known.epoch.range_version > route.epoch.range_version,
            };
            if is_newer {
                return;
            }
            if known.shard_id == route.shard_id {
                route.keep_leader_of(known);
            }
        }
        for known in &overlapping {
            self.shards.remove(&known.range.start);
            self.starts.remove(&known.shard_id);
        }
        self.starts.insert(route.shard_id, route.range.start.clone());
        self.shards.insert(route.range.start.clone(), Arc::new(route));
        debug_assert_eq!(self.starts.len(), self.shards.len());
    }

    /// What is known of the shard itself and of others in its range.
    fn overlapping(&self, route: &ShardRoute) -> Vec<Arc<ShardRoute>> {
        let range = &route.range;
        let begins_inside = |known: &&Arc<ShardRoute>| range.end.is_empty() || known.range.start < range.end;
        let inside = self.shards.range(range.start.clone()..).map(|(_, known)| known);
        let before = self.shards.range(..range.start.clone()).next_back();
        let reaches_in = before
            .map(|(_, known)| known)
            .filter(|known| known.range.intersect(range).is_some());
        let mut overlapping: Vec<_> = reaches_in
            .into_iter()
            .chain(inside.take_while(begins_inside))
            .cloned()
            .collect();
        let itself = self.by_id(route.shard_id);
        if let Some(itself) = itself
            && overlapping.iter().all(|known| known.shard_id != route.shard_id)
        {
            overlapping.push(itself.clone());
        }
        overlapping
    }

    fn by_id(&self, shard: ShardId) -> Option<&Arc<ShardRoute>> {
        self.shards.get(self.starts.get(&shard)?)
    }

    fn replace(&mut self, shard: ShardId, change: impl Fn(&ShardRoute) -> Option<ShardRoute>) {
        let start = self.starts.get(&shard);
        if let Some(route) = start.and_then(|start| self.shards.get_mut(start))
            && let Some(changed) = change(route)
        {
            *route = Arc::new(changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: ShardId, range: (&'static str, &'static str), range_version: u64) -> v1::ShardDescriptor {
        let replica = |node_id| v1::ReplicaDescriptor {
            replica_id: node_id,
            node_id,
            addr: format!("node-{node_id}"),
            role: v1::ReplicaRole::Voter.into(),
        };
        v1::ShardDescriptor {
            shard_id: id,
            start_key: range.0.into(),
            end_key: range.1.into(),
            epoch: Some(v1::ShardEpoch {
                conf_version: 1,
                range_version,
            }),
            replicas: (1..=3).map(replica).collect(),
            leader_node_id: 0,
        }
    }

    fn shard_of(cache: &RoutingCache, key: &str) -> Option<ShardId> {
        cache.lookup(key.as_bytes()).map(|route| route.shard_id)
    }

    #[test]
    fn a_key_finds_its_shard_and_a_gap_finds_none() {
        let cache = RoutingCache::default();
        cache.learn(&[
            shard(1, ("", "b"), 1),
            shard(2, ("b", "m"), 1),
            shard(3, ("p", ""), 1),
        ]);
        let found = ["", "a", "b", "lzz", "m", "o", "p", "zz"].map(|key| shard_of(&cache, key));
        assert_eq!(
            found,
            [Some(1), Some(1), Some(2), Some(2), None, None, Some(3), Some(3)]
        );
    }

    #[test]
    fn a_split_replaces_its_parent_in_any_order_and_an_old_map_does_not_bring_it_back() {
        let (left, right) = (shard(1, ("", "m"), 2), shard(9, ("m", ""), 2));
        for news in [[left.clone(), right.clone()], [right, left]] {
            let cache = RoutingCache::default();
            cache.learn(&[shard(1, ("", ""), 1)]);
            cache.learn(&news);
            cache.learn(&[shard(1, ("", ""), 1)]);
            assert_eq!([shard_of(&cache, "a"), shard_of(&cache, "x")], [Some(1), Some(9)]);
        }
    }

    #[test]
    fn a_shard_that_moved_its_bounds_is_known_once() {
        let cache = RoutingCache::default();
        cache.learn(&[
            shard(1, ("", "b"), 1),
            shard(2, ("b", "m"), 1),
            shard(3, ("m", ""), 1),
        ]);
        cache.leader_is(2, "node-2");
        // Its right half became another's: both stand elsewhere than before.
        cache.learn(&[shard(2, ("c", "e"), 2), shard(9, ("e", "z"), 2)]);
        let found = ["a", "b", "c", "e", "n", "z"].map(|key| shard_of(&cache, key));
        assert_eq!(found, [Some(1), None, Some(2), Some(9), Some(9), None]);
        assert_eq!(cache.leader_of(2).as_deref(), Some("node-2"));
        cache.leader_is(2, "node-3");
        assert_eq!(cache.lookup(b"d").unwrap().leader.as_deref(), Some("node-3"));
        assert_eq!(cache.leader_of(3), None, "its range is another's now");
    }

    #[test]
    fn a_leader_is_remembered_until_it_is_known_better() {
        let cache = RoutingCache::default();
        let leader = || cache.lookup(b"k").unwrap().leader.clone();
        cache.learn(&[shard(1, ("", ""), 1)]);
        assert_eq!(leader(), None);
        cache.leader_is(1, "node-2");
        assert_eq!(leader().as_deref(), Some("node-2"));
        cache.learn(&[shard(1, ("", ""), 1)]);
        assert_eq!(leader().as_deref(), Some("node-2"), "no news is no change");
        cache.leader_is_not(1, "node-3");
        assert_eq!(leader().as_deref(), Some("node-2"), "another node was meant");
        let elected = v1::ShardDescriptor {
            leader_node_id: 3,
            ..shard(1, ("", ""), 1)
        };
        cache.learn(std::slice::from_ref(&elected));
        assert_eq!(leader().as_deref(), Some("node-2"), "a map may be old");
        cache.leader_is_not(1, "node-2");
        cache.learn(&[elected]);
        assert_eq!(leader().as_deref(), Some("node-3"));
        cache.leader_is_not(1, "node-3");
        assert_eq!(leader(), None);
    }

    #[test]
    fn an_older_directory_changes_nothing() {
        let cache = RoutingCache::default();
        let keyspace = |name: &str| v1::Keyspace {
            keyspace_id: 7,
            name: name.into(),
        };
        let directory = |version, name| v1::Directory {
            version,
            keyspaces: vec![keyspace(name)],
            ..Default::default()
        };
        cache.install(&directory(5, "film"));
        cache.install(&directory(4, "actor"));
        assert_eq!((cache.keyspace("film"), cache.keyspace("actor")), (Some(7), None));
        cache.install(&directory(6, "actor"));
        assert_eq!((cache.keyspace("film"), cache.keyspace("actor")), (None, Some(7)));
    }
}
