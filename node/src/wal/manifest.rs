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
const NAMES: [&str; 2] = ["manifest.1", "manifest.2"];

/// The segments that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manifest {
    pub newest: u64,
    pub oldest: u64,
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
