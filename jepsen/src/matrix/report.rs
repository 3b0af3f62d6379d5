//! What a run of the matrix came to: for machines, and for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::case::{AVAILABLE_WITHIN, REPAIRED_WITHIN, TOLD_WITHIN};
use super::excepted;
use super::verdict::{Outcome, Times, Verdict};
use super::world::{CHECKPOINT_INTERVAL_MS, Pace, REPLACE_AFTER_MS, SEGMENT_BYTES, TIMES};
use super::{Case, Context, Options, Tier};

/// One case, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Names it; `--case` runs it alone.
    pub id: String,
    /// Its group.
    pub tier: Tier,
    /// The engine below it.
    pub engine: String,
    /// What was struck.
    pub structure: String,
    /// What happened to it.
    pub fault: String,
    /// What the struck node was to its shards.
    pub role: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// When what happened, in milliseconds since the nodes were started.
    #[serde(flatten)]
    pub times: Times,
    /// The run's seed.
    pub seed: u64,
    /// Why it is not correct, or what else is to be said.
    pub why: String,
    /// It was run a second time, alone; this is what came of that.
    pub again: bool,
    /// What it took to run, in milliseconds.
    pub took_ms: u64,
}

/// Whether a case is within its bars: nothing may be unsafe; with one faulty node and the others up, and with damage
/// on all of them that leaves everything good somewhere, nothing else may be amiss, but for what is excepted by name.
/// The adversary among the engines is only asked to be safe, and so is a cluster of which a node is hit and another off.
fn is_within(row: &Row) -> bool {
    let in_full = match &row.engine[..] {
        "lsm" => row.tier != Tier::T1d,
        "sled" => false,
        _ => true,
    };
    match row.verdict {
        Verdict::Correct => true,
        Verdict::Unsafe => false,
        Verdict::Degraded | Verdict::Unavailable => !in_full || excepted::of(row).is_some(),
    }
}

impl Row {
    pub(super) fn new(options: &Options, case: &Case, outcome: &Outcome, took: Duration) -> Self {
        let on_files =
            matches!(case.tier, Tier::T1 | Tier::T1f | Tier::T1d) || case.fault.starts_with("helical");
        let engine = match (on_files, case.tier) {
            (true, _) => options.engine.to_string(),
            (false, Tier::T0) => "none".to_owned(),
            (false, _) => "memory".to_owned(),
        };
        Self {
            id: case.id(),
            tier: case.tier,
            engine,
            structure: case.structure.clone(),
            fault: case.fault.clone(),
            role: case.role,
            verdict: outcome.verdict(),
            times: outcome.times,
            seed: options.seed,
            why: outcome.why(),
            again: false,
            took_ms: took.as_millis() as u64,
        }
    }
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Every criterion held.
    pub correct: usize,
    /// Safe and available, and not repaired or not told in time.
    pub degraded: usize,
    /// Safe, and something did not answer.
    pub unavailable: usize,
    /// Wrong or lost.
    pub r#unsafe: usize,
}

impl Totals {
    fn of<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut totals = Self::default();
        for row in rows {
            *match row.verdict {
                Verdict::Correct => &mut totals.correct,
                Verdict::Degraded => &mut totals.degraded,
                Verdict::Unavailable => &mut totals.unavailable,
                Verdict::Unsafe => &mut totals.r#unsafe,
            } += 1;
        }
        totals
    }

    /// All of them.
    pub fn all(&self) -> usize {
        self.correct + self.degraded + self.unavailable + self.r#unsafe
    }

    fn cells(&self) -> String {
        format!(
            "{} | {} | {} | {}",
            self.correct, self.degraded, self.unavailable, self.r#unsafe
        )
    }
}

/// A run of the matrix.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// How many cases ended how.
    pub totals: Totals,
    /// The seed everything followed from.
    pub seed: u64,
    /// The share of the cases that was run.
    pub sample: f64,
    /// How many cases the tiers have in all.
    pub known: usize,
    /// How many were run a second time, alone, after they had been late.
    pub run_again: usize,
    /// What it was run with, for people.
    pub setting: Vec<String>,
    /// Seconds it took.
    pub took_s: f64,
    /// Every case.
    pub cases: Vec<Row>,
}

impl Results {
    pub(super) fn new(context: &Context, known: usize, cases: Vec<Row>, took: Duration) -> Self {
        Self {
            totals: Totals::of(&cases),
            seed: context.options.seed,
            sample: context.options.sample,
            known,
            run_again: cases.iter().filter(|row| row.again).count(),
            setting: setting(context),
            took_s: took.as_secs_f64(),
            cases,
        }
    }

    /// Whether every case was within its bars, and there were any.
    pub fn held(&self) -> bool {
        !self.cases.is_empty() && self.cases.iter().all(is_within)
    }

    /// Which bars were missed, and which cases are excepted from them.
    pub fn bars(&self) -> String {
        let missed = self.cases.iter().filter(|row| !is_within(row)).count();
        let mut text = match missed {
            0 => "all bars held\n".to_owned(),
            missed => format!("{missed} cases missed their bars\n"),
        };
        for exception in excepted::ALL {
            let excused = self.cases.iter().filter_map(excepted::of);
            match excused
                .filter(|of_case| std::ptr::eq(*of_case, exception))
                .count()
            {
                0 if exception.is_obsolete(&self.cases) => {
                    let _ = writeln!(text, "an exception nobody needs any more: {}", exception.name());
                }
                0 => {}
                count => {
                    let _ = writeln!(
                        text,
                        "excepted: {} {count}: {}",
                        exception.name(),
                        exception.reason
                    );
                }
            }
        }
        text
    }

    /// All of it as a page in Markdown.
    pub fn page(&self) -> String {
        let mut page = String::from("# Fault matrix\n\n");
        for line in &self.setting {
            let _ = writeln!(page, "- {line}");
        }
        let _ = writeln!(
            page,
            "- {} of {} cases (sample {}, seed {}), {:.0} s; {} were late beside others and run again alone",
            self.totals.all(),
            self.known,
            self.sample,
            self.seed,
            self.took_s,
            self.run_again
        );
        page.push_str("\n## Verdicts\n\n");
        page.push_str(&self.summary());
        let _ = write!(page, "\n{}", self.bars());
        for ((tier, engine), rows) in self.groups() {
            let _ = write!(page, "\n## {} on {engine}\n\n", tier.name());
            page.push_str(&by_structure(&rows));
            page.push_str(&times(&rows));
            page.push_str(&unnoticed(&rows));
        }
        page.push_str(&self.causes());
        page
    }

    fn groups(&self) -> BTreeMap<(Tier, String), Vec<&Row>> {
        let mut groups: BTreeMap<(Tier, String), Vec<&Row>> = BTreeMap::new();
        for row in &self.cases {
            let group = groups.entry((row.tier, row.engine.clone())).or_default();
            group.push(row);
        }
        groups
    }

    /// One line for each tier and engine.
    pub fn summary(&self) -> String {
        let mut table = String::from(
            "| tier | engine | cases | CORRECT | DEGRADED | UNAVAILABLE | UNSAFE |\n|---|---|--:|--:|--:|--:|--:|\n",
        );
        for ((tier, engine), rows) in self.groups() {
            let totals = Totals::of(rows.iter().copied());
            let _ = writeln!(
                table,
                "| {} | {engine} | {} | {} |",
                tier.name(),
                totals.all(),
                totals.cells()
            );
        }
        let _ = writeln!(
            table,
            "| all | | {} | {} |",
            self.totals.all(),
            self.totals.cells()
        );
        table
    }

    /// What did not hold, by cause: alike but for numbers, with one case each.
    pub fn causes(&self) -> String {
        let mut causes: BTreeMap<(std::cmp::Reverse<Verdict>, String), Vec<&Row>> = BTreeMap::new();
        for row in self.cases.iter().filter(|row| row.verdict != Verdict::Correct) {
            let cause = (std::cmp::Reverse(row.verdict), without_numbers(&row.why));
            causes.entry(cause).or_default().push(row);
        }
        if causes.is_empty() {
            return String::new();
        }
        let mut text = String::from(
            "\n## Not correct, by cause\n\n| verdict | cases | structures | why | one of them |\n|---|--:|---|---|---|\n",
        );
        for ((verdict, cause), rows) in causes {
            let mut structures: Vec<&str> = rows.iter().map(|row| &row.structure[..]).collect();
            structures.sort_unstable();
            structures.dedup();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | `{}` |",
                verdict.0.name(),
                rows.len(),
                structures.join(", "),
                cause.replace('|', "/"),
                rows[0].id
            );
        }
        text
    }
}

fn setting(context: &Context) -> Vec<String> {
    let (unhurt, one_off) = context.unhurt();
    let mut lines = vec![
        format!(
            "three nodes on real files in {}, time {}",
            context
                .scratch()
                .path()
                .parent()
                .unwrap_or(context.scratch().path())
                .display(),
            match context.options.pace {
                Pace::Real => "real",
                Pace::Virtual => "virtual: what waits is counted, what works is not",
            }
        ),
        format!(
            "Raft: heartbeat {} ms, election {} to {} ms; segments of {} KiB; a checkpoint every {} ms; \
             a lost replica is replaced after {} ms",
            TIMES.heartbeat_interval_ms,
            TIMES.election_timeout_min_ms,
            TIMES.election_timeout_max_ms,
            SEGMENT_BYTES >> 10,
            CHECKPOINT_INTERVAL_MS,
            REPLACE_AFTER_MS
        ),
        format!(
            "an unhurt start serves after {unhurt:?} ({one_off:?} with one node off); bars from there: available \
             {AVAILABLE_WITHIN:?}, repaired {REPAIRED_WITHIN:?}; told {TOLD_WITHIN:?} after detection",
        ),
    ];
    if let Some(image) = &context.image {
        let census = super::image::census(&image.nodes[super::fault::VICTIM]);
        let parts = census
            .iter()
            .map(|(name, (all, used))| format!("{name} {used} of {all}"));
        lines.push(format!(
            "blocks of 4 KiB that hold anything: {}",
            parts.collect::<Vec<_>>().join(", ")
        ));
    }
    lines
}

fn by_structure(rows: &[&Row]) -> String {
    let mut cells: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        cells.entry((&row.structure, &row.fault)).or_default().push(row);
    }
    let mut table = String::from(
        "| structure | fault | CORRECT | DEGRADED | UNAVAILABLE | UNSAFE | noticed |\n|---|---|--:|--:|--:|--:|--:|\n",
    );
    for ((structure, fault), rows) in cells {
        let noticed = rows.iter().filter(|row| row.times.detected_ms.is_some()).count();
        let totals = Totals::of(rows.iter().copied());
        let _ = writeln!(
            table,
            "| {structure} | {fault} | {} | {noticed} of {} |",
            totals.cells(),
            rows.len()
        );
    }
    table
}

/// Median and longest of some times.
fn times(rows: &[&Row]) -> String {
    let mut text = String::new();
    type Time = fn(&Times) -> Option<u64>;
    let kinds: [(&str, Time); 4] = [
        ("available", |times| times.available_ms),
        ("detected", |times| times.detected_ms),
        ("told", |times| times.told_ms),
        ("repaired", |times| times.repaired_ms),
    ];
    for (name, of) in kinds {
        let mut all: Vec<u64> = rows.iter().filter_map(|row| of(&row.times)).collect();
        all.sort_unstable();
        let (Some(longest), Some(median)) = (all.last(), all.get(all.len() / 2)) else {
            continue;
        };
        let _ = writeln!(
            text,
            "- {name}: median {median} ms, longest {longest} ms ({} cases)",
            all.len()
        );
    }
    match text.is_empty() {
        true => text,
        false => format!("\nSince the nodes were started:\n\n{text}"),
    }
}

/// Cases that passed because nothing noticed what did not matter.
fn unnoticed(rows: &[&Row]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        let passed = row.verdict == Verdict::Correct && row.times.detected_ms.is_none();
        if passed && row.times.available_ms.is_some() {
            *counts.entry(&row.structure).or_default() += 1;
        }
    }
    if counts.is_empty() {
        return String::new();
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(structure, count)| format!("{structure} {count}"))
        .collect();
    format!("\nCorrect and not noticed: {}.\n", counts.join(", "))
}

/// A text whose numbers are gone: what is alike but for them is one cause.
fn without_numbers(why: &str) -> String {
    let mut text = String::new();
    let (mut in_number, mut before) = (false, ' ');
    for character in why.chars() {
        // The name of a criterion stays.
        let digit = character.is_ascii_digit() && before != 'P';
        let number = digit || (in_number && character == '.');
        before = character;
        match (number, in_number) {
            (true, false) => text.push('#'),
            (true, true) => {}
            (false, _) => text.push(character),
        }
        in_number = number;
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn row(structure: &str, verdict: Verdict, detected_ms: Option<u64>, why: &str) -> Row {
        Row {
            id: format!("T1/zeros/leader/{structure}"),
            tier: Tier::T1,
            engine: "lsm".to_owned(),
            structure: structure.to_owned(),
            fault: "zeros".to_owned(),
            role: "leader",
            verdict,
            times: Times {
                available_ms: Some(10),
                detected_ms,
                ..Times::default()
            },
            seed: 1,
            why: why.to_owned(),
            again: false,
            took_ms: 5,
        }
    }

    #[test]
    fn tables_count_what_there_is() {
        let rows = vec![
            row("tree table", Verdict::Correct, Some(30), ""),
            row("tree table", Verdict::Unsafe, Some(50), "P1: key 12 is wrong"),
            row("identity", Verdict::Degraded, None, "P5: not told after 1.5s"),
            row("identity", Verdict::Degraded, None, "P5: not told after 22.75s"),
            row("lock", Verdict::Correct, None, ""),
        ];
        let results = Results {
            totals: Totals::of(&rows),
            seed: 1,
            sample: 1.0,
            known: 5,
            run_again: 0,
            setting: Vec::new(),
            took_s: 1.0,
            cases: rows,
        };
        assert!(!results.held());
        let page = results.page();
        for line in [
            "| T1 | lsm | 5 | 2 | 2 | 0 | 1 |",
            "| tree table | zeros | 1 | 0 | 0 | 1 | 2 of 2 |",
            "- detected: median 50 ms, longest 50 ms (2 cases)",
            "Correct and not noticed: lock 1.",
            "| UNSAFE | 1 | tree table | P1: key # is wrong |",
            "| DEGRADED | 2 | identity | P5: not told after #s |",
        ] {
            assert!(page.contains(line), "{line:?} is not in\n{page}");
        }
        let json = serde_json::to_value(&results).unwrap();
        assert_eq!(json["totals"]["unsafe"], 1);
        assert_eq!(json["cases"][1]["verdict"], "UNSAFE");
        assert_eq!(json["cases"][1]["detected_ms"], 50);
        assert_eq!(json["cases"][4]["detected_ms"], serde_json::Value::Null);
    }
    fn results(rows: Vec<Row>) -> Results {
        Results {
            totals: Totals::of(&rows),
            seed: 1,
            sample: 1.0,
            known: rows.len(),
            run_again: 0,
            setting: Vec::new(),
            took_s: 1.0,
            cases: rows,
        }
    }

    #[test]
    fn a_bar_is_missed_by_what_is_unsafe_and_on_the_engine_that_counts_by_what_is_not_correct() {
        let of = |tier, engine: &str, verdict| Row {
            tier,
            engine: engine.to_owned(),
            ..row("tree table", verdict, None, "P4: not repaired")
        };
        use Verdict::{Correct, Degraded, Unavailable, Unsafe};
        for (tier, engine, verdict, held) in [
            (Tier::T1, "lsm", Correct, true),
            (Tier::T1, "lsm", Degraded, false),
            (Tier::T1f, "lsm", Unavailable, false),
            (Tier::T1d, "lsm", Unavailable, true),
            (Tier::T1d, "lsm", Unsafe, false),
            (Tier::T1, "sled", Degraded, true),
            (Tier::T1f, "sled", Unsafe, false),
            (Tier::T0, "none", Degraded, false),
            (Tier::T4, "memory", Degraded, false),
            (Tier::T4, "lsm", Degraded, false),
        ] {
            let results = results(vec![of(tier, engine, verdict)]);
            assert_eq!(results.held(), held, "{tier:?} {engine} {verdict:?}");
            assert_eq!(results.bars().starts_with("all bars held"), held);
        }
        assert!(!results(Vec::new()).held(), "nothing was run");
    }

    #[test]
    fn what_is_excepted_is_named_and_misses_no_bar() {
        let why = "P5: damage to the ledger of damage was not told: nothing is in the ledger";
        let excepted = Row {
            tier: Tier::T1f,
            fault: "missing".to_owned(),
            ..row("ledger of damage", Verdict::Degraded, None, why)
        };
        let with = results(vec![excepted.clone()]);
        assert!(with.held());
        assert!(
            with.page().contains("excepted: T1f/missing/ledger of damage 1: "),
            "{}",
            with.bars()
        );
        let without = results(vec![Row {
            verdict: Verdict::Correct,
            why: String::new(),
            ..excepted
        }]);
        assert!(without.held());
        assert!(
            without.bars().contains("nobody needs any more"),
            "{}",
            without.bars()
        );
    }
}
