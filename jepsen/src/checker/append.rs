//! Lists that grow: what was appended stays, once, in one order.

use std::collections::{BTreeMap, BTreeSet};

use super::{Verdict, show};
use crate::history::{Action, Answer, Event, Outcome};

/// Judges appends and reads, list by list.
pub fn check(history: &[Event]) -> Verdict {
    let mut lists: BTreeMap<u64, List<'_>> = BTreeMap::new();
    for event in history {
        match (&event.action, event.answer()) {
            (Action::Append { key, element }, _) => {
                lists.entry(*key).or_default().appends.insert(*element, event);
            }
            (Action::ReadList { key }, Some(Answer::List(list))) => {
                lists.entry(*key).or_default().reads.push((event, list));
            }
            _ => {}
        }
    }
    let findings = lists.into_iter().flat_map(|(key, list)| list.judge(key));
    Verdict::of(show::first(findings.collect()))
}

#[derive(Default)]
struct List<'h> {
    appends: BTreeMap<u64, &'h Event>,
    reads: Vec<(&'h Event, &'h Vec<u64>)>,
}

impl List<'_> {
    fn judge(&self, key: u64) -> Vec<String> {
        let mut findings = Vec::new();
        let none = Vec::new();
        let longest = self
            .reads
            .iter()
            .map(|(_, list)| *list)
            .max_by_key(|list| list.len());
        let longest = longest.unwrap_or(&none);
        for (event, list) in &self.reads {
            if !longest.starts_with(list) {
                findings.push(format!(
                    "two reads of list {key} are no prefixes of one another: {}",
                    show::event(event)
                ));
            }
        }
        findings.extend(self.elements(key, longest));
        findings.extend(self.order(key, longest));
        findings.extend(self.presence(key, longest));
        findings
    }

    /// Every element was appended by somebody, once, and did not fail.
    fn elements(&self, key: u64, longest: &[u64]) -> Vec<String> {
        let mut once = BTreeSet::new();
        let wrong = |element: &u64| {
            let what = match self.appends.get(element) {
                None => "was appended by nobody",
                Some(event) if never(event) => "was refused",
                Some(_) if !once.insert(*element) => "is there twice",
                Some(_) => return None,
            };
            Some(format!("element {element} of list {key} {what}"))
        };
        longest.iter().filter_map(wrong).collect()
    }

    /// An append that began after another was acknowledged stands behind it.
    fn order(&self, key: u64, longest: &[u64]) -> Vec<String> {
        let mut findings = Vec::new();
        let mut latest_invoked_us = 0;
        for element in longest {
            let Some(event) = self.appends.get(element) else {
                continue;
            };
            if event.effective_us() < latest_invoked_us {
                findings.push(format!(
                    "element {element} of list {key} stands behind one that was appended later: {}",
                    show::event(event)
                ));
            }
            latest_invoked_us = latest_invoked_us.max(event.invoked_us);
        }
        findings
    }

    /// A read shows what was acknowledged or read before it began, and nothing that began after it.
    fn presence(&self, key: u64, longest: &[u64]) -> Vec<String> {
        let mut findings = Vec::new();
        let places: BTreeMap<u64, usize> = longest
            .iter()
            .enumerate()
            .map(|(at, element)| (*element, at))
            .collect();
        for (read, list) in &self.reads {
            let acknowledged = |append: &Event| append.is_done() && append.completed_us < read.invoked_us;
            let here = |element: &u64| places.get(element).is_some_and(|at| *at < list.len());
            let appends = self.appends.iter();
            let lost: Vec<u64> = appends
                .filter(|(element, append)| acknowledged(append) && !here(element))
                .map(|(element, _)| *element)
                .collect();
            if !lost.is_empty() {
                findings.push(format!(
                    "list {key} lost {}: {}",
                    show::some(&lost),
                    show::event(read)
                ));
            }
            let early = |element: &&u64| {
                let append = self.appends.get(element);
                append.is_some_and(|append| append.invoked_us > read.completed_us)
            };
            if let Some(element) = list.iter().find(early) {
                findings.push(format!(
                    "list {key} shows {element} before it was appended: {}",
                    show::event(read)
                ));
            }
            let longer = |(earlier, before): &&(&Event, &Vec<u64>)| {
                earlier.completed_us < read.invoked_us && before.len() > list.len()
            };
            if let Some((earlier, _)) = self.reads.iter().find(longer) {
                findings.push(format!(
                    "list {key} was longer before: {}; {}",
                    show::event(earlier),
                    show::event(read)
                ));
            }
        }
        findings
    }
}

/// Whether an append certainly did not happen.
fn never(event: &Event) -> bool {
    matches!(
        event.outcome,
        Outcome::Fail(_) | Outcome::Ok(Answer::Refused { .. })
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(element: u64, outcome: Outcome, at_us: u64) -> Event {
        Event {
            client: 1,
            action: Action::Append { key: 0, element },
            outcome,
            invoked_us: at_us,
            completed_us: at_us + 5,
        }
    }

    fn appended(element: u64, at_us: u64) -> Event {
        append(element, Outcome::Ok(Answer::Done { version: None }), at_us)
    }

    fn read(list: &[u64], at_us: u64) -> Event {
        Event {
            client: 2,
            action: Action::ReadList { key: 0 },
            outcome: Outcome::Ok(Answer::List(list.to_vec())),
            invoked_us: at_us,
            completed_us: at_us + 5,
        }
    }

    fn findings(history: &[Event]) -> String {
        match check(history) {
            Verdict::Fail { findings } => findings.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_that_grows_passes() {
        let history = [appended(1, 0), read(&[1], 10), appended(2, 20), read(&[1, 2], 30)];
        assert_eq!(check(&history), Verdict::Pass);
        let concurrent = [appended(1, 0), appended(2, 2), read(&[2, 1], 10)];
        assert_eq!(check(&concurrent), Verdict::Pass);
    }

    #[test]
    fn lost_doubled_strange_and_refused_elements_are_found() {
        assert!(findings(&[appended(1, 0), read(&[], 10)]).contains("lost 1"));
        assert!(findings(&[appended(1, 0), read(&[1, 1], 10)]).contains("twice"));
        assert!(findings(&[read(&[9], 10)]).contains("by nobody"));
        let refused = append(3, Outcome::Ok(Answer::Refused { version: 1 }), 0);
        assert!(findings(&[refused, read(&[3], 10)]).contains("was refused"));
    }

    #[test]
    fn lists_that_fork_shrink_or_run_ahead_are_found() {
        let both = [appended(1, 0), appended(2, 1)];
        let fork = [&both[..], &[read(&[1, 2], 3), read(&[2], 4)]].concat();
        assert!(findings(&fork).contains("no prefixes"));
        let unknown = append(1, Outcome::Info("silence".into()), 0);
        assert!(findings(&[unknown, read(&[1], 10), read(&[], 20)]).contains("was longer before"));
        assert!(findings(&[read(&[1], 0), appended(1, 10)]).contains("before it was appended"));
        assert!(findings(&[appended(1, 0), appended(2, 10), read(&[2, 1], 20)]).contains("appended later"));
    }

    #[test]
    fn an_unknown_append_may_come_late_or_never() {
        let unknown = append(1, Outcome::Info("silence".into()), 0);
        assert_eq!(check(&[unknown.clone(), read(&[], 10)]), Verdict::Pass);
        assert_eq!(
            check(&[unknown.clone(), appended(2, 10), read(&[2, 1], 20)]),
            Verdict::Pass
        );
        assert!(findings(&[unknown, read(&[1, 1], 10)]).contains("twice"));
    }
}
