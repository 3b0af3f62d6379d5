//! `list`: the workloads and the faults there are.

use clap::Args;
use serde_json::json;

use super::{CouldNot, Ended, print};
use crate::nemesis::Fault;
use crate::workload::Workload;

/// Options of `list`.
#[derive(Args)]
pub(super) struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> Result<Ended, CouldNot> {
    if options.json {
        let workload = |workload: &Workload| json!({"name": workload.name(), "about": workload.about()});
        let fault = |fault: &Fault| json!({"name": fault.name(), "family": fault.family().name(), "about": fault.about()});
        let listed = json!({
            "workloads": Workload::ALL.iter().map(workload).collect::<Vec<_>>(),
            "nemeses": Fault::ALL.iter().map(fault).collect::<Vec<_>>(),
        });
        print(&listed.to_string())?;
        return Ok(Ended::Held);
    }
    let mut lines = vec!["workloads".to_owned()];
    let workloads = Workload::ALL.iter();
    lines.extend(workloads.map(|workload| format!("  {:17} {}", workload.name(), workload.about())));
    lines.push(String::new());
    lines.push("nemeses (all, none, a family, or names joined by commas)".to_owned());
    let faults = Fault::ALL.iter();
    lines.extend(faults.map(|fault| {
        let (name, family) = (fault.name(), fault.family().name());
        format!("  {family:8} {name:15} {}", fault.about())
    }));
    print(&lines.join("\n"))?;
    Ok(Ended::Held)
}
