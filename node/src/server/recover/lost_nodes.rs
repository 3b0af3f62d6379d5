//! Nodes that an operator declared lost for good: file `recovered` (`sealed`), a list of node numbers, 8
//! bytes each, big endian.
//!
//! A node that starts waits for none of them, and tells each that asks that it was replaced. Numbers
//! are never used again, so the list only grows.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use reelkv_proto::types::NodeId;

use super::super::sealed;
use crate::disk::{Disk, SharedDisk, read_file};
use crate::health::{KeptFile, Kind};

pub(in super::super) const FILE: &str = "recovered";

/// The nodes declared lost.
///
/// # Errors
/// The file is damaged, and how: nobody counts as lost then.
pub(in super::super) fn load(disk: &dyn Disk, dir: &Path) -> Result<BTreeSet<NodeId>, (Kind, String)> {
    let content = sealed::load(disk, &dir.join(FILE))?.unwrap_or_default();
    let (numbers, rest) = content.as_chunks::<8>();
    match rest.is_empty() {
        true => Ok(numbers.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect()),
        false => Err((Kind::Truncated, format!("{} bytes are no list", content.len()))),
    }
}

/// The file, to be compared with what it must hold; of none, or a bad one, nothing is known.
pub(in super::super) fn kept(disk: &SharedDisk, dir: &Path) -> KeptFile {
    let file = KeptFile::new(disk.clone(), dir.join(FILE));
    if load(&**disk, dir).is_ok_and(|lost| !lost.is_empty())
        && let Ok(bytes) = read_file(&**disk, file.path())
    {
        file.found(&bytes);
    }
    file
}

/// Adds to them, durably.
pub(super) fn add(disk: &dyn Disk, dir: &Path, lost: &BTreeSet<NodeId>) -> io::Result<()> {
    let mut all = load(disk, dir).unwrap_or_default();
    all.extend(lost);
    let content: Vec<u8> = all.iter().flat_map(|node| node.to_be_bytes()).collect();
    sealed::store(disk, &dir.join(FILE), &content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{RealDisk, write_file_atomically};

    #[test]
    fn the_list_grows_and_a_damaged_one_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let load = || load(&RealDisk, dir.path());
        assert_eq!(load(), Ok(BTreeSet::new()));
        add(&RealDisk, dir.path(), &BTreeSet::from([3, 2])).unwrap();
        add(&RealDisk, dir.path(), &BTreeSet::from([2, 7])).unwrap();
        assert_eq!(load(), Ok(BTreeSet::from([2, 3, 7])));
        write_file_atomically(&RealDisk, &dir.path().join(FILE), b"junk of some length").unwrap();
        assert_eq!(load().unwrap_err().0, Kind::Checksum);
        sealed::store(&RealDisk, &dir.path().join(FILE), b"not eight").unwrap();
        assert_eq!(load().unwrap_err().0, Kind::Truncated);
    }
}
