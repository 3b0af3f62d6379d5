//! The command line.
//!
//! | exit status | means |
//! |---|---|
//! | 0 | everything held |
//! | 1 | something fell, or a judge could not tell |
//! | 2 | it could not be run or judged as asked |

mod check;
mod list;
mod matrix;
mod outcome;
mod run;
mod suite;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Workloads under faults, and judges of what clients saw.
#[derive(Parser)]
#[command(name = "reelkv-jepsen", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One run, from a seed to a verdict
    Run(run::Options),
    /// The workloads and the faults there are
    List(list::Options),
    /// Judge a stored history again
    Check(check::Options),
    /// Many runs: workloads under all families of faults, or the bugs on purpose
    Suite(suite::Options),
    /// Disks damaged at rest, place by place: what a cluster makes of it
    Matrix(matrix::Options),
    /// Run plans until the bug on purpose in this process is caught; started by `suite --mutants`
    #[command(hide = true)]
    Hunt(suite::HuntOptions),
}

/// How a command ended.
enum Ended {
    /// Everything held.
    Held,
    /// Something fell, or nobody could tell.
    Fell,
}

/// Why something could not be run, in one line.
struct CouldNot(String);

impl<E: std::fmt::Display> From<E> for CouldNot {
    fn from(error: E) -> Self {
        Self(format!("{error:#}").replace('\n', " "))
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Ok(filter) = std::env::var("REELKV_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_timer(VirtualTime)
            .with_writer(std::io::stderr)
            .init();
    }
    let ended = match crate::mutants::chosen() {
        Err(error) => Err(CouldNot(error)),
        Ok(_) => match arguments.command {
            Command::Run(options) => run::run(&options),
            Command::List(options) => list::run(&options),
            Command::Check(options) => check::run(&options),
            Command::Suite(options) => suite::run(&options),
            Command::Matrix(options) => matrix::run(&options),
            Command::Hunt(options) => suite::hunt(&options),
        },
    };
    match ended {
        Ok(Ended::Held) => ExitCode::SUCCESS,
        Ok(Ended::Fell) => ExitCode::FAILURE,
        Err(CouldNot(why)) => {
            tell(&format!("error: {why}"));
            ExitCode::from(2)
        }
    }
}

/// Stamps log lines with the virtual time of the simulated world they come from.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        write!(line, "{:10.6}", crate::run::virtual_seconds())
    }
}

/// Says something to people. Nobody is left to tell if standard error is closed.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints what was asked for.
fn print(text: &str) -> Result<(), CouldNot> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| CouldNot(format!("standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_refuses_what_it_does_not_know() {
        Arguments::command().debug_assert();
        let status = |line: &str| match Arguments::try_parse_from(line.split(' ')) {
            Ok(_) => 0,
            Err(error) => error.exit_code(),
        };
        assert_eq!(status("j run --workload bank --nemesis crash,loss --seed 7"), 0);
        assert_eq!(status("j run --workload bank --nemesis fire"), 2);
        assert_eq!(status("j run --workload savings"), 2);
        assert_eq!(status("j run --workload bank --nodes 4"), 2);
        assert_eq!(status("j run --workload bank --seconds 0"), 2);
        assert_eq!(status("j suite --profile tiny"), 2);
        assert_eq!(status("j suite --profile quick --mutants skip_fsync"), 2);
        assert_eq!(status("j check"), 2);
    }
}
