//! The services and the transport against each other over loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use prost::Message;
use reelkv_proto::v1::kv_client::KvClient;
use reelkv_proto::v1::peer_client::PeerClient;
use reelkv_proto::v1::{self, peer_frame, peer_request, peer_response, request, response};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::handler::{AdminHandler, Answer, KvHandler};
use super::{GrpcTransport, Services, serve};
use crate::error;
use crate::raft::transport::{PeerHandler, Transport, TransportError};

/// Answers gets with their key as value, refuses puts, is slow on the key "slow", and counts.
#[derive(Default)]
struct Fake {
    handled: AtomicUsize,
}

fn echo(get: v1::GetRequest) -> response::Result {
    let record = v1::Record {
        key: get.key.clone(),
        value: get.key,
        ..Default::default()
    };
    response::Result::Get(v1::GetResponse { record: Some(record) })
}

impl KvHandler for Fake {
    fn request(&self, request: v1::Request) -> BoxFuture<'static, v1::Response> {
        self.handled.fetch_add(1, Ordering::Relaxed);
        async move {
            let result = match request.op {
                Some(request::Op::Get(get)) => {
                    if get.key == "slow" {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    echo(get)
                }
                Some(request::Op::Scan(scan)) => {
                    let resume_key = if scan.start_key.is_empty() {
                        "b".into()
                    } else {
                        Default::default()
                    };
                    let records = vec![v1::Record {
                        key: scan.start_key,
                        ..Default::default()
                    }];
                    response::Result::Scan(v1::ScanResponse { records, resume_key })
                }
                _ => response::Result::Error(error::invalid("value", "too long")),
            };
            v1::Response {
                id: request.id,
                result: Some(result),
            }
        }
        .boxed()
    }
}

impl PeerHandler for Fake {
    fn handle(&self, request: v1::PeerRequest) -> BoxFuture<'static, v1::PeerResponse> {
        self.handled.fetch_add(1, Ordering::Relaxed);
        async move {
            if request.from_node_id == 99 {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            let hello = v1::HelloResponse {
                node_id: request.from_node_id,
                ..Default::default()
            };
            v1::PeerResponse {
                body: Some(peer_response::Body::Hello(hello)),
                ..Default::default()
            }
        }
        .boxed()
    }

    fn serve_view(
        &self,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<v1::ViewPayload, v1::Error>>, v1::Error>> {
        async move {
            if request.shard_id == 0 {
                return Err(error::unavailable("no such shard"));
            }
            let end = |records| v1::ViewPayload {
                kind: Some(v1::view_payload::Kind::End(v1::ViewEnd {
                    records,
                    ..Default::default()
                })),
                ..Default::default()
            };
            let pieces = vec![Ok(end(1)), Ok(end(2)), Err(error::integrity("tree"))];
            Ok(futures::stream::iter(pieces).boxed())
        }
        .boxed()
    }
}

impl AdminHandler for Fake {
    fn init_cluster(&self, _: v1::InitClusterRequest) -> BoxFuture<'static, Answer<v1::InitClusterResponse>> {
        async { Err(error::already_exists("the cluster")) }.boxed()
    }
    fn directory(&self, _: v1::GetDirectoryRequest) -> BoxFuture<'static, Answer<v1::Directory>> {
        async {
            Ok(v1::Directory {
                version: 3,
                ..Default::default()
            })
        }
        .boxed()
    }
    fn create_keyspace(&self, _: v1::CreateKeyspaceRequest) -> BoxFuture<'static, Answer<v1::Keyspace>> {
        async { Ok(v1::Keyspace::default()) }.boxed()
    }
    fn cluster_status(&self) -> BoxFuture<'static, Answer<v1::ClusterStatus>> {
        async { Ok(v1::ClusterStatus::default()) }.boxed()
    }
    fn node_status(&self) -> BoxFuture<'static, Answer<v1::NodeStatus>> {
        async { Ok(v1::NodeStatus::default()) }.boxed()
    }
    fn transfer_leader(
        &self,
        _: v1::TransferLeaderRequest,
    ) -> BoxFuture<'static, Answer<v1::TransferLeaderResponse>> {
        async { Ok(v1::TransferLeaderResponse {}) }.boxed()
    }
    fn read_replica(
        &self,
        _: v1::ReadReplicaRequest,
    ) -> BoxFuture<'static, Answer<BoxStream<'static, Answer<v1::ScanResponse>>>> {
        async { Ok(futures::stream::empty().boxed()) }.boxed()
    }
    fn replica_digest(
        &self,
        _: v1::GetReplicaDigestRequest,
    ) -> BoxFuture<'static, Answer<v1::ReplicaDigest>> {
        async { Ok(v1::ReplicaDigest::default()) }.boxed()
    }

    fn verify_shard(&self, _: v1::VerifyShardRequest) -> BoxFuture<'static, Answer<v1::VerifyShardResponse>> {
        async { Ok(v1::VerifyShardResponse::default()) }.boxed()
    }
}

struct Running {
    addr: String,
    fake: Arc<Fake>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn start() -> Running {
    start_at("127.0.0.1:0").await
}

async fn start_at(addr: &str) -> Running {
    let listener = TcpListener::bind(addr).await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let fake = Arc::new(Fake::default());
    let stop = CancellationToken::new();
    let services = Services {
        kv: fake.clone(),
        admin: fake.clone(),
        peer: fake.clone(),
    };
    let serving = tokio::spawn(serve(listener, services, stop.clone()));
    Running {
        addr,
        fake,
        stop,
        serving,
    }
}

fn get(id: u64, key: &'static str) -> v1::Request {
    let get = v1::GetRequest {
        key: key.into(),
        ..Default::default()
    };
    v1::Request {
        id,
        op: Some(request::Op::Get(get)),
        ..Default::default()
    }
}

fn hello(from_node_id: u64) -> v1::PeerRequest {
    let body = peer_request::Body::Hello(v1::HelloRequest::default());
    v1::PeerRequest {
        from_node_id,
        body: Some(body),
        ..Default::default()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn unary_calls_answer_or_carry_the_error() {
    let node = start().await;
    let mut client = KvClient::connect(format!("http://{}", node.addr)).await.unwrap();
    let record = client
        .get(v1::GetRequest {
            key: "a".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(record.into_inner().record.unwrap().value, "a");
    let status = client.put(v1::PutRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let error = v1::Error::decode(status.details()).unwrap();
    assert_eq!(error, error::invalid("value", "too long"));
    let pages = client
        .scan(v1::ScanRequest::default())
        .await
        .unwrap()
        .into_inner();
    let keys: Vec<_> = pages
        .map(|page| page.unwrap().records[0].key.clone())
        .collect()
        .await;
    assert_eq!(keys, ["", "b"]);
}

#[tokio::test]
async fn a_session_answers_in_any_order_and_finishes_what_it_took_when_the_node_stops() {
    let node = start().await;
    let mut client = KvClient::connect(format!("http://{}", node.addr)).await.unwrap();
    let (sender, outbound) = tokio::sync::mpsc::channel(4);
    let mut inbound = client
        .session(ReceiverStream::new(outbound))
        .await
        .unwrap()
        .into_inner();
    let requests = vec![get(1, "slow"), get(2, "quick")];
    sender.send(v1::SessionRequest { requests }).await.unwrap();
    let first = inbound.message().await.unwrap().unwrap();
    assert_eq!(
        first
            .responses
            .iter()
            .map(|response| response.id)
            .collect::<Vec<_>>(),
        [2]
    );
    node.stop.cancel();
    let second = inbound.message().await.unwrap().unwrap();
    assert_eq!(second.responses[0].id, 1);
    assert!(
        inbound.message().await.unwrap().is_none(),
        "the session ends in order"
    );
    drop((client, sender));
    tokio::time::timeout(5 * SECOND, node.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn messages_of_many_calls_share_a_stream_and_a_slow_one_delays_nobody() {
    let node = start().await;
    let transport = Arc::new(GrpcTransport::new());
    let slow = transport.call(&node.addr, hello(99), SECOND / 2);
    let slow = tokio::spawn(slow);
    let calls = (1..=50).map(|from| transport.call(&node.addr, hello(from), SECOND));
    for (answer, from) in futures::future::join_all(calls).await.into_iter().zip(1..) {
        let Some(peer_response::Body::Hello(hello)) = answer.unwrap().body else {
            panic!("another kind")
        };
        assert_eq!(hello.node_id, from);
    }
    let slow = slow.await.unwrap().unwrap_err();
    assert!(matches!(slow, TransportError::Lost { .. }), "{slow}");
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_unreachable_and_one_that_comes_back_is_found() {
    let node = start().await;
    let (addr, transport) = (node.addr.clone(), GrpcTransport::new());
    transport.call(&addr, hello(1), SECOND).await.unwrap();
    node.stop.cancel();
    node.serving.await.unwrap().unwrap();
    let gone = transport.call(&addr, hello(1), SECOND).await.unwrap_err();
    assert!(
        matches!(
            gone,
            TransportError::Unreachable { .. } | TransportError::Lost { .. }
        ),
        "{gone}"
    );
    tokio::time::sleep(SECOND / 2).await;
    let gone = transport.call(&addr, hello(1), SECOND).await.unwrap_err();
    assert!(matches!(gone, TransportError::Unreachable { .. }), "{gone}");
    let _back = start_at(&addr).await;
    tokio::time::sleep(SECOND / 2).await;
    transport.call(&addr, hello(1), SECOND).await.unwrap();
}

#[tokio::test]
async fn a_damaged_frame_is_refused_and_never_handled() {
    let node = start().await;
    let mut client = PeerClient::connect(format!("http://{}", node.addr))
        .await
        .unwrap();
    let (sender, outbound) = tokio::sync::mpsc::channel(4);
    let mut inbound = client
        .messages(ReceiverStream::new(outbound))
        .await
        .unwrap()
        .into_inner();
    let mut bytes = hello(5).encode_to_vec();
    let crc = crc32fast::hash(&bytes);
    bytes[1] ^= 4;
    let frame = v1::PeerFrame {
        id: 8,
        crc,
        body: Some(peer_frame::Body::Request(bytes.into())),
    };
    sender.send(frame).await.unwrap();
    let answer = inbound.message().await.unwrap().unwrap();
    let Some(peer_frame::Body::Response(bytes)) = answer.body else {
        panic!("no answer")
    };
    let response = v1::PeerResponse::decode(bytes).unwrap();
    assert_eq!(
        response.body,
        Some(peer_response::Body::Error(error::integrity("frame")))
    );
    assert_eq!(node.fake.handled.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_view_arrives_in_pieces_up_to_its_error() {
    let node = start().await;
    let transport = GrpcTransport::new();
    let request = v1::FetchViewRequest {
        shard_id: 1,
        ..Default::default()
    };
    let pieces: Vec<_> = transport
        .fetch_view(&node.addr, request)
        .await
        .unwrap()
        .collect()
        .await;
    assert_eq!(pieces.len(), 3);
    assert!(pieces[0].is_ok() && pieces[1].is_ok());
    assert!(matches!(&pieces[2], Err(TransportError::Refused(error)) if *error == error::integrity("tree")));
    let refused = transport
        .fetch_view(&node.addr, v1::FetchViewRequest::default())
        .await;
    assert!(matches!(refused.err(), Some(TransportError::Refused(_))));
}
