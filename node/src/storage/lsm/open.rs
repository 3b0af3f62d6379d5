//! Creating and opening a tree's folder.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use lsm_tree::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PartitioningPolicy,
    PinningPolicy,
};
use lsm_tree::{AbstractTree, AnyTree, Cache, Config, DescriptorTable, SeqNo, SequenceNumberCounter};

use super::survey::Notes;
use super::{CONTROL_KEY, LsmEngine, STEP_BITS, files, filter, read_error};
use crate::disk::SharedDisk;
use crate::storage::engine::Recovered;
use crate::storage::{Mark, TreeError, TreeId};

/// What all trees of a node share.
#[derive(Clone)]
pub(crate) struct Shared {
    cache: Arc<Cache>,
    descriptors: Arc<DescriptorTable>,
}

impl Shared {
    pub(crate) fn new(cache_bytes: u64, open_files_max: usize) -> Self {
        Self {
            cache: Arc::new(Cache::with_capacity_bytes(cache_bytes)),
            descriptors: Arc::new(DescriptorTable::new(open_files_max)),
        }
    }
}

/// Creates an empty tree in an empty folder.
pub(crate) fn create(disk: &SharedDisk, folder: &Path, shared: &Shared) -> Result<Recovered, TreeError> {
    let engine = open_library(disk, folder, shared, Notes::default(), |error| match error {
        lsm_tree::Error::Io(error) => TreeError::io("creating a tree", &error),
        other => TreeError::damaged("creating a tree", other.to_string()),
    })?;
    Ok(Recovered {
        engine: Box::new(engine),
        control: None,
        version_id: 0,
        highest_version: 0,
        healed: Vec::new(),
    })
}

/// Checks the raw files against the mark, then opens the folder.
pub(crate) fn open(
    disk: &SharedDisk,
    folder: &Path,
    shared: &Shared,
    id: TreeId,
    mark: Option<&Mark>,
) -> Result<Recovered, TreeError> {
    let checked = files::check_folder(&**disk, folder, id, mark)?;
    let notes = Notes::new(checked.notes);
    let engine = open_library(disk, folder, shared, notes, |error| {
        read_error("opening a tree", error)
    })?;
    let control = engine.tree.get(CONTROL_KEY, SeqNo::MAX);
    let control = control.map_err(|error| read_error("control row", error))?;
    if control.is_none() && engine.tree.table_count() > 0 {
        return Err(TreeError::damaged("control row", "missing"));
    }
    let control = control.map(|row| Bytes::copy_from_slice(&row));
    let highest = engine.tree.get_highest_persisted_seqno().unwrap_or(0);
    Ok(Recovered {
        engine: Box::new(engine),
        control,
        version_id: checked.version_id,
        highest_version: highest >> STEP_BITS,
        healed: checked.healed,
    })
}

fn open_library(
    disk: &SharedDisk,
    folder: &Path,
    shared: &Shared,
    notes: Notes,
    map: impl FnOnce(lsm_tree::Error) -> TreeError,
) -> Result<LsmEngine, TreeError> {
    let counter = SequenceNumberCounter::default();
    let floor = Arc::new(AtomicU64::new(0));
    let config = Config::new(folder, counter.clone(), SequenceNumberCounter::default())
        .use_cache(shared.cache.clone())
        .use_descriptor_table(Some(shared.descriptors.clone()))
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .index_block_pinning_policy(PinningPolicy::all(true))
        .filter_block_partitioning_policy(PartitioningPolicy::all(false))
        .index_block_partitioning_policy(PartitioningPolicy::all(false))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
            BloomConstructionPolicy::BitsPerKey(12.0),
        )))
        .with_compaction_filter_factory(Some(Arc::new(filter::DropDeleted::new(floor.clone()))));
    let tree = match config.open().map_err(map)? {
        AnyTree::Standard(tree) => tree,
        AnyTree::Blob(_) => return Err(TreeError::damaged("opening a tree", "it has blob files")),
    };
    let highest = tree.get_highest_persisted_seqno().unwrap_or(0);
    counter.fetch_max(highest + 1);
    let (disk, folder) = (disk.clone(), folder.to_owned());
    Ok(LsmEngine {
        tree,
        counter,
        floor,
        disk,
        folder,
        notes,
    })
}
