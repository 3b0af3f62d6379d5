//! That a measured round has paid for its upkeep: on every node a checkpoint and a purge of the log
//! have been completed in it. A round without them would lend from the next one.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::cluster::{Cluster, metric};

/// How much longer than planned a round may become for it.
pub const EXTENSION_MAX: Duration = Duration::from_secs(120);
const POLL_PAUSE: Duration = Duration::from_millis(250);
const CHECKPOINTS: &str = "reelkv_checkpoints_total";
const SEGMENTS_REMOVED: &str = "reelkv_wal_segments_removed_total";

/// What the nodes did within one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Upkeep {
    /// By node: checkpoints of its trees.
    pub checkpoints: Vec<u64>,
    /// By node: log segments removed.
    pub segments_removed: Vec<u64>,
    /// How much longer than planned the round was.
    pub extension_s: f64,
}

impl Upkeep {
    /// Whether every node did both.
    pub fn is_complete(&self) -> bool {
        let all = |counts: &[u64]| !counts.is_empty() && counts.iter().all(|count| *count > 0);
        all(&self.checkpoints) && all(&self.segments_removed)
    }
}

/// The counters of all nodes at the start of a round.
pub struct Watch<'a> {
    cluster: &'a Cluster,
    before: Vec<(u64, u64)>,
}

impl<'a> Watch<'a> {
    pub async fn begin(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let before = counters(cluster).await?;
        Ok(Self { cluster, before })
    }

    /// What happened since.
    pub async fn seen(&self) -> anyhow::Result<Upkeep> {
        let now = counters(self.cluster).await?;
        let since = |of: fn(&(u64, u64)) -> u64| {
            let pairs = now.iter().zip(&self.before);
            pairs
                .map(|(now, before)| of(now).saturating_sub(of(before)))
                .collect()
        };
        Ok(Upkeep {
            checkpoints: since(|counters| counters.0),
            segments_removed: since(|counters| counters.1),
            extension_s: 0.0,
        })
    }

    /// Waits until every node has done both, or for [`EXTENSION_MAX`]; the result says which.
    pub async fn complete(&self) -> anyhow::Result<Upkeep> {
        let begun = Instant::now();
        loop {
            let mut seen = self.seen().await?;
            seen.extension_s = begun.elapsed().as_secs_f64();
            if seen.is_complete() || begun.elapsed() >= EXTENSION_MAX {
                return Ok(seen);
            }
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }
}

async fn counters(cluster: &Cluster) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut all = Vec::new();
    for n in 0..cluster.addrs().len() {
        let page = cluster.metrics(n).await?;
        let read = |name| {
            let value = metric(&page, name);
            value.with_context(|| format!("node {n} shows no {name}: is its reelkv older than this program?"))
        };
        all.push((read(CHECKPOINTS)? as u64, read(SEGMENTS_REMOVED)? as u64));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_idle_node_leaves_a_round_incomplete() {
        let upkeep = |checkpoints: &[u64], segments: &[u64]| Upkeep {
            checkpoints: checkpoints.to_vec(),
            segments_removed: segments.to_vec(),
            extension_s: 0.0,
        };
        assert!(upkeep(&[8, 8, 9], &[1, 2, 1]).is_complete());
        assert!(!upkeep(&[8, 8, 0], &[1, 2, 1]).is_complete());
        assert!(!upkeep(&[8, 8, 9], &[1, 0, 1]).is_complete());
        assert!(!Upkeep::default().is_complete());
    }
}
