//! What the tests against PostgreSQL share: options, comparisons, a store that fails.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use reelkv_migrate::{
    ImportOptions, ImportReport, MemoryTarget, Progress, Row, ScanPage, Target, TargetResult, VerifyOptions,
    VerifyReport, decode_key, decode_row, verify,
};
use serde_json::Value;

pub fn import_options(url: String) -> ImportOptions {
    ImportOptions {
        shards: 8,
        parallel: 3,
        progress: Progress::Silent,
        ..ImportOptions::new(url)
    }
}

pub fn verify_options(url: String) -> VerifyOptions {
    VerifyOptions {
        parallel: 3,
        progress: Progress::Silent,
        ..VerifyOptions::new(url)
    }
}

pub async fn verified(url: &str, target: &Arc<MemoryTarget>) -> VerifyReport {
    verify(verify_options(url.to_owned()), target.clone())
        .await
        .unwrap()
}

pub async fn assert_clean(url: &str, target: &Arc<MemoryTarget>) {
    let report = verified(url, target).await;
    let bad: Vec<_> = report.tables.iter().filter(|table| !table.is_clean()).collect();
    assert!(report.clean && bad.is_empty(), "{bad:#?}");
}

pub fn rows_of(report: &ImportReport) -> BTreeMap<String, u64> {
    report
        .tables
        .iter()
        .map(|table| (table.table.clone(), table.rows))
        .collect()
}

/// Finds a row by its key as JSON.
pub fn row(target: &MemoryTarget, keyspace: &str, key: &Value) -> (Bytes, Value) {
    let rows = target.rows(keyspace);
    let (found, value) = rows
        .iter()
        .find(|(k, _)| decode_key(k) == *key)
        .unwrap_or_else(|| panic!("no {key}"));
    (found.clone(), decode_row(value).unwrap())
}

/// A store that fails after so many rows.
pub struct FailingTarget {
    pub inner: Arc<MemoryTarget>,
    pub rows_left: AtomicU64,
}

impl Target for FailingTarget {
    fn ensure_keyspace<'a>(
        &'a self,
        name: &'a str,
        split_keys: Vec<Bytes>,
    ) -> BoxFuture<'a, TargetResult<()>> {
        self.inner.ensure_keyspace(name, split_keys)
    }

    fn keyspace_exists<'a>(&'a self, name: &'a str) -> BoxFuture<'a, TargetResult<bool>> {
        self.inner.keyspace_exists(name)
    }

    fn put_many<'a>(&'a self, keyspace: &'a str, rows: Vec<Row>) -> BoxFuture<'a, TargetResult<()>> {
        let enough = |left: u64| left.checked_sub(rows.len() as u64);
        if self
            .rows_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough)
            .is_err()
        {
            return async { Err("the store is gone".into()) }.boxed();
        }
        self.inner.put_many(keyspace, rows)
    }

    fn scan<'a>(
        &'a self,
        keyspace: &'a str,
        from: Bytes,
        until: Option<Bytes>,
        limit: usize,
    ) -> BoxFuture<'a, TargetResult<ScanPage>> {
        self.inner.scan(keyspace, from, until, limit)
    }

    fn get<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<Option<Bytes>>> {
        self.inner.get(keyspace, key)
    }

    fn delete<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<()>> {
        self.inner.delete(keyspace, key)
    }
}
