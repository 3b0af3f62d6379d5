//! Is every shard answering whenever a clean quorum of its replicas exists?

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Verdict, show};
use crate::history::{Action, Event};

/// What is asked of a shard while a clean quorum exists.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time without a successful probe, in microseconds.
    pub stall_max_us: u64,
}

/// How available the shards were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Probes, all shards together.
    pub probes: u64,
    /// Probes that failed although a clean quorum existed all the while.
    pub failed_while_clean: u64,
    /// Longest time without a successful probe while a clean quorum existed, of the worst shard.
    pub longest_stall_us: u64,
}

/// Judges probes. `clean` are the spans, in microseconds, in which a clean quorum existed.
pub fn check(history: &[Event], clean: &[(u64, u64)], limits: Limits) -> (Verdict, Figures) {
    let mut shards: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
    for event in history {
        if let Action::Probe { shard } = event.action {
            shards.entry(shard).or_default().push(event);
        }
    }
    let mut figures = Figures::default();
    let mut findings = Vec::new();
    for (shard, probes) in &shards {
        figures.probes += probes.len() as u64;
        let in_clean = |event: &Event| {
            clean
                .iter()
                .any(|(from, until)| event.invoked_us >= *from && event.completed_us <= *until)
        };
        for failed in probes.iter().filter(|event| !event.is_done() && in_clean(event)) {
            figures.failed_while_clean += 1;
            findings.push(format!(
                "failed while a clean quorum existed: {}",
                show::event(failed)
            ));
        }
        let answered: Vec<u64> = answered(probes);
        let last_us = probes.iter().map(|event| event.completed_us).max().unwrap_or(0);
        for (from, until) in clean {
            let (stall_us, since_us) = longest_gap(&answered, *from, (*until).min(last_us));
            figures.longest_stall_us = figures.longest_stall_us.max(stall_us);
            if stall_us > limits.stall_max_us {
                findings.push(format!(
                    "shard {shard} did not answer for {} s, from {} s on, though a clean quorum existed",
                    show::seconds(stall_us),
                    show::seconds(since_us)
                ));
            }
        }
    }
    let verdict = match shards.is_empty() {
        true => Verdict::Unknown {
            reason: "no shard was probed".to_owned(),
        },
        false => Verdict::of(show::first(findings)),
    };
    (verdict, figures)
}

/// When successful probes were answered, in order.
fn answered(probes: &[&Event]) -> Vec<u64> {
    let mut answered: Vec<u64> = probes
        .iter()
        .filter(|event| event.is_done())
        .map(|event| event.completed_us)
        .collect();
    answered.sort_unstable();
    answered
}

/// The longest time between answers within a span, and when it began.
fn longest_gap(answered: &[u64], from: u64, until: u64) -> (u64, u64) {
    let within = answered.iter().copied().filter(|at| (from..until).contains(at));
    let mut longest = (0, from);
    let mut before = from;
    for at in within.chain((until > from).then_some(until)) {
        if at - before > longest.0 {
            longest = (at - before, before);
        }
        before = at;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Answer, Outcome};

    const LIMITS: Limits = Limits { stall_max_us: 50 };

    fn probe(shard: u64, outcome: Outcome, from_us: u64, until_us: u64) -> Event {
        Event {
            client: shard,
            action: Action::Probe { shard },
            outcome,
            invoked_us: from_us,
            completed_us: until_us,
        }
    }

    fn good(at_us: u64) -> Event {
        probe(0, Outcome::Ok(Answer::Done { version: None }), at_us, at_us + 1)
    }

    fn bad(from_us: u64, until_us: u64) -> Event {
        probe(0, Outcome::Fail("nobody leads".into()), from_us, until_us)
    }

    #[test]
    fn a_failure_counts_only_while_a_clean_quorum_existed() {
        let history: Vec<Event> = (0..10).map(|n| good(n * 10)).chain([bad(42, 48)]).collect();
        assert!(check(&history, &[(0, 40), (50, 100)], LIMITS).0.is_pass());
        let (verdict, figures) = check(&history, &[(0, 100)], LIMITS);
        assert!(verdict.is_fail());
        assert_eq!((figures.probes, figures.failed_while_clean), (11, 1));
        let unknown = probe(0, Outcome::Info("silence".into()), 42, 48);
        let history = [&history[..10], &[unknown]].concat();
        assert!(check(&history, &[(0, 100)], LIMITS).0.is_fail());
    }

    #[test]
    fn a_stall_counts_only_where_the_quorum_was_clean() {
        let history = [good(0), good(100), good(120)];
        let (verdict, figures) = check(&history, &[(0, 130)], LIMITS);
        assert!(verdict.is_fail());
        assert_eq!(figures.longest_stall_us, 100);
        assert!(check(&history, &[(0, 30), (80, 130)], LIMITS).0.is_pass());
    }

    #[test]
    fn without_probes_nobody_knows() {
        assert!(matches!(
            check(&[], &[(0, 100)], LIMITS).0,
            Verdict::Unknown { .. }
        ));
    }
}
