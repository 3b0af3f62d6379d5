//! How fast a node repairs: so many bytes per second for all of its replicas together.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Instant, now};

/// A rate that many share.
///
/// Invariant: over any time, no more passes than the rate allows and one piece of each that shares it.
#[derive(Debug)]
pub struct Rate {
    bytes_per_s_max: u64,
    /// When everything that has passed is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Rate {
    /// At most so many bytes per second; at least one.
    pub fn new(bytes_per_s_max: u64) -> Self {
        Self {
            bytes_per_s_max: bytes_per_s_max.max(1),
            paid: Mutex::default(),
        }
    }

    /// Returns once these bytes, which have just passed, and all before them are paid for.
    pub async fn pay(&self, bytes: u64) {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s_max as f64);
        let until = {
            let mut paid = self.paid.lock();
            let from = paid.map_or_else(now, |paid| paid.max(now()));
            *paid.insert(from + cost)
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_share_a_rate_take_as_long_as_one_would() {
        let rate = Arc::new(Rate::new(1_000));
        let began = now();
        let share = |bytes| {
            let rate = rate.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    rate.pay(bytes).await;
                }
            })
        };
        let shares = [share(100), share(200), share(300)];
        for share in shares {
            share.await.unwrap();
        }
        let took = began.elapsed();
        let due = Duration::from_secs(6);
        assert!(took >= due && took < due + Duration::from_millis(50), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_passes_is_not_saved_up() {
        let rate = Rate::new(1_000);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let began = now();
        rate.pay(2_000).await;
        assert!(began.elapsed() >= Duration::from_secs(2));
    }
}
