//! A shard's replicated state beside its records, and the one rule that decides whether an
//! entry is performed.

use bytes::Bytes;
use reelkv_proto::types::{KeyRange, ReplicaId, ShardId, Version};
use reelkv_proto::v1;
use reelkv_proto::v1::effect::Kind;

use super::{IncarnationId, Incarnations, LogId};
use crate::mutants::Mutant;

/// What an effect does to the records of a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordChange {
    /// Stored key.
    pub key: Bytes,
    /// The effect's number.
    pub version: Version,
    /// `None` deletes.
    pub value: Option<Bytes>,
    /// CRC of the writing client; 0 for a delete.
    pub client_crc: u32,
    /// The entry's logged time.
    pub logged_time_ms: u64,
    /// When it expires, in logged time; 0 when it does not.
    pub expires_at_ms: u64,
}

/// What applying an entry came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// Performed; these records change.
    Done(Vec<RecordChange>),
    /// A precondition did not hold: the entry changed nothing and may be evaluated again.
    NotDone,
}

/// An entry was written by a newer release.
#[derive(Clone, Debug, thiserror::Error)]
#[error("entry {log_id} holds an effect this release does not know; upgrade this node")]
pub struct UnknownEffect {
    /// The entry.
    pub log_id: LogId,
}

/// A shard's replicated control state. Small, in memory, written at checkpoints.
///
/// Invariants, kept by [`Control::apply`]:
/// - `next_version` only rises, by exactly the number of effects of each performed entry;
/// - an entry is performed if and only if it names `next_version`, `range_version` and its own
///   term; the decision is the same on every replica, as it reads nothing but this state;
/// - `logged_time_ms` never falls; `applied` only rises.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    shard_id: ShardId,
    range: KeyRange,
    range_version: u64,
    next_version: Version,
    next_replica_id: ReplicaId,
    logged_time_ms: u64,
    applied: Option<LogId>,
    membership: v1::StoredMembership,
    incarnations: Incarnations,
    birth: v1::ShardBirth,
}

impl Control {
    /// A shard before its first entry.
    pub fn new(shard_id: ShardId, birth: v1::ShardBirth) -> Self {
        Self {
            shard_id,
            range: KeyRange::new(birth.start_key.clone(), birth.end_key.clone()),
            range_version: birth.range_version.max(1),
            next_version: birth.first_version.max(1),
            next_replica_id: birth.next_replica_id,
            logged_time_ms: 0,
            applied: None,
            membership: v1::StoredMembership::default(),
            incarnations: Incarnations::default(),
            birth,
        }
    }

    /// The birth of a new shard.
    pub fn birth_of(descriptor: &v1::ShardDescriptor, first_version: Version) -> v1::ShardBirth {
        let highest = descriptor.replicas.iter().map(|replica| replica.replica_id).max();
        v1::ShardBirth {
            start_key: descriptor.start_key.clone(),
            end_key: descriptor.end_key.clone(),
            range_version: descriptor.epoch.map_or(1, |epoch| epoch.range_version),
            first_version,
            next_replica_id: highest.unwrap_or(0) + 1,
        }
    }

    /// What the shard began as; the same on every replica for all time.
    pub fn birth(&self) -> &v1::ShardBirth {
        &self.birth
    }

    /// Applies a normal entry.
    ///
    /// # Errors
    /// An effect of a kind this release does not know: the replica must halt, as skipping it
    /// would make it differ from the others. Nothing was changed.
    pub fn apply(&mut self, log_id: LogId, body: &v1::EntryBody) -> Result<Applied, UnknownEffect> {
        if body.effects.iter().any(|effect| effect.kind.is_none()) {
            return Err(UnknownEffect { log_id });
        }
        self.advance(log_id);
        if Mutant::NoVersionCheck.is_on() {
            self.next_version = self.next_version.max(body.first_version);
        } else if body.first_version != self.next_version
            || body.range_version != self.range_version
            || body.term != log_id.term
        {
            return Ok(Applied::NotDone);
        }
        self.logged_time_ms = self.logged_time_ms.max(body.logged_time_ms);
        let mut changes = Vec::with_capacity(body.effects.len());
        for effect in &body.effects {
            let version = self.next_version;
            self.next_version += 1;
            changes.extend(self.perform(version, effect));
        }
        for execution in &body.executions {
            self.incarnations.executed(execution, self.logged_time_ms);
        }
        Ok(Applied::Done(changes))
    }

    fn perform(&mut self, version: Version, effect: &v1::Effect) -> Option<RecordChange> {
        let logged_time_ms = self.logged_time_ms;
        match effect.kind.as_ref()? {
            Kind::Put(put) => Some(RecordChange {
                key: put.key.clone(),
                version,
                value: Some(put.value.clone()),
                client_crc: put.client_crc,
                logged_time_ms,
                expires_at_ms: put.expires_at_ms,
            }),
            Kind::Delete(delete) => Some(RecordChange {
                key: delete.key.clone(),
                version,
                value: None,
                client_crc: 0,
                logged_time_ms,
                expires_at_ms: 0,
            }),
            Kind::OpenIncarnation(_) => {
                self.incarnations.open(
                    IncarnationId {
                        shard_id: self.shard_id,
                        version,
                    },
                    logged_time_ms,
                );
                None
            }
            Kind::ExpireIncarnations(expire) => {
                self.incarnations
                    .expire(expire.incarnations.iter().map(|id| (*id).into()));
                None
            }
            Kind::SetRange(range) => {
                self.range = KeyRange::new(range.start_key.clone(), range.end_key.clone());
                self.range_version += 1;
                None
            }
            Kind::AllocateReplicaId(_) => {
                self.next_replica_id += 1;
                None
            }
            // What a marker is for happens beside the records: see `ReplicaStore::apply`.
            Kind::Tick(_) | Kind::Marker(_) => None,
        }
    }

    /// Applies a blank entry.
    pub fn apply_blank(&mut self, log_id: LogId) {
        self.advance(log_id);
    }

    /// Applies a membership entry.
    pub fn apply_membership(&mut self, log_id: LogId, membership: v1::Membership) {
        self.advance(log_id);
        self.membership = v1::StoredMembership {
            log_id: Some(log_id.into()),
            membership: Some(membership),
        };
    }

    fn advance(&mut self, log_id: LogId) {
        if let Some(applied) = self.applied {
            assert!(
                log_id.index == applied.index + 1,
                "entry {log_id} applied after {applied}"
            );
            assert!(
                log_id.term >= applied.term,
                "entry {log_id} of an older term applied after {applied}"
            );
        }
        self.applied = Some(log_id);
    }

    /// The shard.
    pub fn shard_id(&self) -> ShardId {
        self.shard_id
    }

    /// Its range.
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// One more with each change of the range.
    pub fn range_version(&self) -> u64 {
        self.range_version
    }

    /// Grows with each change of membership: the index of the last one.
    pub fn conf_version(&self) -> u64 {
        self.membership.log_id.map_or(0, |id| id.index)
    }

    /// Number of the next effect.
    pub fn next_version(&self) -> Version {
        self.next_version
    }

    /// Number of the last effect.
    pub fn last_version(&self) -> Version {
        self.next_version - 1
    }

    /// The replica id that `AllocateReplicaId` gives out next.
    pub fn next_replica_id(&self) -> ReplicaId {
        self.next_replica_id
    }

    /// Time of the last performed entry.
    pub fn logged_time_ms(&self) -> u64 {
        self.logged_time_ms
    }

    /// The last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// The last applied membership.
    pub fn membership(&self) -> &v1::StoredMembership {
        &self.membership
    }

    /// What is remembered of tokens.
    pub fn incarnations(&self) -> &Incarnations {
        &self.incarnations
    }

    /// As it is stored in control rows and sent with views.
    pub fn encode(&self) -> v1::ControlState {
        v1::ControlState {
            incarnations: self.incarnations.encode(),
            ..self.encode_without_tokens()
        }
    }

    /// The small part: enough to keep voting while the tree is being refilled.
    pub fn encode_without_tokens(&self) -> v1::ControlState {
        v1::ControlState {
            shard_id: self.shard_id,
            start_key: self.range.start.clone(),
            end_key: self.range.end.clone(),
            range_version: self.range_version,
            next_version: self.next_version,
            next_replica_id: self.next_replica_id,
            logged_time_ms: self.logged_time_ms,
            applied: self.applied.map(Into::into),
            membership: Some(self.membership.clone()),
            incarnations: Vec::new(),
            birth: Some(self.birth.clone()),
        }
    }

    /// Reads what [`Control::encode`] wrote.
    pub fn decode(state: v1::ControlState) -> Self {
        Self {
            shard_id: state.shard_id,
            range: KeyRange::new(state.start_key, state.end_key),
            range_version: state.range_version,
            next_version: state.next_version.max(1),
            next_replica_id: state.next_replica_id,
            logged_time_ms: state.logged_time_ms,
            applied: state.applied.map(Into::into),
            membership: state.membership.unwrap_or_default(),
            incarnations: Incarnations::decode(state.incarnations),
            birth: state.birth.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Control {
        let descriptor = v1::ShardDescriptor {
            shard_id: 2,
            epoch: Some(v1::ShardEpoch {
                conf_version: 0,
                range_version: 1,
            }),
            replicas: vec![v1::ReplicaDescriptor {
                replica_id: 3,
                ..Default::default()
            }],
            ..Default::default()
        };
        Control::new(2, Control::birth_of(&descriptor, 1))
    }

    fn put(key: &'static str) -> v1::Effect {
        let put = v1::PutEffect {
            key: key.into(),
            value: "v".into(),
            client_crc: 1,
            expires_at_ms: 0,
        };
        v1::Effect {
            kind: Some(Kind::Put(put)),
        }
    }

    fn body(first_version: u64, term: u64, effects: Vec<v1::Effect>) -> v1::EntryBody {
        v1::EntryBody {
            first_version,
            range_version: 1,
            term,
            logged_time_ms: 10,
            effects,
            executions: vec![],
        }
    }

    #[test]
    fn effects_are_numbered_without_gaps() {
        let mut control = control();
        let Ok(Applied::Done(changes)) =
            control.apply(LogId::new(1, 0), &body(1, 1, vec![put("a"), put("a")]))
        else {
            panic!("performed");
        };
        assert_eq!(
            changes.iter().map(|change| change.version).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(control.next_version(), 3);
    }

    #[test]
    fn a_tick_takes_a_number_and_moves_the_time_on_but_never_back() {
        let mut control = control();
        let tick = v1::Effect {
            kind: Some(Kind::Tick(v1::TickEffect {})),
        };
        for (index, told, logged) in [(0, 10, 10), (1, 30, 30), (2, 20, 30)] {
            let body = v1::EntryBody {
                logged_time_ms: told,
                ..body(index + 1, 1, vec![tick.clone()])
            };
            assert_eq!(
                control.apply(LogId::new(1, index), &body).unwrap(),
                Applied::Done(vec![])
            );
            assert_eq!(control.logged_time_ms(), logged);
        }
        assert_eq!(control.next_version(), 4);
    }

    #[test]
    fn an_entry_after_a_refused_one_changes_nothing() {
        let mut control = control();
        // Versions 1..3 were proposed and refused by the log; the pipeline's next entry was not.
        assert_eq!(
            control
                .apply(LogId::new(1, 0), &body(3, 1, vec![put("b")]))
                .unwrap(),
            Applied::NotDone
        );
        assert_eq!(control.next_version(), 1);
        assert_eq!(
            control.applied(),
            Some(LogId::new(1, 0)),
            "the entry counts as applied all the same"
        );
    }

    #[test]
    fn a_returned_leader_cannot_revive_numbers_of_an_older_term() {
        let mut control = control();
        assert_eq!(
            control
                .apply(LogId::new(3, 0), &body(1, 1, vec![put("a")]))
                .unwrap(),
            Applied::NotDone
        );
    }

    #[test]
    fn a_change_of_range_refuses_what_was_evaluated_before_it() {
        let mut control = control();
        let narrow = v1::SetRangeEffect {
            start_key: Bytes::new(),
            end_key: "m".into(),
        };
        let effect = v1::Effect {
            kind: Some(Kind::SetRange(narrow)),
        };
        assert!(matches!(
            control.apply(LogId::new(1, 0), &body(1, 1, vec![effect])),
            Ok(Applied::Done(_))
        ));
        assert_eq!(
            control
                .apply(LogId::new(1, 1), &body(2, 1, vec![put("z")]))
                .unwrap(),
            Applied::NotDone
        );
        assert!(!control.range().contains(b"z"));
    }

    #[test]
    fn blank_and_membership_entries_take_no_number() {
        let mut control = control();
        control.apply_membership(LogId::new(0, 0), v1::Membership::default());
        control.apply_blank(LogId::new(1, 1));
        assert_eq!(
            (control.next_version(), control.applied()),
            (1, Some(LogId::new(1, 1)))
        );
    }

    #[test]
    fn control_state_survives_encoding() {
        let mut control = control();
        let open = v1::Effect {
            kind: Some(Kind::OpenIncarnation(v1::OpenIncarnationEffect {})),
        };
        control
            .apply(LogId::new(1, 0), &body(1, 1, vec![open, put("a")]))
            .unwrap();
        assert_eq!(Control::decode(control.encode()), control);
    }

    #[test]
    fn an_unknown_effect_halts_the_replica() {
        let mut control = control();
        let unknown = v1::Effect { kind: None };
        assert!(
            control
                .apply(LogId::new(1, 0), &body(1, 1, vec![put("a"), unknown]))
                .is_err()
        );
        assert_eq!(control.applied(), None);
    }

    #[test]
    #[should_panic(expected = "applied after")]
    fn a_gap_in_the_log_is_a_bug() {
        let mut control = control();
        control.apply_blank(LogId::new(1, 0));
        control.apply_blank(LogId::new(1, 2));
    }
}
