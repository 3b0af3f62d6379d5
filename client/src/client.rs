//! The client of a cluster: what its keyspaces share.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reelkv_proto::types::KeyspaceId;
use reelkv_proto::v1;
use tokio::time::Instant;

use crate::admin::Admin;
use crate::builder::ClientBuilder;
use crate::connector::{ChannelPool, Connector};
use crate::error::{Error, ErrorKind, Result};
use crate::keyspace::Keyspace;
use crate::limits;
use crate::retry::{Jitter, RetryBudget, Waiting};
use crate::routing::{Addr, RoutingCache, ShardRoute};
use crate::tokens::Writers;

/// How long one node may take to send its map before the next is asked.
const DIRECTORY_TRY: Duration = Duration::from_secs(2);
/// The map is fetched at most this often to find leaders that nobody named.
const LEADER_SEARCH_PAUSE: Duration = Duration::from_secs(1);

/// A client of one cluster. Cheap to clone; clones share connections, map and retry budget.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

/// What the clones of a client, its keyspaces and its calls share.
pub(crate) struct Shared {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) pool: ChannelPool,
    /// The nodes the client was given; at least one.
    pub(crate) seeds: Vec<Addr>,
    pub(crate) timeout: Duration,
    pub(crate) routes: RoutingCache,
    pub(crate) writers: Writers,
    pub(crate) budget: RetryBudget,
    pub(crate) waiting: Waiting,
    pub(crate) jitter: Jitter,
    /// Held while the map is fetched; counts how often it was.
    refreshing: tokio::sync::Mutex<()>,
    refreshes: Mutex<Refreshes>,
    weak: std::sync::Weak<Shared>,
}

#[derive(Default)]
struct Refreshes {
    count: u64,
    leaders_searched_at: Option<Instant>,
}

/// How to make a keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateKeyspace {
    /// Cut its range into this many shards at even points of the first key byte; `None` for the cluster's default.
    pub shards: Option<u32>,
    /// Cut at these keys instead, in ascending order.
    pub split_keys: Vec<Bytes>,
}

/// A keyspace as the directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceInfo {
    /// Number of the keyspace; never reused in a cluster.
    pub id: KeyspaceId,
    /// Its name.
    pub name: String,
    /// How many shards hold it.
    pub shards: usize,
}

impl Client {
    /// Connects to a cluster through any of the nodes named (`host:port`); one that answers is enough.
    ///
    /// `Unavailable` when none does. A node that belongs to no cluster yet is good enough, so that
    /// [`Admin::init_cluster`] can be called on it.
    pub async fn connect(addrs: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        Self::builder().addrs(addrs).build().await
    }

    /// Like [`connect`](Self::connect), with options.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The keyspace called `name`; `UnknownKeyspace` when there is none.
    pub async fn keyspace(&self, name: &str) -> Result<Keyspace> {
        limits::check_name(name)?;
        if self.shared.routes.keyspace(name).is_none() {
            let deadline = Instant::now() + self.shared.timeout;
            // A node may not have heard of a new keyspace yet: ask until one has.
            let is_known = || self.shared.routes.keyspace(name).is_some();
            self.shared.fetch_directory(deadline, is_known).await?;
        }
        match self.shared.routes.keyspace(name) {
            Some(id) => Ok(self.opened(id, name)),
            None => Err(Error::new(
                ErrorKind::UnknownKeyspace,
                format!("there is no keyspace {name:?}"),
            )),
        }
    }

    /// Makes a keyspace; `AlreadyExists` when there is one of that name.
    pub async fn create_keyspace(&self, name: &str, options: CreateKeyspace) -> Result<Keyspace> {
        limits::check_name(name)?;
        for key in &options.split_keys {
            limits::check_key(key)?;
        }
        let request = v1::CreateKeyspaceRequest {
            name: name.to_owned(),
            shards: options.shards.unwrap_or(0),
            split_keys: options.split_keys,
        };
        let (created, addr) = self.admin().create_keyspace(request).await?;
        // The node that made it knows the new shards first.
        if let Ok(directory) = self.shared.connector.directory(&addr).await {
            self.shared.routes.install(&directory);
        }
        Ok(self.opened(created.keyspace_id, name))
    }

    /// All keyspaces, by name.
    pub async fn keyspaces(&self) -> Result<Vec<KeyspaceInfo>> {
        let deadline = Instant::now() + self.shared.timeout;
        self.shared.fetch_directory(deadline, || true).await?;
        let known = self.shared.routes.keyspaces().into_iter();
        Ok(known
            .map(|(name, id, shards)| KeyspaceInfo { id, name, shards })
            .collect())
    }

    /// What operators do.
    pub fn admin(&self) -> Admin {
        Admin::new(self.shared.clone())
    }

    fn opened(&self, id: KeyspaceId, name: &str) -> Keyspace {
        Keyspace {
            shared: self.shared.clone(),
            id,
            name: name.into(),
            timeout: self.shared.timeout,
        }
    }
}

impl Shared {
    pub(crate) fn new(
        connector: Arc<dyn Connector>,
        pool: ChannelPool,
        seeds: Vec<Addr>,
        timeout: Duration,
        seed: u64,
    ) -> Arc<Self> {
        Arc::new_cyclic(|weak| Self {
            connector,
            pool,
            seeds,
            timeout,
            routes: RoutingCache::default(),
            writers: Writers::default(),
            budget: RetryBudget::new(),
            waiting: Waiting::default(),
            jitter: Jitter::new(seed),
            refreshing: tokio::sync::Mutex::new(()),
            refreshes: Mutex::new(Refreshes::default()),
            weak: weak.clone(),
        })
    }

    /// Every node known, those the client was given first.
    pub(crate) fn addrs(&self) -> Vec<Addr> {
        let mut addrs = self.seeds.clone();
        for addr in self.routes.nodes() {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs
    }

    /// Fetches the map unless another call just did. A failure is not an error: the caller tries on
    /// with the map it has, and its own deadline ends it.
    pub(crate) async fn refresh(&self, deadline: Instant) {
        let seen = self.refreshes.lock().count;
        let Ok(_turn) = tokio::time::timeout_at(deadline, self.refreshing.lock()).await else {
            return;
        };
        if self.refreshes.lock().count != seen {
            return;
        }
        match self.fetch_directory(deadline, || true).await {
            Ok(()) => self.refreshes.lock().count += 1,
            Err(error) => tracing::debug!(%error, "no new map"),
        }
    }

    /// Asks node after node for the map until `is_enough`; an error when none answered.
    pub(crate) async fn fetch_directory(
        &self,
        deadline: Instant,
        is_enough: impl Fn() -> bool,
    ) -> Result<()> {
        let (mut answered, mut trouble) = (false, None);
        for addr in self.addrs() {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = self.connector.directory(&addr);
            match tokio::time::timeout(left.min(DIRECTORY_TRY), asked).await {
                Ok(Ok(directory)) => {
                    self.routes.install(&directory);
                    answered = true;
                    if is_enough() && self.routes.is_of_a_cluster() {
                        return Ok(());
                    }
                }
                Ok(Err(error)) => trouble = Some(format!("{addr}: {error}")),
                Err(_) => trouble = Some(format!("{addr}: no answer in time")),
            }
        }
        match trouble {
            Some(trouble) if !answered => Err(Error::unavailable(format!("no node sent its map; {trouble}"))),
            _ => Ok(()),
        }
    }

    /// After a success at a node that is not known to lead: looks in the background who does.
    pub(crate) fn look_for_leader(&self, route: &ShardRoute) {
        if route.leader.is_some() {
            return;
        }
        let mut refreshes = self.refreshes.lock();
        if refreshes
            .leaders_searched_at
            .is_some_and(|at| at.elapsed() < LEADER_SEARCH_PAUSE)
        {
            return;
        }
        refreshes.leaders_searched_at = Some(Instant::now());
        if let Some(shared) = self.weak.upgrade() {
            tokio::spawn(async move { shared.refresh(Instant::now() + DIRECTORY_TRY).await });
        }
    }
}
