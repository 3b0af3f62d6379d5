//! What the files of a data directory are, and which of them count.
//!
//! Known from the layouts drawn in `node/docs/architecture.md`, `node/src/wal/` and
//! `node/src/storage/lsm/files.rs`, not from the code that reads them: the judge is another one.

use std::collections::BTreeMap;
use std::ops::Range;

use super::files::Snapshot;
use super::table::Table;

/// Unit of faults.
pub const BLOCK: usize = 4_096;

/// What a place in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Its name in reports.
    pub name: &'static str,
    /// What the node's ledger calls it.
    pub told_as: &'static str,
    /// Whether what is there is in use. What is not, is about to be deleted or read by nobody, and
    /// damage to it need not be noticed.
    pub counts: bool,
}

/// What a directory says of its own files.
pub struct Layout {
    /// Oldest and newest segment of the log that count.
    segments: Option<(u64, u64)>,
    /// The file list in use, by tree folder.
    lists: BTreeMap<String, u64>,
    /// The segment that holds the log's last batch, and the blocks of it.
    last_batch: Option<(String, Vec<usize>)>,
    /// What the tables hold, by file.
    pub(super) tables: BTreeMap<String, Table>,
}

impl Layout {
    /// Reads the manifest of the log and the `current` of each tree.
    pub fn of(snapshot: &Snapshot) -> Self {
        let manifests = ["wal/manifest.1", "wal/manifest.2"].map(|name| snapshot.get(name));
        let segments = manifests
            .into_iter()
            .flatten()
            .find_map(|bytes| Some((u64_at(bytes, 8)?, u64_at(bytes, 16)?)));
        let current = |(name, bytes): (&String, &std::sync::Arc<Vec<u8>>)| {
            let folder = name.strip_prefix("trees/")?.strip_suffix("/current")?;
            Some((folder.to_owned(), u64_at(bytes, 0)?))
        };
        let mut layout = Self {
            segments,
            lists: snapshot.files.iter().filter_map(current).collect(),
            last_batch: segments.and_then(|(oldest, newest)| {
                (oldest..=newest).rev().find_map(|number| {
                    let name = format!("wal/{number:08}.wal");
                    let blocks = last_batch(snapshot.get(&name)?)?;
                    Some((name, blocks))
                })
            }),
            tables: BTreeMap::new(),
        };
        let is_table = |file: &String| layout.of_file(file).name == "tree table";
        let tables = snapshot.files.iter().filter(|(file, _)| is_table(file));
        layout.tables = tables
            .map(|(file, bytes)| (file.clone(), Table::of(bytes)))
            .collect();
        layout
    }

    /// What a file is.
    pub fn of_file(&self, name: &str) -> Structure {
        let structure = |name, told_as, counts| Structure {
            name,
            told_as,
            counts,
        };
        if let Some(segment) = name
            .strip_prefix("wal/")
            .and_then(|name| name.strip_suffix(".wal"))
        {
            let number = segment.parse::<u64>().ok();
            let in_use = |(oldest, newest)| number.is_some_and(|number| (oldest..=newest).contains(&number));
            return structure("wal segment", "wal", self.segments.is_none_or(in_use));
        }
        if let Some((folder, file)) = name.strip_prefix("trees/").and_then(|name| name.split_once('/')) {
            return match file {
                "current" => structure("tree pointer", "tree", true),
                "CLEAN" => structure("tree proof of a clean stop", "tree", true),
                _ if file.starts_with("tables/") => structure("tree table", "tree", true),
                _ if file.starts_with("db/") => structure("tree sled files", "tree", true),
                _ => {
                    let list = file.strip_prefix('v').and_then(|number| number.parse().ok());
                    let in_use = list.is_some() && self.lists.get(folder).copied() == list;
                    structure("tree file list", "tree", in_use)
                }
            };
        }
        match name {
            "identity.1" | "identity.2" => structure("identity", "identity", true),
            "directory" => structure("directory copy", "directory", true),
            "watermarks" => structure("watermarks", "watermarks", true),
            "events" => structure("ledger of damage", "events", true),
            "LOCK" => structure("lock", "none", false),
            _ if name.starts_with("wal/manifest") => structure("wal manifest", "wal", true),
            _ => structure("other", "other", true),
        }
    }

    /// What a block of a file is: segments of the log have parts, and so have tables.
    pub fn of_block(&self, name: &str, bytes: &[u8], block: usize) -> Structure {
        let file = self.of_file(name);
        if let Some(table) = self.tables.get(name) {
            let part = table.part(range(bytes, block));
            return Structure { name: part, ..file };
        }
        if file.name != "wal segment" {
            return file;
        }
        let last = bytes.len().div_ceil(BLOCK).saturating_sub(1);
        let content = &bytes[range(bytes, block)];
        let holds = |magic: &[u8]| content.windows(magic.len()).any(|window| window == magic);
        let is_last = |(file, blocks): &(String, Vec<usize>)| file == name && blocks.contains(&block);
        let part = match block {
            _ if self.last_batch.as_ref().is_some_and(is_last) => "wal last batch",
            0 => "wal segment header",
            _ if block == last => "wal segment header",
            _ if holds(b"RKVI") || holds(b"RKVFOOT.") => "wal identity frame",
            _ => "wal data frame",
        };
        Structure { name: part, ..file }
    }
}

/// Blocks of the last batch of a segment: the topmost data frame below the free middle, and the lowest identity
/// frame above it. `None` if it has no batch.
fn last_batch(bytes: &[u8]) -> Option<Vec<usize>> {
    let count = blocks(bytes).len();
    let content = |block: usize| &bytes[range(bytes, block)];
    let begins = |block: &usize| content(*block).starts_with(b"RKVBATCH");
    let first = (1..count).rev().find(begins)?;
    let data_end = (first..count).find(|block| is_zero(bytes, *block))?;
    let identity = (data_end..count).find(|block| !is_zero(bytes, *block))?;
    let ends = |block: &usize| content(*block)[BLOCK - 64..].starts_with(b"RKVFOOT.");
    let footer = (identity..count.saturating_sub(1)).find(ends)?;
    Some((first..data_end).chain(identity..=footer).collect())
}

/// Numbers of a file's blocks.
pub fn blocks(bytes: &[u8]) -> Range<usize> {
    0..bytes.len().div_ceil(BLOCK)
}

/// Where a block lies.
pub fn range(bytes: &[u8], block: usize) -> Range<usize> {
    let start = (block * BLOCK).min(bytes.len());
    start..(start + BLOCK).min(bytes.len())
}

/// Whether a block holds nothing but zeros.
pub fn is_zero(bytes: &[u8], block: usize) -> bool {
    bytes[range(bytes, block)].iter().all(|byte| *byte == 0)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut snapshot = Snapshot::default();
        let mut manifest = b"RKVWALMF".to_vec();
        manifest.extend(3_u64.to_le_bytes());
        manifest.extend(5_u64.to_le_bytes());
        snapshot.put("wal/manifest.2", manifest);
        let mut current = 7_u64.to_le_bytes().to_vec();
        current.extend([0; 17]);
        snapshot.put("trees/s2-r1-g1/current", current);
        Layout::of(&snapshot)
    }

    #[test]
    fn what_is_about_to_be_deleted_does_not_count() {
        let layout = layout();
        for (name, structure, counts) in [
            ("wal/00000002.wal", "wal segment", false),
            ("wal/00000003.wal", "wal segment", true),
            ("wal/00000005.wal", "wal segment", true),
            ("wal/00000006.wal", "wal segment", false),
            ("wal/manifest.1", "wal manifest", true),
            ("trees/s2-r1-g1/v7", "tree file list", true),
            ("trees/s2-r1-g1/v6", "tree file list", false),
            ("trees/s2-r1-g1/tables/1", "tree table", true),
            ("trees/s2-r1-g1/current", "tree pointer", true),
            ("trees/s2-r1-g1/db/conf", "tree sled files", true),
            ("identity.2", "identity", true),
            ("watermarks", "watermarks", true),
            ("events", "ledger of damage", true),
            ("LOCK", "lock", false),
        ] {
            let found = layout.of_file(name);
            assert_eq!((found.name, found.counts), (structure, counts), "{name}");
        }
    }

    #[test]
    fn parts_of_a_segment_are_told_apart() {
        let mut bytes = vec![0; BLOCK * 4];
        bytes[BLOCK..BLOCK + 8].copy_from_slice(b"RKVBATCH");
        bytes[BLOCK * 3 - 64..BLOCK * 3 - 56].copy_from_slice(b"RKVFOOT.");
        let parts = blocks(&bytes).map(|block| layout().of_block("wal/00000003.wal", &bytes, block).name);
        let expected = [
            "wal segment header",
            "wal data frame",
            "wal identity frame",
            "wal segment header",
        ];
        assert_eq!(parts.collect::<Vec<_>>(), expected);
        assert_eq!(last_batch(&bytes), None, "no free middle");
        assert_eq!(range(&bytes[..5_000], 1), 4_096..5_000);
    }
    #[test]
    fn the_last_batch_of_the_log_is_known_by_its_place() {
        // Two batches: the first of one block, the second of two; the frames of identities end the other way round.
        let mut bytes = vec![0; BLOCK * 9];
        for begin in [1, 2] {
            bytes[BLOCK * begin..BLOCK * begin + 8].copy_from_slice(b"RKVBATCH");
        }
        bytes[BLOCK * 3] = 7;
        for end in [7, 8] {
            bytes[BLOCK * end - 64..BLOCK * end - 56].copy_from_slice(b"RKVFOOT.");
        }
        assert_eq!(last_batch(&bytes), Some(vec![2, 3, 6]));
        let mut snapshot = Snapshot::default();
        let mut manifest = b"RKVWALMF".to_vec();
        manifest.extend(3_u64.to_le_bytes());
        manifest.extend(5_u64.to_le_bytes());
        snapshot.put("wal/manifest.1", manifest);
        snapshot.put("wal/00000004.wal", bytes.clone());
        snapshot.put("wal/00000005.wal", vec![0; BLOCK * 9]);
        let layout = Layout::of(&snapshot);
        let part = |name: &str, block| layout.of_block(name, &bytes, block).name;
        assert_eq!(part("wal/00000004.wal", 3), "wal last batch");
        assert_eq!(part("wal/00000004.wal", 1), "wal data frame");
        assert_eq!(part("wal/00000004.wal", 7), "wal identity frame");
        assert_eq!(part("wal/00000003.wal", 3), "wal data frame");
    }
}
