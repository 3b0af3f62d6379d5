//! Overwriting bytes in the store of a node that is down.
//!
//! A node keeps its trees in `trees/s<shard>-r<replica>-g<generation>/`, the sorted tables of each
//! in `tables/` below it. The largest tables hold most and are therefore chosen; the trees of
//! shards that have a later generation are dead and are left alone.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, Mode, RealDisk};

/// Bytes overwritten in one place.
const BLOCK_BYTES: u64 = 4_096;
/// Trees that are damaged, and the most tables in each of them.
const TREES_MAX: usize = 2;
const TABLES_MAX: usize = 3;
/// A checkpoint is complete this long after its tables are written.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// Places in a table.
const BLOCKS_PER_TABLE: usize = 2;

/// A table of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableFile {
    /// Path below the data directory.
    pub path: String,
    pub shard_id: u64,
    pub len_bytes: u64,
}

/// A place to overwrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub file: TableFile,
    pub offset: u64,
    pub bytes: u64,
}

/// The tables of the living trees of a node's directory.
pub(super) fn tables(data_dir: &Path) -> io::Result<Vec<TableFile>> {
    let trees = data_dir.join("trees");
    if !RealDisk.exists(&trees)? {
        return Ok(Vec::new());
    }
    let mut living: BTreeMap<u64, (u64, u64, String)> = BTreeMap::new();
    for entry in RealDisk.list(&trees)? {
        let Some((shard, replica, generation)) = tree_name(&entry.name) else {
            continue;
        };
        let tree = (replica, generation, entry.name);
        if living.get(&shard).is_none_or(|known| *known < tree) {
            living.insert(shard, tree);
        }
    }
    let mut tables = Vec::new();
    for (shard_id, (_, _, name)) in living {
        let folder = format!("trees/{name}/tables");
        if !RealDisk.exists(&data_dir.join(&folder))? {
            continue;
        }
        for entry in RealDisk.list(&data_dir.join(&folder))? {
            if entry.name.parse::<u64>().is_ok() {
                let path = format!("{folder}/{}", entry.name);
                tables.push(TableFile {
                    path,
                    shard_id,
                    len_bytes: entry.len_bytes,
                });
            }
        }
    }
    Ok(tables)
}

/// Whether a table was written long enough ago to be part of a checkpoint: one that was written as
/// the node was killed is deleted unread when it starts again, whatever is in it.
pub(super) fn is_settled(data_dir: &Path, table: &TableFile, now_ms: u64) -> bool {
    let modified = std::fs::metadata(data_dir.join(&table.path)).and_then(|metadata| metadata.modified());
    let since_1970 = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since_1970.is_some_and(|at| at + SETTLED_AFTER <= Duration::from_millis(now_ms))
}

/// `s2-r1-g3` → (2, 1, 3).
fn tree_name(name: &str) -> Option<(u64, u64, u64)> {
    let (shard, rest) = name.strip_prefix('s')?.split_once("-r")?;
    let (replica, generation) = rest.split_once("-g")?;
    Some((
        shard.parse().ok()?,
        replica.parse().ok()?,
        generation.parse().ok()?,
    ))
}

/// Chooses places in the largest tables of the largest trees.
pub(super) fn choose(tables: &[TableFile], seed: u64) -> Vec<Place> {
    let mut by_shard: BTreeMap<u64, Vec<&TableFile>> = BTreeMap::new();
    for table in tables.iter().filter(|table| table.len_bytes > 0) {
        by_shard.entry(table.shard_id).or_default().push(table);
    }
    let mut trees: Vec<_> = by_shard.into_values().collect();
    trees.sort_by_key(|tables| std::cmp::Reverse(tables.iter().map(|table| table.len_bytes).sum::<u64>()));
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut places = Vec::new();
    for mut tables in trees.into_iter().take(TREES_MAX) {
        tables.sort_by_key(|table| std::cmp::Reverse(table.len_bytes));
        for file in tables.into_iter().take(TABLES_MAX) {
            let blocks = file.len_bytes.div_ceil(BLOCK_BYTES);
            let mut chosen: Vec<u64> = (0..BLOCKS_PER_TABLE)
                .map(|_| rng.random_range(0..blocks))
                .collect();
            chosen.sort_unstable();
            chosen.dedup();
            places.extend(chosen.into_iter().map(|block| {
                let offset = block * BLOCK_BYTES;
                let bytes = BLOCK_BYTES.min(file.len_bytes - offset);
                Place {
                    file: file.clone(),
                    offset,
                    bytes,
                }
            }));
        }
    }
    places
}

/// Changes every byte of a place, as a disk does that reports no error.
pub(super) fn overwrite(data_dir: &Path, place: &Place, seed: u64) -> io::Result<()> {
    let file = RealDisk.open(&data_dir.join(&place.file.path), Mode::Write)?;
    let mut bytes = vec![0; place.bytes as usize];
    file.read_at(place.offset, &mut bytes)?;
    let mut rng = SmallRng::seed_from_u64(seed ^ place.offset);
    bytes
        .iter_mut()
        .for_each(|byte| *byte ^= rng.random_range(1..=255u8));
    file.write_at(place.offset, &bytes)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::read_file;

    fn table(shard_id: u64, id: u64, len_bytes: u64) -> TableFile {
        TableFile {
            path: format!("trees/s{shard_id}-r1-g1/tables/{id}"),
            shard_id,
            len_bytes,
        }
    }

    #[test]
    fn the_largest_trees_are_chosen_and_places_lie_inside_their_files() {
        let tables = [
            table(1, 0, 900),
            table(2, 0, 70_000),
            table(2, 1, 9_000),
            table(3, 0, 50_000),
            table(4, 0, 0),
        ];
        for seed in 0..50 {
            let places = choose(&tables, seed);
            assert!(places.len() >= 3, "seed {seed}");
            for place in &places {
                assert!([2, 3].contains(&place.file.shard_id), "seed {seed}");
                assert!(
                    place.bytes > 0 && place.offset + place.bytes <= place.file.len_bytes,
                    "seed {seed}"
                );
            }
            assert_eq!(places, choose(&tables, seed), "the seed decides");
        }
        assert!(choose(&[], 1).is_empty());
    }

    #[test]
    fn living_tables_are_listed_and_every_byte_of_a_place_changes() {
        let dir = tempfile::tempdir().unwrap();
        for tree in ["s2-r1-g1", "s2-r1-g2", "s7-r4-g1"] {
            let folder = dir.path().join("trees").join(tree).join("tables");
            RealDisk.create_dir_all(&folder).unwrap();
            RealDisk
                .open(&folder.join("5"), Mode::CreateNew)
                .unwrap()
                .write_at(0, &[7; 6_000])
                .unwrap();
        }
        let found = tables(dir.path()).unwrap();
        let paths: Vec<_> = found.iter().map(|table| &table.path[..]).collect();
        assert_eq!(paths, ["trees/s2-r1-g2/tables/5", "trees/s7-r4-g1/tables/5"]);
        let place = Place {
            file: found[0].clone(),
            offset: 4_096,
            bytes: 1_904,
        };
        overwrite(dir.path(), &place, 3).unwrap();
        let after = read_file(&RealDisk, &dir.path().join(&place.file.path)).unwrap();
        assert!(after[..4_096].iter().all(|byte| *byte == 7) && after[4_096..].iter().all(|byte| *byte != 7));
    }

    #[test]
    fn a_node_without_trees_has_no_tables() {
        let dir = tempfile::tempdir().unwrap();
        assert!(tables(dir.path()).unwrap().is_empty());
    }
}
