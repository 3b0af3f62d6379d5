//! `reelkv dev`: three nodes in one process, for trying things and for tests of programs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reelkv_client::{Client, ErrorKind};

use super::start::Stopped;
use crate::clock::{Clock, SystemClock};
use crate::config::{LocalNode, NodeArgs};
use crate::disk::{Disk, RealDisk};
use crate::logs;
use crate::process::NodeProcess;

const NODES: u16 = 3;
const READY_MAX: Duration = Duration::from_secs(60);

/// Run three nodes in one process, for trying things
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Keep the data in this directory; without it the data goes when the process ends
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The nodes listen on this port and the two after it; their HTTP pages on ports 100 higher
    #[arg(long, default_value_t = 7_301, value_parser = clap::value_parser!(u16).range(1_024..=65_000))]
    pub port: u16,
    /// Data shards to begin with
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub shards: u32,
    /// What is logged: error, warn, info, debug or a filter of tracing
    #[arg(long, default_value = "warn")]
    pub log_level: String,
}

/// Runs the cluster until Ctrl-C or SIGTERM.
///
/// # Errors
/// A port is taken, the directory cannot be used, or the cluster did not come up.
pub(super) async fn run(args: DevArgs) -> anyhow::Result<ExitCode> {
    let scratch = std::env::temp_dir().join(format!("reelkv-dev-{:08x}", SystemClock.random_u64() as u32));
    let dir = args.dir.clone().unwrap_or_else(|| scratch.clone());
    let mut configs = Vec::new();
    for at in 0..NODES {
        match node_args(&args, &dir, at).resolve() {
            Ok(config) => configs.push(config),
            Err(error) => {
                eprintln!("error: {error}");
                return Ok(ExitCode::from(2));
            }
        }
    }
    if let Err(error) = logs::start(&configs[0].log) {
        eprintln!("error: {error}");
        return Ok(ExitCode::from(2));
    }
    let stopped = Stopped::listen()?;
    let mut nodes = Vec::new();
    let addrs: Vec<_> = configs.iter().map(|config| config.options.addr.clone()).collect();
    for config in configs {
        let started = NodeProcess::start(config.options, config.listen, config.http).await;
        // Its text names the cause already.
        nodes.push(started.map_err(|error| anyhow::anyhow!(error.to_string()))?);
    }
    let outcome = tokio::select! {
        () = stopped.wait() => Ok(ExitCode::SUCCESS),
        outcome = serve(&mut nodes, &addrs, &args, &dir) => outcome,
    };
    eprintln!("stopping");
    futures::future::join_all(nodes.into_iter().map(NodeProcess::stop_now)).await;
    if args.dir.is_none() {
        RealDisk
            .remove_dir_all(&scratch)
            .with_context(|| format!("removing {}", scratch.display()))?;
    }
    outcome
}

fn node_args(args: &DevArgs, dir: &std::path::Path, at: u16) -> NodeArgs {
    let addr = |port: u16| format!("127.0.0.1:{port}");
    let local = LocalNode {
        data_dir: dir.join(format!("n{}", at + 1)),
        listen: addr(args.port + at),
        http: addr(args.port + 100 + at),
        join: (0..NODES).map(|at| addr(args.port + at)).collect(),
        zone: ["a", "b", "c"][usize::from(at)].to_owned(),
        log_level: args.log_level.clone(),
    };
    NodeArgs::of(local)
}

/// Makes the cluster if there is none yet, says where it is, and waits for a node to fail.
async fn serve(
    nodes: &mut [NodeProcess],
    addrs: &[String],
    args: &DevArgs,
    dir: &std::path::Path,
) -> anyhow::Result<ExitCode> {
    make_cluster(addrs, args.shards).await?;
    let kept = match args.dir {
        Some(_) => format!("data is kept in {}", dir.display()),
        None => "data goes with the process (--dir keeps it)".to_owned(),
    };
    eprintln!("three nodes serve; {kept}");
    println!("{}", addrs.join(","));
    let failures = nodes.iter_mut().map(|node| Box::pin(node.failed()));
    let (reason, ..) = futures::future::select_all(failures).await;
    eprintln!("error: {reason}");
    Ok(ExitCode::FAILURE)
}

async fn make_cluster(addrs: &[String], shards: u32) -> anyhow::Result<()> {
    let client = Client::builder()
        .addrs(addrs.iter().cloned())
        .lazy()
        .build()
        .await?;
    let admin = client.admin().with_timeout(READY_MAX);
    match admin.init_cluster(shards, u32::from(NODES)).await {
        Ok(_) => {}
        Err(error) if *error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).context("making the cluster"),
    }
    let ready = async {
        loop {
            match client.admin().cluster_status().await {
                Ok(status) if status.health() == reelkv_proto::v1::Health::Ok => return,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(READY_MAX, ready)
        .await
        .context("the cluster did not become healthy")
}
