//! The seam to the store: what an import and a verification need of it, and nothing more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

/// A key and its value.
pub type Row = (Bytes, Bytes);

/// Whatever the store answered instead of doing it.
pub type TargetError = Box<dyn std::error::Error + Send + Sync>;

/// What the store answered.
pub type TargetResult<T> = Result<T, TargetError>;

/// A stretch of a keyspace in key order.
#[derive(Clone, Debug, Default)]
pub struct ScanPage {
    /// The rows, ascending. May be empty although more follows.
    pub rows: Vec<Row>,
    /// Where the next page starts (inclusive); none at the end of what was asked for.
    pub next: Option<Bytes>,
}

/// A store that holds named keyspaces of ordered keys.
///
/// Every call retries by itself what is worth retrying: an error ends the import. Writes are idempotent.
pub trait Target: Send + Sync {
    /// Makes sure the keyspace exists. A new one is split at these keys; one that exists stays as it is.
    fn ensure_keyspace<'a>(
        &'a self,
        name: &'a str,
        split_keys: Vec<Bytes>,
    ) -> BoxFuture<'a, TargetResult<()>>;

    /// Whether the keyspace exists.
    fn keyspace_exists<'a>(&'a self, name: &'a str) -> BoxFuture<'a, TargetResult<bool>>;

    /// Writes rows, in any order and pipelined; all of them are durable when it returns.
    fn put_many<'a>(&'a self, keyspace: &'a str, rows: Vec<Row>) -> BoxFuture<'a, TargetResult<()>>;

    /// Reads a page of the rows from `from` (inclusive) to `until` (exclusive; none: the end). `limit` is how many rows
    /// the caller would like; a page may have more or fewer.
    fn scan<'a>(
        &'a self,
        keyspace: &'a str,
        from: Bytes,
        until: Option<Bytes>,
        limit: usize,
    ) -> BoxFuture<'a, TargetResult<ScanPage>>;

    /// The value of a key.
    fn get<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<Option<Bytes>>>;

    /// Deletes a key, whether it exists or not.
    fn delete<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<()>>;
}

type Keyspaces = HashMap<String, (Vec<Bytes>, BTreeMap<Bytes, Bytes>)>;

/// A store in memory, for tests: keyspaces that keep the split keys they were made with.
#[derive(Debug, Default)]
pub struct MemoryTarget {
    keyspaces: Mutex<Keyspaces>,
}

impl MemoryTarget {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The names of all keyspaces, sorted.
    pub fn keyspaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().keys().cloned().collect();
        names.sort();
        names
    }

    /// All rows of a keyspace; empty if there is none of this name.
    pub fn rows(&self, keyspace: &str) -> Vec<Row> {
        let all = self.lock();
        all.get(keyspace)
            .into_iter()
            .flat_map(|(_, rows)| rows)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    /// The split keys a keyspace was made with.
    pub fn split_keys(&self, keyspace: &str) -> Vec<Bytes> {
        self.lock()
            .get(keyspace)
            .map(|(splits, _)| splits.clone())
            .unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Keyspaces> {
        self.keyspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, keyspace: &str, f: impl FnOnce(&mut BTreeMap<Bytes, Bytes>) -> T) -> TargetResult<T> {
        match self.lock().get_mut(keyspace) {
            Some((_, rows)) => Ok(f(rows)),
            None => Err(format!("no keyspace {keyspace:?}").into()),
        }
    }
}

impl Target for MemoryTarget {
    fn ensure_keyspace<'a>(
        &'a self,
        name: &'a str,
        split_keys: Vec<Bytes>,
    ) -> BoxFuture<'a, TargetResult<()>> {
        async move {
            if !split_keys.is_sorted_by(|a, b| a < b) {
                return Err("split keys must ascend".into());
            }
            self.lock()
                .entry(name.to_owned())
                .or_insert_with(|| (split_keys, BTreeMap::new()));
            Ok(())
        }
        .boxed()
    }

    fn keyspace_exists<'a>(&'a self, name: &'a str) -> BoxFuture<'a, TargetResult<bool>> {
        async move { Ok(self.lock().contains_key(name)) }.boxed()
    }

    fn put_many<'a>(&'a self, keyspace: &'a str, rows: Vec<Row>) -> BoxFuture<'a, TargetResult<()>> {
        async move { self.with(keyspace, |map| map.extend(rows)) }.boxed()
    }

    fn scan<'a>(
        &'a self,
        keyspace: &'a str,
        from: Bytes,
        until: Option<Bytes>,
        limit: usize,
    ) -> BoxFuture<'a, TargetResult<ScanPage>> {
        async move {
            self.with(keyspace, |map| {
                let mut range = map
                    .range(from..)
                    .take_while(|(key, _)| until.as_ref().is_none_or(|end| *key < end));
                let rows = range
                    .by_ref()
                    .take(limit)
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                ScanPage {
                    rows,
                    next: range.next().map(|(key, _)| key.clone()),
                }
            })
        }
        .boxed()
    }

    fn get<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<Option<Bytes>>> {
        async move { self.with(keyspace, |map| map.get(&key).cloned()) }.boxed()
    }

    fn delete<'a>(&'a self, keyspace: &'a str, key: Bytes) -> BoxFuture<'a, TargetResult<()>> {
        async move { self.with(keyspace, |map| drop(map.remove(&key))) }.boxed()
    }
}
