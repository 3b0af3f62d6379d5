//! Proof that the suite catches bugs: each mutant is hunted by the plans that ought to catch it.
//!
//! A mutant lives in a process of its own, which ends with this one. Once it is caught, the same seeds
//! must pass without it: a judge that says no to everything catches everything.

use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use reelkv::clock::now;
use serde::{Deserialize, Serialize};

use super::{Progress, attempt, on_all_cores};
use crate::checker::Verdict;
use crate::nemesis::{Fault, parse};
use crate::run::{Load, Plan};
use crate::workload::Workload;

/// The judges, those whose word says most first. That too little happened in a run catches nobody.
const JUDGES: [&str; 4] = ["history", "final-integrity", "no-panic", "run"];

/// A hunt is given up after so long.
const GIVE_UP: Duration = Duration::from_secs(240);

/// Where a mutant is hunted.
struct Ground {
    mutant: &'static str,
    workload: Workload,
    nemesis: &'static str,
    load: Load,
}

/// What caught a mutant, if anything did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Catch {
    /// Seed of the run that fell.
    pub seed: Option<u64>,
    /// Runs it took.
    pub runs: u64,
    /// Seconds of real time it took.
    pub took_s: f64,
    /// Which judge, and what it found first.
    pub by: String,
}

/// A mutant and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Hunted {
    /// Its name.
    pub mutant: &'static str,
    /// What caught it.
    pub catch: Catch,
    /// The command that shows it again; empty if it was not caught.
    pub command: String,
    /// Whether the same seeds pass without the mutant.
    pub twin_passes: bool,
}

impl Hunted {
    /// Caught, and its twin was not.
    pub fn proves_something(&self) -> bool {
        self.catch.seed.is_some() && self.twin_passes
    }
}

const fn ground(mutant: &'static str, workload: Workload, nemesis: &'static str) -> Ground {
    Ground {
        mutant,
        workload,
        nemesis,
        load: Load {
            clients: 6,
            think_ms: 80,
        },
    }
}

/// Many clients that hardly think: proposals queue up.
const fn crowded(ground: Ground) -> Ground {
    Ground {
        load: Load {
            clients: 24,
            think_ms: 10,
        },
        ..ground
    }
}

/// Every mutant has its ground: the workload and the faults that ought to show it.
const GROUNDS: &[Ground] = &[
    ground("skip_fsync", Workload::Set, "crash-all"),
    ground(
        "ack_before_quorum",
        Workload::Register,
        "isolate-leader,crash-leader",
    ),
    ground(
        "stale_read_on_old_leader",
        Workload::Register,
        "isolate-leader,one-way",
    ),
    ground("vote_not_persisted", Workload::Set, "process"),
    ground("truncate_on_bad_crc", Workload::Set, "payload-damage"),
    ground("retry_without_token", Workload::Counter, "loss,duplicate"),
    ground("apply_skips_effect", Workload::Set, "crash"),
    crowded(ground("no_version_check", Workload::Counter, "none")),
    ground("no_condition_check", Workload::Append, "none"),
    ground(
        "leader_restore_on",
        Workload::Set,
        "disk-slow,crash-leader,crash-loop",
    ),
    ground(
        "tombstone_dropped_early",
        Workload::DeleteResurrect,
        "crash-all,clock-jump",
    ),
    ground("no_dir_fsync", Workload::Set, "crash-all"),
    ground("time_of_one_clock", Workload::Ttl, "clock-jump,crash-leader"),
    ground("skip_crc_on_read", Workload::Register, "record-damage"),
    ground("absent_for_unproven", Workload::Register, "record-damage"),
    ground("bless_by_rescan", Workload::Register, "record-damage"),
    ground("ignore_digest_mismatch", Workload::Set, "record-loss"),
    ground("count_damaged_as_dont_have", Workload::Set, "shared-damage"),
    ground("donate_old_view", Workload::Set, "tree-loss"),
    ground("repair_before_applied", Workload::Set, "tree-loss,delay"),
    ground("install_unverified_chunk", Workload::Set, "spoiled-view"),
    ground("rejoin_with_same_id", Workload::Register, "old-disk"),
    ground(
        "checkpoint_not_atomic",
        Workload::Register,
        "crash-all,clock-jump",
    ),
    ground("purge_before_checkpoint", Workload::Set, "crash-all"),
    crowded(ground("prefetch_across_checkpoint", Workload::Counter, "none")),
    ground("trust_engine_index", Workload::Set, "old-trees,tree-emptied"),
    ground("unproven_not_persisted", Workload::Set, "crash-in-repair"),
    ground("retry_failed_fsync", Workload::Set, "sync-error-all"),
];

/// The mutants that a list of names stands for.
///
/// # Errors
/// One line naming what is unknown and what there is.
pub fn named(names: &str) -> Result<Vec<&'static str>, String> {
    let all: Vec<&'static str> = GROUNDS.iter().map(|ground| ground.mutant).collect();
    if names == "all" {
        return Ok(all);
    }
    let find = |name: &str| {
        let known = all.iter().copied().find(|known| *known == name);
        known.ok_or_else(|| format!("there is no mutant {name:?}; there are: {}", all.join(", ")))
    };
    names.split(',').map(str::trim).map(find).collect()
}

/// Hunts the mutant that is on in this process.
///
/// # Errors
/// It has no ground.
pub fn one(mutant: &str, give_up: Duration) -> Result<Catch, String> {
    let began = now();
    for seed in 0.. {
        let report = attempt(&plan(mutant, seed)?);
        // The judges of data first: too little may have happened only because of what they saw.
        let found = |judge: &&str| match report.verdicts.get(*judge) {
            Some(Verdict::Fail { findings }) => Some(format!("{judge}: {}", findings.join("; "))),
            _ => None,
        };
        let fell = JUDGES.iter().find_map(found);
        if fell.is_some() || began.elapsed() > give_up {
            return Ok(Catch {
                seed: fell.is_some().then_some(seed),
                runs: seed + 1,
                took_s: began.elapsed().as_secs_f64(),
                by: fell.unwrap_or_default(),
            });
        }
    }
    unreachable!("it is given up at last")
}

/// Hunts each of these, in processes of their own, and runs the seeds it took without it.
///
/// # Errors
/// A process could not be started, or did not say what it found.
pub fn all(mutants: &[&'static str], progress: &Progress) -> Result<Vec<Hunted>, String> {
    let queue = Mutex::new(mutants.to_vec());
    let hunted = Mutex::new(Vec::new());
    let trouble = Mutex::new(None);
    on_all_cores(|_| {
        loop {
            let next = queue.lock().pop();
            let Some(mutant) = next else { return };
            match hunted_alone(mutant) {
                Ok(one) => hunted.lock().push(one),
                Err(error) => *trouble.lock() = Some(format!("{mutant}: {error}")),
            }
            progress.step();
        }
    });
    progress.finish();
    let mut hunted = hunted.into_inner();
    hunted.sort_by_key(|one: &Hunted| mutants.iter().position(|mutant| *mutant == one.mutant));
    match trouble.into_inner() {
        Some(trouble) => Err(trouble),
        None => Ok(hunted),
    }
}

fn hunted_alone(mutant: &'static str) -> Result<Hunted, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut hunter = Command::new(program)
        .args(["hunt", "--give-up-s", &GIVE_UP.as_secs().to_string()])
        .env("REELKV_MUTANT", mutant)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let _leash = hunter.stdin.take();
    let output = hunter.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let catch: Catch = serde_json::from_str(&said)
        .map_err(|error| format!("its process said {said:?} ({}): {error}", output.status))?;
    let Some(seed) = catch.seed else {
        return Ok(Hunted {
            mutant,
            catch,
            command: String::new(),
            twin_passes: false,
        });
    };
    let plans = (0..=seed).map(|seed| plan(mutant, seed));
    let plans = plans.collect::<Result<Vec<Plan>, String>>()?;
    let twin_passes = plans.iter().all(|plan| attempt(plan).verdict().is_pass());
    Ok(Hunted {
        mutant,
        catch,
        command: format!("REELKV_MUTANT={mutant} {}", plan(mutant, seed)?.command()),
        twin_passes,
    })
}

/// Ends this process when the one that holds the other end of its standard input has ended,
/// however that came.
#[allow(clippy::disallowed_methods)] // outside of any simulated world
pub fn end_with_the_one_who_asked() {
    std::thread::spawn(|| {
        // An error says the same as the end: nobody is there.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(2);
    });
}

fn plan(mutant: &str, seed: u64) -> Result<Plan, String> {
    let ground = GROUNDS.iter().find(|ground| ground.mutant == mutant);
    let ground = ground.ok_or_else(|| format!("nobody knows where to hunt {mutant}"))?;
    let faults: Vec<Fault> = parse(ground.nemesis)?;
    Ok(Plan {
        workload: ground.workload,
        faults,
        seed,
        seconds: 30,
        nodes: 3,
        load: ground.load,
    })
}

/// What became of them, as a table for people.
pub fn table(hunted: &[Hunted]) -> String {
    let mut lines = vec![format!(
        "{:27} {:>7} {:>5} {:>8}  {:7} {}",
        "mutant", "caught", "runs", "seconds", "twin", "by"
    )];
    for one in hunted {
        let caught = if one.catch.seed.is_some() { "yes" } else { "NO" };
        let twin = match (one.catch.seed, one.twin_passes) {
            (None, _) => "-",
            (_, true) => "passes",
            (_, false) => "FALLS",
        };
        lines.push(format!(
            "{:27} {caught:>7} {:>5} {:>8.1}  {twin:7} {}",
            one.mutant,
            one.catch.runs,
            one.catch.took_s,
            short(&one.catch.by)
        ));
    }
    lines.join("\n")
}

/// The beginning of a finding, for a table.
fn short(finding: &str) -> String {
    const SHOWN_MAX: usize = 100;
    match finding.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &finding[..end]),
        None => finding.to_owned(),
    }
}
