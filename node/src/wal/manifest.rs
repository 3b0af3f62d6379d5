//! Which segments there are: `manifest.1` and `manifest.2`, the same bytes.
//!
//! ```text
//!  0  8  magic "RKVWALMF"
//!  8  8  number of the oldest segment that counts
//! 16  8  number of the newest segment that may hold a batch
//! 24  4  CRC-32 of bytes 0..24
//! ```
//!
//! A segment is named here after it was made durable and before its first batch, and no longer
//! before it is deleted. So a segment between the two numbers that is not there was lost.

use std::io;
use std::path::Path;

use crate::disk::{Disk, Mode, read_file, write_file_atomically};

const MAGIC: &[u8; 8] = b"RKVWALMF";
const LEN: usize = 28;
/// What it is called where damage to it is told.
pub(super) const NAME: &str = "manifest";
const NAMES: [&str; 2] = ["manifest.1", "manifest.2"];

/// The segments that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manifest {
    pub newest: u64,
    pub oldest: u64,
}

impl Manifest {
    /// Whether a segment counts.
    pub fn names(self, number: u64) -> bool {
        (self.oldest..=self.newest).contains(&number)
    }
}

/// What the two copies say.
pub(super) struct Loaded {
    /// The newer of the good copies; `None` when there is none.
    pub manifest: Option<Manifest>,
    /// Whether both copies are there, good and the same.
    pub agreed: bool,
    /// Names of copies that are there and bad, or are gone though a segment was begun after they
    /// were made.
    pub bad: Vec<&'static str>,
    /// What each copy says, if it is good.
    copies: [Option<Manifest>; 2],
}

impl Loaded {
    /// A good copy that is older than the other though no crash came between the two. The first is written
    /// first; a segment has batches, or is gone, only after both were written.
    pub fn outdated(
        &self,
        has_batches: impl Fn(u64) -> bool,
        is_there: impl Fn(u64) -> bool,
    ) -> Option<&'static str> {
        let [Some(first), Some(second)] = self.copies else {
            return None;
        };
        if first < second {
            return Some(NAMES[0]);
        }
        let was_used = (second.newest.saturating_add(1)..=first.newest).any(has_batches);
        let was_freed = !(second.oldest..first.oldest).all(is_there);
        (was_used || was_freed).then_some(NAMES[1])
    }
}

/// Reads both copies.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Loaded {
    let copies = NAMES.map(|name| match read_file(disk, &dir.join(name)) {
        Ok(bytes) => Some(bytes),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => None,
        Err(_) => Some(Vec::new()), // there, and cannot be read
    });
    judge(&copies)
}

/// Both copies' bytes, `None` for one that is not there.
pub(super) fn judge(copies: &[Option<Vec<u8>>; 2]) -> Loaded {
    let decoded = copies.each_ref().map(|bytes| bytes.as_deref().and_then(decode));
    let manifest = decoded.iter().flatten().max().copied();
    // Only while the first segment is made may there be one copy alone.
    let begun = manifest.is_some_and(|manifest| manifest.newest > 1);
    let is_bad = |at: &usize| decoded[*at].is_none() && (copies[*at].is_some() || begun);
    Loaded {
        manifest,
        agreed: manifest.is_some() && decoded[0] == decoded[1],
        bad: (0..NAMES.len()).filter(is_bad).map(|at| NAMES[at]).collect(),
        copies: decoded,
    }
}

/// Whether both copies are on the disk and say this.
pub(super) fn is_whole(disk: &dyn Disk, dir: &Path, expected: Manifest) -> bool {
    let says = |name: &&str| {
        let bytes = read_from_device(disk, &dir.join(name));
        bytes.ok().as_deref().and_then(decode) == Some(expected)
    };
    NAMES.iter().all(says)
}

fn read_from_device(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    disk.open(path, Mode::Read)?.drop_cached()?;
    read_file(disk, path)
}

/// A manifest's bytes.
pub(super) fn encode(manifest: Manifest) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&manifest.oldest.to_le_bytes());
    bytes.extend_from_slice(&manifest.newest.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// Writes both copies, one after the other.
pub(super) fn store(disk: &dyn Disk, dir: &Path, manifest: Manifest) -> io::Result<()> {
    let bytes = encode(manifest);
    NAMES
        .iter()
        .try_for_each(|name| write_file_atomically(disk, &dir.join(name), &bytes))
}

fn decode(bytes: &[u8]) -> Option<Manifest> {
    let field = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let whole = bytes.len() == LEN && &bytes[..8] == MAGIC;
    let crc = u32::from_le_bytes(bytes.get(24..28)?.try_into().ok()?);
    (whole && crc == crc32fast::hash(&bytes[..24])).then_some(())?;
    Some(Manifest {
        oldest: field(8)?,
        newest: field(16)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(oldest: u64, newest: u64) -> Manifest {
        Manifest { newest, oldest }
    }

    #[test]
    fn a_copy_that_no_crash_leaves_behind_is_outdated() {
        // Segment 7 is the newest with a batch, 3 the oldest there is.
        let outdated = |first, second| {
            let loaded = judge(&[Some(encode(first)), Some(encode(second))]);
            loaded.outdated(|number| number <= 7, |number| number >= 3)
        };
        for (first, second, expected) in [
            (of(3, 7), of(3, 7), None),
            // A crash between the two, when segment 8 was made, or when it was found that 3 may go.
            (of(3, 8), of(3, 7), None),
            (of(4, 7), of(3, 7), None),
            (of(3, 7), of(3, 8), Some("manifest.1")),
            (of(3, 7), of(3, 6), Some("manifest.2")),
            (of(3, 7), of(2, 7), Some("manifest.2")),
        ] {
            assert_eq!(outdated(first, second), expected, "{first:?} {second:?}");
        }
        let alone = judge(&[Some(encode(of(3, 7))), None]);
        assert_eq!(
            alone.outdated(|_| true, |_| false),
            None,
            "one that is gone is bad"
        );
    }
}
