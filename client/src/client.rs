//! The client of a cluster: what its keyspaces share.

use std::sync::Arc;

use bytes::Bytes;
use reelkv_proto::types::KeyspaceId;

use crate::admin::Admin;
use crate::builder::ClientBuilder;
use crate::error::Result;
use crate::keyspace::Keyspace;

/// A client of one cluster. Cheap to clone; clones share connections, map and retry budget.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {}

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
        let _ = name;
        todo!()
    }

    /// Makes a keyspace; `AlreadyExists` when there is one of that name.
    pub async fn create_keyspace(&self, name: &str, options: CreateKeyspace) -> Result<Keyspace> {
        let _ = (name, options);
        todo!()
    }

    /// All keyspaces, by name.
    pub async fn keyspaces(&self) -> Result<Vec<KeyspaceInfo>> {
        todo!()
    }

    /// What operators do.
    pub fn admin(&self) -> Admin {
        todo!()
    }
}
