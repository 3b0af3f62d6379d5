//! How throughput, CPU and memory grow with data, shards, clients, nodes and idle replicas, one factor at
//! a time around a stated base.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::CannotRun;
use crate::cluster::find_binary;
use crate::room;

mod fit;
mod measure;
mod plan;
mod report;

use measure::Running;
use plan::{Factor, Step, Times};
use report::{Report, Verdict};

/// A run ends after this, whatever it has measured by then.
const RUN_MAX: Duration = Duration::from_secs(40 * 60);

#[derive(Args)]
pub struct Options {
    /// What to vary.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Factor::ALL)]
    factors: Vec<Factor>,
    /// Fewer and smaller points, watched for seconds only: to see that it works. Judges no bar.
    #[arg(long)]
    quick: bool,
    /// Put growth.json and a chart per factor (SVG) into this directory; made if it does not exist.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The reelkv binary, built with --release [default: beside this program].
    #[arg(long)]
    reelkv: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Exit status 0 when all bars that were judged are held, 1 when one is missed, 2 for everything else.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let done = measure_and_tell(options).await;
    done.map_err(|error| CannotRun(format!("{error:#}")).into())
}

async fn measure_and_tell(options: Options) -> anyhow::Result<ExitCode> {
    let program = find_binary(options.reelkv.as_deref())?;
    let steps = plan::steps(&options.factors, options.quick);
    check_disk(&steps)?;
    if let Some(out) = &options.out {
        prepare(out)?;
    }
    let times = Times::new(options.quick);
    let mut report = Report::new(options.quick, times);
    walk(&program, &steps, times, &mut report).await;
    let found = json!({
        "report": &report,
        "slopes": report.slopes(),
        "bars": report.bars(),
    });
    let found = serde_json::to_string_pretty(&found)?;
    if let Some(out) = &options.out {
        write(&out.join("growth.json"), &found)?;
        for (name, chart) in report.charts() {
            write(&out.join(format!("growth-{name}.svg")), &chart.to_svg()?)?;
        }
    }
    match options.json {
        true => println!("{found}"),
        false => print!("{}", report.text()),
    }
    Ok(match report.verdict() {
        Verdict::Held => ExitCode::SUCCESS,
        Verdict::Missed => ExitCode::from(1),
        Verdict::CouldNotRun => ExitCode::from(2),
    })
}

/// Measures step by step; a step that fails is on the report, and the next begins afresh.
async fn walk(program: &Path, steps: &[Step], times: Times, report: &mut Report) {
    let deadline = Instant::now() + RUN_MAX;
    let mut running: Option<(Running, Step)> = None;
    for (at, step) in steps.iter().enumerate() {
        let name = format!("{} {}", step.factor.name(), step.value);
        let left = plan::left_s(steps, at, times);
        eprintln!(
            "{name} {}; about {}:{:02} left",
            step.factor.unit(),
            left / 60,
            left % 60
        );
        let done = timeout_at(deadline, take(program, step, times, running.take(), report)).await;
        match done.unwrap_or_else(|_| {
            Err(anyhow::anyhow!(
                "out of the {} minutes of a run",
                RUN_MAX.as_secs() / 60
            ))
        }) {
            Ok(kept) => running = Some((kept, *step)),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                report.failures.push(format!("{name}: {error:#}"));
            }
        }
    }
    if let Some((last, step)) = running
        && let Err(error) = last.stop().await
    {
        let name = step.factor.name();
        report
            .failures
            .push(format!("the nodes of {name} {}: {error:#}", step.value));
    }
}

/// Measures one step, on the cluster of the one before if that will do, and hands its cluster on.
async fn take(
    program: &Path,
    step: &Step,
    times: Times,
    before: Option<(Running, Step)>,
    report: &mut Report,
) -> anyhow::Result<Running> {
    let mut running = match before {
        Some((running, earlier)) if step.continues(&earlier) => running,
        before => {
            if let Some((running, _)) = before {
                running.stop().await?;
            }
            Running::start(program, step).await?
        }
    };
    if step.factor == Factor::Idle {
        report.idle.push(running.idle(step, times).await?);
        return Ok(running);
    }
    running.load_up_to(step.setup.keys).await?;
    let points = running.under_load(step, times).await?;
    report.under_load.entry(step.factor).or_default().extend(points);
    Ok(running)
}

/// There must be room for the largest cluster where temporary directories are.
fn check_disk(steps: &[Step]) -> Result<(), CannotRun> {
    let Some(largest) = steps.iter().max_by_key(|step| step.disk_bytes()) else {
        return Ok(());
    };
    let what = format!("{} {}", largest.factor.name(), largest.value);
    let directory = std::env::temp_dir();
    room::check(
        &what,
        largest.disk_bytes(),
        &directory,
        "--factors can leave it out",
    )
}

/// Said before anything is measured, not after.
fn prepare(out: &Path) -> Result<(), CannotRun> {
    #[allow(clippy::disallowed_methods)] // results, not data of a node
    let made = std::fs::create_dir_all(out).and_then(|()| std::fs::write(out.join("growth.json"), "{}\n"));
    made.map_err(|error| CannotRun(format!("--out {}: {error}", out.display())))
}

#[allow(clippy::disallowed_methods)] // results, not data of a node
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
