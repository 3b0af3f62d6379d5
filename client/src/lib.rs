//! Reads and writes ReelKV.
//!
//! ```no_run
//! use reelkv_client::{Client, Condition, CreateKeyspace};
//!
//! # async fn example() -> reelkv_client::Result<()> {
//! let client = Client::connect(["127.0.0.1:7301", "127.0.0.1:7302"]).await?;
//! let films = client.create_keyspace("film", CreateKeyspace::default()).await?;
//! let version = films.put("alien", "1979").await?;
//! films.put_if("alien", "1979, restored", Condition::Version(version)).await?;
//! if let Some(record) = films.get("alien").await? {
//!     println!("{:?} at version {}", record.value, record.version);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What a call does
//!
//! One call has one deadline (10 s unless told otherwise), whatever it takes inside: the key's shard
//! and its leader are looked up in a cached map, the request joins others on a long-lived stream to
//! that node, and a refusal that names a better place (`NotLeader`, `EpochNotMatch`) is followed.
//! Other failures are tried again after a jittered back-off, paced by a budget that all calls of a
//! client share, so that a struggling cluster is not buried under retries.
//!
//! # Exactly once
//!
//! Every write carries a token, so that the shard recognises it when it is sent twice: a write that
//! was retried after a broken connection happened once or not at all. When the deadline passes and
//! nobody could tell which, the call fails with [`ErrorKind::OutcomeUnknown`]; any other error means
//! that nothing was written.
//!
//! # Checksums
//!
//! Keys and values are checksummed here before they leave and checked here after they return; bytes
//! that changed on the way are never returned ([`ErrorKind::Integrity`]).

mod admin;
mod avoid;
mod builder;
mod call;
mod client;
pub mod connector;
mod error;
#[doc(hidden)]
pub mod internals;
pub mod key;
mod keyspace;
pub mod limits;
mod record;
mod retry;
mod routing;
mod scan;
mod tokens;

pub use admin::Admin;
pub use builder::ClientBuilder;
pub use client::{Client, CreateKeyspace, KeyspaceInfo};
pub use connector::{Connector, GrpcConnector, TransportError};
pub use error::{Error, ErrorKind, Result};
/// So that the stream of a scan can be read without another dependency.
pub use futures::stream::{Stream, StreamExt, TryStreamExt};
pub use keyspace::Keyspace;
pub use record::{Batch, Condition, Record, ScanPage, ScanRange};
pub use reelkv_proto::types::Version;
pub use reelkv_proto::v1;

/// Calls may be spawned on any runtime.
#[cfg(test)]
fn _calls_are_send(client: Client, keyspace: Keyspace) {
    fn is_send<T: Send>(_: T) {}
    is_send(client.create_keyspace("", CreateKeyspace::default()));
    is_send(client.admin().cluster_status());
    is_send(client.keyspaces());
    is_send(keyspace.put("", ""));
    is_send(keyspace.batch(Batch::new()));
    is_send(keyspace.scan_page(ScanRange::all()));
}
