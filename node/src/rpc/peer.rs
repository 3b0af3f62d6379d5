//! Answers other nodes: one stream for the messages of all shards, another per bulk transfer.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use prost::Message;
use reelkv_proto::v1::peer_server::Peer;
use reelkv_proto::v1::{self, peer_frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::status::to_status;
use crate::error;
use crate::raft::transport::PeerHandler;

/// Bytes of messages from one node being worked on; further ones wait in the connection.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// What a message costs beside its own bytes.
const OVERHEAD_BYTES: usize = 1 << 10;
/// Answers waiting for the connection; more wait in their tasks.
const ANSWERS_MAX: usize = 1_024;

/// The Peer service of a node.
#[derive(Clone)]
pub(super) struct PeerService {
    pub(super) handler: Arc<dyn PeerHandler>,
    /// Cancelled when the node stops: message streams end.
    pub(super) stop: CancellationToken,
}

/// A frame of `body`, with its checksum.
pub fn frame(id: u64, body: peer_frame::Body) -> v1::PeerFrame {
    let (peer_frame::Body::Request(bytes) | peer_frame::Body::Response(bytes)) = &body;
    v1::PeerFrame {
        id,
        crc: crc32fast::hash(bytes),
        body: Some(body),
    }
}

/// The frame's content; `None` if its checksum does not match.
pub fn verified(frame: v1::PeerFrame) -> Option<peer_frame::Body> {
    let body = frame.body?;
    let (peer_frame::Body::Request(bytes) | peer_frame::Body::Response(bytes)) = &body;
    (crc32fast::hash(bytes) == frame.crc).then_some(body)
}

#[tonic::async_trait]
impl Peer for PeerService {
    type MessagesStream = BoxStream<'static, Result<v1::PeerFrame, Status>>;
    type FetchViewStream = BoxStream<'static, Result<v1::ViewChunk, Status>>;

    async fn messages(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Response<Self::MessagesStream>, Status> {
        let (answers, outbound) = mpsc::channel(ANSWERS_MAX);
        tokio::spawn(take(self.clone(), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(outbound).boxed()))
    }

    async fn fetch_view(
        &self,
        request: Request<v1::FetchViewRequest>,
    ) -> Result<Response<Self::FetchViewStream>, Status> {
        let request = request.into_inner();
        let view_id = request.view_id;
        let pieces = self.handler.serve_view(request).await.map_err(to_status)?;
        Ok(Response::new(chunks(view_id, pieces).boxed()))
    }
}

async fn take(
    service: PeerService,
    mut frames: Streaming<v1::PeerFrame>,
    answers: mpsc::Sender<Result<v1::PeerFrame, Status>>,
) {
    let room = Arc::new(Semaphore::new(REQUEST_BYTES_MAX));
    loop {
        let frame = tokio::select! {
            biased;
            () = service.stop.cancelled() => return,
            () = answers.closed() => return,
            frame = frames.message() => frame,
        };
        let frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a message stream broke");
                return;
            }
        };
        let cost = (frame.encoded_len() + OVERHEAD_BYTES).min(REQUEST_BYTES_MAX) as u32;
        // Nobody closes the semaphore.
        let Ok(permit) = room.clone().acquire_many_owned(cost).await else {
            return;
        };
        let id = frame.id;
        match decoded(frame) {
            // The future is made here, in the order of the frames; what it awaits may overtake.
            Ok(request) => tokio::spawn(answer(
                id,
                service.handler.handle(request),
                answers.clone(),
                permit,
            )),
            Err(error) => {
                let response = v1::PeerResponse {
                    body: Some(v1::peer_response::Body::Error(error)),
                    ..Default::default()
                };
                tokio::spawn(answer(
                    id,
                    Box::pin(std::future::ready(response)),
                    answers.clone(),
                    permit,
                ))
            }
        };
    }
}

fn decoded(frame: v1::PeerFrame) -> Result<v1::PeerRequest, v1::Error> {
    let damaged = || {
        tracing::warn!("a frame from another node was damaged on the way; it was dropped");
        error::integrity("frame")
    };
    match verified(frame).ok_or_else(damaged)? {
        peer_frame::Body::Request(bytes) => v1::PeerRequest::decode(bytes).map_err(|_| damaged()),
        peer_frame::Body::Response(_) => Err(error::invalid("body", "an answer where a request is due")),
    }
}

async fn answer(
    id: u64,
    answer: futures::future::BoxFuture<'static, v1::PeerResponse>,
    answers: mpsc::Sender<Result<v1::PeerFrame, Status>>,
    _room: OwnedSemaphorePermit,
) {
    let response = answer.await.encode_to_vec();
    // A stream without a reader belongs to a node that is gone.
    let _ = answers
        .send(Ok(frame(id, peer_frame::Body::Response(response.into()))))
        .await;
}

fn chunks(
    view_id: u64,
    pieces: BoxStream<'static, Result<v1::ViewPayload, v1::Error>>,
) -> impl Stream<Item = Result<v1::ViewChunk, Status>> + Send + 'static {
    pieces.map(move |piece| {
        let payload = Bytes::from(piece.map_err(to_status)?.encode_to_vec());
        Ok(v1::ViewChunk {
            view_id,
            crc: crc32fast::hash(&payload),
            payload,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_of_a_frame_is_noticed() {
        let body = peer_frame::Body::Request(Bytes::from_static(b"a request"));
        let whole = frame(7, body.clone());
        assert_eq!(verified(whole), Some(body));
        for bit in 0..9 * 8 {
            let mut bytes = b"a request".to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let bad = v1::PeerFrame {
                body: Some(peer_frame::Body::Request(bytes.into())),
                ..frame(7, peer_frame::Body::Request(Bytes::from_static(b"a request")))
            };
            assert_eq!(verified(bad), None, "bit {bit}");
        }
    }
}
