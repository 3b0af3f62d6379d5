//! Did what was planned happen at all? A run without faults or without operations proves nothing.

use std::collections::BTreeMap;

use super::Plan;
use crate::checker::Verdict;
use crate::history::Event;
use crate::nemesis::Fault;
use crate::workload::tally;

/// A run this long has at least this many operations per virtual second.
const OPERATIONS_PER_SECOND: u64 = 10;
/// Virtual seconds that a fault needs on average; the quiet spells included.
const SECONDS_PER_FAULT: u64 = 8;

/// Fails a run in which an operation never succeeded or a fault never took effect.
pub(super) fn check(plan: &Plan, history: &[Event], injected: &BTreeMap<Fault, usize>) -> Verdict {
    let mut findings = Vec::new();
    let tally = tally(history);
    for name in plan.workload.must_succeed() {
        if tally.get(*name).is_none_or(|counts| counts[0] == 0) {
            findings.push(format!("no {name} ever succeeded"));
        }
    }
    let wanted = OPERATIONS_PER_SECOND * plan.seconds;
    if (history.len() as u64) < wanted {
        findings.push(format!(
            "{} operations only, at least {wanted} were wanted",
            history.len()
        ));
    }
    // A short run has no time for every kind; those it had time for must have taken effect.
    let faults: usize = injected.values().sum();
    let wanted = (plan.seconds / SECONDS_PER_FAULT) as usize;
    if !plan.faults.is_empty() && faults < wanted.max(1) {
        findings.push(format!(
            "{faults} faults took effect, at least {wanted} were wanted"
        ));
    }
    let missing = plan.faults.iter().filter(|fault| !injected.contains_key(fault));
    if wanted >= 2 * plan.faults.len() {
        findings.extend(missing.map(|fault| format!("the fault {fault} never took effect")));
    }
    Verdict::of(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Action, Answer, Outcome};
    use crate::workload::Workload;

    fn plan(faults: &[Fault]) -> Plan {
        Plan {
            workload: Workload::Counter,
            faults: faults.to_vec(),
            seed: 1,
            seconds: 30,
            nodes: 3,
            load: Default::default(),
        }
    }

    fn history(operations: u64) -> Vec<Event> {
        let event = |number: u64| Event {
            client: 0,
            action: match number.is_multiple_of(2) {
                true => Action::Add { key: 0, delta: 1 },
                false => Action::ReadCounter { key: 0 },
            },
            outcome: Outcome::Ok(Answer::Sum(1)),
            invoked_us: number,
            completed_us: number,
        };
        (0..operations).map(event).collect()
    }

    #[test]
    fn too_few_operations_kinds_or_faults_fail_a_run() {
        let once = BTreeMap::from([(Fault::Crash, 3)]);
        assert!(check(&plan(&[Fault::Crash]), &history(400), &once).is_pass());
        assert!(check(&plan(&[Fault::Crash]), &history(100), &once).is_fail());
        assert!(check(&plan(&[Fault::Crash]), &history(400)[..1], &once).is_fail());
        assert!(check(&plan(&[Fault::Crash]), &history(400), &BTreeMap::new()).is_fail());
        assert!(
            check(&plan(&[Fault::Loss]), &history(400), &once).is_fail(),
            "another fault than the one asked for"
        );
        assert!(check(&plan(&[]), &history(400), &BTreeMap::new()).is_pass());
    }
}
