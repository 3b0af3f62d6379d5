//! A node that belongs to a cluster: its log, its replicas, its copy of the map.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reelkv_proto::types::NodeId;
use reelkv_proto::v1;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::directory::{self, DirectoryCopy};
use super::driver::Driver;
use super::identity::{self, Identity};
use super::node::{Node, NodeOptions, OpenError, Past};
use super::watermarks::{Showing, Watermarks};
use super::{driver, events, file_scrub, lost, meta, recall, recover, watermarks};
use crate::clock::{Instant, SharedClock, now};
use crate::disk::offload;
use crate::health::{Action, Damage, Health, KeptFile, Kind, Structure};
use crate::raft::transport::SharedTransport;
use crate::replica::{Clocks, Rate, ReplicaContext, Replicas, Senders, StartOutcome};
use crate::storage::Storage;
use crate::wal::{GroupId, Recovery, Wal};

/// Tasks that were told to end have ended by then, as a rule.
const TASKS_MAX: Duration = Duration::from_millis(500);

/// A member of a cluster.
pub struct Member {
    identity: Identity,
    /// Small files that do not change while the node is up.
    fixed_files: Vec<(Structure, Arc<KeptFile>)>,
    pub(super) options: NodeOptions,
    pub(super) clock: SharedClock,
    pub(super) transport: SharedTransport,
    pub(super) health: Arc<Health>,
    pub(super) storage: Arc<Storage>,
    pub(super) wal: Wal,
    pub(super) replicas: Arc<Replicas>,
    pub(super) directory: DirectoryCopy,
    pub(super) watermarks: Arc<Watermarks>,
    /// Nodes that an operator declared lost for good: nobody waits for them.
    pub(super) lost_nodes: BTreeSet<NodeId>,
    pub(super) clocks: Arc<Clocks>,
    /// Replicas that do not run yet: the node does not know whether its log is the newest, or
    /// opens one after the other.
    pub(super) starting: Mutex<BTreeSet<GroupId>>,
    /// Replicas that can never run again under their id.
    pub(super) lost: Mutex<BTreeSet<GroupId>>,
    /// Replicas whose logs are being healed from the other voters before they start.
    pub(super) healing: Mutex<BTreeSet<GroupId>>,
    /// Shards of which this node, as leader, is replacing a replica.
    pub(super) replacing: Mutex<BTreeSet<u64>>,
    /// Changes of the directory's shape, one at a time on the meta shard's leader.
    pub(super) reshaping: tokio::sync::Mutex<()>,
    pub(super) started: Instant,
    /// Set once the log was found whole and its replicas were started.
    recalled: AtomicBool,
    /// Set when the node is asked to stop: it takes no leadership any more.
    stopping: AtomicBool,
    /// Ends `tasks`.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Member {
    /// Opens the log. No replica runs before `start`.
    pub(super) async fn open(
        node: &Arc<Node>,
        identity: Identity,
        past: Past,
    ) -> Result<(Arc<Self>, Recovery), OpenError> {
        let options = node.options.clone();
        let dir = &options.data_dir;
        let copy = DirectoryCopy::open(node.disk.clone(), dir.join("directory"), &node.health, past);
        // No node ever moves to another address: two would then be this one.
        let there = directory::node(&copy.get(), identity.node_id).map(|node| node.addr.clone());
        if let Some(theirs) = there.filter(|theirs| *theirs != options.addr) {
            return Err(OpenError::OtherNode {
                dir: dir.clone(),
                node_id: identity.node_id,
                theirs,
                own: options.addr,
            });
        }
        let (wal, recovery) = Wal::open(
            node.disk.clone(),
            dir.join("wal"),
            options.wal.clone(),
            identity.into(),
        )
        .await?;
        let storage = Storage::new(node.disk.clone(), dir.join("trees"), options.storage.clone())?;
        let cluster_id = Bytes::copy_from_slice(&identity.cluster_id);
        let watermarks = Watermarks::open(
            node.disk.clone(),
            dir.join("watermarks"),
            (cluster_id.clone(), identity.node_id),
            &node.health,
        );
        let watermarks = Arc::new(watermarks);
        let lost_nodes = recover::lost_nodes(&*node.disk, dir).unwrap_or_else(|(kind, what)| {
            let damage = Damage::of_node(Structure::Quorum, kind, Action::None, what);
            node.health.repaired_at_once(damage);
            BTreeSet::new()
        });
        let clocks = Arc::new(Clocks::new(identity.node_id, node.clock.clone()));
        let transport: SharedTransport = Arc::new(Showing {
            inner: node.transport.clone(),
            wal: wal.clone(),
            watermarks: watermarks.clone(),
            clocks: clocks.clone(),
        });
        let context = Arc::new(ReplicaContext {
            cluster_id,
            node_id: identity.node_id,
            clock: node.clock.clone(),
            clocks: clocks.clone(),
            disk: node.disk.clone(),
            storage: storage.clone(),
            wal: wal.clone(),
            transport: transport.clone(),
            health: node.health.clone(),
            repair_rate: Rate::new(options.replicas.repair_bytes_per_s_max),
            counting: Default::default(),
            senders: Senders::default(),
            settings: options.replicas.clone(),
        });
        let known = recovery.groups.iter().map(|group| group.id).collect();
        let member = Arc::new(Self {
            identity,
            fixed_files: fixed_files(node, &identity),
            options,
            clock: node.clock.clone(),
            transport,
            health: node.health.clone(),
            storage,
            wal,
            replicas: Replicas::new(context),
            directory: copy,
            watermarks,
            lost_nodes,
            clocks,
            starting: Mutex::new(known),
            lost: Mutex::default(),
            healing: Mutex::default(),
            replacing: Mutex::default(),
            reshaping: tokio::sync::Mutex::new(()),
            started: now(),
            recalled: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop: node.stop.child_token(),
            tasks: TaskTracker::new(),
        });
        member.report(&recovery);
        Ok((member, recovery))
    }

    /// Puts what is wrong with the log on record.
    fn report(&self, recovery: &Recovery) {
        for damage in &recovery.damage {
            let replica = damage
                .group
                .map_or((0, 0), |group| (group.shard_id, group.replica_id));
            let action = match damage.group {
                Some(_) => Action::ReplaceReplica,
                None => Action::Heal,
            };
            let kind = kind_of(&damage.what);
            let position = format!("{} at {}: {}", damage.segment, damage.offset, damage.what);
            self.health.damaged(Damage::of_replica(
                replica,
                Structure::Wal,
                kind,
                action,
                position,
            ));
        }
    }

    /// Starts the replicas that the log knows.
    pub(super) async fn start_replicas(self: &Arc<Self>, recovery: Recovery, stop: &CancellationToken) {
        for group in recovery.groups {
            if stop.is_cancelled() {
                return;
            }
            if !group.damaged.is_empty() {
                self.lost.lock().insert(group.id);
            } else if group.faulty.is_empty() {
                self.start_replica(group.id).await;
            } else {
                // Other voters may wait for answers of this node: it goes on meanwhile.
                self.healing.lock().insert(group.id);
                let member = self.clone();
                tokio::spawn(async move {
                    member.start_replica(group.id).await;
                    member.healing.lock().remove(&group.id);
                });
            }
            self.starting.lock().remove(&group.id);
        }
        let living = self.wal.groups();
        self.health
            .gone_unless(|shard_id, replica_id| living.contains(&GroupId { shard_id, replica_id }));
        self.recalled.store(true, Ordering::Release);
        self.tasks
            .spawn(self.replicas.clone().scrub_log(self.stop.clone()));
        self.tasks
            .spawn(self.replicas.clone().scrub_trees(self.stop.clone()));
        self.tasks.spawn(file_scrub::run(self.clone(), self.stop.clone()));
    }

    /// Whether the other nodes found this one's log whole and its replicas were started.
    pub fn is_started(&self) -> bool {
        self.recalled.load(Ordering::Acquire)
    }

    async fn start_replica(&self, id: GroupId) {
        match self.replicas.start(id).await {
            // Recovery has read all of its log, and what was missing has been fetched.
            StartOutcome::Started => {
                self.health.verified(id.shard_id, id.replica_id, Structure::Wal);
                // Who sent something wrong is known until a restart; all is verified again after it.
                self.health
                    .verified(id.shard_id, id.replica_id, Structure::Transfer);
            }
            StartOutcome::MustBeReplaced => {
                self.lost.lock().insert(id);
            }
            StartOutcome::Abandoned => {}
        }
    }

    /// Starts what a member does besides answering; first of all, its replicas.
    pub(super) async fn start(self: &Arc<Self>, node: &Arc<Node>, recovery: Recovery, past: Past) {
        let stop = &self.stop;
        match past {
            Past::None => self.start_replicas(recovery, stop).await,
            Past::Recorded => {
                let recall = recall::recall(node.clone(), self.clone(), recovery, stop.clone());
                self.tasks.spawn(recall);
            }
        }
        self.tasks
            .spawn(watermarks::keep_and_tell(self.clone(), stop.clone()));
        self.tasks.spawn(self.replicas.clone().supervise(stop.clone()));
        self.tasks
            .spawn(meta::follow_directory(self.clone(), stop.clone()));
        self.tasks
            .spawn(driver::run(Driver::new(self.clone()), stop.clone()));
        self.tasks.spawn(lost::replace_lost(self.clone(), stop.clone()));
        self.tasks.spawn(events::hand_on(self.clone(), stop.clone()));
        self.tasks.close();
    }

    /// Gives every shard this node leads to another voter that has caught up, and takes no
    /// leadership from now on: the node is about to stop.
    pub async fn hand_over_leaders(&self, timeout: Duration) {
        self.stopping.store(true, Ordering::Release);
        for replica in self.replicas.all() {
            replica.stop_campaigning();
        }
        let deadline = now() + timeout;
        while now() < deadline {
            let led: Vec<_> = self
                .replicas
                .all()
                .into_iter()
                .filter(|replica| replica.is_leader())
                .collect();
            if led.is_empty() {
                return;
            }
            for replica in led {
                if let Err(error) = replica.transfer_leader(None).await {
                    tracing::debug!(id = ?replica.id(), error = error.message, "not handed over yet");
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether the node is about to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Stops replicas and log.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        // A replica that is just being started must not escape; one that is healing may take long.
        if tokio::time::timeout(TASKS_MAX, self.tasks.wait()).await.is_err() {
            tracing::debug!("some tasks go on while the node stops");
        }
        self.replicas.stop().await;
        self.watermarks.keep().await;
        // The directory may be another node's from now on.
        let files = self.kept_files();
        let retire = move || files.iter().for_each(|(_, file)| file.retire());
        // If the runtime ends, nothing writes any more.
        let _ = offload(&**self.watermarks.file().disk(), retire).await;
        self.wal.close().await;
    }

    /// The small files that are this member's, and what each of them is.
    pub(super) fn kept_files(&self) -> Vec<(Structure, Arc<KeptFile>)> {
        let mut files = self.fixed_files.clone();
        files.push((Structure::Directory, self.directory.file().clone()));
        files.push((Structure::Watermarks, self.watermarks.file().clone()));
        files
    }

    /// Addresses of the cluster's other nodes, as far as this one knows.
    pub(super) fn others(&self) -> Vec<String> {
        let known = self.directory.get();
        let others = known
            .nodes
            .iter()
            .filter(|node| node.node_id != self.node_id() && !node.retired);
        others.map(|node| node.addr.clone()).collect()
    }

    /// This node's number.
    pub fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// The cluster, 16 bytes.
    pub fn cluster_id(&self) -> Bytes {
        Bytes::copy_from_slice(&self.identity.cluster_id)
    }

    /// The node's replicas.
    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    /// Whether the log's disk can still be trusted. Once it cannot, the process must end.
    pub fn is_poisoned(&self) -> bool {
        self.wal.is_poisoned()
    }

    /// The map as this node knows it, corrected by what its own replicas have applied.
    pub fn directory(&self) -> v1::Directory {
        let mut directory = (*self.directory.get()).clone();
        for replica in self.replicas.all() {
            let own = replica.descriptor();
            let Some(known) = directory
                .shards
                .iter_mut()
                .find(|shard| shard.shard_id == own.shard_id)
            else {
                continue;
            };
            let newer = |shard: &v1::ShardDescriptor| shard.epoch.map(|epoch| epoch.range_version);
            if !own.replicas.is_empty() && newer(&own) >= newer(known) {
                *known = own;
            }
        }
        directory
    }
}

/// Who the node is, twice, and which nodes an operator declared lost.
fn fixed_files(node: &Node, identity: &Identity) -> Vec<(Structure, Arc<KeptFile>)> {
    let dir = &node.options.data_dir;
    let copies = identity::kept(&node.disk, dir, identity);
    let lost = Arc::new(recover::lost_nodes_file(&node.disk, dir));
    let copies = copies.into_iter().map(|copy| (Structure::Identity, copy));
    copies.chain([(Structure::Quorum, lost)]).collect()
}

/// What is wrong with the log, in the ledger's words.
fn kind_of(what: &str) -> Kind {
    let words = [
        ("another node's", Kind::Foreign),
        ("outdated", Kind::Outdated),
        ("missing", Kind::Missing),
        ("record is lost", Kind::Missing),
    ];
    let said = words.into_iter().find(|(word, _)| what.contains(word));
    said.map_or(Kind::Checksum, |(_, kind)| kind)
}
