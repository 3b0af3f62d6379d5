//! ReelKV and what a user would pick instead, on this machine, in turn, under the same load.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

#[cfg(feature = "peers")]
mod bars;
#[cfg(feature = "peers")]
mod cell;
#[cfg(feature = "peers")]
mod device;
#[cfg(feature = "peers")]
mod etcd;
#[cfg(feature = "peers")]
mod failover;
#[cfg(feature = "peers")]
mod files;
#[cfg(feature = "peers")]
mod machine;
#[cfg(feature = "peers")]
mod plan;
#[cfg(feature = "peers")]
mod postgres;
#[cfg(feature = "peers")]
mod progress;
#[cfg(feature = "peers")]
mod redis;
#[cfg(feature = "peers")]
mod reelkv;
#[cfg(feature = "peers")]
mod report;
#[cfg(feature = "peers")]
mod run;
#[cfg(feature = "peers")]
mod system;
#[cfg(feature = "peers")]
mod upkeep;
#[cfg(feature = "peers")]
mod ycsb;

/// Exit status 0: all bars that were judged are held. 1: one is missed, or proves nothing. 2: it could not run.
#[derive(Args, Clone)]
#[cfg_attr(not(feature = "peers"), allow(dead_code))] // read by the runs only
pub struct Options {
    /// What to compare with
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "etcd,postgres,redis"
    )]
    peers: Vec<Peer>,
    /// How long each cell is measured; ReelKV's puts at 256 clients until every node has checkpointed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Operations at a time; bars are judged at 256, and one at 1
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1024", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    clients: Vec<u32>,
    /// Keys that are loaded; further numbers are measured beside the first, in rising order
    #[arg(long, value_delimiter = ',', default_value = "100000", value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    keys: Vec<u64>,
    /// Bytes of a value; further sizes are measured beside the first
    #[arg(long, value_delimiter = ',', default_value = "256", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    value_bytes: Vec<u32>,
    /// How often each cell is measured, the systems in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Workloads of YCSB to run as well
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Shards of ReelKV's keyspace; each node leads one of three
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    shards: u32,
    /// Only see that everything runs: no waiting for checkpoints, no judgement of bars
    #[arg(long)]
    quick: bool,
    /// Write results into this directory; without a name `benches/runs/DATE-MACHINE`
    #[arg(long, value_name = "DIR")]
    out: Option<Option<PathBuf>>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    /// The reelkv binary; the one beside this program if absent
    #[arg(long, value_name = "PATH")]
    reelkv: Option<PathBuf>,
    /// Servers listen on this port and those after it; on any that are free if absent
    #[arg(long, value_parser = clap::value_parser!(u16).range(1_024..=65_000))]
    first_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Three members
    Etcd,
    /// A primary and two standbys, one of which has every commit
    Postgres,
    /// One copy, synced at every write
    Redis,
}

/// The core workloads of YCSB, shares as in its paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
pub enum Workload {
    /// Half reads, half updates
    A,
    /// 95 % reads, 5 % updates
    B,
    /// Reads only
    C,
    /// 95 % reads of what is newest, 5 % inserts
    D,
    /// 95 % short scans, 5 % inserts
    E,
    /// Half reads, half reads followed by a write
    F,
}

#[cfg(feature = "peers")]
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let done = run::run(options).await;
    done.map_err(|error| crate::CannotRun(format!("{error:#}")).into())
}

/// Without its client a peer cannot be driven.
#[cfg(not(feature = "peers"))]
pub async fn run(_: Options) -> anyhow::Result<ExitCode> {
    Err(crate::CannotRun(
        "this build cannot compare; build it with `cargo run --release -p reelkv-benches --features peers -- \
         compare ...` (needs protoc)"
            .to_owned(),
    )
    .into())
}
