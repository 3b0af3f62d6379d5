//! What can still be read of a damaged folder, without opening it with the library.
//!
//! The tables that the mark names are merged by key. A record is *certain* if it is proven to be
//! what was written (see `walk`), and if every table was readable around its key: then none of them holds a
//! newer version of it, nor a delete. Everything else lies in a gap. Where a table cannot be read,
//! the gap reaches from its last good key before to its first good key after, which may have newer
//! versions in between; at its ends, to the bounds that the mark has recorded of it.

use std::path::Path;

use bytes::Bytes;

use super::block::Item;
use super::files::TABLES;
use super::rows::{Rows, gap, key_below};
use super::{CONTROL_COPY_KEY, CONTROL_KEY, RECORD_PREFIX, STEP_BITS, record_of};
use crate::disk::Disk;
use crate::storage::control_row::ControlRow;
use crate::storage::engine::{Found, Gap, Remains};
use crate::storage::{Mark, StoredRecord, TableNote, TreeError};

/// Invariant: a gap of a table is known before any key in it is the least of all heads.
struct Source {
    rows: Rows,
    note: Option<TableNote>,
    head: Option<Item>,
    /// The gap before the head.
    gap: Option<Gap>,
}

pub(crate) struct Salvage {
    mark: Mark,
    sources: Vec<Source>,
    gaps: Vec<Gap>,
    /// The record key that was looked at last.
    last: Option<Bytes>,
    control: Option<Bytes>,
}

/// # Errors
/// The process lacks the means to read; damage is none.
pub(crate) fn salvage(disk: &dyn Disk, folder: &Path, mark: &Mark) -> Result<Salvage, TreeError> {
    let mut salvage = Salvage {
        mark: mark.clone(),
        sources: Vec::new(),
        gaps: Vec::new(),
        last: None,
        control: None,
    };
    for file in mark.files.iter().filter(|file| file.name.starts_with(TABLES)) {
        let note = mark.note(&file.name).cloned();
        let mut source = Source {
            rows: Rows::open(disk, folder, file, note.as_ref())?,
            note,
            head: None,
            gap: None,
        };
        salvage.gaps.extend(source.advance()?);
        salvage.sources.push(source);
    }
    Ok(salvage)
}

impl Source {
    /// Moves the head to the next item. Returns what is missing before it.
    fn advance(&mut self) -> Result<Option<Gap>, TreeError> {
        let next = self.rows.next()?;
        let through = next.item.as_ref().map(|item| &item.key);
        self.gap = next.lost.and_then(|lost| {
            let note = self.note.as_ref();
            let before_the_first = note.and_then(|note| key_below(&note.first));
            let bounds = (before_the_first, note.and_then(|note| note.last.clone()));
            gap(lost.after.as_ref(), through, bounds, lost.error)
        });
        self.head = next.item;
        Ok(self.gap.clone())
    }
}

impl Salvage {
    /// The newest version of the least key among the heads, which are moved behind it.
    fn newest(&mut self, key: &Bytes) -> Result<Item, TreeError> {
        let mut newest: Option<Item> = None;
        for source in &mut self.sources {
            while let Some(item) = source.head.take_if(|head| head.key == *key) {
                if *key == CONTROL_KEY[..] || *key == CONTROL_COPY_KEY[..] {
                    let row = item.value.as_ref();
                    let row = row.and_then(|row| ControlRow::decode(self.mark.tree, row).ok());
                    let recorded = (self.mark.applied, self.mark.last_version);
                    let row = row.filter(|row| (row.applied, row.last_version) == recorded);
                    self.control = self.control.take().or(row.map(|row| row.control));
                }
                if newest.as_ref().is_none_or(|newest| newest.number < item.number) {
                    newest = Some(item);
                }
                self.gaps.extend(source.advance()?);
            }
        }
        newest.ok_or_else(|| TreeError::damaged("tables", "a key without an item"))
    }

    /// The record in an item; `None` when it was deleted.
    fn record(&self, key: &Bytes, newest: &Item) -> Result<Option<StoredRecord>, TreeError> {
        let damaged = |problem: &str| {
            let position = format!("key {}: {problem}", key.escape_ascii());
            Err(TreeError::damaged("record", position))
        };
        let version = newest.number >> STEP_BITS;
        if version > self.mark.last_version {
            // Written after the mark, and what it replaced may have been dropped.
            return damaged("is newer than the mark");
        }
        let Some(row) = &newest.value else {
            return Ok(None);
        };
        let record = StoredRecord::decode(key, row)?;
        if record.version << STEP_BITS != newest.number {
            return damaged("has another version than its number");
        }
        Ok(Some(record))
    }
}

impl Remains for Salvage {
    fn next(&mut self) -> Result<Option<StoredRecord>, TreeError> {
        loop {
            let heads = self.sources.iter().filter_map(|source| source.head.as_ref());
            let Some(key) = heads.map(|head| &head.key).min().cloned() else {
                return Ok(None);
            };
            let is_record = key.first() == Some(&RECORD_PREFIX);
            let record_key = if is_record { record_of(&key) } else { Bytes::new() };
            let in_a_gap = |source: &Source| source.gap.as_ref().is_some_and(|gap| gap.holds(&record_key));
            let uncertain = self.sources.iter().any(in_a_gap);
            let newest = self.newest(&key)?;
            if !is_record {
                continue;
            }
            let record = match uncertain {
                true => None,
                false => self.record(&record_key, &newest).unwrap_or_else(|error| {
                    self.gaps.push(Gap {
                        after: self.last.clone(),
                        through: Some(record_key.clone()),
                        error,
                    });
                    None
                }),
            };
            self.last = Some(record_key);
            if record.is_some() {
                return Ok(record);
            }
        }
    }

    fn finish(self: Box<Self>) -> Found {
        Found {
            control: self.control,
            lost_blocks: self.sources.iter().map(|source| source.rows.lost_blocks()).sum(),
            gaps: self.gaps,
        }
    }
}
