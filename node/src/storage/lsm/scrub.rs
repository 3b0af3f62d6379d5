//! One pass over the files of an open tree, in bounded pieces.

use std::any::Any;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::RECORD_PREFIX;
use super::block::{Item, items};
use super::files::table_name;
use super::reader::Source;
use super::walk::Walk;
use crate::disk::SharedDisk;
use crate::storage::engine::{ScrubPass, ScrubPiece};
use crate::storage::{StoredRecord, TableNote, TreeError};

/// Bad places reported of one table; its whole-file checksum says the rest.
const REPORTED_MAX: u64 = 64;

/// A table to be read.
pub(super) struct Table {
    pub id: u64,
    pub xxh3_128: u128,
    /// What is known of it; without, its blocks prove less.
    pub note: Option<Arc<TableNote>>,
}

/// The table being read.
struct Open {
    table: Table,
    walk: Walk,
    in_blocks: bool,
    bad: u64,
}

/// A pass that began when its files were the tree's. They stay until it is dropped.
pub(super) struct FilesPass {
    pub disk: SharedDisk,
    pub folder: PathBuf,
    pub tables: VecDeque<Table>,
    /// What was wrong with the small files, to be reported first.
    pub found: Vec<TreeError>,
    /// Keeps the files of the state that is read.
    pub _pinned: Box<dyn Any + Send>,
    open: Option<Open>,
}

impl FilesPass {
    pub(super) fn new(
        disk: SharedDisk,
        folder: PathBuf,
        tables: VecDeque<Table>,
        found: Vec<TreeError>,
        pinned: Box<dyn Any + Send>,
    ) -> Self {
        Self {
            disk,
            folder,
            tables,
            found,
            _pinned: pinned,
            open: None,
        }
    }

    fn open_next(&mut self, bad: &mut Vec<TreeError>) -> Result<(), TreeError> {
        let Some(table) = self.tables.pop_front() else {
            return Ok(());
        };
        let name = table_name(table.id);
        let list = table.note.as_ref().map(|note| note.stretches.clone());
        match Walk::open(&*self.disk, &self.folder, &name, Source::Device, list) {
            Ok(walk) => {
                self.open = Some(Open {
                    table,
                    walk,
                    in_blocks: true,
                    bad: 0,
                });
            }
            Err(error) if error.sets_tree_aside() => bad.push(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl ScrubPass for FilesPass {
    fn step(&mut self, max_bytes: u64) -> Result<ScrubPiece, TreeError> {
        let mut piece = ScrubPiece {
            bad: std::mem::take(&mut self.found),
            ..ScrubPiece::default()
        };
        while piece.bytes < max_bytes {
            let Some(mut open) = self.open.take() else {
                if self.tables.is_empty() {
                    break;
                }
                self.open_next(&mut piece.bad)?;
                continue;
            };
            let at = open.walk.offset();
            let ended = open.step(max_bytes - piece.bytes, &mut piece.bad)?;
            piece.bytes += open.walk.offset() - at;
            match ended {
                true => open.finish(&mut piece.bad)?,
                false => self.open = Some(open),
            }
        }
        piece.finished = self.open.is_none() && self.tables.is_empty();
        Ok(piece)
    }
}

impl Open {
    /// Reads one piece. Returns whether it was the last.
    fn step(&mut self, max_bytes: u64, bad: &mut Vec<TreeError>) -> Result<bool, TreeError> {
        if !self.in_blocks {
            return Ok(self.walk.skip(max_bytes)? == 0);
        }
        let Some(piece) = self.walk.next()? else {
            self.in_blocks = false;
            return Ok(false);
        };
        for block in piece.blocks {
            let items = block.and_then(|block| items(&block.contents));
            match items {
                Some(items) => items
                    .iter()
                    .filter_map(|item| verify_record(item).err())
                    .for_each(|error| self.report(error, bad)),
                None => {
                    let position = format!("blocks from byte {} on", piece.offset);
                    self.report(TreeError::damaged(self.walk.name(), position), bad);
                }
            }
        }
        Ok(false)
    }

    fn report(&mut self, error: TreeError, bad: &mut Vec<TreeError>) {
        self.bad += 1;
        if self.bad <= REPORTED_MAX {
            bad.push(error);
        }
    }

    fn finish(self, bad: &mut Vec<TreeError>) -> Result<(), TreeError> {
        let name = self.walk.name().to_owned();
        match self.walk.finish() {
            Ok(sum) if sum.xxh3_128 == self.table.xxh3_128 => {}
            Ok(_) if self.bad == 0 => bad.push(TreeError::damaged(name, "checksum mismatch")),
            Ok(_) => {}
            Err(error) if !error.sets_tree_aside() => return Err(error),
            Err(error) => bad.push(error),
        }
        Ok(())
    }
}

/// A record in a good block may have been wrong when it was written.
fn verify_record(item: &Item) -> Result<(), TreeError> {
    match (item.key.first(), &item.value) {
        (Some(&RECORD_PREFIX), Some(row)) => StoredRecord::decode(&item.key[1..], row).map(drop),
        _ => Ok(()),
    }
}
