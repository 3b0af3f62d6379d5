//! The default engine: one `lsm-tree` per replica.
//!
//! A row of version v has the library's sequence number `v << 20`. The library's own steps (it
//! numbers every flush and compaction) and control rows take the numbers between two versions. Keys are
//! prefixed: `1` for records, `0` for the two copies of the control row, which therefore no scan of records meets.
//!
//! What the library does, and what follows (each fact has a test in `facts.rs`):
//! - A read at `s` sees numbers `< s`, so a view at v reads at `(v + 1) << 20`.
//! - A read at `s` first picks the newest *list of files and memtables* whose number is `< s`. The counter
//!   that numbers these lists is raised to an entry's last effect before its first insert: a list
//!   made while an entry is inserted is not picked by older views, which keep the list
//!   before it, and with it the versions that the flush or compaction dropped.
//! - Dropping at number t drops every version of a key that has a newer neighbour and is itself `< t`,
//!   even when the neighbour is `>= t`. So the state at t survives only in the older list, which stays as
//!   long as the oldest view `v` is dropped at `(v + 1) << 20`. Number 0 means "keep all".
//! - `get` stops at the first hit, memtable first: versions of a key are inserted in rising order.
//! - A tree's iterator goes on after an error *without the table that failed*: older versions from
//!   other tables surface. The first error ends a scan.
//! - Readers wait while a flush or compaction syncs its new list of files.

mod block;
#[cfg(test)]
mod facts;
mod files;
mod filter;
mod manifest_file;
mod open;
mod reader;
mod rows;
mod salvage;
mod scrub;
mod survey;
mod walk;

use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lsm_tree::{AbstractTree, Guard, SeqNo, SequenceNumberCounter};

pub(crate) use self::open::{Shared, create, open};
pub(crate) use self::salvage::salvage;

use self::files::table_name;
use self::rows::{Rows, gap};
use self::scrub::{FilesPass, Table};
use self::survey::Notes;
use super::engine::{Engine, Gap, Manifest, ScrubPass};
use super::tree::VERSION_LIMIT;
use super::{FileSum, Mark, TreeError, TreeId, table_note};
use crate::disk::{Disk, SharedDisk};

/// Numbers between two versions.
const STEP_BITS: u32 = 20;
const STEPS: u64 = 1 << STEP_BITS;
/// The library's steps are refused this close to the next version's number.
const STEPS_MARGIN: u64 = 1 << 10;
const RECORD_PREFIX: u8 = 1;
const CONTROL_KEY: [u8; 2] = [0, b'c'];
/// The control row's second copy. Two rows of nothing lie between them: the library ends a block with the row
/// that fills it, so each copy is in a block of its own, and no 4 KiB of the file hold parts of both.
const CONTROL_COPY_KEY: [u8; 2] = [0, b'f'];
const FILLER_KEYS: [[u8; 2]; 2] = [[0, b'd'], [0, b'e']];
const FILLER: [u8; 4096] = [0; 4096];
const TABLE_BYTES_TARGET: u64 = 64 << 20;
/// Read at a time when all files are verified.
const SCRUB_STEP_BYTES: u64 = 64 << 20;
/// This many flushed tables are merged with what is below them. Under overwriting each holds most of
/// the keys once more: with four (the library's default) a directory grew to 4.4 times its live data.
const FLUSHED_TABLES_MAX: u8 = 2;

const _: () = assert!(
    VERSION_LIMIT << STEP_BITS == 1 << 63,
    "the library's numbers have 63 bits"
);

pub(crate) struct LsmEngine {
    tree: lsm_tree::Tree,
    counter: SequenceNumberCounter,
    /// Deleted records at or below it are dropped by compactions.
    floor: Arc<AtomicU64>,
    disk: SharedDisk,
    folder: PathBuf,
    notes: Notes,
}

/// The number that a view at `version` reads at, and that drops what no view from it on can see.
fn above(version: u64) -> SeqNo {
    (version + 1) << STEP_BITS
}

fn record_key(key: &[u8]) -> Vec<u8> {
    let mut prefixed = Vec::with_capacity(1 + key.len());
    prefixed.push(RECORD_PREFIX);
    prefixed.extend_from_slice(key);
    prefixed
}

fn record_range(start: &[u8], end: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let end = if end.is_empty() {
        vec![RECORD_PREFIX + 1]
    } else {
        record_key(end)
    };
    (Bound::Included(record_key(start)), Bound::Excluded(end))
}

/// The stored key in one of the library's.
fn record_of(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&key[1..])
}

fn read_error(what: &str, error: lsm_tree::Error) -> TreeError {
    match error {
        lsm_tree::Error::Io(error) => TreeError::unreadable(what, &error),
        other => TreeError::damaged(what, other.to_string()),
    }
}

impl LsmEngine {
    /// The library numbers its steps from the counter; they must stay below the next version's number.
    fn assert_steps_left(&self) {
        let used = self.counter.get() & (STEPS - 1);
        assert!(
            used < STEPS - STEPS_MARGIN,
            "too many checkpoints without a new version"
        );
    }

    /// Forgets lists of files that no view from `oldest_view` on picks.
    fn forget_old_lists(&self, oldest_view: u64) -> Result<(), TreeError> {
        let mut lists = self.tree.get_version_history_lock();
        let forgotten = lists.maintenance(&self.folder, above(oldest_view));
        forgotten.map_err(|error| write_error("removing old versions", error))
    }
}

/// Compares the raw files of a folder with its mark. Returns which small files were put back.
///
/// # Errors
/// As opening it would fail.
pub(crate) fn check_folder(
    disk: &dyn Disk,
    folder: &Path,
    id: TreeId,
    mark: Option<&Mark>,
) -> Result<Vec<TreeError>, TreeError> {
    files::check_folder(disk, folder, id, mark).map(|checked| checked.healed)
}

fn id_and_sum(table: &lsm_tree::Table) -> (u64, u128) {
    (table.id(), table.checksum().into_u128())
}

fn write_error(what: &str, error: lsm_tree::Error) -> TreeError {
    match error {
        lsm_tree::Error::Io(error) => TreeError::io(what, &error),
        other => TreeError::damaged(what, other.to_string()),
    }
}

impl Engine for LsmEngine {
    fn begin_entry(&self, last_version: u64) {
        self.counter.fetch_max((last_version << STEP_BITS) + 1);
    }

    fn insert(&self, key: &[u8], version: u64, row: Bytes) -> Result<u64, TreeError> {
        let (key, number) = (record_key(key), version << STEP_BITS);
        debug_assert!(
            self.tree
                .active_memtable()
                .get(&key, SeqNo::MAX)
                .is_none_or(|newest| newest.key.seqno < number),
            "versions of a key rise"
        );
        let (bytes, _) = self.tree.insert(key, &*row, number);
        Ok(bytes)
    }

    fn get(&self, key: &[u8], version: u64) -> Result<Option<Bytes>, TreeError> {
        let row = self.tree.get(record_key(key), above(version));
        let row = row.map_err(|error| read_error("reading a key", error))?;
        Ok(row.map(|row| Bytes::copy_from_slice(&row)))
    }

    fn visit(
        &self,
        start: &[u8],
        end: &[u8],
        version: u64,
        each: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let range = record_range(start, end);
        for item in self.tree.range::<Vec<u8>, _>(range, above(version), None) {
            let (key, row) = item.into_inner().map_err(|error| read_error("scanning", error))?;
            if each(record_of(&key), Bytes::copy_from_slice(&row)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn gaps(&self) -> Result<Vec<Gap>, TreeError> {
        let mut gaps = Vec::new();
        let version = self.tree.current_version(); // keeps its tables' files until the end
        for (table_id, xxh3_128) in version.iter_tables().map(id_and_sum) {
            let name = table_name(table_id);
            let note = self.notes.of(&*self.disk, &self.folder, table_id, xxh3_128);
            let (note, len) = (note.as_deref(), 0);
            let mut rows = Rows::open(&*self.disk, &self.folder, &FileSum { name, len, xxh3_128 }, note)?;
            loop {
                // The library, asked for a range that ends at a block's last key, reads the next block too: the
                // last good key is given up. It reads the first block for any key before it.
                let next = rows.next()?;
                let through = next.item.as_ref().map(|item| &item.key);
                gaps.extend(next.lost.and_then(|lost| {
                    let bounds = (None, note.and_then(|note| note.last.clone()));
                    gap(lost.after_but_one.as_ref(), through, bounds, lost.error)
                }));
                if next.item.is_none() {
                    break;
                }
            }
        }
        Ok(gaps)
    }

    fn seal(&self, control: Bytes) -> Result<(), TreeError> {
        self.assert_steps_left();
        let number = self.counter.next();
        let [first, second] = FILLER_KEYS.map(|key| (key, &FILLER[..]));
        for (key, row) in [
            (CONTROL_KEY, &*control),
            first,
            second,
            (CONTROL_COPY_KEY, &*control),
        ] {
            let _ = self.tree.insert(key, row, number);
        }
        let sealed = self.tree.rotate_memtable();
        assert!(sealed.is_some(), "the memtable holds at least the control rows");
        Ok(())
    }

    fn sealed_count(&self) -> usize {
        self.tree.sealed_memtable_count()
    }

    fn flush(&self, oldest_view: u64) -> Result<(), TreeError> {
        self.assert_steps_left();
        let turn = self.tree.get_flush_lock();
        let flushed = self.tree.flush(&turn, above(oldest_view));
        flushed.map_err(|error| write_error("flushing", error))?;
        self.forget_old_lists(oldest_view)
    }

    fn compact(&self, oldest_view: u64, full: bool) -> Result<bool, TreeError> {
        self.assert_steps_left();
        self.floor.store(oldest_view, Ordering::Release);
        self.forget_old_lists(oldest_view)?;
        let before = self.tree.current_version().id();
        let compacted = if full {
            self.tree.major_compact(TABLE_BYTES_TARGET, above(oldest_view))
        } else {
            let strategy = lsm_tree::compaction::Leveled::default()
                .with_table_target_size(TABLE_BYTES_TARGET)
                .with_l0_threshold(FLUSHED_TABLES_MAX);
            self.tree.compact(Arc::new(strategy), above(oldest_view))
        };
        if let Err(error) = compacted {
            // Was it the input or the disk? Only the latter means that nothing can be written.
            let (_, bad) = self.verify_files()?;
            return Err(bad
                .into_iter()
                .next()
                .unwrap_or_else(|| write_error("compacting", error)));
        }
        Ok(self.tree.current_version().id() != before)
    }

    fn forget(&self, oldest_view: u64) -> Result<(), TreeError> {
        self.forget_old_lists(oldest_view)
    }

    fn manifest(&self) -> Result<Manifest, TreeError> {
        // Another step may replace the file list between looking and reading; then look again.
        let mut tries = 0;
        loop {
            let version = self.tree.current_version();
            let tables: Vec<_> = version.iter_tables().map(id_and_sum).collect();
            let state = files::state(&*self.disk, &self.folder, version.id(), &tables);
            tries += 1;
            match state {
                Ok(state) => {
                    self.notes.keep(&tables);
                    let note = |&(table_id, xxh3_128): &(u64, u128)| {
                        let note = self.notes.of(&*self.disk, &self.folder, table_id, xxh3_128);
                        note.map(|note| (*note).clone())
                    };
                    return Ok(Manifest {
                        version_id: version.id(),
                        files: state.files,
                        contents: state.contents,
                        tables: table_note::fit(tables.iter().filter_map(note).collect()),
                    });
                }
                Err(error) if tries == 3 || self.tree.current_version().id() == version.id() => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }

    fn verify_files(&self) -> Result<(u64, Vec<TreeError>), TreeError> {
        let (mut bytes, mut bad) = (0, Vec::new());
        let mut pass = self.scrub()?;
        loop {
            let mut piece = pass.step(SCRUB_STEP_BYTES)?;
            bytes += piece.bytes;
            bad.append(&mut piece.bad);
            if piece.finished {
                return Ok((bytes, bad));
            }
        }
    }

    fn scrub(&self) -> Result<Box<dyn ScrubPass>, TreeError> {
        let version = self.tree.current_version();
        let table = |(id, xxh3_128)| Table {
            id,
            xxh3_128,
            note: self.notes.of(&*self.disk, &self.folder, id, xxh3_128),
        };
        let tables = version.iter_tables().map(id_and_sum).map(table).collect();
        let found = match self.manifest() {
            Err(error) if !error.sets_tree_aside() => return Err(error),
            manifest => manifest.err().into_iter().collect(),
        };
        let (disk, folder) = (self.disk.clone(), self.folder.clone());
        Ok(Box::new(FilesPass::new(
            disk,
            folder,
            tables,
            found,
            Box::new(version),
        )))
    }

    fn disk_bytes(&self) -> u64 {
        self.tree.disk_space()
    }

    fn close(&self) -> Result<(), TreeError> {
        Ok(()) // what is durable already is
    }
}
