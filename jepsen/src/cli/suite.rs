//! `suite`: many runs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CouldNot, Ended, outcome, print, tell};
use crate::mutants;
use crate::suite::{self, Progress, hunt as hunting, profile};

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// A few minutes.
    Quick,
    /// A thousand seeds and more.
    Full,
}

/// Options of `suite`.
#[derive(Args)]
pub(super) struct Options {
    /// How much is run [default: quick]
    #[arg(long, value_enum, conflicts_with = "mutants")]
    profile: Option<Profile>,
    /// Hunt the bugs on purpose instead: all, or those named, joined by commas
    #[arg(long, num_args = 0..=1, default_missing_value = "all", value_name = "NAMES")]
    mutants: Option<String>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the runs that did not pass are kept
    #[arg(long, default_value = "target/jepsen/suite")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `hunt`.
#[derive(Args)]
pub(super) struct HuntOptions {
    /// Seconds of real time after which the hunt is given up
    #[arg(long, default_value_t = 120)]
    give_up_s: u64,
}

pub(super) fn run(options: &Options) -> Result<Ended, CouldNot> {
    outcome::prepare(&options.out)?;
    match &options.mutants {
        Some(names) => run_mutants(options, names),
        None => run_profile(options),
    }
}

fn run_profile(options: &Options) -> Result<Ended, CouldNot> {
    let entries = match options.profile.unwrap_or(Profile::Quick) {
        Profile::Quick => profile::quick(options.seed),
        Profile::Full => profile::full(options.seed),
    };
    let progress = Progress::new(
        "runs",
        entries
            .iter()
            .map(|entry| entry.seeds.clone().count() as u64)
            .sum(),
    );
    let results = suite::run(&entries, &progress, |report| {
        let name = format!(
            "{}-{}-{}",
            report.plan.workload.name(),
            report.plan.nodes,
            report.plan.seed
        );
        let dir = options.out.join(name);
        tell(&outcome::explain(report));
        // A report that cannot be kept must not hide the failure itself.
        if let Err(CouldNot(why)) = outcome::prepare(&dir).and_then(|()| outcome::keep(&dir, report)) {
            tell(&why);
        }
    });
    match options.json {
        true => print(&serde_json::to_string(&results)?)?,
        false => print(&results.table())?,
    }
    Ok(match results.held() {
        true => Ended::Held,
        false => Ended::Fell,
    })
}

fn run_mutants(options: &Options, names: &str) -> Result<Ended, CouldNot> {
    if !mutants::BUILT_IN {
        return Err(CouldNot(format!(
            "--mutants: this program has none; build it with them: {} suite --mutants",
            mutants::BUILD
        )));
    }
    let chosen = hunting::named(names).map_err(CouldNot)?;
    let progress = Progress::new("mutants", chosen.len() as u64);
    let hunted = hunting::all(&chosen, &progress)?;
    match options.json {
        true => print(&serde_json::to_string(&hunted)?)?,
        false => print(&hunting::table(&hunted))?,
    }
    let all_caught = hunted.iter().all(hunting::Hunted::proves_something);
    Ok(match all_caught {
        true => Ended::Held,
        false => Ended::Fell,
    })
}

/// Hunts the mutant that is on in this process; prints what caught it, as JSON.
pub(super) fn hunt(options: &HuntOptions) -> Result<Ended, CouldNot> {
    let Some(name) = mutants::chosen().map_err(CouldNot)? else {
        return Err(CouldNot("no mutant is on".to_owned()));
    };
    hunting::end_with_the_one_who_asked();
    let catch = hunting::one(name, std::time::Duration::from_secs(options.give_up_s))?;
    print(&serde_json::to_string(&catch)?)?;
    Ok(Ended::Held)
}
