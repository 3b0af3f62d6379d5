//! The simulator as a whole: every workload under every fault, and the promise that a seed decides.

use reelkv_jepsen::nemesis::{Fault, parse};
use reelkv_jepsen::run::{Load, Plan, Report, simulate};
use reelkv_jepsen::workload::Workload;

fn plan(workload: Workload, faults: &str, seed: u64) -> Plan {
    Plan {
        workload,
        faults: parse(faults).expect("faults that exist"),
        seed,
        seconds: 30,
        nodes: 3,
        load: Load::default(),
    }
}

/// Runs a plan; a failure prints what fell and the command that shows it again.
fn passes(plan: &Plan) -> Report {
    let report = simulate(plan).expect("a runtime");
    assert!(
        report.verdict().is_pass(),
        "{:#?}\nseed {}, again: {}",
        report.verdicts,
        plan.seed,
        plan.command()
    );
    report
}

#[test]
fn every_workload_passes_under_all_faults() {
    for (seed, workload) in (100..).zip(Workload::ALL) {
        let report = passes(&plan(*workload, "all", seed));
        let faults: usize = report.faults.values().sum();
        assert!(faults >= 3, "{faults} faults only: {:?}", report.faults);
        assert!(report.records_compared > 0, "no replica was read");
    }
}

#[test]
fn every_fault_takes_effect() {
    let kinds: Vec<Fault> = Fault::ALL.to_vec();
    for (seed, fault) in (200..).zip(kinds) {
        let report = passes(&plan(Workload::Set, fault.name(), seed));
        assert!(report.faults.contains_key(&fault), "{fault} never took effect");
    }
}

#[test]
fn five_nodes_pass_as_well() {
    let plan = Plan {
        nodes: 5,
        ..plan(Workload::Register, "network,process", 300)
    };
    passes(&plan);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for workload in [Workload::Register, Workload::Set] {
        let plan = plan(workload, "all", 400);
        let first = passes(&plan);
        let second = passes(&plan);
        assert_eq!(first.fingerprint(), second.fingerprint(), "{}", plan.command());
        assert_eq!(first.timeline, second.timeline, "{}", plan.command());
    }
    let other = passes(&plan(Workload::Register, "all", 401));
    let first = passes(&plan(Workload::Register, "all", 400));
    assert_ne!(
        first.fingerprint(),
        other.fingerprint(),
        "another seed, another history"
    );
}
