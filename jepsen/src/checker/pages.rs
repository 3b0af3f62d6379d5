//! Groups of keys that are written together: every page of a scan shows one state of them.

use std::collections::BTreeMap;

use super::{Verdict, register, show};
use crate::history::{Action, Answer, Event, Outcome};

/// Judges batches over groups and pages of scans over them. A page that shows one value is a read
/// of the group, and every group is a linearizable register.
pub fn check(history: &[Event]) -> Verdict {
    let mut findings = Vec::new();
    let mut registers: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    for event in history {
        match &event.action {
            Action::WriteGroup { group, value } => {
                let action = Action::Write {
                    key: *group,
                    value: *value,
                };
                let event = Event {
                    action,
                    ..event.clone()
                };
                registers.entry(*group).or_default().push(unversioned(event));
            }
            Action::ReadPage { group, .. } => match page(event) {
                Ok(Some(value)) => {
                    let read = Event {
                        action: Action::Read { key: *group },
                        outcome: Outcome::Ok(Answer::Value { value, version: None }),
                        ..event.clone()
                    };
                    registers.entry(*group).or_default().push(read);
                }
                Ok(None) => {}
                Err(values) => findings.push(format!(
                    "a page shows more than one state, {}: {}",
                    show::some(&values),
                    show::event(event)
                )),
            },
            _ => {}
        }
    }
    let groups = registers.values().map(|events| register::check(events));
    groups.fold(Verdict::of(show::first(findings)), Verdict::and)
}

/// The one value of a page; 0 when it is empty, `None` when it was not answered.
fn page(event: &Event) -> Result<Option<u64>, Vec<u64>> {
    let Some(Answer::List(values)) = event.answer() else {
        return Ok(None);
    };
    let first = values.first().copied().unwrap_or(0);
    match values.iter().all(|value| *value == first) {
        true => Ok(Some(first)),
        false => Err(values.clone()),
    }
}

/// Pages name no version, so those of writes would be half of an order.
fn unversioned(mut event: Event) -> Event {
    if let Outcome::Ok(Answer::Done { version }) = &mut event.outcome {
        *version = None;
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: Action, outcome: Outcome, at_us: u64) -> Event {
        Event {
            client: 1,
            action,
            outcome,
            invoked_us: at_us,
            completed_us: at_us + 5,
        }
    }

    fn write(value: u64, at_us: u64) -> Event {
        let done = Outcome::Ok(Answer::Done { version: Some(value) });
        event(Action::WriteGroup { group: 0, value }, done, at_us)
    }

    fn page(values: &[u64], at_us: u64) -> Event {
        let found = Outcome::Ok(Answer::List(values.to_vec()));
        event(Action::ReadPage { group: 0, page: 0 }, found, at_us)
    }

    #[test]
    fn pages_of_one_state_in_order_pass() {
        let history = [
            page(&[], 0),
            write(1, 10),
            page(&[1, 1], 20),
            write(2, 30),
            page(&[2, 2, 2], 40),
        ];
        assert_eq!(check(&history), Verdict::Pass);
    }

    #[test]
    fn a_page_of_two_states_and_a_page_that_goes_back_are_found() {
        assert!(check(&[write(1, 0), write(2, 3), page(&[1, 2], 5)]).is_fail());
        assert!(check(&[write(1, 0), write(2, 10), page(&[1, 1], 20)]).is_fail());
        assert!(check(&[write(1, 0), page(&[], 10)]).is_fail());
    }

    #[test]
    fn an_unknown_batch_shows_wholly_or_not_and_a_failed_one_never() {
        let unknown = event(
            Action::WriteGroup { group: 0, value: 7 },
            Outcome::Info("silence".into()),
            0,
        );
        assert_eq!(
            check(&[unknown.clone(), page(&[], 10), page(&[7, 7], 20)]),
            Verdict::Pass
        );
        assert!(check(&[unknown, page(&[7, 7], 20), page(&[], 30)]).is_fail());
        let failed = event(
            Action::WriteGroup { group: 0, value: 7 },
            Outcome::Fail("busy".into()),
            0,
        );
        assert!(check(&[failed, page(&[7], 20)]).is_fail());
    }
}
