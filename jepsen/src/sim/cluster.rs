//! A simulated cluster: nodes, their disks and clocks, and what survives their crashes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use reelkv::clock::SimClock;
use reelkv::disk::sim::SimDisk;
use reelkv::raft::RaftTimes;
use reelkv::replica::ReplicaSettings;
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::{Front, Node, NodeOptions};
use reelkv::storage::{EngineKind, MemoryDevice, StorageConfig};
use reelkv::wal::WalConfig;
use reelkv_proto::v1;

use super::Network;

/// Of so many proposals openraft refuses one.
const REFUSE_ONE_IN: u64 = 100;
/// How often leaders look for expired records to remove, in milliseconds.
pub const EXPIRY_SWEEP_INTERVAL_MS: u64 = 1_000;

/// The shape of a simulated cluster.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Nodes.
    pub nodes: usize,
    /// Data shards at the start.
    pub shards: u32,
    /// Voters per shard.
    pub replicas: u32,
    /// How often a node reads its log and trees again, in milliseconds.
    pub scrub_cycle_ms: u64,
    /// How often the voters of a shard are compared, in milliseconds.
    pub marker_interval_ms: u64,
    /// What a node copies to repair its trees, in bytes per second.
    pub repair_bytes_per_s_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: 3,
            shards: 3,
            replicas: 3,
            scrub_cycle_ms: ReplicaSettings::default().scrub_cycle_ms,
            marker_interval_ms: ReplicaSettings::default().marker_interval_ms,
            repair_bytes_per_s_max: ReplicaSettings::default().repair_bytes_per_s_max,
        }
    }
}

/// What of a node outlives its processes.
struct Machine {
    addr: String,
    zone: String,
    disk: SimDisk,
    device: Arc<MemoryDevice>,
    clock: Arc<SimClock>,
}

/// A cluster in one process.
pub struct Cluster {
    settings: Settings,
    network: Network,
    machines: Vec<Machine>,
    /// The keyspace that clients use, once there is one.
    keyspace_id: u32,
    rng: SmallRng,
}

impl Cluster {
    /// Machines, all of them off.
    pub fn new(settings: Settings, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let machine = |position: usize| Machine {
            addr: format!("node{}:7301", position + 1),
            zone: format!("zone{}", position + 1),
            disk: SimDisk::new(rng.next_u64()),
            device: Arc::new(MemoryDevice::default()),
            clock: Arc::new(SimClock::new(rng.next_u64())),
        };
        let machines = (0..settings.nodes).map(machine).collect();
        Self {
            settings,
            network: Network::new(rng.next_u64()),
            machines,
            keyspace_id: 0,
            rng,
        }
    }

    /// Machines with these disks and trees in them, all of them off.
    pub fn of_disks(
        settings: Settings,
        seed: u64,
        keyspace_id: u32,
        disks: Vec<(SimDisk, Arc<MemoryDevice>)>,
    ) -> Self {
        let mut cluster = Self::new(settings, seed);
        cluster.keyspace_id = keyspace_id;
        for (machine, (disk, device)) in cluster.machines.iter_mut().zip(disks) {
            machine.disk = disk;
            machine.device = device;
        }
        cluster
    }

    /// How the stored key of every workload's entries begins in the first shard, up to the last
    /// two bytes of its number.
    pub fn entry_marker(&self) -> Vec<u8> {
        self.stored_key(&[1, 0, 0, 0, 0, 0, 0])
    }

    /// A key of the keyspace as it is stored.
    pub(super) fn stored_key(&self, key: &[u8]) -> Vec<u8> {
        [&self.keyspace_id.to_be_bytes()[..], key].concat()
    }

    /// Starts every node and makes the cluster and one keyspace, cut over the shards.
    pub async fn start(&mut self, keyspace: &str) -> anyhow::Result<v1::Keyspace> {
        for position in 0..self.machines.len() {
            self.start_node(position).await?;
        }
        let front = Front(self.node(0).context("the first node runs")?);
        let init = v1::InitClusterRequest {
            shards: self.settings.shards,
            replicas: self.settings.replicas,
        };
        front
            .init_cluster(init)
            .await
            .map_err(|error| anyhow::anyhow!("init: {}", error.message))?;
        let request = v1::CreateKeyspaceRequest {
            name: keyspace.to_owned(),
            shards: self.settings.shards,
            ..Default::default()
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            match front.create_keyspace(request.clone()).await {
                Ok(keyspace) => {
                    self.keyspace_id = keyspace.keyspace_id;
                    return Ok(keyspace);
                }
                Err(error) if tokio::time::Instant::now() > deadline => bail!("keyspace: {}", error.message),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Boots a machine.
    pub async fn start_node(&mut self, position: usize) -> anyhow::Result<()> {
        let machine = &self.machines[position];
        let transport = self.network.begin_life(&machine.addr);
        let options = NodeOptions {
            data_dir: PathBuf::from("/data"),
            addr: machine.addr.clone(),
            http_addr: String::new(),
            zone: machine.zone.clone(),
            join: self.machines.iter().map(|machine| machine.addr.clone()).collect(),
            wal: WalConfig {
                segment_bytes: 256 << 10,
                tail_cache_bytes: 64 << 10,
                ..WalConfig::default()
            },
            storage: StorageConfig {
                engine: EngineKind::Memory,
                memory_device: Some(machine.device.clone()),
                ..StorageConfig::default()
            },
            replicas: ReplicaSettings {
                times: RaftTimes::default(),
                checkpoint_interval_ms: 2_000,
                refuse_one_in: REFUSE_ONE_IN,
                expiry_sweep_interval_ms: EXPIRY_SWEEP_INTERVAL_MS,
                scrub_cycle_ms: self.settings.scrub_cycle_ms,
                marker_interval_ms: self.settings.marker_interval_ms,
                repair_bytes_per_s_max: self.settings.repair_bytes_per_s_max,
                ..ReplicaSettings::default()
            },
            driver_interval_ms: 1_000,
            replace_after_ms: 3_000,
        };
        let node = Node::open(
            options,
            machine.disk.mount(),
            machine.clock.clone(),
            Arc::new(transport.clone()),
        );
        let node = node.await.with_context(|| format!("starting {}", machine.addr))?;
        self.network.attach(&transport, node);
        Ok(())
    }

    /// Cuts a machine's power: unsynced writes are lost or torn, the engine is back at its last
    /// checkpoint. Returns false when it was off.
    pub fn crash(&mut self, position: usize) -> bool {
        let machine = &self.machines[position];
        let Some(node) = self.network.detach(&machine.addr) else {
            return false;
        };
        machine.disk.crash(self.rng.next_u64());
        machine.device.crash();
        // Its tasks reach neither disk nor network any more; they are told to end.
        tokio::spawn(async move { node.abandon().await });
        true
    }

    /// Takes a machine's power away as it sends its next message but so many; returns when that has come.
    pub async fn power_off_at_send(&self, position: usize, messages: u64) {
        let machine = &self.machines[position];
        let is_off = self
            .network
            .power_off_after(&machine.addr, messages, machine.disk.clone());
        is_off.notified().await;
    }

    /// Wipes a machine that is off, as a new disk would.
    pub fn wipe(&mut self, position: usize) {
        let seed = self.rng.random();
        self.machines[position].disk = SimDisk::new(seed);
        self.machines[position].device = Arc::new(MemoryDevice::default());
    }

    /// Puts another disk into a machine that is off; its trees are gone.
    pub fn put_back(&mut self, position: usize, disk: SimDisk) {
        self.machines[position].disk = disk;
        self.machines[position].device = Arc::new(MemoryDevice::default());
    }

    /// The number of the node on a machine in the cluster, if it is on and has one.
    pub fn number(&self, position: usize) -> Option<u64> {
        let member = self.node(position)?.member()?;
        Some(member.node_id())
    }

    /// The last batch of the log of the node on a machine.
    ///
    /// # Errors
    /// The machine is off.
    pub async fn log_batch(&self, position: usize) -> anyhow::Result<u64> {
        let node = self.node(position).context("the machine is off")?;
        let status = Front(node).node_status().await;
        let status = status.map_err(|error| anyhow::anyhow!(error.message))?;
        Ok(status.wal_batch)
    }

    /// A machine's disk.
    pub fn disk(&self, position: usize) -> &SimDisk {
        &self.machines[position].disk
    }

    /// Where a machine keeps its trees.
    pub fn device(&self, position: usize) -> &Arc<MemoryDevice> {
        &self.machines[position].device
    }

    /// Whether a machine is on.
    pub fn is_up(&self, position: usize) -> bool {
        self.network.node(&self.machines[position].addr).is_some()
    }

    /// The node on a machine, if it is on.
    pub fn node(&self, position: usize) -> Option<Arc<Node>> {
        self.network.node(&self.machines[position].addr)
    }

    /// Addresses of all machines.
    pub fn addrs(&self) -> Vec<String> {
        self.machines.iter().map(|machine| machine.addr.clone()).collect()
    }

    /// Its shape.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A machine's wall clock.
    pub fn clock(&self, position: usize) -> &SimClock {
        &self.machines[position].clock
    }

    /// Ends everything that is wrong with network, disks and the speed of clocks.
    pub fn heal(&self) {
        self.network.heal();
        for machine in &self.machines {
            machine.disk.fail_reads(0);
            machine.disk.fill_up(false);
            machine.disk.slow_down(None);
            machine.clock.drift_ppm(0);
        }
    }
}
