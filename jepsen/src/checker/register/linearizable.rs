//! Is a register's history linearizable?
//!
//! The search of Wing and Gong with Lowe's memory of configurations already seen: take any
//! pending operation that was invoked before every other pending one completed, see whether the
//! register allows it, go on; go back when stuck. An operation of unknown outcome completes
//! never, so it may take effect at any later moment, or not at all.
//!
//! Written values are unique. A write of unknown outcome whose value nobody ever names can only
//! serve to hide another value, so all of these are alike: the search counts how many it has
//! used instead of telling them apart, and tries them last. That a value's time to live has ended
//! leaves no mark either: once it has been overwritten, nobody can tell whether it vanished first.

use std::collections::{HashMap, HashSet};

use super::events::{Operation, RegisterEvent, RegisterOutcome};

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
    /// The search was given up: it says nothing.
    Unknown,
}

/// Configurations looked at before the search is given up.
const CONFIGURATIONS_MAX: usize = 300_000;

/// A value nobody names.
const UNNAMED: u64 = u64::MAX;

/// Judges one key's events.
pub fn check(events: &[RegisterEvent]) -> Verdict {
    let named: HashSet<u64> = events.iter().flat_map(names).collect();
    let unnamed = |event: &RegisterEvent| match (event.operation, event.outcome) {
        (Operation::Write(value), RegisterOutcome::Unknown) => !named.contains(&value),
        _ => false,
    };
    let expires = |event: &RegisterEvent| match event.operation {
        Operation::Expire(value) => Some((value, event.invoked_us)),
        _ => None,
    };
    let mut order: Vec<usize> = (0..events.len())
        .filter(|index| events[*index].counts() && expires(&events[*index]).is_none())
        .collect();
    order.sort_by_key(|index| (events[*index].invoked_us, *index));
    let (alike, order): (Vec<usize>, Vec<usize>) =
        order.into_iter().partition(|index| unnamed(&events[*index]));
    let alike = alike.into_iter().map(|index| events[index].invoked_us).collect();
    Search {
        events,
        order,
        alike,
        expiries: events.iter().filter_map(expires).collect(),
        seen: HashSet::new(),
        longest: Vec::new(),
    }
    .run()
}

/// Values an event says the register had, or asks for.
fn names(event: &RegisterEvent) -> Option<u64> {
    match (event.operation, event.outcome) {
        (Operation::Read, RegisterOutcome::Value(value)) => Some(value),
        (Operation::WriteIf { expected, .. } | Operation::Expire(expected), _) => Some(expected),
        _ => None,
    }
}

struct Search<'a> {
    events: &'a [RegisterEvent],
    /// Events that count, by invocation.
    order: Vec<usize>,
    /// When the writes of unknown outcome whose values nobody names were invoked.
    alike: Vec<u64>,
    /// From when on a value may vanish.
    expiries: HashMap<u64, u64>,
    seen: HashSet<(Vec<u64>, usize, u64)>,
    longest: Vec<bool>,
}

/// A configuration: what has taken effect, and the value it left.
struct Configuration {
    taken: Vec<bool>,
    alike_taken: usize,
    value: u64,
}

/// One step of the search: the candidate taken, and the value before it.
struct Frame {
    candidate: usize,
    before: u64,
}

impl Search<'_> {
    fn run(&mut self) -> Verdict {
        let mut at = Configuration {
            taken: vec![false; self.order.len()],
            alike_taken: 0,
            value: 0,
        };
        let mut frames: Vec<Frame> = Vec::new();
        let (mut next, mut best) = (0, 0);
        loop {
            if self.complete(&at) {
                return Verdict::Linearizable;
            }
            match self.step(&at, next) {
                Some((candidate, after)) => {
                    frames.push(Frame {
                        candidate,
                        before: at.value,
                    });
                    self.take(&mut at, candidate, after);
                    next = 0;
                    if self.seen.len() > CONFIGURATIONS_MAX {
                        return Verdict::Unknown;
                    }
                    if !self.seen.insert((bits(&at.taken), at.alike_taken, at.value)) {
                        // Seen before: as if it were not allowed.
                        next = self.undo(&mut frames, &mut at);
                    } else if frames.len() > best {
                        best = frames.len();
                        self.longest = at.taken.clone();
                    }
                }
                None if frames.is_empty() => return self.violation(),
                None => next = self.undo(&mut frames, &mut at),
            }
        }
    }

    /// Everything whose effect was seen has been placed; what is unknown may never happen.
    fn complete(&self, at: &Configuration) -> bool {
        let placed = |(position, index): (usize, &usize)| at.taken[position] || self.unknown(*index);
        self.order.iter().enumerate().all(placed)
    }

    fn unknown(&self, index: usize) -> bool {
        self.events[index].outcome == RegisterOutcome::Unknown
    }

    /// The first allowed candidate at or after `from`. Candidates are numbered: operations of
    /// known outcome by invocation, then those of unknown outcome, then the end of the value's
    /// time, then one of those alike.
    fn step(&self, at: &Configuration, from: usize) -> Option<(usize, u64)> {
        let count = self.order.len();
        let pending = |position: &usize| !at.taken[*position];
        let horizon = (0..count)
            .filter(pending)
            .map(|position| self.events[self.order[position]].completed_us)
            .min()?;
        let allowed = |candidate: usize| {
            let position = candidate % count;
            let event = &self.events[self.order[position]];
            let this_turn = self.unknown(self.order[position]) == (candidate >= count);
            let possible = this_turn && pending(&position) && event.invoked_us <= horizon;
            possible
                .then(|| apply(event, at.value))
                .flatten()
                .map(|after| (candidate, after))
        };
        let past = |at_us: Option<&u64>| at_us.is_some_and(|at_us| *at_us <= horizon);
        let expire = || past(self.expiries.get(&at.value)).then_some((2 * count, 0));
        let hide = || {
            let possible = past(self.alike.get(at.alike_taken)) && at.value != UNNAMED;
            possible.then_some((2 * count + 1, UNNAMED))
        };
        (from..2 * count)
            .find_map(allowed)
            .or_else(|| (from <= 2 * count).then(expire).flatten())
            .or_else(|| (from <= 2 * count + 1).then(hide).flatten())
    }

    fn take(&self, at: &mut Configuration, candidate: usize, after: u64) {
        self.mark(at, candidate, true);
        at.value = after;
    }

    fn mark(&self, at: &mut Configuration, candidate: usize, taken: bool) {
        let count = self.order.len();
        match candidate.checked_sub(2 * count) {
            None => at.taken[candidate % count] = taken,
            Some(0) => {} // The value says it.
            Some(_) if taken => at.alike_taken += 1,
            Some(_) => at.alike_taken -= 1,
        }
    }

    /// Goes back one step; returns the candidate to try next.
    fn undo(&self, frames: &mut Vec<Frame>, at: &mut Configuration) -> usize {
        let Some(Frame { candidate, before }) = frames.pop() else {
            return usize::MAX;
        };
        self.mark(at, candidate, false);
        at.value = before;
        candidate + 1
    }

    fn violation(&self) -> Verdict {
        let unplaced = self.order.iter().enumerate().filter(|(position, index)| {
            !self.longest.get(*position).copied().unwrap_or(false) && !self.unknown(**index)
        });
        Verdict::Violation {
            stuck: unplaced.map(|(_, index)| *index).take(8).collect(),
        }
    }
}

fn bits(taken: &[bool]) -> Vec<u64> {
    taken
        .chunks(64)
        .map(|chunk| {
            chunk
                .iter()
                .enumerate()
                .fold(0, |word, (bit, set)| word | u64::from(*set) << bit)
        })
        .collect()
}

/// The value after an operation; `None` when the register cannot have answered so.
fn apply(event: &RegisterEvent, value: u64) -> Option<u64> {
    match (event.operation, event.outcome) {
        (Operation::Read, RegisterOutcome::Value(read)) => (read == value).then_some(value),
        (Operation::Write(new), _) => Some(new),
        (Operation::WriteIf { expected, .. }, RegisterOutcome::Refused) => {
            (value != expected).then_some(value)
        }
        (Operation::WriteIf { expected, new }, RegisterOutcome::Done) => (value == expected).then_some(new),
        // Unknown: had it been refused, it would have changed nothing, and needs no place.
        (Operation::WriteIf { expected, new }, _) => (value == expected).then_some(new),
        (Operation::Read | Operation::Expire(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(
        operation: Operation,
        outcome: RegisterOutcome,
        invoked_us: u64,
        completed_us: u64,
    ) -> RegisterEvent {
        RegisterEvent {
            operation,
            outcome,
            version: None,
            invoked_us,
            completed_us,
        }
    }

    fn write(value: u64, from: u64, to: u64) -> RegisterEvent {
        event(Operation::Write(value), RegisterOutcome::Done, from, to)
    }

    fn read(value: u64, from: u64, to: u64) -> RegisterEvent {
        event(Operation::Read, RegisterOutcome::Value(value), from, to)
    }

    #[test]
    fn one_after_the_other() {
        assert_eq!(
            check(&[write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)]),
            Verdict::Linearizable
        );
    }

    #[test]
    fn a_stale_read_is_a_violation() {
        let history = [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)];
        assert_eq!(check(&history), Verdict::Violation { stuck: vec![2] });
    }

    #[test]
    fn a_lost_write_is_a_violation() {
        assert!(matches!(
            check(&[write(1, 0, 1), read(0, 2, 3)]),
            Verdict::Violation { .. }
        ));
    }

    #[test]
    fn concurrent_writes_may_come_in_either_order() {
        assert_eq!(
            check(&[write(1, 0, 10), write(2, 0, 10), read(1, 11, 12)]),
            Verdict::Linearizable
        );
        assert_eq!(
            check(&[write(1, 0, 10), write(2, 0, 10), read(2, 11, 12)]),
            Verdict::Linearizable
        );
    }

    #[test]
    fn a_read_that_goes_back_is_a_violation() {
        let history = [write(1, 0, 100), read(1, 10, 20), read(0, 30, 40)];
        assert!(matches!(check(&history), Verdict::Violation { .. }));
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_not_twice() {
        let unknown = event(Operation::Write(7), RegisterOutcome::Unknown, 0, u64::MAX);
        assert_eq!(
            check(&[unknown, write(1, 5, 6), read(1, 7, 8)]),
            Verdict::Linearizable
        );
        assert_eq!(
            check(&[unknown, write(1, 5, 6), read(7, 7, 8)]),
            Verdict::Linearizable
        );
        let twice = [
            unknown,
            write(1, 5, 6),
            read(7, 7, 8),
            write(2, 9, 10),
            read(7, 11, 12),
        ];
        assert!(matches!(check(&twice), Verdict::Violation { .. }));
    }

    #[test]
    fn a_refused_condition_is_a_read() {
        let refused = event(
            Operation::WriteIf { expected: 1, new: 5 },
            RegisterOutcome::Refused,
            4,
            5,
        );
        assert!(matches!(
            check(&[write(1, 0, 1), refused]),
            Verdict::Violation { .. }
        ));
        assert_eq!(
            check(&[write(2, 0, 1), refused, read(2, 6, 7)]),
            Verdict::Linearizable
        );
    }

    #[test]
    fn a_write_nobody_names_can_hide_a_value_once() {
        let hidden = event(Operation::Write(7), RegisterOutcome::Unknown, 0, u64::MAX);
        let refused = |from| {
            event(
                Operation::WriteIf { expected: 1, new: 5 },
                RegisterOutcome::Refused,
                from,
                from + 1,
            )
        };
        let once = [hidden, write(1, 1, 2), refused(3)];
        assert_eq!(check(&once), Verdict::Linearizable);
        let twice = [hidden, write(1, 1, 2), refused(3), write(1, 5, 6), refused(7)];
        assert!(
            matches!(check(&twice), Verdict::Violation { .. }),
            "there was only one such write"
        );
    }

    #[test]
    fn a_failed_write_never_shows() {
        let failed = event(Operation::Write(9), RegisterOutcome::Failed, 0, 1);
        assert!(matches!(
            check(&[failed, read(9, 2, 3)]),
            Verdict::Violation { .. }
        ));
    }
}
