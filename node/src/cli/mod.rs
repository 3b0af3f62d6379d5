//! The command line `reelkv`.
//!
//! Data goes to standard output and words to standard error, so that output can be piped; every
//! reading command prints JSON on `--json`. An error is one line, `error: …`, and an exit status
//! ([`failure`]). What can be refused without the cluster is refused before it is contacted.
//!
//! The commands are clients: they know of the cluster what the client library tells them. Three
//! run nodes: `node start` one, `dev` three in its own process, `demo` three processes. One, `shard
//! recover`, works on the data directory of a node that does not run.

mod cluster;
mod completion;
mod connect;
pub mod demo;
mod dev;
mod export;
mod failure;
mod keys;
mod keyspace;
mod migrate;
mod node;
mod output;
mod recover;
mod render;
mod shard;
mod start;
mod verify_shard;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use self::completion::CompletionArgs;
use self::demo::DemoArgs;
use self::failure::{Failure, Outcome, Status};

/// A horizontally sharded, Raft-replicated key-value store
#[derive(Debug, Parser)]
#[command(name = "reelkv", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(keys::GetArgs),
    Put(keys::PutArgs),
    Delete(keys::DeleteArgs),
    Add(keys::AddArgs),
    Scan(keys::ScanArgs),
    Export(export::ExportArgs),
    #[command(subcommand)]
    Keyspace(keyspace::KeyspaceCommand),
    #[command(subcommand)]
    Import(migrate::ImportCommand),
    #[command(subcommand)]
    Verify(migrate::VerifyCommand),
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    #[command(subcommand)]
    Node(node::NodeCommand),
    #[command(subcommand)]
    Shard(shard::ShardCommand),
    Dev(dev::DevArgs),
    Demo(DemoArgs),
    Completion(CompletionArgs),
}

/// How the help lists the commands; a test sees to it that none is left out.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Records",
        &["get", "put", "delete", "add", "scan", "export", "keyspace"],
    ),
    ("Moving in from a database", &["import", "verify"]),
    ("Operation", &["cluster", "node", "shard"]),
    ("Trying it out", &["demo", "dev"]),
    ("Other", &["completion", "help"]),
];

const EXAMPLES: &str = r#"Examples:
  reelkv cluster init --addr 127.0.0.1:7301 --shards 8
  reelkv keyspace create film
  reelkv put --keyspace film '("alien", 1979)' 'In space no one can hear you scream.'
  reelkv get --keyspace film '("alien", 1979)'
  reelkv scan --keyspace film --prefix '("alien")' --json
  reelkv import postgres --url postgres://me@localhost/pagila
  reelkv verify postgres --url postgres://me@localhost/pagila
  reelkv cluster status --wait 30s

Keys are tuples like (1, "abc") or bytes like x'00ff'; --raw-key takes plain text.
The nodes to talk to come from --addr or REELKV_ADDR.

Exit status: 0 done; 1 the answer is no, or it could not be done; 2 the command line or the
request is wrong; 3 a write may or may not have happened."#;

/// What is under way when a command ends, such as a look-up of a name, may take this long more.
const RUNTIME_END: Duration = Duration::from_secs(1);
/// What the client commands log, on standard error, unless `REELKV_LOG` says otherwise.
const LOG_DEFAULT: &str = "warn,reelkv_migrate=info";

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output; nobody is left to tell if that is closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Status::BadInput as u8));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(Failure::no(format!("starting the runtime: {error}"))),
    };
    let exit = runtime.block_on(dispatch(cli.command));
    runtime.shutdown_timeout(RUNTIME_END);
    exit
}

async fn dispatch(command: Command) -> ExitCode {
    // Those that run nodes choose their logs and exit statuses themselves.
    match command {
        Command::Demo(args) => exit_of(demo::run(args).await),
        Command::Dev(args) => exit_of(dev::run(args).await),
        Command::Node(node::NodeCommand::Start(args)) => start::run(*args).await,
        command => {
            log_to_stderr();
            match run(command).await {
                Ok(status) => status.into(),
                Err(failure) => complain(failure),
            }
        }
    }
}

fn exit_of(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| complain(Failure::no(format!("{error:#}"))))
}

/// Runs a command that is a client of the cluster.
async fn run(command: Command) -> Outcome {
    match command {
        Command::Get(args) => keys::get(args).await,
        Command::Put(args) => keys::put(args).await,
        Command::Delete(args) => keys::delete(args).await,
        Command::Add(args) => keys::add(args).await,
        Command::Scan(args) => keys::scan(args).await,
        Command::Export(args) => export::export(args).await,
        Command::Keyspace(command) => keyspace::run(command).await,
        Command::Import(command) => migrate::run_import(command).await,
        Command::Verify(command) => migrate::run_verify(command).await,
        Command::Cluster(command) => cluster::run(command).await,
        Command::Node(command) => node::run(command).await,
        Command::Shard(command) => shard::run(command).await,
        Command::Completion(args) => completion::run(&args, self::command()),
        Command::Demo(_) | Command::Dev(_) => unreachable!("dispatched before"),
    }
}

fn complain(failure: Failure) -> ExitCode {
    if let Some(message) = failure.message {
        output::tell(&format!("error: {message}"));
    }
    failure.status.into()
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("REELKV_LOG").unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .init();
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

/// The parser, with the commands grouped in its help.
fn command() -> clap::Command {
    let command = Cli::command();
    let groups = groups(&command);
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}Options:\n{{options}}{{after-help}}"
    ))
}

fn groups(command: &clap::Command) -> String {
    let mut text = String::new();
    for (title, names) in GROUPS {
        text.push_str(&format!("{title}:\n"));
        for name in *names {
            let about = match command.find_subcommand(name).and_then(|sub| sub.get_about()) {
                Some(about) => about.to_string(),
                None => "Print help of a command".to_owned(),
            };
            text.push_str(&format!("  {name:<11} {about}\n"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: &[&str]) -> Result<Cli, clap::Error> {
        parse(
            std::iter::once("reelkv")
                .chain(args.iter().copied())
                .map(OsString::from),
        )
    }

    #[test]
    fn the_parser_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group_of_the_help() {
        let command = command();
        let listed: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        for sub in command.get_subcommands() {
            let times = listed.iter().filter(|name| **name == sub.get_name()).count();
            assert_eq!(times, 1, "{}", sub.get_name());
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
        }
        for name in listed.iter().filter(|name| **name != "help") {
            assert!(command.find_subcommand(name).is_some(), "{name}");
        }
        let help = command.clone().render_help().to_string();
        for words in ["Records:\n  get", "Examples:\n", "Exit status:", "--version"] {
            assert!(help.contains(words), "{words}\n{help}");
        }
    }

    #[test]
    fn lines_that_are_understood() {
        let lines: &[&[&str]] = &[
            &["get", "--keyspace", "public.film", "(1)"],
            &[
                "get",
                "-k",
                "film",
                "(-1)",
                "--raw",
                "--addr",
                "a:1,b:2",
                "--timeout",
                "500ms",
            ],
            &["put", "-k", "film", "(1)", "-"],
            &["put", "-k", "film", "(1)", "-5", "--if-absent"],
            &["put", "-k", "film", "(1)", "--file", "x", "--if-version", "3"],
            &["put", "-k", "film", "(1)", "v", "--ttl", "30s", "--if-absent"],
            &["delete", "-k", "film", "--raw-key", "alien"],
            &["add", "-k", "film", "(1)", "-12"],
            &[
                "scan", "-k", "film", "--start", "(1)", "--end", "(9)", "--limit", "5", "--json",
            ],
            &["export", "-k", "film", "--output", "film.jsonl"],
            &["keyspace", "create", "film", "--shards", "4"],
            &[
                "keyspace",
                "create",
                "film",
                "--split-at",
                "(100)",
                "--split-at",
                "(200)",
            ],
            &["keyspace", "list", "--json"],
            &[
                "cluster",
                "init",
                "--addr",
                "127.0.0.1:7301",
                "--shards",
                "8",
                "--replicas",
                "1",
            ],
            &["cluster", "status", "--wait", "30s"],
            &["node", "status", "--node", "127.0.0.1:7302"],
            &["shard", "list", "--count"],
            &["shard", "transfer", "4", "--to", "2"],
            &["shard", "verify"],
            &["shard", "verify", "4", "5", "--json"],
            &["shard", "recover", "--data-dir", "d1", "--shard", "4", "--json"],
            &[
                "shard",
                "recover",
                "--data-dir",
                "d1",
                "--shard",
                "1",
                "--unsafe",
                "--unsafe",
                "--yes",
            ],
            &[
                "import",
                "postgres",
                "--url",
                "postgres://x/y",
                "--max-rows-per-second",
                "100",
            ],
            &["verify", "postgres", "--url", "postgres://x/y", "--json"],
            &["demo", "--seed", "1"],
            &["dev", "--dir", "d", "--port", "7401"],
            &[
                "node",
                "start",
                "--data-dir",
                "d1",
                "--listen",
                "127.0.0.1:7301",
                "--join",
                "127.0.0.1:7301",
            ],
            &["completion", "zsh"],
        ];
        for args in lines {
            if let Err(error) = line(args) {
                panic!("{args:?}: {error}");
            }
        }
    }

    #[test]
    fn lines_that_are_refused_with_status_2_and_the_reason() {
        let lines: &[(&[&str], &str)] = &[
            (&[], "Usage"),
            (&["frobnicate"], "frobnicate"),
            (&["get", "(1)"], "--keyspace"),
            (&["get", "-k", "", "(1)"], "1 to 128 bytes"),
            (&["get", "-k", "film"], "<KEY>"),
            (&["get", "-k", "film", "(1)", "--colour"], "--colour"),
            (&["get", "-k", "film", "(1)", "--raw", "--json"], "--raw"),
            (&["get", "-k", "film", "1", "--raw-key", "--hex-key"], "--hex-key"),
            (&["get", "-k", "film", "(1)", "--timeout", "soon"], "--timeout"),
            (&["put", "-k", "film", "(1)"], "<VALUE>"),
            (&["put", "-k", "film", "(1)", "v", "--file", "f"], "--file"),
            (
                &[
                    "put",
                    "-k",
                    "film",
                    "(1)",
                    "v",
                    "--if-absent",
                    "--if-version",
                    "1",
                ],
                "--if-absent",
            ),
            (
                &["put", "-k", "film", "(1)", "v", "--if-version", "0"],
                "--if-version",
            ),
            (&["add", "-k", "film", "(1)", "one"], "<DELTA>"),
            (
                &["scan", "-k", "film", "--prefix", "(1)", "--start", "(0)"],
                "--prefix",
            ),
            (&["scan", "-k", "film", "--limit", "0"], "--limit"),
            (&["keyspace", "create", "a\nb"], "control characters"),
            (&["keyspace", "create", "film", "--shards", "0"], "--shards"),
            (&["cluster", "init", "--shards", "1025"], "1..=1024"),
            (&["cluster", "init", "--replicas", "2"], "1, 3 or 5"),
            (&["cluster", "status", "--wait", "0s"], "--wait"),
            (&["shard", "transfer", "0", "--to", "1"], "<SHARD>"),
            (&["shard", "verify", "0"], "[SHARD]..."),
            (&["shard", "recover", "--shard", "4"], "--data-dir"),
            (&["shard", "recover", "--data-dir", "d1"], "--shard"),
            (
                &["shard", "recover", "--data-dir", "d1", "--shard", "4", "--yes"],
                "--unsafe",
            ),
            (
                &["import", "postgres", "--url", "u", "--max-rows-per-second", "0"],
                "--max-rows-per-second",
            ),
            (&["import", "mysql"], "mysql"),
            (&["completion", "abacus"], "abacus"),
        ];
        for (args, reason) in lines {
            let error = line(args).map(|_| ()).expect_err(&format!("{args:?}"));
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(reason), "{args:?}: {error}");
        }
    }

    #[tokio::test]
    async fn bad_requests_are_refused_before_the_cluster_is_contacted() {
        let long_key = "k".repeat(4_097);
        let long_value = "v".repeat((4 << 20) + 1);
        let lines: &[(&[&str], &str)] = &[
            (&["get", "-k", "film", "alien"], "--raw-key"),
            (&["get", "-k", "film", "(1"], "byte 2"),
            (&["delete", "-k", "film", "--hex-key", "0x"], "not hexadecimal"),
            (
                &["add", "-k", "film", "--raw-key", &long_key, "1"],
                "at most 4096",
            ),
            (&["put", "-k", "film", "(1)", &long_value], "at most 4194304"),
            (
                &["put", "-k", "film", "(1)", "v", "--ttl", "0s"],
                "--ttl \"0s\": ",
            ),
            (
                &["put", "-k", "film", "(1)", "v", "--ttl", "3651d"],
                "from 1ms to 3650d",
            ),
            (
                &["put", "-k", "film", "(1)", "v", "--ttl", "30"],
                "--ttl \"30\": ",
            ),
            (
                &["put", "-k", "film", "(1)", "v", "--ttl", "soon"],
                "ms, s, m, h or d",
            ),
            (&["scan", "-k", "film", "--prefix", "(1,,)"], "key"),
            (&["keyspace", "create", "film", "--split-at", "x"], "key"),
            (&["get", "-k", "film", "(1)", "--addr", "nowhere"], "host:port"),
        ];
        for (args, reason) in lines {
            let failure = run(line(args).unwrap().command).await.unwrap_err();
            let message = failure.message.unwrap_or_default();
            assert_eq!(failure.status, Status::BadInput, "{args:?}: {message}");
            assert!(message.contains(reason), "{args:?}: {message}");
            assert!(!message.contains('\n'), "{args:?}: {message}");
        }
    }

    #[tokio::test]
    async fn a_cluster_that_cannot_be_reached_is_status_1() {
        // Nothing listens on port 1.
        for args in [
            &["get", "-k", "film", "(1)"][..],
            &["cluster", "init"],
            &["cluster", "status", "--wait", "1ms"],
            &["node", "status"],
            &["shard", "list"],
        ] {
            let args = [args, &["--addr", "127.0.0.1:1", "--timeout", "2s"]].concat();
            let failure = run(line(&args).unwrap().command).await.unwrap_err();
            assert_eq!(failure.status, Status::No, "{args:?}");
            assert!(failure.message.unwrap().contains("127.0.0.1:1"), "{args:?}");
        }
    }
}
