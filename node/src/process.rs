//! One node as it runs in a process: its directory, its ports, its end.
//!
//! `reelkv node start` runs one, `reelkv dev` three.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::SystemClock;
use crate::disk::RealDisk;
use crate::rpc::{GrpcTransport, Services, http, serve};
use crate::server::{Front, Node, NodeOptions, OpenError, Peers};

/// Handing leaders over takes a round trip or two per shard.
const HAND_OVER_MAX: Duration = Duration::from_secs(4);
/// What was being answered is answered; sessions end.
const DRAIN_MAX: Duration = Duration::from_secs(3);
/// The last checkpoint and the log.
const STOP_MAX: Duration = Duration::from_secs(2);
/// How often the log is asked whether its disk can still be trusted.
const POISON_INTERVAL: Duration = Duration::from_millis(200);

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be had.
    #[error("{flag} {addr}: {source}")]
    Listen {
        /// The flag that named it.
        flag: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl StartError {
    /// Whether the directory is another node's: starting again will not help.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Open(error) if error.is_foreign())
    }
}

/// A running node.
pub struct NodeProcess {
    node: Arc<Node>,
    stop_serving: CancellationToken,
    serving: Vec<JoinHandle<io::Result<()>>>,
}

impl NodeProcess {
    /// Takes the ports, opens the directory, and serves. The ports come first: while one is taken,
    /// another process may be using the directory in earnest.
    ///
    /// # Errors
    /// One line that names the port or the directory; nothing was changed.
    pub async fn start(
        options: NodeOptions,
        listen: SocketAddr,
        http_listen: Option<SocketAddr>,
    ) -> Result<Self, StartError> {
        let listener = bind("--listen", listen).await?;
        let page = match http_listen {
            Some(addr) => Some(bind("--http", addr).await?),
            None => None,
        };
        let transport = Arc::new(GrpcTransport::new());
        let node = Node::open(options, Arc::new(RealDisk), Arc::new(SystemClock), transport).await?;
        let front = Arc::new(Front(node.clone()));
        let services = Services {
            kv: front.clone(),
            admin: front.clone(),
            peer: Arc::new(Peers(node.clone())),
        };
        let stop_serving = CancellationToken::new();
        let mut serving = vec![tokio::spawn(serve(listener, services, stop_serving.clone()))];
        if let Some(listener) = page {
            serving.push(tokio::spawn(http::serve(listener, front, stop_serving.clone())));
        }
        Ok(Self {
            node,
            stop_serving,
            serving,
        })
    }

    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Waits until the node cannot go on: its log's disk is not to be trusted any more, or a
    /// listener failed. Says why.
    pub fn failed(&mut self) -> impl Future<Output = String> + Send {
        let node = self.node.clone();
        let listener_failed = {
            let serving = self.serving.iter_mut().map(|task| {
                Box::pin(async move {
                    match task.await {
                        Ok(Ok(())) => "a listener stopped".to_owned(),
                        Ok(Err(error)) => format!("a listener failed: {error}"),
                        Err(error) => format!("a listener panicked: {error}"),
                    }
                })
            });
            futures::future::select_all(serving)
        };
        async move {
            tokio::select! {
                () = poisoned(&node) => {
                    "the log's disk failed a write or a sync; nothing on it is trusted until a restart".to_owned()
                }
                (reason, ..) = listener_failed => reason,
            }
        }
    }

    /// Hands leaders over, answers what was asked, and stops; within 10 s.
    pub async fn stop(self) {
        self.node.hand_over(HAND_OVER_MAX).await;
        self.stop_now().await;
    }

    /// Stops without handing anything over: for the end of a whole cluster.
    pub async fn stop_now(self) {
        self.stop_serving.cancel();
        let served = futures::future::join_all(self.serving);
        if tokio::time::timeout(DRAIN_MAX, served).await.is_err() {
            tracing::debug!("connections that did not end in time were closed");
        }
        self.node.stop(STOP_MAX).await;
    }
}

async fn bind(flag: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| StartError::Listen { flag, addr, source })
}

async fn poisoned(node: &Node) {
    while !node.member().is_some_and(|member| member.is_poisoned()) {
        tokio::time::sleep(POISON_INTERVAL).await;
    }
}
