//! How fast a scrub reads: so many bytes per second at most, and small things no more than once a cycle;
//! and who counts records.

use std::time::Duration;

use parking_lot::Mutex;

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

/// How long counting rests, in times of what it took: reading everything may take a twentieth of the time.
const COUNT_REST: u32 = 19;

/// Lets one replica of the node count its records at a time, and none for a while after it.
#[derive(Debug)]
pub struct Counting(Mutex<State>);

#[derive(Debug)]
struct State {
    is_taken: bool,
    rests_until: Instant,
}

impl Default for Counting {
    fn default() -> Self {
        Self(Mutex::new(State {
            is_taken: false,
            rests_until: now(),
        }))
    }
}

/// A turn to count; it ends with the guard.
pub(super) struct CountTurn<'a> {
    counting: &'a Counting,
    began: Instant,
}

impl Counting {
    /// A turn, if there is one to be had.
    pub(super) fn turn(&self) -> Option<CountTurn<'_>> {
        let mut state = self.0.lock();
        if state.is_taken || now() < state.rests_until {
            return None;
        }
        state.is_taken = true;
        Some(CountTurn {
            counting: self,
            began: now(),
        })
    }
}

impl Drop for CountTurn<'_> {
    fn drop(&mut self) {
        let mut state = self.counting.0.lock();
        state.is_taken = false;
        state.rests_until = now() + self.began.elapsed() * COUNT_REST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn replicas_count_one_after_another_for_a_twentieth_of_the_time() {
        let counting = Counting::default();
        let turn = counting.turn().unwrap();
        assert!(counting.turn().is_none(), "one at a time");
        tokio::time::advance(Duration::from_secs(2)).await;
        drop(turn);
        tokio::time::advance(Duration::from_secs(37)).await;
        assert!(counting.turn().is_none(), "it rests");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(counting.turn().is_some());
    }
}
