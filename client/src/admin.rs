//! What operators do.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use reelkv_proto::types::{NodeId, ShardId};
use reelkv_proto::v1;
use reelkv_proto::v1::admin_client::AdminClient;
use reelkv_proto::v1::error::Kind;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::client::Shared;
use crate::connector::TransportError;
use crate::error::{Error, ErrorKind, Result, error_in_status};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::retry::Backoff;
use crate::routing::Addr;

type Stub = AdminClient<Channel>;
/// What a unary call ends with.
type Reply<T> = std::result::Result<Response<T>, Status>;

/// Calls for operators, by [`Client::admin`](crate::Client::admin). They go over gRPC, not sessions.
///
/// Besides the errors named at each method, any may fail with `Unavailable`, and those that change
/// something with `OutcomeUnknown`, when the connection was lost meanwhile.
#[derive(Clone)]
pub struct Admin {
    shared: Arc<Shared>,
    timeout: Duration,
}

/// Why one node did not do it.
enum Refusal {
    Answered(v1::Error),
    Silent(TransportError),
}

impl Admin {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let timeout = shared.timeout;
        Self { shared, timeout }
    }

    /// The same calls, each of which may take this long; the client's timeout otherwise.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Makes a cluster of the nodes in a node's join list: `shards` data shards (1 to 1,024), each
    /// with `replicas` voters (1, 3 or 5). `AlreadyExists` when one of them belongs to a cluster.
    pub async fn init_cluster(&self, shards: u32, replicas: u32) -> Result<v1::InitClusterResponse> {
        let request = v1::InitClusterRequest { shards, replicas };
        let (answer, _) = self
            .somewhere(false, move |mut stub: Stub| async move {
                stub.init_cluster(request).await
            })
            .await?;
        Ok(answer)
    }

    /// The map, as the first node that answers knows it.
    pub async fn directory(&self) -> Result<v1::Directory> {
        let mut last = None;
        for addr in self.shared.addrs() {
            match self.directory_of(&addr).await {
                Ok(directory) => return Ok(directory),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::unavailable("no node is known")))
    }

    /// The map as the node at `addr` knows it.
    pub async fn directory_of(&self, addr: &str) -> Result<v1::Directory> {
        let asked = self.shared.connector.directory(addr);
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(directory)) => Ok(directory),
            Ok(Err(error)) => Err(Error::unavailable(format!("{addr}: {error}"))),
            Err(_) => Err(Error::unavailable(format!("{addr}: no answer in time"))),
        }
    }

    /// How the cluster is.
    pub async fn cluster_status(&self) -> Result<v1::ClusterStatus> {
        let ask = move |mut stub: Stub| async move {
            stub.get_cluster_status(v1::GetClusterStatusRequest {}).await
        };
        Ok(self.somewhere(true, ask).await?.0)
    }

    /// How the node at `addr` is.
    pub async fn node_status(&self, addr: &str) -> Result<v1::NodeStatus> {
        self.at(addr, move |mut stub: Stub| async move {
            stub.get_node_status(v1::GetNodeStatusRequest {}).await
        })
        .await
    }

    /// Moves a shard's leadership to a node that holds a caught-up voter of it.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<()> {
        let request = v1::TransferLeaderRequest {
            shard_id: shard,
            to_node_id: to,
        };
        // Safe to repeat: it names where leadership shall be.
        self.somewhere(true, move |mut stub: Stub| async move {
            stub.transfer_leader(request).await
        })
        .await?;
        Ok(())
    }

    /// What the replica of `shard` on the node at `addr` holds itself, page by page, not through
    /// the leader; for comparing replicas. The timeout holds until the first page.
    pub async fn read_replica(
        &self,
        addr: &str,
        shard: ShardId,
    ) -> Result<BoxStream<'static, Result<v1::ScanResponse>>> {
        let request = v1::ReadReplicaRequest {
            shard_id: shard,
            start_key: Default::default(),
        };
        let pages = self
            .at(addr, move |mut stub: Stub| async move {
                stub.read_replica(request).await
            })
            .await?;
        let addr = addr.to_owned();
        let read = move |page: std::result::Result<v1::ScanResponse, Status>| {
            page.map_err(|status| refusal(status).into_error(&addr))
        };
        Ok(pages.map(read).boxed())
    }

    /// A digest of the replica of `shard` on the node at `addr`, at its applied index.
    pub async fn replica_digest(&self, addr: &str, shard: ShardId) -> Result<v1::ReplicaDigest> {
        let request = v1::GetReplicaDigestRequest { shard_id: shard };
        self.at(addr, move |mut stub: Stub| async move {
            stub.get_replica_digest(request).await
        })
        .await
    }

    /// Has the voters of a shard compare all they hold, now, and tells what came of it.
    pub async fn verify_shard(&self, shard: ShardId) -> Result<v1::VerifyShardResponse> {
        let request = v1::VerifyShardRequest {
            shard_id: shard,
            ..Default::default()
        };
        let ask = move |mut stub: Stub| {
            let request = request.clone();
            async move { stub.verify_shard(request).await }
        };
        Ok(self.somewhere(true, ask).await?.0)
    }

    /// The keyspace made, and the node that made it.
    pub(crate) async fn create_keyspace(
        &self,
        request: v1::CreateKeyspaceRequest,
    ) -> Result<(v1::Keyspace, Addr)> {
        self.somewhere(false, |mut stub: Stub| {
            let request = request.clone();
            async move { stub.create_keyspace(request).await }
        })
        .await
    }

    /// Asks the node at `addr` once.
    async fn at<T, F: Future<Output = Reply<T>>>(
        &self,
        addr: &str,
        ask: impl FnOnce(Stub) -> F,
    ) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        let asked = self.try_at(addr, deadline, ask).await;
        asked.map_err(|refusal| refusal.into_error(addr))
    }

    /// Asks node after node until one does it, round after round until the deadline. Gives up early
    /// when no node can be reached at all. What is not `repeatable` is not sent again once it may
    /// have been done.
    async fn somewhere<T, F: Future<Output = Reply<T>>>(
        &self,
        repeatable: bool,
        ask: impl Fn(Stub) -> F,
    ) -> Result<(T, Addr)> {
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new();
        loop {
            let (mut addrs, mut next, mut any_answered) = (self.shared.addrs(), 0, false);
            let mut last = Error::unavailable("no node is known");
            while let Some(addr) = addrs.get(next).cloned() {
                next += 1;
                let refusal = match self.try_at(&addr, deadline, &ask).await {
                    Ok(answer) => return Ok((answer, addr)),
                    Err(refusal) => refusal,
                };
                any_answered |= !matches!(refusal, Refusal::Silent(TransportError::NotSent));
                if let Refusal::Answered(error) = &refusal
                    && let Some(Kind::NotLeader(hint)) = &error.kind
                    && !hint.leader_addr.is_empty()
                    && !addrs.iter().any(|addr| **addr == *hint.leader_addr)
                {
                    addrs.insert(next, Addr::from(hint.leader_addr.as_str()));
                }
                let may_be_done = matches!(refusal, Refusal::Silent(TransportError::Lost));
                last = refusal.into_error(&addr);
                if may_be_done && !repeatable {
                    return Err(Error::outcome_unknown(last.to_string()));
                }
                if !last.is_retryable() {
                    return Err(last);
                }
            }
            let mut pause = backoff.next(&self.shared.jitter);
            if let ErrorKind::Busy { retry_after } = last.kind() {
                pause = pause.max(*retry_after);
            }
            if !any_answered || Instant::now() + pause >= deadline {
                return Err(last);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_at<T, F: Future<Output = Reply<T>>>(
        &self,
        addr: &str,
        deadline: Instant,
        ask: impl FnOnce(Stub) -> F,
    ) -> std::result::Result<T, Refusal> {
        let channel = self.shared.pool.channel(addr).await.map_err(Refusal::Silent)?;
        let stub = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let refused = match tokio::time::timeout_at(deadline, ask(stub)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => refusal(status),
            Err(_) => Refusal::Silent(TransportError::Lost),
        };
        if matches!(refused, Refusal::Silent(_)) {
            self.shared.pool.forget(addr);
        }
        Err(refused)
    }
}

/// What a status says: the node's own error, or that the connection failed.
fn refusal(status: Status) -> Refusal {
    if let Some(error) = error_in_status(&status) {
        return Refusal::Answered(error);
    }
    match status.code() {
        // Produced by the transport: nobody knows how far the request came.
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
            tracing::debug!(%status, "call lost");
            Refusal::Silent(TransportError::Lost)
        }
        _ => Refusal::Answered(v1::Error {
            message: format!("{}: {}", status.code(), status.message()),
            kind: None,
        }),
    }
}

impl Refusal {
    fn into_error(self, addr: &str) -> Error {
        match self {
            Self::Answered(error) => error.into(),
            Self::Silent(error) => Error::unavailable(format!("{addr}: {error}")),
        }
    }
}
