//! Counters: every addition happens once, however often it was sent.

use std::collections::BTreeMap;

use super::{Verdict, show};
use crate::history::{Action, Answer, Event, Outcome};

/// An addition that was done, or may have been.
struct Addition<'h> {
    event: &'h Event,
    delta: i64,
    /// The sum it was answered with; `None` if it was not answered.
    sum: Option<i64>,
}

/// What was added to a counter, and what it showed.
#[derive(Default)]
struct Counter<'h> {
    additions: Vec<Addition<'h>>,
    reads: Vec<(&'h Event, i64)>,
}

/// Judges additions and reads, counter by counter.
pub fn check(history: &[Event]) -> Verdict {
    let mut counters: BTreeMap<u64, Counter<'_>> = BTreeMap::new();
    for event in history {
        let sum = match event.answer() {
            Some(Answer::Sum(sum)) => Some(*sum),
            _ => None,
        };
        match event.action {
            Action::Add { key, delta } if !matches!(event.outcome, Outcome::Fail(_)) => {
                let addition = Addition { event, delta, sum };
                counters.entry(key).or_default().additions.push(addition);
            }
            Action::ReadCounter { key } => {
                let reads = &mut counters.entry(key).or_default().reads;
                reads.extend(sum.map(|sum| (event, sum)));
            }
            _ => {}
        }
    }
    let mut findings = Vec::new();
    for Counter { additions, reads } in counters.values_mut() {
        findings.extend(sums(additions));
        findings.extend(
            reads
                .iter()
                .filter_map(|(event, sum)| bounds(event, *sum, additions)),
        );
    }
    Verdict::of(show::first(findings))
}

/// A read shows at least what was done before it, and at most what had begun when it ended.
fn bounds(read: &Event, sum: i64, additions: &[Addition<'_>]) -> Option<String> {
    let total = |happened: &dyn Fn(&Addition<'_>) -> bool| -> i64 {
        let counted = additions.iter().filter(|addition| happened(addition));
        counted.map(|addition| addition.delta).sum()
    };
    let least = total(&|addition| addition.event.effective_us() < read.invoked_us);
    let most = total(&|addition| addition.event.invoked_us <= read.completed_us);
    let wrong = if sum < least {
        "an addition was lost"
    } else if sum > most {
        "an addition was applied twice"
    } else {
        return None;
    };
    Some(format!(
        "{wrong}, between {least} and {most} can be there: {}",
        show::event(read)
    ))
}

/// The sums that additions were answered with are steps of one stair: each its own delta above the
/// one before, but for additions whose outcome nobody knows, each of which counts once.
fn sums(additions: &mut [Addition<'_>]) -> Vec<String> {
    let mut unsure: i64 = additions
        .iter()
        .filter(|addition| addition.sum.is_none())
        .map(|addition| addition.delta)
        .sum();
    additions.sort_by_key(|addition| addition.sum.unwrap_or(i64::MAX));
    let mut findings = Vec::new();
    let (mut before, mut latest_invoked_us) = (0, 0);
    for addition in additions.iter() {
        let Some(sum) = addition.sum else { continue };
        let unexplained = sum - addition.delta - before;
        if unexplained < 0 {
            findings.push(format!(
                "an addition was lost, the sum before was {before}: {}",
                show::event(addition.event)
            ));
        } else if unexplained > unsure {
            findings.push(format!(
                "{unexplained} more than was added since the sum {before} (unsure: {unsure}), something was applied twice: {}",
                show::event(addition.event)
            ));
        }
        unsure -= unexplained.clamp(0, unsure);
        if addition.event.completed_us < latest_invoked_us {
            findings.push(format!(
                "a later addition has a smaller sum: {}",
                show::event(addition.event)
            ));
        }
        latest_invoked_us = latest_invoked_us.max(addition.event.invoked_us);
        before = sum;
    }
    findings
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

    fn add(delta: i64, sum: i64, at_us: u64) -> Event {
        event(
            Action::Add { key: 0, delta },
            Outcome::Ok(Answer::Sum(sum)),
            at_us,
        )
    }

    fn unsure(delta: i64, at_us: u64) -> Event {
        event(
            Action::Add { key: 0, delta },
            Outcome::Info("silence".into()),
            at_us,
        )
    }

    fn read(sum: i64, at_us: u64) -> Event {
        event(
            Action::ReadCounter { key: 0 },
            Outcome::Ok(Answer::Sum(sum)),
            at_us,
        )
    }

    fn findings(history: &[Event]) -> String {
        match check(history) {
            Verdict::Fail { findings } => findings.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn additions_that_happen_once_pass() {
        assert_eq!(check(&[add(2, 2, 0), add(3, 5, 10), read(5, 20)]), Verdict::Pass);
        assert_eq!(
            check(&[add(3, 5, 1), add(2, 2, 0), read(2, 2)]),
            Verdict::Pass,
            "concurrent"
        );
    }

    #[test]
    fn an_addition_applied_twice_is_found_in_sums_and_in_reads() {
        assert!(findings(&[add(2, 2, 0), add(3, 8, 10)]).contains("applied twice"));
        assert!(findings(&[add(2, 2, 0), read(4, 10)]).contains("applied twice"));
    }

    #[test]
    fn a_lost_addition_is_found_in_sums_and_in_reads() {
        assert!(findings(&[add(2, 2, 0), add(3, 3, 10)]).contains("lost"));
        assert!(findings(&[add(2, 2, 0), read(0, 10)]).contains("lost"));
    }

    #[test]
    fn an_unknown_addition_counts_late_once_or_never() {
        assert_eq!(check(&[unsure(2, 0), add(3, 3, 10), read(3, 20)]), Verdict::Pass);
        assert_eq!(check(&[unsure(2, 0), add(3, 5, 10), read(5, 20)]), Verdict::Pass);
        assert_eq!(check(&[unsure(2, 0), add(3, 3, 10), read(5, 20)]), Verdict::Pass);
        assert!(findings(&[unsure(2, 0), add(3, 7, 10)]).contains("applied twice"));
        assert!(findings(&[unsure(2, 0), add(3, 5, 10), add(1, 8, 20)]).contains("applied twice"));
        assert!(findings(&[add(3, 3, 10), read(5, 20), unsure(2, 40)]).contains("applied twice"));
    }

    #[test]
    fn a_failed_addition_never_counts_and_real_time_is_kept() {
        let failed = event(Action::Add { key: 0, delta: 2 }, Outcome::Fail("busy".into()), 0);
        assert!(findings(&[failed, read(2, 10)]).contains("applied twice"));
        assert!(findings(&[add(2, 5, 0), add(3, 3, 10)]).contains("smaller sum"));
    }
}
