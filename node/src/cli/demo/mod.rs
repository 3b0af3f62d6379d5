//! `reelkv demo`: the main job, on three nodes it starts itself.
//!
//! A DVD-rental business runs on three `node start` child processes while one of them is killed
//! and bytes of its store are overwritten, and then another is killed and, meanwhile, bytes are flipped in
//! the store and in the log of the third, which runs. In the end every acknowledged write is read again
//! from every replica.
//!
//! # How a wrong answer is told
//!
//! Every value is a function of the seed, the row and the row's *revision*, and names its
//! revision (`data`). Each row has one writer. The `ledger` knows of each row which revision was
//! acknowledged last, under which version, and how many were begun; so whatever is read, live or
//! from a replica, is right, lost (older than acknowledged) or wrong (never written), bit for bit.
//! Counters, which all workers add to, must lie between what was acknowledged and what was sent.
//!
//! # How a stall is told
//!
//! Two probers per shard, one reading and one writing, ask at a fixed rate; the longest time
//! between two answers to one prober is the longest stall (`stall`).
//!
//! # The parts
//!
//! Pure: `data`, `ledger`, `counter`, `stall`, `report`, the choice of places in `damage`.
//! At the edge: `nodes` (processes), `business` and `workers` (requests), `monitor` (what the
//! cluster says of itself), `faults` (the script) and `flips`, `verify` (the end), `draw`.

mod business;
mod counter;
mod damage;
mod data;
mod draw;
#[cfg(test)]
mod falsified_test;
mod faults;
mod flips;
mod ledger;
mod monitor;
mod nodes;
mod report;
mod show;
mod stall;
mod story;
mod verify;
mod workers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use self::report::{Report, Verdict};
use crate::clock::{Clock, SystemClock};
use crate::disk::{Disk, RealDisk, write_file_atomically};

/// Shows on three nodes of its own that nothing is lost, whatever is done to one of them.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Write what was found to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Seed of the data, the load and the damage
    #[arg(long, default_value_t = 2008)]
    pub seed: u64,
    /// Keep the nodes' data and logs in this directory, which must be empty or new
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// How long the load runs, at least; it goes on until all faults are repaired
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// Falsify something on purpose: the demo must then fail
    #[arg(long, value_name = "WHAT")]
    pub sabotage: Option<Sabotage>,
    /// Rows of the data set
    #[arg(long, hide = true, default_value_t = 52_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    pub rows: u64,
    /// Concurrent workers
    #[arg(long, hide = true, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1_024))]
    pub workers: u64,
}

/// What is falsified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// A write that was never sent is recorded as acknowledged
    LoseAck,
    /// One replica is shown to the verifier with an overwritten value in place of the last
    StaleReplica,
    /// Bytes are said to be flipped in the running node, and are not
    PretendDamage,
}

/// Exit status for an order that cannot be carried out as given.
const BAD_USAGE: u8 = 2;
/// Exit status after Ctrl-C, as shells count it.
const INTERRUPTED: u8 = 130;

/// Runs the demo. The exit status is 0 for a pass, 1 for a fail, 2 for a bad order.
///
/// Whatever ends it, a panic and a signal included, its nodes are killed with it.
///
/// # Errors
/// Something outside the cluster kept it from running: no port, no disk space, no process.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if let Some(complaint) = complaint(&args) {
        eprintln!("error: {complaint}");
        return Ok(ExitCode::from(BAD_USAGE));
    }
    let mut place = Place::new(args.keep.as_deref())?;
    let told = tokio::select! {
        told = story::tell(&args, &place.dir) => told,
        interrupted = interrupted() => {
            interrupted?;
            eprintln!("interrupted; the nodes are being killed");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    let passed = told.as_ref().is_ok_and(|report| report.verdict == Verdict::Pass);
    if !passed && args.sabotage.is_none() {
        place.keep();
    }
    let report = told?;
    for line in report.lines() {
        draw::print(&format!("{line}\n"));
    }
    if let Some(path) = &args.report {
        write_report(path, &report).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is wrong with the order, found before anything is started.
fn complaint(args: &DemoArgs) -> Option<String> {
    if let Some(dir) = &args.keep {
        match RealDisk.list(dir) {
            Ok(entries) if entries.is_empty() => {}
            Ok(_) => return Some(format!("--keep {}: the directory is not empty", dir.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Some(format!("--keep {}: {error}", dir.display())),
        }
    }
    let path = args.report.as_deref()?;
    let dir = parent(path);
    if !RealDisk.exists(&dir).unwrap_or(false) || path.is_dir() {
        return Some(format!("--report {}: it cannot be a file there", path.display()));
    }
    None
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn write_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    let name = path.file_name().context("it has no file name")?;
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    write_file_atomically(&RealDisk, &parent(path).join(name), &json)?;
    Ok(())
}

async fn interrupted() -> std::io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed,
        _ = terminated.recv() => Ok(()),
    }
}

/// Where the nodes keep their data. Removed at the end unless it is to be kept, or something went wrong.
struct Place {
    dir: PathBuf,
    remove: bool,
}

impl Place {
    fn new(keep: Option<&Path>) -> anyhow::Result<Self> {
        let name = || {
            format!(
                "reelkv-demo-{}-{:08x}",
                std::process::id(),
                SystemClock.random_u64() as u32
            )
        };
        let dir = keep.map_or_else(|| std::env::temp_dir().join(name()), Path::to_owned);
        RealDisk
            .create_dir_all(&dir)
            .with_context(|| format!("making {}", dir.display()))?;
        Ok(Self {
            dir,
            remove: keep.is_none(),
        })
    }

    /// Keeps the data of a run that went wrong, for whoever wants to know why.
    fn keep(&mut self) {
        self.remove = false;
        eprintln!("the nodes' data and logs are kept in {}", self.dir.display());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A node that was killed this moment may still hold files; what is left is temporary anyway.
        if self.remove
            && let Err(error) = RealDisk.remove_dir_all(&self.dir)
        {
            eprintln!("{} could not be removed: {error}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DemoArgs,
    }

    fn args(line: &[&str]) -> Result<DemoArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("demo").chain(line.iter().copied())).map(|line| line.args)
    }

    #[test]
    fn bad_orders_are_refused() {
        for line in [
            ["--seconds", "0"],
            ["--sabotage", "all"],
            ["--seed", "x"],
            ["--rows", "5"],
        ] {
            assert!(args(&line).is_err(), "{line:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("report.json");
        write_report(&report, &Report::default()).unwrap();
        let complains = |flag: &str, path: &Path| complaint(&args(&[flag, path.to_str().unwrap()]).unwrap());
        assert!(complains("--keep", dir.path()).unwrap().contains("not empty"));
        assert!(
            complains("--report", &dir.path().join("none/report.json"))
                .unwrap()
                .contains("cannot be a file")
        );
        assert_eq!(complains("--report", &report), None);
        assert_eq!(complains("--keep", &dir.path().join("new")), None);
        assert_eq!(complaint(&args(&[]).unwrap()), None);
    }

    #[test]
    fn a_place_is_removed_unless_it_is_to_be_kept() {
        let scratch = Place::new(None).unwrap().dir.clone();
        assert!(!RealDisk.exists(&scratch).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let kept = Place::new(Some(&dir.path().join("kept"))).unwrap().dir.clone();
        assert!(RealDisk.exists(&kept).unwrap());
    }
}
