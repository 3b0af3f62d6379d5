//! A network in memory that delays, loses and cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reelkv::raft::transport::{PeerHandler, Transport, TransportError, ViewStream};
use reelkv::rpc::handler::KvHandler;
use reelkv::server::{Front, Node, Peers};
use reelkv_proto::v1::{self, peer_request};

/// Longest delay of a message in a calm network.
const DELAY_MAX: Duration = Duration::from_micros(800);

struct Attached {
    node: Arc<Node>,
    /// Grows with each start: messages of an earlier life are dropped.
    life: u64,
}

struct State {
    nodes: BTreeMap<String, Attached>,
    lives: u64,
    /// Directed pairs whose messages are lost.
    cut: BTreeSet<(String, String)>,
    /// Shards whose replicas hear nothing from one another.
    silent_shards: BTreeSet<u64>,
    /// Probability that a message is lost, in parts per thousand.
    loss_per_mille: u32,
    rng: SmallRng,
}

/// The network of one cluster.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

impl Network {
    /// A calm network.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            nodes: BTreeMap::new(),
            lives: 0,
            cut: BTreeSet::new(),
            silent_shards: BTreeSet::new(),
            loss_per_mille: 0,
            rng: SmallRng::seed_from_u64(seed),
        })))
    }

    /// Begins a node's life: its transport, before the node itself exists.
    pub fn begin_life(&self, addr: &str) -> SimTransport {
        let mut state = self.0.lock();
        state.lives += 1;
        SimTransport {
            network: self.clone(),
            from: addr.to_owned(),
            life: state.lives,
        }
    }

    /// Lets the node of a life be reached.
    pub fn attach(&self, transport: &SimTransport, node: Arc<Node>) {
        let attached = Attached {
            node,
            life: transport.life,
        };
        self.0.lock().nodes.insert(transport.from.clone(), attached);
    }

    /// Ends a node's life.
    pub fn detach(&self, addr: &str) -> Option<Arc<Node>> {
        self.0.lock().nodes.remove(addr).map(|attached| attached.node)
    }

    /// The node at an address, if it lives.
    pub fn node(&self, addr: &str) -> Option<Arc<Node>> {
        self.0
            .lock()
            .nodes
            .get(addr)
            .map(|attached| attached.node.clone())
    }

    /// Loses everything from one address to another.
    pub fn cut(&self, from: &str, to: &str) {
        self.0.lock().cut.insert((from.to_owned(), to.to_owned()));
    }

    /// Loses this share of all messages, in parts per thousand.
    pub fn lose_per_mille(&self, share: u32) {
        self.0.lock().loss_per_mille = share;
    }

    /// Loses all Raft messages of a shard: its replicas run, and none can lead.
    pub fn silence_shard(&self, shard_id: u64) {
        self.0.lock().silent_shards.insert(shard_id);
    }

    /// Makes the network calm again.
    pub fn heal(&self) {
        let mut state = self.0.lock();
        state.cut.clear();
        state.silent_shards.clear();
        state.loss_per_mille = 0;
    }

    fn is_silent(&self, shard_id: u64) -> bool {
        self.0.lock().silent_shards.contains(&shard_id)
    }

    /// A client's request to a node; `None` when no answer comes.
    pub async fn request(&self, addr: &str, request: v1::Request) -> Option<v1::Response> {
        self.travel("client", addr, None).await.ok()?;
        let node = self.node(addr)?;
        let response = Front(node).request(request).await;
        self.travel(addr, "client", None).await.ok()?;
        Some(response)
    }

    /// Waits as a message from one address to another does. An error: it is lost.
    async fn travel(&self, from: &str, to: &str, life: Option<u64>) -> Result<(), ()> {
        let delay = {
            let mut state = self.0.lock();
            let share = state.loss_per_mille;
            let lost =
                state.cut.contains(&(from.to_owned(), to.to_owned())) || state.rng.random_ratio(share, 1_000);
            let dead =
                life.is_some_and(|life| state.nodes.get(from).is_some_and(|sender| sender.life != life));
            if lost || dead {
                return Err(());
            }
            DELAY_MAX.mul_f64(state.rng.random::<f64>())
        };
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// One node's side of the network, for one life.
#[derive(Clone)]
pub struct SimTransport {
    network: Network,
    from: String,
    life: u64,
}

impl SimTransport {
    async fn deliver(
        &self,
        addr: &str,
        request: v1::PeerRequest,
    ) -> Result<v1::PeerResponse, TransportError> {
        let silence = || TransportError::Lost {
            addr: addr.to_owned(),
            reason: "no answer".to_owned(),
        };
        let forever = std::future::pending::<Result<v1::PeerResponse, TransportError>>;
        let silenced = match &request.body {
            Some(peer_request::Body::Raft(message)) => self.network.is_silent(message.shard_id),
            _ => false,
        };
        if silenced
            || self
                .network
                .travel(&self.from, addr, Some(self.life))
                .await
                .is_err()
        {
            return forever().await;
        }
        let Some(node) = self.network.node(addr) else {
            return Err(TransportError::Unreachable {
                addr: addr.to_owned(),
                reason: "down".to_owned(),
            });
        };
        // The receiver handles it whether or not the sender still waits.
        let handled = tokio::spawn(Peers(node).handle(request));
        let response = handled.await.map_err(|_| silence())?;
        if self.network.travel(addr, &self.from, None).await.is_err() {
            return forever().await;
        }
        Ok(response)
    }
}

impl Transport for SimTransport {
    fn call(
        &self,
        addr: &str,
        request: v1::PeerRequest,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<v1::PeerResponse, TransportError>> {
        let (this, addr) = (self.clone(), addr.to_owned());
        async move {
            match tokio::time::timeout(timeout, this.deliver(&addr, request)).await {
                Ok(answer) => answer,
                Err(_) => Err(TransportError::Lost {
                    addr,
                    reason: "timed out".to_owned(),
                }),
            }
        }
        .boxed()
    }

    fn fetch_view(
        &self,
        addr: &str,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<ViewStream, TransportError>> {
        let (this, addr) = (self.clone(), addr.to_owned());
        async move {
            let silence = || TransportError::Lost {
                addr: addr.clone(),
                reason: "no answer".to_owned(),
            };
            let unreachable = || TransportError::Unreachable {
                addr: addr.clone(),
                reason: "down".to_owned(),
            };
            this.network
                .travel(&this.from, &addr, Some(this.life))
                .await
                .map_err(|()| silence())?;
            let node = this.network.node(&addr).ok_or_else(unreachable)?;
            let pieces = Peers(node)
                .serve_view(request)
                .await
                .map_err(TransportError::Refused)?;
            let pieces = stream::unfold((pieces, this, addr), |(mut pieces, this, addr)| async move {
                let piece = pieces.next().await?;
                let arrived = this.network.travel(&addr, &this.from, None).await;
                let piece = match arrived {
                    Ok(()) => piece.map_err(TransportError::Refused),
                    Err(()) => Err(TransportError::Lost {
                        addr: addr.clone(),
                        reason: "cut".to_owned(),
                    }),
                };
                Some((piece, (pieces, this, addr)))
            });
            Ok(pieces.boxed() as ViewStream)
        }
        .boxed()
    }
}
