//! Reading and writing one keyspace.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use reelkv_proto::types::{KeyspaceId, Version};

use crate::client::Shared;
use crate::error::Result;
use crate::record::{Batch, Condition, Record, ScanPage, ScanRange};

/// A named table of keys. Cheap to clone; clones share everything.
///
/// Keys are at most 4 KiB, values at most 4 MiB. Reads and writes of a key are linearizable.
/// Besides the errors named at each method, every call may fail with
/// [`Busy`](crate::ErrorKind::Busy), [`Unavailable`](crate::ErrorKind::Unavailable),
/// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) and
/// [`Integrity`](crate::ErrorKind::Integrity); and a write with
/// [`OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown).
#[derive(Clone)]
pub struct Keyspace {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: KeyspaceId,
    pub(crate) name: Arc<str>,
    pub(crate) timeout: Duration,
}

impl Keyspace {
    /// Number of the keyspace; never reused in a cluster.
    pub fn id(&self) -> KeyspaceId {
        self.id
    }

    /// Name of the keyspace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same keyspace, whose calls may take this long, all their tries included.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Reads `key`; `None` when it is absent.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        let _ = key.as_ref();
        todo!()
    }

    /// Writes `value` under `key`, whatever was there; the version of the write.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<Version> {
        let _ = (key.as_ref(), value.into());
        todo!()
    }

    /// Writes `value` under `key` if `condition` holds; otherwise `ConditionFailed` with the version the key has.
    pub async fn put_if(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        condition: Condition,
    ) -> Result<Version> {
        let _ = (key.as_ref(), value.into(), condition);
        todo!()
    }

    /// Deletes `key`, also when it is absent; the version of the deletion.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Version> {
        let _ = key.as_ref();
        todo!()
    }

    /// Deletes `key` if `condition` holds; otherwise `ConditionFailed` with the version the key has.
    pub async fn delete_if(&self, key: impl AsRef<[u8]>, condition: Condition) -> Result<Version> {
        let _ = (key.as_ref(), condition);
        todo!()
    }

    /// Adds `delta` to the integer under `key` (absent counts as 0) and returns the sum.
    ///
    /// Integers are stored as 8 bytes, big endian, two's complement. `InvalidArgument` when the
    /// value is no integer or the sum would overflow.
    pub async fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<i64> {
        let _ = (key.as_ref(), delta);
        todo!()
    }

    /// Performs all writes of `batch` or none; the version of the first, the others follow it one by one.
    pub async fn batch(&self, batch: Batch) -> Result<Version> {
        let _ = batch;
        todo!()
    }

    /// The records of `range` in key order, fetched page by page.
    ///
    /// Each page is one shard's view at one moment; pages together are not one snapshot. The
    /// timeout holds for each page. The stream ends after its first error.
    pub fn scan(&self, range: ScanRange) -> BoxStream<'static, Result<Record>> {
        let _ = range;
        todo!()
    }

    /// One page of `range`, and what is left of it.
    pub async fn scan_page(&self, range: ScanRange) -> Result<ScanPage> {
        let _ = range;
        todo!()
    }
}
