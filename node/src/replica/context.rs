//! What all replicas of a node share.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::types::NodeId;
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::pace::Counting;
use super::{Clocks, Rate, Senders};
use crate::clock::SharedClock;
use crate::disk::SharedDisk;
use crate::health::Health;
use crate::raft::RaftTimes;
use crate::raft::transport::{self, SharedTransport};
use crate::storage::Storage;
use crate::wal::Wal;

/// How replicas of this node behave.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// Raft's timers.
    pub times: RaftTimes,
    /// A tree is checkpointed at least this often while entries are applied, in milliseconds.
    pub checkpoint_interval_ms: u64,
    /// The log is to stay below this, in bytes: all trees are checkpointed while it is larger than
    /// three quarters of it. Not a bound: whatever must be kept is kept.
    pub wal_bytes_max: u64,
    /// How often a replica looks whether something is due, in milliseconds.
    pub maintenance_interval_ms: u64,
    /// One proposal in so many is not made, as if openraft had refused it while it takes the next
    /// of the same leader and term (its lease gate can); 0 for none. For fault tests.
    pub refuse_one_in: u64,
    /// How often a leader looks for expired records to remove, in milliseconds; they are absent
    /// before.
    pub expiry_sweep_interval_ms: u64,
    /// What takes less than this to be read whole, the log or all trees, is read again from the
    /// device this long after the last time began, in milliseconds.
    pub scrub_cycle_ms: u64,
    /// How often the voters of a shard are compared while anything is to be proven, in milliseconds;
    /// a tenth as often while nothing has changed since.
    pub marker_interval_ms: u64,
    /// What repairs and refills of all trees may copy together, in bytes of records per second.
    pub repair_bytes_per_s_max: u64,
}

impl Default for ReplicaSettings {
    fn default() -> Self {
        Self {
            times: RaftTimes::default(),
            checkpoint_interval_ms: 30_000,
            wal_bytes_max: 256 << 20,
            maintenance_interval_ms: 500,
            refuse_one_in: 0,
            expiry_sweep_interval_ms: 60_000,
            scrub_cycle_ms: 5_000,
            marker_interval_ms: 60_000,
            repair_bytes_per_s_max: 64 << 20,
        }
    }
}

/// The node around a replica.
pub struct ReplicaContext {
    /// The cluster, 16 bytes.
    pub cluster_id: Bytes,
    /// This node.
    pub node_id: NodeId,
    /// Time and chance.
    pub clock: SharedClock,
    /// The nodes' clocks, for the time of shards.
    pub clocks: Arc<Clocks>,
    /// Files.
    pub disk: SharedDisk,
    /// Trees.
    pub storage: Arc<Storage>,
    /// The log.
    pub wal: Wal,
    /// Other nodes.
    pub transport: SharedTransport,
    /// The damage ledger.
    pub health: Arc<Health>,
    /// What repairs may copy.
    pub repair_rate: Rate,
    /// Whose turn it is to count records.
    pub counting: Counting,
    /// Peers from whom nothing is taken for now.
    pub senders: Senders,
    /// How replicas behave.
    pub settings: ReplicaSettings,
}

impl ReplicaContext {
    /// Asks another node.
    ///
    /// # Errors
    /// What it answered, or `Unavailable` when no answer came in time.
    pub(super) async fn ask(
        &self,
        addr: &str,
        body: peer_request::Body,
        timeout: Duration,
    ) -> Result<peer_response::Body, v1::Error> {
        let own = (self.cluster_id.clone(), self.node_id);
        transport::ask(&*self.transport, own, addr, body, timeout).await
    }
}
