//! The seam between nodes. `rpc` carries it over gRPC; the simulator over memory, losing,
//! delaying and cutting messages as a seed tells it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use reelkv_proto::types::NodeId;
use reelkv_proto::v1::{self, peer_request, peer_response};

use crate::error;

/// Why a peer did not answer. An answer that says "no" is a [`v1::PeerResponse`], not this.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// The message was never sent: no connection.
    #[error("peer {addr} is unreachable: {reason}")]
    Unreachable {
        /// host:port that was tried.
        addr: String,
        /// What the network said.
        reason: String,
    },
    /// The message was sent and no answer came; what it asked for may have happened.
    #[error("no answer from peer {addr}: {reason}")]
    Lost {
        /// host:port that was asked.
        addr: String,
        /// What ended the wait.
        reason: String,
    },
    /// A frame's checksum did not match; it was dropped.
    #[error("a frame from {addr} was damaged on the way")]
    Damaged {
        /// host:port it came from.
        addr: String,
    },
    /// The peer answered a bulk transfer with an error.
    #[error("peer refused: {}", .0.message)]
    Refused(v1::Error),
}

impl TransportError {
    /// Whether it may be otherwise the next time: what was sent did not arrive, or not whole.
    pub fn is_of_the_way(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// Pieces of a view in order; each was verified against its CRC.
pub type ViewStream = BoxStream<'static, Result<v1::ViewPayload, TransportError>>;

/// Sends messages to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request and waits for its answer, at most `timeout`. Requests to one address keep
    /// their order on the wire as long as the connection lasts.
    fn call(
        &self,
        addr: &str,
        request: v1::PeerRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::PeerResponse, TransportError>>;

    /// Opens a bulk transfer. The stream ends with an error if nothing arrives for 10 s.
    fn fetch_view(
        &self,
        addr: &str,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<ViewStream, TransportError>>;
}

/// What a node answers to other nodes; called by `rpc` and by the simulated network.
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers one message.
    fn handle(&self, request: v1::PeerRequest) -> BoxFuture<'static, v1::PeerResponse>;

    /// Opens a view of one of its replicas for a bulk transfer.
    fn serve_view(
        &self,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<v1::ViewPayload, v1::Error>>, v1::Error>>;
}

/// A transport shared by the parts of one node.
pub type SharedTransport = Arc<dyn Transport>;

/// Asks another node as this one of this cluster, and tells answers that say "no" from the others.
///
/// # Errors
/// What it answered, or `Unavailable` when no answer came in time.
pub async fn ask(
    transport: &dyn Transport,
    (cluster_id, from_node_id): (Bytes, NodeId),
    addr: &str,
    body: peer_request::Body,
    timeout: Duration,
) -> Result<peer_response::Body, v1::Error> {
    let request = v1::PeerRequest {
        cluster_id,
        from_node_id,
        body: Some(body),
        ..Default::default()
    };
    let answer = transport.call(addr, request, timeout).await;
    let answer = answer.map_err(|failed| error::unavailable(failed.to_string()))?;
    match answer.body {
        Some(peer_response::Body::Error(error)) => Err(error),
        Some(body) => Ok(body),
        None => Err(error::internal("an empty answer")),
    }
}
