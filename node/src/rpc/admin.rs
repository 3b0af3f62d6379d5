//! The operator's calls over gRPC.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};
use reelkv_proto::v1;
use reelkv_proto::v1::admin_server::Admin;
use tonic::{Request, Response, Status};

use super::handler::{AdminHandler, Answer};
use super::status::to_status;

/// The Admin service of a node.
#[derive(Clone)]
pub(super) struct AdminService(pub(super) Arc<dyn AdminHandler>);

fn reply<T>(answer: Answer<T>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(to_status)
}

#[tonic::async_trait]
impl Admin for AdminService {
    type ReadReplicaStream = BoxStream<'static, Result<v1::ScanResponse, Status>>;

    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        reply(self.0.init_cluster(request.into_inner()).await)
    }

    async fn get_directory(
        &self,
        request: Request<v1::GetDirectoryRequest>,
    ) -> Result<Response<v1::Directory>, Status> {
        reply(self.0.directory(request.into_inner()).await)
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::Keyspace>, Status> {
        reply(self.0.create_keyspace(request.into_inner()).await)
    }

    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        reply(self.0.cluster_status().await)
    }

    async fn get_node_status(
        &self,
        _: Request<v1::GetNodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatus>, Status> {
        reply(self.0.node_status().await)
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        reply(self.0.transfer_leader(request.into_inner()).await)
    }

    async fn read_replica(
        &self,
        request: Request<v1::ReadReplicaRequest>,
    ) -> Result<Response<Self::ReadReplicaStream>, Status> {
        let pages = self
            .0
            .read_replica(request.into_inner())
            .await
            .map_err(to_status)?;
        Ok(Response::new(pages.map(|page| page.map_err(to_status)).boxed()))
    }

    async fn get_replica_digest(
        &self,
        request: Request<v1::GetReplicaDigestRequest>,
    ) -> Result<Response<v1::ReplicaDigest>, Status> {
        reply(self.0.replica_digest(request.into_inner()).await)
    }

    async fn verify_shard(
        &self,
        request: Request<v1::VerifyShardRequest>,
    ) -> Result<Response<v1::VerifyShardResponse>, Status> {
        reply(self.0.verify_shard(request.into_inner()).await)
    }
}
