//! The simulated world: nodes as they are, around them a network, disks and clocks that a seed
//! drives.
//!
//! Everything runs on one thread in virtual time (a paused tokio runtime), so a run is decided by
//! its seed. A crash takes a node's unsynced writes, its engine's state since the last checkpoint
//! and all its connections; what its old tasks still do reaches neither disk nor network.

use std::io;

use tokio::runtime::{Builder, RngSeed, Runtime};

mod cluster;
mod connector;
mod integrity;
mod network;
mod parting;

pub use cluster::{Cluster, EXPIRY_SWEEP_INTERVAL_MS, Settings};
pub use connector::SimConnector;
pub use network::{Happened, Network, Weather};

/// A runtime on this thread whose time is virtual and whose lots are drawn from a seed.
///
/// # Errors
/// The operating system has no room for one.
pub fn runtime(seed: u64) -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_be_bytes()))
        .build()
}
