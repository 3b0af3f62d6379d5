//! The files a run leaves behind.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::cell::Cell;
use super::machine::Machine;
use super::report::Results;

/// All latencies of one cell.
#[derive(Serialize)]
struct Histogram<'a> {
    #[serde(flatten)]
    cell: &'a Cell,
    /// Microseconds and how often, ascending.
    latencies_us: &'a [(u64, u64)],
}

/// Makes the directory, before anything is measured for it.
#[allow(clippy::disallowed_methods)] // results, not data of ours
pub fn prepare(named: Option<&Path>, machine: &Machine) -> anyhow::Result<PathBuf> {
    let out = match named {
        None => {
            let day = machine.date.get(..10).unwrap_or("undated");
            PathBuf::from("benches/runs").join(format!("{day}-{}", machine.host))
        }
        Some(named) => named.to_owned(),
    };
    std::fs::create_dir_all(&out).with_context(|| format!("--out: make {}", out.display()))?;
    Ok(out)
}

#[allow(clippy::disallowed_methods)] // results, not data of ours
pub fn write(out: &Path, results: &Results) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("compare.json", serde_json::to_string_pretty(results)?)?;
    write("machine.json", serde_json::to_string_pretty(&results.machine)?)?;
    write("compare.txt", results.to_string())?;
    // One line for each cell.
    let histograms = results.cells.iter().map(|cell| {
        serde_json::to_string(&Histogram {
            cell,
            latencies_us: &cell.latencies_us,
        })
    });
    let lines = histograms.collect::<Result<Vec<_>, _>>()?;
    write("histograms.jsonl", lines.join("\n") + "\n")
}
