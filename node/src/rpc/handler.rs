//! What a node answers to clients and operators. The services below only translate.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use reelkv_proto::v1;

/// An answer, or the error that tells the caller what to do.
pub type Answer<T> = Result<T, v1::Error>;

/// Keys and values: one request of a session, routed, executed or forwarded.
pub trait KvHandler: Send + Sync + 'static {
    /// Answers one request within its own timeout. Never fails: an error is an answer.
    fn request(&self, request: v1::Request) -> BoxFuture<'static, v1::Response>;
}

/// The operator's calls; the meaning of each is in `admin.proto`.
pub trait AdminHandler: Send + Sync + 'static {
    /// See `Admin.InitCluster`.
    fn init_cluster(
        &self,
        request: v1::InitClusterRequest,
    ) -> BoxFuture<'static, Answer<v1::InitClusterResponse>>;
    /// See `Admin.GetDirectory`.
    fn directory(&self, request: v1::GetDirectoryRequest) -> BoxFuture<'static, Answer<v1::Directory>>;
    /// See `Admin.CreateKeyspace`.
    fn create_keyspace(&self, request: v1::CreateKeyspaceRequest)
    -> BoxFuture<'static, Answer<v1::Keyspace>>;
    /// See `Admin.GetClusterStatus`.
    fn cluster_status(&self) -> BoxFuture<'static, Answer<v1::ClusterStatus>>;
    /// See `Admin.GetNodeStatus`.
    fn node_status(&self) -> BoxFuture<'static, Answer<v1::NodeStatus>>;
    /// See `Admin.TransferLeader`.
    fn transfer_leader(
        &self,
        request: v1::TransferLeaderRequest,
    ) -> BoxFuture<'static, Answer<v1::TransferLeaderResponse>>;
    /// See `Admin.ReadReplica`.
    fn read_replica(
        &self,
        request: v1::ReadReplicaRequest,
    ) -> BoxFuture<'static, Answer<BoxStream<'static, Answer<v1::ScanResponse>>>>;
    /// See `Admin.GetReplicaDigest`.
    fn replica_digest(
        &self,
        request: v1::GetReplicaDigestRequest,
    ) -> BoxFuture<'static, Answer<v1::ReplicaDigest>>;

    /// See `Admin.VerifyShard`.
    fn verify_shard(
        &self,
        request: v1::VerifyShardRequest,
    ) -> BoxFuture<'static, Answer<v1::VerifyShardResponse>>;
}
