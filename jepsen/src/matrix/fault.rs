//! Faults at rest: what happens to a directory while its node is off.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::files::Snapshot;
use super::image::{BURST, Image};
use super::structure::{BLOCK, Layout, Structure, blocks, is_zero, range};
use super::table::Turns;
use super::world::NODES;

/// The node that faults hit.
pub const VICTIM: usize = 1;
/// The one that is left off where two must do.
pub const OFF: usize = 2;
/// Whose bytes are put in place of the victim's.
const OTHER: usize = 0;

/// What happens to one block of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFault {
    /// One bit flips, between the first and the last byte that is not zero.
    BitFlip,
    /// It reads as zeros.
    Zeros,
    /// It reads as junk.
    Junk,
    /// It holds another place's block: a misdirected write.
    OtherPlace,
    /// It holds what was there before: a lost write.
    Stale,
}

/// What happens to one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFault {
    /// It is gone.
    Missing,
    /// It has no bytes.
    Empty,
    /// Its second half is gone.
    Half,
    /// Its last byte is gone.
    MinusOne,
    /// Junk follows it.
    Extended,
    /// It is what it was before.
    Older,
    /// It is another node's of that name.
    OtherNode,
}

/// What happens to a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirFault {
    /// The data directory is gone.
    DataMissing,
    /// The data directory is what it was before: a snapshot put back.
    DataOlder,
    /// The data directory is another node's.
    DataOtherNode,
    /// The trees are gone.
    TreesMissing,
    /// The log is gone.
    LogMissing,
}

impl BlockFault {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::BitFlip,
        Self::Zeros,
        Self::Junk,
        Self::OtherPlace,
        Self::Stale,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::BitFlip => "bit-flip",
            Self::Zeros => "zeros",
            Self::Junk => "junk",
            Self::OtherPlace => "other-place",
            Self::Stale => "stale",
        }
    }
}

impl FileFault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Missing,
        Self::Empty,
        Self::Half,
        Self::MinusOne,
        Self::Extended,
        Self::Older,
        Self::OtherNode,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Empty => "empty",
            Self::Half => "half",
            Self::MinusOne => "minus-one",
            Self::Extended => "extended",
            Self::Older => "older",
            Self::OtherNode => "other-node",
        }
    }
}

impl DirFault {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::DataMissing,
        Self::DataOlder,
        Self::DataOtherNode,
        Self::TreesMissing,
        Self::LogMissing,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::DataMissing => "data-missing",
            Self::DataOlder => "data-older",
            Self::DataOtherNode => "data-other-node",
            Self::TreesMissing => "trees-missing",
            Self::LogMissing => "log-missing",
        }
    }

    fn structure(self) -> Structure {
        let (name, told_as) = match self {
            Self::TreesMissing => ("trees directory", "tree"),
            Self::LogMissing => ("log directory", "wal"),
            _ => ("data directory", ANY),
        };
        Structure {
            name,
            told_as,
            counts: true,
        }
    }
}

/// Any entry of the ledger tells it.
pub const ANY: &str = "any";

/// One fault, on the victim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: how long a start takes without any.
    None,
    /// A block of a file.
    Block {
        /// The file, relative to the data directory.
        file: String,
        /// Number of the block.
        block: usize,
        /// What happens to it.
        kind: BlockFault,
    },
    /// A file.
    File {
        /// The file, relative to the data directory.
        file: String,
        /// What happens to it.
        kind: FileFault,
    },
    /// A directory.
    Dir(DirFault),
}

impl Fault {
    /// What kind it is.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Block { kind, .. } => kind.name(),
            Self::File { kind, .. } => kind.name(),
            Self::Dir(kind) => kind.name(),
        }
    }

    /// Where it is, as part of a case's id.
    pub fn place(&self) -> String {
        match self {
            Self::None | Self::Dir(_) => String::new(),
            Self::Block { file, block, .. } => format!("/{file}/{block}"),
            Self::File { file, .. } => format!("/{file}"),
        }
    }

    /// What it hits.
    pub fn structure(&self, layout: &Layout, image: &Image) -> Structure {
        match self {
            Self::None => Structure {
                name: "nothing",
                told_as: "none",
                counts: false,
            },
            Self::Block { file, block, .. } => {
                let bytes = image.nodes[VICTIM].get(file).unwrap_or_default();
                layout.of_block(file, bytes, *block)
            }
            Self::File { file, .. } => layout.of_file(file),
            Self::Dir(kind) => kind.structure(),
        }
    }

    /// The victim's directory with the fault in it; `None` when nothing would differ.
    pub fn strike(&self, image: &Image, rng: &mut SmallRng) -> Option<Snapshot> {
        let whole = &image.nodes[VICTIM];
        let mut struck = whole.clone();
        match self {
            Self::None => return Some(struck),
            Self::Block { file, block, kind } => {
                let bytes = strike_block(image, file, *block, *kind, rng)?;
                struck.put(file, bytes);
            }
            Self::File { file, kind } => match strike_file(image, file, *kind, rng)? {
                Some(bytes) => struck.put(file, bytes),
                None => drop(struck.files.remove(file)),
            },
            Self::Dir(kind) => match kind {
                DirFault::DataMissing => struck = Snapshot::default(),
                DirFault::DataOlder => struck = image.old[VICTIM].clone(),
                DirFault::DataOtherNode => struck = image.nodes[OTHER].clone(),
                DirFault::TreesMissing => struck.remove_dir("trees"),
                DirFault::LogMissing => struck.remove_dir("wal"),
            },
        }
        (struck != *whole).then_some(struck)
    }
}

fn strike_block(
    image: &Image,
    file: &str,
    block: usize,
    kind: BlockFault,
    rng: &mut SmallRng,
) -> Option<Vec<u8>> {
    let mut bytes = image.nodes[VICTIM].get(file)?.to_vec();
    let place = range(&bytes, block);
    let content = &mut bytes[place.clone()];
    match kind {
        BlockFault::BitFlip => flip_in(content, rng)?,
        BlockFault::Zeros => content.fill(0),
        BlockFault::Junk => rng.fill(content),
        BlockFault::OtherPlace => {
            let other = other_place(image, file, block, rng)?;
            let len = other.len().min(content.len());
            content[..len].copy_from_slice(&other[..len]);
        }
        BlockFault::Stale => {
            let old = image.old[VICTIM].get(file)?;
            let old = old.get(place)?;
            content.copy_from_slice(old);
            // A lost write into fresh space reads as zeros: that case is there already.
            content.iter().any(|byte| *byte != 0).then_some(())?;
        }
    }
    Some(bytes)
}

/// Flips a bit between the first and the last byte that is not zero.
pub fn flip_in(content: &mut [u8], rng: &mut SmallRng) -> Option<()> {
    let first = content.iter().position(|byte| *byte != 0)?;
    let last = content.iter().rposition(|byte| *byte != 0)?;
    content[rng.random_range(first..=last)] ^= 1 << rng.random_range(0..8);
    Some(())
}

/// A block of the victim that is not zero and differs from this one: of another file of the same
/// structure if there is one.
fn other_place(image: &Image, file: &str, block: usize, rng: &mut SmallRng) -> Option<Vec<u8>> {
    let snapshot = &image.nodes[VICTIM];
    let layout = Layout::of(snapshot);
    let own = snapshot.get(file)?;
    let content = &own[range(own, block)];
    let alike = layout.of_block(file, own, block).name;
    let mut same = Vec::new();
    let mut others = Vec::new();
    for (name, bytes) in &snapshot.files {
        for place in blocks(bytes).filter(|place| !is_zero(bytes, *place)) {
            let found = &bytes[range(bytes, place)];
            let len = found.len().min(content.len());
            if found[..len] == content[..len] {
                continue;
            }
            match layout.of_block(name, bytes, place).name == alike {
                true => same.push(found),
                false => others.push(found),
            }
        }
    }
    let from = if same.is_empty() { others } else { same };
    from.choose(rng).map(|found| found.to_vec())
}

/// What is left of a file; the inner `None`: nothing, not even its name.
fn strike_file(image: &Image, file: &str, kind: FileFault, rng: &mut SmallRng) -> Option<Option<Vec<u8>>> {
    let mut bytes = image.nodes[VICTIM].get(file)?.to_vec();
    match kind {
        FileFault::Missing => return Some(None),
        FileFault::Empty => bytes.clear(),
        FileFault::Half => bytes.truncate(bytes.len() / 2),
        FileFault::MinusOne => drop(bytes.pop()),
        FileFault::Extended => bytes.extend((0..BLOCK + 100).map(|_| rng.random::<u8>())),
        FileFault::Older => bytes = image.old[VICTIM].get(file)?.to_vec(),
        FileFault::OtherNode => bytes = other_nodes(image, file)?,
    }
    Some(Some(bytes))
}

/// The file of that name on another node; of a tree, that of the same shard.
fn other_nodes(image: &Image, file: &str) -> Option<Vec<u8>> {
    let others = &image.nodes[OTHER];
    if let Some(bytes) = others.get(file) {
        return Some(bytes.to_vec());
    }
    let (folder, rest) = file.strip_prefix("trees/")?.split_once('/')?;
    let shard = format!("trees/{}-", folder.split('-').next()?);
    let mut alike = others.files.iter().filter(|(name, _)| {
        name.starts_with(&shard)
            && name
                .strip_prefix("trees/")
                .and_then(|name| name.split_once('/'))
                .is_some_and(|(_, other)| other == rest)
    });
    alike.next().map(|(_, bytes)| bytes.to_vec())
}

/// Every fault of a block of the victim that holds anything, by these kinds.
pub fn block_faults(image: &Image, kinds: &[BlockFault]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (file, bytes) in &image.nodes[VICTIM].files {
        for block in blocks(bytes).filter(|block| !is_zero(bytes, *block)) {
            faults.extend(kinds.iter().map(|kind| Fault::Block {
                file: file.clone(),
                block,
                kind: *kind,
            }));
        }
    }
    faults
}

/// Every fault of a file or directory of the victim.
pub fn file_faults(image: &Image) -> Vec<Fault> {
    let files = image.nodes[VICTIM].files.keys().flat_map(|file| {
        FileFault::ALL.into_iter().map(|kind| Fault::File {
            file: file.clone(),
            kind,
        })
    });
    files.chain(DirFault::ALL.into_iter().map(Fault::Dir)).collect()
}

/// Nodes lay their files out differently, so blocks of all nodes that belong together are told by what is in them.
struct Owners<'a> {
    structure: &'a str,
    turns: Turns,
}

impl Owners<'_> {
    /// The nodes whose turn it is: of a table, by its keys; of the log's data, by the burst of writes that it is of, which
    /// no batch reaches beyond; of a segment's header, which is there twice, by the copy; else by the block's number
    /// among those of its structure. Empty for data that no client wrote.
    fn of(&self, layout: &Layout, file: &str, bytes: &[u8], block: usize, number: usize) -> BTreeSet<usize> {
        let place = range(bytes, block);
        match self.structure {
            "tree table" => {
                let table = layout.tables.get(file);
                table.map_or_else(BTreeSet::new, |table| self.turns.of_block(file, table, place))
            }
            "wal data frame" => {
                let writes = numbers_behind(&bytes[place], b"by write ");
                let bursts = writes.filter_map(|write| (write as usize).checked_sub(1));
                bursts.map(|write| write / BURST % NODES).collect()
            }
            "wal segment header" => BTreeSet::from([usize::from(block > 0)]),
            _ => BTreeSet::from([number % NODES]),
        }
    }
}

/// The whole numbers that stand behind a word; one that ends with the content may go on elsewhere.
fn numbers_behind<'c>(content: &'c [u8], word: &'c [u8]) -> impl Iterator<Item = u64> + 'c {
    let places = (0..content.len()).filter(move |at| content[*at..].starts_with(word));
    places.filter_map(move |at| {
        let digits = &content[at + word.len()..];
        let len = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..len]).ok()?.parse().ok()
    })
}

/// Damage of every node at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Helical {
    /// A block of the structure is bad on the node only whose turn it is; or good there only. One that is several
    /// nodes' turn is bad on none, or good on all of them.
    pub good_only: bool,
    /// What happens to a block.
    pub kind: BlockFault,
}

impl Helical {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self {
            good_only: false,
            kind: BlockFault::BitFlip,
        },
        Self {
            good_only: false,
            kind: BlockFault::Zeros,
        },
        Self {
            good_only: true,
            kind: BlockFault::BitFlip,
        },
        Self {
            good_only: true,
            kind: BlockFault::Zeros,
        },
    ];

    /// Its name.
    pub fn name(self) -> String {
        let which = if self.good_only {
            "good-on-one"
        } else {
            "bad-on-one"
        };
        format!("helical-{which}-{}", self.kind.name())
    }

    /// All nodes' directories with the damage in them; `None` when no node would differ.
    pub fn strike(self, image: &Image, structure: &str, rng: &mut SmallRng) -> Option<Vec<Snapshot>> {
        let mut struck = image.nodes.clone();
        let layouts: Vec<Layout> = image.nodes.iter().map(Layout::of).collect();
        let turns = Turns::of(&layouts);
        let owners = Owners { structure, turns };
        for (position, snapshot) in struck.iter_mut().enumerate() {
            let layout = &layouts[position];
            let mut number = 0;
            for (file, whole) in image.nodes[position].files.iter() {
                let mut bytes = whole.to_vec();
                for block in blocks(whole) {
                    if is_zero(whole, block) || layout.of_block(file, whole, block).name != structure {
                        continue;
                    }
                    let owners = owners.of(layout, file, whole, block, number);
                    number += 1;
                    let spared = match self.good_only {
                        true => owners.is_empty() || owners.contains(&position),
                        false => owners != BTreeSet::from([position]),
                    };
                    if spared {
                        continue;
                    }
                    let place = range(whole, block);
                    match self.kind {
                        BlockFault::BitFlip => flip_in(&mut bytes[place], rng)?,
                        _ => bytes[place].fill(0),
                    }
                }
                snapshot.put(file, bytes);
            }
        }
        (struck != image.nodes).then_some(struck)
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::*;

    #[test]
    fn data_of_the_log_belongs_to_the_burst_it_was_written_in() {
        let owners = Owners {
            structure: "wal data frame",
            turns: Turns::of(&[]),
        };
        let layout = Layout::of(&Snapshot::default());
        let of_writes = |writes: std::ops::RangeInclusive<u64>| {
            let content: Vec<u8> = writes.flat_map(|write| judge::value(3, write, 30)).collect();
            owners.of(&layout, "wal/00000001.wal", &content, 0, 2)
        };
        assert_eq!(of_writes(1..=12), BTreeSet::from([0]));
        assert_eq!(of_writes(13..=24), BTreeSet::from([1]));
        assert_eq!(of_writes(12..=13), BTreeSet::from([0, 1]));
        assert_eq!(
            owners.of(&layout, "wal/00000001.wal", b"value of 3 by write 12", 0, 2),
            BTreeSet::new()
        );
    }
}
