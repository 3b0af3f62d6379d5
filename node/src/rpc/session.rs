//! One session: many requests per message, answered in any order.
//!
//! ```text
//!  messages ──> one task each: its requests side by side ──> answers ──> gathered into messages
//! ```
//!
//! Both directions are bounded in bytes. When the node stops, or the caller closes its side, the
//! session ends once everything it took has been answered.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, Stream, StreamExt};
use prost::Message;
use reelkv_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::handler::KvHandler;

/// Bytes of requests of one session being worked on; further messages wait in the connection.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Bytes of answers of one session waiting for its caller; further answers wait in their tasks.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// What an answer costs beside its own bytes, so that small ones are bounded too.
const OVERHEAD_BYTES: usize = 256;
/// A message is closed once it holds this many bytes of answers.
const MESSAGE_BYTES_TARGET: usize = 1 << 20;
const MESSAGE_ANSWERS_TARGET: usize = 512;
/// Answers in the queue; their bytes are bounded on their own.
const ANSWERS_MAX: usize = 4_096;

/// An answer and the room it takes up until it is sent.
type Queued = (v1::Response, usize, OwnedSemaphorePermit);

/// Runs a session; the stream of its answers.
pub(super) fn run(
    handler: Arc<dyn KvHandler>,
    requests: Streaming<v1::SessionRequest>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<v1::SessionResponse, Status>> + Send + 'static {
    let (answers, queued) = mpsc::channel(ANSWERS_MAX);
    tokio::spawn(take(handler, requests, answers, stop));
    gathered(queued)
}

/// Takes messages until the caller or the node has had enough.
async fn take(
    handler: Arc<dyn KvHandler>,
    mut requests: Streaming<v1::SessionRequest>,
    answers: mpsc::Sender<Queued>,
    stop: CancellationToken,
) {
    let request_room = Arc::new(Semaphore::new(REQUEST_BYTES_MAX));
    let answer_room = Arc::new(Semaphore::new(ANSWER_BYTES_MAX));
    loop {
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = answers.closed() => return,
            message = requests.message() => message,
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a session broke");
                return;
            }
        };
        let Some(room) = room_for(&request_room, message.encoded_len(), REQUEST_BYTES_MAX).await else {
            return;
        };
        tokio::spawn(work(
            handler.clone(),
            message,
            answers.clone(),
            answer_room.clone(),
            room,
        ));
    }
}

/// Answers the requests of one message, each as soon as it is ready.
async fn work(
    handler: Arc<dyn KvHandler>,
    message: v1::SessionRequest,
    answers: mpsc::Sender<Queued>,
    answer_room: Arc<Semaphore>,
    _request_room: OwnedSemaphorePermit,
) {
    let mut working: FuturesUnordered<_> = message
        .requests
        .into_iter()
        .map(|request| handler.request(request))
        .collect();
    while let Some(answer) = working.next().await {
        let answer_bytes = answer.encoded_len() + OVERHEAD_BYTES;
        let Some(room) = room_for(&answer_room, answer_bytes, ANSWER_BYTES_MAX).await else {
            return;
        };
        if answers.send((answer, answer_bytes, room)).await.is_err() {
            return; // The caller is gone; what was asked is done all the same.
        }
    }
}

async fn room_for(room: &Arc<Semaphore>, bytes: usize, max: usize) -> Option<OwnedSemaphorePermit> {
    // Nobody closes the semaphore.
    room.clone().acquire_many_owned(bytes.min(max) as u32).await.ok()
}

/// What waits in the queue joins one message; a lone answer waits for nobody.
fn gathered(
    queued: mpsc::Receiver<Queued>,
) -> impl Stream<Item = Result<v1::SessionResponse, Status>> + Send + 'static {
    futures::stream::unfold(queued, |mut queued| async move {
        let mut next = Some(queued.recv().await?);
        // Who is ready to answer does so first.
        tokio::task::yield_now().await;
        let mut responses = Vec::new();
        let mut message_bytes = 0;
        while let Some((answer, answer_bytes, _room)) = next {
            responses.push(answer);
            message_bytes += answer_bytes;
            if message_bytes >= MESSAGE_BYTES_TARGET || responses.len() >= MESSAGE_ANSWERS_TARGET {
                break;
            }
            next = queued.try_recv().ok();
        }
        Some((Ok(v1::SessionResponse { responses }), queued))
    })
}
