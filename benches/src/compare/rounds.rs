//! Runs both in turn, so that a drift of the machine hits both, and compares.

use std::process::ExitCode;

use serde::Serialize;

use super::{Options, Peer, etcd, reelkv};
use crate::load::{Operation, fill, measure};
use crate::summary::Summary;

/// One line of the table.
#[derive(Serialize)]
struct Comparison {
    round: u32,
    operation: &'static str,
    etcd: Summary,
    reelkv: Summary,
    /// ReelKV's operations per second over etcd's: above 1 is better.
    throughput_ratio: f64,
    /// ReelKV's p99 over etcd's: below 1 is better.
    p99_ratio: f64,
}

pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Peer::Etcd = options.peers[0];
    let directory = tempfile::tempdir()?;
    let (of_peer, of_reelkv) = (directory.path().join("etcd"), directory.path().join("reelkv"));
    #[allow(clippy::disallowed_methods)] // throw-away directories, not data of ours
    for path in [&of_peer, &of_reelkv] {
        std::fs::create_dir_all(path)?;
    }
    let peer = etcd::start_cluster(&of_peer).await?;
    let ours = reelkv::start_cluster(&options.reelkv, &of_reelkv).await?;
    fill(&peer.targets, &options.shape).await?;
    fill(&ours.targets, &options.shape).await?;
    let mut comparisons = Vec::new();
    for round in 1..=options.rounds {
        for (operation, name) in [(Operation::Put, "put"), (Operation::Get, "get")] {
            eprintln!("round {round}: {name} on etcd");
            let etcd = measure(&peer.targets, operation, &options.shape, None).await?;
            eprintln!("round {round}: {name} on reelkv");
            let reelkv = measure(&ours.targets, operation, &options.shape, None).await?;
            comparisons.push(Comparison {
                round,
                operation: name,
                throughput_ratio: reelkv.per_second / etcd.per_second,
                p99_ratio: reelkv.p99_ms / etcd.p99_ms,
                etcd,
                reelkv,
            });
        }
    }
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&comparisons)?),
        false => print_table(&comparisons),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(comparisons: &[Comparison]) {
    println!("round  op   etcd/s   reelkv/s  ratio   etcd p99 ms  reelkv p99 ms  ratio   errors etcd/reelkv");
    for c in comparisons {
        let errors = |summary: &Summary| summary.errors.values().sum::<u64>();
        println!(
            "{:5}  {:3} {:8.0}  {:9.0}  {:5.2}  {:12.2}  {:13.2}  {:5.2}   {}/{}",
            c.round,
            c.operation,
            c.etcd.per_second,
            c.reelkv.per_second,
            c.throughput_ratio,
            c.etcd.p99_ms,
            c.reelkv.p99_ms,
            c.p99_ratio,
            errors(&c.etcd),
            errors(&c.reelkv),
        );
    }
}
