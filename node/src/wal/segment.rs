//! One segment file: its header, and where the next batch goes.
//!
//! ```text
//! segment header, 128 bytes, at the start of the first and of the last block
//!   0  8  magic "RKVWALSG"
//!   8  4  format number (1)
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
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::format::BLOCK;
use super::{Identity, WalError};
use crate::disk::{Disk, Mode, SharedFile, sync_names};

const MAGIC: &[u8; 8] = b"RKVWALSG";
pub(super) const FORMAT: u32 = 1;
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

    /// Reads either copy; `None` when both are bad.
    ///
    /// # Errors
    /// A newer format, or another node's segment.
    pub fn read(path: &Path, bytes: &[u8], expected: Identity) -> Result<Option<Self>, WalError> {
        let last = bytes.len().saturating_sub(BLOCK as usize);
        for copy in [bytes, &bytes[last..]] {
            match Self::decode(copy) {
                Ok(Some(header)) if header.identity != expected => {
                    return Err(WalError::Foreign {
                        path: path.to_owned(),
                        expected: expected.node_id,
                    });
                }
                Ok(Some(header)) => return Ok(Some(header)),
                Ok(None) => {}
                Err(found) => {
                    return Err(WalError::NewerFormat {
                        path: path.to_owned(),
                        found,
                        supported: FORMAT,
                    });
                }
            }
        }
        Ok(None)
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
}

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
        })
    }

    /// Bytes left for both frames.
    pub fn free_bytes(&self) -> u64 {
        self.identity_end - self.data_offset
    }
}

/// A segment's file.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.wal"))
}

/// The number in a segment's name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    (digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A whole segment, read from the device.
pub(super) fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Bytes> {
    let file = disk.open(path, Mode::Read)?;
    // After an unclean stop the page cache may hold what never became durable.
    file.drop_cached()?;
    let mut bytes = vec![0; file.len_bytes()? as usize];
    let mut done = 0;
    while done < bytes.len() {
        let end = (done + (1 << 20)).min(bytes.len());
        match file.read_at(done as u64, &mut bytes[done..end]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(_) => {
                // Blocks that cannot be read are zeros: their checksums will not match.
                done = read_blocks(&file, &mut bytes, done, end);
            }
        }
    }
    Ok(bytes.into())
}

fn read_blocks(file: &SharedFile, bytes: &mut [u8], from: usize, to: usize) -> usize {
    for start in (from..to).step_by(BLOCK as usize) {
        let end = (start + BLOCK as usize).min(to);
        if file.read_at(start as u64, &mut bytes[start..end]).is_err() {
            bytes[start..end].fill(0);
        }
    }
    to
}
