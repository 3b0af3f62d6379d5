//! The bounds a request must keep; checked here before anything is sent, and again by the node.

use std::time::Duration;

use crate::error::{Error, Result};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 4 << 20;
/// Longest time to live of a record: 3650 days.
pub const TTL_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// Most operations in one atomic batch.
pub const BATCH_OPERATIONS_MAX: usize = 1_000;
/// Most key and value bytes in one atomic batch.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Largest scan page, in bytes of records.
pub const PAGE_BYTES_MAX: u32 = 8 << 20;
/// Longest keyspace name, in bytes.
pub const KEYSPACE_NAME_BYTES_MAX: usize = 128;
/// Largest message to or from a node.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;

pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    check_length("key", key.len(), KEY_BYTES_MAX)
}

pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    check_length("value", value.len(), VALUE_BYTES_MAX)
}

/// A time to live as it is sent; a fraction of a millisecond counts as a whole one.
pub(crate) fn ttl_ms(ttl: Duration) -> Result<u64> {
    match u64::try_from(ttl.as_nanos().div_ceil(1_000_000)) {
        Ok(ttl_ms @ 1..) if ttl <= TTL_MAX => Ok(ttl_ms),
        _ => Err(Error::invalid(
            "ttl",
            format!(
                "a time to live of {ttl:?} is not between 1ms and {} days",
                TTL_MAX.as_secs() / 86_400
            ),
        )),
    }
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Error::invalid(
            "name",
            "a keyspace name has 1 to 128 bytes and no control characters",
        ));
    }
    check_length("name", name.len(), KEYSPACE_NAME_BYTES_MAX)
}

fn check_length(field: &str, length: usize, max: usize) -> Result<()> {
    if length <= max {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!("the {field} has {length} bytes, at most {max} are allowed"),
    ))
}
