//! What the WAL remembers of a replica's tree.
//!
//! The WAL keeps a replica's latest mark twice, opaque to it. A mark is an encoded
//! `MarkRecord`, protected by the WAL's CRCs:
//!
//! ```text
//! 1 control   ControlState   the applied state without tokens: id, range, versions, membership
//! 2 tree      bytes          storage's own mark: tree, version id, files and their checksums; empty if unproven
//! 3 generation u64           generation of the tree's folder; the next tree takes a larger one
//! ```
//!
//! A mark without a tree says that the replica has none it trusts: it keeps its log and its
//! vote, applies control state only, and is refilled from a peer.

use bytes::Bytes;
use prost::Message;
use reelkv_proto::v1;

use crate::storage::Mark;

#[derive(Clone, PartialEq, Message)]
struct MarkRecord {
    #[prost(message, optional, tag = "1")]
    control: Option<v1::ControlState>,
    #[prost(bytes = "bytes", tag = "2")]
    tree: Bytes,
    #[prost(uint64, tag = "3")]
    generation: u64,
}

/// A replica's tree as the WAL has it on record.
#[derive(Clone, Debug)]
pub struct ReplicaMark {
    /// The applied state the record stands for, without tokens.
    pub control: v1::ControlState,
    /// The tree; `None` when the replica has none it trusts.
    pub tree: Option<Mark>,
    /// Generation of the newest tree folder.
    pub generation: u64,
}

impl ReplicaMark {
    /// As the WAL keeps it.
    pub fn encode(&self) -> Bytes {
        let tree = self.tree.as_ref().map(Mark::encode).unwrap_or_default();
        let record = MarkRecord {
            control: Some(self.control.clone()),
            tree,
            generation: self.generation,
        };
        record.encode_to_vec().into()
    }

    /// Reads what [`ReplicaMark::encode`] wrote.
    ///
    /// # Errors
    /// One line on what does not fit.
    pub fn decode(bytes: Bytes) -> Result<Self, String> {
        let record = MarkRecord::decode(bytes).map_err(|error| format!("replica mark: {error}"))?;
        let control = record.control.ok_or("replica mark without control state")?;
        let tree = match record.tree.is_empty() {
            true => None,
            false => Some(Mark::decode(&record.tree).map_err(|error| error.to_string())?),
        };
        Ok(Self {
            control,
            tree,
            generation: record.generation,
        })
    }
}
