//! What there is to know of a whole table, from one reading of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::block::{Item, items};
use super::reader::Source;
use super::walk::Walk;
use super::{RECORD_PREFIX, files};
use crate::disk::Disk;
use crate::storage::{FileSum, Stretches, TableNote, TreeError};

/// Stretches kept in memory of each table of an open tree.
const STRETCHES_MAX: usize = 1_024;

/// A table as it is on the device.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    pub sum: FileSum,
    /// `None` when not all its blocks are good.
    pub note: Option<TableNote>,
}

/// Reads a whole table.
///
/// # Errors
/// It cannot be read.
pub(super) fn survey(
    disk: &dyn Disk,
    folder: &Path,
    name: &str,
    source: Source,
) -> Result<Survey, TreeError> {
    let mut walk = Walk::open(disk, folder, name, source, None)?;
    let mut blocks = Some(Vec::new());
    let (mut first, mut last) = (None, None);
    while let Some(piece) = walk.next()? {
        for block in piece.blocks {
            let stretch = block.as_ref().and_then(|block| block.header.stretch());
            if let (Some(blocks), Some(stretch)) = (&mut blocks, stretch) {
                blocks.push(stretch);
            } else {
                blocks = None;
            }
            let Some(block) = block else { continue };
            if first.is_none() {
                match items(&block.contents) {
                    Some(items) => first = items.into_iter().find_map(record_key),
                    None => blocks = None,
                }
            }
            last = Some(block.contents);
        }
    }
    let last = last.and_then(|contents| items(&contents));
    let note = blocks.zip(last).map(|(blocks, last)| {
        let last = last.into_iter().next_back().and_then(record_key);
        // Without records both bounds are the empty key, which no record has.
        let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
        let stretches = Stretches::of_blocks(blocks).shortened(STRETCHES_MAX);
        TableNote::new(name.to_owned(), &first, &last, stretches)
    });
    let sum = walk.finish()?;
    Ok(Survey { sum, note })
}

fn record_key(item: Item) -> Option<Bytes> {
    (item.key.first() == Some(&RECORD_PREFIX)).then(|| item.key.slice(1..))
}

/// Notes of an open tree's tables, which never change. A new table is read once, when it is first
/// asked for; it was just written, so the operating system still has it.
#[derive(Default)]
pub(super) struct Notes(Mutex<BTreeMap<u64, Arc<TableNote>>>);

impl Notes {
    pub(super) fn new(notes: BTreeMap<u64, Arc<TableNote>>) -> Self {
        Self(Mutex::new(notes))
    }

    /// What is known of a table; `None` when it is not the one that the library wrote.
    pub(super) fn of(
        &self,
        disk: &dyn Disk,
        folder: &Path,
        table_id: u64,
        xxh3_128: u128,
    ) -> Option<Arc<TableNote>> {
        let known = self.0.lock().get(&table_id).cloned();
        if known.is_some() {
            return known;
        }
        let survey = survey(disk, folder, &files::table_name(table_id), Source::Cache).ok()?;
        let note = Arc::new(survey.note.filter(|_| survey.sum.xxh3_128 == xxh3_128)?);
        self.0.lock().insert(table_id, note.clone());
        Some(note)
    }

    /// Forgets tables that are no more.
    pub(super) fn keep(&self, tables: &[(u64, u128)]) {
        let mut notes = self.0.lock();
        notes.retain(|table_id, _| tables.iter().any(|(kept, _)| kept == table_id));
    }
}
