//! The load generator.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use reelkv_client::{Client, CreateKeyspace, ErrorKind};
use tokio::task::JoinSet;

use crate::choice::{Choose, Scans, Uniform};
use crate::drive::{Load, drive, value};
use crate::summary::Summary;
use crate::target::{Target, key};

/// Records a scan asks for.
const SCAN_RECORDS: u64 = 100;
/// Clients that write the keys before anything is measured.
const FILL_CLIENTS: usize = 256;
/// A store that has just started may not take every write at once.
const FILL_TRIES: u32 = 5;
const FILL_PAUSE: Duration = Duration::from_millis(500);

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
    write_keys(targets, 0..shape.keys, shape.value_bytes, shape.seed).await
}

/// Writes keys, each once, by many clients.
pub async fn write_keys(
    targets: &[Target],
    keys: Range<u64>,
    value_bytes: u32,
    seed: u64,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(keys.start));
    let mut clients = JoinSet::new();
    for n in 0..FILL_CLIENTS {
        let (mut target, next) = (targets[n % targets.len()].clone(), next.clone());
        let end = keys.end;
        clients.spawn(async move {
            let mut rng = SmallRng::seed_from_u64(seed ^ n as u64);
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= end {
                    return Ok(());
                }
                let value = value(&mut rng, value_bytes);
                let mut tries = 1;
                while let Err(kind) = target.put(key(at), value.clone()).await {
                    if tries == FILL_TRIES {
                        return Err(kind);
                    }
                    tries += 1;
                    tokio::time::sleep(FILL_PAUSE).await;
                }
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        let done: Result<(), String> = done?;
        done.map_err(|kind| anyhow::anyhow!("a key could not be written: {kind}"))?;
    }
    Ok(())
}

/// Runs the load over `targets` (clients are spread over them) and sums it up.
pub async fn measure(
    targets: &[Target],
    operation: Operation,
    shape: &Shape,
    per_second: Option<f64>,
) -> anyhow::Result<Summary> {
    let load = |seconds, is_shown| Load {
        clients: shape.clients,
        value_bytes: shape.value_bytes,
        seed: shape.seed,
        run: Duration::from_secs(seconds),
        per_second,
        choose: operation.chooser(shape.keys),
        is_shown,
    };
    let at_once = std::future::ready(Ok(()));
    if shape.warmup_seconds > 0 {
        drive(targets, &load(shape.warmup_seconds, false), at_once).await?;
    }
    let ran = drive(targets, &load(shape.seconds, true), std::future::ready(Ok(()))).await?;
    Ok(ran.summary())
}

impl Operation {
    fn chooser(self, keys: u64) -> Arc<dyn Choose> {
        let puts_percent = match self {
            Self::Put => 100,
            Self::Get => 0,
            Self::Mix => 50,
            Self::Scan => {
                return Arc::new(Scans {
                    keys,
                    records: SCAN_RECORDS,
                });
            }
        };
        Arc::new(Uniform { keys, puts_percent })
    }
}
