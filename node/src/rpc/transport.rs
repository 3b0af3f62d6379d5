//! Messages to other nodes over gRPC.
//!
//! One stream per address carries the messages of all shards; a bulk transfer has a connection of
//! its own, so that it never delays a heartbeat. A stream that breaks is opened again by the next
//! call, at most once per back-off; calls in between are told at once that the peer is unreachable.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use reelkv_proto::v1::peer_client::PeerClient;
use reelkv_proto::v1::{self, peer_frame};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::peer::{frame, verified};
use crate::clock::{Instant, now};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::raft::transport::{Transport, TransportError, ViewStream};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is asked for a sign of life this often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Wait before a broken stream is opened again: short, for a peer may just have been restarted.
const BACK_OFF: Duration = Duration::from_millis(200);
/// A bulk transfer that brings nothing for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(10);
/// Bytes of messages to one node that wait for their answer; further calls wait.
const OUTSTANDING_BYTES_MAX: usize = 64 << 20;
/// What a message costs beside its own bytes.
const OVERHEAD_BYTES: usize = 1 << 10;

/// The connections of a node to its peers.
#[derive(Default)]
pub struct GrpcTransport {
    links: Mutex<HashMap<String, Arc<Link>>>,
}

/// The stream to one address, opened when needed.
struct Link {
    addr: String,
    next_id: AtomicU64,
    /// Bounds queued and unanswered messages together.
    room: Arc<Semaphore>,
    stream: Mutex<Option<Arc<MessageStream>>>,
}

/// One stream; once `state` says how it ended, it is replaced.
struct MessageStream {
    queue: mpsc::UnboundedSender<v1::PeerFrame>,
    state: Mutex<State>,
}

/// Invariant: once `ended` is set, `waiting` is empty and stays so.
#[derive(Default)]
struct State {
    waiting: HashMap<u64, oneshot::Sender<Bytes>>,
    connected: bool,
    ended: Option<(Instant, String)>,
}

impl GrpcTransport {
    /// No connection yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn link(&self, addr: &str) -> Arc<Link> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(addr) {
            return link.clone();
        }
        let link = Arc::new(Link {
            addr: addr.to_owned(),
            next_id: AtomicU64::new(1),
            room: Arc::new(Semaphore::new(OUTSTANDING_BYTES_MAX)),
            stream: Mutex::new(None),
        });
        links.insert(addr.to_owned(), link.clone());
        link
    }
}

impl Transport for GrpcTransport {
    fn call(
        &self,
        addr: &str,
        request: v1::PeerRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::PeerResponse, TransportError>> {
        let link = self.link(addr);
        async move { link.call(request, timeout).await }.boxed()
    }

    fn fetch_view(
        &self,
        addr: &str,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<ViewStream, TransportError>> {
        let addr = addr.to_owned();
        async move { fetch_view(addr, request).await }.boxed()
    }
}

impl Link {
    async fn call(
        &self,
        request: v1::PeerRequest,
        timeout: Duration,
    ) -> Result<v1::PeerResponse, TransportError> {
        let deadline = now() + timeout;
        let bytes = Bytes::from(request.encode_to_vec());
        let cost = (bytes.len() + OVERHEAD_BYTES).min(OUTSTANDING_BYTES_MAX) as u32;
        let room = tokio::time::timeout_at(deadline, self.room.clone().acquire_many_owned(cost));
        let Ok(Ok(_room)) = room.await else {
            return Err(self.unreachable("too much is waiting for it already"));
        };
        let stream = self.stream()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        stream
            .wait_for(id, sender)
            .map_err(|reason| self.unreachable(&reason))?;
        let _entry = Entry { stream: &stream, id };
        // A queue without a reader belongs to a stream that ended; the wait below finds out.
        let _ = stream.queue.send(frame(id, peer_frame::Body::Request(bytes)));
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(bytes)) => v1::PeerResponse::decode(bytes).map_err(|_| self.damaged()),
            Ok(Err(_)) => Err(stream.why_ended(self)),
            Err(_) if stream.state.lock().connected => Err(self.lost("no answer in time")),
            Err(_) => Err(self.unreachable("no connection in time")),
        }
    }

    /// The stream as it is, or a new one if it is time for that.
    fn stream(&self) -> Result<Arc<MessageStream>, TransportError> {
        let mut current = self.stream.lock();
        if let Some(stream) = &*current {
            match &stream.state.lock().ended {
                None => return Ok(stream.clone()),
                Some((at, reason)) if at.elapsed() < BACK_OFF => return Err(self.unreachable(reason)),
                Some(_) => {}
            }
        }
        let (queue, queued) = mpsc::unbounded_channel();
        let stream = Arc::new(MessageStream {
            queue,
            state: Mutex::default(),
        });
        tokio::spawn(drive(self.addr.clone(), queued, stream.clone()));
        *current = Some(stream.clone());
        Ok(stream)
    }

    fn unreachable(&self, reason: &str) -> TransportError {
        TransportError::Unreachable {
            addr: self.addr.clone(),
            reason: reason.to_owned(),
        }
    }

    fn lost(&self, reason: &str) -> TransportError {
        TransportError::Lost {
            addr: self.addr.clone(),
            reason: reason.to_owned(),
        }
    }

    fn damaged(&self) -> TransportError {
        TransportError::Damaged {
            addr: self.addr.clone(),
        }
    }
}

impl MessageStream {
    fn wait_for(&self, id: u64, sender: oneshot::Sender<Bytes>) -> Result<(), String> {
        let mut state = self.state.lock();
        if let Some((_, reason)) = &state.ended {
            return Err(reason.clone());
        }
        state.waiting.insert(id, sender);
        Ok(())
    }

    fn why_ended(&self, link: &Link) -> TransportError {
        let state = self.state.lock();
        let reason = state
            .ended
            .as_ref()
            .map_or("the answer was dropped", |(_, reason)| reason);
        match state.connected {
            true => link.lost(reason),
            false => link.unreachable(reason),
        }
    }

    fn end(&self, reason: String) {
        let mut state = self.state.lock();
        state.ended = Some((now(), reason));
        state.waiting.clear();
    }
}

/// Removes a message from the unanswered ones when its call ends, however it ends.
struct Entry<'stream> {
    stream: &'stream MessageStream,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.stream.state.lock().waiting.remove(&self.id);
    }
}

/// Runs a stream until its connection fails.
async fn drive(addr: String, queued: mpsc::UnboundedReceiver<v1::PeerFrame>, stream: Arc<MessageStream>) {
    let reason = match run(&addr, queued, &stream).await {
        Ok(()) => "the peer closed the connection".to_owned(),
        Err(reason) => reason,
    };
    // One line when a peer goes; that it stays away is said by `cluster status`.
    match stream.state.lock().connected {
        true => tracing::info!(addr, reason, "the connection to another node ended"),
        false => tracing::debug!(addr, reason, "no connection to another node"),
    }
    stream.end(reason);
}

async fn run(
    addr: &str,
    queued: mpsc::UnboundedReceiver<v1::PeerFrame>,
    stream: &MessageStream,
) -> Result<(), String> {
    let mut client = client(addr).await?;
    stream.state.lock().connected = true;
    tracing::info!(addr, "connected to another node");
    let inbound = client.messages(UnboundedReceiverStream::new(queued)).await;
    let mut inbound = inbound
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    while let Some(frame) = inbound
        .message()
        .await
        .map_err(|status| status.message().to_owned())?
    {
        let id = frame.id;
        let Some(peer_frame::Body::Response(bytes)) = verified(frame) else {
            // Its caller runs into its deadline: what a damaged frame said is not known.
            tracing::warn!(addr, "a frame was damaged on the way; it was dropped");
            continue;
        };
        let waiting = stream.state.lock().waiting.remove(&id);
        if let Some(waiting) = waiting {
            // Without a receiver the caller has given up.
            let _ = waiting.send(bytes);
        }
    }
    Ok(())
}

async fn client(addr: &str) -> Result<PeerClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20);
    let channel = match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return Err(cause.unwrap_or_else(|| error.to_string()));
        }
        Err(_) => return Err("no connection in time".to_owned()),
    };
    Ok(PeerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

async fn fetch_view(addr: String, request: v1::FetchViewRequest) -> Result<ViewStream, TransportError> {
    let unreachable = |reason: String| TransportError::Unreachable {
        addr: addr.clone(),
        reason,
    };
    let mut client = client(&addr).await.map_err(unreachable)?;
    let opened = tokio::time::timeout(STALL_MAX, client.fetch_view(request)).await;
    let opened = opened.map_err(|_| unreachable("no answer in time".to_owned()))?;
    let chunks = opened.map_err(|status| refused(&addr, &status))?.into_inner();
    let pieces = stream::unfold(Some(chunks), move |chunks| {
        let addr = addr.clone();
        async move {
            let mut chunks = chunks?;
            match tokio::time::timeout(STALL_MAX, chunks.message()).await {
                Ok(Ok(Some(chunk))) => match piece(&addr, chunk) {
                    Ok(piece) => Some((Ok(piece), Some(chunks))),
                    Err(error) => Some((Err(error), None)),
                },
                Ok(Ok(None)) => None,
                Ok(Err(status)) => Some((Err(refused(&addr, &status)), None)),
                Err(_) => {
                    let reason = format!("nothing arrived for {} s", STALL_MAX.as_secs());
                    Some((Err(TransportError::Lost { addr, reason }), None))
                }
            }
        }
    });
    Ok(pieces.boxed())
}

fn piece(addr: &str, chunk: v1::ViewChunk) -> Result<v1::ViewPayload, TransportError> {
    let damaged = || TransportError::Damaged {
        addr: addr.to_owned(),
    };
    if crc32fast::hash(&chunk.payload) != chunk.crc {
        return Err(damaged());
    }
    v1::ViewPayload::decode(chunk.payload).map_err(|_| damaged())
}

/// The peer's own refusal, or what the connection says.
fn refused(addr: &str, status: &tonic::Status) -> TransportError {
    match v1::Error::decode(status.details()) {
        Ok(error) if error.kind.is_some() => TransportError::Refused(error),
        _ => TransportError::Lost {
            addr: addr.to_owned(),
            reason: status.message().to_owned(),
        },
    }
}
