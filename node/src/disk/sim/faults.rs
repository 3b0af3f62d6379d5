//! What a simulated device does wrong when it is told to.

use std::io;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

/// How long a job takes on a healthy device, at most.
const LATENCY_MAX: Duration = Duration::from_micros(400);

/// What a device has refused or delayed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Syncs that failed.
    pub syncs: u64,
    /// Reads that failed.
    pub reads: u64,
    /// Writes and new files for which there was no room.
    pub growth: u64,
    /// Jobs that took longer than on a healthy device.
    pub slow_jobs: u64,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Count of operations after which nothing works any more in this life.
    pub(super) power_off_after: Option<u64>,
    /// Count of syncs after which the next one fails in this life.
    pub(super) fail_syncs_after: Option<u64>,
    pub(super) fail_reads_per_mille: u32,
    pub(super) is_full: bool,
    pub(super) latency_max: Option<Duration>,
    pub(super) refused: Refused,
}

impl Faults {
    /// The power is cut: what was set for one life is over.
    pub(super) fn end_of_life(&mut self) {
        self.power_off_after = None;
        self.fail_syncs_after = None;
    }

    pub(super) fn is_off(&self, operations: u64) -> bool {
        self.power_off_after.is_some_and(|after| operations >= after)
    }

    /// Whether the `syncs`th sync succeeds.
    pub(super) fn sync(&mut self, syncs: u64) -> io::Result<()> {
        if self.fail_syncs_after.is_none_or(|after| syncs != after + 1) {
            return Ok(());
        }
        self.refused.syncs += 1;
        Err(io::Error::other("sync failed"))
    }

    pub(super) fn read(&mut self, rng: &mut SmallRng) -> io::Result<()> {
        if self.fail_reads_per_mille == 0 || !rng.random_ratio(self.fail_reads_per_mille, 1_000) {
            return Ok(());
        }
        self.refused.reads += 1;
        Err(io::Error::other("medium error"))
    }

    pub(super) fn room_for(&mut self, grows: bool) -> io::Result<()> {
        if !self.is_full || !grows {
            return Ok(());
        }
        self.refused.growth += 1;
        Err(io::ErrorKind::StorageFull.into())
    }

    pub(super) fn latency(&mut self, rng: &mut SmallRng) -> Duration {
        let latency = self
            .latency_max
            .unwrap_or(LATENCY_MAX)
            .mul_f64(rng.random::<f64>());
        self.refused.slow_jobs += u64::from(latency > LATENCY_MAX);
        latency
    }
}
