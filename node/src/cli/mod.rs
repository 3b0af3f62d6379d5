//! (under construction)

pub mod demo;
mod dev;
mod start;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Dev(dev::DevArgs),
    #[command(subcommand)]
    Node(NodeCommand),
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

#[derive(Subcommand)]
enum NodeCommand {
    Start(Box<crate::config::NodeArgs>),
}

#[derive(Subcommand)]
enum ClusterCommand {
    Init { #[arg(long)] shards: u32, #[arg(long, default_value_t = 3)] replicas: u32, #[arg(long, env = "REELKV_ADDR", value_delimiter = ',')] addr: Vec<String> },
    Status { #[arg(long, env = "REELKV_ADDR", value_delimiter = ',')] addr: Vec<String> },
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        match cli.command {
            Command::Demo(args) => demo::run(args).await.unwrap_or_else(|e| { eprintln!("error: {e:#}"); ExitCode::FAILURE }),
            Command::Dev(args) => dev::run(args).await.unwrap_or_else(|e| { eprintln!("error: {e:#}"); ExitCode::FAILURE }),
            Command::Node(NodeCommand::Start(args)) => start::run(*args).await,
            Command::Cluster(c) => cluster(c).await.unwrap_or_else(|e| { eprintln!("error: {e:#}"); ExitCode::FAILURE }),
        }
    })
}

async fn cluster(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Init { shards, replicas, addr } => {
            let client = reelkv_client::Client::builder().addrs(addr).lazy().build().await?;
            client.admin().with_timeout(std::time::Duration::from_secs(60)).init_cluster(shards, replicas).await?;
            Ok(ExitCode::SUCCESS)
        }
        ClusterCommand::Status { addr } => {
            let client = reelkv_client::Client::builder().addrs(addr).lazy().build().await?;
            let status = client.admin().cluster_status().await?;
            eprintln!("{}", status.summary);
            Ok(if status.health() == reelkv_proto::v1::Health::Ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
