//! Checkpoint marks, which the WAL keeps.
//!
//! Little-endian; the last four bytes are the CRC-32 of everything before them.
//!
//! ```text
//! mark:     u8 format 2, u8 engine, u16 zero, u64 shard, u64 replica, u64 generation,
//!           u64 applied term, u64 applied index, u64 last version, u64 version id,
//!           u32 files,    each { name, u64 length, u128 xxh3 },
//!           u32 contents, each { name, u32 length, bytes },
//!           u32 tables,   each { name, first, u8 has last, last, u8 stretches' blocks log2,
//!                                u32 stretches, each { u32 length, u32 sum } },
//!           u32 CRC
//! name, first, last:  u16 length, bytes
//! ```
//!
//! Format 1, written by earlier releases, ends after the files. It is read; a damaged tree with such a mark is
//! refilled whole.

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

use super::record::read_u32;
use super::table_note::{TableNote, get_table, put_table};
use super::{EngineKind, TreeError, TreeId};
use crate::shard::LogId;

const FORMAT: u8 = 2;
const FORMAT_OF_FILES_ALONE: u8 = 1;
const CRC_BYTES: usize = 4;
/// Files whose bytes a mark holds, together; when they are larger it holds none.
pub(crate) const CONTENTS_BYTES_MAX: usize = 64 << 10;

/// One file of a tree and what it must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSum {
    /// Path inside the tree's folder.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// xxh3-128 of all its bytes.
    pub xxh3_128: u128,
}

/// A file of a tree, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContents {
    /// Path inside the tree's folder.
    pub name: String,
    /// All its bytes.
    pub bytes: Bytes,
}

/// A checkpoint of a tree, to be recorded in the WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The tree it is of.
    pub tree: TreeId,
    /// The engine that wrote the tree.
    pub engine: EngineKind,
    /// The last log entry the tree holds durably. The WAL may be purged up to it once the mark is recorded.
    pub applied: LogId,
    /// The highest version given out up to that entry.
    pub last_version: u64,
    /// The engine's own number of this state of its files; rises with every checkpoint and compaction.
    pub version_id: u64,
    /// Every file of that state.
    pub files: Vec<FileSum>,
    /// The small files of that state, to be put back if they are damaged; none if they are not small.
    pub contents: Vec<FileContents>,
    /// What is known of its tables; a table may be missing here.
    pub tables: Vec<TableNote>,
}

impl Mark {
    /// The mark as bytes that prove themselves.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u8(self.engine as u8);
        out.put_u16_le(0);
        put_tree(&mut out, self.tree);
        put_position(&mut out, self.applied, self.last_version);
        out.put_u64_le(self.version_id);
        out.put_u32_le(self.files.len() as u32);
        for file in &self.files {
            put_short(&mut out, file.name.as_bytes());
            out.put_u64_le(file.len);
            out.put_u128_le(file.xxh3_128);
        }
        out.put_u32_le(self.contents.len() as u32);
        for file in &self.contents {
            put_short(&mut out, file.name.as_bytes());
            out.put_u32_le(file.bytes.len() as u32);
            out.put_slice(&file.bytes);
        }
        out.put_u32_le(self.tables.len() as u32);
        for table in &self.tables {
            put_table(&mut out, table);
        }
        seal_crc(out)
    }

    /// Reads a mark.
    ///
    /// # Errors
    /// `Damaged` when a byte differs from what was written, `Unsupported` when a later release wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self, TreeError> {
        let mut body = open_crc("checkpoint mark", bytes)?;
        Self::decode_body(&mut body).map_err(|_| TreeError::damaged("checkpoint mark", "ends early"))?
    }

    fn decode_body(body: &mut &[u8]) -> Result<Result<Self, TreeError>, TryGetError> {
        let format = body.try_get_u8()?;
        let engine = body.try_get_u8()?;
        let (FORMAT_OF_FILES_ALONE..=FORMAT, Some(engine)) = (format, EngineKind::from_number(engine)) else {
            let what = format!("checkpoint mark format {format} engine {engine}");
            return Ok(Err(TreeError::Unsupported { what }));
        };
        body.try_get_u16_le()?;
        let tree = get_tree(body)?;
        let (applied, last_version) = get_position(body)?;
        let version_id = body.try_get_u64_le()?;
        let mut mark = Self {
            tree,
            engine,
            applied,
            last_version,
            version_id,
            files: Vec::new(),
            contents: Vec::new(),
            tables: Vec::new(),
        };
        for _ in 0..body.try_get_u32_le()? {
            mark.files.push(FileSum {
                name: get_name(body)?,
                len: body.try_get_u64_le()?,
                xxh3_128: body.try_get_u128_le()?,
            });
        }
        if format == FORMAT_OF_FILES_ALONE {
            return Ok(Ok(mark));
        }
        for _ in 0..body.try_get_u32_le()? {
            let name = get_name(body)?;
            let len = body.try_get_u32_le()? as usize;
            let bytes = get_bytes(body, len)?;
            mark.contents.push(FileContents { name, bytes });
        }
        for _ in 0..body.try_get_u32_le()? {
            let table = get_table(body)?;
            if !table.stretches.is_plausible() {
                return Ok(Err(TreeError::damaged(
                    "checkpoint mark",
                    "stretches of no table",
                )));
            }
            mark.tables.push(table);
        }
        Ok(Ok(mark))
    }

    /// What is known of a table.
    pub(crate) fn note(&self, name: &str) -> Option<&TableNote> {
        self.tables.iter().find(|table| table.name == name)
    }
}

pub(super) fn put_short(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16_le(bytes.len() as u16);
    out.put_slice(bytes);
}

fn get_bytes(body: &mut &[u8], len: usize) -> Result<Bytes, TryGetError> {
    let available = body.len();
    match body.split_at_checked(len) {
        Some((bytes, rest)) => {
            *body = rest;
            Ok(Bytes::copy_from_slice(bytes))
        }
        None => Err(TryGetError {
            requested: len,
            available,
        }),
    }
}

pub(super) fn get_short(body: &mut &[u8]) -> Result<Bytes, TryGetError> {
    let len = body.try_get_u16_le()?.into();
    get_bytes(body, len)
}

pub(super) fn get_name(body: &mut &[u8]) -> Result<String, TryGetError> {
    Ok(String::from_utf8_lossy(&get_short(body)?).into_owned())
}

pub(super) fn put_tree(out: &mut BytesMut, tree: TreeId) {
    out.put_u64_le(tree.shard_id);
    out.put_u64_le(tree.replica_id);
    out.put_u64_le(tree.generation);
}

pub(super) fn get_tree(body: &mut &[u8]) -> Result<TreeId, bytes::TryGetError> {
    Ok(TreeId {
        shard_id: body.try_get_u64_le()?,
        replica_id: body.try_get_u64_le()?,
        generation: body.try_get_u64_le()?,
    })
}

pub(super) fn put_position(out: &mut BytesMut, applied: LogId, last_version: u64) {
    out.put_u64_le(applied.term);
    out.put_u64_le(applied.index);
    out.put_u64_le(last_version);
}

pub(super) fn get_position(body: &mut &[u8]) -> Result<(LogId, u64), bytes::TryGetError> {
    let applied = LogId::new(body.try_get_u64_le()?, body.try_get_u64_le()?);
    Ok((applied, body.try_get_u64_le()?))
}

pub(super) fn seal_crc(mut out: BytesMut) -> Bytes {
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out.freeze()
}

pub(super) fn open_crc<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a [u8], TreeError> {
    if bytes.len() < CRC_BYTES {
        return Err(TreeError::damaged(what, "too short"));
    }
    let (body, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
    if crc32fast::hash(body) != read_u32(crc, 0) {
        return Err(TreeError::damaged(what, "checksum mismatch"));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Stretch, Stretches};

    const TREE: TreeId = TreeId {
        shard_id: 12,
        replica_id: 3,
        generation: 1,
    };

    fn stretches(count: u32) -> Stretches {
        let list = (1..=count).map(|sum| Stretch { bytes: 4_096, sum });
        Stretches::of_blocks(list.collect())
    }

    fn mark() -> Mark {
        let file = |name: &str, len| FileSum {
            name: name.into(),
            len,
            xxh3_128: u128::MAX - u128::from(len),
        };
        Mark {
            tree: TREE,
            engine: EngineKind::Lsm,
            applied: LogId::new(7, 1_000),
            last_version: 5_000,
            version_id: 9,
            files: vec![file("current", 25), file("v9", 400), file("tables/3", 70_000)],
            contents: vec![FileContents {
                name: "current".into(),
                bytes: Bytes::from_static(b"a pointer"),
            }],
            tables: vec![
                TableNote::new("tables/3".into(), b"a", b"z", stretches(17)),
                TableNote {
                    last: None,
                    ..TableNote::new("tables/4".into(), b"", b"", stretches(1))
                },
            ],
        }
    }

    #[test]
    fn marks_come_back_and_every_flipped_bit_is_refused() {
        let bytes = mark().encode();
        assert_eq!(Mark::decode(&bytes), Ok(mark()));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Mark::decode(&flipped).is_err(), "bit {bit} went unnoticed");
        }
        for len in 0..bytes.len() {
            assert!(Mark::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    /// Byte for byte what releases before format 2 wrote.
    #[test]
    fn the_first_format_is_still_read() {
        let expected = Mark {
            contents: Vec::new(),
            tables: Vec::new(),
            ..mark()
        };
        let mut old = BytesMut::from(&b"\x01\x01\0\0"[..]);
        for number in [12_u64, 3, 1, 7, 1_000, 5_000, 9] {
            old.put_u64_le(number);
        }
        old.put_u32_le(3);
        for file in &expected.files {
            old.put_u16_le(file.name.len() as u16);
            old.put_slice(file.name.as_bytes());
            old.put_u64_le(file.len);
            old.put_u128_le(file.xxh3_128);
        }
        assert_eq!(Mark::decode(&seal_crc(old)), Ok(expected));
    }
}
