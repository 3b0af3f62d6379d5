//! Reading a file once, from its beginning to its end.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3Default;

use crate::disk::{Disk, Mode, SharedFile};
use crate::storage::{FileSum, TreeError};

/// Read at a time.
const READ_BYTES: u64 = 1 << 20;
/// Where a read fails, each of its pages is read on its own.
const PAGE_BYTES: usize = 4 << 10;
/// After this many pages that cannot be read, nothing more of the file is tried.
const BAD_PAGES_MAX: u32 = 64;

/// Longest file that is read into memory whole: a list of half a million tables.
const SMALL_BYTES_MAX: u64 = 16 << 20;

/// Where a file is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Past what the operating system has cached of it.
    Device,
    /// Whatever is nearest.
    Cache,
}

/// A file being read. What the device refuses is read as zeros: the
/// checksums above tell that it is wrong.
pub(super) struct Reader {
    name: String,
    file: SharedFile,
    len: u64,
    /// Read, and summed, so far.
    read: u64,
    buffer: BytesMut,
    hasher: Xxh3Default,
    bad_pages: u32,
    refused: Option<TreeError>,
}

impl Reader {
    /// # Errors
    /// Damage, unless the process lacks the means.
    pub(super) fn open(
        disk: &dyn Disk,
        folder: &Path,
        name: &str,
        source: Source,
    ) -> Result<Self, TreeError> {
        let open = || {
            let file = disk.open(&folder.join(name), Mode::Read)?;
            if source == Source::Device {
                file.drop_cached()?;
            }
            let len = file.len_bytes()?;
            Ok((file, len))
        };
        let (file, len) = open().map_err(|error| TreeError::unreadable(name, &error))?;
        Ok(Self {
            name: name.to_owned(),
            file,
            len,
            read: 0,
            buffer: BytesMut::new(),
            hasher: Xxh3Default::new(),
            bad_pages: 0,
            refused: None,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where the next byte taken is in the file.
    pub(super) fn offset(&self) -> u64 {
        self.read - self.buffer.len() as u64
    }

    /// The next bytes, which stay; `None` when the file ends before.
    ///
    /// # Errors
    /// The process lacks the means to read.
    pub(super) fn peek(&mut self, len: usize) -> Result<Option<&[u8]>, TreeError> {
        if (len as u64) > self.len - self.offset() {
            return Ok(None);
        }
        while self.buffer.len() < len {
            self.fill()?;
            if self.len < self.offset() + len as u64 {
                return Ok(None); // it has become shorter
            }
        }
        Ok(Some(&self.buffer[..len]))
    }

    /// Takes the next bytes; `None`, and nothing is taken, when the file ends before.
    pub(super) fn take(&mut self, len: usize) -> Result<Option<Bytes>, TreeError> {
        let there = self.peek(len)?.is_some();
        Ok(there.then(|| self.buffer.split_to(len).freeze()))
    }

    /// Passes over up to `max` bytes. Returns how many; 0 at the end of the file.
    pub(super) fn skip(&mut self, max: u64) -> Result<u64, TreeError> {
        if self.buffer.is_empty() && self.read < self.len {
            self.fill()?;
        }
        let skipped = (self.buffer.len() as u64).min(max);
        drop(self.buffer.split_to(skipped as usize));
        Ok(skipped)
    }

    /// Length and checksum of the whole file; reads what is left of it.
    ///
    /// # Errors
    /// Some of it could not be read.
    pub(super) fn finish(mut self) -> Result<FileSum, TreeError> {
        while self.skip(u64::MAX)? > 0 {}
        match self.refused {
            Some(refused) => Err(refused),
            None => Ok(FileSum {
                name: self.name,
                len: self.len,
                xxh3_128: self.hasher.digest128(),
            }),
        }
    }

    fn fill(&mut self) -> Result<(), TreeError> {
        let at = self.buffer.len();
        let piece = (self.len - self.read).min(READ_BYTES) as usize;
        self.buffer.resize(at + piece, 0);
        let target = &mut self.buffer[at..];
        let got = match self.file.read_at(self.read, target) {
            Ok(got) => got,
            Err(error) => {
                let error = TreeError::unreadable(&*self.name, &error);
                if !error.sets_tree_aside() {
                    return Err(error);
                }
                self.refused.get_or_insert(error);
                for (page, bytes) in target.chunks_mut(PAGE_BYTES).enumerate() {
                    let offset = self.read + (page * PAGE_BYTES) as u64;
                    let len = bytes.len();
                    let given_up = self.bad_pages >= BAD_PAGES_MAX;
                    if given_up || self.file.read_at(offset, bytes).ok() != Some(len) {
                        bytes.fill(0);
                        self.bad_pages += 1;
                    }
                }
                piece
            }
        };
        self.buffer.truncate(at + got);
        self.hasher.update(&self.buffer[at..]);
        self.read += got as u64;
        if got < piece {
            self.len = self.read;
        }
        Ok(())
    }
}

/// Reads a whole small file from the device.
pub(super) fn read_whole(disk: &dyn Disk, folder: &Path, name: &str) -> Result<Bytes, TreeError> {
    let mut reader = Reader::open(disk, folder, name, Source::Device)?;
    if reader.len > SMALL_BYTES_MAX {
        return Err(TreeError::damaged(name, "longer than any file of its kind"));
    }
    let len = reader.len as usize;
    let bytes = reader.take(len)?.unwrap_or_default();
    reader.finish().map(|_| bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::disk::sim::SimDisk;

    fn contents() -> Vec<u8> {
        (0..3_000_000_u32).map(|at| (at % 251) as u8 + 1).collect()
    }

    fn device() -> (SimDisk, PathBuf) {
        let (device, folder) = (SimDisk::new(7), PathBuf::from("tree"));
        let disk = device.mount();
        disk.create_dir_all(&folder).unwrap();
        let file = disk.open(&folder.join("file"), Mode::CreateNew).unwrap();
        file.write_at(0, &contents()).unwrap();
        (device, folder)
    }

    #[test]
    fn pieces_of_any_size_come_to_the_whole_file() {
        let (device, folder) = device();
        for size in [1, 33, 4_096, 1 << 20, 2_999_999] {
            let mut reader = Reader::open(&*device.mount(), &folder, "file", Source::Device).unwrap();
            let mut read = Vec::new();
            for _ in 0..5_000 {
                let Some(bytes) = reader.take(size).unwrap() else {
                    break;
                };
                read.extend_from_slice(&bytes);
                assert_eq!(reader.offset(), read.len() as u64);
            }
            assert!(read == contents()[..read.len()], "in pieces of {size}");
            let sum = reader.finish().unwrap();
            assert_eq!(sum.len, 3_000_000);
            assert_eq!(sum.xxh3_128, xxhash_rust::xxh3::xxh3_128(&contents()));
        }
    }

    #[test]
    fn pages_that_are_refused_are_zeros_and_the_file_is_not_whole() {
        let (device, folder) = device();
        device.fail_reads(100);
        let mut reader = Reader::open(&*device.mount(), &folder, "file", Source::Device).unwrap();
        let mut zeros = 0;
        for expected in contents().chunks(PAGE_BYTES) {
            let bytes = reader.take(expected.len()).unwrap().unwrap();
            let refused = bytes.iter().all(|byte| *byte == 0);
            assert!(refused || bytes == expected);
            zeros += u32::from(refused);
        }
        assert!((1..200).contains(&zeros), "{zeros} pages");
        let error = reader.finish().unwrap_err();
        assert!(error.sets_tree_aside(), "{error}");
    }
}
