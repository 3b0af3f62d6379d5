//! `check`: judges a stored history again, perhaps with better judges than those of its time.
//!
//! What the judges said who looked at more than the history (at replicas, at faults) is kept with it and
//! counts: a run that fell does not pass because its clients saw nothing wrong.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CouldNot, Ended, print, tell};
use crate::checker::Verdict;
use crate::history::files;
use crate::run::HISTORY;
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
    let mut verdicts = header.judged;
    verdicts.insert(HISTORY.to_owned(), workload.judge(&history, &header.clean_us));
    let verdict = verdicts.values().cloned().fold(Verdict::Pass, Verdict::and);
    if options.json {
        print(&serde_json::to_string(
            &serde_json::json!({"verdict": verdict, "verdicts": verdicts}),
        )?)?;
    } else {
        for (judge, verdict) in &verdicts {
            let when = if judge == HISTORY { "" } else { " (of its time)" };
            print(&format!("{judge:17} {verdict}{when}"))?;
        }
        print(&format!("{} operations: {verdict}", history.len()))?;
    }
    match &verdict {
        Verdict::Pass => return Ok(Ended::Held),
        Verdict::Fail { findings } => findings.iter().for_each(|finding| tell(finding)),
        Verdict::Unknown { reason } => tell(reason),
    }
    Ok(Ended::Fell)
}
