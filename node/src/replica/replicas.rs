//! The node's replicas: births, deaths, and restarts of those whose Raft has stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prost::Message;
use reelkv_proto::types::ShardId;
use reelkv_proto::v1;
use tokio_util::sync::CancellationToken;

use super::ReplicaContext;
use super::heal;
use super::log_scrub;
use super::replica::Replica;
use super::tree_scrub;
use crate::error;
use crate::health::{Action, Damage, Kind, Structure};
use crate::wal::GroupId;

const PROBE_INTERVAL: Duration = Duration::from_millis(1_000);
/// How often somebody looks whether what was told to end has ended.
const LET_GO_INTERVAL: Duration = Duration::from_millis(10);

/// What became of a replica at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// It runs.
    Started,
    /// It cannot be used under its id any more and must be replaced.
    MustBeReplaced,
    /// It was removed, or the node is stopping, before it could run.
    Abandoned,
}

/// The node's replicas, at most one per shard.
pub struct Replicas {
    context: Arc<ReplicaContext>,
    running: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    /// Replicas whose logs wait for payloads before they start. Cancelled when one is removed.
    healing: Mutex<BTreeMap<GroupId, CancellationToken>>,
    /// Births, deaths and restarts, one at a time.
    changing: tokio::sync::Mutex<()>,
    /// The node is stopping: nothing starts any more.
    stopping: CancellationToken,
}

impl Replicas {
    /// No replicas yet.
    pub fn new(context: Arc<ReplicaContext>) -> Arc<Self> {
        Arc::new(Self {
            context,
            running: RwLock::default(),
            healing: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
            stopping: CancellationToken::new(),
        })
    }

    /// The node around them.
    pub fn context(&self) -> &Arc<ReplicaContext> {
        &self.context
    }

    /// The shard's replica on this node.
    pub fn get(&self, shard_id: ShardId) -> Option<Arc<Replica>> {
        self.running.read().get(&shard_id).cloned()
    }

    /// All replicas, by shard.
    pub fn all(&self) -> Vec<Arc<Replica>> {
        self.running.read().values().cloned().collect()
    }

    /// Replicas that do not run yet, because their logs wait for payloads.
    pub fn healing(&self) -> BTreeSet<GroupId> {
        self.healing.lock().keys().copied().collect()
    }

    /// Starts a replica that the WAL knows, once its log has back what it lost of payloads: that may take
    /// without end. One that lost anything else is reported as damage.
    pub async fn start(&self, id: GroupId) -> StartOutcome {
        self.heal_and_start(id).await.unwrap_or_else(|error| {
            self.context.health.damaged(Damage::of_replica(
                (id.shard_id, id.replica_id),
                Structure::Wal,
                Kind::Unreadable,
                Action::ReplaceReplica,
                error.to_string(),
            ));
            StartOutcome::MustBeReplaced
        })
    }

    async fn heal_and_start(&self, id: GroupId) -> io::Result<StartOutcome> {
        if let Some(group) = self.context.wal.group(id)
            && group.first_fault().is_some()
        {
            let birth = v1::CreateReplicaRequest::decode(group.info()).map_err(io::Error::other)?;
            let cancelled = self.stopping.child_token();
            self.healing.lock().insert(id, cancelled.clone());
            let healed = heal::heal(&self.context, group, &birth, &cancelled).await;
            self.healing.lock().remove(&id);
            healed?;
            if cancelled.is_cancelled() {
                return Ok(StartOutcome::Abandoned);
            }
        }
        let _changing = self.changing.lock().await;
        if self.stopping.is_cancelled() || self.context.wal.group(id).is_none() {
            return Ok(StartOutcome::Abandoned);
        }
        self.start_locked(id).await?;
        Ok(StartOutcome::Started)
    }

    /// Ends a replica's wait for payloads, and returns once it has let go of everything.
    async fn stop_healing(&self, id: GroupId) {
        let cancelled = self.healing.lock().get(&id).cloned();
        if let Some(cancelled) = cancelled {
            cancelled.cancel();
            while self.healing.lock().contains_key(&id) {
                tokio::time::sleep(LET_GO_INTERVAL).await;
            }
        }
    }

    async fn start_locked(&self, id: GroupId) -> io::Result<()> {
        let group = self
            .context
            .wal
            .group(id)
            .ok_or_else(|| io::Error::other("the log does not know this replica"))?;
        let birth = v1::CreateReplicaRequest::decode(group.info()).map_err(io::Error::other)?;
        let replica = Replica::start(self.context.clone(), id, &birth).await?;
        if birth.initialize && group.last().is_none() && group.purged().is_none() {
            initialize_later(replica.clone(), birth);
        }
        self.running.write().insert(id.shard_id, replica);
        Ok(())
    }

    /// Brings a replica to life. Doing it again for the same id changes nothing.
    ///
    /// # Errors
    /// Another replica of the shard lives here, or this id died here before.
    pub async fn create(&self, request: v1::CreateReplicaRequest) -> Result<(), v1::Error> {
        let descriptor = request
            .descriptor
            .as_ref()
            .ok_or_else(|| error::invalid("descriptor", "missing"))?;
        let id = GroupId {
            shard_id: descriptor.shard_id,
            replica_id: request.replica_id,
        };
        let _changing = self.changing.lock().await;
        if let Some(running) = self.get(id.shard_id) {
            return match running.id() == id {
                true => Ok(()),
                false => Err(error::already_exists(format!(
                    "replica {} of shard {} lives here",
                    running.id().replica_id,
                    id.shard_id
                ))),
            };
        }
        if self.context.wal.group(id).is_none() {
            let born = self.context.wal.birth(id, request.encode_to_vec().into()).await;
            born.map_err(|error| error::internal(format!("birth of a replica: {error}")))?;
        }
        let started = self.start_locked(id).await;
        started.map_err(|error| error::internal(format!("start of a new replica: {error}")))
    }

    /// Ends a replica for good: its log and tree are deleted, its id is never used again.
    ///
    /// # Errors
    /// The log refused the record.
    pub async fn remove(&self, id: GroupId) -> io::Result<()> {
        self.stop_healing(id).await;
        let _changing = self.changing.lock().await;
        if self.get(id.shard_id).is_some_and(|running| running.id() == id) {
            let running = self.running.write().remove(&id.shard_id);
            if let Some(running) = running {
                running.stop().await;
            }
        }
        if self.context.wal.group(id).is_some() {
            self.context.wal.death(id).await?;
        }
        for tree in self.context.storage.list().map_err(io::Error::other)? {
            if tree.shard_id == id.shard_id && tree.replica_id == id.replica_id {
                self.context
                    .storage
                    .remove(tree)
                    .await
                    .map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    /// Restarts replicas whose Raft has stopped, alone, until told to stop. A poisoned log ends
    /// this: nothing on its disk is trusted any more.
    pub async fn supervise(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            for replica in self.all() {
                if !self.context.wal.is_poisoned() && !replica.is_running().await {
                    self.restart(&replica).await;
                }
            }
        }
    }

    async fn restart(self: &Arc<Self>, replica: &Arc<Replica>) {
        let id = replica.id();
        tracing::error!(?id, "the shard's Raft has stopped; restarting it");
        {
            let _changing = self.changing.lock().await;
            self.running.write().remove(&id.shard_id);
            replica.stop().await;
        }
        // Its log may have to wait for payloads. The others are looked after meanwhile.
        let replicas = self.clone();
        tokio::spawn(async move {
            if replicas.start(id).await == StartOutcome::MustBeReplaced {
                tracing::error!(?id, "the replica does not start again");
            }
        });
    }

    /// Reads the log from the device, again and again, until told to stop. Not before the log is known
    /// to be the newest of this node.
    pub async fn scrub_log(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = log_scrub::run(&self) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Reads the trees from the device, again and again, until told to stop.
    pub async fn scrub_trees(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = tree_scrub::run(&self) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Stops all, leaders handing over first.
    pub async fn stop(&self) {
        self.stopping.cancel();
        let _changing = self.changing.lock().await;
        let all: Vec<_> = std::mem::take(&mut *self.running.write()).into_values().collect();
        futures::future::join_all(all.iter().map(|replica| replica.stop())).await;
    }
}

fn initialize_later(replica: Arc<Replica>, birth: v1::CreateReplicaRequest) {
    tokio::spawn(async move {
        let Some(descriptor) = birth.descriptor else {
            return;
        };
        if let Err(error) = replica.initialize(&descriptor).await {
            tracing::warn!(id = ?replica.id(), error = error.message, "a new shard was not initialised from here");
        }
    });
}
