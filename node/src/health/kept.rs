//! A small file that is replaced as a whole and whose content the process knows: so what the device gives out
//! can be compared with it while the node runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Kind;
use crate::disk::{Disk, Mode, SharedDisk, write_file_atomically};

/// A file that is kept. Invariants: one write at a time; `content` is what the last of them has put there,
/// and nothing is said of the file while that is not known.
#[derive(Debug)]
pub(crate) struct KeptFile {
    disk: SharedDisk,
    path: PathBuf,
    content: Mutex<Option<Arc<[u8]>>>,
    writing: Mutex<Writing>,
}

/// Whether the file may still be written.
#[derive(Debug, Default)]
struct Writing {
    is_retired: bool,
}

impl KeptFile {
    /// A file of which nothing is known yet.
    pub fn new(disk: SharedDisk, path: PathBuf) -> Self {
        Self {
            disk,
            path,
            content: Mutex::default(),
            writing: Mutex::default(),
        }
    }

    /// The disk it is on.
    pub fn disk(&self) -> &SharedDisk {
        &self.disk
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It was found like this, and that is right.
    pub fn found(&self, content: &[u8]) {
        *self.content.lock() = Some(content.into());
    }

    /// Replaces the file's content, durably.
    ///
    /// # Errors
    /// The disk's, and it is not known what the file holds then; or the file is retired.
    pub fn write(&self, content: &[u8]) -> io::Result<()> {
        let writing = self.writing.lock();
        if writing.is_retired {
            return Err(io::Error::other("the node has given this file up"));
        }
        *self.content.lock() = None;
        write_file_atomically(&*self.disk, &self.path, content)?;
        *self.content.lock() = Some(content.into());
        Ok(())
    }

    /// Writes once more what must be there.
    ///
    /// # Errors
    /// As for a write.
    pub fn write_again(&self) -> io::Result<()> {
        let content = self.content.lock().clone();
        match content {
            Some(content) => self.write(&content),
            None => Err(io::Error::other("what it held is not known for certain")),
        }
    }

    /// Nothing writes the file from now on: its place is about to be another's.
    pub fn retire(&self) {
        self.writing.lock().is_retired = true;
    }

    /// What is wrong with the file, read from the device. What seems wrong is read once more: perhaps it was
    /// the way from there.
    pub fn flaw(&self) -> Option<(Kind, String)> {
        let expected = self.content.lock().clone()?;
        let compare = || compare(&*self.disk, &self.path, &expected);
        let flaw = compare().and_then(|_| compare())?;
        // What was replaced meanwhile was not wrong.
        let content = self.content.lock();
        let is_current = content.as_ref().is_some_and(|now| Arc::ptr_eq(now, &expected));
        is_current.then_some(flaw)
    }
}

fn compare(disk: &dyn Disk, path: &Path, expected: &[u8]) -> Option<(Kind, String)> {
    let found = match read_from_device(disk, path, expected.len() + 1) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some((Kind::Missing, "the file is missing".to_owned()));
        }
        Err(error) => return Some((Kind::Unreadable, error.to_string())),
    };
    if found == expected {
        return None;
    }
    let same = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    Some(match same == found.len() {
        true => (
            Kind::Truncated,
            format!("{same} bytes are left of {}", expected.len()),
        ),
        false => (
            Kind::Checksum,
            format!("from byte {same} on it is not what was written"),
        ),
    })
}

fn read_from_device(disk: &dyn Disk, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Mode::Read)?;
    // What the page cache holds says nothing of the device. If it cannot be dropped, it is read all the same.
    let _ = file.drop_cached();
    let mut bytes = vec![0; bytes_max];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{RealDisk, read_file};

    fn kept(dir: &Path) -> KeptFile {
        KeptFile::new(Arc::new(RealDisk), dir.join("file"))
    }

    #[test]
    fn whatever_happens_to_a_file_is_found_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = kept(dir.path());
        assert_eq!(file.flaw(), None, "nothing is known of it");
        file.write(b"old content").unwrap();
        file.write(b"new content").unwrap();
        assert_eq!(file.flaw(), None);
        let kind = || file.flaw().map(|(kind, _)| kind);
        for (damaged, expected) in [
            (&b"new c0ntent"[..], Kind::Checksum),
            (b"old content", Kind::Checksum),
            (b"new content and more", Kind::Checksum),
            (b"new", Kind::Truncated),
            (b"", Kind::Truncated),
        ] {
            write_file_atomically(&RealDisk, &path, damaged).unwrap();
            assert_eq!(kind(), Some(expected), "{damaged:?}");
            file.write_again().unwrap();
            assert_eq!(read_file(&RealDisk, &path).unwrap(), b"new content");
            assert_eq!(kind(), None);
        }
        RealDisk.remove_file(&path).unwrap();
        assert_eq!(kind(), Some(Kind::Missing));
        file.write_again().unwrap();
        assert_eq!(read_file(&RealDisk, &path).unwrap(), b"new content");
    }

    #[test]
    fn a_retired_file_is_never_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = kept(dir.path());
        file.write(b"content").unwrap();
        file.retire();
        assert!(file.write(b"more").is_err());
        RealDisk.remove_file(&dir.path().join("file")).unwrap();
        assert!(file.write_again().is_err());
        assert!(!dir.path().join("file").exists());
    }
}
