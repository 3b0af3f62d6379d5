//! Reading and writing one keyspace.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use reelkv_proto::checksum::client_crc;
use reelkv_proto::types::{KeyspaceId, Version};
use reelkv_proto::v1;
use reelkv_proto::v1::request::Op;
use reelkv_proto::v1::response::Result as Answer;
use tokio::time::Instant;

use crate::call::{Ask, unexpected};
use crate::client::Shared;
use crate::error::Result;
use crate::record::{Batch, Condition, Record, ScanPage, ScanRange};
use crate::{limits, scan};

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
        let key = Bytes::copy_from_slice(key.as_ref());
        limits::check_key(&key)?;
        let op = Op::Get(v1::GetRequest {
            keyspace_id: self.id,
            key: key.clone(),
            ..Default::default()
        });
        match self.perform(&key, op).await? {
            Answer::Get(got) => Ok(got.record.map(Record::from_verified)),
            _ => Err(unexpected()),
        }
    }

    /// Writes `value` under `key`, whatever was there; the version of the write.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<Version> {
        self.put_when(key.as_ref(), value.into(), None, None).await
    }

    /// Writes `value` under `key` if `condition` holds; otherwise `ConditionFailed` with the version the key has.
    pub async fn put_if(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        condition: Condition,
    ) -> Result<Version> {
        self.put_when(key.as_ref(), value.into(), None, Some(condition))
            .await
    }

    /// Writes `value` under `key`, to live for `ttl` (1 ms to 3650 days) and then be absent.
    ///
    /// The time is the shard's logged time, which most of its nodes' clocks decide: one that is wrong
    /// shortens or lengthens nothing. A later write without a time to live makes the key stay.
    pub async fn put_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        ttl: Duration,
    ) -> Result<Version> {
        self.put_when(key.as_ref(), value.into(), Some(ttl), None).await
    }

    /// As [`Keyspace::put_with_ttl`], if `condition` holds; otherwise `ConditionFailed` with the
    /// version the key has. What has expired is absent.
    pub async fn put_with_ttl_if(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        ttl: Duration,
        condition: Condition,
    ) -> Result<Version> {
        self.put_when(key.as_ref(), value.into(), Some(ttl), Some(condition))
            .await
    }

    /// Deletes `key`, also when it is absent; the version of the deletion.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Version> {
        self.delete_when(key.as_ref(), None).await
    }

    /// Deletes `key` if `condition` holds; otherwise `ConditionFailed` with the version the key has.
    pub async fn delete_if(&self, key: impl AsRef<[u8]>, condition: Condition) -> Result<Version> {
        self.delete_when(key.as_ref(), Some(condition)).await
    }

    /// Adds `delta` to the integer under `key` (absent counts as 0) and returns the sum. When the key
    /// expires does not change.
    ///
    /// Integers are stored as 8 bytes, big endian, two's complement. `InvalidArgument` when the
    /// value is no integer or the sum would overflow.
    pub async fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<i64> {
        let key = Bytes::copy_from_slice(key.as_ref());
        limits::check_key(&key)?;
        let op = Op::Add(v1::AddRequest {
            keyspace_id: self.id,
            key: key.clone(),
            delta,
            ..Default::default()
        });
        match self.perform(&key, op).await? {
            Answer::Add(added) => Ok(added.value),
            _ => Err(unexpected()),
        }
    }

    /// Performs all writes of `batch` or none; the version of the first, the others follow it one by one.
    pub async fn batch(&self, batch: Batch) -> Result<Version> {
        batch.check()?;
        let key = batch.first_key();
        let op = Op::Batch(v1::BatchRequest {
            keyspace_id: self.id,
            operations: batch.into_operations(self.id),
            ..Default::default()
        });
        self.write(&key, op).await
    }

    /// The records of `range` in key order, fetched page by page.
    ///
    /// Each page is one shard's view at one moment; pages together are not one snapshot. The
    /// timeout holds for each page. The stream ends after its first error.
    pub fn scan(&self, range: ScanRange) -> BoxStream<'static, Result<Record>> {
        scan::stream(self.clone(), range)
    }

    /// One page of `range`, and what is left of it.
    pub async fn scan_page(&self, range: ScanRange) -> Result<ScanPage> {
        scan::page(self, range).await
    }

    async fn put_when(
        &self,
        key: &[u8],
        value: Bytes,
        ttl: Option<Duration>,
        condition: Option<Condition>,
    ) -> Result<Version> {
        let key = Bytes::copy_from_slice(key);
        limits::check_key(&key)?;
        limits::check_value(&value)?;
        let op = Op::Put(v1::PutRequest {
            keyspace_id: self.id,
            client_crc: Some(client_crc(self.id, &key, &value)),
            key: key.clone(),
            value,
            ttl_ms: ttl.map_or(Ok(0), limits::ttl_ms)?,
            condition: condition.map(Into::into),
            ..Default::default()
        });
        self.write(&key, op).await
    }

    async fn delete_when(&self, key: &[u8], condition: Option<Condition>) -> Result<Version> {
        let key = Bytes::copy_from_slice(key);
        limits::check_key(&key)?;
        let op = Op::Delete(v1::DeleteRequest {
            keyspace_id: self.id,
            key: key.clone(),
            condition: condition.map(Into::into),
            ..Default::default()
        });
        self.write(&key, op).await
    }

    async fn write(&self, key: &[u8], op: Op) -> Result<Version> {
        match self.perform(key, op).await? {
            Answer::Write(written) => Ok(written.version),
            _ => Err(unexpected()),
        }
    }

    async fn perform(&self, key: &[u8], op: Op) -> Result<Answer> {
        let deadline = Instant::now() + self.timeout;
        let ask = Ask {
            keyspace: self.id,
            key,
            op: &op,
            deadline,
        };
        Ok(self.shared.perform(ask).await?.answer)
    }
}
