//! Between openraft's types and our own on the wire and on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::StoredMembership;
use prost::Message;
use reelkv_proto::v1;

use super::types::{PeerNode, RaftEntry, RaftLogId, RaftMembership, RaftVote, TypeConfig};
use crate::shard::{Command, LogId};
use crate::wal::{EntryKind, Vote, WalEntry};

pub(crate) type RaftStoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;

pub(crate) fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// A membership as it is stored and sent.
pub fn encode_membership(membership: &RaftMembership) -> v1::Membership {
    let configs = membership
        .get_joint_config()
        .iter()
        .map(|voters| v1::membership::ReplicaIds {
            replica_ids: voters.iter().copied().collect(),
        });
    let members = membership.nodes().map(|(replica_id, node)| v1::Member {
        replica_id: *replica_id,
        node_id: node.node_id,
        addr: node.addr.clone(),
    });
    v1::Membership {
        configs: configs.collect(),
        members: members.collect(),
    }
}

/// Reads what [`encode_membership`] wrote.
///
/// # Errors
/// Fails on a membership no leader wrote: a voter without an address, an empty set.
pub fn decode_membership(membership: &v1::Membership) -> io::Result<RaftMembership> {
    let configs: Vec<BTreeSet<u64>> = membership
        .configs
        .iter()
        .map(|config| config.replica_ids.iter().copied().collect())
        .collect();
    let nodes: BTreeMap<u64, PeerNode> = membership
        .members
        .iter()
        .map(|member| {
            (
                member.replica_id,
                PeerNode {
                    node_id: member.node_id,
                    addr: member.addr.clone(),
                },
            )
        })
        .collect();
    RaftMembership::new(configs, nodes).map_err(invalid)
}

pub(crate) fn decode_stored_membership(stored: &v1::StoredMembership) -> io::Result<RaftStoredMembership> {
    match &stored.membership {
        Some(membership) => {
            let log_id = stored.log_id.map(|id| LogId::from(id).into());
            Ok(StoredMembership::new(log_id, decode_membership(membership)?))
        }
        None => Ok(StoredMembership::default()),
    }
}

pub(crate) fn encode_stored_membership(stored: &RaftStoredMembership) -> v1::StoredMembership {
    v1::StoredMembership {
        log_id: stored.log_id().map(|id| LogId::from(id).into()),
        membership: Some(encode_membership(stored.membership())),
    }
}

pub(crate) fn vote_to_wal(vote: &RaftVote) -> Vote {
    Vote {
        term: vote.leader_id.term,
        voted_for: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(crate) fn vote_from_wal(vote: Vote) -> RaftVote {
    match vote.committed {
        true => RaftVote::new_committed(vote.term, vote.voted_for),
        false => RaftVote::new(vote.term, vote.voted_for),
    }
}

pub(crate) fn vote_to_wire(vote: &RaftVote) -> v1::Vote {
    v1::Vote {
        term: vote.leader_id.term,
        voted_for: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

pub(crate) fn vote_from_wire(vote: Option<v1::Vote>) -> io::Result<RaftVote> {
    let vote = vote.ok_or_else(|| invalid("a message without a vote"))?;
    Ok(vote_from_wal(Vote {
        term: vote.term,
        voted_for: vote.voted_for,
        committed: vote.committed,
    }))
}

pub(crate) fn id_to_wire(id: Option<RaftLogId>) -> Option<v1::LogId> {
    id.map(|id| LogId::from(id).into())
}

pub(crate) fn id_from_wire(id: Option<v1::LogId>) -> Option<RaftLogId> {
    id.map(|id| LogId::from(id).into())
}

/// An entry as it is stored: payload bytes beside the identity that the WAL keeps itself.
pub(crate) fn entry_to_wal(entry: &RaftEntry) -> WalEntry {
    let (kind, payload) = match &entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(command) => (EntryKind::Normal, command.encoded().clone()),
        EntryPayload::Membership(membership) => (
            EntryKind::Membership,
            encode_membership(membership).encode_to_vec().into(),
        ),
    };
    WalEntry {
        log_id: entry.log_id.into(),
        kind,
        payload,
    }
}

pub(crate) fn entry_from_wal(entry: WalEntry) -> io::Result<RaftEntry> {
    let payload = match entry.kind {
        EntryKind::Blank => EntryPayload::Blank,
        EntryKind::Normal => EntryPayload::Normal(Command::decode(entry.payload).map_err(invalid)?),
        EntryKind::Membership => {
            let membership = v1::Membership::decode(entry.payload).map_err(invalid)?;
            EntryPayload::Membership(decode_membership(&membership)?)
        }
    };
    Ok(RaftEntry {
        log_id: entry.log_id.into(),
        payload,
    })
}

/// An entry as it is sent.
pub fn entry_to_wire(entry: &RaftEntry) -> v1::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => v1::entry::Payload::Blank(v1::Blank {}),
        EntryPayload::Normal(command) => v1::entry::Payload::Normal(command.encoded().clone()),
        EntryPayload::Membership(membership) => v1::entry::Payload::Membership(encode_membership(membership)),
    };
    v1::Entry {
        log_id: Some(LogId::from(entry.log_id).into()),
        payload: Some(payload),
    }
}

/// Reads what [`entry_to_wire`] wrote.
///
/// # Errors
/// Fails on an entry no node of a known release sent.
pub fn entry_from_wire(entry: v1::Entry) -> io::Result<RaftEntry> {
    let log_id: LogId = entry
        .log_id
        .ok_or_else(|| invalid("an entry without a log id"))?
        .into();
    let payload = match entry
        .payload
        .ok_or_else(|| invalid("an entry without a payload"))?
    {
        v1::entry::Payload::Blank(_) => EntryPayload::Blank,
        v1::entry::Payload::Normal(body) => EntryPayload::Normal(Command::decode(body).map_err(invalid)?),
        v1::entry::Payload::Membership(membership) => {
            EntryPayload::Membership(decode_membership(&membership)?)
        }
    };
    Ok(RaftEntry {
        log_id: log_id.into(),
        payload,
    })
}
