//! Is a register's history linearizable?
//!
//! The search of Wing and Gong with Lowe's memory of configurations already seen: take any
//! pending operation that was invoked before every other pending one completed, see whether the
//! register allows it, go on; go back when stuck. An operation of unknown outcome completes
//! never, so it may take effect at any later moment, or not at all.

use std::collections::HashSet;

use crate::history::{Event, Operation, Outcome};

/// What the judge found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none; the longest order found stops before these events (indexes into the history).
    Violation {
        /// Events that cannot be placed.
        stuck: Vec<usize>,
    },
    /// The search was given up: not a pass.
    Unknown,
}

/// Configurations looked at before the search is given up.
const CONFIGURATIONS_MAX: usize = 5_000_000;

/// Judges one key's events.
pub fn check(events: &[Event]) -> Verdict {
    let mut order: Vec<usize> = (0..events.len()).filter(|index| events[*index].counts()).collect();
    order.sort_by_key(|index| (events[*index].invoked_us, *index));
    let mut search = Search { events, order, seen: HashSet::new(), longest: Vec::new() };
    search.run()
}

struct Search<'a> {
    events: &'a [Event],
    /// Events that count, by invocation.
    order: Vec<usize>,
    seen: HashSet<(Vec<u64>, u64)>,
    longest: Vec<bool>,
}

impl Search<'_> {
    fn run(&mut self) -> Verdict {
        let count = self.order.len();
        let mut taken = vec![false; count];
        let mut value = 0;
        // One frame per operation taken: its position, the value before it.
        let mut frames: Vec<(usize, u64)> = Vec::new();
        let mut next = 0;
        let mut best = 0;
        loop {
            if self.complete(&taken) {
                return Verdict::Linearizable;
            }
            match self.step(&taken, value, next) {
                Some((position, after)) => {
                    frames.push((position, value));
                    taken[position] = true;
                    value = after;
                    next = 0;
                    if self.seen.len() > CONFIGURATIONS_MAX {
                        return Verdict::Unknown;
                    }
                    if !self.seen.insert((bits(&taken), value)) {
                        // Seen before: as if it were not allowed.
                        (next, value) = undo(&mut frames, &mut taken);
                    } else if frames.len() > best {
                        best = frames.len();
                        self.longest = taken.clone();
                    }
                }
                None if frames.is_empty() => return self.violation(),
                None => (next, value) = undo(&mut frames, &mut taken),
            }
        }
    }

    /// Everything whose effect was seen has been placed; what is unknown may never happen.
    fn complete(&self, taken: &[bool]) -> bool {
        let placed = |(position, index): (usize, &usize)| taken[position] || self.unknown(*index);
        self.order.iter().enumerate().all(placed)
    }

    fn unknown(&self, index: usize) -> bool {
        self.events[index].outcome == Outcome::Unknown
    }

    /// The first allowed operation at or after `from`.
    fn step(&self, taken: &[bool], value: u64, from: usize) -> Option<(usize, u64)> {
        let pending = || (0..self.order.len()).filter(|position| !taken[*position]);
        let horizon = pending().map(|position| self.events[self.order[position]].completed_us).min()?;
        pending()
            .skip_while(|position| *position < from)
            .take_while(|position| self.events[self.order[*position]].invoked_us <= horizon)
            .find_map(|position| Some((position, apply(&self.events[self.order[position]], value)?)))
    }

    fn violation(&self) -> Verdict {
        let unplaced = self.order.iter().enumerate().filter(|(position, index)| {
            !self.longest.get(*position).copied().unwrap_or(false) && !self.unknown(**index)
        });
        Verdict::Violation { stuck: unplaced.map(|(_, index)| *index).take(8).collect() }
    }
}

fn undo(frames: &mut Vec<(usize, u64)>, taken: &mut [bool]) -> (usize, u64) {
    let (position, before) = frames.pop().unwrap_or((0, 0));
    taken[position] = false;
    (position + 1, before)
}

fn bits(taken: &[bool]) -> Vec<u64> {
    taken.chunks(64).map(|chunk| chunk.iter().enumerate().fold(0, |word, (bit, set)| word | u64::from(*set) << bit)).collect()
}

/// The value after an operation; `None` when the register cannot have answered so.
fn apply(event: &Event, value: u64) -> Option<u64> {
    match (event.operation, event.outcome) {
        (Operation::Read, Outcome::Value(read)) => (read == value).then_some(value),
        (Operation::Write(new), _) => Some(new),
        (Operation::WriteIf { expected, .. }, Outcome::Refused) => (value != expected).then_some(value),
        (Operation::WriteIf { expected, new }, Outcome::Done) => (value == expected).then_some(new),
        // Unknown: had it been refused, it would have changed nothing.
        (Operation::WriteIf { expected, new }, _) => Some(if value == expected { new } else { value }),
        (Operation::Read, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(operation: Operation, outcome: Outcome, invoked_us: u64, completed_us: u64) -> Event {
        Event { client: 0, key: 0, operation, outcome, invoked_us, completed_us }
    }

    fn write(value: u64, from: u64, to: u64) -> Event {
        event(Operation::Write(value), Outcome::Done, from, to)
    }

    fn read(value: u64, from: u64, to: u64) -> Event {
        event(Operation::Read, Outcome::Value(value), from, to)
    }

    #[test]
    fn one_after_the_other() {
        assert_eq!(check(&[write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)]), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_a_violation() {
        let history = [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)];
        assert_eq!(check(&history), Verdict::Violation { stuck: vec![2] });
    }

    #[test]
    fn a_lost_write_is_a_violation() {
        assert!(matches!(check(&[write(1, 0, 1), read(0, 2, 3)]), Verdict::Violation { .. }));
    }

    #[test]
    fn concurrent_writes_may_come_in_either_order() {
        assert_eq!(check(&[write(1, 0, 10), write(2, 0, 10), read(1, 11, 12)]), Verdict::Linearizable);
        assert_eq!(check(&[write(1, 0, 10), write(2, 0, 10), read(2, 11, 12)]), Verdict::Linearizable);
    }

    #[test]
    fn a_read_that_goes_back_is_a_violation() {
        let history = [write(1, 0, 100), read(1, 10, 20), read(0, 30, 40)];
        assert!(matches!(check(&history), Verdict::Violation { .. }));
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_not_twice() {
        let unknown = event(Operation::Write(7), Outcome::Unknown, 0, u64::MAX);
        assert_eq!(check(&[unknown, write(1, 5, 6), read(1, 7, 8)]), Verdict::Linearizable);
        assert_eq!(check(&[unknown, write(1, 5, 6), read(7, 7, 8)]), Verdict::Linearizable);
        let twice = [unknown, write(1, 5, 6), read(7, 7, 8), write(2, 9, 10), read(7, 11, 12)];
        assert!(matches!(check(&twice), Verdict::Violation { .. }));
    }

    #[test]
    fn a_refused_condition_is_a_read() {
        let refused = event(Operation::WriteIf { expected: 1, new: 5 }, Outcome::Refused, 4, 5);
        assert!(matches!(check(&[write(1, 0, 1), refused]), Verdict::Violation { .. }));
        assert_eq!(check(&[write(2, 0, 1), refused, read(2, 6, 7)]), Verdict::Linearizable);
    }

    #[test]
    fn a_failed_write_never_shows() {
        let failed = event(Operation::Write(9), Outcome::Failed, 0, 1);
        assert!(matches!(check(&[failed, read(9, 2, 3)]), Verdict::Violation { .. }));
    }
}
