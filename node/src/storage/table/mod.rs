//! A versioned table in memory whose checkpoints go elsewhere: to a simulated device, or to sled.
//!
//! All versions that open views need are in memory. Rows inserted since the last seal are also in
//! `dirty`; a seal moves them to `sealed`, and a flush writes them, with the control row that ended
//! them, to the store in one step. Threads, clocks and files are the store's business.

mod memory;
pub(crate) mod sled;

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

pub use memory::{MemoryDevice, OldTree};

use super::engine::{Engine, Gap, Manifest, Recovered, ScrubPass, ScrubPiece};
use super::{StoredRecord, TreeError};

/// Bookkeeping of one row in memory, roughly.
const ROW_OVERHEAD_BYTES: u64 = 96;
/// Keys a scan takes at a time.
const PIECE_KEYS: usize = 1_024;

/// Rows by key.
type Rows = BTreeMap<Bytes, Bytes>;

/// What a checkpoint changes in the store.
pub(crate) struct Change {
    pub rows: Rows,
    pub control: Option<Bytes>,
    pub dropped: Vec<Bytes>,
}

/// Where checkpoints are kept.
pub(crate) trait Store: Send + Sync {
    /// Makes a change durable, whole or not at all.
    fn write(&self, change: Change) -> Result<(), TreeError>;
    /// Number of changes written so far.
    fn version_id(&self) -> u64;
    /// The next records behind a key as they are kept, in key order: at least `max_bytes` and little
    /// more, unless the end comes first.
    fn kept(&self, after: Option<&Bytes>, max_bytes: u64) -> Result<Vec<(Bytes, Bytes)>, TreeError>;
    /// Bytes kept.
    fn disk_bytes(&self) -> u64;
    /// A clean stop.
    fn close(&self) -> Result<(), TreeError>;
}

/// The versions of all keys, and what of them is not durable.
#[derive(Default)]
pub(crate) struct Table {
    /// Versions of each key, rising.
    rows: BTreeMap<Bytes, Vec<(u64, Bytes)>>,
    dirty: Rows,
    sealed: VecDeque<(Rows, Bytes)>,
}

pub(crate) struct TableEngine<S> {
    table: Arc<RwLock<Table>>,
    store: Arc<S>,
}

/// Reads what a store keeps, record by record.
struct RecordsPass<S> {
    store: Arc<S>,
    after: Option<Bytes>,
}

impl<S: Store> ScrubPass for RecordsPass<S> {
    fn step(&mut self, max_bytes: u64) -> Result<ScrubPiece, TreeError> {
        let rows = match self.store.kept(self.after.as_ref(), max_bytes) {
            Err(error) if error.sets_tree_aside() => {
                return Ok(ScrubPiece {
                    bytes: 0,
                    bad: vec![error],
                    finished: true,
                });
            }
            rows => rows?,
        };
        let mut piece = ScrubPiece {
            finished: rows.is_empty(),
            ..ScrubPiece::default()
        };
        for (key, row) in rows {
            piece.bytes += (key.len() + row.len()) as u64;
            piece.bad.extend(StoredRecord::decode(&key, &row).err());
            self.after = Some(key);
        }
        Ok(piece)
    }
}

impl Table {
    /// A table that holds what a store kept. A row that cannot be decoded is older than any view:
    /// whoever reads its key finds it, and the other keys stay readable.
    fn load(rows: Rows) -> Self {
        let mut table = Self::default();
        for (key, row) in rows {
            let version = StoredRecord::decode(&key, &row).map_or(0, |record| record.version);
            table.rows.insert(key, vec![(version, row)]);
        }
        table
    }

    /// The next keys of a range and their newest rows, few enough not to hold up writers.
    fn piece(&self, from: Bound<Bytes>, end: &[u8], version: u64) -> Vec<(Bytes, Option<Bytes>)> {
        let end = if end.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(end)
        };
        let range = self
            .rows
            .range::<[u8], _>((from.as_ref().map(|key| &key[..]), end));
        let newest = range.map(|(key, versions)| (key.clone(), Self::newest(versions, version).cloned()));
        newest.take(PIECE_KEYS).collect()
    }

    fn newest(versions: &[(u64, Bytes)], version: u64) -> Option<&Bytes> {
        let older = versions.partition_point(|(at, _)| *at <= version);
        older.checked_sub(1).map(|newest| &versions[newest].1)
    }

    fn is_dirty(&self, key: &Bytes) -> bool {
        self.dirty.contains_key(key) || self.sealed.iter().any(|(rows, _)| rows.contains_key(key))
    }

    /// Drops versions of a key that no view from `oldest_view` on sees.
    fn prune(versions: &mut Vec<(u64, Bytes)>, oldest_view: u64) {
        let seen = versions.partition_point(|(at, _)| *at <= oldest_view);
        versions.drain(..seen.saturating_sub(1));
    }

    /// Loses a key, as a write that never reached the device.
    fn forget(&mut self, key: &Bytes) {
        self.rows.remove(key);
    }

    /// Flips one bit of the newest version of a key, as a bad memory cell would.
    fn damage(&mut self, key: &Bytes) {
        if let Some((_, row)) = self.rows.get_mut(key).and_then(|versions| versions.last_mut()) {
            *row = flip_a_bit(row);
        }
    }
}

/// Rows until they come to `max_bytes`, the one that does included.
fn up_to(max_bytes: u64, rows: impl Iterator<Item = (Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for (key, row) in rows {
        bytes += (key.len() + row.len()) as u64;
        taken.push((key, row));
        if bytes >= max_bytes {
            break;
        }
    }
    taken
}

fn flip_a_bit(row: &Bytes) -> Bytes {
    let mut flipped = row.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    flipped.into()
}

impl<S: Store> TableEngine<S> {
    fn new(table: Arc<RwLock<Table>>, store: S) -> Self {
        let store = Arc::new(store);
        Self { table, store }
    }

    fn recovered(table: Arc<RwLock<Table>>, store: S, control: Option<Bytes>) -> Recovered
    where
        S: 'static,
    {
        let version_id = store.version_id();
        let newest = |versions: &Vec<(u64, Bytes)>| versions.last().map_or(0, |(version, _)| *version);
        let highest_version = table.read().rows.values().map(newest).max().unwrap_or(0);
        Recovered {
            engine: Box::new(Self::new(table, store)),
            control,
            version_id,
            highest_version,
            healed: Vec::new(),
        }
    }
}

impl<S: Store + 'static> Engine for TableEngine<S> {
    fn begin_entry(&self, _: u64) {}

    fn insert(&self, key: &[u8], version: u64, row: Bytes) -> Result<u64, TreeError> {
        let mut table = self.table.write();
        let key = Bytes::copy_from_slice(key);
        let bytes = (key.len() + row.len()) as u64 + ROW_OVERHEAD_BYTES;
        let versions = table.rows.entry(key.clone()).or_default();
        assert!(
            versions.last().is_none_or(|(newest, _)| *newest < version),
            "versions of a key rise"
        );
        versions.push((version, row.clone()));
        table.dirty.insert(key, row);
        Ok(bytes)
    }

    fn get(&self, key: &[u8], version: u64) -> Result<Option<Bytes>, TreeError> {
        let table = self.table.read();
        let versions = table.rows.get(key);
        Ok(versions
            .and_then(|versions| Table::newest(versions, version))
            .cloned())
    }

    fn visit(
        &self,
        start: &[u8],
        end: &[u8],
        version: u64,
        each: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let mut from = Bound::Included(Bytes::copy_from_slice(start));
        loop {
            let rows = self.table.read().piece(from, end, version);
            let Some((last, _)) = rows.last() else {
                return Ok(());
            };
            from = Bound::Excluded(last.clone());
            for (key, row) in rows {
                if let Some(row) = row
                    && each(key, row).is_break()
                {
                    return Ok(());
                }
            }
        }
    }

    fn gaps(&self) -> Result<Vec<Gap>, TreeError> {
        Ok(Vec::new()) // memory can always be read
    }

    fn seal(&self, control: Bytes) -> Result<(), TreeError> {
        let mut table = self.table.write();
        let dirty = std::mem::take(&mut table.dirty);
        table.sealed.push_back((dirty, control));
        Ok(())
    }

    fn sealed_count(&self) -> usize {
        self.table.read().sealed.len()
    }

    fn flush(&self, oldest_view: u64) -> Result<(), TreeError> {
        loop {
            let Some((rows, control)) = self.table.read().sealed.front().cloned() else {
                return Ok(());
            };
            let keys: Vec<Bytes> = rows.keys().cloned().collect();
            let change = Change {
                rows,
                control: Some(control),
                dropped: Vec::new(),
            };
            self.store.write(change)?;
            let mut table = self.table.write();
            table.sealed.pop_front();
            for key in keys {
                if let Some(versions) = table.rows.get_mut(&key) {
                    Table::prune(versions, oldest_view);
                }
            }
        }
    }

    fn compact(&self, oldest_view: u64, _full: bool) -> Result<bool, TreeError> {
        let mut table = self.table.write();
        let mut dropped = Vec::new();
        let keys: Vec<Bytes> = table.rows.keys().cloned().collect();
        for key in keys {
            let Some(versions) = table.rows.get_mut(&key) else {
                continue;
            };
            Table::prune(versions, oldest_view);
            let deleted = match &versions[..] {
                [(version, row)] if *version <= oldest_view => {
                    StoredRecord::decode(&key, row).is_ok_and(|record| record.value.is_none())
                }
                _ => false,
            };
            // Until the delete is durable, the store still needs what it deletes.
            if deleted && !table.is_dirty(&key) {
                table.rows.remove(&key);
                dropped.push(key);
            }
        }
        drop(table);
        if dropped.is_empty() {
            return Ok(false);
        }
        self.store.write(Change {
            rows: Rows::new(),
            control: None,
            dropped,
        })?;
        Ok(true)
    }

    fn forget(&self, _oldest_view: u64) -> Result<(), TreeError> {
        Ok(())
    }

    fn manifest(&self) -> Result<Manifest, TreeError> {
        Ok(Manifest {
            version_id: self.store.version_id(),
            ..Manifest::default()
        })
    }

    fn verify_files(&self) -> Result<(u64, Vec<TreeError>), TreeError> {
        Ok((0, Vec::new())) // the rows in memory are what is read; the sweep verifies each
    }

    fn scrub(&self) -> Result<Box<dyn ScrubPass>, TreeError> {
        let (store, after) = (self.store.clone(), None);
        Ok(Box::new(RecordsPass { store, after }))
    }

    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }

    fn close(&self) -> Result<(), TreeError> {
        self.store.close()
    }
}
