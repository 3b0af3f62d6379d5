//! Dropping deleted records in compactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lsm_tree::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};

use super::RECORD_PREFIX;
use crate::mutants::Mutant;
use crate::storage::StoredRecord;

/// Makes a filter for each compaction.
pub(super) struct DropDeleted {
    floor: Arc<AtomicU64>,
}

impl DropDeleted {
    pub(super) fn new(floor: Arc<AtomicU64>) -> Self {
        Self { floor }
    }
}

impl Factory for DropDeleted {
    fn name(&self) -> &str {
        "drop deleted records"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(DropBelow {
            floor: self.floor.load(Ordering::Acquire),
        })
    }
}

struct DropBelow {
    floor: u64,
}

impl CompactionFilter for DropBelow {
    /// A deleted record that every view sees as the newest becomes the library's own tombstone, which
    /// goes on hiding older versions until it reaches the last level. (`Destroy` would bring them
    /// back.) What cannot be decoded is kept: a reader will find it.
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        let Some((&RECORD_PREFIX, key)) = item.key().split_first() else {
            return Ok(Verdict::Keep);
        };
        let row = item.value()?;
        if !StoredRecord::may_be_deleted(&row) {
            return Ok(Verdict::Keep);
        }
        let record = StoredRecord::decode(key, &Bytes::copy_from_slice(&row));
        let droppable = record.is_ok_and(|record| record.value.is_none() && record.version <= self.floor);
        Ok(match droppable {
            true if Mutant::TombstoneDroppedEarly.is_on() => Verdict::Destroy,
            true => Verdict::Remove,
            false => Verdict::Keep,
        })
    }
}
