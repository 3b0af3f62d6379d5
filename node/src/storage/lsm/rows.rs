//! The items of one table in order, and what is missing between them.

use std::path::Path;

use bytes::Bytes;

use super::block::{Item, items};
use super::reader::Source;
use super::survey::survey;
use super::walk::{Block, Walk};
use super::{RECORD_PREFIX, record_of};
use crate::disk::Disk;
use crate::storage::engine::Gap;
use crate::storage::{FileSum, TableNote, TreeError};

/// Items that cannot be read.
pub(super) struct Lost {
    /// The last good key of the table before them; `None` when there is none.
    pub after: Option<Bytes>,
    /// The good key before that one.
    pub after_but_one: Option<Bytes>,
    pub error: TreeError,
}

/// What comes next in a table.
pub(super) struct Next {
    /// What is missing before the item.
    pub lost: Option<Lost>,
    /// `None` at the table's end.
    pub item: Option<Item>,
}

/// Invariant: an item given out is one that was written to this table, and but for what was
/// reported as lost, every item before it was given out.
pub(super) struct Rows {
    name: String,
    walk: Option<Walk>,
    offset: u64,
    blocks: std::vec::IntoIter<Option<Block>>,
    items: std::vec::IntoIter<Item>,
    last: Option<Item>,
    last_but_one: Option<Bytes>,
    lost: Option<Lost>,
    lost_blocks: u64,
}

impl Rows {
    /// # Errors
    /// The process lacks the means to read. A table that is missing is one whose items are all lost.
    pub(super) fn open(
        disk: &dyn Disk,
        folder: &Path,
        sum: &FileSum,
        note: Option<&TableNote>,
    ) -> Result<Self, TreeError> {
        let name = &*sum.name;
        let walk = match note {
            Some(note) => Walk::open(disk, folder, name, Source::Device, Some(note.stretches.clone())),
            // Without a list, a block alone proves too little.
            None => survey(disk, folder, name, Source::Device).and_then(|found| {
                if found.sum.xxh3_128 != sum.xxh3_128 {
                    return Err(TreeError::damaged(name, "checksum mismatch"));
                }
                Walk::open(disk, folder, name, Source::Device, None)
            }),
        };
        let (walk, absent) = match walk {
            Ok(walk) => (Some(walk), None),
            Err(error) if error.sets_tree_aside() => (None, Some(error)),
            Err(error) => return Err(error),
        };
        let all_blocks = note.map_or(1, |note| {
            note.stretches.list.len() as u64 * note.stretches.blocks_each()
        });
        Ok(Self {
            name: name.to_owned(),
            walk,
            offset: 0,
            blocks: Vec::new().into_iter(),
            items: Vec::new().into_iter(),
            last: None,
            last_but_one: None,
            lost_blocks: absent.as_ref().map_or(0, |_| all_blocks),
            lost: absent.map(|error| Lost {
                after: None,
                after_but_one: None,
                error,
            }),
        })
    }

    /// Blocks found bad so far; of a stretch whose headers are bad, at most.
    pub(super) fn lost_blocks(&self) -> u64 {
        self.lost_blocks
    }

    /// # Errors
    /// The process lacks the means to read.
    pub(super) fn next(&mut self) -> Result<Next, TreeError> {
        loop {
            if let Some(item) = self.items.next() {
                let lost = self.lost.take();
                if let Some(last) = self.last.replace(item.clone())
                    && last.key != item.key
                {
                    self.last_but_one = Some(last.key);
                }
                let item = Some(item);
                return Ok(Next { lost, item });
            }
            if let Some(block) = self.blocks.next() {
                self.enter(block);
                continue;
            }
            let piece = match &mut self.walk {
                Some(walk) => walk.next()?,
                None => None,
            };
            let Some(piece) = piece else {
                let lost = self.lost.take();
                return Ok(Next { lost, item: None });
            };
            self.offset = piece.offset;
            self.lost_blocks += piece.bad;
            self.blocks = piece.blocks.into_iter();
        }
    }

    fn enter(&mut self, block: Option<Block>) {
        let was_good = block.is_some();
        let follows = |items: &Vec<Item>| {
            let last = self.last.as_ref();
            last.is_none_or(|last| items.first().is_some_and(|item| item.follows(last)))
        };
        let items = block.and_then(|block| items(&block.contents)).filter(follows);
        if let Some(items) = items {
            self.items = items.into_iter();
            return;
        }
        self.lost_blocks += u64::from(was_good);
        if self.lost.is_none() {
            let position = format!("blocks from byte {} on", self.offset);
            self.lost = Some(Lost {
                after: self.last.as_ref().map(|last| last.key.clone()),
                after_but_one: self.last_but_one.clone(),
                error: TreeError::damaged(&*self.name, position),
            });
        }
    }
}

/// What a gap in a table, from behind `after` up to `through`, means for records; nothing, if it is within
/// control rows. The key behind it may have a newer version inside it. At the table's ends, the gap ends
/// with the `bounds`. The first two keys are the library's.
pub(super) fn gap(
    after: Option<&Bytes>,
    through: Option<&Bytes>,
    bounds: (Option<Bytes>, Option<Bytes>),
    error: TreeError,
) -> Option<Gap> {
    let is_record = |key: &&Bytes| key.first() == Some(&RECORD_PREFIX);
    if through.is_some_and(|key| !is_record(&key)) {
        return None;
    }
    let record = |key: &Bytes| record_of(key);
    Some(Gap {
        after: after.filter(is_record).map(record).or(bounds.0),
        through: through.map(record).or(bounds.1),
        error,
    })
}

/// A key that is less than `key`, with hardly any other between them; `None` when none is less.
pub(super) fn key_below(key: &[u8]) -> Option<Bytes> {
    let (last, before) = key.split_last()?;
    let Some(lower) = last.checked_sub(1) else {
        return Some(Bytes::copy_from_slice(before)); // none between
    };
    Some([before, &[lower], &[u8::MAX; 8]].concat().into())
}
