//! `completion`: what a shell needs to complete commands and flags.

use clap::Args;
use clap_complete::Shell;

use super::failure::{Outcome, Status};
use super::output::Out;

/// Print the completion script of a shell
#[derive(Args, Clone, Debug)]
pub(crate) struct CompletionArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionArgs, mut command: clap::Command) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "reelkv", &mut script);
    let mut out = Out::new();
    out.bytes(&script)?;
    out.flush()?;
    Ok(Status::Fine)
}
