//! The mixed load and the probers beside it.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reelkv_proto::types::{KeyRange, ShardId};
use reelkv_proto::v1;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::business::Business;
use super::data::{COUNTERS_LEN, RowIndex};
use super::stall::StallMeter;

/// A worker thinks this long between two requests, on average: two cores shall not be the bottleneck.
const THINK_MS: u64 = 10;
/// Every shard is probed this often by a read, and by a write unless one is under way.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// The load while it runs. Dropping it ends the tasks where they are.
pub(super) struct Load {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// The rows that probers write, one in each shard that holds rows.
pub(super) fn probe_rows(business: &Business, directory: &v1::Directory) -> Vec<(ShardId, RowIndex)> {
    let mut wanted: Vec<_> = directory
        .shards
        .iter()
        .map(|shard| (shard.shard_id, KeyRange::of(shard)))
        .collect();
    let mut rows = Vec::new();
    for row in 0..business.data.len() {
        let key = business.stored_key(row);
        if let Some(at) = wanted.iter().position(|(_, range)| range.contains(&key)) {
            rows.push((wanted.swap_remove(at).0, row));
        }
    }
    rows
}

impl Load {
    /// Starts `workers` workers and a pair of probers per shard.
    pub fn start(business: &Arc<Business>, workers: usize, seed: u64, probed: &[RowIndex]) -> Self {
        let mut load = Self {
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        business.books.lock().stall = StallMeter::new(2 * probed.len(), business.elapsed_ms());
        for (shard, row) in probed.iter().enumerate() {
            let lane = 2 * shard;
            load.tasks
                .spawn(probe_reads(business.clone(), *row, lane, load.stop.clone()));
            load.tasks
                .spawn(probe_writes(business.clone(), *row, lane + 1, load.stop.clone()));
        }
        for number in 0..workers {
            let rng = SmallRng::seed_from_u64(seed.wrapping_add(number as u64 + 1));
            let worker = Worker {
                business: business.clone(),
                number,
                workers,
                probed: probed.to_vec(),
                rng,
            };
            load.tasks.spawn(worker.run(load.stop.clone()));
        }
        load
    }

    /// Lets every request under way end, and no other begin.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}

struct Worker {
    business: Arc<Business>,
    number: usize,
    workers: usize,
    probed: Vec<RowIndex>,
    rng: SmallRng,
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let row = self.rng.random_range(0..self.business.data.len());
            match self.rng.random_range(0..100) {
                0..40 => {
                    self.business.read(row).await;
                }
                40..70 => self.write(row, false).await,
                70..90 => self.write(row, true).await,
                _ => self.business.count(row % COUNTERS_LEN).await,
            }
            let pause_ms = self.rng.random_range(0..=2 * THINK_MS);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    /// Writes the row of this worker that is nearest to `row`: each row has one writer.
    async fn write(&self, row: RowIndex, conditional: bool) {
        let own = row - row % self.workers + self.number;
        if own < self.business.data.len() && !self.probed.contains(&own) {
            self.business.write(own, conditional).await;
        }
    }
}

/// Sends a read at each tick, whether or not those before it were answered. The client's deadline
/// bounds how many are under way: 10 s at 20 a second.
async fn probe_reads(business: Arc<Business>, row: RowIndex, lane: usize, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut reads = JoinSet::new();
    while !stop.is_cancelled() {
        ticks.tick().await;
        let business = business.clone();
        reads.spawn(async move {
            // A read that failed answered nothing; the stall goes on.
            if business.read(row).await {
                answered(&business, lane);
            }
        });
        while reads.try_join_next().is_some() {}
    }
    reads.join_all().await;
}

async fn probe_writes(business: Arc<Business>, row: RowIndex, lane: usize, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.is_cancelled() {
        ticks.tick().await;
        if business.write(row, false).await {
            answered(&business, lane);
        }
    }
}

fn answered(business: &Business, lane: usize) {
    let now_ms = business.elapsed_ms();
    business.books.lock().stall.completed(lane, now_ms);
}
