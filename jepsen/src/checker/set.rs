//! A set that only grows: no acknowledged element is lost, none appears that should not.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, show};
use crate::history::{Action, Answer, Event, Outcome};

/// Judges insertions and reads of the set. A read takes its time and is not one snapshot: what was
/// there before it began must be in it, what was inserted meanwhile may be.
pub fn check(history: &[Event]) -> Verdict {
    let inserts: BTreeMap<u64, &Event> = history.iter().filter_map(insert).collect();
    let mut reads: Vec<(&Event, &Vec<u64>)> = history.iter().filter_map(read).collect();
    reads.sort_by_key(|(event, _)| event.completed_us);
    let last_insert_us = inserts
        .values()
        .map(|event| event.completed_us)
        .max()
        .unwrap_or(0);
    let mut findings = Vec::new();
    // What an earlier read has shown, and when that read was complete.
    let mut shown_us: BTreeMap<u64, u64> = BTreeMap::new();
    for (event, list) in &reads {
        let found: BTreeSet<u64> = list.iter().copied().collect();
        let mut find = |what: &str, elements: Vec<u64>| {
            if !elements.is_empty() {
                findings.push(format!(
                    "{what} {}: {}",
                    show::some(&elements),
                    show::event(event)
                ));
            }
        };
        let acknowledged = inserts
            .iter()
            .filter(|(_, insert)| insert.is_done() && insert.completed_us < event.invoked_us);
        find("lost", missing(acknowledged.map(|(element, _)| *element), &found));
        let before = shown_us.iter().filter(|(_, at_us)| **at_us < event.invoked_us);
        let vanished = missing(before.map(|(element, _)| *element), &found);
        let is_unsure = |element: &u64| inserts.get(element).is_some_and(|insert| !insert.is_done());
        find(
            "seen before and gone",
            vanished.into_iter().filter(is_unsure).collect(),
        );
        let strange = |element: &&u64| inserts.get(element).is_none_or(|insert| never_was(insert, event));
        find("never inserted", found.iter().filter(strange).copied().collect());
        let mut once = BTreeSet::new();
        find(
            "twice in one read",
            list.iter()
                .filter(|element| !once.insert(**element))
                .copied()
                .collect(),
        );
        for element in found {
            shown_us.entry(element).or_insert(event.completed_us);
        }
    }
    if findings.is_empty() && !reads.iter().any(|(event, _)| event.invoked_us >= last_insert_us) {
        return Verdict::Unknown {
            reason: "no read of the set began after the last insertion".to_owned(),
        };
    }
    Verdict::of(show::first(findings))
}

fn insert(event: &Event) -> Option<(u64, &Event)> {
    match event.action {
        Action::Insert { element } => Some((element, event)),
        _ => None,
    }
}

fn read(event: &Event) -> Option<(&Event, &Vec<u64>)> {
    match (&event.action, event.answer()) {
        (Action::ReadSet, Some(Answer::List(list))) => Some((event, list)),
        _ => None,
    }
}

fn missing(wanted: impl Iterator<Item = u64>, found: &BTreeSet<u64>) -> Vec<u64> {
    wanted.filter(|element| !found.contains(element)).collect()
}

/// Whether an insertion cannot be what a read saw.
fn never_was(insert: &Event, read: &Event) -> bool {
    matches!(insert.outcome, Outcome::Fail(_)) || insert.invoked_us > read.completed_us
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(element: u64, outcome: Outcome, at_us: u64) -> Event {
        Event {
            client: 1,
            action: Action::Insert { element },
            outcome,
            invoked_us: at_us,
            completed_us: at_us + 5,
        }
    }

    fn inserted(element: u64, at_us: u64) -> Event {
        insert(element, Outcome::Ok(Answer::Done { version: None }), at_us)
    }

    fn read(list: &[u64], from_us: u64, until_us: u64) -> Event {
        Event {
            client: 2,
            action: Action::ReadSet,
            outcome: Outcome::Ok(Answer::List(list.to_vec())),
            invoked_us: from_us,
            completed_us: until_us,
        }
    }

    fn findings(history: &[Event]) -> String {
        match check(history) {
            Verdict::Fail { findings } => findings.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_set_that_grows_passes() {
        let history = [
            inserted(1, 0),
            inserted(2, 20),
            read(&[1], 10, 30),
            read(&[1, 2], 40, 50),
        ];
        assert_eq!(check(&history), Verdict::Pass);
        let early = [
            inserted(1, 0),
            read(&[1, 2], 10, 30),
            inserted(2, 20),
            read(&[2, 1], 40, 50),
        ];
        assert_eq!(
            check(&early),
            Verdict::Pass,
            "an insertion may show while it is under way"
        );
    }

    #[test]
    fn what_was_acknowledged_is_lost_when_a_later_read_lacks_it() {
        assert!(findings(&[inserted(1, 0), inserted(2, 3), read(&[2], 10, 20)]).contains("lost 1:"));
        assert!(matches!(
            check(&[inserted(1, 0), read(&[], 2, 4)]),
            Verdict::Unknown { .. }
        ));
    }

    #[test]
    fn an_unknown_insertion_may_show_late_or_never_but_not_go_again() {
        let unknown = insert(7, Outcome::Info("silence".into()), 0);
        assert_eq!(check(&[unknown.clone(), read(&[], 10, 20)]), Verdict::Pass);
        assert_eq!(
            check(&[unknown.clone(), read(&[], 10, 20), read(&[7], 30, 40)]),
            Verdict::Pass
        );
        let gone = [unknown, read(&[7], 10, 20), read(&[], 30, 40)];
        assert!(findings(&gone).contains("seen before and gone 7"));
    }

    #[test]
    fn what_failed_or_nobody_inserted_or_comes_later_must_not_show() {
        let failed = insert(7, Outcome::Fail("busy".into()), 0);
        assert!(findings(&[failed, read(&[7], 10, 20)]).contains("never inserted 7"));
        assert!(findings(&[inserted(1, 0), read(&[1, 9], 10, 20)]).contains("never inserted 9"));
        assert!(
            findings(&[
                inserted(1, 0),
                read(&[1, 2], 10, 20),
                inserted(2, 30),
                read(&[1, 2], 50, 60)
            ])
            .contains("never inserted 2")
        );
        assert!(findings(&[inserted(1, 0), read(&[1, 1], 10, 20)]).contains("twice in one read 1"));
    }

    #[test]
    fn without_a_read_in_the_end_nobody_knows() {
        assert!(matches!(check(&[inserted(1, 0)]), Verdict::Unknown { .. }));
        assert!(matches!(
            check(&[read(&[], 0, 5), inserted(1, 10)]),
            Verdict::Unknown { .. }
        ));
    }
}
