//! What a shard's Raft says of itself.

use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver as _;

use super::types::{Raft, TypeConfig};

/// A copy of the Raft's metrics as they are now.
///
/// A copy, never a borrow: openraft publishes through a watch channel, whose borrow is a read
/// lock. Two of them held by one thread, with Raft's core wanting to publish between the two, would
/// stop both for ever, and a runtime worker each.
#[allow(clippy::disallowed_methods)] // this is the one borrow
pub fn metrics(raft: &Raft) -> RaftMetrics<TypeConfig> {
    raft.metrics().borrow_watched().clone()
}
