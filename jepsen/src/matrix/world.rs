//! Three nodes in one process on real files: the real log and engine, below real directories. Only
//! the network is in memory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reelkv::clock::{Clock, SharedClock, SimClock, SystemClock, now};
use reelkv::disk::{DirEntry, Disk, Mode, RealDisk, SharedDisk, SharedFile};
use reelkv::raft::RaftTimes;
use reelkv::replica::ReplicaSettings;
use reelkv::server::{Node, NodeOptions, OpenError};
use reelkv::storage::{EngineKind, StorageConfig};
use reelkv::wal::WalConfig;
use tokio::runtime::{Builder, Runtime};

use crate::run::panics;
use crate::sim::{self, Network};

/// Nodes of every case.
pub const NODES: usize = 3;
/// Raft's timers: an order of magnitude shorter than a cluster's over a real network.
pub const TIMES: RaftTimes = RaftTimes {
    heartbeat_interval_ms: 50,
    election_timeout_min_ms: 150,
    election_timeout_max_ms: 300,
};
/// A tree is checkpointed so often.
pub const CHECKPOINT_INTERVAL_MS: u64 = 1_000;
/// Size of a segment of the log: the smallest there is.
pub const SEGMENT_BYTES: u64 = 64 << 10;
/// A replica that its node does not run is replaced after this long.
pub const REPLACE_AFTER_MS: u64 = 500;
/// How long a lock of a stopped node may outlive it.
const UNLOCKED_WITHIN: Duration = Duration::from_secs(5);

/// Whose time passes in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pace {
    /// The machine's: what is measured includes work and disks.
    Real,
    /// A simulated clock's, which waits for all work: only waiting counts, and a busy machine changes nothing.
    Virtual,
}

impl Pace {
    /// A runtime on this thread. Panics of its other threads are told to `panics` as well.
    ///
    /// # Errors
    /// The operating system has no room for one.
    pub(crate) fn runtime(self, seed: u64, panics: &panics::Watch) -> io::Result<Runtime> {
        match self {
            Self::Virtual => sim::runtime(seed),
            Self::Real => Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(8)
                .on_thread_start(panics.on_other_threads())
                .build(),
        }
    }

    fn disk(self) -> SharedDisk {
        match self {
            Self::Virtual => Arc::new(OnThisThread(RealDisk)),
            Self::Real => Arc::new(RealDisk),
        }
    }

    fn clock(self, seed: u64) -> SharedClock {
        match self {
            Self::Virtual => Arc::new(SimClock::new(seed)),
            Self::Real => Arc::new(SystemClock),
        }
    }
}

/// The machine's files, reached from the runtime's own thread: one seed, one order of events.
#[derive(Debug)]
struct OnThisThread(RealDisk);

impl Disk for OnThisThread {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<SharedFile> {
        self.0.open(path, mode)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.remove_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.0.lock_dir(dir)
    }
    fn spawn(&self, job: Box<dyn FnOnce() + Send>) {
        tokio::spawn(async move { job() });
    }
}

/// A machine: what outlives its node's processes.
struct Machine {
    addr: String,
    zone: String,
    dir: PathBuf,
    clock: SharedClock,
}

/// The cluster of one case.
pub struct World {
    engine: EngineKind,
    pace: Pace,
    checkpoint_interval_ms: u64,
    network: Network,
    machines: Vec<Machine>,
}

impl World {
    /// Machines with directories `n1`, `n2`, ... below `base`, all of them off.
    pub fn new(base: &Path, engine: EngineKind, pace: Pace, seed: u64) -> Self {
        let machine = |position: usize| Machine {
            addr: addr(position),
            zone: format!("zone{}", position + 1),
            dir: dir(base, position),
            clock: pace.clock(seed + position as u64),
        };
        Self {
            engine,
            pace,
            checkpoint_interval_ms: CHECKPOINT_INTERVAL_MS,
            network: Network::new(seed),
            machines: (0..NODES).map(machine).collect(),
        }
    }

    /// Nodes started from now on checkpoint so often.
    pub fn checkpoint_every(&mut self, interval_ms: u64) {
        self.checkpoint_interval_ms = interval_ms;
    }

    /// Boots a machine.
    ///
    /// # Errors
    /// What the node says of its directory.
    pub async fn start(&self, position: usize) -> Result<(), OpenError> {
        let machine = &self.machines[position];
        let deadline = now() + UNLOCKED_WITHIN;
        loop {
            let transport = self.network.begin_life(&machine.addr);
            let opened = Node::open(
                self.options(machine),
                self.pace.disk(),
                machine.clock.clone(),
                Arc::new(transport.clone()),
            );
            match opened.await {
                Ok(node) => {
                    self.network.attach(&transport, node);
                    return Ok(());
                }
                // Tasks of its last life are still ending.
                Err(OpenError::Locked { .. }) if now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn options(&self, machine: &Machine) -> NodeOptions {
        NodeOptions {
            data_dir: machine.dir.clone(),
            addr: machine.addr.clone(),
            http_addr: String::new(),
            zone: machine.zone.clone(),
            join: self.addrs(),
            wal: WalConfig {
                segment_bytes: SEGMENT_BYTES,
                tail_cache_bytes: 16 << 10,
                ..WalConfig::default()
            },
            storage: StorageConfig {
                engine: self.engine,
                cache_bytes: 1 << 20,
                memtable_budget_bytes: 16 << 20,
                open_files_max: 64,
                ..StorageConfig::default()
            },
            replicas: ReplicaSettings {
                times: TIMES,
                checkpoint_interval_ms: self.checkpoint_interval_ms,
                maintenance_interval_ms: 100,
                ..ReplicaSettings::default()
            },
            driver_interval_ms: 250,
            replace_after_ms: REPLACE_AFTER_MS,
        }
    }

    /// Stops a node in order. False when it was off.
    pub async fn stop(&self, position: usize) -> bool {
        let Some(node) = self.network.detach(&self.machines[position].addr) else {
            return false;
        };
        node.stop(Duration::from_secs(2)).await;
        true
    }

    /// Stops all nodes, one after the other.
    pub async fn stop_all(&self) {
        for position in 0..NODES {
            self.stop(position).await;
        }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Addresses of all machines.
    pub fn addrs(&self) -> Vec<String> {
        self.machines.iter().map(|machine| machine.addr.clone()).collect()
    }

    /// A machine's wall clock.
    pub fn wall_ms(&self, position: usize) -> u64 {
        let clock: &dyn Clock = &*self.machines[position].clock;
        clock.wall_ms()
    }
}

/// A machine's address.
pub fn addr(position: usize) -> String {
    format!("node{}:7301", position + 1)
}

/// A machine's directory.
pub fn dir(base: &Path, position: usize) -> PathBuf {
    base.join(format!("n{}", position + 1))
}
