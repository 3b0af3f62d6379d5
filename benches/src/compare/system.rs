//! A system under comparison: its processes and how it is driven.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::processes::Server;
use crate::target::Target;
use crate::usage::{Usage, memory_bytes, with_descendants};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    ReelKv,
    Etcd,
    Postgres,
    Redis,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::ReelKv => "reelkv",
            Self::Etcd => "etcd",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }

    /// Copies of the data.
    pub fn copies(self) -> u64 {
        match self {
            Self::Redis => 1,
            _ => 3,
        }
    }

    /// Ports it listens on.
    pub fn ports(self) -> usize {
        match self {
            Self::ReelKv | Self::Etcd => 6,
            Self::Postgres => 3,
            Self::Redis => 1,
        }
    }

    /// Whether it has records in key order.
    pub fn can_scan(self) -> bool {
        self != Self::Redis
    }
}

/// Runs until it is dropped.
pub struct System {
    pub kind: Kind,
    /// Clients are spread over these.
    pub targets: Vec<Target>,
    pub running: Running,
}

pub enum Running {
    Nodes(Cluster),
    Servers(Vec<Server>),
}

/// Where a system is started.
pub struct Place<'a> {
    /// Exists and is empty.
    pub directory: &'a Path,
    /// As many as [`Kind::ports`].
    pub ports: &'a [u16],
}

impl System {
    /// What all its processes have used, with those they started.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of_trees(&self.roots())
    }

    /// Memory of all its processes; what they share counts once.
    pub fn memory_bytes(&self) -> anyhow::Result<u64> {
        Ok(with_descendants(&self.roots())?
            .into_iter()
            .map(memory_bytes)
            .sum())
    }

    /// The ReelKV nodes, if it is that.
    pub fn cluster(&mut self) -> Option<&mut Cluster> {
        match &mut self.running {
            Running::Nodes(cluster) => Some(cluster),
            Running::Servers(_) => None,
        }
    }

    /// An error if a server has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match &mut self.running {
            Running::Nodes(cluster) => cluster.check(),
            Running::Servers(servers) => servers.iter_mut().try_for_each(Server::check),
        }
    }

    fn roots(&self) -> Vec<u32> {
        match &self.running {
            Running::Nodes(cluster) => cluster.pids(),
            Running::Servers(servers) => servers.iter().map(Server::pid).collect(),
        }
    }
}
