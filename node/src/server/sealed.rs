//! Small files that are replaced as a whole: CRC-32 of what follows (4 bytes, big endian), then
//! the content. After a crash such a file holds its old content or its new one.

use std::io;
use std::path::Path;

use crate::disk::{Disk, read_file, write_file_atomically};

/// What a file holds; `None` when there is none, or it is damaged.
pub(super) fn load(disk: &dyn Disk, path: &Path) -> Option<Vec<u8>> {
    let mut bytes = read_file(disk, path).ok()?;
    let content = bytes.split_off(bytes.len().min(4));
    (bytes == crc32fast::hash(&content).to_be_bytes()).then_some(content)
}

/// Replaces a file's content, durably.
///
/// # Errors
/// The disk's; the old content is then still there.
pub(super) fn store(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut bytes = crc32fast::hash(content).to_be_bytes().to_vec();
    bytes.extend_from_slice(content);
    write_file_atomically(disk, path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_file_holds_what_was_stored_last_and_a_damaged_one_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(load(&RealDisk, &path), None);
        store(&RealDisk, &path, b"old").unwrap();
        store(&RealDisk, &path, b"new").unwrap();
        assert_eq!(load(&RealDisk, &path).unwrap(), b"new");
        for damaged in [&b"\0\0\0\0new"[..], b"abc", b""] {
            write_file_atomically(&RealDisk, &path, damaged).unwrap();
            // An empty file is whole only if its checksum is there.
            assert_eq!(load(&RealDisk, &path), None, "{damaged:?}");
        }
    }
}
