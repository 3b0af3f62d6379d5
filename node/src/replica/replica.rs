//! One shard's copy on this node, from start to stop.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use openraft::{Instant as _, ServerState};
use openraft_rt::deterministic_rng::DeterministicRng;
use reelkv_proto::types::{KeyRange, ReplicaId, ShardEpoch};
use reelkv_proto::v1::{self, raft_request, raft_response};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::divergence::{self, Divergence};
use super::heal::Restorer;
use super::proposer::{Proposal, Proposer, cold_reads};
use super::proven::ProvenReads;
use super::reads::ReadBarrier;
use super::repair::Repairer;
use super::time::ShardTime;
use super::transfer::{Receiver, send_view};
use super::{ReplicaContext, expiry, hint, maintenance};
use crate::disk::offload;
use crate::error;
use crate::health::Structure;
use crate::limits::PROPOSER_QUEUE_BYTES_MAX;
use crate::mutants::Mutant;
use crate::raft::{
    LogStore, Network, OpenViews, PeerEvents, PeerNode, Raft, ReplicaStore, SnapshotData, StateMachine,
    StoreParts, Trust, config, handle_message,
};
use crate::shard::{Write, WriteResult};
use crate::storage::{Page, StoredRecord, TreeError, View};
use crate::wal::GroupId;

/// A shard that was never initialised by its first replica's node is, after this long, by any other.
const INITIALIZE_PATIENCE: Duration = Duration::from_secs(3);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Spans told in a status.
const UNPROVEN_SPANS_TOLD_MAX: usize = 64;

/// Followers that denied an entry they had acknowledged.
#[derive(Default)]
struct LostLogs(parking_lot::Mutex<std::collections::BTreeSet<ReplicaId>>);

impl PeerEvents for LostLogs {
    fn lost_log(&self, replica_id: ReplicaId) {
        if self.0.lock().insert(replica_id) {
            tracing::error!(
                replica_id,
                "a replica denies entries it had acknowledged: it lost its log"
            );
        }
    }
}

/// One shard's copy on this node.
pub struct Replica {
    id: GroupId,
    context: Arc<ReplicaContext>,
    store: Arc<ReplicaStore>,
    raft: Raft,
    views: Arc<OpenViews>,
    reads: ReadBarrier,
    proven: ProvenReads,
    time: ShardTime,
    /// Held by the one who proposes a tick.
    ticking: tokio::sync::Mutex<()>,
    proposals: mpsc::UnboundedSender<Proposal>,
    /// Bytes that may still wait for the proposer.
    queue_bytes: Arc<Semaphore>,
    lost_logs: Arc<LostLogs>,
    receiving: tokio::sync::Mutex<()>,
    divergence: Divergence,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Live records and their bytes when they were last counted.
    live: parking_lot::Mutex<(u64, u64)>,
    state_machine_gone: parking_lot::Mutex<Option<oneshot::Receiver<()>>>,
}

impl Replica {
    /// Opens a replica that the WAL knows and starts its Raft.
    ///
    /// # Errors
    /// The log or the record of the applied state cannot be used; the replica must be replaced.
    pub async fn start(
        context: Arc<ReplicaContext>,
        id: GroupId,
        birth: &v1::CreateReplicaRequest,
    ) -> io::Result<Arc<Self>> {
        let group = context
            .wal
            .group(id)
            .ok_or_else(|| io::Error::other("the log does not know this replica"))?;
        let parts = StoreParts {
            group: group.clone(),
            id,
            storage: context.storage.clone(),
            health: context.health.clone(),
        };
        let store = ReplicaStore::open(parts, birth).await?;
        let (views, lost_logs) = (Arc::new(OpenViews::default()), Arc::new(LostLogs::default()));
        let quorum = Arc::new(context.settings.times.quorum());
        let network = Network {
            id,
            node_id: context.node_id,
            cluster_id: context.cluster_id.clone(),
            transport: context.transport.clone(),
            views: views.clone(),
            events: lost_logs.clone(),
            acknowledged: Arc::default(),
            quorum: quorum.clone(),
        };
        let refilling = store.trust() == Trust::Refilling;
        let applied = store.with_control(|control| control.applied());
        let payloads = Restorer {
            context: context.clone(),
            group: group.clone(),
        };
        let log = LogStore::new(group, if refilling { applied } else { None });
        let log = log.with_payloads_from(Arc::new(payloads));
        let (alive, state_machine_gone) = oneshot::channel();
        let machine = StateMachine::new(store.clone(), Some(alive));
        let config = config(context.settings.times).map_err(io::Error::other)?;
        let raft = Raft::new(id.replica_id, config, network, log, machine);
        let raft = DeterministicRng::<openraft::TokioRuntime>::scope(context.clock.random_u64(), raft);
        let raft = raft.await.map_err(|fatal| io::Error::other(fatal.to_string()))?;
        quorum.follow(&raft);
        if refilling {
            raft.runtime_config().elect(false);
        }
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let reads = ReadBarrier::start(raft.clone(), id.shard_id, stop.clone());
        let time = ShardTime {
            clocks: context.clocks.clone(),
            store: store.clone(),
        };
        let proven = ProvenReads {
            context: context.clone(),
            store: store.clone(),
            raft: raft.clone(),
        };
        let (proposals, queue) = mpsc::unbounded_channel();
        let proposer = Proposer {
            raft: raft.clone(),
            store: store.clone(),
            reads: reads.clone(),
            refuse_one_in: context.settings.refuse_one_in,
            clock: context.clock.clone(),
            time: time.clone(),
            proven: proven.clone(),
            queue,
            requeue: proposals.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(proposer.run());
        let repairer = Repairer {
            context: context.clone(),
            store: store.clone(),
            raft: raft.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(repairer.run());
        let replica = Arc::new(Self {
            id,
            context,
            store,
            raft,
            views,
            reads,
            proven,
            time,
            ticking: tokio::sync::Mutex::new(()),
            proposals,
            queue_bytes: Arc::new(Semaphore::new(PROPOSER_QUEUE_BYTES_MAX)),
            lost_logs,
            receiving: tokio::sync::Mutex::new(()),
            divergence: Divergence::default(),
            stop: stop.clone(),
            tasks: tasks.clone(),
            live: parking_lot::Mutex::default(),
            state_machine_gone: parking_lot::Mutex::new(Some(state_machine_gone)),
        });
        tasks.spawn(maintenance::run(replica.clone(), stop.clone()));
        tasks.spawn(expiry::run(replica.clone(), stop.clone()));
        tasks.spawn(divergence::run(replica.clone(), stop.clone()));
        tasks.spawn(sweep(replica.clone(), stop));
        Ok(replica)
    }

    /// Gives a newborn shard its first membership. The replica named first does it at once (and
    /// so tends to lead); the others only if that does not happen.
    pub async fn initialize(&self, descriptor: &v1::ShardDescriptor) -> Result<(), v1::Error> {
        let members: BTreeMap<ReplicaId, PeerNode> = descriptor
            .replicas
            .iter()
            .map(|replica| {
                (
                    replica.replica_id,
                    PeerNode {
                        node_id: replica.node_id,
                        addr: replica.addr.clone(),
                    },
                )
            })
            .collect();
        let first = descriptor
            .replicas
            .first()
            .is_some_and(|replica| replica.replica_id == self.id.replica_id);
        if !first {
            let wait = self.raft.wait(Some(INITIALIZE_PATIENCE));
            let born = wait
                .metrics(|metrics| metrics.last_log_index.is_some(), "first entry")
                .await;
            if born.is_ok() {
                return Ok(());
            }
        }
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another replica's first entry arrived in between, or this is a second call.
            Err(openraft::errors::RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => {
                Ok(())
            }
            Err(error) => Err(error::unavailable(format!("shard {}: {error}", self.id.shard_id))),
        }
    }

    /// Writes through this replica, which must lead the shard.
    ///
    /// # Errors
    /// `NotLeader`, `Busy`, a refusal; `OutcomeUnknown` when the timeout ends the wait.
    pub async fn write(&self, write: Write, timeout: Duration) -> Result<WriteResult, v1::Error> {
        if !self.is_leader() {
            return Err(hint::not_leader(&self.raft, self.id.shard_id));
        }
        let share =
            u32::try_from(write.bytes()).map_err(|_| error::invalid("batch", "the write is too large"))?;
        let Ok(bytes) = self.queue_bytes.clone().try_acquire_many_owned(share) else {
            return Err(error::busy(50, "the shard's queue is full"));
        };
        let reads = cold_reads(&self.proven, &write).await?;
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal {
            rereads: 0,
            write,
            reads,
            reply,
            _bytes: bytes,
        };
        let stopping = || error::unavailable("the replica is stopping");
        self.proposals.send(proposal).map_err(|_| stopping())?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(error::outcome_unknown(
                "the replica stopped while the write was under way",
            )),
            Err(_) => Err(error::outcome_unknown(
                "the deadline passed while the write was under way",
            )),
        }
    }

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// `NotLeader` or `Unavailable`; never `None` for what cannot be proven absent.
    pub async fn get(&self, key: &[u8]) -> Result<Option<StoredRecord>, v1::Error> {
        self.catch_up().await?;
        let record = self.proven.get(key).await?.living();
        let Some(due_ms) = self.due_expiry(record.iter()) else {
            return Ok(record);
        };
        Box::pin(self.tick_to(due_ms)).await?;
        Ok(self.proven.get(key).await?.living())
    }

    /// The latest expiry among records that the log does not know to have expired, but the clocks do.
    fn due_expiry<'a>(&self, records: impl Iterator<Item = &'a StoredRecord>) -> Option<u64> {
        let mut expiring = records.filter(|record| record.expires_at_ms != 0).peekable();
        expiring.peek()?;
        let now_ms = self.time.now_ms()?;
        let due = expiring.filter(|record| record.has_expired(now_ms));
        due.map(|record| record.expires_at_ms).max()
    }

    /// Reads one page of live records in key order, linearizably.
    ///
    /// # Errors
    /// As [`Replica::get`].
    pub async fn scan(
        &self,
        range: KeyRange,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Page, v1::Error> {
        self.catch_up().await?;
        let page = self.proven.page(&range, records_max, bytes_max).await?;
        let Some(due_ms) = self.due_expiry(page.records.iter()) else {
            return Ok(page);
        };
        self.tick_to(due_ms).await?;
        self.proven.page(&range, records_max, bytes_max).await
    }

    /// Reads one page of this replica's own records, whoever leads; also those that have expired and
    /// were not removed yet.
    ///
    /// # Errors
    /// `Unavailable` while the tree is not trusted.
    pub async fn scan_local(
        &self,
        range: KeyRange,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Page, v1::Error> {
        let own = self.store.view_of(&range);
        let (view, _) = own.ok_or_else(|| refilling(self.id.shard_id))?;
        self.own_page(move || view.scan(&range.start, &range.end, records_max, bytes_max))
            .await
    }

    /// Reads from this replica's own tree, off the caller's thread.
    pub(super) async fn own_page(
        &self,
        scan: impl FnOnce() -> Result<Page, TreeError> + Send + 'static,
    ) -> Result<Page, v1::Error> {
        let page = offload(&*self.context.disk, scan).await;
        page.map_err(|stopped| error::unavailable(stopped.to_string()))?
            .map_err(|damage| {
                self.store.found(&damage);
                refilling(self.id.shard_id)
            })
    }

    /// Returns once this replica's newest view holds everything acknowledged before the call.
    async fn catch_up(&self) -> Result<(), v1::Error> {
        match Mutant::StaleReadOnOldLeader.is_on() && self.is_leader() {
            true => Ok(()),
            false => self.reads.pass().await,
        }
    }

    /// The newest view of everything, and the logged time of its entry.
    pub(super) fn newest(&self) -> Result<(View, u64), v1::Error> {
        let newest = self.store.view_of(&KeyRange::default());
        newest.ok_or_else(|| refilling(self.id.shard_id))
    }

    /// Answers another replica's message.
    ///
    /// # Errors
    /// The message was for another replica, or this one has stopped.
    pub async fn handle(&self, message: v1::RaftRequest) -> Result<v1::RaftResponse, v1::Error> {
        if message.to_replica_id != self.id.replica_id || message.shard_id != self.id.shard_id {
            let held = self.id.replica_id;
            return Err(error::unavailable(format!(
                "this node holds replica {held}, not {}",
                message.to_replica_id
            )));
        }
        let body = match message
            .body
            .ok_or_else(|| error::invalid("body", "an empty message"))?
        {
            raft_request::Body::Snapshot(offer) => {
                raft_response::Body::Snapshot(self.receive_snapshot(offer, message.from_replica_id).await?)
            }
            body => handle_message(&self.raft, body)
                .await
                .map_err(|error| error::unavailable(error.to_string()))?,
        };
        Ok(v1::RaftResponse { body: Some(body) })
    }

    /// Fetches an offered view into a new tree and lets openraft switch it in.
    async fn receive_snapshot(
        &self,
        offer: v1::SnapshotOffer,
        from: ReplicaId,
    ) -> Result<v1::SnapshotResponse, v1::Error> {
        let _one_at_a_time = self
            .receiving
            .try_lock()
            .map_err(|_| error::busy(500, "a transfer is under way"))?;
        let (vote, last_log_id, membership) =
            crate::raft::offered(&offer).map_err(|error| error::invalid("snapshot", error.to_string()))?;
        let node = membership.get_node(&from).cloned();
        let node = node.ok_or_else(|| error::invalid("snapshot", "the sender is no member"))?;
        let receiver = Receiver {
            context: &self.context,
            store: &self.store,
            addr: node.addr,
            request: v1::FetchViewRequest {
                cluster_id: self.context.cluster_id.clone(),
                shard_id: self.id.shard_id,
                replica_id: from,
                min_index: 0,
                view_id: offer.view_id,
                ..Default::default()
            },
        };
        if !receiver.sender().is_believed() {
            return Err(error::unavailable("what the sender sent cannot be believed"));
        }
        let refill = receiver
            .fill()
            .await
            .map_err(|error| error::unavailable(error.to_string()))?;
        let meta = openraft::SnapshotMeta {
            last_log_id,
            last_membership: membership,
        };
        let snapshot = openraft::Snapshot {
            meta,
            snapshot: SnapshotData::Incoming(Box::new(refill)),
        };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        let response = installed.map_err(|error| error::unavailable(error.to_string()))?;
        Ok(crate::raft::snapshot_response(&response))
    }

    /// Streams a view to another replica, at `min_index` or later.
    ///
    /// # Errors
    /// `Unavailable` while there is no tree, while it is not known what is wrong with it, or when this
    /// replica is behind that index.
    pub fn serve_view(
        &self,
        request: v1::FetchViewRequest,
    ) -> Result<BoxStream<'static, Result<v1::ViewPayload, v1::Error>>, v1::Error> {
        if request.replica_id != self.id.replica_id {
            // Another one at the same address: it may not hold what the one asked for holds.
            let held = self.id.replica_id;
            return Err(error::unavailable(format!(
                "this node holds replica {held}, not {}",
                request.replica_id
            )));
        }
        let donation = match request.view_id {
            0 => self.store.donate().ok_or_else(|| refilling(self.id.shard_id))?,
            id => {
                let open = self.views.get(id);
                open.ok_or_else(|| error::unavailable("the view was closed"))?
            }
        };
        let applied = donation.control.applied().map_or(0, |applied| applied.index);
        if applied < request.min_index {
            return Err(error::unavailable("this replica is behind the one that asks"));
        }
        let view_id = match request.view_id {
            // With too many open, this one cannot be resumed.
            0 => self.views.open_resumable(donation.clone()).unwrap_or(0),
            id => id,
        };
        let (open, disk) = ((self.views.clone(), view_id), self.context.disk.clone());
        Ok(send_view(self.store.clone(), open, donation, disk, request))
    }

    /// Whether this replica believes to lead its shard. A hint, never a guard.
    pub fn is_leader(&self) -> bool {
        crate::raft::metrics(&self.raft).state == ServerState::Leader
    }

    /// The shard as this replica has applied it.
    pub fn descriptor(&self) -> v1::ShardDescriptor {
        let leader = hint::known_leader(&self.raft);
        let replicas = self
            .members()
            .into_iter()
            .map(|(replica_id, (node, role))| v1::ReplicaDescriptor {
                replica_id,
                node_id: node.node_id,
                addr: node.addr,
                role: role.into(),
            });
        let replicas = replicas.collect();
        self.store.with_control(|control| v1::ShardDescriptor {
            shard_id: control.shard_id(),
            start_key: control.range().start.clone(),
            end_key: control.range().end.clone(),
            epoch: Some(v1::ShardEpoch {
                conf_version: control.conf_version(),
                range_version: control.range_version(),
            }),
            replicas,
            leader_node_id: leader.map_or(0, |(_, node)| node.node_id),
        })
    }

    /// Refuses a request that was routed with another shape of the shard in mind. Only the range
    /// matters: a change of membership misroutes nothing.
    ///
    /// # Errors
    /// `EpochNotMatch` with the present shape.
    pub fn check_epoch(&self, epoch: Option<v1::ShardEpoch>) -> Result<(), v1::Error> {
        let Some(epoch) = epoch.map(ShardEpoch::from) else {
            return Ok(());
        };
        let current = self.store.with_control(|control| control.range_version());
        match epoch.range_version == current {
            true => Ok(()),
            false => Err(error::epoch_not_match(vec![self.descriptor()])),
        }
    }

    /// Followers of this leader that lost their log and must be replaced.
    pub fn lost_logs(&self) -> Vec<ReplicaId> {
        let members = self.members();
        let mut lost = self.lost_logs.0.lock();
        lost.retain(|id| members.contains_key(id));
        lost.iter().copied().collect()
    }

    /// Figures for `node status`.
    pub fn status(&self) -> v1::ReplicaStatus {
        let metrics = crate::raft::metrics(&self.raft);
        let own = self.id.replica_id;
        let voter = metrics
            .membership_config
            .membership()
            .voter_ids()
            .any(|id| id == own);
        let leader = metrics
            .current_leader
            .and_then(|id| metrics.membership_config.membership().get_node(&id));
        let state = match self.store.trust() {
            _ if metrics.running_state.is_err() => "stopped",
            Trust::Trusted => "trusted",
            Trust::Suspect | Trust::Repairing => "repairing",
            Trust::Refilling => "refilling",
        };
        let (records, data_bytes) = *self.live.lock();
        v1::ReplicaStatus {
            shard_id: self.id.shard_id,
            replica_id: own,
            role: if voter {
                v1::ReplicaRole::Voter
            } else {
                v1::ReplicaRole::Learner
            }
            .into(),
            is_leader: metrics.state == ServerState::Leader,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            last_log_term: self.store.group().last().map_or(0, |last| last.term),
            committed_index: metrics.local_committed.map_or(0, |id| id.index),
            applied_index: self
                .store
                .with_control(|control| control.applied())
                .map_or(0, |id| id.index),
            checkpoint_index: self.store.checkpointed().map_or(0, |id| id.index),
            next_version: self.store.with_control(|control| control.next_version()),
            state: state.to_owned(),
            records,
            data_bytes,
            leader_node_id: leader.map_or(0, |node| node.node_id),
            descriptor: Some(self.descriptor()),
            oldest_proof_ms: self.oldest_proof_ms(),
            unproven_spans: self.unproven_spans(),
        }
    }

    /// What this replica cannot prove, for people.
    fn unproven_spans(&self) -> Vec<v1::UnprovenSpan> {
        let reason = match self.store.trust() {
            Trust::Refilling => "there is no tree",
            _ => "damaged",
        };
        let unproven = self.store.unproven();
        let uncompared = self.store.uncompared().without(&unproven);
        let damaged = unproven.iter().map(|range| (range, reason));
        let spans = damaged.chain(uncompared.iter().map(|range| (range, "not compared yet")));
        let spans = spans
            .take(UNPROVEN_SPANS_TOLD_MAX)
            .map(|(range, reason)| v1::UnprovenSpan {
                start_key: range.start,
                end_key: range.end,
                reason: reason.to_owned(),
            });
        spans.collect()
    }

    /// Age of the oldest proof of what is not in doubt.
    fn oldest_proof_ms(&self) -> Option<u64> {
        let mut doubted = self.store.unproven();
        doubted.extend(&self.store.uncompared());
        let range = self.store.with_control(|control| control.range().clone());
        let oldest = self.divergence.oldest_proof(&range, &doubted)?;
        Some((oldest.as_millis() as u64).max(1)) // 0 would mean never
    }

    /// Gives leadership to another voter that has caught up, to `to` if named.
    ///
    /// # Errors
    /// `Unavailable` when no voter qualifies.
    pub async fn transfer_leader(&self, to_node: Option<u64>) -> Result<(), v1::Error> {
        match transfer_leadership(&self.raft, to_node).await {
            true => Ok(()),
            false => Err(error::unavailable("no voter there has caught up")),
        }
    }

    /// Does not stand for election any more; for a node that is about to stop.
    pub fn stop_campaigning(&self) {
        self.raft.runtime_config().elect(false);
    }

    /// Checkpoints now.
    ///
    /// # Errors
    /// The log refused the record.
    pub async fn checkpoint(&self) -> io::Result<()> {
        maintenance::checkpoint(self).await
    }

    /// Counts live records, for figures; reads the whole tree.
    pub(super) async fn count(&self) {
        let Some(view) = self.store.view() else { return };
        match view.digest().await {
            Ok(sum) => *self.live.lock() = (sum.records, sum.bytes),
            Err(TreeError::Closed) => {}
            Err(damage) => self.store.found(&damage),
        }
    }

    /// Whether its Raft still runs. `is_leader` and the metrics cannot tell: a panicked core goes
    /// on looking healthy there.
    pub async fn is_running(&self) -> bool {
        match tokio::time::timeout(STOP_TIMEOUT, self.raft.with_raft_state(|_| ())).await {
            Ok(state) => state.is_ok(),
            Err(_) => true, // busy, not dead
        }
    }

    /// Stops everything this replica runs and waits until openraft has let go of its store.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.views.clear();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(id = ?self.id, %error, "the shard's Raft did not stop in order");
        }
        self.tasks.close();
        self.tasks.wait().await;
        let gone = self.state_machine_gone.lock().take();
        if let Some(gone) = gone
            && tokio::time::timeout(STOP_TIMEOUT, gone).await.is_err()
        {
            tracing::warn!(id = ?self.id, "openraft still holds the state machine");
        }
        self.store.close().await;
    }

    /// Shard and replica.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Its applied state.
    pub fn store(&self) -> &Arc<ReplicaStore> {
        &self.store
    }

    pub(super) fn raft(&self) -> &Raft {
        &self.raft
    }

    pub(super) fn time(&self) -> &ShardTime {
        &self.time
    }

    pub(super) fn divergence(&self) -> &Divergence {
        &self.divergence
    }

    pub(super) fn ticking(&self) -> &tokio::sync::Mutex<()> {
        &self.ticking
    }

    pub(super) fn context(&self) -> &Arc<ReplicaContext> {
        &self.context
    }
}

pub(super) fn refilling(shard_id: u64) -> v1::Error {
    error::unavailable(format!("shard {shard_id} is being refilled on this node"))
}

/// Asks the best voter to take over: on `to_node` if named, else whoever has caught up furthest.
/// False when this replica does not lead or nobody has caught up.
pub(super) async fn transfer_leadership(raft: &Raft, to_node: Option<u64>) -> bool {
    let target = {
        let metrics = crate::raft::metrics(raft);
        let membership = metrics.membership_config.membership();
        let voters: Vec<ReplicaId> = membership.voter_ids().collect();
        let Some(followers) = metrics
            .replication
            .as_ref()
            .filter(|_| metrics.state == ServerState::Leader)
        else {
            return false;
        };
        let heard_lately = |id: &ReplicaId| {
            let heard = metrics
                .heartbeat
                .as_ref()
                .and_then(|heard| heard.get(id))
                .copied()
                .flatten();
            heard.is_some_and(|at| at.elapsed() < Duration::from_secs(2))
        };
        let candidate = |id: &ReplicaId| {
            let node = membership.get_node(id);
            *id != metrics.id
                && voters.contains(id)
                && node.is_some_and(|node| to_node.is_none_or(|wanted| wanted == node.node_id))
        };
        let caught_up = followers
            .iter()
            .filter(|(id, _)| candidate(id) && heard_lately(id))
            .filter_map(|(id, matched)| matched.map(|matched| (matched.index, *id)))
            .max();
        match (caught_up, metrics.last_log_index) {
            (Some((matched, id)), Some(last)) if last.saturating_sub(matched) <= 16 => id,
            _ => return false,
        }
    };
    raft.trigger().transfer_leader(target).await.is_ok()
}

impl Replica {
    /// Its tree was read whole: what an earlier run left open of it in the ledger is no more.
    fn found_whole(&self) {
        let (health, id) = (&self.context.health, self.id);
        health.verified(id.shard_id, id.replica_id, Structure::Tree);
        health.verified(id.shard_id, id.replica_id, Structure::Record);
    }
}

/// Verifies every record once after the start; what no request touches would else stay unseen.
async fn sweep(replica: Arc<Replica>, stop: CancellationToken) {
    let Some(tree) = replica.store.tree() else { return };
    tokio::select! {
        biased;
        report = tree.sweep() => match report {
            Ok(report) => {
                *replica.live.lock() = (report.live.records, report.live.bytes);
                let bad = report.bad_files.first().or(report.bad_spans.first().map(|span| &span.error));
                match bad {
                    Some(damage) => replica.store.found(damage),
                    None => replica.found_whole(),
                }
            }
            Err(TreeError::Closed) => {}
            Err(damage) => replica.store.found(&damage),
        },
        () = stop.cancelled() => {}
    }
}

/// The shard's other voters, as far as this replica knows. A learner's records were not compared yet.
pub(super) fn other_voters(raft: &Raft) -> Vec<(ReplicaId, PeerNode)> {
    let metrics = crate::raft::metrics(raft);
    let membership = metrics.membership_config.membership();
    membership
        .voter_ids()
        .filter(|id| *id != metrics.id)
        .filter_map(|id| Some((id, membership.get_node(&id)?.clone())))
        .collect()
}
