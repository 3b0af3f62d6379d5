//! The seam between a tree and its engine.
//!
//! An engine keeps rows by key and version, and one control row beside them. Everything above the
//! seam (views, floors, checksums of records, marks) is the same for every engine; everything
//! below it is an engine's own. Calls block; a call may panic, and the caller contains it.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::{FileContents, FileSum, StoredRecord, TableNote, TreeError};

/// The files of one durable state of an engine, and what a mark tells of them.
#[derive(Default)]
pub(crate) struct Manifest {
    pub version_id: u64,
    pub files: Vec<FileSum>,
    pub contents: Vec<FileContents>,
    pub tables: Vec<TableNote>,
}

/// What an engine found in a folder.
pub(crate) struct Recovered {
    pub engine: Box<dyn Engine>,
    /// The control row of the newest checkpoint; `None` before the first.
    pub control: Option<Bytes>,
    pub version_id: u64,
    /// The highest version among the rows.
    pub highest_version: u64,
    /// Damaged files that were put back.
    pub healed: Vec<TreeError>,
}

/// Keys `after < key <= through` of which some version cannot be read; `None` is unbounded. A visit
/// up to and including `after`, or from behind `through`, does not run into the gap.
#[derive(Clone, Debug)]
pub(crate) struct Gap {
    pub after: Option<Bytes>,
    pub through: Option<Bytes>,
    pub error: TreeError,
}

impl Gap {
    /// Whether a key is in it.
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.after.as_ref().is_none_or(|after| **after < *key)
            && self.through.as_ref().is_none_or(|through| *key <= **through)
    }
}

/// What can still be read of a damaged tree, record by record in key order.
pub(crate) trait Remains: Send {
    /// The next record that is certain: proven, and the newest of its key. Deleted ones may be left out.
    ///
    /// # Errors
    /// The process lacks the means to read; damage is no error.
    fn next(&mut self) -> Result<Option<StoredRecord>, TreeError>;

    /// What else was found, once there is no next record.
    fn finish(self: Box<Self>) -> Found;
}

/// What was found besides records.
pub(crate) struct Found {
    /// The control state of the mark's checkpoint.
    pub control: Option<Bytes>,
    /// Keys about which nothing is certain; no record given out is among them.
    pub gaps: Vec<Gap>,
    /// Blocks that were lost.
    pub lost_blocks: u64,
}

/// One pass over everything an engine keeps on its device, in pieces.
pub(crate) trait ScrubPass: Send {
    /// Reads on, at least `max_bytes` and little more, unless the end comes first.
    ///
    /// # Errors
    /// The process lacks the means to read; damage is reported in the piece.
    fn step(&mut self, max_bytes: u64) -> Result<ScrubPiece, TreeError>;
}

/// What one step of a scrub found.
#[derive(Default)]
pub(crate) struct ScrubPiece {
    pub bytes: u64,
    pub bad: Vec<TreeError>,
    pub finished: bool,
}

/// Versioned rows of one tree.
pub(crate) trait Engine: Send + Sync {
    /// An entry whose last effect has this version is about to be inserted.
    fn begin_entry(&self, last_version: u64);

    /// Adds a version of a key, newer than those the key has. Returns the bytes of memory it takes.
    fn insert(&self, key: &[u8], version: u64, row: Bytes) -> Result<u64, TreeError>;

    /// The newest row of a key at or below a version.
    fn get(&self, key: &[u8], version: u64) -> Result<Option<Bytes>, TreeError>;

    /// Calls `each` for the newest row at or below `version` of every key in `[start, end)` (an
    /// empty end is none), in key order, until it breaks.
    ///
    /// # Errors
    /// The visit ends at the first row that cannot be read: nothing is known about it and what follows.
    fn visit(
        &self,
        start: &[u8],
        end: &[u8],
        version: u64,
        each: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<(), TreeError>;

    /// Reads everything from the device, and tells of what some version cannot be read.
    fn gaps(&self) -> Result<Vec<Gap>, TreeError>;

    /// Ends the memtable with a control row; later inserts go to a new one. Fast.
    fn seal(&self, control: Bytes) -> Result<(), TreeError>;

    /// How many sealed memtables are not durable yet.
    fn sealed_count(&self) -> usize;

    /// Makes every memtable sealed so far durable, whole, in order. No view is older than `oldest_view`.
    fn flush(&self, oldest_view: u64) -> Result<(), TreeError>;

    /// Drops what no view at `oldest_view` or later can see; all of it when `full`, some otherwise.
    /// Returns whether files changed.
    fn compact(&self, oldest_view: u64, full: bool) -> Result<bool, TreeError>;

    /// Deletes files that only views older than `oldest_view` could need.
    fn forget(&self, oldest_view: u64) -> Result<(), TreeError>;

    /// The durable state as it is now.
    fn manifest(&self) -> Result<Manifest, TreeError>;

    /// Reads every file from the device and compares it with its checksum. Returns the bytes read
    /// and, by file, what is wrong.
    fn verify_files(&self) -> Result<(u64, Vec<TreeError>), TreeError>;

    /// Begins to read everything that is durable from the device.
    fn scrub(&self) -> Result<Box<dyn ScrubPass>, TreeError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;

    /// A clean stop; nothing is called afterwards.
    fn close(&self) -> Result<(), TreeError>;
}
