//! Exactly once: what a shard remembers of the writes it has executed (RIFL, SOSP'15).

use std::collections::BTreeMap;

use reelkv_proto::types::{ShardId, Version};
use reelkv_proto::v1;

use crate::limits::{INCARNATION_EXECUTED_MAX, INCARNATION_REMEMBERED_MS, INCARNATIONS_MAX};

/// A writer's memory, named by the effect that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncarnationId {
    /// The shard whose effect opened it (a split copies memories to shards of other ids).
    pub shard_id: ShardId,
    /// Version of that effect.
    pub version: Version,
}

impl From<v1::Incarnation> for IncarnationId {
    fn from(id: v1::Incarnation) -> Self {
        Self {
            shard_id: id.shard_id,
            version: id.version,
        }
    }
}

impl From<IncarnationId> for v1::Incarnation {
    fn from(id: IncarnationId) -> Self {
        Self {
            shard_id: id.shard_id,
            version: id.version,
        }
    }
}

/// What the shard knows of a token.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenState {
    /// Not executed: go on.
    Fresh,
    /// Executed before, with this result.
    Executed(v1::Execution),
    /// Its memory is gone: refuse, the outcome is unknown.
    Expired,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Incarnation {
    first_unacknowledged: u64,
    last_used_ms: u64,
    executed: BTreeMap<u64, v1::Execution>,
}

/// Executed tokens of a shard, per incarnation: the sequences at or above the writer's low-water
/// mark, with their results.
///
/// Invariants: no sequence below an incarnation's mark is kept; a mark never falls; an
/// incarnation that was forgotten is never opened again (its name is an effect's number).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Incarnations {
    open: BTreeMap<IncarnationId, Incarnation>,
}

impl Incarnations {
    /// What is known of a token. A token without an incarnation, or with sequence 0, is expired.
    pub fn state(&self, token: &v1::Token) -> TokenState {
        let Some(incarnation) = token.incarnation.and_then(|id| self.open.get(&id.into())) else {
            return TokenState::Expired;
        };
        if token.sequence == 0 || token.sequence < incarnation.first_unacknowledged {
            return TokenState::Expired;
        }
        match incarnation.executed.get(&token.sequence) {
            Some(execution) => TokenState::Executed(*execution),
            None if incarnation.executed.len() >= INCARNATION_EXECUTED_MAX => TokenState::Expired,
            None => TokenState::Fresh,
        }
    }

    /// Opens a memory; the applied effect's number names it.
    pub(super) fn open(&mut self, id: IncarnationId, now_ms: u64) {
        self.open.insert(
            id,
            Incarnation {
                first_unacknowledged: 1,
                last_used_ms: now_ms,
                ..Default::default()
            },
        );
    }

    /// Remembers an execution and forgets what the writer has acknowledged.
    pub(super) fn executed(&mut self, execution: &v1::Execution, now_ms: u64) {
        let Some(token) = execution.token else { return };
        let Some(incarnation) = token.incarnation.and_then(|id| self.open.get_mut(&id.into())) else {
            return; // expired by an effect earlier in the log than this entry, later than its evaluation
        };
        incarnation.last_used_ms = now_ms;
        if token.first_unacknowledged > incarnation.first_unacknowledged {
            incarnation.first_unacknowledged = token.first_unacknowledged;
            incarnation.executed = incarnation.executed.split_off(&token.first_unacknowledged);
        }
        if token.sequence >= incarnation.first_unacknowledged {
            incarnation.executed.insert(token.sequence, *execution);
        }
    }

    /// Forgets incarnations.
    pub(super) fn expire(&mut self, ids: impl IntoIterator<Item = IncarnationId>) {
        for id in ids {
            self.open.remove(&id);
        }
    }

    /// Which incarnations may be forgotten at this logged time: those unused for the remembered
    /// time, and the least recently used beyond the bound. The leader logs the choice.
    pub fn expirable(&self, now_ms: u64) -> Vec<IncarnationId> {
        let mut by_use: Vec<_> = self
            .open
            .iter()
            .map(|(id, memory)| (memory.last_used_ms, *id))
            .collect();
        by_use.sort_unstable();
        let over = self.open.len().saturating_sub(INCARNATIONS_MAX);
        let unused = by_use
            .iter()
            .take_while(|(used_ms, _)| used_ms + INCARNATION_REMEMBERED_MS < now_ms)
            .count();
        by_use
            .into_iter()
            .take(over.max(unused))
            .map(|(_, id)| id)
            .collect()
    }

    /// How many memories are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn encode(&self) -> Vec<v1::IncarnationState> {
        let encode = |(id, memory): (&IncarnationId, &Incarnation)| v1::IncarnationState {
            incarnation: Some((*id).into()),
            first_unacknowledged: memory.first_unacknowledged,
            last_used_ms: memory.last_used_ms,
            executed: memory.executed.values().cloned().collect(),
        };
        self.open.iter().map(encode).collect()
    }

    pub(super) fn decode(states: Vec<v1::IncarnationState>) -> Self {
        let decode = |state: v1::IncarnationState| {
            let id = state.incarnation?.into();
            let executed = state
                .executed
                .into_iter()
                .filter_map(|done| Some((done.token?.sequence, done)))
                .collect();
            let memory = Incarnation {
                first_unacknowledged: state.first_unacknowledged,
                last_used_ms: state.last_used_ms,
                executed,
            };
            Some((id, memory))
        };
        Self {
            open: states.into_iter().filter_map(decode).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: IncarnationId = IncarnationId {
        shard_id: 2,
        version: 7,
    };

    fn token(sequence: u64, first_unacknowledged: u64) -> v1::Token {
        v1::Token {
            incarnation: Some(WRITER.into()),
            sequence,
            first_unacknowledged,
        }
    }

    fn execution(sequence: u64, first_unacknowledged: u64, version: u64) -> v1::Execution {
        v1::Execution {
            token: Some(token(sequence, first_unacknowledged)),
            version,
            sum: None,
        }
    }

    #[test]
    fn a_token_is_fresh_once() {
        let mut memories = Incarnations::default();
        assert_eq!(memories.state(&token(1, 1)), TokenState::Expired, "never opened");
        memories.open(WRITER, 0);
        assert_eq!(memories.state(&token(1, 1)), TokenState::Fresh);
        memories.executed(&execution(1, 1, 8), 0);
        assert_eq!(
            memories.state(&token(1, 1)),
            TokenState::Executed(execution(1, 1, 8))
        );
    }

    #[test]
    fn what_was_acknowledged_is_refused_not_repeated() {
        let mut memories = Incarnations::default();
        memories.open(WRITER, 0);
        memories.executed(&execution(1, 1, 8), 0);
        memories.executed(&execution(3, 3, 9), 0);
        assert_eq!(memories.state(&token(1, 1)), TokenState::Expired);
        assert_eq!(
            memories.state(&token(2, 1)),
            TokenState::Expired,
            "below the mark, executed or not"
        );
        assert_eq!(memories.state(&token(4, 3)), TokenState::Fresh);
    }

    #[test]
    fn unused_memories_expire_and_stay_gone() {
        let mut memories = Incarnations::default();
        memories.open(WRITER, 1_000);
        assert!(memories.expirable(1_000 + INCARNATION_REMEMBERED_MS).is_empty());
        let expirable = memories.expirable(1_001 + INCARNATION_REMEMBERED_MS);
        assert_eq!(expirable, [WRITER]);
        memories.expire(expirable);
        assert_eq!(memories.state(&token(1, 1)), TokenState::Expired);
        memories.executed(&execution(1, 1, 8), 0);
        assert!(memories.is_empty());
    }

    #[test]
    fn memories_survive_encoding() {
        let mut memories = Incarnations::default();
        memories.open(WRITER, 5);
        memories.executed(&execution(2, 2, 8), 6);
        assert_eq!(Incarnations::decode(memories.encode()), memories);
    }
}
