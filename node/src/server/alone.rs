//! One node without others, on simulated disks: for tests of what a node says of itself.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use reelkv_proto::v1;

use super::admin::Front;
use super::node::{Node, NodeOptions};
use crate::clock::SimClock;
use crate::disk::sim::SimDisk;
use crate::raft::transport::{Transport, TransportError, ViewStream};
use crate::replica::ReplicaSettings;
use crate::rpc::handler::AdminHandler;
use crate::storage::{EngineKind, MemoryDevice, StorageConfig};
use crate::wal::WalConfig;

/// A cluster of one has nobody to call.
struct Nobody;

fn lost(addr: &str) -> TransportError {
    TransportError::Lost {
        addr: addr.to_owned(),
        reason: "alone".to_owned(),
    }
}

impl Transport for Nobody {
    fn call(
        &self,
        addr: &str,
        _: v1::PeerRequest,
        _: Duration,
    ) -> BoxFuture<'static, Result<v1::PeerResponse, TransportError>> {
        let lost = lost(addr);
        async move { Err(lost) }.boxed()
    }

    fn fetch_view(
        &self,
        addr: &str,
        _: v1::FetchViewRequest,
    ) -> BoxFuture<'static, Result<ViewStream, TransportError>> {
        let lost = lost(addr);
        async move { Err(lost) }.boxed()
    }
}

/// The machine of a node that is alone. Its data directory is `/node`.
pub(super) struct Alone {
    pub disk: SimDisk,
    /// Where its trees are.
    pub trees: Arc<MemoryDevice>,
    pub clock: Arc<SimClock>,
}

impl Alone {
    pub fn on(disk: &SimDisk) -> Self {
        Self {
            disk: disk.clone(),
            trees: Arc::default(),
            clock: Arc::new(SimClock::new(1)),
        }
    }

    /// Starts the node.
    pub async fn start(&self) -> Front {
        let options = NodeOptions {
            data_dir: "/node".into(),
            addr: "one:7700".to_owned(),
            http_addr: String::new(),
            zone: String::new(),
            join: Vec::new(),
            wal: WalConfig::default(),
            storage: StorageConfig {
                engine: EngineKind::Memory,
                memory_device: Some(self.trees.clone()),
                ..Default::default()
            },
            replicas: ReplicaSettings::default(),
            driver_interval_ms: 1_000,
            replace_after_ms: 60_000,
        };
        let opened = Node::open(options, self.disk.mount(), self.clock.clone(), Arc::new(Nobody));
        Front(opened.await.unwrap())
    }

    /// Starts the node and makes a cluster of it.
    pub async fn cluster(&self) -> Front {
        let front = self.start().await;
        let one = v1::InitClusterRequest {
            shards: 1,
            replicas: 1,
        };
        front.init_cluster(one).await.unwrap();
        front
    }
}
