//! At most so many rows per second, over all workers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Batches are at most this many rows, and at most a twentieth of a second's.
const MAX_BATCH_ROWS: u64 = 500;

/// Hands out rows at a constant rate.
pub(crate) struct Throttle {
    rows_per_second: Option<u64>,
    /// When the rows handed out so far are used up.
    paid_until: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(rows_per_second: Option<u64>) -> Throttle {
        Throttle {
            rows_per_second,
            paid_until: Mutex::new(Instant::now()),
        }
    }

    /// How many rows to handle at once.
    pub(crate) fn batch_rows(&self) -> usize {
        self.rows_per_second
            .map_or(MAX_BATCH_ROWS, |rate| (rate / 20).clamp(1, MAX_BATCH_ROWS)) as usize
    }

    /// Waits until this many more rows may be handled.
    pub(crate) async fn take(&self, rows: usize) {
        let Some(rate) = self.rows_per_second else { return };
        let wait_until = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*paid_until).max(Instant::now());
            *paid_until = start + Duration::from_secs_f64(rows as f64 / rate as f64);
            *paid_until
        };
        tokio::time::sleep_until(wait_until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thousand_rows_at_ten_thousand_per_second_take_a_tenth_of_a_second() {
        let throttle = Throttle::new(Some(10_000));
        let start = Instant::now();
        let half = async || {
            for _ in 0..5 {
                throttle.take(100).await;
            }
        };
        tokio::join!(half(), half());
        assert!(
            start.elapsed() >= Duration::from_millis(99),
            "{:?}",
            start.elapsed()
        );
    }
}
