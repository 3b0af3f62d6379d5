//! Small files that are replaced as a whole: CRC-32 of what follows (4 bytes, big endian), then
//! the content. After a crash such a file holds its old content or its new one.

use std::io;
use std::path::Path;

use crate::disk::{Disk, read_file, write_file_atomically};
use crate::health::Kind;

/// What a file holds; `None` when there is none.
///
/// # Errors
/// It is damaged, and how.
pub(super) fn load(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, (Kind, String)> {
    let mut bytes = match read_file(disk, path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err((Kind::Unreadable, error.to_string())),
    };
    let len = bytes.len();
    let Some(content) = (len >= 4).then(|| bytes.split_off(4)) else {
        return Err((Kind::Truncated, format!("{len} bytes are left of it")));
    };
    match bytes == crc32fast::hash(&content).to_be_bytes() {
        true => Ok(Some(content)),
        false => Err((Kind::Checksum, format!("{len} bytes, with another checksum"))),
    }
}

/// The bytes of a file that holds this.
pub(super) fn seal(content: &[u8]) -> Vec<u8> {
    let mut bytes = crc32fast::hash(content).to_be_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes
}

/// Replaces a file's content, durably.
///
/// # Errors
/// The disk's; the old content is then still there.
pub(super) fn store(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    write_file_atomically(disk, path, &seal(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_file_holds_what_was_stored_last_and_a_damaged_one_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(load(&RealDisk, &path), Ok(None));
        store(&RealDisk, &path, b"old").unwrap();
        store(&RealDisk, &path, b"new").unwrap();
        assert_eq!(load(&RealDisk, &path), Ok(Some(b"new".to_vec())));
        let damages = [
            (&b"\0\0\0\0new"[..], Kind::Checksum),
            (b"abc", Kind::Truncated),
            (b"", Kind::Truncated),
        ];
        for (damaged, kind) in damages {
            write_file_atomically(&RealDisk, &path, damaged).unwrap();
            // An empty file is whole only if its checksum is there.
            assert_eq!(load(&RealDisk, &path).unwrap_err().0, kind, "{damaged:?}");
        }
    }
}
