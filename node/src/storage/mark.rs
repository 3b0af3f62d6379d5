//! Checkpoint marks, which the WAL keeps, and control rows, which the tree keeps.
//!
//! Both are little-endian, begin with their own format number and end with the CRC-32 of
//! everything before it. Of the same tree they must agree; see [`super`].
//!
//! ```text
//! mark:     u8 format 1, u8 engine, u16 zero, u64 shard, u64 replica, u64 generation,
//!           u64 applied term, u64 applied index, u64 last version, u64 version id,
//!           u32 files, each { u16 name length, name, u64 length, u128 xxh3 }, u32 CRC
//! control:  u8 format 1, u8[3] zero, u64 shard, u64 replica, u64 generation,
//!           u64 applied term, u64 applied index, u64 last version, u32 length, control, u32 CRC
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::record::read_u32;
use super::{EngineKind, TreeError, TreeId};
use crate::shard::LogId;

const FORMAT: u8 = 1;
const CRC_BYTES: usize = 4;

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
            out.put_u16_le(file.name.len() as u16);
            out.put_slice(file.name.as_bytes());
            out.put_u64_le(file.len);
            out.put_u128_le(file.xxh3_128);
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

    fn decode_body(body: &mut &[u8]) -> Result<Result<Self, TreeError>, bytes::TryGetError> {
        let format = body.try_get_u8()?;
        let engine = body.try_get_u8()?;
        let (1, Some(engine)) = (format, EngineKind::from_number(engine)) else {
            let what = format!("checkpoint mark format {format} engine {engine}");
            return Ok(Err(TreeError::Unsupported { what }));
        };
        body.try_get_u16_le()?;
        let tree = get_tree(body)?;
        let (applied, last_version) = get_position(body)?;
        let version_id = body.try_get_u64_le()?;
        let count = body.try_get_u32_le()?;
        let mut files = Vec::new();
        for _ in 0..count {
            let name_len = body.try_get_u16_le()? as usize;
            if body.len() < name_len {
                return Ok(Err(TreeError::damaged("checkpoint mark", "a name ends early")));
            }
            let name = String::from_utf8_lossy(&body[..name_len]).into_owned();
            body.advance(name_len);
            files.push(FileSum {
                name,
                len: body.try_get_u64_le()?,
                xxh3_128: body.try_get_u128_le()?,
            });
        }
        Ok(Ok(Self {
            tree,
            engine,
            applied,
            last_version,
            version_id,
            files,
        }))
    }
}

/// What a tree says about itself: whose it is, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlRow {
    pub tree: TreeId,
    pub applied: LogId,
    pub last_version: u64,
    pub control: Bytes,
}

impl ControlRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.control.len());
        out.put_u8(FORMAT);
        out.put_bytes(0, 3);
        put_tree(&mut out, self.tree);
        put_position(&mut out, self.applied, self.last_version);
        out.put_u32_le(self.control.len() as u32);
        out.put_slice(&self.control);
        seal_crc(out)
    }

    /// Reads the control row of `tree`; that of any other tree is damage.
    pub(crate) fn decode(tree: TreeId, bytes: &[u8]) -> Result<Self, TreeError> {
        let mut body = open_crc("control row", bytes)?;
        let row =
            Self::decode_body(&mut body).map_err(|_| TreeError::damaged("control row", "ends early"))??;
        if row.tree != tree {
            return Err(TreeError::damaged(
                "control row",
                format!("is that of tree {}", row.tree),
            ));
        }
        Ok(row)
    }

    fn decode_body(body: &mut &[u8]) -> Result<Result<Self, TreeError>, bytes::TryGetError> {
        let format = body.try_get_u8()?;
        if format != FORMAT {
            let what = format!("control row format {format}");
            return Ok(Err(TreeError::Unsupported { what }));
        }
        body.try_get_uint_le(3)?;
        let tree = get_tree(body)?;
        let (applied, last_version) = get_position(body)?;
        let len = body.try_get_u32_le()? as usize;
        if body.len() != len {
            return Ok(Err(TreeError::damaged("control row", "length does not add up")));
        }
        Ok(Ok(Self {
            tree,
            applied,
            last_version,
            control: Bytes::copy_from_slice(body),
        }))
    }
}

fn put_tree(out: &mut BytesMut, tree: TreeId) {
    out.put_u64_le(tree.shard_id);
    out.put_u64_le(tree.replica_id);
    out.put_u64_le(tree.generation);
}

fn get_tree(body: &mut &[u8]) -> Result<TreeId, bytes::TryGetError> {
    Ok(TreeId {
        shard_id: body.try_get_u64_le()?,
        replica_id: body.try_get_u64_le()?,
        generation: body.try_get_u64_le()?,
    })
}

fn put_position(out: &mut BytesMut, applied: LogId, last_version: u64) {
    out.put_u64_le(applied.term);
    out.put_u64_le(applied.index);
    out.put_u64_le(last_version);
}

fn get_position(body: &mut &[u8]) -> Result<(LogId, u64), bytes::TryGetError> {
    let applied = LogId::new(body.try_get_u64_le()?, body.try_get_u64_le()?);
    Ok((applied, body.try_get_u64_le()?))
}

fn seal_crc(mut out: BytesMut) -> Bytes {
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out.freeze()
}

fn open_crc<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a [u8], TreeError> {
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

    const TREE: TreeId = TreeId {
        shard_id: 12,
        replica_id: 3,
        generation: 1,
    };

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
    }

    #[test]
    fn control_rows_come_back_for_their_own_tree_only() {
        let row = ControlRow {
            tree: TREE,
            applied: LogId::new(1, 2),
            last_version: 3,
            control: Bytes::from_static(b"members"),
        };
        assert_eq!(ControlRow::decode(TREE, &row.encode()), Ok(row.clone()));
        let other = TreeId {
            generation: 2,
            ..TREE
        };
        assert!(ControlRow::decode(other, &row.encode()).is_err());
    }
}
