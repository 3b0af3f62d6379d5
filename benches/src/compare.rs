//! ReelKV and a peer on this machine, in turn, under the same load.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::load::Shape;

#[cfg(feature = "peers")]
mod etcd;
#[cfg(feature = "peers")]
mod processes;
#[cfg(feature = "peers")]
mod reelkv;
#[cfg(feature = "peers")]
mod rounds;

#[derive(Args)]
#[cfg_attr(not(feature = "peers"), allow(dead_code))] // read by the runs only
pub struct Options {
    /// What to compare with.
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    peers: Vec<Peer>,
    /// The reelkv binary, built with --release.
    #[arg(long)]
    reelkv: PathBuf,
    #[command(flatten)]
    shape: Shape,
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Three members of the etcd found on PATH.
    Etcd,
}

#[cfg(feature = "peers")]
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    rounds::run(options).await
}

/// Without its client a peer cannot be driven.
#[cfg(not(feature = "peers"))]
pub async fn run(_: Options) -> anyhow::Result<ExitCode> {
    eprintln!(
        "error: this build cannot compare; build it with `cargo run --release -p reelkv-benches --features peers \
         -- compare ...` (needs protoc)"
    );
    Ok(ExitCode::from(2))
}
