//! Registers: is every key's history linearizable?
//!
//! - [`versions`] judges by the order that the answers' versions claim: in one pass, and where
//!   nothing was deleted its order is a witness;
//! - [`linearizable`] trusts no version and searches for an order of its own.
//!
//! Both must never say no. Where the witness is no proof and the search was given up, nobody knows.

pub mod events;
pub mod linearizable;
pub mod versions;

use std::collections::BTreeMap;

use super::{Verdict, show};
use crate::history::{Action, Answer, Event, NEVER_US, Outcome};
use events::{Operation, RegisterEvent, RegisterOutcome};

/// A value with a time to live may vanish this much before its time: shards go by the median of
/// their nodes' clocks, which differ.
const CLOCKS_DIFFER_US: u64 = 2_500_000;

/// Judges reads, writes, deletes and conditional writes, key by key.
pub fn check(history: &[Event]) -> Verdict {
    let mut keys: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
    for event in history {
        if let Some(key) = key_of(&event.action) {
            keys.entry(key).or_default().push(event);
        }
    }
    let judged = keys.into_iter().map(|(key, events)| judge(key, &events));
    judged.fold(Verdict::Pass, Verdict::and)
}

fn key_of(action: &Action) -> Option<u64> {
    match action {
        Action::Read { key }
        | Action::Write { key, .. }
        | Action::Delete { key }
        | Action::WriteIf { key, .. }
        | Action::WriteFor { key, .. } => Some(*key),
        _ => None,
    }
}

fn judge(key: u64, events: &[&Event]) -> Verdict {
    // An absent key names no version, so an order that versions claim leaves such reads out.
    let vanishes = |event: &&Event| matches!(event.action, Action::Delete { .. } | Action::WriteFor { .. });
    let proves = !events.iter().any(vanishes);
    let register = register_events(events, !proves);
    let shown = |index: usize| match events.get(index) {
        Some(event) => show::event(event),
        None => "the end of a value's time".to_owned(),
    };
    if let Err(contradiction) = versions::check(&register) {
        let involved = [Some(contradiction.event), contradiction.other];
        let involved: Vec<String> = involved.into_iter().flatten().map(shown).collect();
        return Verdict::fail(format!(
            "key {key} is not linearizable: {contradiction}: {}",
            involved.join("; ")
        ));
    }
    match linearizable::check(&register) {
        linearizable::Verdict::Linearizable => Verdict::Pass,
        linearizable::Verdict::Unknown if proves => Verdict::Pass,
        linearizable::Verdict::Unknown => Verdict::Unknown {
            reason: format!("key {key}: the search for an order was given up"),
        },
        linearizable::Verdict::Violation { stuck } => {
            let stuck: Vec<String> = stuck.into_iter().map(shown).collect();
            Verdict::fail(format!(
                "key {key} is not linearizable: no place for {}",
                stuck.join("; ")
            ))
        }
    }
}

/// The register's view of each event, in the same order, and behind them the ends of times to live.
fn register_events(events: &[&Event], vanishes: bool) -> Vec<RegisterEvent> {
    let mut register: Vec<RegisterEvent> = Vec::with_capacity(events.len());
    let mut ends = Vec::new();
    for event in events {
        let operation = match event.action {
            Action::Write { value, .. } => Operation::Write(value),
            Action::WriteFor { value, ttl_ms, .. } => {
                let due_us = (event.invoked_us + ttl_ms * 1_000).saturating_sub(CLOCKS_DIFFER_US);
                if !matches!(event.outcome, Outcome::Fail(_)) {
                    ends.push((value, due_us.max(event.invoked_us)));
                }
                Operation::Write(value)
            }
            Action::Delete { .. } => Operation::Write(0),
            Action::WriteIf { expected, new, .. } => Operation::WriteIf { expected, new },
            _ => Operation::Read,
        };
        let (outcome, version) = match &event.outcome {
            Outcome::Ok(Answer::Value { value: 0, .. }) => {
                (RegisterOutcome::Value(0), (!vanishes).then_some(0))
            }
            Outcome::Ok(Answer::Value { value, version }) => (RegisterOutcome::Value(*value), *version),
            Outcome::Ok(Answer::Done { version }) => (RegisterOutcome::Done, *version),
            Outcome::Ok(Answer::Refused { version: 0 }) => {
                (RegisterOutcome::Refused, (!vanishes).then_some(0))
            }
            Outcome::Ok(Answer::Refused { version }) => (RegisterOutcome::Refused, Some(*version)),
            Outcome::Info(_) => (RegisterOutcome::Unknown, None),
            Outcome::Ok(_) | Outcome::Fail(_) => (RegisterOutcome::Failed, None),
        };
        register.push(RegisterEvent {
            operation,
            outcome,
            version,
            invoked_us: event.invoked_us,
            completed_us: event.effective_us(),
        });
    }
    let end = |(value, due_us): (u64, u64)| RegisterEvent {
        operation: Operation::Expire(value),
        outcome: RegisterOutcome::Unknown,
        version: None,
        invoked_us: due_us,
        completed_us: NEVER_US,
    };
    register.extend(ends.into_iter().map(end));
    register
}

#[cfg(test)]
mod tests;
