//! The words damage is told in. Callers choose from these and cannot invent others, so that what an
//! operator filters by means the same wherever it was found.

use reelkv_proto::types::{ReplicaId, ShardId};

/// Longest position kept, in bytes.
const POSITION_BYTES_MAX: usize = 512;

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $word:ident => $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$meaning])* $word,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$word,)*];

            /// The word, as it is told and kept.
            pub fn word(self) -> &'static str {
                match self { $(Self::$word => $text,)* }
            }
        }
    };
}

words! {
    /// What is damaged.
    Structure {
        /// The node's log, or one replica's part of it.
        Wal => "wal",
        /// Which segments the log has.
        Manifest => "manifest",
        /// A replica's tree.
        Tree => "tree",
        /// Records of a tree.
        Record => "record",
        /// What a replica's records come to, compared with the other voters'.
        Digest => "digest",
        /// Records that another replica sent.
        Transfer => "transfer",
        /// Who the node is.
        Identity => "identity",
        /// The node's copy of the map.
        Directory => "directory",
        /// What the node remembers of the other nodes' logs.
        Watermarks => "watermarks",
        /// The ledger of damage itself.
        Events => "events",
        /// A shard that was made to serve from a minority of its voters.
        Quorum => "quorum",
    }
}

words! {
    /// What is wrong with it.
    Kind {
        /// Bytes are there and are not what was written.
        Checksum => "checksum",
        /// It is not there.
        Missing => "missing",
        /// Its end is not there.
        Truncated => "truncated",
        /// The disk does not give it out.
        Unreadable => "unreadable",
        /// The disk does not take it.
        Unwritable => "unwritable",
        /// It is whole, and older than what was there.
        Outdated => "outdated",
        /// It belongs to another node or cluster, or is of another kind.
        Foreign => "foreign",
        /// It is whole, and not what the others hold.
        Differs => "differs",
        /// A majority of it is lost for good.
        Lost => "lost",
    }
}

words! {
    /// What the node does about it.
    Action {
        /// Bring back what was lost from another copy, here or elsewhere, in its place.
        Heal => "heal",
        /// Bring back the records concerned from another replica.
        Repair => "repair",
        /// Fill a new tree from another replica.
        Refill => "refill",
        /// End the replica; another takes its place under a new id.
        ReplaceReplica => "replace replica",
        /// Set the data aside and join under a new number.
        Rejoin => "rejoin as a new node",
        /// Keep the bad file under another name, and go on with what is whole.
        SetAside => "set aside",
        /// Take nothing from the sender until the voters were compared.
        Compare => "compare",
        /// Learn it again from the other nodes.
        Relearn => "relearn",
        /// Try again later.
        Retry => "retry",
        /// Somebody must decide: see the fault model.
        Decide => "operator decides",
        /// An operator had a minority serve: `shard recover --unsafe`.
        Recover => "recover",
        /// Nothing.
        None => "none",
    }
}

/// Something on a disk was not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// 0 when the whole node is concerned.
    pub shard_id: ShardId,
    /// 0 when no one replica is concerned.
    pub replica_id: ReplicaId,
    /// What is damaged.
    pub structure: Structure,
    /// What is wrong with it.
    pub kind: Kind,
    /// What the node does about it.
    pub action: Action,
    /// File, offset, entry or key, as exact as is known; bounded.
    pub position: String,
}

impl Damage {
    /// Damage that concerns the whole node.
    pub fn of_node(structure: Structure, kind: Kind, action: Action, position: impl Into<String>) -> Self {
        Self::of_replica((0, 0), structure, kind, action, position)
    }

    /// Damage that concerns one replica: shard and replica id.
    pub fn of_replica(
        (shard_id, replica_id): (ShardId, ReplicaId),
        structure: Structure,
        kind: Kind,
        action: Action,
        position: impl Into<String>,
    ) -> Self {
        Self {
            shard_id,
            replica_id,
            structure,
            kind,
            action,
            position: bounded(position.into()),
        }
    }
}

/// The beginning of what is too long.
pub(super) fn bounded(mut position: String) -> String {
    if position.len() > POSITION_BYTES_MAX {
        let is_end = |at: &usize| position.is_char_boundary(*at);
        let end = (0..=POSITION_BYTES_MAX).rev().find(is_end).unwrap_or(0);
        position.truncate(end);
        position.push('…');
    }
    position
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_word_has_one_meaning() {
        let distinct = |words: Vec<&'static str>| {
            let set: BTreeSet<_> = words.iter().copied().collect();
            assert_eq!(set.len(), words.len(), "{words:?}");
        };
        distinct(Structure::ALL.iter().map(|word| word.word()).collect());
        distinct(Kind::ALL.iter().map(|word| word.word()).collect());
        distinct(Action::ALL.iter().map(|word| word.word()).collect());
    }

    #[test]
    fn a_long_position_is_cut_between_two_characters() {
        let long = "é".repeat(POSITION_BYTES_MAX);
        let damage = Damage::of_node(Structure::Wal, Kind::Missing, Action::None, long);
        assert!(damage.position.ends_with("é…"), "{}", damage.position);
        assert!(damage.position.len() <= POSITION_BYTES_MAX + '…'.len_utf8());
        assert_eq!(bounded("short".to_owned()), "short");
    }
}
