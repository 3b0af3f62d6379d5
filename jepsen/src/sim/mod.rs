//! The simulated world: nodes as they are, around them a network, disks and clocks that a seed
//! drives.
//!
//! Everything runs on one thread in virtual time (a paused tokio runtime), so a run is decided by
//! its seed. A crash takes a node's unsynced writes, its engine's state since the last checkpoint
//! and all its connections; what its old tasks still do reaches neither disk nor network.

mod cluster;
mod connector;
mod integrity;
mod network;
mod parting;

pub use cluster::{Cluster, Settings};
pub use connector::SimConnector;
pub use network::{Happened, Network, Weather};
