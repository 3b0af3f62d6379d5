//! The only door to time and chance.
//!
//! Monotonic time is tokio's, so that a paused runtime makes it virtual. Wall-clock time is for
//! people and for the logged time of entries; no safety rests on it.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// A point of monotonic time; virtual under the simulator.
pub use tokio::time::Instant;

/// Wall-clock time and randomness of one node.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Milliseconds since 1970 by this node's clock, which may jump.
    fn wall_ms(&self) -> u64;

    /// A fresh random number.
    fn random_u64(&self) -> u64;

    /// A fresh 16-byte identity.
    fn random_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.random_u64().to_be_bytes());
        id[8..].copy_from_slice(&self.random_u64().to_be_bytes());
        id
    }
}

/// A clock shared by the parts of one node.
pub type SharedClock = Arc<dyn Clock>;

/// Monotonic time now.
pub fn now() -> Instant {
    Instant::now()
}

/// The machine's own clock and random source.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // this is the door
    fn wall_ms(&self) -> u64 {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since_1970.map_or(0, |elapsed| elapsed.as_millis() as u64)
    }

    #[allow(clippy::disallowed_methods)] // this is the door
    fn random_u64(&self) -> u64 {
        rand::rng().next_u64()
    }
}

/// Virtual time since the runtime started, an offset per node, and a seeded random source.
#[derive(Debug)]
pub struct SimClock {
    started: Instant,
    error: Mutex<ClockError>,
    rng: Mutex<SmallRng>,
}

/// How a simulated wall clock is wrong.
#[derive(Clone, Copy, Debug)]
struct ClockError {
    offset_ms: i64,
    /// Seconds gained per million seconds; may be negative.
    drift_ppm: i64,
    drifts_since: Instant,
}

impl ClockError {
    fn now_ms(&self) -> i64 {
        let drifting_ms = self.drifts_since.elapsed().as_millis() as i64;
        self.offset_ms + drifting_ms * self.drift_ppm / 1_000_000
    }
}

impl SimClock {
    /// 2008-08-11, so that simulated logs read like a date.
    const EPOCH_MS: u64 = 1_218_412_800_000;

    /// A clock that begins now, within a second of the others'.
    pub fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let offset_ms = rng.random_range(-1_000..1_000);
        Self {
            started: now(),
            error: Mutex::new(ClockError {
                offset_ms,
                drift_ppm: 0,
                drifts_since: now(),
            }),
            rng: Mutex::new(rng),
        }
    }

    /// Makes the wall clock jump.
    pub fn jump_ms(&self, by_ms: i64) {
        self.error.lock().offset_ms += by_ms;
    }

    /// Makes the wall clock go faster or slower from now on, by so many seconds per million.
    pub fn drift_ppm(&self, drift_ppm: i64) {
        let mut error = self.error.lock();
        *error = ClockError {
            offset_ms: error.now_ms(),
            drift_ppm,
            drifts_since: now(),
        };
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let elapsed_ms = now().duration_since(self.started).as_millis() as u64;
        (Self::EPOCH_MS + elapsed_ms).saturating_add_signed(self.error.lock().now_ms())
    }

    fn random_u64(&self) -> u64 {
        self.rng.lock().next_u64()
    }
}
