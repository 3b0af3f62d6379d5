//! What a run leaves behind, and how it is told.
//!
//! A directory holds `history.jsonl` (judged again by `check`), `history.edn` (for other checkers),
//! `timeline.jsonl` (faults as they came and went) and `verdict.json`.

use std::path::Path;
use std::process::Command;

use super::CouldNot;
use crate::checker::Verdict;
use crate::history::{edn, files};
use crate::run::Report;

/// Makes the directory, before anything is run.
#[allow(clippy::disallowed_methods)] // reports are files of this process, not of a node
pub(super) fn prepare(dir: &Path) -> Result<(), CouldNot> {
    std::fs::create_dir_all(dir).map_err(|error| CouldNot(format!("--out {}: {error}", dir.display())))
}

/// Keeps a report.
#[allow(clippy::disallowed_methods)] // reports are files of this process, not of a node
pub(super) fn keep(dir: &Path, report: &Report) -> Result<(), CouldNot> {
    let plan = &report.plan;
    let header = files::Header {
        format: files::FORMAT,
        workload: plan.workload.name().to_owned(),
        nemeses: plan.faults.iter().map(|fault| fault.name().to_owned()).collect(),
        seed: plan.seed,
        nodes: plan.nodes,
        shards: crate::run::SHARDS,
        seconds: plan.seconds,
        clean_us: report.clean_us.clone(),
        judged: report.judged_elsewhere(),
    };
    files::write(&dir.join("history.jsonl"), &header, &report.history)?;
    edn::write(&dir.join("history.edn"), &report.history)?;
    let mut timeline = String::new();
    for moment in &report.timeline {
        timeline.push_str(&serde_json::to_string(moment)?);
        timeline.push('\n');
    }
    std::fs::write(dir.join("timeline.jsonl"), timeline)?;
    let verdict = serde_json::json!({
        "command": plan.command(),
        "commit": commit(),
        "summary": report.summary(),
    });
    std::fs::write(dir.join("verdict.json"), format!("{verdict:#}\n"))?;
    Ok(())
}

/// The figures of a run, for people.
pub(super) fn table(report: &Report) -> String {
    let summary = report.summary();
    let mut lines = vec![format!(
        "{:17} {:>8} {:>8} {:>8}",
        "operation", "done", "failed", "unknown"
    )];
    let operations = summary.operations.iter();
    lines.extend(
        operations
            .map(|(name, [done, failed, unknown])| format!("{name:17} {done:>8} {failed:>8} {unknown:>8}")),
    );
    lines.push(String::new());
    let faults: Vec<String> = summary
        .faults
        .iter()
        .map(|(fault, times)| format!("{times} {fault}"))
        .collect();
    lines.push(format!("faults            {}", faults.join(", ")));
    lines.push(format!("records compared  {}", summary.records_compared));
    lines.push(format!("history           {}", summary.fingerprint));
    lines.push(String::new());
    let verdicts = summary.verdicts.iter();
    lines.extend(verdicts.map(|(judge, verdict)| format!("{judge:17} {verdict}")));
    lines.push(format!("{:17} {}", "verdict", summary.verdict));
    lines.join("\n")
}

/// Why a run did not pass, and how to see it again.
pub(super) fn explain(report: &Report) -> String {
    let mut lines = Vec::new();
    for (judge, verdict) in &report.verdicts {
        match verdict {
            Verdict::Pass => {}
            Verdict::Fail { findings } => {
                lines.extend(findings.iter().map(|finding| format!("{judge}: {finding}")));
            }
            Verdict::Unknown { reason } => lines.push(format!("{judge} cannot tell: {reason}")),
        }
    }
    lines.push(format!("seed {}, commit {}", report.plan.seed, commit()));
    lines.push(format!("again: {}", report.plan.command()));
    lines.join("\n")
}

/// The commit this was built from, as far as the source tree knows it.
pub(super) fn commit() -> String {
    let described = Command::new("git")
        .args([
            "-C",
            env!("CARGO_MANIFEST_DIR"),
            "describe",
            "--always",
            "--dirty",
        ])
        .output();
    match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
