//! Reads of a tree at one version.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::tree::Tree;
use super::{StoredRecord, TreeError};
use crate::mutants::Mutant;

/// Rows a page looks at, deleted ones included, before it ends early.
const PAGE_ROWS_MAX: usize = 65_536;

/// Takes a key and its record, and tells whether to go on.
pub(crate) type VisitRecord<'a> =
    dyn FnMut(&Bytes, Result<StoredRecord, TreeError>) -> Result<ControlFlow<()>, TreeError> + 'a;

/// What a read of one key found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The key's record.
    Value(StoredRecord),
    /// The key has no value, for certain.
    Absent {
        /// The version of the delete, when it is still stored. Replicas forget it at different times.
        deleted_version: Option<u64>,
    },
    /// What is stored cannot be believed. Ask a healthy peer.
    Unproven(TreeError),
}

/// Part of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Records in key order. May be empty although there is more: look at `resume`.
    pub records: Vec<StoredRecord>,
    /// Where to go on; `None` when the range is exhausted.
    pub resume: Option<Bytes>,
}

/// Part of a search for what has expired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Keys of expired records, in key order.
    pub keys: Vec<Bytes>,
    /// When the next of the others expires; `None` when none of them does.
    pub next_ms: Option<u64>,
    /// Where to go on; `None` at the end.
    pub resume: Option<Bytes>,
}

/// An order-independent sum over live records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Wrapping sum of [`StoredRecord::digest`].
    pub digest: u128,
}

impl Digest {
    /// Adds one live record.
    pub fn add(&mut self, record: &StoredRecord) {
        self.records += 1;
        self.bytes += record.payload_bytes() as u64;
        self.digest = self.digest.wrapping_add(record.digest());
    }
}

/// A tree at one version. Holds old versions (and their memory) until its last clone is dropped.
#[derive(Clone)]
pub struct View(Arc<OpenView>);

struct OpenView {
    tree: Tree,
    version: u64,
}

impl Drop for OpenView {
    fn drop(&mut self) {
        self.tree.inner.views.close(self.version);
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} at {})", self.0.tree.id(), self.0.version)
    }
}

/// Which records a page is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Deleted ones too.
    All,
    Values,
    /// Values that have not expired at this logged time.
    Living {
        logged_time_ms: u64,
    },
}

impl Wanted {
    fn includes(self, record: &StoredRecord) -> bool {
        match self {
            Self::All => true,
            Self::Values => record.value.is_some(),
            Self::Living { logged_time_ms } => record.value.is_some() && !record.has_expired(logged_time_ms),
        }
    }
}

impl View {
    /// The caller has counted the view as open.
    pub(crate) fn opened(tree: Tree, version: u64) -> Self {
        Self(Arc::new(OpenView { tree, version }))
    }

    /// The version read.
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// The tree read.
    pub fn tree(&self) -> &Tree {
        &self.0.tree
    }

    /// Reads one key. May block on a disk read.
    pub fn get(&self, key: &[u8]) -> Lookup {
        let inner = &self.0.tree.inner;
        let row = inner.guard("reading a key", || inner.engine.get(key, self.0.version));
        match row.map(|row| row.map(|row| self.decode(key, &row))) {
            Ok(None) => Lookup::Absent {
                deleted_version: None,
            },
            Ok(Some(Ok(record))) if record.value.is_none() => Lookup::Absent {
                deleted_version: Some(record.version),
            },
            Ok(Some(Ok(record))) => Lookup::Value(record),
            Ok(Some(Err(error))) | Err(error)
                if Mutant::AbsentForUnproven.is_on() && error.sets_tree_aside() =>
            {
                Lookup::Absent {
                    deleted_version: None,
                }
            }
            Ok(Some(Err(error))) | Err(error) => Lookup::Unproven(error),
        }
    }

    fn decode(&self, key: &[u8], row: &Bytes) -> Result<StoredRecord, TreeError> {
        let record = StoredRecord::decode(key, row)?;
        if record.version > self.0.version && !Mutant::SkipCrcOnRead.is_on() {
            let position = format!(
                "key {}: version {} in a view at {}",
                key.escape_ascii(),
                record.version,
                self.0.version
            );
            return Err(TreeError::damaged("record", position));
        }
        Ok(record)
    }

    /// Live records of `[start, end)` in key order; an empty `end` is none. A page holds at least one
    /// record if there is any within reach, then as many as both bounds allow.
    ///
    /// # Errors
    /// Any error means that nothing is known about the range: the answer is `Unproven`, never a short page.
    pub fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Page, TreeError> {
        self.page(start, end, max_records, max_bytes, Wanted::Values)
    }

    /// As [`View::scan`], without what has expired at a logged time: that of the entry the view is of.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub fn scan_living(
        &self,
        start: &[u8],
        end: &[u8],
        max_records: usize,
        max_bytes: usize,
        logged_time_ms: u64,
    ) -> Result<Page, TreeError> {
        self.page(
            start,
            end,
            max_records,
            max_bytes,
            Wanted::Living { logged_time_ms },
        )
    }

    /// The newest record of every key from `start` on, deleted ones included: for transfers between replicas.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub fn scan_all(&self, start: &[u8], max_bytes: usize) -> Result<Page, TreeError> {
        self.page(start, &[], usize::MAX, max_bytes, Wanted::All)
    }

    /// As [`View::scan_all`], for `[start, end)`.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub fn scan_all_in(&self, start: &[u8], end: &[u8], max_bytes: usize) -> Result<Page, TreeError> {
        self.page(start, end, usize::MAX, max_bytes, Wanted::All)
    }

    fn page(
        &self,
        start: &[u8],
        end: &[u8],
        max_records: usize,
        max_bytes: usize,
        wanted: Wanted,
    ) -> Result<Page, TreeError> {
        let mut page = Page::default();
        let (mut bytes, mut rows) = (0, 0);
        self.visit(start, end, &mut |_, record| {
            let record = match record {
                Err(error)
                    if Mutant::AbsentForUnproven.is_on()
                        && error.sets_tree_aside()
                        && wanted != Wanted::All =>
                {
                    return Ok(ControlFlow::Continue(()));
                }
                record => record?,
            };
            rows += 1;
            let wanted = wanted.includes(&record);
            bytes += if wanted { record.payload_bytes() } else { 0 };
            let full = !page.records.is_empty() && (page.records.len() >= max_records || bytes > max_bytes);
            if (wanted && full) || rows > PAGE_ROWS_MAX {
                page.resume = Some(record.key);
                return Ok(ControlFlow::Break(()));
            }
            if wanted {
                page.records.push(record);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(page)
    }

    /// Looks from `start` on for records that have expired at a logged time, until it has found
    /// `max_keys` or read `max_bytes`.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub fn expired(
        &self,
        start: &[u8],
        logged_time_ms: u64,
        max_keys: usize,
        max_bytes: usize,
    ) -> Result<Expired, TreeError> {
        let mut found = Expired::default();
        let (mut bytes, mut rows) = (0, 0);
        self.visit(start, &[], &mut |_, record| {
            let record = record?;
            if found.keys.len() >= max_keys || bytes > max_bytes || rows >= PAGE_ROWS_MAX {
                found.resume = Some(record.key);
                return Ok(ControlFlow::Break(()));
            }
            rows += 1;
            bytes += record.payload_bytes();
            if record.value.is_none() || record.expires_at_ms == 0 {
                // It lives until it is deleted, or was.
            } else if record.has_expired(logged_time_ms) {
                found.keys.push(record.key);
            } else {
                let next = found.next_ms.unwrap_or(u64::MAX);
                found.next_ms = Some(next.min(record.expires_at_ms));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The order-independent sum over all live records. Reads everything, off the caller's thread.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub async fn digest(&self) -> Result<Digest, TreeError> {
        self.digest_of(&[], &[]).await
    }

    /// As [`View::digest`], over `[start, end)`.
    ///
    /// # Errors
    /// As [`View::scan`].
    pub async fn digest_of(&self, start: &[u8], end: &[u8]) -> Result<Digest, TreeError> {
        let (view, start, end) = (self.clone(), start.to_vec(), end.to_vec());
        let job = move || {
            let mut digest = Digest::default();
            view.visit(&start, &end, &mut |_, record| {
                let record = record?;
                if record.value.is_some() {
                    digest.add(&record);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(digest)
        };
        self.0.tree.inner.offload("summing a view", job).await
    }

    /// Calls `each` for every key in `[start, end)` with its row, decoded; ends at an error that it
    /// returns, or when a row cannot be read.
    pub(crate) fn visit(
        &self,
        start: &[u8],
        end: &[u8],
        each: &mut VisitRecord<'_>,
    ) -> Result<(), TreeError> {
        if !end.is_empty() && start >= end {
            return Ok(());
        }
        let mut outcome = Ok(());
        let mut last: Option<Bytes> = None;
        let mut step = |key: Bytes, row: Bytes| {
            let rising = last.as_ref().is_none_or(|last| *last < key);
            let inside = &*key >= start && (end.is_empty() || &*key < end);
            let visited = if rising && inside {
                each(&key, self.decode(&key, &row))
            } else {
                let position = format!("key {} is out of order", key.escape_ascii());
                Err(TreeError::damaged("scan", position))
            };
            last = Some(key);
            visited.unwrap_or_else(|error| {
                outcome = Err(error);
                ControlFlow::Break(())
            })
        };
        let inner = &self.0.tree.inner;
        inner.guard("scanning", || {
            inner.engine.visit(start, end, self.0.version, &mut step)
        })?;
        outcome
    }
}
