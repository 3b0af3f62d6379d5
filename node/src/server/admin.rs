//! Answers clients and operators.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::directory;
use super::member::Member;
use super::node::Node;
use crate::clock::now;
use crate::error;
use crate::limits::PAGE_BYTES_DEFAULT;
use crate::metrics::{Op, Outcome};
use crate::replica::Replica;
use crate::rpc::handler::{AdminHandler, Answer, KvHandler};

const META_TIMEOUT: Duration = Duration::from_secs(40);
/// How long comparing all of a shard may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(3_600);

/// A node as clients and operators see it.
#[derive(Clone)]
pub struct Front(pub Arc<Node>);

impl KvHandler for Front {
    fn request(&self, request: v1::Request) -> BoxFuture<'static, v1::Response> {
        let node = self.0.clone();
        async move {
            let op = Op::of(&request);
            let begun = now();
            let response = node.answer(request, false).await;
            node.metrics()
                .observe(op, Outcome::of(&response), begun.elapsed());
            response
        }
        .boxed()
    }
}

impl AdminHandler for Front {
    fn init_cluster(
        &self,
        request: v1::InitClusterRequest,
    ) -> BoxFuture<'static, Answer<v1::InitClusterResponse>> {
        let node = self.0.clone();
        async move { node.init_cluster(request).await }.boxed()
    }

    fn directory(&self, _: v1::GetDirectoryRequest) -> BoxFuture<'static, Answer<v1::Directory>> {
        let node = self.0.clone();
        // A fresh node knows an empty map: its caller may be about to make a cluster.
        async move { Ok(node.member().map(|member| member.directory()).unwrap_or_default()) }.boxed()
    }

    fn create_keyspace(
        &self,
        request: v1::CreateKeyspaceRequest,
    ) -> BoxFuture<'static, Answer<v1::Keyspace>> {
        let node = self.0.clone();
        async move { node.require_member()?.create_keyspace(request).await }.boxed()
    }

    fn cluster_status(&self) -> BoxFuture<'static, Answer<v1::ClusterStatus>> {
        let node = self.0.clone();
        async move { node.require_member()?.cluster_status(&node).await }.boxed()
    }

    fn node_status(&self) -> BoxFuture<'static, Answer<v1::NodeStatus>> {
        let node = self.0.clone();
        async move { node.node_status().await }.boxed()
    }

    fn transfer_leader(
        &self,
        request: v1::TransferLeaderRequest,
    ) -> BoxFuture<'static, Answer<v1::TransferLeaderResponse>> {
        let node = self.0.clone();
        async move { node.require_member()?.transfer_leader(request).await }.boxed()
    }

    fn read_replica(
        &self,
        request: v1::ReadReplicaRequest,
    ) -> BoxFuture<'static, Answer<BoxStream<'static, Answer<v1::ScanResponse>>>> {
        let node = self.0.clone();
        async move {
            Ok(read_replica(
                local_replica(&node, request.shard_id)?,
                request.start_key,
            ))
        }
        .boxed()
    }

    fn replica_digest(
        &self,
        request: v1::GetReplicaDigestRequest,
    ) -> BoxFuture<'static, Answer<v1::ReplicaDigest>> {
        let node = self.0.clone();
        async move { local_replica(&node, request.shard_id)?.digest().await }.boxed()
    }

    fn verify_shard(
        &self,
        request: v1::VerifyShardRequest,
    ) -> BoxFuture<'static, Answer<v1::VerifyShardResponse>> {
        let node = self.0.clone();
        async move { node.require_member()?.verify_shard(request).await }.boxed()
    }
}

/// Has the voters of a shard compared, as their leader.
pub(super) async fn verify(
    replica: &Replica,
    request: v1::VerifyShardRequest,
) -> Answer<v1::VerifyShardResponse> {
    let range = KeyRange::new(request.start_key, request.end_key);
    let found = replica.verify(range, request.at_leisure).await?;
    let members = replica.members();
    let voters = found.voters.iter().map(|(id, voter)| v1::VoterVerification {
        node_id: members.get(id).map_or(0, |(node, _)| node.node_id),
        replica_id: *id,
        answered: voter.answered,
        buckets_agreed: voter.agreed,
        buckets_differing: voter.differing,
    });
    Ok(v1::VerifyShardResponse {
        shard_id: request.shard_id,
        buckets: found.buckets,
        records: found.records,
        buckets_undecided: found.undecided,
        buckets_unproven: found.unproven,
        voters: voters.collect(),
    })
}

fn local_replica(node: &Arc<Node>, shard_id: u64) -> Answer<Arc<Replica>> {
    let replica = node.require_member()?.replicas.get(shard_id);
    replica.ok_or_else(|| {
        error::invalid(
            "shard_id",
            format!("this node holds no replica of shard {shard_id}"),
        )
    })
}

/// Pages of a replica's own records, keys as stored (with their keyspace), whoever leads.
fn read_replica(replica: Arc<Replica>, start: Bytes) -> BoxStream<'static, Answer<v1::ScanResponse>> {
    stream::try_unfold(Some(start), move |start| {
        let replica = replica.clone();
        async move {
            let Some(start) = start else { return Ok(None) };
            let held = replica.store().with_control(|control| control.range().clone());
            let range = KeyRange {
                start: start.max(held.start.clone()),
                end: held.end,
            };
            let page = replica.scan_local(range, usize::MAX, PAGE_BYTES_DEFAULT).await?;
            let records = page.records.into_iter().filter_map(|record| {
                Some(v1::Record {
                    key: record.key,
                    value: record.value?,
                    version: record.version,
                    client_crc: record.client_crc,
                    logged_time_ms: record.logged_time_ms,
                    expires_at_ms: record.expires_at_ms,
                })
            });
            let resume_key = page.resume.clone().unwrap_or_default();
            Ok(Some((
                v1::ScanResponse {
                    records: records.collect(),
                    resume_key,
                },
                page.resume,
            )))
        }
    })
    .boxed()
}

impl Member {
    async fn create_keyspace(self: &Arc<Self>, request: v1::CreateKeyspaceRequest) -> Answer<v1::Keyspace> {
        let keyspace = match self.meta_leader_addr() {
            Some(addr) => {
                let body = v1::meta_request::Body::CreateKeyspace(request.encode_to_vec().into());
                let request = peer_request::Body::Meta(v1::MetaRequest { body: Some(body) });
                match self.ask(&addr, request, META_TIMEOUT).await? {
                    peer_response::Body::Meta(answer) => v1::Keyspace::decode(answer)
                        .map_err(|failed| error::internal(format!("a keyspace's answer: {failed}")))?,
                    _ => return Err(error::internal("an answer of another kind")),
                }
            }
            None => self.create_keyspace_here(request).await?,
        };
        // Whoever asked will use it through this node next.
        self.await_keyspace(keyspace.keyspace_id).await;
        Ok(keyspace)
    }

    /// Waits, not for long, until this node's map shows a keyspace.
    async fn await_keyspace(self: &Arc<Self>, keyspace_id: u32) {
        for _ in 0..40 {
            let known = self.directory.get();
            if known
                .keyspaces
                .iter()
                .any(|keyspace| keyspace.keyspace_id == keyspace_id)
            {
                return;
            }
            self.refresh_directory().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has the voters of a shard compare all they hold, through its leader.
    async fn verify_shard(&self, request: v1::VerifyShardRequest) -> Answer<v1::VerifyShardResponse> {
        let known = self.directory();
        let shard = directory::shard(&known, request.shard_id);
        let shard = shard
            .ok_or_else(|| error::invalid("shard_id", format!("there is no shard {}", request.shard_id)))?;
        let local = self.replicas.get(request.shard_id);
        if let Some(replica) = local.filter(|replica| replica.is_leader()) {
            return verify(&replica, request).await;
        }
        let leader = directory::node(&known, shard.leader_node_id);
        let leader = leader.ok_or_else(|| error::not_leader(request.shard_id, 0, ""))?;
        let ask = peer_request::Body::VerifyShard(request);
        match self.ask(&leader.addr, ask, VERIFY_TIMEOUT).await? {
            peer_response::Body::VerifyShard(found) => Ok(found),
            _ => Err(error::internal("an answer of another kind")),
        }
    }

    async fn transfer_leader(
        &self,
        request: v1::TransferLeaderRequest,
    ) -> Answer<v1::TransferLeaderResponse> {
        let known = self.directory();
        let shard = directory::shard(&known, request.shard_id);
        let shard = shard
            .ok_or_else(|| error::invalid("shard_id", format!("there is no shard {}", request.shard_id)))?;
        if !shard
            .replicas
            .iter()
            .any(|replica| replica.node_id == request.to_node_id)
        {
            let message = format!(
                "node {} holds no replica of shard {}",
                request.to_node_id, request.shard_id
            );
            return Err(error::invalid("to_node_id", message));
        }
        match self
            .replicas
            .get(request.shard_id)
            .filter(|replica| replica.is_leader())
        {
            Some(replica) => replica.transfer_leader(Some(request.to_node_id)).await?,
            None => {
                let leader = directory::node(&known, shard.leader_node_id);
                let leader = leader.ok_or_else(|| error::not_leader(request.shard_id, 0, ""))?;
                self.ask(
                    &leader.addr,
                    peer_request::Body::TransferLeader(request),
                    META_TIMEOUT,
                )
                .await?;
            }
        }
        Ok(v1::TransferLeaderResponse {})
    }
}
