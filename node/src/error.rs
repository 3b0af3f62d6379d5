//! Answers that say no: each kind tells the caller what to do next (`error.proto`).

use bytes::Bytes;
use reelkv_proto::types::{KeyspaceId, ShardId, Version};
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, Error};

fn error(message: impl Into<String>, kind: Kind) -> Error {
    Error {
        message: message.into(),
        kind: Some(kind),
    }
}

/// Ask that node; nothing was done. 0 and an empty address mean that the leader is unknown.
pub fn not_leader(shard_id: ShardId, leader_node_id: u64, leader_addr: &str) -> Error {
    let message = match leader_node_id {
        0 => format!("shard {shard_id} has no known leader"),
        node => format!("shard {shard_id} is led by node {node} at {leader_addr}"),
    };
    let leader_addr = leader_addr.to_owned();
    error(
        message,
        Kind::NotLeader(v1::NotLeader {
            shard_id,
            leader_node_id,
            leader_addr,
            maybe_done: false,
        }),
    )
}

/// The same of a write that was under way, and may yet happen: to be sent again with its token only.
pub fn maybe_done(mut not_leader: Error) -> Error {
    if let Some(Kind::NotLeader(hint)) = &mut not_leader.kind {
        hint.maybe_done = true;
    }
    not_leader
}

/// The caller's map is old; nothing was done.
pub fn epoch_not_match(current: Vec<v1::ShardDescriptor>) -> Error {
    error(
        "the shard has changed its shape",
        Kind::EpochNotMatch(v1::EpochNotMatch { current }),
    )
}

/// The key lies elsewhere; nothing was done.
pub fn key_not_in_shard(shard_id: ShardId, key: Bytes) -> Error {
    error(
        format!("shard {shard_id} does not hold the key"),
        Kind::KeyNotInShard(v1::KeyNotInShard { shard_id, key }),
    )
}

/// Over a bound for now; nothing was done.
pub fn busy(retry_after_ms: u32, what: &str) -> Error {
    error(format!("busy: {what}"), Kind::Busy(v1::Busy { retry_after_ms }))
}

/// The write may or may not have happened.
pub fn outcome_unknown(why: &str) -> Error {
    error(
        format!("outcome unknown: {why}"),
        Kind::OutcomeUnknown(v1::OutcomeUnknown {}),
    )
}

/// Bytes did not match their checksum.
pub fn integrity(place: &str) -> Error {
    let message = format!("checksum mismatch in {place}; nothing was written");
    error(
        message,
        Kind::Integrity(v1::Integrity {
            r#where: place.to_owned(),
        }),
    )
}

/// The token's memory is gone.
pub fn token_expired(sequence: u64) -> Error {
    let message = format!("the shard no longer remembers token {sequence}; its outcome is unknown");
    error(message, Kind::TokenExpired(v1::TokenExpired { sequence }))
}

/// The request itself is wrong.
pub fn invalid(field: &str, message: impl Into<String>) -> Error {
    error(
        message,
        Kind::InvalidArgument(v1::InvalidArgument {
            field: field.to_owned(),
        }),
    )
}

/// A condition did not hold.
pub fn condition_failed(current_version: Version) -> Error {
    let message = match current_version {
        0 => "condition failed: the key is absent".to_owned(),
        version => format!("condition failed: the key has version {version}"),
    };
    error(
        message,
        Kind::ConditionFailed(v1::ConditionFailed { current_version }),
    )
}

/// No such keyspace.
pub fn unknown_keyspace(name: &str, keyspace_id: KeyspaceId) -> Error {
    let message = match name {
        "" => format!("unknown keyspace id {keyspace_id}"),
        name => format!("unknown keyspace '{name}'; create it with 'reelkv keyspace create {name}'"),
    };
    error(
        message,
        Kind::UnknownKeyspace(v1::UnknownKeyspace {
            name: name.to_owned(),
            keyspace_id,
        }),
    )
}

/// No quorum, or a replica that is not ready; nothing was done.
pub fn unavailable(why: impl Into<String>) -> Error {
    error(why, Kind::Unavailable(v1::Unavailable {}))
}

/// It exists already.
pub fn already_exists(what: impl Into<String>) -> Error {
    error(what, Kind::AlreadyExists(v1::AlreadyExists {}))
}

/// The server's own fault.
pub fn internal(what: impl Into<String>) -> Error {
    error(what, Kind::Internal(v1::Internal {}))
}
