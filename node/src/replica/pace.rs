//! How fast a scrub reads: so many bytes per second at most, and small things no more than once a cycle.

use std::time::Duration;

use crate::clock::{Instant, now};
use crate::limits::SCRUB_BYTES_PER_S;

/// Bytes read between two pauses.
pub(super) const STEP_BYTES: u64 = 256 << 10;
/// Never without a pause: others share the device.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// The pace of one scrub.
pub(super) struct Pace {
    cycle: Duration,
    began: Instant,
}

impl Pace {
    /// A first cycle begins.
    pub(super) fn new(cycle_ms: u64) -> Self {
        Self {
            cycle: Duration::from_millis(cycle_ms),
            began: now(),
        }
    }

    /// Waits as long as reading this much may take.
    pub(super) async fn step(&self, bytes: u64) {
        let pause = Duration::from_millis(bytes * 1_000 / SCRUB_BYTES_PER_S);
        tokio::time::sleep(pause.max(PAUSE_MIN)).await;
    }

    /// Waits until the next cycle is due, which begins then.
    pub(super) async fn cycle(&mut self) {
        let pause = self.cycle.saturating_sub(self.began.elapsed());
        self.begin_after(pause).await;
    }

    /// The next cycle begins after this.
    pub(super) async fn begin_after(&mut self, pause: Duration) {
        tokio::time::sleep(pause.max(PAUSE_MIN)).await;
        self.began = now();
    }
}
