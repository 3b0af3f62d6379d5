//! Requests into reads and writes of one replica, limits and checksums first.

use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::checksum::client_crc;
use reelkv_proto::types::{KEYSPACE_PREFIX_BYTES, KeyRange, KeyspaceId, stored_key};
use reelkv_proto::v1::request::Op;
use reelkv_proto::v1::{self, response};

use crate::error;
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, INCARNATION_REMEMBERED_MS, KEY_BYTES_MAX, PAGE_BYTES_DEFAULT,
    PAGE_BYTES_MAX, REQUEST_TIMEOUT_MS_DEFAULT, TTL_MS_MAX, VALUE_BYTES_MAX,
};
use crate::replica::Replica;
use crate::shard::{Write, WriteKind, WriteOperation, WriteResult};
use crate::storage::StoredRecord;

/// Where a request goes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The keyspace's number, or 0 when it is named.
    pub keyspace_id: KeyspaceId,
    /// The keyspace's name, when its number is not given.
    pub keyspace: String,
    /// User key that decides the shard.
    pub key: Bytes,
    /// The shard the caller has routed it to.
    pub route: Option<v1::Route>,
}

/// Where a request goes, by what it asks.
///
/// # Errors
/// It asks nothing.
pub(super) fn target(op: &Op) -> Result<Target, v1::Error> {
    let of = |keyspace_id, keyspace: &str, key: &Bytes, route: &Option<v1::Route>| Target {
        keyspace_id,
        keyspace: keyspace.to_owned(),
        key: key.clone(),
        route: *route,
    };
    Ok(match op {
        Op::Get(get) => of(get.keyspace_id, &get.keyspace, &get.key, &get.route),
        Op::Put(put) => of(put.keyspace_id, &put.keyspace, &put.key, &put.route),
        Op::Delete(delete) => of(delete.keyspace_id, &delete.keyspace, &delete.key, &delete.route),
        Op::Add(add) => of(add.keyspace_id, &add.keyspace, &add.key, &add.route),
        Op::Batch(batch) => {
            let first = batch
                .operations
                .first()
                .ok_or_else(|| error::invalid("batch", "the batch is empty"))?;
            of(batch.keyspace_id, &batch.keyspace, &first.key, &batch.route)
        }
        Op::Scan(scan) => of(scan.keyspace_id, &scan.keyspace, &scan.start_key, &scan.route),
        Op::OpenIncarnation(open) => of(open.keyspace_id, "", &open.key, &open.route),
    })
}

/// Whether a request changes anything.
pub(super) fn is_write(op: &Op) -> bool {
    !matches!(op, Op::Get(_) | Op::Scan(_))
}

/// How long a request may take.
pub(super) fn timeout(timeout_ms: u32) -> Duration {
    Duration::from_millis(match timeout_ms {
        0 => REQUEST_TIMEOUT_MS_DEFAULT,
        ms => u64::from(ms),
    })
}

/// Refuses what no shard may be asked: limits, and values that do not match their checksum.
///
/// # Errors
/// `InvalidArgument` naming the limit, or `Integrity`.
pub(super) fn check(keyspace_id: KeyspaceId, op: &Op) -> Result<(), v1::Error> {
    match op {
        Op::Get(get) => check_key(&get.key),
        Op::Put(put) => {
            check_key(&put.key)?;
            check_ttl(put.ttl_ms)?;
            check_value(keyspace_id, &put.key, &put.value, put.client_crc)
        }
        Op::Delete(delete) => check_key(&delete.key),
        Op::Add(add) => check_key(&add.key),
        Op::Batch(batch) => check_batch(keyspace_id, batch),
        Op::Scan(scan) => {
            check_key(&scan.start_key)?;
            check_key(&scan.end_key)
        }
        Op::OpenIncarnation(open) => check_key(&open.key),
    }
}

fn check_key(key: &[u8]) -> Result<(), v1::Error> {
    match key.len() <= KEY_BYTES_MAX {
        true => Ok(()),
        false => Err(error::invalid(
            "key",
            format!(
                "a key of {} bytes is over the limit of {KEY_BYTES_MAX}",
                key.len()
            ),
        )),
    }
}

fn check_ttl(ttl_ms: u64) -> Result<(), v1::Error> {
    match ttl_ms <= TTL_MS_MAX {
        true => Ok(()),
        false => Err(error::invalid(
            "ttl_ms",
            format!("a time to live of {ttl_ms} ms is over the limit of {TTL_MS_MAX}"),
        )),
    }
}

fn check_value(keyspace_id: KeyspaceId, key: &[u8], value: &[u8], crc: Option<u32>) -> Result<(), v1::Error> {
    if value.len() > VALUE_BYTES_MAX {
        let message = format!(
            "a value of {} bytes is over the limit of {VALUE_BYTES_MAX}",
            value.len()
        );
        return Err(error::invalid("value", message));
    }
    match crc {
        Some(crc) if crc != client_crc(keyspace_id, key, value) => Err(error::integrity("request")),
        _ => Ok(()),
    }
}

fn check_batch(keyspace_id: KeyspaceId, batch: &v1::BatchRequest) -> Result<(), v1::Error> {
    let count = batch.operations.len();
    if count > BATCH_OPERATIONS_MAX {
        let message = format!("a batch of {count} operations is over the limit of {BATCH_OPERATIONS_MAX}");
        return Err(error::invalid("batch", message));
    }
    let mut bytes = 0;
    let mut keys = std::collections::HashSet::with_capacity(count);
    for operation in &batch.operations {
        check_key(&operation.key)?;
        bytes += operation.key.len();
        if !keys.insert(&operation.key) {
            return Err(error::invalid("batch", "a key occurs twice in the batch"));
        }
        match &operation.kind {
            Some(v1::batch_operation::Kind::Put(put)) => {
                check_ttl(put.ttl_ms)?;
                check_value(keyspace_id, &operation.key, &put.value, put.client_crc)?;
                bytes += put.value.len();
            }
            Some(v1::batch_operation::Kind::Delete(_)) => {}
            None => return Err(error::invalid("batch", "an operation is neither put nor delete")),
        }
    }
    match bytes <= BATCH_BYTES_MAX {
        true => Ok(()),
        false => Err(error::invalid(
            "batch",
            format!("a batch of {bytes} bytes is over the limit of {BATCH_BYTES_MAX}"),
        )),
    }
}

/// Carries a request out on the replica that holds its key.
pub(super) async fn execute(
    replica: &Replica,
    keyspace_id: KeyspaceId,
    op: Op,
    timeout: Duration,
) -> Result<response::Result, v1::Error> {
    match op {
        Op::Get(get) => {
            let key = stored_key(keyspace_id, &get.key);
            contains(replica, &key)?;
            let record = bounded_read(timeout, replica.get(&key)).await?;
            Ok(response::Result::Get(v1::GetResponse {
                record: record.and_then(wire_record),
            }))
        }
        // On the heap, so that the many requests for one key take less memory.
        Op::Scan(scan) => Box::pin(bounded_read(timeout, page(replica, keyspace_id, scan))).await,
        Op::OpenIncarnation(_) => {
            let written = replica
                .write(
                    Write {
                        token: None,
                        kind: WriteKind::OpenIncarnation,
                    },
                    timeout,
                )
                .await?;
            let shard_id = replica.id().shard_id;
            Ok(response::Result::OpenIncarnation(v1::OpenIncarnationResponse {
                incarnation: Some(v1::Incarnation {
                    shard_id,
                    version: written.version,
                }),
                remembered_ms: INCARNATION_REMEMBERED_MS,
            }))
        }
        Op::Add(add) => {
            let kind = WriteKind::Add {
                key: stored_key(keyspace_id, &add.key),
                delta: add.delta,
            };
            let written = replica
                .write(
                    Write {
                        token: add.token,
                        kind,
                    },
                    timeout,
                )
                .await?;
            let value = written
                .sum
                .ok_or_else(|| error::internal("an addition without a sum"))?;
            Ok(response::Result::Add(v1::AddResponse {
                value,
                version: written.version,
            }))
        }
        Op::Put(put) => {
            let crc = put
                .client_crc
                .unwrap_or_else(|| client_crc(keyspace_id, &put.key, &put.value));
            let operation = WriteOperation {
                key: stored_key(keyspace_id, &put.key),
                put: Some((put.value, crc)),
                ttl_ms: put.ttl_ms,
                condition: put.condition.and_then(|condition| condition.kind),
            };
            operations(replica, put.token, vec![operation], timeout).await
        }
        Op::Delete(delete) => {
            let operation = WriteOperation {
                key: stored_key(keyspace_id, &delete.key),
                put: None,
                ttl_ms: 0,
                condition: delete.condition.and_then(|condition| condition.kind),
            };
            operations(replica, delete.token, vec![operation], timeout).await
        }
        Op::Batch(batch) => {
            let batched = batch
                .operations
                .into_iter()
                .map(|operation| batch_operation(keyspace_id, operation));
            let batched: Vec<_> = batched.collect();
            let outside = batched.iter().find(|operation| {
                !replica
                    .store()
                    .with_control(|control| control.range().contains(&operation.key))
            });
            match outside {
                Some(outside) if batched.len() > 1 && batched[0].key != outside.key => Err(error::invalid(
                    "batch",
                    "the batch's keys are not all in one shard; keys that share their first tuple element are",
                )),
                _ => operations(replica, batch.token, batched, timeout).await,
            }
        }
    }
}

fn batch_operation(keyspace_id: KeyspaceId, operation: v1::BatchOperation) -> WriteOperation {
    let ttl_ms = match &operation.kind {
        Some(v1::batch_operation::Kind::Put(put)) => put.ttl_ms,
        _ => 0,
    };
    let put = match operation.kind {
        Some(v1::batch_operation::Kind::Put(put)) => {
            let crc = put
                .client_crc
                .unwrap_or_else(|| client_crc(keyspace_id, &operation.key, &put.value));
            Some((put.value, crc))
        }
        _ => None,
    };
    let condition = operation.condition.and_then(|condition| condition.kind);
    WriteOperation {
        key: stored_key(keyspace_id, &operation.key),
        put,
        ttl_ms,
        condition,
    }
}

async fn operations(
    replica: &Replica,
    token: Option<v1::Token>,
    operations: Vec<WriteOperation>,
    timeout: Duration,
) -> Result<response::Result, v1::Error> {
    let write = Write {
        token,
        kind: WriteKind::Operations(operations),
    };
    let WriteResult { version, .. } = replica.write(write, timeout).await?;
    Ok(response::Result::Write(v1::WriteResponse { version }))
}

fn contains(replica: &Replica, key: &Bytes) -> Result<(), v1::Error> {
    match replica
        .store()
        .with_control(|control| control.range().contains(key))
    {
        true => Ok(()),
        false => Err(error::key_not_in_shard(replica.id().shard_id, key.clone())),
    }
}

/// One page of one shard; its resume key leads into the next shard where the range goes on there.
async fn page(
    replica: &Replica,
    keyspace_id: KeyspaceId,
    scan: v1::ScanRequest,
) -> Result<response::Result, v1::Error> {
    let start = stored_key(keyspace_id, &scan.start_key);
    contains(replica, &start)?;
    let whole = KeyRange::of_keyspace(keyspace_id);
    let end = match scan.end_key.is_empty() {
        true => whole.end,
        false => stored_key(keyspace_id, &scan.end_key),
    };
    let wanted = KeyRange { start, end };
    let held = replica.store().with_control(|control| control.range().clone());
    let Some(range) = held.intersect(&wanted) else {
        return Ok(response::Result::Scan(v1::ScanResponse::default()));
    };
    let goes_on = range.end != wanted.end;
    let records_max = if scan.limit == 0 {
        usize::MAX
    } else {
        usize::try_from(scan.limit).unwrap_or(usize::MAX)
    };
    let bytes_max = match scan.page_bytes {
        0 => PAGE_BYTES_DEFAULT,
        bytes => (bytes as usize).min(PAGE_BYTES_MAX),
    };
    let range_end = range.end.clone();
    let page = replica.scan(range, records_max, bytes_max).await?;
    let resume = page.resume.or_else(|| goes_on.then_some(range_end));
    // A resume key at or after the last key wanted ends the scan.
    let resume = resume.filter(|resume| wanted.end.is_empty() || *resume < wanted.end);
    let done = scan.limit != 0 && page.records.len() as u64 >= scan.limit;
    Ok(response::Result::Scan(v1::ScanResponse {
        records: page.records.into_iter().filter_map(wire_record).collect(),
        resume_key: match resume {
            Some(resume) if !done => resume.slice(KEYSPACE_PREFIX_BYTES.min(resume.len())..),
            _ => Bytes::new(),
        },
    }))
}

async fn bounded_read<T>(
    timeout: Duration,
    read: impl Future<Output = Result<T, v1::Error>>,
) -> Result<T, v1::Error> {
    match tokio::time::timeout(timeout, read).await {
        Ok(answer) => answer,
        Err(_) => Err(error::unavailable("the deadline passed before a quorum answered")),
    }
}

/// A stored record as a client sees it: without the keyspace prefix. `None` for a deleted one.
pub(super) fn wire_record(record: StoredRecord) -> Option<v1::Record> {
    Some(v1::Record {
        key: record.key.slice(KEYSPACE_PREFIX_BYTES.min(record.key.len())..),
        value: record.value?,
        version: record.version,
        client_crc: record.client_crc,
        logged_time_ms: record.logged_time_ms,
        expires_at_ms: record.expires_at_ms,
    })
}
