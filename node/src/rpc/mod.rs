//! tonic services, the gRPC transport between nodes, and their one listener; thin adapters.
//!
//! - `handler` is what they ask of a node; `status` turns its errors into gRPC statuses.
//! - `kv` and `session` serve keys, `admin` operators, `peer` other nodes.
//! - `transport` is the client side of `peer`: one message stream per node for all shards.
//! - `serve` puts them on one port, with gRPC health and reflection; `http` is the page for
//!   monitoring on another.

mod admin;
pub mod handler;
pub mod http;
mod kv;
mod peer;
mod serve;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod transport;

pub use peer::{frame, verified};
pub use serve::{Services, serve};
pub use status::to_status;
pub use transport::GrpcTransport;
