//! The leader's side of a shard: requests in, numbered effects out.

use std::collections::HashSet;

use bytes::Bytes;
use reelkv_proto::types::{KeyRange, ReplicaId, ShardId, Version};
use reelkv_proto::v1;
use reelkv_proto::v1::condition::Kind as Condition;
use reelkv_proto::v1::effect::Kind;

use super::overlay::{self, Overlay};
use super::time::has_expired;
use super::{Command, Control, IncarnationId, TokenState, Write, WriteKind, WriteOperation, WriteResult};
use crate::mutants::Mutant;

/// What a key held in a view.
#[derive(Clone, Debug)]
pub struct ColdRead {
    /// Stored key.
    pub key: Bytes,
    /// The view's version.
    pub read_at: Version,
    /// What was there, also when it had expired; `None` when absent.
    pub found: Option<Found>,
}

/// A record as the evaluation needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The number of the effect that wrote it.
    pub version: Version,
    /// Its value.
    pub value: Bytes,
    /// When it expires, in logged time; 0 when it does not.
    pub expires_at_ms: u64,
}

/// What a write came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation {
    /// Its effects are in the entry being filled; the answer once that entry is applied.
    Proposed(WriteResult),
    /// Executed before, with this result.
    Duplicate(WriteResult),
    /// The same token is in flight; its answer serves both.
    InFlight,
    /// Not to be executed. A read: true once everything evaluated so far is applied.
    Refused(Refusal),
    /// The reads given do not tell the present any more: read again.
    Stale,
    /// The entry being filled must be proposed before this write is evaluated.
    SealFirst,
}

/// Why a write is not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A condition did not hold.
    ConditionFailed {
        /// The key's version; 0 when absent.
        current: Version,
    },
    /// The shard does not hold this key.
    KeyNotInShard {
        /// Stored key.
        key: Bytes,
    },
    /// The token's memory is gone.
    TokenExpired {
        /// Its sequence.
        sequence: u64,
    },
    /// An addition to something that is not 8 bytes long.
    NotAnInteger,
    /// An addition beyond 64 bits.
    Overflow,
    /// The range to give away holds records.
    NotEmpty,
    /// Something is to expire, and nobody knows when that would be.
    TimeUnknown,
}

/// Evaluates requests in order against applied state plus the effects still in flight.
///
/// Lives for one term of one leader. Invariants: the versions of the effects it hands out are
/// consecutive from the applied `next_version` it began with; an entry holds effects of one
/// `range_version` only; what is judged to have expired for an entry has done so by the entry's
/// logged time, and an entry of that time precedes the answer. After any refused or unperformed entry it is thrown away, and a new one
/// begins from the applied state once nothing is in flight.
#[derive(Debug)]
pub struct Evaluator {
    shard_id: ShardId,
    term: u64,
    range: KeyRange,
    range_version: u64,
    next_version: Version,
    next_replica_id: ReplicaId,
    /// Time of the last entry.
    logged_time_ms: u64,
    /// Time of the entry being filled, never less.
    entry_time_ms: u64,
    /// Whether the clocks said so.
    time_is_known: bool,
    /// A refusal rests on the time of the entry being filled: it must be proposed, if only as a tick.
    tick_due: bool,
    overlay: Overlay,
    tokens_in_flight: HashSet<(IncarnationId, u64)>,
    entry: Entry,
}

/// The entry being filled.
#[derive(Debug, Default)]
struct Entry {
    first_version: Version,
    range_version: u64,
    effects: Vec<v1::Effect>,
    executions: Vec<v1::Execution>,
    bytes: usize,
    /// Changes the range: nothing may follow in the same entry.
    sealed: bool,
}

impl Evaluator {
    /// Begins at the applied state, with nothing in flight.
    pub fn new(applied: &Control, term: u64) -> Self {
        Self {
            shard_id: applied.shard_id(),
            term,
            range: applied.range().clone(),
            range_version: applied.range_version(),
            next_version: applied.next_version(),
            next_replica_id: applied.next_replica_id(),
            logged_time_ms: applied.logged_time_ms(),
            entry_time_ms: applied.logged_time_ms(),
            time_is_known: false,
            tick_due: false,
            overlay: Overlay::new(applied.last_version()),
            tokens_in_flight: HashSet::new(),
            entry: Entry::default(),
        }
    }

    /// Says what time it is before an entry is filled; `None` when nobody knows. Time stands still
    /// then, or when it is said to be earlier than it was.
    pub fn tell_time(&mut self, now_ms: Option<u64>) {
        self.time_is_known = now_ms.is_some();
        self.entry_time_ms = self.entry_time_ms.max(now_ms.unwrap_or(0));
    }

    /// Evaluates one write; `reads` holds what its judged keys held. `applied` may be any state
    /// applied since the evaluator began.
    pub fn evaluate(&mut self, write: &Write, reads: &[ColdRead], applied: &Control) -> Evaluation {
        if let Some(token) = &write.token
            && let Some(known) = self.known_token(token, applied)
        {
            return known;
        }
        if let Some(outside) = write.keys().find(|key| !self.range.contains(key)) {
            return Evaluation::Refused(Refusal::KeyNotInShard { key: outside.clone() });
        }
        let alone = matches!(write.kind, WriteKind::NarrowTo { .. });
        if self.entry.sealed || (alone && !self.entry.effects.is_empty()) {
            return Evaluation::SealFirst;
        }
        let version = self.next_version;
        let effects = match self.effects_of(&write.kind, reads, applied) {
            Ok(effects) => effects,
            Err(evaluation) => {
                self.tick_due |= self.rests_on_entry_time(write, reads);
                return evaluation;
            }
        };
        let sum = self.sum_of(&write.kind, &effects);
        self.take(effects);
        if let Some(token) = write.token {
            if let Some(id) = token.incarnation {
                self.tokens_in_flight.insert((id.into(), token.sequence));
            }
            self.entry.executions.push(v1::Execution {
                token: Some(token),
                version,
                sum,
            });
        }
        self.entry.bytes += write.bytes();
        Evaluation::Proposed(WriteResult { version, sum })
    }

    fn known_token(&self, token: &v1::Token, applied: &Control) -> Option<Evaluation> {
        let id = token.incarnation?.into();
        if Mutant::RetryWithoutToken.is_on() {
            return None;
        }
        match applied.incarnations().state(token) {
            TokenState::Executed(done) => Some(Evaluation::Duplicate(WriteResult {
                version: done.version,
                sum: done.sum,
            })),
            _ if self.tokens_in_flight.contains(&(id, token.sequence)) => Some(Evaluation::InFlight),
            TokenState::Expired => Some(Evaluation::Refused(Refusal::TokenExpired {
                sequence: token.sequence,
            })),
            TokenState::Fresh => None,
        }
    }

    fn effects_of(
        &self,
        kind: &WriteKind,
        reads: &[ColdRead],
        applied: &Control,
    ) -> Result<Vec<v1::Effect>, Evaluation> {
        let effect = |kind| v1::Effect { kind: Some(kind) };
        match kind {
            WriteKind::Operations(operations) => {
                for operation in operations {
                    self.judge(operation, reads)?;
                }
                if !self.time_is_known && operations.iter().any(|operation| operation.ttl_ms != 0) {
                    return Err(Evaluation::Refused(Refusal::TimeUnknown));
                }
                Ok(operations
                    .iter()
                    .map(|operation| effect(operation_effect(operation, self.entry_time_ms)))
                    .collect())
            }
            WriteKind::Add { key, delta } => {
                let (present, expires_at_ms) = match self.present(key, reads)? {
                    None => (0, 0),
                    Some(found) => (
                        i64::from_be_bytes(
                            found.value[..]
                                .try_into()
                                .map_err(|_| Evaluation::Refused(Refusal::NotAnInteger))?,
                        ),
                        found.expires_at_ms,
                    ),
                };
                let sum = present
                    .checked_add(*delta)
                    .ok_or(Evaluation::Refused(Refusal::Overflow))?;
                let value = Bytes::copy_from_slice(&sum.to_be_bytes());
                let client_crc = stored_crc(key, &value);
                Ok(vec![effect(Kind::Put(v1::PutEffect {
                    key: key.clone(),
                    value,
                    client_crc,
                    expires_at_ms,
                }))])
            }
            WriteKind::OpenIncarnation => {
                Ok(vec![effect(Kind::OpenIncarnation(v1::OpenIncarnationEffect {}))])
            }
            WriteKind::AllocateReplicaId => Ok(vec![effect(Kind::AllocateReplicaId(
                v1::AllocateReplicaIdEffect {},
            ))]),
            WriteKind::NarrowTo { end, empty_at } => {
                let given_away = KeyRange::new(end.clone(), self.range.end.clone());
                if !self.overlay.completes(*empty_at) {
                    return Err(Evaluation::Stale);
                }
                if !self.range.contains(end) || self.overlay.any_put_in(&given_away, *empty_at) {
                    return Err(Evaluation::Refused(Refusal::NotEmpty));
                }
                let start_key = self.range.start.clone();
                Ok(vec![effect(Kind::SetRange(v1::SetRangeEffect {
                    start_key,
                    end_key: end.clone(),
                }))])
            }
            WriteKind::ExpireIncarnations { now_ms } => {
                let expirable = applied.incarnations().expirable(*now_ms);
                let incarnations = expirable.into_iter().map(Into::into).collect();
                Ok(vec![effect(Kind::ExpireIncarnations(
                    v1::ExpireIncarnationsEffect { incarnations },
                ))])
            }
            WriteKind::Tick => Ok(vec![effect(tick())]),
            WriteKind::Marker { start } => {
                let start_key = start.clone();
                Ok(vec![effect(Kind::Marker(v1::MarkerEffect { start_key }))])
            }
            WriteKind::RemoveExpired { keys } => {
                let mut effects = Vec::new();
                for key in keys {
                    let stored = self.stored(key, reads)?;
                    if stored.is_some_and(|found| has_expired(found.expires_at_ms, self.entry_time_ms)) {
                        effects.push(effect(Kind::Delete(v1::DeleteEffect { key: key.clone() })));
                    }
                }
                match effects.is_empty() {
                    true => Ok(vec![effect(tick())]),
                    false => Ok(effects),
                }
            }
        }
    }

    fn sum_of(&self, kind: &WriteKind, effects: &[v1::Effect]) -> Option<i64> {
        match (kind, effects.first().and_then(|effect| effect.kind.as_ref())) {
            (WriteKind::Add { .. }, Some(Kind::Put(put))) => {
                put.value[..].try_into().ok().map(i64::from_be_bytes)
            }
            (WriteKind::AllocateReplicaId, _) => Some(self.next_replica_id as i64),
            _ => None,
        }
    }

    fn judge(&self, operation: &WriteOperation, reads: &[ColdRead]) -> Result<(), Evaluation> {
        let Some(condition) = &operation.condition else {
            return Ok(());
        };
        let current = self
            .present(&operation.key, reads)?
            .map_or(0, |found| found.version);
        let holds = match condition {
            _ if Mutant::NoConditionCheck.is_on() => true,
            Condition::Absent(_) => current == 0,
            Condition::Version(version) => current == *version && current != 0,
        };
        if holds {
            Ok(())
        } else {
            Err(Evaluation::Refused(Refusal::ConditionFailed { current }))
        }
    }

    /// What a key holds once everything in flight is applied, at the time of the entry being filled.
    fn present(&self, key: &Bytes, reads: &[ColdRead]) -> Result<Option<Found>, Evaluation> {
        let stored = self.stored(key, reads)?;
        Ok(stored.filter(|found| !has_expired(found.expires_at_ms, self.entry_time_ms)))
    }

    /// Whether anything judged has expired by the time of the entry being filled and not before.
    fn rests_on_entry_time(&self, write: &Write, reads: &[ColdRead]) -> bool {
        write.judged_keys().any(|key| match self.stored(key, reads) {
            Ok(Some(found)) => {
                has_expired(found.expires_at_ms, self.entry_time_ms)
                    && !has_expired(found.expires_at_ms, self.logged_time_ms)
            }
            _ => false,
        })
    }

    /// As `present`, and what has expired is there.
    fn stored(&self, key: &Bytes, reads: &[ColdRead]) -> Result<Option<Found>, Evaluation> {
        if let Some(effect) = self.overlay.get(key) {
            return Ok(effect.value.clone().map(|value| Found {
                version: effect.version,
                value,
                expires_at_ms: effect.expires_at_ms,
            }));
        }
        match reads.iter().find(|read| read.key == *key) {
            Some(read) if self.overlay.completes(read.read_at) => Ok(read.found.clone()),
            _ => Err(Evaluation::Stale),
        }
    }

    fn take(&mut self, effects: Vec<v1::Effect>) {
        if self.entry.effects.is_empty() {
            self.entry.first_version = self.next_version;
            self.entry.range_version = self.range_version;
        }
        for effect in effects {
            let version = self.next_version;
            self.next_version += 1;
            match effect.kind.as_ref() {
                Some(Kind::Put(put)) => {
                    let newest = overlay::Effect {
                        version,
                        value: Some(put.value.clone()),
                        expires_at_ms: put.expires_at_ms,
                    };
                    self.overlay.insert(put.key.clone(), newest);
                }
                Some(Kind::Delete(delete)) => {
                    let newest = overlay::Effect {
                        version,
                        value: None,
                        expires_at_ms: 0,
                    };
                    self.overlay.insert(delete.key.clone(), newest);
                }
                Some(Kind::SetRange(range)) => {
                    self.range = KeyRange::new(range.start_key.clone(), range.end_key.clone());
                    self.range_version += 1;
                    self.entry.sealed = true;
                }
                Some(Kind::AllocateReplicaId(_)) => self.next_replica_id += 1,
                Some(
                    Kind::OpenIncarnation(_) | Kind::ExpireIncarnations(_) | Kind::Tick(_) | Kind::Marker(_),
                )
                | None => {}
            }
            self.entry.effects.push(effect);
        }
    }

    /// Bytes in the entry being filled.
    pub fn entry_bytes(&self) -> usize {
        self.entry.bytes
    }

    /// Number of the next effect, counting those in flight.
    pub fn next_version(&self) -> Version {
        self.next_version
    }

    /// The shard this evaluator serves.
    pub fn shard_id(&self) -> ShardId {
        self.shard_id
    }

    /// Closes the entry being filled; `None` when it is empty and nothing rests on its time.
    pub fn take_entry(&mut self) -> Option<Command> {
        if self.entry.effects.is_empty() {
            if !self.tick_due {
                return None;
            }
            self.take(vec![v1::Effect { kind: Some(tick()) }]);
        }
        self.tick_due = false;
        self.logged_time_ms = self.entry_time_ms;
        let entry = std::mem::take(&mut self.entry);
        Some(Command::new(v1::EntryBody {
            first_version: entry.first_version,
            range_version: entry.range_version,
            term: self.term,
            logged_time_ms: self.logged_time_ms,
            effects: entry.effects,
            executions: entry.executions,
        }))
    }

    /// An entry was applied as proposed: its tokens are now known to the control state.
    pub fn applied(&mut self, body: &v1::EntryBody) {
        for token in body.executions.iter().filter_map(|execution| execution.token) {
            if let Some(id) = token.incarnation {
                self.tokens_in_flight.remove(&(id.into(), token.sequence));
            }
        }
        self.overlay
            .trim(body.first_version + body.effects.len() as u64 - 1);
    }
}

fn tick() -> Kind {
    Kind::Tick(v1::TickEffect {})
}

fn operation_effect(operation: &WriteOperation, logged_time_ms: u64) -> Kind {
    match &operation.put {
        Some((value, client_crc)) => Kind::Put(v1::PutEffect {
            key: operation.key.clone(),
            value: value.clone(),
            client_crc: *client_crc,
            expires_at_ms: match operation.ttl_ms {
                0 => 0,
                ttl_ms => logged_time_ms.saturating_add(ttl_ms),
            },
        }),
        None => Kind::Delete(v1::DeleteEffect {
            key: operation.key.clone(),
        }),
    }
}

/// The CRC a client would have computed, for values the leader makes itself.
fn stored_crc(stored_key: &[u8], value: &[u8]) -> u32 {
    reelkv_proto::types::split_stored_key(stored_key).map_or(0, |(keyspace, key)| {
        reelkv_proto::checksum::client_crc(keyspace, key, value)
    })
}

#[cfg(test)]
#[path = "evaluator_test.rs"]
mod tests;
