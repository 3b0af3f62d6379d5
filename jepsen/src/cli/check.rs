//! `check`: judges a stored history again, perhaps with better judges than those of its time.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CouldNot, Ended, print, tell};
use crate::checker::Verdict;
use crate::history::files;
use crate::workload::Workload;

/// Options of `check`.
#[derive(Args)]
pub(super) struct Options {
    /// Directory that a run was kept in
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<Ended, CouldNot> {
    let (header, history) = files::read(&options.dir.join("history.jsonl"))?;
    let workload = Workload::from_str(&header.workload, false).map_err(|_| {
        CouldNot(format!(
            "the history is of the unknown workload {:?}",
            header.workload
        ))
    })?;
    let verdict = workload.judge(&history, &header.clean_us);
    match options.json {
        true => print(&serde_json::to_string(&verdict)?)?,
        false => print(&format!("{} operations: {verdict}", history.len()))?,
    }
    match &verdict {
        Verdict::Pass => return Ok(Ended::Held),
        Verdict::Fail { findings } => findings.iter().for_each(|finding| tell(finding)),
        Verdict::Unknown { reason } => tell(reason),
    }
    Ok(Ended::Fell)
}
