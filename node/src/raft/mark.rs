//! What the WAL remembers of a replica's tree.
//!
//! The WAL keeps a replica's latest mark twice, opaque to it. A mark is an encoded
//! `MarkRecord`, protected by the WAL's CRCs:
//!
//! ```text
//! 1 control    ControlState   the applied state without tokens: id, range, versions, membership
//! 2 tree       bytes          storage's own mark: tree, version id, files and their checksums; empty if there is none
//! 3 generation u64            generation of the tree's folder; the next tree takes a larger one
//! 4 unproven   KeySpan        repeated: keys about which the tree proves nothing
//! 5 uncompared KeySpan        repeated: keys that came from another replica and were not compared since
//! ```
//!
//! A mark without a tree says that the replica has none it trusts: it keeps its log and its
//! vote, applies control state only, and is refilled from a peer.

use bytes::Bytes;
use prost::Message;
use reelkv_proto::types::KeyRange;
use reelkv_proto::v1;

use crate::shard::Spans;
use crate::storage::Mark;

#[derive(Clone, PartialEq, Message)]
struct MarkRecord {
    #[prost(message, optional, tag = "1")]
    control: Option<v1::ControlState>,
    #[prost(bytes = "bytes", tag = "2")]
    tree: Bytes,
    #[prost(uint64, tag = "3")]
    generation: u64,
    #[prost(message, repeated, tag = "4")]
    unproven: Vec<v1::KeySpan>,
    #[prost(message, repeated, tag = "5")]
    uncompared: Vec<v1::KeySpan>,
}

/// What of a tree is not believed, or not by others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// Keys about which the tree proves nothing.
    pub unproven: Spans,
    /// Keys that came from another replica and that the voters have not compared since. They are served,
    /// as every record was verified; but they are no second opinion on what they came from.
    pub uncompared: Spans,
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
    /// What of the tree is not believed.
    pub doubts: Doubts,
}

impl ReplicaMark {
    /// As the WAL keeps it.
    pub fn encode(&self) -> Bytes {
        let tree = self.tree.as_ref().map(Mark::encode).unwrap_or_default();
        let record = MarkRecord {
            control: Some(self.control.clone()),
            tree,
            generation: self.generation,
            unproven: spans_to_wire(&self.doubts.unproven),
            uncompared: spans_to_wire(&self.doubts.uncompared),
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
            doubts: Doubts {
                unproven: spans_from_wire(record.unproven),
                uncompared: spans_from_wire(record.uncompared),
            },
        })
    }
}

/// Spans as they travel and are stored.
pub fn spans_to_wire(spans: &Spans) -> Vec<v1::KeySpan> {
    let wire = spans.iter().map(|range| v1::KeySpan {
        start_key: range.start,
        end_key: range.end,
    });
    wire.collect()
}

/// Reads what [`spans_to_wire`] made.
pub fn spans_from_wire(spans: Vec<v1::KeySpan>) -> Spans {
    let ranges = spans
        .into_iter()
        .map(|span| KeyRange::new(span.start_key, span.end_key));
    ranges.collect()
}
