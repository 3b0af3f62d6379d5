//! The entries that make a replica its shard's only voter. Pure.
//!
//! The lost voters may have acknowledged effects that this replica does not have. Their versions,
//! the incarnations named by them and the replica ids given out there must not come to mean
//! something else: a condition on such a version, a token or a message of such a replica would be
//! taken for another's. So versions and ids are skipped, by effects that do nothing else.

use bytes::Bytes;
use prost::Message;
use reelkv_proto::v1::{self, effect};

use crate::shard::{Control, LogId};
use crate::wal::{EntryKind, WalEntry};

/// Versions skipped: more than the lost voters may have been ahead, as a rule. Each is an effect in memory while the
/// entry it is in is applied, some 90 bytes.
pub(super) const SKIPPED_VERSIONS: u64 = 1 << 18;
/// Replica ids among them.
const SKIPPED_REPLICA_IDS: u64 = 1 << 10;
/// Effects per entry, so that none is large in memory.
const EFFECTS_PER_ENTRY: u64 = 1 << 16;

/// A membership of one, and the skips, all of one term, after `last`.
///
/// `control` is the state once everything up to `last` is applied: entries evaluated on another one
/// would not be performed.
pub(super) fn only_voter(
    control: &Control,
    last: Option<LogId>,
    term: u64,
    member: v1::Member,
) -> Vec<WalEntry> {
    let first_index = last.map_or(0, |last| last.index + 1);
    let membership = v1::Membership {
        configs: vec![v1::membership::ReplicaIds {
            replica_ids: vec![member.replica_id],
        }],
        members: vec![member],
    };
    let mut payloads = vec![(EntryKind::Membership, Bytes::from(membership.encode_to_vec()))];
    for begun in (0..SKIPPED_VERSIONS).step_by(EFFECTS_PER_ENTRY as usize) {
        let effects = begun..(begun + EFFECTS_PER_ENTRY).min(SKIPPED_VERSIONS);
        let body = v1::EntryBody {
            first_version: control.next_version() + begun,
            range_version: control.range_version(),
            term,
            logged_time_ms: control.logged_time_ms(),
            effects: effects.map(skip).collect(),
            executions: Vec::new(),
        };
        payloads.push((EntryKind::Normal, body.encode_to_vec().into()));
    }
    let entry = |(position, (kind, payload))| WalEntry {
        log_id: LogId::new(term, first_index + position as u64),
        kind,
        payload,
    };
    payloads.into_iter().enumerate().map(entry).collect()
}

fn skip(position: u64) -> v1::Effect {
    let kind = match position < SKIPPED_REPLICA_IDS {
        true => effect::Kind::AllocateReplicaId(v1::AllocateReplicaIdEffect {}),
        false => effect::Kind::Tick(v1::TickEffect {}),
    };
    v1::Effect { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ENTRY_BYTES_MAX;
    use crate::shard::Applied;

    fn control() -> Control {
        let descriptor = v1::ShardDescriptor {
            shard_id: 5,
            replicas: vec![v1::ReplicaDescriptor {
                replica_id: 3,
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut control = Control::new(5, Control::birth_of(&descriptor, 1));
        control.apply_blank(LogId::new(2, 0));
        control
    }

    #[test]
    fn applied_in_order_they_leave_one_voter_and_skip_versions_and_ids() {
        let mut control = control();
        let (version, id) = (control.next_version(), control.next_replica_id());
        let member = v1::Member {
            replica_id: 3,
            node_id: 1,
            addr: "one:1".to_owned(),
        };
        let entries = only_voter(&control, control.applied(), 900, member.clone());
        for entry in &entries {
            assert!(entry.payload.len() < ENTRY_BYTES_MAX);
            match entry.kind {
                EntryKind::Membership => {
                    let membership = v1::Membership::decode(&entry.payload[..]).unwrap();
                    assert_eq!(membership.members, std::slice::from_ref(&member));
                    control.apply_membership(entry.log_id, membership);
                }
                _ => {
                    let body = v1::EntryBody::decode(&entry.payload[..]).unwrap();
                    let applied = control.apply(entry.log_id, &body).unwrap();
                    assert_eq!(applied, Applied::Done(vec![]), "{}", entry.log_id);
                }
            }
        }
        assert_eq!(control.applied(), entries.last().map(|entry| entry.log_id));
        assert_eq!(control.next_version(), version + SKIPPED_VERSIONS);
        assert_eq!(control.next_replica_id(), id + SKIPPED_REPLICA_IDS);
        let voters = control.membership().membership.as_ref().unwrap();
        assert_eq!(voters.configs.len(), 1);
        assert_eq!(voters.configs[0].replica_ids, [3]);
    }

    #[test]
    fn on_any_other_state_the_skips_change_nothing() {
        let mut control = control();
        let entries = only_voter(&control, control.applied(), 900, v1::Member::default());
        let body = v1::EntryBody::decode(&entries[2].payload[..]).unwrap();
        let applied = control.apply(LogId::new(900, 1), &body).unwrap();
        assert_eq!(applied, Applied::NotDone);
    }
}
