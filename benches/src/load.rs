//! The load generator.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use reelkv_client::{Client, CreateKeyspace, ErrorKind};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::schedule::Schedule;
use crate::summary::{Summary, Tally};
use crate::target::{Target, key};

/// An open loop's operation that starts later than this was late.
const LAG_TOLERANCE: Duration = Duration::from_millis(10);

#[derive(Args)]
pub struct Options {
    /// Nodes of the cluster, host:port, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:7301")]
    addr: Vec<String>,
    /// What to do.
    #[arg(long, value_enum, default_value = "mix")]
    op: Operation,
    #[command(flatten)]
    shape: Shape,
    /// Start this many operations per second, whatever happens (open loop); closed loop if absent.
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Keyspace to use; made if it does not exist.
    #[arg(long, default_value = "bench")]
    keyspace: String,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The shape of the load, whatever is under it.
#[derive(Args, Clone)]
pub struct Shape {
    /// Operations at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Run this long before measuring.
    #[arg(long, default_value_t = 2)]
    pub warmup_seconds: u64,
    /// Bytes per value.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=4_194_304))]
    pub value_bytes: u32,
    /// Number of different keys; written before anything is read.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Seed of keys and values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Write a random key.
    Put,
    /// Read a random key, linearizably.
    Get,
    /// Half puts, half gets.
    Mix,
    /// Read a page of 100 records from a random key on.
    Scan,
}

fn positive(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (rate.is_finite() && rate > 0.0)
        .then_some(rate)
        .ok_or_else(|| "must be above 0".to_owned())
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let client = Client::connect(options.addr.clone()).await.context("connect")?;
    let keyspace = match client
        .create_keyspace(&options.keyspace, CreateKeyspace::default())
        .await
    {
        Err(error) if *error.kind() == ErrorKind::AlreadyExists => client.keyspace(&options.keyspace).await?,
        created => created?,
    };
    let targets = vec![Target::ReelKv(keyspace)];
    if options.op != Operation::Put {
        fill(&targets, &options.shape).await?;
    }
    let summary = measure(&targets, options.op, &options.shape, options.rate).await?;
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&summary)?),
        false => println!("{summary}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes every key once.
pub async fn fill(targets: &[Target], shape: &Shape) -> anyhow::Result<()> {
    eprintln!("writing {} keys", shape.keys);
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for n in 0..shape.clients.min(256) {
        let (mut target, next, shape) = (
            targets[n as usize % targets.len()].clone(),
            next.clone(),
            shape.clone(),
        );
        clients.spawn(async move {
            let mut rng = SmallRng::seed_from_u64(shape.seed ^ u64::from(n));
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= shape.keys {
                    return Ok(());
                }
                target.put(key(at), value(&mut rng, shape.value_bytes)).await?;
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        let done: Result<(), String> = done?;
        done.map_err(|kind| anyhow::anyhow!("a key could not be written: {kind}"))?;
    }
    Ok(())
}

/// Random, so that nothing on the way can compress it.
fn value(rng: &mut SmallRng, value_bytes: u32) -> Bytes {
    let mut value = vec![0; value_bytes as usize];
    rng.fill_bytes(&mut value);
    value.into()
}

/// One client of a run.
struct Worker {
    target: Target,
    operation: Operation,
    shape: Shape,
    schedule: Arc<Schedule>,
    rng: SmallRng,
    starts: Instant,
    done: Arc<AtomicU64>,
    started: Arc<AtomicU64>,
}

/// Runs the load over `targets` (clients are spread over them) and sums it up.
pub async fn measure(
    targets: &[Target],
    operation: Operation,
    shape: &Shape,
    per_second: Option<f64>,
) -> anyhow::Result<Summary> {
    ensure!(!targets.is_empty(), "nothing to put under load");
    if shape.warmup_seconds > 0 {
        run_for(
            targets,
            operation,
            shape,
            per_second,
            Duration::from_secs(shape.warmup_seconds),
            false,
        )
        .await?;
    }
    run_for(
        targets,
        operation,
        shape,
        per_second,
        Duration::from_secs(shape.seconds),
        true,
    )
    .await
}

async fn run_for(
    targets: &[Target],
    operation: Operation,
    shape: &Shape,
    per_second: Option<f64>,
    run: Duration,
    is_shown: bool,
) -> anyhow::Result<Summary> {
    let schedule = Arc::new(Schedule::new(per_second));
    let (done, started) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let starts = Instant::now();
    let mut clients = JoinSet::new();
    for n in 0..shape.clients {
        let worker = Worker {
            target: targets[n as usize % targets.len()].clone(),
            operation,
            shape: shape.clone(),
            schedule: schedule.clone(),
            rng: SmallRng::seed_from_u64(shape.seed.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(n))),
            starts,
            done: done.clone(),
            started: started.clone(),
        };
        clients.spawn(worker.work(run));
    }
    let mut tally = Tally::new();
    let mut second = tokio::time::interval_at(starts + Duration::from_secs(1), Duration::from_secs(1));
    let mut shown = 0;
    loop {
        tokio::select! {
            ended = clients.join_next() => match ended {
                Some(seen) => tally.add(seen?),
                None => break,
            },
            _ = second.tick() => if is_shown {
                let now = done.load(Ordering::Relaxed);
                eprintln!("{:4.0} s  {:7} per second", starts.elapsed().as_secs_f64(), now - shown);
                shown = now;
            },
        }
    }
    let planned = schedule
        .planned(run)
        .map(|planned| (planned, started.load(Ordering::Relaxed)));
    // Operations begun in time are waited for, and count in the time they took.
    Ok(tally.summary(starts.elapsed().max(run), planned))
}

impl Worker {
    async fn work(mut self, run: Duration) -> Tally {
        let mut tally = Tally::new();
        loop {
            let planned = self.schedule.next_start();
            let start = self.starts + planned.unwrap_or_else(|| self.starts.elapsed());
            if start >= self.starts + run || Instant::now() >= self.starts + run {
                return tally;
            }
            if planned.is_some() {
                tokio::time::sleep_until(start).await;
                tally.lagged(start.elapsed(), LAG_TOLERANCE);
            }
            self.started.fetch_add(1, Ordering::Relaxed);
            match self.operate().await {
                Ok(()) => tally.succeeded(start.elapsed()),
                Err(kind) => tally.failed(&kind),
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn operate(&mut self) -> Result<(), String> {
        let key = key(self.rng.random_range(0..self.shape.keys));
        let is_put = match self.operation {
            Operation::Put => true,
            Operation::Get => false,
            Operation::Mix => self.rng.random(),
            Operation::Scan => return self.target.scan(key).await,
        };
        match is_put {
            true => {
                self.target
                    .put(key, value(&mut self.rng, self.shape.value_bytes))
                    .await
            }
            false => self.target.get(key).await,
        }
    }
}
