//! Answers other nodes.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use prost::Message;
use reelkv_proto::types::NodeId;
use reelkv_proto::v1::{self, peer_request, peer_response, raft_request};

use super::admin::verify;
use super::directory;
use super::member::Member;
use super::node::Node;
use crate::error;
use crate::raft::transport::PeerHandler;
use crate::replica::payload_of;
use crate::wal::GroupId;

/// A node as its peers see it.
#[derive(Clone)]
pub struct Peers(pub Arc<Node>);

impl PeerHandler for Peers {
    fn handle(&self, request: v1::PeerRequest) -> BoxFuture<'static, v1::PeerResponse> {
        let node = self.0.clone();
        async move {
            // Only what a node of the same cluster shows means anything.
            let same_cluster = |member: &Arc<Member>| member.cluster_id() == request.cluster_id;
            let member = node.member().filter(same_cluster);
            if let Some(member) = &member {
                member.watermarks.note(request.from_node_id, request.wal_batch);
                member.clocks.note(request.from_node_id, request.wall_ms);
            }
            let body = node.answer_peer(request).await;
            v1::PeerResponse {
                body: Some(body.unwrap_or_else(peer_response::Body::Error)),
                from_node_id: member.as_ref().map_or(0, |member| member.node_id()),
                wall_ms: member.as_ref().map_or(0, |member| member.clocks.own_ms()),
                // Not before the answer is there: what it promises is in this batch or an earlier one.
                wal_batch: member.map_or(0, |member| member.wal.batch()),
            }
        }
        .boxed()
    }

    fn serve_view(
        &self,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<v1::ViewPayload, v1::Error>>, v1::Error>> {
        let node = self.0.clone();
        async move {
            let member = node.require_member()?;
            if request.cluster_id != member.cluster_id() {
                return Err(foreign());
            }
            let replica = member.replicas.get(request.shard_id);
            let replica = replica.ok_or_else(|| error::unavailable("this node holds no such shard"))?;
            replica.serve_view(request)
        }
        .boxed()
    }
}

fn foreign() -> v1::Error {
    error::invalid("cluster_id", "this node belongs to another cluster")
}

impl Node {
    async fn answer_peer(
        self: &Arc<Self>,
        request: v1::PeerRequest,
    ) -> Result<peer_response::Body, v1::Error> {
        use peer_request::Body as Ask;
        use peer_response::Body as Say;
        let from_node_id = request.from_node_id;
        let body = request
            .body
            .ok_or_else(|| error::invalid("body", "an empty message"))?;
        // Before a cluster exists there is none to belong to.
        match &body {
            Ask::Hello(_) => return Ok(Say::Hello(self.hello())),
            Ask::Bootstrap(_) | Ask::RegisterNode(_) => {}
            _ => {
                if request.cluster_id != self.require_member()?.cluster_id() {
                    return Err(foreign());
                }
            }
        }
        match body {
            Ask::Hello(_) => Ok(Say::Hello(self.hello())),
            Ask::Bootstrap(request) => {
                self.bootstrap(request).await?;
                Ok(Say::Bootstrap(v1::BootstrapResponse {}))
            }
            Ask::Raft(message) => {
                let member = self.require_member()?;
                let takes_over = matches!(message.body, Some(raft_request::Body::TransferLeader(_)));
                if takes_over && member.is_stopping() {
                    return Err(error::unavailable("this node is about to stop"));
                }
                let replica = member.replicas.get(message.shard_id);
                let replica = replica.ok_or_else(|| error::unavailable("this node holds no such shard"))?;
                Ok(Say::Raft(replica.handle(message).await?))
            }
            Ask::Forward(request) => Ok(Say::Forward(self.answer(request, true).await)),
            Ask::Directory(request) => {
                let member = self.require_member()?;
                if request.from_meta_shard {
                    let (directory, _) = member.read_directory().await?;
                    member.directory.learn(directory);
                }
                let known = member.directory.get();
                match known.version > request.newer_than {
                    true => Ok(Say::Directory((*known).clone())),
                    false => Ok(Say::Directory(v1::Directory::default())),
                }
            }
            Ask::Status(_) => Ok(Say::Status(self.status_for_peers().await?.encode_to_vec().into())),
            body => self.require_member()?.answer_change(body, from_node_id).await,
        }
    }
}

impl Member {
    async fn answer_change(
        self: &Arc<Self>,
        body: peer_request::Body,
        from_node_id: NodeId,
    ) -> Result<peer_response::Body, v1::Error> {
        use peer_request::Body as Ask;
        use peer_response::Body as Say;
        match body {
            Ask::CreateReplica(request) => {
                self.create_replica_here(request).await?;
                Ok(Say::CreateReplica(v1::CreateReplicaResponse {}))
            }
            Ask::RemoveReplica(request) => {
                self.remove_replica_here(request).await?;
                Ok(Say::RemoveReplica(v1::RemoveReplicaResponse {}))
            }
            Ask::RegisterNode(request) => Ok(Say::RegisterNode(self.register_node(request).await?)),
            Ask::ReplaceReplica(request) => {
                let new_replica_id = self.replace_replica(request).await?;
                Ok(Say::ReplaceReplica(v1::ReplaceReplicaResponse { new_replica_id }))
            }
            Ask::NarrowShard(request) => {
                self.narrow_here(request.shard_id, request.end_key).await?;
                Ok(Say::NarrowShard(v1::NarrowShardResponse {}))
            }
            Ask::Watermarks(told) => {
                self.watermarks.learn(&told);
                let known = self.directory.get();
                let retired = directory::node(&known, from_node_id).is_some_and(|node| node.retired)
                    || self.lost_nodes.contains(&from_node_id);
                Ok(Say::Watermarks(v1::WatermarksMessage {
                    retired,
                    started: self.is_started(),
                    ..self.memory()
                }))
            }
            Ask::Digest(request) => {
                let replica = self.replicas.get(request.shard_id);
                let replica = replica.filter(|replica| replica.id().replica_id == request.replica_id);
                let replica = replica.ok_or_else(|| error::unavailable("this node runs no such replica"))?;
                Ok(Say::Digest(replica.digest_at(request.index).await?))
            }
            Ask::Buckets(request) => {
                let replica = self.replicas.get(request.shard_id);
                let replica = replica.filter(|replica| replica.id().replica_id == request.replica_id);
                let replica = replica.ok_or_else(|| error::unavailable("this node runs no such replica"))?;
                Ok(Say::Buckets(replica.buckets_at(request.index).await?))
            }
            Ask::VerifyShard(request) => {
                let replica = self.replicas.get(request.shard_id);
                let replica = replica.ok_or_else(|| error::unavailable("this node holds no such shard"))?;
                Ok(Say::VerifyShard(verify(&replica, request).await?))
            }
            Ask::ReadView(request) => {
                let replica = self.replicas.get(request.shard_id);
                let replica = replica.filter(|replica| replica.id().replica_id == request.replica_id);
                let replica = replica.ok_or_else(|| error::unavailable("this node runs no such replica"))?;
                Ok(Say::ReadView(replica.read_for_peer(request).await?))
            }
            Ask::FetchPayload(request) => {
                let answer = payload_of(&self.wal, &request).await;
                // A log that was not found whole yet may have it, but never says that it does not.
                match self.is_started() || answer.state() == v1::PayloadState::Found {
                    true => Ok(Say::FetchPayload(answer)),
                    false => Ok(Say::FetchPayload(v1::FetchPayloadResponse::default())),
                }
            }
            Ask::TransferLeader(request) => {
                let replica = self.replicas.get(request.shard_id);
                let replica = replica.ok_or_else(|| error::unavailable("this node holds no such shard"))?;
                let to = (request.to_node_id != 0).then_some(request.to_node_id);
                replica.transfer_leader(to).await?;
                Ok(Say::TransferLeader(v1::TransferLeaderResponse {}))
            }
            Ask::Meta(request) => match request.body {
                Some(v1::meta_request::Body::CreateKeyspace(bytes)) => {
                    let request = v1::CreateKeyspaceRequest::decode(bytes);
                    let request = request.map_err(|failed| error::invalid("body", failed.to_string()))?;
                    Ok(Say::Meta(
                        self.create_keyspace_here(request).await?.encode_to_vec().into(),
                    ))
                }
                None => Err(error::invalid("body", "an empty message")),
            },
            _ => Err(error::invalid("body", "not a message for a member")),
        }
    }

    pub(super) async fn remove_replica_here(
        &self,
        request: v1::RemoveReplicaRequest,
    ) -> Result<(), v1::Error> {
        if !self.is_started() {
            return Err(error::unavailable("this node's log is still being judged"));
        }
        let id = GroupId {
            shard_id: request.shard_id,
            replica_id: request.replica_id,
        };
        let removed = self.replicas.remove(id).await;
        removed.map_err(|failed| error::internal(format!("removing a replica: {failed}")))?;
        self.lost.lock().remove(&id);
        // What was damaged is gone with it.
        self.health.gone(id.shard_id, id.replica_id);
        Ok(())
    }

    /// Takes a node in: a new one, or one that lost its directory and comes back at its address
    /// under a new number. Runs where the meta shard is led; else it is passed on.
    async fn register_node(
        self: &Arc<Self>,
        request: v1::RegisterNodeRequest,
    ) -> Result<v1::RegisterNodeResponse, v1::Error> {
        if let Some(addr) = self.meta_leader_addr() {
            let passed_on = self
                .ask(
                    &addr,
                    peer_request::Body::RegisterNode(request),
                    Duration::from_secs(8),
                )
                .await?;
            return match passed_on {
                peer_response::Body::RegisterNode(registered) => Ok(registered),
                _ => Err(error::internal("an answer of another kind")),
            };
        }
        let before = self.is_fresh(&request.addr).await?;
        let node_id = self
            .change_directory(|directory| {
                if numbers_at(directory, &request.addr) != before {
                    // Another attempt of the same node was quicker.
                    return Err(error::already_exists("that node was taken in meanwhile"));
                }
                for node in directory
                    .nodes
                    .iter_mut()
                    .filter(|node| node.addr == request.addr)
                {
                    node.retired = true;
                }
                let node_id = directory.next_node_id;
                directory.next_node_id += 1;
                directory.nodes.push(v1::NodeDescriptor {
                    node_id,
                    addr: request.addr.clone(),
                    http_addr: request.http_addr.clone(),
                    zone: request.zone.clone(),
                    retired: false,
                });
                Ok(node_id)
            })
            .await?;
        tracing::info!(node_id, addr = request.addr, "a node was taken in");
        let directory = Some((*self.directory.get()).clone());
        Ok(v1::RegisterNodeResponse {
            cluster_id: self.cluster_id(),
            node_id,
            directory,
        })
    }

    /// Refuses to take in a node that is a member. It may have asked before it was made one at the
    /// cluster's birth, so the order matters: once there is a directory, every node in it knows
    /// that it belongs here.
    /// Returns the numbers that its address has in the directory.
    async fn is_fresh(&self, addr: &str) -> Result<Vec<NodeId>, v1::Error> {
        let (directory, _) = self.read_directory().await?;
        if directory.version == 0 {
            return Err(error::unavailable("the cluster is still being made"));
        }
        let hello = peer_request::Body::Hello(v1::HelloRequest {
            addr: self.options.addr.clone(),
        });
        match self.ask(addr, hello, Duration::from_secs(2)).await? {
            peer_response::Body::Hello(hello) if hello.cluster_id.is_empty() => {
                Ok(numbers_at(&directory, addr))
            }
            peer_response::Body::Hello(_) => {
                Err(error::already_exists("that node belongs to a cluster already"))
            }
            _ => Err(error::internal("an answer of another kind")),
        }
    }
}

fn numbers_at(directory: &v1::Directory, addr: &str) -> Vec<NodeId> {
    let present = directory
        .nodes
        .iter()
        .filter(|node| !node.retired && node.addr == addr);
    present.map(|node| node.node_id).collect()
}
