//! Control rows: what a tree says about itself. Of the same tree, it and the mark must agree; see [`super`].
//!
//! Little-endian; the last four bytes are the CRC-32 of everything before them.
//!
//! ```text
//! control:  u8 format 1, u8[3] zero, u64 shard, u64 replica, u64 generation,
//!           u64 applied term, u64 applied index, u64 last version, u32 length, control, u32 CRC
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::mark::{get_position, get_tree, open_crc, put_position, put_tree, seal_crc};
use super::{TreeError, TreeId};
use crate::shard::LogId;

const FORMAT: u8 = 1;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_rows_come_back_for_their_own_tree_only() {
        let tree = TreeId {
            shard_id: 12,
            replica_id: 3,
            generation: 1,
        };
        let row = ControlRow {
            tree,
            applied: LogId::new(1, 2),
            last_version: 3,
            control: Bytes::from_static(b"members"),
        };
        assert_eq!(ControlRow::decode(tree, &row.encode()), Ok(row.clone()));
        let other = TreeId {
            generation: 2,
            ..tree
        };
        assert!(ControlRow::decode(other, &row.encode()).is_err());
    }
}
