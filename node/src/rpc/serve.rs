//! The node's one port: keys, operators, other nodes, health and reflection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::v1::admin_server::AdminServer;
use reelkv_proto::v1::kv_server::KvServer;
use reelkv_proto::v1::peer_server::PeerServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::admin::AdminService;
use super::handler::{AdminHandler, KvHandler};
use super::kv::KvService;
use super::peer::PeerService;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::raft::transport::PeerHandler;

/// Connections end this long after the node stops, whatever they are doing.
const DRAIN_MAX: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Streams (unary calls, scans, sessions) of one connection at a time.
const STREAMS_MAX: u32 = 1_024;

/// Who answers.
pub struct Services {
    /// Keys and values.
    pub kv: Arc<dyn KvHandler>,
    /// Operators.
    pub admin: Arc<dyn AdminHandler>,
    /// Other nodes.
    pub peer: Arc<dyn PeerHandler>,
}

/// Serves until `stop` is cancelled and the connections have ended, for which they have 3 s.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, services: Services, stop: CancellationToken) -> io::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<KvServer<KvService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(reelkv_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(io::Error::other)?;
    let kv = KvServer::new(KvService {
        handler: services.kv,
        stop: stop.clone(),
    })
    .max_decoding_message_size(MESSAGE_BYTES_MAX)
    .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(AdminService(services.admin)).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let peer = PeerServer::new(PeerService {
        handler: services.peer,
        stop: stop.clone(),
    })
    .max_decoding_message_size(MESSAGE_BYTES_MAX)
    .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let serving = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(health)
        .add_service(reflection)
        .add_service(kv)
        .add_service(admin)
        .add_service(peer)
        .serve_with_incoming_shutdown(no_delay(listener), stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        reporter.set_not_serving::<KvServer<KvService>>().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        served = serving => served.map_err(io::Error::other),
        () = drained => {
            tracing::debug!("connections that did not end in time were closed");
            Ok(())
        }
    }
}

/// Accepted connections; `Server::tcp_nodelay` does not hold for a listener of our own.
fn no_delay(listener: TcpListener) -> impl futures::Stream<Item = io::Result<tokio::net::TcpStream>> {
    futures::StreamExt::map(TcpListenerStream::new(listener), |accepted| {
        accepted.inspect(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection stays with delays");
            }
        })
    })
}
