//! How often to try again: back-off per call, a budget for all calls of a client.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reelkv_proto::types::ShardId;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First wait of a call that failed.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// Longest wait: a shard's new leader should be found soon after it is elected. How many retries there
/// are in all is the budget's business.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// Retries a client may make at once before they are paced.
const BUDGET_CAPACITY: f64 = 500.0;
/// Retries per second it may make for long.
const BUDGET_PER_SECOND: f64 = 100.0;
/// What a success gives back.
const BUDGET_PER_SUCCESS: f64 = 0.1;

/// A seeded source of chance.
pub(crate) struct Jitter(Mutex<SmallRng>);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(SmallRng::seed_from_u64(seed)))
    }

    /// Something from the upper half of `wait`, so that callers who failed together return apart.
    fn spread(&self, wait: Duration) -> Duration {
        wait.mul_f64(self.0.lock().random_range(0.5..=1.0))
    }
}

/// The waits of one call, each about twice the one before.
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: BACKOFF_FIRST }
    }

    pub(crate) fn next(&mut self, jitter: &Jitter) -> Duration {
        let wait = jitter.spread(self.next);
        self.next = (self.next * 2).min(BACKOFF_MAX);
        wait
    }
}

/// A token bucket: every retry takes one, time and successes give back.
///
/// An empty bucket paces retries instead of forbidding them: a call waits for its token as long as
/// its deadline allows. So a cluster in trouble sees a bounded rate of retries, and a call that can
/// still be answered is.
///
/// Invariant: `tokens <= BUDGET_CAPACITY`; below 0 are the tokens that waiting retries have reserved.
pub(crate) struct RetryBudget(Mutex<Bucket>);

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl RetryBudget {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Bucket {
            tokens: BUDGET_CAPACITY,
            filled_at: Instant::now(),
        }))
    }

    /// Takes a token: how long to wait for it; `None`, and nothing taken, if that is longer than `at_most`.
    pub(crate) fn take(&self, at_most: Duration) -> Option<Duration> {
        let mut bucket = self.0.lock();
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(bucket.filled_at);
        bucket.filled_at = now;
        bucket.add(elapsed.as_secs_f64() * BUDGET_PER_SECOND);
        let missing = (1.0 - bucket.tokens).max(0.0);
        let wait = Duration::from_secs_f64(missing / BUDGET_PER_SECOND);
        if wait > at_most {
            return None;
        }
        bucket.tokens -= 1.0;
        Some(wait)
    }

    pub(crate) fn succeeded(&self) {
        self.0.lock().add(BUDGET_PER_SUCCESS);
    }

    /// Returns a token that was taken for a wait which turned out not to be needed.
    fn give_back(&self) {
        self.0.lock().add(1.0);
    }
}

/// Calls that wait for their token, by shard. The first that is answered ends the wait of all: a shard
/// that has a leader again need not wait until everybody's token is due.
#[derive(Default)]
pub(crate) struct Waiting {
    calls: AtomicUsize,
    shards: Mutex<BTreeMap<ShardId, Arc<Notify>>>,
}

impl Waiting {
    /// Waits for `pause`, and then for `queue` or until some call of the shard is answered. Returns
    /// whether it was.
    pub(crate) async fn wait(
        &self,
        shard_id: ShardId,
        pause: Duration,
        queue: Duration,
        budget: &RetryBudget,
    ) -> bool {
        let shard = self.shards.lock().entry(shard_id).or_default().clone();
        let mut answered = pin!(shard.notified());
        // An answer during the pause counts, and does not end it: what fails for another reason
        // must not be tried at the rate of what succeeds.
        answered.as_mut().enable();
        let _counted = Counted::new(&self.calls);
        tokio::time::sleep(pause).await;
        tokio::select! {
            biased;
            () = answered => {
                budget.give_back();
                true
            }
            () = tokio::time::sleep(queue) => false,
        }
    }

    /// A call of the shard was answered.
    pub(crate) fn answered(&self, shard_id: ShardId) {
        if self.calls.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(shard) = self.shards.lock().get(&shard_id) {
            shard.notify_waiters();
        }
    }
}

/// One call that waits, however its wait ends.
struct Counted<'calls>(&'calls AtomicUsize);

impl<'calls> Counted<'calls> {
    fn new(calls: &'calls AtomicUsize) -> Self {
        calls.fetch_add(1, Ordering::Relaxed);
        Self(calls)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bucket {
    fn add(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(BUDGET_CAPACITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_quarter_second_and_differ_by_seed() {
        let waits = |seed| {
            let (jitter, mut backoff) = (Jitter::new(seed), Backoff::new());
            (0..12).map(|_| backoff.next(&jitter)).collect::<Vec<_>>()
        };
        let first = waits(1);
        assert_eq!(first, waits(1));
        assert_ne!(first, waits(2));
        for (n, wait) in first.iter().enumerate() {
            let full = (BACKOFF_FIRST * (1 << n)).min(BACKOFF_MAX);
            assert!(
                *wait >= full / 2 && *wait <= full,
                "wait {n} is {wait:?} of {full:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_waits_of_its_shard_and_no_others() {
        let (waiting, budget) = (Arc::new(Waiting::default()), Arc::new(RetryBudget::new()));
        let wait = |shard_id, pause_ms| {
            let (waiting, budget) = (waiting.clone(), budget.clone());
            tokio::spawn(async move {
                let (begun, pause) = (Instant::now(), Duration::from_millis(pause_ms));
                let answered = waiting
                    .wait(shard_id, pause, Duration::from_secs(5), &budget)
                    .await;
                (answered, begun.elapsed().as_millis())
            })
        };
        let (queued, pausing, other) = (wait(1, 200), wait(1, 1_500), wait(2, 0));
        tokio::time::sleep(Duration::from_secs(1)).await;
        waiting.answered(1);
        assert_eq!(queued.await.unwrap(), (true, 1_000));
        assert_eq!(pausing.await.unwrap(), (true, 1_500), "its own pause is kept");
        assert_eq!(other.await.unwrap(), (false, 5_000));
        assert_eq!(waiting.calls.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_budget_lets_a_burst_pass_then_paces_and_never_overdraws() {
        let budget = RetryBudget::new();
        let hour = Duration::from_secs(3600);
        for _ in 0..BUDGET_CAPACITY as usize {
            assert_eq!(budget.take(hour), Some(Duration::ZERO));
        }
        let waits: Vec<_> = (0..100).map(|_| budget.take(hour).unwrap()).collect();
        let last = waits[99];
        assert!(
            last > Duration::from_millis(800) && last < Duration::from_millis(1100),
            "{last:?}"
        );
        assert_eq!(budget.take(Duration::from_millis(100)), None);
        for _ in 0..100_000 {
            budget.succeeded();
        }
        for _ in 0..BUDGET_CAPACITY as usize {
            assert_eq!(budget.take(Duration::ZERO), Some(Duration::ZERO));
        }
        assert_eq!(budget.take(Duration::ZERO), None);
    }
}
