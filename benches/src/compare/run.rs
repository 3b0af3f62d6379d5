//! Starts the systems and measures them in turn, so that a drift of the machine meets all of them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;

use super::bars::{self, median};
use super::cell::{Cell, CellPlan, Part, measure};
use super::plan::{Plan, fill_max};
use super::progress::Progress;
use super::report::Results;
use super::system::{Kind, Place, System};
use super::ycsb::Ycsb;
use super::{Options, device, etcd, failover, files, machine, postgres, redis, reelkv};
use crate::choice::Uniform;
use crate::load::write_keys;
use crate::table::thousands;

/// How long a system may take to start.
const START_MAX: Duration = Duration::from_secs(300);
/// Open loop: percent of the peak that is offered, and enough clients that one is always free.
const PERCENTS: [u32; 6] = [20, 40, 60, 70, 80, 90];
const OPEN_CLIENTS: u32 = 2_048;
/// At most so many bytes of large values at a time, and in all.
const LARGE_BYTES_AT_A_TIME: u64 = 32 << 20;
const LARGE_BYTES: u64 = 128 << 20;
/// What these are planned to take.
const FILL_PER_SECOND: u64 = 10_000;
const START_PLANNED: Duration = Duration::from_secs(5);
const FAILOVER_PLANNED: Duration = Duration::from_secs(10);

/// Exit status 0 or 1; what could not run is an error.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let plan = Plan::check(&options, &std::env::temp_dir())?;
    let directory = scratch()?;
    let machine = machine::describe(directory.path(), &plan.reelkv, &plan.systems).await;
    let out = match &options.out {
        Some(named) => Some(files::prepare(named.as_deref(), &machine)?),
        None => None,
    };
    let mut runner = Runner {
        progress: Progress::new(planned(&options, &plan.systems)),
        options: &options,
        directory: directory.path().to_owned(),
        systems: Vec::new(),
        cells: Vec::new(),
    };
    let each = Duration::from_secs(if options.quick { 1 } else { 5 });
    runner.progress.step("the disk by itself", 2 * each);
    let at = directory.path().to_owned();
    let device = tokio::task::spawn_blocking(move || device::measure(&at, each)).await??;
    runner.start(&plan).await?;
    runner.fill(0..options.keys[0]).await?;
    runner.main().await?;
    runner.values().await?;
    runner.ycsb().await?;
    runner.open().await?;
    runner.more_keys().await?;
    let failovers = runner.failovers().await?;
    let startup = runner.startup().await?;
    let longest: Vec<_> = failovers.iter().map(|failover| failover.max_s).collect();
    let results = Results {
        bars: (!options.quick).then(|| bars::judge(&runner.cells, &longest)),
        machine,
        device,
        cells: runner.cells,
        failovers,
        startup,
    };
    if let Some(out) = out {
        files::write(&out, &results)?;
        eprintln!("results are in {}", out.display());
    }
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&results)?),
        false => print!("{results}"),
    }
    let is_missed = results.bars.iter().flatten().any(|bar| bar.verdict.is_failure());
    Ok(ExitCode::from(u8::from(is_missed)))
}

/// A directory into which PostgreSQL, as another user, can look as well.
fn scratch() -> anyhow::Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("reelkv-compare-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir();
    directory.context("make a directory for the servers")
}

/// What a run is planned to take, for the progress lines.
fn planned(options: &Options, systems: &[Kind]) -> Duration {
    let cell = main_plan(options, 1, "put", 1).duration();
    let rounds = options.rounds;
    let count = systems.len() as u32;
    let main = rounds * 2 * options.clients.len() as u32 * count;
    let beside = 2 * (options.keys.len() + options.value_bytes.len() - 2) as u32 * count;
    let ycsb = options.workloads.len() as u32 * count;
    let open = percents(options, Kind::ReelKv).len() as u32 + count - 1;
    let fills: u64 = options.keys.iter().max().copied().unwrap_or(0) / FILL_PER_SECOND * u64::from(count);
    let kills = if options.quick { 1 } else { rounds };
    cell * (main + beside + ycsb + open)
        + Duration::from_secs(fills)
        + START_PLANNED * count
        + FAILOVER_PLANNED * (kills + 1)
}

/// Uniform puts or gets, closed loop.
fn main_plan(options: &Options, round: u32, operation: &'static str, clients: u32) -> CellPlan {
    let keys = options.keys[0];
    CellPlan {
        part: Part::Main,
        round,
        operation,
        choose: match operation {
            "put" => Uniform::puts(keys),
            _ => Uniform::gets(keys),
        },
        clients,
        value_bytes: options.value_bytes[0],
        keys,
        run: Duration::from_secs(options.seconds),
        offered: None,
        // With one client a log file would take minutes to fill.
        awaits_upkeep: operation == "put" && clients == bars::CLIENTS && !options.quick,
    }
}

/// The bar's percentage as often as there are rounds; of peers that alone, once.
fn percents(options: &Options, kind: Kind) -> Vec<(u32, u32)> {
    let judged = |round| (round, bars::OPEN_PERCENT);
    match (kind, options.quick) {
        (Kind::ReelKv, false) => {
            let others = PERCENTS.iter().filter(|percent| **percent != bars::OPEN_PERCENT);
            let others = others.map(|percent| (1, *percent));
            others.chain((1..=options.rounds).map(judged)).collect()
        }
        (Kind::ReelKv, true) => vec![judged(1)],
        _ => vec![judged(1)],
    }
}

struct Runner<'a> {
    options: &'a Options,
    /// Where the systems run.
    directory: PathBuf,
    progress: Progress,
    systems: Vec<System>,
    cells: Vec<Cell>,
}

impl Runner<'_> {
    async fn start(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for (kind, ports) in plan.systems.iter().zip(&plan.ports) {
            self.progress
                .step(&format!("start of {}", kind.name()), START_PLANNED);
            let directory = self.directory.join(kind.name());
            #[allow(clippy::disallowed_methods)] // a throw-away directory, not data of ours
            std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            let place = Place {
                directory: &directory,
                ports,
            };
            let starting = async {
                match kind {
                    Kind::ReelKv => reelkv::start(&place, &plan.reelkv, self.options.shards).await,
                    Kind::Etcd => etcd::start(&place).await,
                    Kind::Postgres => postgres::start(&place, plan.postgres_owner).await,
                    Kind::Redis => redis::start(&place).await,
                }
            };
            let Ok(started) = timeout(START_MAX, starting).await else {
                anyhow::bail!("{} does not start within {} s", kind.name(), START_MAX.as_secs());
            };
            self.systems.push(started?);
        }
        Ok(())
    }

    /// Writes keys to all systems.
    async fn fill(&mut self, keys: std::ops::Range<u64>) -> anyhow::Result<()> {
        let count = keys.end - keys.start;
        for system in &mut self.systems {
            let what = format!("{} keys into {}", thousands(count as f64), system.kind.name());
            self.progress
                .step(&what, Duration::from_secs(count / FILL_PER_SECOND));
            let writing = write_keys(&system.targets, keys.clone(), self.options.value_bytes[0], 1);
            match timeout(fill_max(count), writing).await {
                Ok(written) => written.context(what)?,
                Err(_) => anyhow::bail!("{what}: not done after {} s", fill_max(count).as_secs()),
            }
        }
        Ok(())
    }

    /// Every client count, puts then gets, the systems in turn, round after round.
    async fn main(&mut self) -> anyhow::Result<()> {
        for round in 1..=self.options.rounds {
            for clients in self.options.clients.clone() {
                for operation in ["put", "get"] {
                    let plan = main_plan(self.options, round, operation, clients);
                    self.all(&plan).await?;
                }
            }
        }
        Ok(())
    }

    /// Other sizes of values, on keys of their own size meanwhile.
    async fn values(&mut self) -> anyhow::Result<()> {
        for value_bytes in self.options.value_bytes[1..].iter().copied() {
            let size = u64::from(value_bytes);
            let keys = self.options.keys[0].min(LARGE_BYTES / size).max(1);
            let clients = (LARGE_BYTES_AT_A_TIME / size).clamp(1, u64::from(bars::CLIENTS)) as u32;
            for operation in ["put", "get"] {
                let plan = CellPlan {
                    part: Part::Beside,
                    choose: match operation {
                        "put" => Uniform::puts(keys),
                        _ => Uniform::gets(keys),
                    },
                    value_bytes,
                    keys,
                    awaits_upkeep: false,
                    ..main_plan(self.options, 1, operation, clients)
                };
                self.all(&plan).await?;
            }
            self.fill(0..keys).await?;
        }
        Ok(())
    }

    async fn ycsb(&mut self) -> anyhow::Result<()> {
        let mut present: BTreeMap<Kind, u64> = BTreeMap::new();
        for workload in self.options.workloads.clone() {
            for at in 0..self.systems.len() {
                let kind = self.systems[at].kind;
                if workload == super::Workload::E && !kind.can_scan() {
                    eprintln!("{} has no order of keys: no YCSB E", kind.name());
                    continue;
                }
                let keys = present.entry(kind).or_insert(self.options.keys[0]);
                let ycsb = Arc::new(Ycsb::new(workload, *keys)?);
                let plan = CellPlan {
                    part: Part::Ycsb,
                    choose: ycsb.clone(),
                    ..main_plan(self.options, 1, workload.name(), bars::CLIENTS)
                };
                self.one(at, &plan).await?;
                present.insert(kind, ycsb.present());
            }
        }
        Ok(())
    }

    /// Puts that are due at fractions of each system's peak.
    async fn open(&mut self) -> anyhow::Result<()> {
        for at in 0..self.systems.len() {
            let kind = self.systems[at].kind;
            let peak = self.put_peak(kind);
            for (round, percent) in percents(self.options, kind) {
                let is_judged = kind == Kind::ReelKv && percent == bars::OPEN_PERCENT;
                let plan = CellPlan {
                    part: Part::Open,
                    offered: Some((percent, peak * f64::from(percent) / 100.0)),
                    awaits_upkeep: is_judged && !self.options.quick,
                    ..main_plan(self.options, round, "put", OPEN_CLIENTS)
                };
                self.one(at, &plan).await?;
            }
        }
        Ok(())
    }

    /// Puts per second, the median over rounds, with as many clients as give most.
    fn put_peak(&self, kind: Kind) -> f64 {
        let rates = self.options.clients.iter().filter_map(|clients| {
            let cells = self.cells.iter().filter(|cell| {
                (cell.part, cell.system, cell.operation, cell.clients) == (Part::Main, kind, "put", *clients)
            });
            median(&cells.map(|cell| cell.summary.per_second).collect::<Vec<_>>())
        });
        rates.fold(1.0, f64::max)
    }

    /// The same at the bars' number of clients with more keys.
    async fn more_keys(&mut self) -> anyhow::Result<()> {
        for pair in self.options.keys.windows(2) {
            self.fill(pair[0]..pair[1]).await?;
            for operation in ["put", "get"] {
                let plan = CellPlan {
                    part: Part::Beside,
                    choose: match operation {
                        "put" => Uniform::puts(pair[1]),
                        _ => Uniform::gets(pair[1]),
                    },
                    keys: pair[1],
                    ..main_plan(self.options, 1, operation, bars::CLIENTS)
                };
                self.all(&plan).await?;
            }
        }
        Ok(())
    }

    async fn failovers(&mut self) -> anyhow::Result<Vec<failover::Failover>> {
        let kills = if self.options.quick {
            1
        } else {
            self.options.rounds
        };
        let mut failovers = Vec::new();
        for kill in 1..=kills {
            self.progress
                .step(&format!("kill {kill} of a leader's node"), FAILOVER_PLANNED);
            let cluster = self.systems[0].cluster().context("ReelKV is the first system")?;
            failovers.push(failover::kill_leader(cluster).await?);
        }
        Ok(failovers)
    }

    async fn startup(&mut self) -> anyhow::Result<failover::Startup> {
        let keys = self.options.keys.last().copied().unwrap_or(0);
        self.progress.step("restart of all nodes", FAILOVER_PLANNED);
        let cluster = self.systems[0].cluster().context("ReelKV is the first system")?;
        failover::restart_all(cluster, keys).await
    }

    /// One cell on every system, beginning with another one each time.
    async fn all(&mut self, plan: &CellPlan) -> anyhow::Result<()> {
        let count = self.systems.len();
        let first = self.cells.len() / count;
        for n in 0..count {
            self.one((first + n) % count, plan).await?;
        }
        Ok(())
    }

    async fn one(&mut self, at: usize, plan: &CellPlan) -> anyhow::Result<()> {
        let system = &mut self.systems[at];
        let offered = plan
            .offered
            .map_or_else(String::new, |(percent, _)| format!(" at {percent} % of peak"));
        let (place, operation) = match plan.part {
            Part::Main => (
                format!("round {} of {}", plan.round, self.options.rounds),
                plan.operation,
            ),
            Part::Beside => (
                format!("beside, {} keys", thousands(plan.keys as f64)),
                plan.operation,
            ),
            Part::Open => ("open loop".to_owned(), plan.operation),
            Part::Ycsb => (format!("YCSB {}", plan.operation), "mixed"),
        };
        let what = format!(
            "{place}: {operation}, {} clients, values of {} bytes{offered}, {}",
            plan.clients,
            plan.value_bytes,
            system.kind.name()
        );
        self.progress.step(&what, plan.duration());
        let cell = measure(system, plan, &self.directory)
            .await
            .with_context(|| what)?;
        let (rate, p99) = (thousands(cell.summary.per_second), cell.summary.p99_ms);
        let extension = cell.upkeep.as_ref().map_or(0.0, |upkeep| upkeep.extension_s);
        let extended = match extension >= 0.5 {
            true => format!(", {extension:.0} s longer for checkpoints"),
            false => String::new(),
        };
        eprintln!("    {rate}/s, p99 {p99:.2} ms{extended}");
        self.cells.push(cell);
        Ok(())
    }
}
