//! Many runs side by side, and what they came to.

pub mod hunt;
pub mod profile;
mod progress;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use reelkv::clock::{Instant, now};
use serde::Serialize;

use crate::checker::Verdict;
use crate::nemesis::Fault;
use crate::run::{Load, Plan, Report, simulate};
use crate::workload::Workload;
pub use progress::Progress;

/// No run takes this long in real time unless it does not end.
const RUN_MAX: Duration = Duration::from_secs(300);

/// A workload under some faults, over some seeds.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What clients do.
    pub workload: Workload,
    /// What the faults are called together.
    pub family: &'static str,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Nodes.
    pub nodes: usize,
    /// Virtual seconds of load.
    pub seconds: u64,
    /// The seeds.
    pub seeds: Range<u64>,
}

impl Entry {
    fn plan(&self, seed: u64) -> Plan {
        Plan {
            workload: self.workload,
            faults: self.faults.clone(),
            seed,
            seconds: self.seconds,
            nodes: self.nodes,
            load: Load::default(),
        }
    }
}

/// What the runs of a workload under a family of faults came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Runs.
    pub runs: u64,
    /// Runs in which everything held.
    pub passed: u64,
    /// Runs in which something fell.
    pub failed: u64,
    /// Runs of which no judge could tell.
    pub unknown: u64,
    /// Operations that were judged.
    pub operations: u64,
    /// Those whose outcome their client never learned.
    pub indefinite: u64,
    /// Faults that took effect.
    pub faults: u64,
    /// Virtual seconds of load.
    pub seconds: u64,
    /// Seeds that were run twice.
    pub repeated: u64,
    /// Of these, those whose history was the same.
    pub alike: u64,
}

/// What a suite came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    /// By workload and family of faults.
    pub rows: BTreeMap<String, Row>,
    /// How often each fault took effect.
    pub faults: BTreeMap<&'static str, usize>,
    /// The command of each run that did not pass, and why.
    pub not_passed: Vec<(String, Vec<String>)>,
    /// Seconds of real time.
    pub took_s: f64,
}

/// Runs everything on all cores. `not_passed` is told of each run that did not pass, as it happens.
pub fn run(entries: &[Entry], progress: &Progress, not_passed: impl Fn(&Report) + Sync) -> Results {
    let began = now();
    let plans: Vec<(&Entry, u64)> = entries
        .iter()
        .flat_map(|entry| entry.seeds.clone().map(move |seed| (entry, seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Results::default());
    on_all_cores(|watch| {
        while let Some((entry, seed)) = plans.get(next.fetch_add(1, Ordering::Relaxed)) {
            let plan = entry.plan(*seed);
            watch.begins(&plan);
            // The first seed of each entry is run twice, to see whether a seed decides everything.
            let again = (*seed == entry.seeds.start).then(|| plan.clone());
            let report = attempt(&plan);
            let alike = again.map(|plan| attempt(&plan).fingerprint() == report.fingerprint());
            watch.ends();
            if !report.verdict().is_pass() {
                not_passed(&report);
            }
            results.lock().add(entry, &report, alike);
            progress.step();
        }
    });
    progress.finish();
    let mut results = results.into_inner();
    results.took_s = began.elapsed().as_secs_f64();
    results
}

/// A run that could not be made is one that fell: a suite must not pass over it.
pub(crate) fn attempt(plan: &Plan) -> Report {
    simulate(plan).unwrap_or_else(|error| Report {
        plan: plan.clone(),
        history: Vec::new(),
        clean_us: Vec::new(),
        faults: BTreeMap::new(),
        timeline: Vec::new(),
        records_compared: 0,
        verdicts: BTreeMap::from([("run", Verdict::fail(format!("{error:#}")))]),
    })
}

/// Which plans are running since when: one that does not end is named, and ends the process.
pub(crate) struct Watch<'all> {
    place: usize,
    running: &'all Mutex<BTreeMap<usize, (Instant, String)>>,
}

impl Watch<'_> {
    pub(crate) fn begins(&self, plan: &Plan) {
        self.running.lock().insert(self.place, (now(), plan.command()));
    }

    pub(crate) fn ends(&self) {
        self.running.lock().remove(&self.place);
    }
}

/// Runs `work` on every core until it returns.
#[allow(clippy::disallowed_methods)] // real threads and real time, outside of every simulated world
pub(crate) fn on_all_cores(work: impl Fn(&Watch<'_>) + Sync) {
    let running = Mutex::new(BTreeMap::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let left = AtomicUsize::new(cores);
    std::thread::scope(|scope| {
        for place in 0..cores {
            let (work, running, left) = (&work, &running, &left);
            scope.spawn(move || {
                work(&Watch { place, running });
                left.fetch_sub(1, Ordering::Release);
            });
        }
        while left.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(20));
            let hung = |(since, _): &&(Instant, String)| since.elapsed() > RUN_MAX;
            if let Some((_, command)) = running.lock().values().find(hung) {
                eprintln!("a run does not end within {RUN_MAX:?}\nagain: {command}");
                std::process::exit(1);
            }
        }
    });
}

impl Results {
    fn add(&mut self, entry: &Entry, report: &Report, alike: Option<bool>) {
        let name = format!("{:17} {}", entry.workload.name(), entry.family);
        let row = self.rows.entry(name).or_default();
        let verdict = report.verdict();
        row.runs += 1;
        match &verdict {
            Verdict::Pass => row.passed += 1,
            Verdict::Fail { .. } => row.failed += 1,
            Verdict::Unknown { .. } => row.unknown += 1,
        }
        row.operations += report.history.len() as u64;
        row.indefinite += report.history.iter().filter(|event| event.is_unknown()).count() as u64;
        row.faults += report.faults.values().sum::<usize>() as u64;
        row.seconds += report.plan.seconds;
        row.repeated += u64::from(alike.is_some());
        row.alike += u64::from(alike == Some(true));
        for (fault, times) in &report.faults {
            *self.faults.entry(fault.name()).or_default() += times;
        }
        let why = match verdict {
            Verdict::Pass => return,
            Verdict::Fail { findings } => findings,
            Verdict::Unknown { reason } => vec![reason],
        };
        self.not_passed.push((report.plan.command(), why));
    }

    /// Whether every run passed.
    pub fn held(&self) -> bool {
        self.not_passed.is_empty() && !self.rows.is_empty()
    }

    fn total(&self) -> Row {
        self.rows.values().fold(Row::default(), |total, row| Row {
            runs: total.runs + row.runs,
            passed: total.passed + row.passed,
            failed: total.failed + row.failed,
            unknown: total.unknown + row.unknown,
            operations: total.operations + row.operations,
            indefinite: total.indefinite + row.indefinite,
            faults: total.faults + row.faults,
            seconds: total.seconds + row.seconds,
            repeated: total.repeated + row.repeated,
            alike: total.alike + row.alike,
        })
    }

    /// The results as a table for people.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:27} {:>6} {:>7} {:>7} {:>8} {:>11} {:>11} {:>7}",
            "workload          faults",
            "runs",
            "passed",
            "failed",
            "unknown",
            "operations",
            "indefinite",
            "faults"
        )];
        let line = |name: &str, row: &Row| {
            format!(
                "{name:27} {:>6} {:>7} {:>7} {:>8} {:>11} {:>11} {:>7}",
                row.runs, row.passed, row.failed, row.unknown, row.operations, row.indefinite, row.faults
            )
        };
        lines.extend(self.rows.iter().map(|(name, row)| line(name, row)));
        let total = self.total();
        lines.push(line("all", &total));
        let faults: Vec<String> = self
            .faults
            .iter()
            .map(|(fault, times)| format!("{fault} {times}"))
            .collect();
        lines.push(String::new());
        lines.push(format!("faults that took effect: {}", faults.join(", ")));
        lines.push(format!(
            "same seed, same history: {} of {} seeds that were run twice",
            total.alike, total.repeated
        ));
        lines.push(format!(
            "{} virtual seconds of load in {:.0} s",
            total.seconds, self.took_s
        ));
        lines.join("\n")
    }
}
