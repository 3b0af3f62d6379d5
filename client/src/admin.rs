//! What operators do. Errors are those of every call; see each method for its own.

use futures::stream::BoxStream;
use reelkv_proto::types::{NodeId, ShardId};
use reelkv_proto::v1;

use crate::error::Result;

/// Calls for operators, by [`Client::admin`](crate::Client::admin).
#[derive(Clone)]
pub struct Admin {}

impl Admin {
    /// Makes a cluster of the nodes in a node's join list: `shards` data shards (1 to 1,024), each
    /// with `replicas` voters (1, 3 or 5). `AlreadyExists` when one of them belongs to a cluster.
    pub async fn init_cluster(&self, shards: u32, replicas: u32) -> Result<v1::InitClusterResponse> {
        let _ = (shards, replicas);
        todo!()
    }

    /// The map, as the first node that answers knows it.
    pub async fn directory(&self) -> Result<v1::Directory> {
        todo!()
    }

    /// The map as the node at `addr` knows it.
    pub async fn directory_of(&self, addr: &str) -> Result<v1::Directory> {
        let _ = addr;
        todo!()
    }

    /// How the cluster is.
    pub async fn cluster_status(&self) -> Result<v1::ClusterStatus> {
        todo!()
    }

    /// How the node at `addr` is.
    pub async fn node_status(&self, addr: &str) -> Result<v1::NodeStatus> {
        let _ = addr;
        todo!()
    }

    /// Moves a shard's leadership to a node that holds a caught-up voter of it.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<()> {
        let _ = (shard, to);
        todo!()
    }

    /// What the replica of `shard` on the node at `addr` holds itself, page by page, not through
    /// the leader; for comparing replicas.
    pub async fn read_replica(
        &self,
        addr: &str,
        shard: ShardId,
    ) -> Result<BoxStream<'static, Result<v1::ScanResponse>>> {
        let _ = (addr, shard);
        todo!()
    }

    /// A digest of the replica of `shard` on the node at `addr`, at its applied index.
    pub async fn replica_digest(&self, addr: &str, shard: ShardId) -> Result<v1::ReplicaDigest> {
        let _ = (addr, shard);
        todo!()
    }
}
