//! A network in memory that delays, loses, duplicates, reorders, corrupts and cuts.
//!
//! Every message waits for a time of its own, so messages overtake one another as soon as delays
//! differ. A corrupted message between nodes has one bit of its frame flipped, exactly where a
//! wire would: the frame's own checksum is what has to notice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reelkv::disk::sim::SimDisk;
use reelkv::raft::transport::{PeerHandler, Transport, TransportError, ViewStream};
use reelkv::rpc::handler::{AdminHandler, KvHandler};
use reelkv::rpc::{frame, verified};
use reelkv::server::{Front, Node, Peers};
use reelkv_proto::v1::{self, peer_frame, peer_request, view_payload};
use tokio::sync::Notify;

/// Longest delay of a message in a calm network.
const DELAY_MAX: Duration = Duration::from_micros(800);

/// What the network does to messages; calm by default.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Probability that a message is lost, in parts per thousand.
    pub loss_per_mille: u32,
    /// Probability that a message between nodes arrives twice, in parts per thousand.
    pub duplicate_per_mille: u32,
    /// Probability that a bit of a message between nodes is flipped, in parts per thousand.
    pub corrupt_per_mille: u32,
    /// Longest delay of a message.
    pub delay_max: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            loss_per_mille: 0,
            duplicate_per_mille: 0,
            corrupt_per_mille: 0,
            delay_max: DELAY_MAX,
        }
    }
}

/// What has happened to messages so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Delivered, answers included.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost because the way was cut.
    pub cut: u64,
    /// Requests that arrived a second time.
    pub duplicated: u64,
    /// Frames with a flipped bit.
    pub corrupted: u64,
    /// Records of views that were wrong before their chunk got its checksum.
    pub spoiled: u64,
    /// Views that were asked for again from where they broke off.
    pub resumed: u64,
    /// Messages that took longer than a calm network's longest delay.
    pub delayed: u64,
}

struct Attached {
    node: Arc<Node>,
    /// Grows with each start: messages of an earlier life are dropped.
    life: u64,
}

/// A machine whose power goes off as it sends.
struct Doomed {
    /// Messages that still leave it; at 0 it is off.
    messages: u64,
    disk: SimDisk,
    is_off: Arc<Notify>,
}

impl Doomed {
    /// Whether the next message leaves the machine.
    fn sends(&mut self) -> bool {
        if self.messages == 1 {
            self.disk.power_off_after(0);
            self.is_off.notify_one();
        }
        self.messages = self.messages.saturating_sub(1);
        self.messages > 0
    }
}

struct State {
    nodes: BTreeMap<String, Attached>,
    lives: u64,
    /// Directed pairs whose messages are lost.
    cut: BTreeSet<(String, String)>,
    doomed: BTreeMap<String, Doomed>,
    /// Shards whose replicas hear nothing from one another.
    silent_shards: BTreeSet<u64>,
    /// Who sends views with wrong records.
    spoils: Option<String>,
    weather: Weather,
    happened: Happened,
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
            doomed: BTreeMap::new(),
            silent_shards: BTreeSet::new(),
            spoils: None,
            weather: Weather::default(),
            happened: Happened::default(),
            rng: SmallRng::seed_from_u64(seed),
        })))
    }

    /// Begins a node's life: its transport, before the node itself exists.
    pub fn begin_life(&self, addr: &str) -> SimTransport {
        let mut state = self.0.lock();
        state.lives += 1;
        state.doomed.remove(addr);
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

    /// Loses everything between two addresses.
    pub fn part(&self, one: &str, other: &str) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Carries everything again that was cut.
    pub fn join(&self) {
        self.0.lock().cut.clear();
    }

    /// Lets this many more messages leave a machine: at the next one its power goes off, which also
    /// ends what its disk does. Notifies of that.
    pub fn power_off_after(&self, addr: &str, messages: u64, disk: SimDisk) -> Arc<Notify> {
        let is_off = Arc::new(Notify::new());
        let doomed = Doomed {
            messages: messages + 1,
            disk,
            is_off: is_off.clone(),
        };
        self.0.lock().doomed.insert(addr.to_owned(), doomed);
        is_off
    }

    /// Changes what happens to messages.
    pub fn weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Loses all Raft messages of a shard: its replicas run, and none can lead.
    pub fn silence_shard(&self, shard_id: u64) {
        self.0.lock().silent_shards.insert(shard_id);
    }

    /// Lets the views that one node sends have wrong records, behind right checksums of their chunks; or
    /// none's.
    pub fn spoil_views_of(&self, addr: Option<&str>) {
        self.0.lock().spoils = addr.map(str::to_owned);
    }

    /// Makes the network calm again.
    pub fn heal(&self) {
        let mut state = self.0.lock();
        state.spoils = None;
        state.cut.clear();
        state.silent_shards.clear();
        state.weather = Weather::default();
    }

    /// What has happened to messages so far.
    pub fn happened(&self) -> Happened {
        self.0.lock().happened
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

    /// The map as a node knows it; `None` when no answer comes.
    pub async fn directory(&self, addr: &str) -> Option<v1::Directory> {
        self.travel("client", addr, None).await.ok()?;
        let front = Front(self.node(addr)?);
        let answer = front.directory(v1::GetDirectoryRequest::default()).await;
        self.travel(addr, "client", None).await.ok()?;
        answer.ok()
    }

    /// Waits as a message from one address to another does. An error: it is lost.
    async fn travel(&self, from: &str, to: &str, life: Option<u64>) -> Result<(), ()> {
        let delay = {
            let state = &mut *self.0.lock();
            let sends = state.doomed.get_mut(from).is_none_or(Doomed::sends);
            let hears = state.doomed.get(to).is_none_or(|doomed| doomed.messages > 0);
            if !(sends && hears) {
                return Err(());
            }
            if state.cut.contains(&(from.to_owned(), to.to_owned())) {
                state.happened.cut += 1;
                return Err(());
            }
            if state.rng.random_ratio(state.weather.loss_per_mille, 1_000) {
                state.happened.lost += 1;
                return Err(());
            }
            if life.is_some_and(|life| state.nodes.get(from).is_some_and(|sender| sender.life != life)) {
                return Err(());
            }
            let delay = state.weather.delay_max.mul_f64(state.rng.random::<f64>());
            tracing::trace!(from, to, ?delay, "travels");
            state.happened.delivered += 1;
            state.happened.delayed += u64::from(delay > DELAY_MAX);
            delay
        };
        tokio::time::sleep(delay).await;
        Ok(())
    }

    fn arrives_twice(&self) -> bool {
        let state = &mut *self.0.lock();
        let twice = state.rng.random_ratio(state.weather.duplicate_per_mille, 1_000);
        state.happened.duplicated += u64::from(twice);
        twice
    }

    /// Which bit of a message of this many bytes is flipped on its way, if any.
    fn flipped_bit(&self, len_bytes: usize) -> Option<usize> {
        let state = &mut *self.0.lock();
        let flips = len_bytes > 0 && state.rng.random_ratio(state.weather.corrupt_per_mille, 1_000);
        state.happened.corrupted += u64::from(flips);
        flips.then(|| state.rng.random_range(0..len_bytes * 8))
    }

    /// A message as it arrives; `None` when its frame is not what was sent.
    fn through_the_wire(&self, body: peer_frame::Body) -> Option<peer_frame::Body> {
        let mut bytes = frame(1, body).encode_to_vec();
        if let Some(bit) = self.flipped_bit(bytes.len()) {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let arrived = v1::PeerFrame::decode(&bytes[..]).ok()?;
        // A flipped id answers a call that nobody waits for.
        (arrived.id == 1).then(|| verified(arrived))?
    }

    fn is_corrupting(&self) -> bool {
        self.0.lock().weather.corrupt_per_mille > 0
    }

    fn request_through_the_wire(&self, request: v1::PeerRequest) -> Option<v1::PeerRequest> {
        if !self.is_corrupting() {
            return Some(request);
        }
        match self.through_the_wire(peer_frame::Body::Request(request.encode_to_vec().into()))? {
            peer_frame::Body::Request(bytes) => v1::PeerRequest::decode(bytes).ok(),
            peer_frame::Body::Response(_) => None,
        }
    }

    fn response_through_the_wire(&self, response: v1::PeerResponse) -> Option<v1::PeerResponse> {
        if !self.is_corrupting() {
            return Some(response);
        }
        match self.through_the_wire(peer_frame::Body::Response(response.encode_to_vec().into()))? {
            peer_frame::Body::Response(bytes) => v1::PeerResponse::decode(bytes).ok(),
            peer_frame::Body::Request(_) => None,
        }
    }

    /// A piece of a view as its sender's memory holds it: perhaps with a bit of a record flipped.
    fn as_held_by(&self, addr: &str, mut piece: v1::ViewPayload) -> v1::ViewPayload {
        let state = &mut *self.0.lock();
        if state.spoils.as_deref() == Some(addr)
            && let Some(view_payload::Kind::Records(page)) = &mut piece.kind
            && let Some(record) = page.records.last_mut()
        {
            // The last byte before the record's own checksum.
            let mut bytes = record.record.to_vec();
            let at = bytes.len().saturating_sub(5);
            bytes[at] ^= 1;
            record.record = bytes.into();
            state.happened.spoiled += 1;
        }
        piece
    }

    /// A piece of a view as it arrives: chunks have a checksum of their own.
    fn piece_through_the_wire(&self, piece: v1::ViewPayload) -> Option<v1::ViewPayload> {
        if !self.is_corrupting() {
            return Some(piece);
        }
        let mut bytes = piece.encode_to_vec();
        let crc = crc32fast::hash(&bytes);
        if let Some(bit) = self.flipped_bit(bytes.len()) {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let intact = crc32fast::hash(&bytes) == crc;
        intact.then(|| v1::ViewPayload::decode(Bytes::from(bytes)).ok())?
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
        let damaged = || TransportError::Damaged {
            addr: addr.to_owned(),
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
        let request = self
            .network
            .request_through_the_wire(request)
            .ok_or_else(damaged)?;
        // Requests of clients travel in streams, which deliver once or break.
        let is_forward = matches!(request.body, Some(peer_request::Body::Forward(_)));
        if !is_forward && self.network.arrives_twice() {
            let again = (self.clone(), addr.to_owned(), node.clone(), request.clone());
            tokio::spawn(async move {
                let (this, addr, node, request) = again;
                if this.network.travel(&this.from, &addr, None).await.is_ok() {
                    Peers(node).handle(request).await;
                }
            });
        }
        // The receiver handles it whether or not the sender still waits.
        let handled = tokio::spawn(Peers(node).handle(request));
        let response = handled.await.map_err(|_| lost(addr, "no answer"))?;
        if self.network.travel(addr, &self.from, None).await.is_err() {
            return forever().await;
        }
        self.network
            .response_through_the_wire(response)
            .ok_or_else(damaged)
    }

    async fn open_view(
        &self,
        addr: &str,
        request: v1::FetchViewRequest,
    ) -> Result<ViewStream, TransportError> {
        self.network
            .travel(&self.from, addr, Some(self.life))
            .await
            .map_err(|()| lost(addr, "no answer"))?;
        self.network.0.lock().happened.resumed += u64::from(!request.after_key.is_empty());
        let node = self
            .network
            .node(addr)
            .ok_or_else(|| TransportError::Unreachable {
                addr: addr.to_owned(),
                reason: "down".to_owned(),
            })?;
        let pieces = Peers(node)
            .serve_view(request)
            .await
            .map_err(TransportError::Refused)?;
        let state = (pieces, self.clone(), addr.to_owned());
        let pieces = stream::unfold(state, |(mut pieces, this, addr)| async move {
            let piece = pieces.next().await?;
            let arrived = this.network.travel(&addr, &this.from, None).await;
            let piece = match (arrived, piece) {
                (Err(()), _) => Err(lost(&addr, "cut")),
                (Ok(()), Err(refused)) => Err(TransportError::Refused(refused)),
                (Ok(()), Ok(piece)) => this
                    .network
                    .piece_through_the_wire(this.network.as_held_by(&addr, piece))
                    .ok_or_else(|| TransportError::Damaged { addr: addr.clone() }),
            };
            Some((piece, (pieces, this, addr)))
        });
        Ok(pieces.boxed())
    }
}

fn lost(addr: &str, reason: &str) -> TransportError {
    TransportError::Lost {
        addr: addr.to_owned(),
        reason: reason.to_owned(),
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
            let answered = tokio::time::timeout(timeout, this.deliver(&addr, request)).await;
            answered.unwrap_or_else(|_| Err(lost(&addr, "timed out")))
        }
        .boxed()
    }

    fn fetch_view(
        &self,
        addr: &str,
        request: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<ViewStream, TransportError>> {
        let (this, addr) = (self.clone(), addr.to_owned());
        async move { this.open_view(&addr, request).await }.boxed()
    }
}
