//! How much is run.

use std::ops::Range;

use super::Entry;
use crate::nemesis::{Family, Fault};
use crate::workload::Workload;

/// Virtual seconds of load of a run.
const SECONDS: u64 = 30;

/// A few minutes: every workload under every family of faults, and under all of them together.
pub fn quick(first: u64) -> Vec<Entry> {
    every_workload(first, 2, 4)
}

/// A thousand seeds and more.
pub fn full(first: u64) -> Vec<Entry> {
    every_workload(first, 20, 60)
}

/// `each` seeds per workload and family on three nodes, `mixed` with all families together on three
/// nodes and a third as many on five.
fn every_workload(first: u64, each: u64, mixed: u64) -> Vec<Entry> {
    let seeds = |count: u64| -> Range<u64> { first..first + count };
    let mut entries: Vec<Entry> = Vec::new();
    for workload in Workload::ALL {
        let entry = |family, faults: &[Fault], nodes, seeds| Entry {
            workload: *workload,
            family,
            faults: faults.to_vec(),
            nodes,
            seconds: SECONDS,
            seeds,
        };
        for family in Family::ALL {
            let of_family = |fault: &Fault| fault.family() == family;
            let faults: Vec<Fault> = Fault::ALL.into_iter().filter(of_family).collect();
            entries.push(entry(family.name(), &faults, 3, seeds(each)));
        }
        entries.push(entry("all", &Fault::ALL, 3, seeds(mixed)));
        entries.push(entry("all, 5 nodes", &Fault::ALL, 5, seeds(mixed.div_ceil(3))));
    }
    // Each has seeds of its own: what one does with a seed, another need not do again.
    let mut next = first;
    for entry in &mut entries {
        let count = entry.seeds.end - entry.seeds.start;
        entry.seeds = next..next + count;
        next += count;
    }
    entries
}
