//! `matrix`: every place of a disk, damaged at rest.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Args, ValueEnum};
use reelkv::storage::EngineKind;

use super::{CouldNot, Ended, outcome, print, tell};
use crate::matrix::report::{Results, Row};
use crate::matrix::world::Pace;
use crate::matrix::{self, Options as MatrixOptions, Tier};

/// Cases that are not correct are told as they end, up to so many.
const TOLD_MAX: usize = 20;

/// Engines on files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// The default.
    Lsm,
    /// The adversary: nothing it does may make a wrong answer.
    Sled,
}

/// Options of `matrix`.
#[derive(Args)]
pub(super) struct Options {
    /// Groups of cases, joined by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "T0,T1,T1f,T1d,T4")]
    tier: Vec<Tier>,
    /// The engine below the cases on real files
    #[arg(long, value_enum, default_value = "lsm")]
    engine: Engine,
    /// Run this share of the cases, chosen by the seed
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    sample: f64,
    /// Everything that is left to chance follows from it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run this case alone, or those whose ids begin so
    #[arg(long, value_name = "ID", conflicts_with_all = ["tier", "sample"])]
    case: Option<String>,
    /// Random cases of tier T4
    #[arg(long, default_value_t = 15_000)]
    random: u64,
    /// Cases at the same time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: u64,
    /// Whose time passes in the cases on real files
    #[arg(long, value_enum, default_value = "real")]
    time: Pace,
    /// Where fault-matrix.json and fault-matrix.md are kept
    #[arg(long, default_value = "target/matrix")]
    out: PathBuf,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match (0.0..=1.0).contains(&share) {
        true => Ok(share),
        false => Err("a share is between 0 and 1".to_owned()),
    }
}

/// Exit status of a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// An interrupted run leaves no directories behind.
#[allow(clippy::disallowed_methods)] // a thread of this process, outside of every world
fn clean_up_when_interrupted() -> Result<(), CouldNot> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        let interrupted = runtime.block_on(tokio::signal::ctrl_c());
        if interrupted.is_ok() {
            matrix::remove_all_scratch();
            tell("interrupted");
            std::process::exit(INTERRUPTED);
        }
    });
    Ok(())
}

pub(super) fn run(options: &Options) -> Result<Ended, CouldNot> {
    outcome::prepare(&options.out)?;
    clean_up_when_interrupted()?;
    let asked = MatrixOptions {
        tiers: options.tier.clone(),
        engine: match options.engine {
            Engine::Lsm => EngineKind::Lsm,
            Engine::Sled => EngineKind::Sled,
        },
        sample: options.sample,
        seed: options.seed,
        workers: options.workers as usize,
        pace: options.time,
        random: options.random,
        only: options.case.clone(),
    };
    let told = AtomicUsize::new(0);
    let tell_of = |row: &Row| match told.fetch_add(1, Ordering::Relaxed) {
        before if before < TOLD_MAX => tell(&explain(&asked, row)),
        TOLD_MAX => tell("more are not correct; fault-matrix.json has them all"),
        _ => {}
    };
    let results = matrix::run(asked.clone(), &tell_of)?;
    keep(&options.out, &results)?;
    print(&shown(&results))?;
    tell(&format!("kept in {}", options.out.display()));
    Ok(match results.held() {
        true => Ended::Held,
        false => Ended::Fell,
    })
}

/// Why a case is not correct, and how to see it again.
fn explain(asked: &MatrixOptions, row: &Row) -> String {
    format!(
        "{} {}: {}\nseed {}, commit {}\nagain: {}",
        row.verdict.name(),
        row.id,
        row.why,
        row.seed,
        outcome::commit(),
        asked.command(&row.id)
    )
}

/// What is printed: one case alone is told in full.
fn shown(results: &Results) -> String {
    match &results.cases[..] {
        [row] => format!("{} {}: {}\n{:?}", row.verdict.name(), row.id, row.why, row.times),
        _ => format!(
            "{}\n{}{}{}",
            results.setting.join("\n"),
            results.summary(),
            results.bars(),
            results.causes()
        ),
    }
}

#[allow(clippy::disallowed_methods)] // reports are files of this process, not of a node
fn keep(dir: &Path, results: &Results) -> Result<(), CouldNot> {
    let json = serde_json::to_string_pretty(results)?;
    std::fs::write(dir.join("fault-matrix.json"), json + "\n")?;
    std::fs::write(dir.join("fault-matrix.md"), results.page())?;
    Ok(())
}
