//! `run`: one run, from a seed to a verdict.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::outcome::{self, explain};
use super::{CouldNot, Ended, print, tell};
use crate::nemesis::{Fault, parse};
use crate::run::{Load, Plan, simulate};
use crate::workload::Workload;

/// Where a run takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum World {
    /// Simulated network, disks and clocks in this process, on virtual time.
    Sim,
}

/// Options of `run`.
#[derive(Args)]
pub(super) struct Options {
    /// Where it takes place
    #[arg(long, value_enum, default_value = "sim")]
    world: World,
    /// What clients do; `list` shows what there is
    #[arg(long, value_enum)]
    workload: Workload,
    /// What goes wrong: names joined by commas, a family, all, or none
    #[arg(long, value_parser = parse_faults, default_value = "all")]
    nemesis: Faults,
    /// Virtual seconds of load
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Everything that is left to chance follows from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Nodes, each with a replica of every shard
    #[arg(long, default_value = "3", value_parser = ["3", "5"])]
    nodes: String,
    /// Clients at the same time; the availability workload has one per shard
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=256))]
    clients: u64,
    /// How long a client thinks before an operation, in virtual milliseconds, at most
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    think_ms: u64,
    /// Where history, timeline and verdict are kept [default: target/jepsen/WORKLOAD-SEED]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug)]
struct Faults(Vec<Fault>);

fn parse_faults(names: &str) -> Result<Faults, String> {
    parse(names).map(Faults)
}

pub(super) fn run(options: &Options) -> Result<Ended, CouldNot> {
    let World::Sim = options.world;
    let plan = Plan {
        workload: options.workload,
        faults: options.nemesis.0.clone(),
        seed: options.seed,
        seconds: options.seconds,
        nodes: if options.nodes == "5" { 5 } else { 3 },
        load: Load {
            clients: options.clients,
            think_ms: options.think_ms,
        },
    };
    let default_dir = || PathBuf::from(format!("target/jepsen/{}-{}", plan.workload.name(), plan.seed));
    let dir = options.out.clone().unwrap_or_else(default_dir);
    outcome::prepare(&dir)?;
    let report = simulate(&plan)?;
    outcome::keep(&dir, &report)?;
    let verdict = report.verdict();
    match options.json {
        true => print(&serde_json::to_string(&report.summary())?)?,
        false => print(&outcome::table(&report))?,
    }
    if !verdict.is_pass() {
        tell(&explain(&report));
    }
    tell(&format!("kept in {}", dir.display()));
    Ok(match verdict.is_pass() {
        true => Ended::Held,
        false => Ended::Fell,
    })
}
