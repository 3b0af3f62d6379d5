//! The process's node: fresh until it belongs to a cluster, then a member of it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use reelkv_proto::v1::{self, peer_request, peer_response};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::directory::DirectoryCopy;
use super::identity::{self, Identity, IdentityError, Loaded};
use super::member::Member;
use super::recover::LOST_NODES_FILE;
use crate::clock::SharedClock;
use crate::disk::{Disk, SharedDisk};
use crate::error;
use crate::health::{Action, Damage, Health, Kind, Owner, Structure};
use crate::metrics::RequestMetrics;
use crate::raft::transport::{self, SharedTransport};
use crate::replica::ReplicaSettings;
use crate::storage::{StorageConfig, TreeError};
use crate::wal::{self, WalConfig, WalError};

/// How long a fresh node waits before it asks again whether a cluster expects it.
const REGISTER_INTERVAL: Duration = Duration::from_millis(500);

/// How long the ledger of damage may take when the node stops.
const LEDGER_MAX: Duration = Duration::from_millis(500);

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Everything the node keeps lies below it.
    pub data_dir: PathBuf,
    /// host:port other nodes and clients reach it at.
    pub addr: String,
    /// host:port of its HTTP listener; empty when off.
    pub http_addr: String,
    /// Failure domain.
    pub zone: String,
    /// Addresses of the cluster's nodes, its own among them.
    pub join: Vec<String>,
    /// The log.
    pub wal: WalConfig,
    /// The trees.
    pub storage: StorageConfig,
    /// The replicas.
    pub replicas: ReplicaSettings,
    /// How often the placement driver looks at the cluster, in milliseconds.
    pub driver_interval_ms: u64,
    /// How long a replica may be missing on a node that answers before it is replaced, in milliseconds.
    pub replace_after_ms: u64,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its data directory cannot be used.
    #[error("data directory {dir}: {source}")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("data directory {dir} is in use by another process")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// It is another node's, whole.
    #[error(
        "data directory {dir}: it is node {node_id}'s, which is at {theirs}; this is {own}: start it with --addr {theirs}, \
         or this node with its own directory"
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        node_id: u64,
        /// Where that node is, by the map in it.
        theirs: String,
        /// Where this one is.
        own: String,
    },
    /// Its identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its log cannot be used.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Its trees cannot be used.
    #[error(transparent)]
    Storage(#[from] TreeError),
}

impl OpenError {
    /// Whether the directory is another node's.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::OtherNode { .. } | Self::Wal(WalError::Foreign { .. }))
    }
}

/// Whether a member has been one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// It was given its number just now.
    None,
    /// Its directory says so; the other nodes may know better.
    Recorded,
}

/// A node, fresh or a member of a cluster.
pub struct Node {
    pub(super) options: NodeOptions,
    pub(super) disk: SharedDisk,
    pub(super) clock: SharedClock,
    pub(super) transport: SharedTransport,
    pub(super) health: Arc<Health>,
    metrics: Arc<RequestMetrics>,
    member: RwLock<Option<Arc<Member>>>,
    joined: watch::Sender<bool>,
    /// Bootstrap and registration, one at a time.
    pub(super) joining: tokio::sync::Mutex<()>,
    pub(super) stop: CancellationToken,
    _lock: Box<dyn Send + Sync>,
}

impl Node {
    /// Opens the data directory and, if the node belongs to a cluster, starts its replicas.
    ///
    /// # Errors
    /// One line on what is wrong with the directory; nothing in it was changed.
    pub async fn open(
        options: NodeOptions,
        disk: SharedDisk,
        clock: SharedClock,
        transport: SharedTransport,
    ) -> Result<Arc<Self>, OpenError> {
        let dir = options.data_dir.clone();
        let directory = |source| OpenError::Directory {
            dir: dir.clone(),
            source,
        };
        disk.create_dir_all(&dir).map_err(directory)?;
        let lock = disk.lock_dir(&dir).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked { dir: dir.clone() },
            _ => directory(error),
        })?;
        let loaded = identity::load(&*disk, &dir)?;
        let is_disputed = matches!(loaded, Loaded::Disputed(_));
        let loaded = settled(loaded, &*disk, &dir)?;
        let owner = match &loaded {
            Loaded::Known { identity, .. } => Some(Owner::from(*identity)),
            _ => None,
        };
        let health = Health::open(disk.clone(), dir.join("events"), clock.clone(), owner);
        let identity = match loaded {
            Loaded::Known { identity, healed } => {
                if is_disputed {
                    let what = "one copy was another node's, by the log";
                    let foreign = Damage::of_node(Structure::Identity, Kind::Foreign, Action::Heal, what);
                    health.repaired_at_once(foreign);
                } else if healed {
                    health.repaired_at_once(identity_damage("one copy was bad", Action::Heal));
                }
                health.verified(0, 0, Structure::Identity);
                Some(identity)
            }
            Loaded::None => None,
            Loaded::Damaged | Loaded::Disputed(_) => {
                let what = match is_disputed {
                    true => "the copies are of two nodes, and the log is not of one of them",
                    false => "both copies are bad",
                };
                health.damaged(identity_damage(what, Action::Rejoin));
                None
            }
        };
        let node = Arc::new(Self {
            options,
            disk,
            clock,
            transport,
            health,
            metrics: Arc::default(),
            member: RwLock::new(None),
            joined: watch::Sender::new(false),
            joining: tokio::sync::Mutex::new(()),
            stop: CancellationToken::new(),
            _lock: lock,
        });
        match identity {
            Some(identity) => node.become_member(identity, Past::Recorded).await?,
            None => {
                node.set_leftovers_aside()
                    .map_err(|source| OpenError::Directory { dir, source })?;
                tokio::spawn(node.clone().wait_for_cluster());
            }
        }
        // Not before it is certain that the directory is this node's: else nothing in it is changed.
        tokio::spawn(node.health.clone().keep(node.stop.clone()));
        Ok(node)
    }

    /// Data without an identity belongs to a node that is no more: it must not be taken up under
    /// a new number. It is kept for whoever wants to look.
    fn set_leftovers_aside(&self) -> io::Result<()> {
        self.health.set_aside();
        let dir = &self.options.data_dir;
        let entries = self.disk.list(dir)?;
        let leftovers: Vec<_> = entries
            .iter()
            .filter(|entry| {
                [
                    "wal",
                    "trees",
                    "directory",
                    "watermarks",
                    LOST_NODES_FILE,
                    "identity.1",
                    "identity.2",
                ]
                .contains(&entry.name.as_str())
            })
            .collect();
        if leftovers.is_empty() {
            return Ok(());
        }
        let aside = dir.join(next_aside(entries.iter().map(|entry| entry.name.as_str())));
        self.disk.create_dir_all(&aside)?;
        for entry in leftovers {
            self.disk
                .rename(&dir.join(&entry.name), &aside.join(&entry.name))?;
        }
        self.disk.sync_dir(&aside)?;
        self.disk.sync_dir(dir)?;
        tracing::error!(aside = %aside.display(), "data of a node that is no more was set aside");
        Ok(())
    }

    /// Takes the number that a cluster has given this node, and its place in it. The map is written
    /// before the identity: a member always knows what its cluster is, or is to be.
    ///
    /// # Errors
    /// What cannot be written.
    pub(super) async fn take_number(
        self: &Arc<Self>,
        identity: Identity,
        directory: Option<v1::Directory>,
    ) -> Result<(), String> {
        if let Some(directory) = directory {
            let copy = self.options.data_dir.join("directory");
            DirectoryCopy::fresh(self.disk.clone(), copy).learn(directory);
        }
        identity::store(&*self.disk, &self.options.data_dir, &identity).map_err(|e| e.to_string())?;
        let joined = self.become_member(identity, Past::None).await;
        joined.map_err(|e| e.to_string())
    }

    /// Takes part in a cluster from now on.
    async fn become_member(self: &Arc<Self>, identity: Identity, past: Past) -> Result<(), OpenError> {
        self.health.belongs_to(identity.into());
        let (member, recovery) = Member::open(self, identity, past).await?;
        *self.member.write() = Some(member.clone());
        self.joined.send_replace(true);
        member.start(self, recovery, past).await;
        Ok(())
    }

    /// Gives up a past that the other nodes do not know, or have moved on from: the data is set
    /// aside, and the node joins again under a new number.
    pub(super) fn leave_past_behind(
        self: Arc<Self>,
        member: Arc<Member>,
        past: String,
    ) -> BoxFuture<'static, ()> {
        async move {
        let _joining = self.joining.lock().await;
        *self.member.write() = None;
        self.joined.send_replace(false);
        let outdated = Damage::of_node(Structure::Wal, Kind::Outdated, Action::Rejoin, past);
        self.health.damaged(outdated);
        member.stop().await;
        match self.set_leftovers_aside() {
            Ok(()) => {
                tokio::spawn(self.clone().wait_for_cluster());
            }
            Err(error) => {
                let dir = self.options.data_dir.display();
                tracing::error!(%dir, %error, "the old data cannot be set aside; start the node with an empty directory");
            }
        }
        }
        .boxed()
    }

    /// Asks the nodes of the join list whether a cluster expects this one, until it is a member.
    async fn wait_for_cluster(self: Arc<Self>) {
        let mut joined = self.joined.subscribe();
        let mut registered = None;
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(REGISTER_INTERVAL) => {}
                () = self.stop.cancelled() => return,
                _ = joined.wait_for(|joined| *joined) => return,
            }
            // A number once given is taken, however often it takes to write it down.
            if registered.is_none() {
                match self.register().await {
                    Ok(place) => registered = Some(place),
                    Err(error) => tracing::debug!(error, "no cluster takes this node in yet"),
                }
            }
            if let Some(place) = &registered
                && let Err(error) = self.take_place(place.clone()).await
            {
                tracing::error!(error, "this node was taken in, but cannot write that down");
            }
        }
    }

    /// Asks the other nodes once. `joining` is not held meanwhile: a cluster being made of this
    /// node must not wait for an answer that itself waits for that cluster.
    async fn register(&self) -> Result<v1::RegisterNodeResponse, String> {
        for addr in self
            .options
            .join
            .iter()
            .filter(|addr| **addr != self.options.addr)
        {
            let hello = peer_request::Body::Hello(v1::HelloRequest {
                addr: self.options.addr.clone(),
            });
            let Ok(peer_response::Body::Hello(hello)) = self.ask(addr, hello, Duration::from_secs(2)).await
            else {
                continue;
            };
            if hello.cluster_id.is_empty() {
                continue;
            }
            let register = v1::RegisterNodeRequest {
                addr: self.options.addr.clone(),
                http_addr: self.options.http_addr.clone(),
                zone: self.options.zone.clone(),
                node_id: 0,
            };
            let register = peer_request::Body::RegisterNode(register);
            return match self.ask(addr, register, Duration::from_secs(10)).await {
                Ok(peer_response::Body::RegisterNode(registered)) => Ok(registered),
                Ok(_) => Err("an answer of another kind".to_owned()),
                Err(error) => Err(error.message),
            };
        }
        Err("no node of the join list belongs to a cluster".to_owned())
    }

    /// Becomes the member that a cluster has made of this node.
    async fn take_place(self: &Arc<Self>, registered: v1::RegisterNodeResponse) -> Result<(), String> {
        let _one_at_a_time = self.joining.lock().await;
        if self.member().is_some() {
            return Ok(());
        }
        let cluster_id = registered.cluster_id[..]
            .try_into()
            .map_err(|_| "a cluster id of another length")?;
        let identity = Identity {
            cluster_id,
            node_id: registered.node_id,
        };
        let was_here = self.number_before(registered.directory.as_ref());
        self.take_number(identity, registered.directory).await?;
        if let Some(node_id) = was_here.filter(|_| self.health.open_count() == 0) {
            let what = format!("node {node_id} was here before, and nothing is left of it");
            let lost = Damage::of_node(Structure::Identity, Kind::Missing, Action::Rejoin, what);
            self.health.repaired_at_once(lost);
        }
        for structure in [Structure::Identity, Structure::Wal] {
            self.health.repaired(0, structure);
        }
        Ok(())
    }

    /// The last number that a cluster had given to a node at this address.
    fn number_before(&self, directory: Option<&v1::Directory>) -> Option<u64> {
        let nodes = directory.into_iter().flat_map(|directory| &directory.nodes);
        let here = nodes.filter(|node| node.retired && node.addr == self.options.addr);
        here.map(|node| node.node_id).max()
    }

    /// Asks another node, before or after this one has joined.
    pub(super) async fn ask(
        &self,
        addr: &str,
        body: peer_request::Body,
        timeout: Duration,
    ) -> Result<peer_response::Body, v1::Error> {
        let member = self.member();
        let own = member.map_or_else(Default::default, |member| (member.cluster_id(), member.node_id()));
        transport::ask(&*self.transport, own, addr, body, timeout).await
    }

    /// The node as a member; `None` while it belongs to no cluster.
    pub fn member(&self) -> Option<Arc<Member>> {
        self.member.read().clone()
    }

    /// The same for callers that need one.
    ///
    /// # Errors
    /// `Unavailable`, saying what to do.
    pub(super) fn require_member(&self) -> Result<Arc<Member>, v1::Error> {
        self.member().ok_or_else(|| {
            error::unavailable("this node belongs to no cluster yet; make one with 'reelkv cluster init'")
        })
    }

    /// Waits until the node belongs to a cluster.
    pub async fn joined(&self) {
        // The node owns the sender.
        let _ = self.joined.subscribe().wait_for(|joined| *joined).await;
    }

    /// Hands leaders over, as far as `timeout` allows; the node goes on answering and forwarding.
    pub async fn hand_over(&self, timeout: Duration) {
        if let Some(member) = self.member() {
            member.hand_over_leaders(timeout).await;
        }
    }

    /// Stops replicas and log, within `timeout`.
    pub async fn stop(&self, timeout: Duration) {
        self.stop.cancel();
        if let Some(member) = self.member()
            && tokio::time::timeout(timeout, member.stop()).await.is_err()
        {
            tracing::warn!("the node did not stop in time; what is on disk is complete all the same");
        }
        // A failure is in the ledger and in the log; a disk that hangs must not hold the end up.
        let written = tokio::time::timeout(LEDGER_MAX, self.health.write()).await;
        if written.is_err() {
            tracing::warn!("the ledger of damage was not written in time");
        }
    }

    /// Ends the node's tasks without handing anything over, as far as they can still be ended:
    /// what a simulated power cut leaves to be cleaned up.
    pub async fn abandon(&self) {
        self.stop.cancel();
        if let Some(member) = self.member() {
            member.stop().await;
        }
    }

    /// Requests of clients, counted.
    pub fn metrics(&self) -> &Arc<RequestMetrics> {
        &self.metrics
    }

    /// The damage ledger.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// What it was started with.
    pub fn options(&self) -> &NodeOptions {
        &self.options
    }
}

/// Of two copies of the identity that differ, the one that the log confirms.
fn settled(loaded: Loaded, disk: &dyn Disk, dir: &Path) -> Result<Loaded, IdentityError> {
    let Loaded::Disputed(both) = loaded else {
        return Ok(loaded);
    };
    let owners = wal::owners(disk, &dir.join("wal"));
    identity::settle(disk, dir, both, |who| owners.contains(&wal::Identity::from(*who)))
}

/// A name for data that is set aside: never one that is there, whichever of them were deleted.
fn next_aside<'name>(names: impl Iterator<Item = &'name str>) -> String {
    let kept: BTreeSet<u64> = names
        .filter_map(|name| name.strip_prefix("lost-")?.parse().ok())
        .collect();
    let after_last = kept.last().map_or(Some(1), |last| last.checked_add(1));
    // Somebody may have made up a name with the highest number there is.
    let free = after_last.or_else(|| (1..).find(|number| !kept.contains(number)));
    format!("lost-{}", free.unwrap_or_default())
}

fn identity_damage(what: &str, action: Action) -> Damage {
    Damage::of_node(Structure::Identity, Kind::Checksum, action, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_set_aside_under_a_name_that_is_free() {
        assert_eq!(next_aside([].into_iter()), "lost-1");
        assert_eq!(next_aside(["wal", "lost-2", "lost-x"].into_iter()), "lost-3");
        assert_eq!(next_aside(["lost-9", "lost-10"].into_iter()), "lost-11");
        let last = "lost-18446744073709551615";
        assert_eq!(next_aside([last, "lost-1"].into_iter()), "lost-2");
        assert_eq!(
            next_aside(["lost-", "lost--1", "lost-1.bad"].into_iter()),
            "lost-1"
        );
    }
}
