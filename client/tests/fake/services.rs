//! The fake cluster as gRPC services.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use prost::Message;
use reelkv_client::v1;
use reelkv_client::v1::admin_server::{Admin, AdminServer};
use reelkv_client::v1::error::Kind;
use reelkv_client::v1::kv_server::{Kv, KvServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

use super::{End, World};

struct Node {
    world: Arc<Mutex<World>>,
    node: usize,
}

pub fn router(world: Arc<Mutex<World>>, node: usize) -> Router {
    let admin = Node {
        world: world.clone(),
        node,
    };
    let kv = KvServer::new(Node { world, node }).max_decoding_message_size(32 << 20);
    tonic::transport::Server::builder()
        .add_service(kv)
        .add_service(AdminServer::new(admin))
}

/// An error as unary calls carry it.
fn status(kind: Kind) -> Status {
    let error = v1::Error {
        message: "refused on order".into(),
        kind: Some(kind),
    };
    Status::with_details(
        Code::FailedPrecondition,
        "refused on order",
        error.encode_to_vec().into(),
    )
}

type Pages = Pin<Box<dyn Stream<Item = Result<v1::ScanResponse, Status>> + Send>>;

fn unused<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the library does not call this"))
}

#[async_trait]
impl Kv for Node {
    type ScanStream = Pages;
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (world, node) = (self.world.clone(), self.node);
        let mut inbound = request.into_inner();
        let (answers, outbound) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let ends = {
                    let mut world = world.lock();
                    world.messages += 1;
                    let requests = message.requests.iter();
                    requests
                        .map(|request| (request.id, world.handle(node, request)))
                        .collect::<Vec<_>>()
                };
                let (mut responses, mut breaks) = (Vec::new(), false);
                for (id, end) in ends {
                    match end {
                        End::Answer(answer) => responses.push(v1::Response {
                            id,
                            result: Some(*answer),
                        }),
                        End::Break => breaks = true,
                        End::Silence => {}
                    }
                }
                // Answered in another order than asked.
                responses.reverse();
                if !responses.is_empty() && answers.send(Ok(v1::SessionResponse { responses })).await.is_err()
                {
                    return;
                }
                if breaks {
                    let _ = answers.send(Err(Status::unavailable("broken on order"))).await;
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        unused()
    }
    async fn put(&self, _: Request<v1::PutRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        unused()
    }
    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        unused()
    }
    async fn add(&self, _: Request<v1::AddRequest>) -> Result<Response<v1::AddResponse>, Status> {
        unused()
    }
    async fn batch(&self, _: Request<v1::BatchRequest>) -> Result<Response<v1::WriteResponse>, Status> {
        unused()
    }
    async fn scan(&self, _: Request<v1::ScanRequest>) -> Result<Response<Pages>, Status> {
        unused()
    }
}

#[async_trait]
impl Admin for Node {
    type ReadReplicaStream = Pages;

    async fn init_cluster(
        &self,
        _: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        Err(status(Kind::AlreadyExists(v1::AlreadyExists {})))
    }

    async fn get_directory(
        &self,
        _: Request<v1::GetDirectoryRequest>,
    ) -> Result<Response<v1::Directory>, Status> {
        Ok(Response::new(self.world.lock().directory()))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::Keyspace>, Status> {
        let name = request.into_inner().name;
        let mut world = self.world.lock();
        if let Some(leader) = world.leader.filter(|leader| *leader != self.node) {
            let leader_addr = world.addrs[leader].clone();
            return Err(status(Kind::NotLeader(v1::NotLeader {
                leader_addr,
                ..Default::default()
            })));
        }
        if world.keyspaces.iter().any(|known| known.name == name) {
            return Err(status(Kind::AlreadyExists(v1::AlreadyExists {})));
        }
        let keyspace_id = super::FILM + world.keyspaces.len() as u32;
        let created = v1::Keyspace { keyspace_id, name };
        world.keyspaces.push(created.clone());
        Ok(Response::new(created))
    }

    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        let health = v1::Health::Ok.into();
        Ok(Response::new(v1::ClusterStatus {
            health,
            ..Default::default()
        }))
    }

    async fn get_node_status(
        &self,
        _: Request<v1::GetNodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatus>, Status> {
        let release = format!("fake {}", self.node);
        Ok(Response::new(v1::NodeStatus {
            release,
            ..Default::default()
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        self.world.lock().leader = Some(request.into_inner().to_node_id as usize - 1);
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn read_replica(
        &self,
        request: Request<v1::ReadReplicaRequest>,
    ) -> Result<Response<Pages>, Status> {
        if request.into_inner().shard_id != 2 {
            return Err(status(Kind::InvalidArgument(v1::InvalidArgument {
                field: "shard_id".into(),
            })));
        }
        let records: Vec<_> = self.world.lock().records.values().cloned().collect();
        let page = |record| {
            Ok(v1::ScanResponse {
                records: vec![record],
                ..Default::default()
            })
        };
        Ok(Response::new(stream::iter(records).map(page).boxed()))
    }

    async fn verify_shard(
        &self,
        request: Request<v1::VerifyShardRequest>,
    ) -> Result<Response<v1::VerifyShardResponse>, Status> {
        let shard_id = request.into_inner().shard_id;
        Ok(Response::new(v1::VerifyShardResponse {
            shard_id,
            ..Default::default()
        }))
    }

    async fn get_replica_digest(
        &self,
        _: Request<v1::GetReplicaDigestRequest>,
    ) -> Result<Response<v1::ReplicaDigest>, Status> {
        let records = self.world.lock().records.len() as u64;
        Ok(Response::new(v1::ReplicaDigest {
            records,
            ..Default::default()
        }))
    }
}
