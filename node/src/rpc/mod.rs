//! tonic services, the gRPC transport between nodes, and the HTTP page; thin adapters.

pub mod handler;
