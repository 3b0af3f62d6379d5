//! A node: opens its directory, holds its replicas, answers clients, operators and other nodes.
//! The one place that wires the parts together.
//!
//! - [`Node`] is the process's node, fresh (no cluster yet) or a member of one.
//! - `identity` is who the node is, kept twice on disk.
//! - `directory` is the node's copy of the map: enough to route while the meta shard is down.
//! - `watermarks` remembers how far the other nodes' logs were; `recall` asks them for it when the
//!   node starts, before anything votes. `sealed` is the form of both files.
//! - `execute` turns requests into reads and writes of a replica; `route` finds the replica.
//! - `meta` reads and changes the directory on the meta shard.
//! - `bootstrap` makes a cluster; `keyspaces` cuts empty ranges for new tables.
//! - `driver` runs where the meta shard's leader is and carries out what `placement` decides; `lost`
//!   runs on every node and replaces followers that lost their log.
//! - `recover` makes one replica the only voter of a shard that lost its majority, while the node does not run.
//! - `replacing` carries a replacement out, where the shard is led; `events` hands on what a former leader told.
//! - `peers` answers other nodes, `admin` answers operators, `status` says how things are (`proofs`: what was
//!   proven of a shard), `page` says it in figures.

mod admin;
#[cfg(test)]
mod alone;
mod bootstrap;
mod directory;
mod driver;
mod events;
#[cfg(test)]
mod events_test;
mod execute;
mod file_scrub;
mod identity;
mod keyspaces;
mod lost;
mod member;
mod meta;
mod node;
mod page;
mod peers;
mod proofs;
mod recall;
pub mod recover;
mod replacing;
mod route;
mod sealed;
mod status;
mod watermarks;

pub use admin::Front;
pub use identity::{Identity, IdentityError};
pub use member::Member;
pub use node::{Node, NodeOptions, OpenError};
pub use peers::Peers;
