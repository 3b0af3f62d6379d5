//! `reelkv-benches load` measures a cluster; `reelkv-benches compare` runs it side by side with a peer.
//!
//! What the numbers mean and how to compare them: `benches/README.md`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod compare;
mod load;
mod schedule;
mod summary;
mod target;

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
    /// Start a peer and ReelKV on this machine and run the same load on both in turn.
    Compare(compare::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Load(options) => load::run(options).await,
        Command::Compare(options) => compare::run(options).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
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
        assert_eq!(parse("b compare --peers etcd"), Err(2));
        assert_eq!(parse("b compare --peers etcd --reelkv ./reelkv"), Ok(()));
    }
}
