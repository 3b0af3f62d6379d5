//! Is the order that a register's versions claim a linearization?
//!
//! Every answer names the version it wrote, read, or was refused on, and versions are promised to
//! rise with every write. So the answers themselves claim one order of all writes of a key; this
//! judge verifies that claim against real time, values and conditions, in one pass. If it holds,
//! that order is a witness: the history is linearizable. The search in `linearizable` trusts no
//! version, finds an order of its own, and can be too slow; both must never say no.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::events::{Operation, RegisterEvent, RegisterOutcome};

/// What contradicts the claimed order: the events at fault, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// What is wrong, in a few words.
    pub what: &'static str,
    /// The event that shows it.
    pub event: usize,
    /// The one it contradicts, if that is another.
    pub other: Option<usize>,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// Judges one key's events.
///
/// # Errors
/// The first contradiction found.
pub fn check(events: &[RegisterEvent]) -> Result<(), Contradiction> {
    let writes = writes(events)?;
    known_values(events, &writes)?;
    let points = points(events, &writes);
    real_time(&points)?;
    conditions(events, &writes)
}

/// One event's place in the claimed order.
struct Point {
    event: usize,
    version: u64,
    is_write: bool,
    invoked_us: u64,
    completed_us: u64,
}

/// The writes that happened, by version, with their values: acknowledged, or read by somebody.
fn writes(events: &[RegisterEvent]) -> Result<BTreeMap<u64, u64>, Contradiction> {
    let mut writes = BTreeMap::from([(0, (0, None))]);
    for (index, event) in events.iter().enumerate() {
        let (Some(version), Some(value)) = (event.version, told(event)) else {
            continue;
        };
        let (known, first) = *writes.entry(version).or_insert((value, Some(index)));
        if known != value {
            return Err(Contradiction {
                what: "one version has two values",
                event: index,
                other: first,
            });
        }
    }
    Ok(writes
        .into_iter()
        .map(|(version, (value, _))| (version, value))
        .collect())
}

/// The value an answer put or found at its version.
fn told(event: &RegisterEvent) -> Option<u64> {
    match (event.operation, event.outcome) {
        (Operation::Read, RegisterOutcome::Value(value)) => Some(value),
        (Operation::Write(value) | Operation::WriteIf { new: value, .. }, RegisterOutcome::Done) => {
            Some(value)
        }
        _ => None,
    }
}

/// Every value was written once, by a write that did not fail.
fn known_values(events: &[RegisterEvent], writes: &BTreeMap<u64, u64>) -> Result<(), Contradiction> {
    let mut versions = HashMap::new();
    // Absent may come again.
    for (version, value) in writes.iter().filter(|(_, value)| **value != 0) {
        let twice = versions.insert(value, version).is_some();
        let failed = |event: &RegisterEvent| written(event) == Some(*value) && !event.counts();
        let event = events
            .iter()
            .position(|event| event.version == Some(*version))
            .unwrap_or(0);
        if twice {
            return Err(Contradiction {
                what: "one write took effect twice",
                event,
                other: None,
            });
        }
        let writer = events.iter().position(|event| written(event) == Some(*value));
        match writer {
            None => {
                return Err(Contradiction {
                    what: "a value nobody wrote",
                    event,
                    other: None,
                });
            }
            Some(writer) if failed(&events[writer]) || events[writer].outcome == RegisterOutcome::Refused => {
                return Err(Contradiction {
                    what: "a write that failed shows",
                    event,
                    other: Some(writer),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn written(event: &RegisterEvent) -> Option<u64> {
    match event.operation {
        Operation::Write(value) | Operation::WriteIf { new: value, .. } => Some(value),
        Operation::Expire(_) => Some(0),
        Operation::Read => None,
    }
}

/// Everything that has a place in the order. A write of unknown outcome has one if its value was
/// read, and may have taken effect at any time after its invocation.
fn points(events: &[RegisterEvent], writes: &BTreeMap<u64, u64>) -> Vec<Point> {
    let by_value: HashMap<u64, u64> = writes.iter().map(|(version, value)| (*value, *version)).collect();
    let point = |(index, event): (usize, &RegisterEvent)| {
        let unknown = event.outcome == RegisterOutcome::Unknown;
        let seen_later = || {
            written(event)
                .filter(|value| unknown && *value != 0)
                .and_then(|value| by_value.get(&value).copied())
        };
        let version = event.version.or_else(seen_later)?;
        Some(Point {
            event: index,
            version,
            is_write: event.outcome == RegisterOutcome::Done || unknown,
            invoked_us: event.invoked_us,
            completed_us: event.completed_us,
        })
    };
    events.iter().enumerate().filter_map(point).collect()
}

/// What completed before another was invoked comes before it.
fn real_time(points: &[Point]) -> Result<(), Contradiction> {
    let mut by_completion: Vec<&Point> = points.iter().collect();
    by_completion.sort_by_key(|point| point.completed_us);
    let mut by_invocation: Vec<&Point> = points.iter().collect();
    by_invocation.sort_by_key(|point| point.invoked_us);
    let mut completed = by_completion.into_iter().peekable();
    let mut newest: Option<&Point> = None;
    for point in by_invocation {
        while let Some(earlier) = completed.next_if(|earlier| earlier.completed_us < point.invoked_us) {
            if newest.is_none_or(|newest| newest.version < earlier.version) {
                newest = Some(earlier);
            }
        }
        let Some(newest) = newest else { continue };
        if point.version < newest.version || (point.is_write && point.version == newest.version) {
            let what = if point.is_write {
                "a write came before an earlier one"
            } else {
                "a read went back"
            };
            return Err(Contradiction {
                what,
                event: point.event,
                other: Some(newest.event),
            });
        }
    }
    Ok(())
}

/// A conditional write follows the very version it named; a refused one saw another.
fn conditions(events: &[RegisterEvent], writes: &BTreeMap<u64, u64>) -> Result<(), Contradiction> {
    // A delete of unknown outcome has no version, and may be what a condition saw.
    let vanishes =
        |event: &RegisterEvent| event.outcome == RegisterOutcome::Unknown && written(event) == Some(0);
    let may_vanish = events.iter().any(vanishes);
    for (index, event) in events.iter().enumerate() {
        let (Operation::WriteIf { expected, .. }, Some(version)) = (event.operation, event.version) else {
            continue;
        };
        if expected == 0 && may_vanish {
            continue;
        }
        let wrong = match event.outcome {
            RegisterOutcome::Done => writes
                .range(..version)
                .next_back()
                .is_none_or(|(_, value)| *value != expected),
            RegisterOutcome::Refused => writes.get(&version) == Some(&expected),
            _ => false,
        };
        if wrong {
            return Err(Contradiction {
                what: "a condition was judged wrongly",
                event: index,
                other: None,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(
        operation: Operation,
        outcome: RegisterOutcome,
        version: Option<u64>,
        at: (u64, u64),
    ) -> RegisterEvent {
        RegisterEvent {
            operation,
            outcome,
            version,
            invoked_us: at.0,
            completed_us: at.1,
        }
    }

    fn write(value: u64, version: u64, at: (u64, u64)) -> RegisterEvent {
        event(Operation::Write(value), RegisterOutcome::Done, Some(version), at)
    }

    fn read(value: u64, version: u64, at: (u64, u64)) -> RegisterEvent {
        event(Operation::Read, RegisterOutcome::Value(value), Some(version), at)
    }

    fn unknown(value: u64, from: u64) -> RegisterEvent {
        event(
            Operation::Write(value),
            RegisterOutcome::Unknown,
            None,
            (from, u64::MAX),
        )
    }

    fn write_if(expected: u64, outcome: RegisterOutcome, version: u64, at: (u64, u64)) -> RegisterEvent {
        event(
            Operation::WriteIf { expected, new: 50 },
            outcome,
            Some(version),
            at,
        )
    }

    fn what(events: &[RegisterEvent]) -> &'static str {
        check(events).map_or_else(|contradiction| contradiction.what, |()| "linearizable")
    }

    #[test]
    fn histories_that_are_linearizable() {
        assert_eq!(
            what(&[
                write(1, 3, (0, 1)),
                read(1, 3, (2, 3)),
                write(2, 5, (4, 5)),
                read(2, 5, (6, 7))
            ]),
            "linearizable"
        );
        assert_eq!(
            what(&[write(1, 5, (0, 10)), write(2, 3, (0, 10)), read(1, 5, (11, 12))]),
            "linearizable"
        );
        assert_eq!(
            what(&[unknown(7, 0), write(1, 2, (5, 6)), read(7, 3, (7, 8))]),
            "linearizable"
        );
        assert_eq!(
            what(&[
                write(1, 2, (0, 1)),
                write_if(1, RegisterOutcome::Done, 3, (2, 3)),
                read(50, 3, (4, 5))
            ]),
            "linearizable"
        );
        assert_eq!(
            what(&[
                write(2, 2, (0, 1)),
                write_if(1, RegisterOutcome::Refused, 2, (2, 3))
            ]),
            "linearizable"
        );
    }

    #[test]
    fn histories_that_are_not() {
        assert_eq!(
            what(&[write(1, 2, (0, 1)), write(2, 3, (2, 3)), read(1, 2, (4, 5))]),
            "a read went back"
        );
        assert_eq!(
            what(&[write(1, 2, (0, 1)), read(0, 0, (2, 3))]),
            "a read went back"
        );
        assert_eq!(
            what(&[write(1, 3, (0, 1)), write(2, 2, (2, 3))]),
            "a write came before an earlier one"
        );
        assert_eq!(
            what(&[write(1, 2, (0, 1)), unknown(7, 3), read(7, 1, (0, 9))]),
            "a write came before an earlier one"
        );
        assert_eq!(
            what(&[write(1, 2, (0, 9)), read(3, 2, (0, 9))]),
            "one version has two values"
        );
        assert_eq!(
            what(&[unknown(7, 0), read(7, 2, (0, 9)), read(7, 4, (0, 9))]),
            "one write took effect twice"
        );
        assert_eq!(what(&[read(9, 1, (0, 1))]), "a value nobody wrote");
        let failed = event(Operation::Write(9), RegisterOutcome::Failed, None, (0, 1));
        assert_eq!(what(&[failed, read(9, 1, (0, 2))]), "a write that failed shows");
        let between = [
            write(1, 2, (0, 1)),
            write(2, 3, (2, 3)),
            write_if(1, RegisterOutcome::Done, 4, (4, 5)),
        ];
        assert_eq!(what(&between), "a condition was judged wrongly");
        assert_eq!(
            what(&[
                write(1, 2, (0, 1)),
                write_if(1, RegisterOutcome::Refused, 2, (2, 3))
            ]),
            "a condition was judged wrongly"
        );
    }
}
