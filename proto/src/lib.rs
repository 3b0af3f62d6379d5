//! The ReelKV wire: gRPC definitions in `reelkv/v1/*.proto`, compiled here, and the few
//! types both sides must agree on.

pub mod checksum;
pub mod types;

/// Generated messages, clients and servers of package `reelkv.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("reelkv.v1");
}

/// The compiled descriptors of `reelkv.v1`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
