//! One session with one node: many requests per message, answered in any order.
//!
//! ```text
//!  calls ──> queue ──> writer: gathers what waits ──> one message ──> node
//!                                                                      │
//!  calls <── by id <── reader: takes messages apart <── one message <──┘
//! ```
//!
//! While a message waits for the connection, the next one gathers, so messages grow with the load
//! and a lone request waits for nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use reelkv_proto::v1;
use reelkv_proto::v1::kv_client::KvClient;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::{TransportError, pool};
use crate::limits::MESSAGE_BYTES_MAX;

/// A message is closed once it holds this many requests or bytes.
const MESSAGE_REQUESTS_TARGET: usize = 512;
const MESSAGE_BYTES_TARGET: usize = 1 << 20;
/// Bytes of requests a session may have unanswered; further calls wait.
const OUTSTANDING_BYTES_MAX: usize = 64 << 20;
/// What a request costs beside its own bytes, so that small ones are bounded too.
const REQUEST_OVERHEAD_BYTES: usize = 512;

/// A session; open until its connection fails.
pub(super) struct Session {
    queue: mpsc::UnboundedSender<Queued>,
    /// Bounds the queue and the outstanding requests together.
    room: Arc<Semaphore>,
    next_id: AtomicU64,
    state: Arc<State>,
}

/// How a session ended.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) at: Instant,
    /// Whether it ever brought an answer.
    pub(super) was_useful: bool,
}

/// What calls and the session's task share.
#[derive(Default)]
struct State {
    waiting: Mutex<Waiting>,
    was_useful: AtomicBool,
}

/// Invariant: once `ended_at` is set, `by_id` is empty and stays so.
#[derive(Default)]
struct Waiting {
    by_id: HashMap<u64, oneshot::Sender<v1::Response>>,
    ended_at: Option<Instant>,
}

struct Queued {
    request: v1::Request,
    request_bytes: usize,
    progress: Arc<Progress>,
    _permit: Arc<OwnedSemaphorePermit>,
}

/// Decides between the writer that sends a request and the caller that gives it up.
struct Progress(AtomicU8);

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Progress {
    /// Whether the request goes from queued to `to`; only one of the two sides wins.
    fn wins(&self, to: u8) -> bool {
        self.0
            .compare_exchange(QUEUED, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Session {
    /// Starts to connect; calls may be made at once.
    pub(super) fn open(addr: &str) -> Arc<Self> {
        let (queue, queued) = mpsc::unbounded_channel();
        let state = Arc::new(State::default());
        tokio::spawn(drive(addr.to_owned(), queued, state.clone()));
        Arc::new(Self {
            queue,
            room: Arc::new(Semaphore::new(OUTSTANDING_BYTES_MAX)),
            next_id: AtomicU64::new(1),
            state,
        })
    }

    /// How it ended; `None` while it has not.
    pub(super) fn end(&self) -> Option<End> {
        let at = self.state.waiting.lock().ended_at?;
        let was_useful = self.state.was_useful.load(Ordering::Acquire);
        Some(End { at, was_useful })
    }

    /// Sends one request and waits for its answer.
    pub(super) async fn call(
        &self,
        mut request: v1::Request,
        timeout: Duration,
    ) -> Result<v1::Response, TransportError> {
        let deadline = Instant::now() + timeout;
        let request_bytes = request.encoded_len() + REQUEST_OVERHEAD_BYTES;
        let permits = request_bytes.min(OUTSTANDING_BYTES_MAX) as u32;
        let acquiring = self.room.clone().acquire_many_owned(permits);
        let Ok(Ok(permit)) = tokio::time::timeout_at(deadline, acquiring).await else {
            return Err(TransportError::NotSent);
        };
        // Shared with the queue, where a request that was given up stays until its turn comes.
        let permit = Arc::new(permit);
        let own_id = request.id;
        request.id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let Some((answer, _entry)) = self.state.wait_for(request.id) else {
            return Err(TransportError::NotSent);
        };
        let progress = Arc::new(Progress(AtomicU8::new(QUEUED)));
        let queued = Queued {
            request,
            request_bytes,
            progress: progress.clone(),
            _permit: permit.clone(),
        };
        // A queue without a reader is a session that ended; the wait below finds out.
        let _ = self.queue.send(queued);
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(response)) => Ok(v1::Response {
                id: own_id,
                ..response
            }),
            _ if progress.wins(GIVEN_UP) => Err(TransportError::NotSent),
            _ => Err(TransportError::Lost),
        }
    }
}

impl State {
    /// Registers a request; `None` once the session ended. The entry goes when its guard is dropped.
    fn wait_for(self: &Arc<Self>, id: u64) -> Option<(oneshot::Receiver<v1::Response>, Entry)> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.ended_at.is_some() {
            return None;
        }
        waiting.by_id.insert(id, sender);
        let state = self.clone();
        Some((receiver, Entry { state, id }))
    }

    fn answer(&self, responses: Vec<v1::Response>) {
        self.was_useful.store(true, Ordering::Release);
        let mut waiting = self.waiting.lock();
        for response in responses {
            // Without an entry the caller gave up; without a receiver it is giving up right now.
            if let Some(sender) = waiting.by_id.remove(&response.id) {
                let _ = sender.send(response);
            }
        }
    }

    fn end(&self) {
        let mut waiting = self.waiting.lock();
        waiting.ended_at = Some(Instant::now());
        waiting.by_id.clear();
    }
}

/// Removes a request from the outstanding ones when its call ends, however it ends.
struct Entry {
    state: Arc<State>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.state.waiting.lock().by_id.remove(&self.id);
    }
}

/// Runs the session until its connection fails or its last owner is gone.
async fn drive(addr: String, mut queued: mpsc::UnboundedReceiver<Queued>, state: Arc<State>) {
    if let Ok(channel) = pool::connect(&addr).await {
        let client = KvClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        // One message waits while one is being sent: what comes meanwhile gathers in the queue.
        let (messages, outbound) = mpsc::channel(1);
        tokio::select! {
            () = write(&mut queued, messages) => {}
            ended = read(client, outbound, &state) => if let Err(error) = ended {
                tracing::debug!(addr, %error, "session broken");
            },
        }
    }
    // Calls see their senders dropped: those still queued were not sent, the others are lost.
    state.end();
}

async fn write(queued: &mut mpsc::UnboundedReceiver<Queued>, messages: mpsc::Sender<v1::SessionRequest>) {
    loop {
        // Wait for the connection first, so that what arrives meanwhile joins the message.
        let Ok(slot) = messages.reserve().await else {
            return;
        };
        let Some(message) = gather(queued).await else {
            return;
        };
        slot.send(message);
    }
}

/// What waits in the queue, up to a message's bounds; `None` when nobody will queue again.
async fn gather(queued: &mut mpsc::UnboundedReceiver<Queued>) -> Option<v1::SessionRequest> {
    let mut requests = Vec::new();
    let mut message_bytes = 0;
    while requests.is_empty() {
        let mut next = Some(queued.recv().await?);
        // Who is ready to call does so first.
        tokio::task::yield_now().await;
        while let Some(Queued {
            request,
            request_bytes,
            progress,
            ..
        }) = next
        {
            if progress.wins(SENT) {
                message_bytes += request_bytes;
                requests.push(request);
            }
            if requests.len() >= MESSAGE_REQUESTS_TARGET || message_bytes >= MESSAGE_BYTES_TARGET {
                break;
            }
            next = queued.try_recv().ok();
        }
    }
    Some(v1::SessionRequest { requests })
}

async fn read(
    mut client: KvClient<tonic::transport::Channel>,
    outbound: mpsc::Receiver<v1::SessionRequest>,
    state: &State,
) -> Result<(), tonic::Status> {
    let mut inbound = client.session(ReceiverStream::new(outbound)).await?.into_inner();
    while let Some(message) = inbound.message().await? {
        state.answer(message.responses);
    }
    Ok(())
}
