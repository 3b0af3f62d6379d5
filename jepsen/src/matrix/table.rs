//! What the blocks of a table hold, for tables that nothing has happened to.
//!
//! Known from the layout drawn in `node/src/storage/lsm/block.rs`, not from the code that reads it: the judge is
//! another one. Keys begin with 0 for rows of control, and with 1 for records.

use std::collections::BTreeSet;
use std::ops::Range;

use reelkv::storage::TreeId;
use reelkv_proto::types::META_SHARD;

use super::structure::Layout;
use super::world::NODES;

const HEADER_BYTES: usize = 33;
const MAGIC: &[u8] = b"LSM\x03";
const DATA: u8 = 0;
const VALUE: u8 = 0;
const TRAILER_BYTES: usize = 31;
const RECORDS: u8 = 1;

/// A data block of a table, which blocks of the file cut in two.
struct DataBlock {
    place: Range<usize>,
    /// Its keys, in order.
    keys: Vec<Vec<u8>>,
}

impl DataBlock {
    fn records(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let keys = self.keys.iter().map(|key| &key[..]);
        keys.filter(|key| key.first() == Some(&RECORDS))
    }
}

/// The data blocks at the beginning of a table's file.
pub struct Table(Vec<DataBlock>);

impl Table {
    /// Reads a table; of a file that is none, nothing.
    pub fn of(bytes: &[u8]) -> Self {
        let mut blocks = Vec::new();
        let mut at = 0;
        while let Some(block) = data_block(bytes, at) {
            at = block.place.end;
            blocks.push(block);
        }
        Self(blocks)
    }

    fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().flat_map(DataBlock::records)
    }

    fn touching(&self, place: Range<usize>) -> impl Iterator<Item = (usize, &DataBlock)> {
        let blocks = self.0.iter().enumerate();
        blocks.filter(move |(_, block)| block.place.start < place.end && place.start < block.place.end)
    }

    /// What a block of the file is part of.
    pub fn part(&self, place: Range<usize>) -> &'static str {
        let touched: Vec<_> = self.touching(place).collect();
        match touched.iter().any(|(_, block)| block.records().next().is_some()) {
            true => "tree table",
            false if touched.is_empty() => "tree table index",
            false => "tree control row",
        }
    }

    /// Keys of records that are in doubt where the data block at `number` cannot be read: from the one before it, which
    /// may have another version in it, to the one behind it. `None` without records.
    fn in_doubt(&self, number: usize) -> Option<(&[u8], &[u8])> {
        let of = &self.0[number];
        let before = self.0[..number]
            .iter()
            .rev()
            .find_map(|block| block.records().next_back());
        let behind = self.0[number + 1..]
            .iter()
            .find_map(|block| block.records().next());
        let (first, last) = (of.records().next()?, of.records().next_back()?);
        Some((before.unwrap_or(first), behind.unwrap_or(last)))
    }
}

fn data_block(bytes: &[u8], at: usize) -> Option<DataBlock> {
    let header = bytes.get(at..at + HEADER_BYTES)?;
    if !header.starts_with(MAGIC) || header[4] != DATA {
        return None;
    }
    let len = u32::from_le_bytes(header[21..25].try_into().ok()?) as usize;
    let place = at..at + HEADER_BYTES + len;
    let keys = keys(bytes.get(at + HEADER_BYTES..place.end)?)?;
    Some(DataBlock { place, keys })
}

fn keys(contents: &[u8]) -> Option<Vec<Vec<u8>>> {
    let trailer = contents.get(contents.len().checked_sub(TRAILER_BYTES)?..)?;
    let every = usize::from(trailer[0]);
    let count = u32::from_le_bytes(trailer[TRAILER_BYTES - 4..].try_into().ok()?);
    let (mut rest, mut full, mut keys) = (contents, &[][..], Vec::new());
    for item in 0..count as usize {
        let (kind, behind) = rest.split_first()?;
        rest = behind;
        let _version = varint(&mut rest)?;
        if item % every == 0 {
            full = taken(&mut rest)?;
            keys.push(full.to_vec());
        } else {
            let shared = varint(&mut rest)?;
            keys.push([full.get(..shared)?, taken(&mut rest)?].concat());
        }
        if *kind == VALUE {
            taken(&mut rest)?;
        }
    }
    Some(keys)
}

/// As many bytes as a number before them says.
fn taken<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let len = varint(rest)?;
    let (taken, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in (0..usize::BITS).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= usize::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Whose turn each record is: data shards' keys together are cut in as many stretches as there are nodes.
/// The meta shard has too few for that, and is one node's.
pub struct Turns(Vec<Vec<u8>>);

impl Turns {
    /// By the keys of all nodes' tables.
    pub fn of(nodes: &[Layout]) -> Self {
        let tables = nodes.iter().flat_map(|layout| &layout.tables);
        let of_data = tables.filter(|(file, _)| shard_of(file) != Some(META_SHARD));
        let keys: BTreeSet<&[u8]> = of_data.flat_map(|(_, table)| table.records()).collect();
        let keys: Vec<_> = keys.into_iter().collect();
        let begin = |turn: usize| keys.get(turn * keys.len() / NODES).map(|key| key.to_vec());
        Self((1..NODES).filter_map(begin).collect())
    }

    fn of_key(&self, key: &[u8]) -> usize {
        self.0.iter().filter(|begin| &begin[..] <= key).count()
    }

    /// The nodes whose turn any record is that is in doubt without this block of a table's file. Empty if there is none.
    pub fn of_block(&self, file: &str, table: &Table, block: Range<usize>) -> BTreeSet<usize> {
        let touched = table.touching(block);
        let in_doubt = touched.filter_map(|(number, _)| table.in_doubt(number));
        match shard_of(file) {
            Some(META_SHARD) => in_doubt.map(|_| META_SHARD as usize % NODES).collect(),
            _ => in_doubt
                .flat_map(|(first, last)| self.of_key(first)..=self.of_key(last))
                .collect(),
        }
    }
}

fn shard_of(file: &str) -> Option<u64> {
    let folder = file.strip_prefix("trees/")?.split('/').next()?;
    Some(folder.parse::<TreeId>().ok()?.shard_id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use reelkv::storage::EngineKind;

    use super::super::fault::{BlockFault, Helical};
    use super::super::files::Snapshot;
    use super::super::image::Image;
    use super::*;

    /// Records of each shard, and the nodes on which each is in doubt once they were struck.
    fn doubts(image: &Image, struck: &[Snapshot]) -> BTreeMap<(u64, Vec<u8>), BTreeSet<usize>> {
        let mut doubts: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
        let layouts: Vec<_> = image.nodes.iter().map(Layout::of).collect();
        for (file, table) in layouts.iter().flat_map(|layout| &layout.tables) {
            let of_shard = |key: &[u8]| ((shard_of(file).unwrap(), key.to_vec()), BTreeSet::new());
            doubts.extend(table.records().map(of_shard));
        }
        for (position, struck) in struck.iter().enumerate() {
            for (file, table) in &layouts[position].tables {
                let bytes = image.nodes[position].get(file).unwrap();
                let after = struck.get(file).unwrap();
                let is_bad = |block: &DataBlock| bytes[block.place.clone()] != after[block.place.clone()];
                let bad = (0..table.0.len()).filter(|number| is_bad(&table.0[*number]));
                for (first, last) in bad.filter_map(|number| table.in_doubt(number)) {
                    for ((shard, key), nodes) in &mut doubts {
                        if Some(*shard) == shard_of(file) && first <= &key[..] && &key[..] <= last {
                            nodes.insert(position);
                        }
                    }
                }
            }
        }
        doubts
    }

    #[test]
    fn helical_damage_of_tables_hits_every_node_and_leaves_every_record_good_on_one() {
        let scratch = tempfile::tempdir().unwrap();
        let image = Image::make(&scratch.path().join("image"), EngineKind::Lsm, 0).unwrap();
        for good_only in [false, true] {
            for kind in [BlockFault::Zeros, BlockFault::BitFlip] {
                let helical = Helical { good_only, kind };
                let mut rng = SmallRng::seed_from_u64(1);
                let struck = helical.strike(&image, "tree table", &mut rng).unwrap();
                let doubts = doubts(&image, &struck);
                let most = doubts.values().map(BTreeSet::len).max();
                assert_eq!(most, Some(if good_only { 2 } else { 1 }), "{}", helical.name());
                let hit: BTreeSet<_> = doubts.values().flatten().collect();
                assert_eq!(hit.len(), NODES, "{}", helical.name());
                let in_doubt = doubts.values().filter(|nodes| !nodes.is_empty()).count();
                println!("{}: {in_doubt} of {} in doubt", helical.name(), doubts.len());
                assert!(in_doubt * 3 > doubts.len(), "{in_doubt} of {}", doubts.len());
            }
        }
    }

    #[test]
    fn a_file_that_is_no_table_has_no_parts() {
        assert!(Table::of(b"").0.is_empty());
        assert!(Table::of(&[MAGIC, &[0; 100]].concat()).0.is_empty());
        assert_eq!(Table::of(b"some other file").part(0..4), "tree table index");
    }
}
