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

use crate::disk::{Disk, read_file, write_file_atomically};

const MAGIC: &[u8; 8] = b"RKVWALMF";
const LEN: usize = 28;
const NAMES: [&str; 2] = ["manifest.1", "manifest.2"];

/// The segments that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manifest {
    pub newest: u64,
    pub oldest: u64,
}

/// The newer of two good copies; `None` when there is none.
pub(super) fn load(disk: &dyn Disk, dir: &Path) -> Option<Manifest> {
    let copy = |name: &&str| read_file(disk, &dir.join(name)).ok().as_deref().and_then(decode);
    NAMES.iter().filter_map(copy).max()
}

/// Writes both copies, one after the other.
pub(super) fn store(disk: &dyn Disk, dir: &Path, manifest: Manifest) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&manifest.oldest.to_le_bytes());
    bytes.extend_from_slice(&manifest.newest.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
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
