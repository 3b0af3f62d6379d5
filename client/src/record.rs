//! What is stored, what may be asked of it, and batches of writes.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::checksum::client_crc;
use reelkv_proto::types::{KeyspaceId, Version};
use reelkv_proto::v1;

use crate::error::{Error, Result};
use crate::limits;

/// A key and its value, verified against the checksum its writer computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Number of the write; rises with every write in the shard, never reused.
    pub version: Version,
    /// When the shard's leader logged it, milliseconds since 1970; for people, no order rests on it.
    pub logged_time_ms: u64,
    /// From when on it is absent: milliseconds since 1970, by the time that the shard logs. `None`:
    /// it lives until it is deleted.
    pub expires_at_ms: Option<u64>,
}

impl Record {
    /// A record whose checksum was checked when the answer came.
    pub(crate) fn from_verified(record: v1::Record) -> Self {
        Self {
            key: record.key,
            value: record.value,
            version: record.version,
            logged_time_ms: record.logged_time_ms,
            expires_at_ms: Some(record.expires_at_ms).filter(|at_ms| *at_ms != 0),
        }
    }
}

/// What must hold of a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key is absent.
    Absent,
    /// The key is present with exactly this version.
    Version(Version),
}

impl From<Condition> for v1::Condition {
    fn from(condition: Condition) -> Self {
        let kind = match condition {
            Condition::Absent => v1::condition::Kind::Absent(true),
            Condition::Version(version) => v1::condition::Kind::Version(version),
        };
        Self { kind: Some(kind) }
    }
}

/// Which keys a scan returns: `[start, end)`, in key order.
///
/// ```
/// use reelkv_client::ScanRange;
///
/// let range = ScanRange::prefix("film/").limit(100);
/// assert_eq!(&range.end[..], b"film0");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanRange {
    /// First key wanted; empty from the start of the keyspace.
    pub start: Bytes,
    /// First key not wanted; empty to the end of the keyspace.
    pub end: Bytes,
    /// At most this many records in all; 0 for no limit.
    pub limit: u64,
    /// A page holds about this many bytes; 0 for the server's choice; at most 8 MiB.
    pub page_bytes: u32,
}

impl ScanRange {
    /// The whole keyspace.
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys from `start` up to, but without, `end`; an empty `end` has no bound.
    pub fn between(start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        Self {
            start: Bytes::copy_from_slice(start.as_ref()),
            end: Bytes::copy_from_slice(end.as_ref()),
            ..Self::default()
        }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        // The first key after all of them: the last byte that can grow is raised, the rest dropped.
        let kept = prefix
            .iter()
            .rposition(|&byte| byte != 0xff)
            .map_or(0, |at| at + 1);
        let mut end = prefix[..kept].to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self::between(prefix, end)
    }

    /// At most this many records in all.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// Fetch about this many bytes at a time.
    pub fn page_bytes(mut self, page_bytes: u32) -> Self {
        self.page_bytes = page_bytes;
        self
    }
}

/// One page of a scan: one shard's view at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// The records, in key order.
    pub records: Vec<Record>,
    /// The range that is left to scan; `None` when the scan is complete.
    pub rest: Option<ScanRange>,
}

/// Writes that happen all or not at all; their keys must lie in one shard.
///
/// At most 1,000 operations and 8 MiB; each key once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    operations: Vec<Operation>,
}

#[derive(Clone, Debug)]
struct Operation {
    key: Bytes,
    value: Option<Bytes>,
    ttl: Option<Duration>,
    condition: Option<Condition>,
}

impl Batch {
    /// A batch without operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `value` under `key`.
    pub fn put(self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        self.with(key.as_ref(), Some(value.into()), None)
    }

    /// Writes `value` under `key`; the whole batch is refused unless `condition` holds.
    pub fn put_if(self, key: impl AsRef<[u8]>, value: impl Into<Bytes>, condition: Condition) -> Self {
        self.with(key.as_ref(), Some(value.into()), Some(condition))
    }

    /// Writes `value` under `key`, to live for `ttl` (1 ms to 3650 days) and then be absent.
    pub fn put_with_ttl(self, key: impl AsRef<[u8]>, value: impl Into<Bytes>, ttl: Duration) -> Self {
        self.put(key, value).living(ttl)
    }

    /// As [`Batch::put_with_ttl`]; the whole batch is refused unless `condition` holds.
    pub fn put_with_ttl_if(
        self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        ttl: Duration,
        condition: Condition,
    ) -> Self {
        self.put_if(key, value, condition).living(ttl)
    }

    /// Deletes `key`.
    pub fn delete(self, key: impl AsRef<[u8]>) -> Self {
        self.with(key.as_ref(), None, None)
    }

    /// Deletes `key`; the whole batch is refused unless `condition` holds.
    pub fn delete_if(self, key: impl AsRef<[u8]>, condition: Condition) -> Self {
        self.with(key.as_ref(), None, Some(condition))
    }

    /// How many operations it holds.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    fn with(mut self, key: &[u8], value: Option<Bytes>, condition: Option<Condition>) -> Self {
        let key = Bytes::copy_from_slice(key);
        self.operations.push(Operation {
            key,
            value,
            ttl: None,
            condition,
        });
        self
    }

    /// Gives the last operation a time to live.
    fn living(mut self, ttl: Duration) -> Self {
        if let Some(last) = self.operations.last_mut() {
            last.ttl = Some(ttl);
        }
        self
    }

    /// The key that routes it; empty when there is no operation.
    pub(crate) fn first_key(&self) -> Bytes {
        self.operations
            .first()
            .map(|operation| operation.key.clone())
            .unwrap_or_default()
    }

    /// Checks the bounds a batch must keep.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_empty() {
            return Err(Error::invalid("batch", "the batch holds no operation"));
        }
        if self.len() > limits::BATCH_OPERATIONS_MAX {
            let message = format!(
                "the batch holds {} operations, at most {} are allowed",
                self.len(),
                limits::BATCH_OPERATIONS_MAX
            );
            return Err(Error::invalid("batch", message));
        }
        let mut batch_bytes = 0;
        let mut seen = HashSet::with_capacity(self.len());
        for operation in &self.operations {
            let value = operation.value.as_deref().unwrap_or_default();
            limits::check_key(&operation.key)?;
            limits::check_value(value)?;
            operation.ttl.map(limits::ttl_ms).transpose()?;
            batch_bytes += operation.key.len() + value.len();
            if !seen.insert(&operation.key) {
                return Err(Error::invalid("batch", "the batch names a key more than once"));
            }
        }
        if batch_bytes > limits::BATCH_BYTES_MAX {
            let message = format!(
                "the batch has {batch_bytes} bytes, at most {} are allowed",
                limits::BATCH_BYTES_MAX
            );
            return Err(Error::invalid("batch", message));
        }
        Ok(())
    }

    /// For the wire; the batch was checked.
    pub(crate) fn into_operations(self, keyspace: KeyspaceId) -> Vec<v1::BatchOperation> {
        let to_wire = |operation: Operation| {
            let ttl = operation.ttl.and_then(|ttl| limits::ttl_ms(ttl).ok());
            let kind = match operation.value {
                Some(value) => v1::batch_operation::Kind::Put(v1::BatchPut {
                    client_crc: Some(client_crc(keyspace, &operation.key, &value)),
                    value,
                    ttl_ms: ttl.unwrap_or(0),
                }),
                None => v1::batch_operation::Kind::Delete(v1::BatchDelete {}),
            };
            v1::BatchOperation {
                key: operation.key,
                condition: operation.condition.map(Into::into),
                kind: Some(kind),
            }
        };
        self.operations.into_iter().map(to_wire).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(&ScanRange::prefix("ab").end[..], b"ac");
        assert_eq!(&ScanRange::prefix(b"a\xff\xff").end[..], b"b");
        assert!(ScanRange::prefix(b"\xff\xff").end.is_empty());
        assert!(ScanRange::prefix("").end.is_empty());
    }

    #[test]
    fn a_batch_names_the_limit_it_breaks() {
        let broken = |batch: Batch| batch.check().unwrap_err().to_string();
        assert!(broken(Batch::new()).contains("no operation"));
        assert!(broken(Batch::new().put("a", "1").delete("a")).contains("more than once"));
        let many = (0..1_001).fold(Batch::new(), |batch, n| batch.put(format!("{n}"), ""));
        assert!(broken(many).contains("1001 operations"));
        let large = (0..3).fold(Batch::new(), |batch, n| {
            batch.put(format!("{n}"), vec![0; 3 << 20])
        });
        assert!(broken(large).contains("8388608"));
        assert!(broken(Batch::new().put("a", vec![0; (4 << 20) + 1])).contains("4194304"));
        assert!(broken(Batch::new().put(vec![0; 4097], "")).contains("4096"));
        assert!(Batch::new().put("a", "1").delete("b").check().is_ok());
        let living = |ttl| Batch::new().put_with_ttl("a", "1", ttl);
        for ttl in [
            Duration::ZERO,
            limits::TTL_MAX + Duration::from_nanos(1),
            Duration::MAX,
        ] {
            assert!(
                broken(living(ttl)).contains("between 1ms and 3650 days"),
                "{ttl:?}"
            );
        }
    }

    #[test]
    fn a_time_to_live_is_sent_in_whole_milliseconds_and_none_as_0() {
        let ttl = |batch: Batch| match batch.into_operations(1).remove(0).kind {
            Some(v1::batch_operation::Kind::Put(put)) => put.ttl_ms,
            other => panic!("{other:?}"),
        };
        for (sent, expected) in [
            (Duration::from_nanos(1), 1),
            (Duration::from_micros(1_001), 2),
            (Duration::from_secs(30), 30_000),
            (limits::TTL_MAX, 315_360_000_000),
        ] {
            let batch = Batch::new().put_with_ttl_if("a", "1", sent, Condition::Absent);
            assert!(batch.check().is_ok(), "{sent:?}");
            assert_eq!(ttl(batch), expected);
        }
        assert_eq!(ttl(Batch::new().put("a", "1")), 0);
    }
}
