//! Clients that put a load on a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::choice::{Choose, Step};
use crate::schedule::Schedule;
use crate::summary::{Summary, Tally};
use crate::target::{Done, Target, key};

/// An open loop's operation that starts later than this was late.
const LAG_TOLERANCE: Duration = Duration::from_millis(10);
/// When an open loop begins: once all its clients are there.
const OPEN_LEAD: Duration = Duration::from_millis(100);
/// How long the last operations of a run may take: more than any client's own deadline.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// A load, whatever is under it.
#[derive(Clone)]
pub struct Load {
    /// Operations at a time.
    pub clients: u32,
    pub value_bytes: u32,
    pub seed: u64,
    /// How long, at least.
    pub run: Duration,
    /// Operations that are due per second (open loop); closed loop if absent.
    pub per_second: Option<f64>,
    pub choose: Arc<dyn Choose>,
    /// A line per second on stderr.
    pub is_shown: bool,
}

/// What came of it.
pub struct Ran {
    pub tally: Tally,
    /// Operations begun in time are waited for, and count in the time they took.
    pub ran: Duration,
    /// Operations an open loop should have started, and those it started.
    pub planned: Option<(u64, u64)>,
}

impl Ran {
    pub fn summary(&self) -> Summary {
        self.tally.summary(self.ran, self.planned)
    }
}

/// One client of a run.
struct Worker {
    target: Target,
    choose: Arc<dyn Choose>,
    value_bytes: u32,
    rng: SmallRng,
    clock: Arc<RunClock>,
    /// Becomes true at the end of the run, so that nobody sleeps until an operation that is due later.
    over: watch::Receiver<bool>,
}

/// What the clients of a run share.
struct RunClock {
    schedule: Schedule,
    starts: Instant,
    /// Nothing starts from here on, in microseconds since the start.
    end_us: AtomicU64,
    done: AtomicU64,
    started: AtomicU64,
}

impl RunClock {
    fn is_over(&self, since_start: Duration) -> bool {
        since_start.as_micros() as u64 >= self.end_us.load(Ordering::Relaxed)
    }
}

/// Runs a load over `targets` (clients are spread over them), for its time and until `may_end` is done.
pub async fn drive(
    targets: &[Target],
    load: &Load,
    may_end: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Ran> {
    ensure!(!targets.is_empty(), "nothing to put under load");
    let lead = load.per_second.map_or(Duration::ZERO, |_| OPEN_LEAD);
    let clock = Arc::new(RunClock {
        schedule: Schedule::new(load.per_second),
        starts: Instant::now() + lead,
        end_us: AtomicU64::new(u64::MAX),
        done: AtomicU64::new(0),
        started: AtomicU64::new(0),
    });
    let (ends, over) = watch::channel(false);
    let mut clients = JoinSet::new();
    for n in 0..load.clients {
        let worker = Worker {
            target: targets[n as usize % targets.len()].clone(),
            choose: load.choose.clone(),
            value_bytes: load.value_bytes,
            rng: SmallRng::seed_from_u64(load.seed.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(n))),
            clock: clock.clone(),
            over: over.clone(),
        };
        clients.spawn(worker.work());
    }
    let ending = async {
        tokio::time::sleep_until(clock.starts + load.run).await;
        may_end.await
    };
    match load.is_shown {
        true => tokio::select! {
            ended = ending => ended?,
            () = show(&clock) => {}
        },
        false => ending.await?,
    }
    let end = clock.starts.elapsed();
    clock.end_us.store(end.as_micros() as u64, Ordering::Relaxed);
    ends.send_replace(true);
    let drained = async {
        let mut tally = Tally::new();
        while let Some(seen) = clients.join_next().await {
            tally.add(seen?);
        }
        anyhow::Ok(tally)
    };
    let Ok(tally) = tokio::time::timeout(DRAIN_MAX, drained).await else {
        anyhow::bail!(
            "operations are still not answered {} s after the run",
            DRAIN_MAX.as_secs()
        );
    };
    let planned = clock.schedule.planned(end);
    Ok(Ran {
        tally: tally?,
        ran: clock.starts.elapsed(),
        planned: planned.map(|planned| (planned, clock.started.load(Ordering::Relaxed))),
    })
}

/// A line per second, without end.
async fn show(clock: &RunClock) {
    let mut second = tokio::time::interval_at(clock.starts + Duration::from_secs(1), Duration::from_secs(1));
    let mut shown = 0;
    loop {
        second.tick().await;
        let now = clock.done.load(Ordering::Relaxed);
        eprintln!(
            "{:4.0} s  {:7} per second",
            clock.starts.elapsed().as_secs_f64(),
            now - shown
        );
        shown = now;
    }
}

/// Random, so that nothing on the way can compress it.
pub fn value(rng: &mut SmallRng, value_bytes: u32) -> Bytes {
    let mut value = vec![0; value_bytes as usize];
    rng.fill_bytes(&mut value);
    value.into()
}

impl Worker {
    async fn work(mut self) -> Tally {
        let mut tally = Tally::new();
        let clock = self.clock.clone();
        loop {
            let planned = clock.schedule.next_start();
            let at = planned.unwrap_or_else(|| clock.starts.elapsed());
            let start = clock.starts + at;
            if planned.is_some() {
                tokio::select! {
                    () = tokio::time::sleep_until(start) => {}
                    _ = self.over.wait_for(|is_over| *is_over) => {}
                }
            }
            // What was due in time may still start a little late.
            if clock.is_over(at) || clock.is_over(clock.starts.elapsed().saturating_sub(LAG_TOLERANCE)) {
                return tally;
            }
            if planned.is_some() {
                tally.lagged(start.elapsed(), LAG_TOLERANCE);
            }
            clock.started.fetch_add(1, Ordering::Relaxed);
            match self.operate().await {
                Ok(()) => tally.succeeded(start.elapsed()),
                Err(kind) => tally.failed(&kind),
            }
            clock.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn operate(&mut self) -> Done {
        let step = self.choose.next(&mut self.rng);
        let done = self.perform(step).await;
        self.choose.ended(step);
        done
    }

    async fn perform(&mut self, step: Step) -> Done {
        match step {
            Step::Get(n) => self.target.get(key(n)).await,
            Step::Put(n) | Step::Insert(n) => self.put(n).await,
            Step::Modify(n) => {
                self.target.get(key(n)).await?;
                self.put(n).await
            }
            Step::Scan(n, records) => self.target.scan(key(n), records).await,
        }
    }

    async fn put(&mut self, n: u64) -> Done {
        let value = value(&mut self.rng, self.value_bytes);
        self.target.put(key(n), value).await
    }
}
