//! A door for benches of this workspace to parts that are nobody else's business; no promise is kept here.

use reelkv_proto::v1;

use crate::routing::RoutingCache;

/// The routing cache.
#[derive(Default)]
pub struct Routes(RoutingCache);

impl Routes {
    /// Takes over a directory.
    pub fn install(&self, directory: &v1::Directory) {
        self.0.install(directory);
    }

    /// Takes over what a node answered with.
    pub fn learn(&self, descriptors: &[v1::ShardDescriptor]) {
        self.0.learn(descriptors);
    }

    /// Whether the shard that holds a stored key is known, and who leads it.
    pub fn leads_to_a_leader(&self, stored_key: &[u8]) -> bool {
        let route = self.0.lookup(stored_key);
        route.is_some_and(|route| route.leader.is_some())
    }
}
