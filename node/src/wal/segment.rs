//! One segment file: its header, and where the next batch goes.
//!
//! ```text
//! segment header, 128 bytes, at the start of the first and of the last block
//!   0  8  magic "RKVWALSG"
//!   8  4  format number (2; 1 had no lost replicas)
//!  12 16  cluster id
//!  28  8  node id
//!  36  8  segment number
//!  44  8  length of the file
//!  52  8  number of its first batch
//!  60  4  records of the batch before the first that count (the rest was torn); all if 0xffffffff
//!  64  8  synced mark when it was made: the batch before the first may be torn if it is greater
//!  72 52  zero
//! 124  4  CRC-32 of bytes 0..124
//! ```

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::format::BLOCK;
use super::{Identity, WalError};
use crate::disk::{Disk, Mode, SharedFile, sync_names};

const MAGIC: &[u8; 8] = b"RKVWALSG";
pub(super) const FORMAT: u32 = 2;
const LEN: usize = 128;
pub(super) const ALL_RECORDS: u32 = u32::MAX;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub identity: Identity,
    pub number: u64,
    pub len_bytes: u64,
    pub first_batch: u64,
    /// How many records of the last batch before it count.
    pub previous_records: u32,
    /// The highest batch known to be durable when the segment was made.
    pub synced: u64,
}

impl SegmentHeader {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.identity.cluster_id);
        bytes[28..36].copy_from_slice(&self.identity.node_id.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.number.to_le_bytes());
        bytes[44..52].copy_from_slice(&self.len_bytes.to_le_bytes());
        bytes[52..60].copy_from_slice(&self.first_batch.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.previous_records.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.synced.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The block it is in.
    pub fn block(&self) -> Vec<u8> {
        let mut block = self.encode();
        block.resize(BLOCK as usize, 0);
        block
    }

    fn decode(bytes: &[u8]) -> Result<Option<Self>, u32> {
        let Some(bytes) = bytes.get(..LEN) else {
            return Ok(None);
        };
        let field8 = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let field4 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        if &bytes[0..8] != MAGIC || field4(124) != crc32fast::hash(&bytes[..124]) {
            return Ok(None);
        }
        if field4(8) > FORMAT {
            return Err(field4(8));
        }
        Ok(Some(Self {
            identity: Identity {
                cluster_id: bytes[12..28].try_into().unwrap_or_default(),
                node_id: field8(28),
            },
            number: field8(36),
            len_bytes: field8(44),
            first_batch: field8(52),
            previous_records: field4(60),
            synced: field8(64),
        }))
    }
}

/// Whose a segment is; `None` if no copy of its header can be read.
pub(super) fn owner(disk: &dyn Disk, path: &Path) -> Option<Identity> {
    let file = disk.open(path, Mode::Read).ok()?;
    let last = file.len_bytes().ok()?.saturating_sub(BLOCK);
    let read = |at| SegmentHeader::decode(&read_range(&file, at, LEN)).ok().flatten();
    Some([0, last].into_iter().find_map(read)?.identity)
}

/// Whether nothing follows a header in its block.
fn is_padded(block: &[u8]) -> bool {
    let end = block.len().min(BLOCK as usize);
    block
        .get(LEN..end)
        .is_some_and(|padding| padding.iter().all(|byte| *byte == 0))
}

/// Both copies of a segment's header, as far as they are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copies {
    first: Option<SegmentHeader>,
    last: Option<SegmentHeader>,
    /// Whether nothing follows them in their blocks.
    padded: bool,
    file_bytes: u64,
}

impl Copies {
    /// Reads both copies of the header of segment `number`.
    ///
    /// # Errors
    /// No copy is this node's, and one is of a newer format or another node.
    pub fn read(path: &Path, number: u64, bytes: &[u8], expected: Identity) -> Result<Self, WalError> {
        let last = bytes.len().saturating_sub(BLOCK as usize);
        let mut refused = None;
        let mut copy = |at: usize| {
            let block = bytes.get(at..).unwrap_or_default();
            match SegmentHeader::decode(block) {
                Ok(Some(header)) if header.identity != expected => {
                    refused = Some(WalError::Foreign {
                        path: path.to_owned(),
                        expected: expected.node_id,
                    });
                    None
                }
                Ok(found) => found.filter(|header| header.number == number),
                Err(found) => {
                    refused = Some(WalError::NewerFormat {
                        path: path.to_owned(),
                        found,
                        supported: FORMAT,
                    });
                    None
                }
            }
        };
        let copies = Self {
            first: copy(0),
            last: copy(last),
            padded: [0, last].iter().all(|at| is_padded(&bytes[*at..])),
            file_bytes: bytes.len() as u64,
        };
        match refused {
            Some(refused) if copies.header().is_none() => Err(refused),
            _ => Ok(copies),
        }
    }

    /// What a good copy says.
    pub fn header(&self) -> Option<SegmentHeader> {
        self.first.or(self.last)
    }

    /// Whether both are good and the file is as long as they say.
    pub fn are_whole(&self) -> bool {
        let length = self
            .header()
            .is_some_and(|header| header.len_bytes == self.file_bytes);
        length && self.padded && self.first == self.last
    }
}

/// The segment being written.
pub(super) struct Segment {
    pub number: u64,
    pub file: SharedFile,
    /// Where the next data frame begins.
    pub data_offset: u64,
    /// Where the next identity frame ends.
    pub identity_end: u64,
    /// Between these two nothing was written yet, not even zeros.
    unwritten: Range<u64>,
}

/// Zeros are written this far ahead of the frames, at a time.
const LAID_OUT_DATA_BYTES: u64 = 1 << 20;
const LAID_OUT_IDENTITY_BYTES: u64 = 256 << 10;

impl Segment {
    /// Makes a segment and makes it durable, name and all.
    pub fn create(disk: &dyn Disk, dir: &Path, header: &SegmentHeader) -> io::Result<Self> {
        let path = path(dir, header.number);
        if disk.exists(&path)? {
            // A creation that the power cut short: no batch ever went into it.
            disk.remove_file(&path)?;
        }
        let file = disk.open(&path, Mode::CreateNew)?;
        file.allocate(header.len_bytes)?;
        let bytes = header.encode();
        file.write_at(0, &bytes)?;
        file.write_at(header.len_bytes - BLOCK, &bytes)?;
        file.sync_data()?;
        sync_names(disk, dir)?;
        Ok(Self {
            number: header.number,
            file,
            data_offset: BLOCK,
            identity_end: header.len_bytes - BLOCK,
            unwritten: BLOCK..header.len_bytes - BLOCK,
        })
    }

    /// What is to be filled with zeros before the next batches come; empty while there is enough of it.
    /// A write into space that was reserved and never written makes the file system write down, at the
    /// sync, that it now holds something: twice the time of a sync that has only data to write.
    pub fn lay_out(&mut self) -> Vec<Range<u64>> {
        let start = self.unwritten.start.max(self.data_offset);
        let end = self.unwritten.end.min(self.identity_end);
        let mut zeros = Vec::new();
        self.unwritten = start..end;
        if start < end && start - self.data_offset < LAID_OUT_DATA_BYTES / 4 {
            self.unwritten.start = end.min(start + LAID_OUT_DATA_BYTES);
            zeros.push(start..self.unwritten.start);
        }
        let start = self.unwritten.start;
        if start < end && self.identity_end - end < LAID_OUT_IDENTITY_BYTES / 4 {
            self.unwritten.end = start.max(end.saturating_sub(LAID_OUT_IDENTITY_BYTES));
            zeros.push(self.unwritten.end..end);
        }
        debug_assert!(zeros.iter().all(|zeros| {
            zeros.start >= self.data_offset && zeros.end <= self.identity_end && !zeros.is_empty()
        }));
        zeros
    }

    /// Bytes left for both frames.
    pub fn free_bytes(&self) -> u64 {
        self.identity_end - self.data_offset
    }
}

/// A segment's file.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(name(number))
}

/// A segment's name.
pub(super) fn name(number: u64) -> String {
    format!("{number:08}.wal")
}

/// The number in a segment's name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    (digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Times a block that cannot be read is tried, before its bytes count as lost.
const READS_MAX: u32 = 3;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A whole segment, read from the device.
pub(super) fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Bytes> {
    let file = disk.open(path, Mode::Read)?;
    // After an unclean stop the page cache may hold what never became durable.
    file.drop_cached()?;
    let len = file.len_bytes()? as usize;
    Ok(read_range(&file, 0, len).into())
}

/// A part of a segment. Blocks that cannot be read, or are beyond the file's end, are zeros: their
/// checksums will not match.
pub(super) fn read_range(file: &SharedFile, from: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (piece, bytes) in bytes.chunks_mut(PIECE).enumerate() {
        let at = from + (piece * PIECE) as u64;
        if file.read_at(at, bytes).is_ok() {
            continue;
        }
        for (block, bytes) in bytes.chunks_mut(BLOCK as usize).enumerate() {
            let at = at + block as u64 * BLOCK;
            if !(0..READS_MAX).any(|_| file.read_at(at, bytes).is_ok()) {
                bytes.fill(0);
            }
        }
    }
    bytes
}
