//! One measured cell: one system under one load, once.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::system::{Kind, Running, System};
use super::upkeep::{Upkeep, Watch};
use crate::choice::Choose;
use crate::drive::{Load, drive};
use crate::summary::Summary;
use crate::usage::disk_written_bytes;

/// Bytes of a key.
const KEY_BYTES: u64 = 16;
/// Between two cells: what the last one left to do is not the next one's burden.
const PAUSE: Duration = Duration::from_millis(500);

/// Which table a cell belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Closed loop, uniform keys: what the bars are about.
    Main,
    /// The same with another number of keys or another size of values.
    Beside,
    /// Operations are due at a fraction of the peak.
    Open,
    Ycsb,
}

/// What to measure.
#[derive(Clone)]
pub struct CellPlan {
    pub part: Part,
    pub round: u32,
    /// `put`, `get`, or the letter of a YCSB workload.
    pub operation: &'static str,
    pub choose: Arc<dyn Choose>,
    pub clients: u32,
    pub value_bytes: u32,
    pub keys: u64,
    pub run: Duration,
    /// Open loop: percent of the peak, and operations per second.
    pub offered: Option<(u32, f64)>,
    /// Whether the round goes on until every ReelKV node has checkpointed and shortened its log.
    pub awaits_upkeep: bool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub part: Part,
    pub round: u32,
    pub system: Kind,
    pub operation: &'static str,
    pub clients: u32,
    pub value_bytes: u32,
    pub keys: u64,
    /// Open loop: percent of the peak that was offered.
    pub percent: Option<u32>,
    pub summary: Summary,
    /// CPU time of all processes of the system, the load generator not among them, per operation.
    pub cpu_us_per_operation: f64,
    /// Bytes the machine wrote to the systems' disk per byte of keys and values put; of puts only, and only
    /// where that disk is a block device.
    pub written_per_byte: Option<f64>,
    /// Memory of all processes of the system at the end.
    pub memory_bytes: u64,
    /// ReelKV's puts only.
    pub upkeep: Option<Upkeep>,
    /// Whether the bars' rule about upkeep was asked for.
    pub awaits_upkeep: bool,
    /// Latencies in microseconds and how often each was seen.
    #[serde(skip)]
    pub latencies_us: Vec<(u64, u64)>,
}

impl CellPlan {
    /// Run before measuring, in the same way.
    fn warmup(&self) -> Duration {
        (self.run / 5).clamp(Duration::from_millis(200), Duration::from_secs(2))
    }

    /// How long it takes if nothing extends it.
    pub fn duration(&self) -> Duration {
        PAUSE + self.warmup() + self.run
    }

    fn load(&self, run: Duration) -> Load {
        Load {
            clients: self.clients,
            value_bytes: self.value_bytes,
            seed: u64::from(self.round),
            run,
            per_second: self.offered.map(|(_, per_second)| per_second),
            choose: self.choose.clone(),
            is_shown: false,
        }
    }
}

/// Warms up, measures. `directory` is where the systems run.
pub async fn measure(system: &mut System, plan: &CellPlan, directory: &Path) -> anyhow::Result<Cell> {
    system.check()?;
    tokio::time::sleep(PAUSE).await;
    let at_once = std::future::ready(Ok(()));
    drive(&system.targets, &plan.load(plan.warmup()), at_once).await?;
    let watch = match &system.running {
        Running::Nodes(cluster) if plan.operation == "put" => Some(Watch::begin(cluster).await?),
        _ => None,
    };
    let (before, written_before) = (system.usage()?, disk_written_bytes(directory));
    let mut upkeep = None;
    let may_end = async {
        if let Some(watch) = watch.as_ref().filter(|_| plan.awaits_upkeep) {
            upkeep = Some(watch.complete().await?);
        }
        Ok(())
    };
    let ran = drive(&system.targets, &plan.load(plan.run), may_end).await?;
    let used = system.usage()?.since(before);
    let written = disk_written_bytes(directory).zip(written_before);
    let written_bytes = written.map(|(now, before)| now.saturating_sub(before));
    if let Some(watch) = watch.filter(|_| upkeep.is_none()) {
        upkeep = Some(watch.seen().await?);
    }
    let memory_bytes = system.memory_bytes()?;
    system.check()?;
    let summary = ran.summary();
    let operations = summary.operations.max(1);
    let data_bytes = operations * (KEY_BYTES + u64::from(plan.value_bytes));
    Ok(Cell {
        part: plan.part,
        round: plan.round,
        system: system.kind,
        operation: plan.operation,
        clients: plan.clients,
        value_bytes: plan.value_bytes,
        keys: plan.keys,
        percent: plan.offered.map(|(percent, _)| percent),
        cpu_us_per_operation: used.cpu.as_secs_f64() * 1e6 / operations as f64,
        written_per_byte: written_bytes
            .filter(|_| plan.operation == "put")
            .map(|bytes| bytes as f64 / data_bytes as f64),
        memory_bytes,
        upkeep,
        awaits_upkeep: plan.awaits_upkeep,
        latencies_us: ran.tally.recorded(),
        summary,
    })
}
