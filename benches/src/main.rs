//! `reelkv-benches load` measures a cluster; `reelkv-benches compare` runs ReelKV side by side with what a
//! user would pick instead; `reelkv-benches growth` sees how it grows.
//!
//! What the numbers mean and how to compare them: `benches/README.md`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

mod chart;
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
mod choice;
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
mod cluster;
mod compare;
mod drive;
mod growth;
mod load;
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
mod processes;
mod room;
mod schedule;
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
mod summary;
mod table;
mod target;
#[cfg_attr(not(feature = "peers"), allow(dead_code))]
mod usage;

/// Load generator and side-by-side runs.
#[derive(Parser)]
#[command(name = "reelkv-benches", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a running cluster.
    Load(load::Options),
    /// Start peers and ReelKV on this machine and run the same load on them in turn.
    Compare(compare::Options),
    /// Start ReelKV clusters on this machine and see how they grow with data, shards, clients, nodes and replicas.
    Growth(growth::Options),
}

/// Why nothing could be measured, in one line; exit status 2.
#[derive(Debug)]
pub struct CannotRun(pub String);

impl std::fmt::Display for CannotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CannotRun {}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let run = async {
        match command {
            Command::Load(options) => load::run(options).await,
            Command::Compare(options) => compare::run(options).await,
            Command::Growth(options) => growth::run(options).await,
        }
    };
    // What a run has started is stopped as the run is dropped.
    tokio::select! {
        done = run => match done {
            Ok(code) => code,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::from(if error.is::<CannotRun>() { 2 } else { 1 })
            }
        },
        ended = told_to_stop() => match ended {
            Ok(number) => {
                eprintln!("stopped by a signal");
                ExitCode::from(128 + number)
            }
            Err(error) => {
                eprintln!("error: no signal can be listened to: {error}");
                ExitCode::from(2)
            }
        },
    }
}

/// The number of the signal that ends this process: SIGINT or SIGTERM.
async fn told_to_stop() -> std::io::Result<u8> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupted.recv() => 2,
        _ = terminated.recv() => 15,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_checked() {
        let parse = |line: &str| {
            Arguments::try_parse_from(line.split(' '))
                .map(drop)
                .map_err(|e| e.exit_code())
        };
        assert_eq!(
            parse("b load --addr 127.0.0.1:1 --op put --rate 10 --json"),
            Ok(())
        );
        assert_eq!(parse("b load --op put --nonsense"), Err(2));
        assert_eq!(parse("b load --op nonsense"), Err(2));
        assert_eq!(parse("b load --clients 0"), Err(2));
        assert_eq!(parse("b load --rate 0"), Err(2));
        assert_eq!(parse("b compare --peers nonsense"), Err(2));
        assert_eq!(parse("b compare --peers etcd --reelkv ./reelkv"), Ok(()));
        assert_eq!(
            parse("b growth --quick --factors data,idle --out results"),
            Ok(())
        );
        assert_eq!(parse("b growth --factors nonsense"), Err(2));
    }
}
