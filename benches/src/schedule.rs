//! When operations start: as soon as a client is free, or at a fixed rate whatever happens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The starts of a run, shared by its clients.
pub enum Schedule {
    /// Closed loop: a client starts its next operation when the last is done. It sends less while
    /// the server is slow, so its latencies say nothing about what users would wait.
    Closed,
    /// Open loop: operation n starts n / rate seconds into the run, on the first client that is free.
    /// Its latency counts from then, also when it waited for a client.
    Open { per_second: f64, next: AtomicU64 },
}

impl Schedule {
    pub fn new(per_second: Option<f64>) -> Self {
        match per_second {
            None => Self::Closed,
            Some(per_second) => Self::Open {
                per_second,
                next: AtomicU64::new(0),
            },
        }
    }

    /// When the caller's next operation should start, from the start of the run; `None` for at once.
    pub fn next_start(&self) -> Option<Duration> {
        match self {
            Self::Closed => None,
            Self::Open { per_second, next } => {
                let n = next.fetch_add(1, Ordering::Relaxed);
                Some(Duration::from_secs_f64(n as f64 / per_second))
            }
        }
    }

    /// How many operations an open loop should start within `run`.
    pub fn planned(&self, run: Duration) -> Option<u64> {
        match self {
            Self::Closed => None,
            // Operation n is inside if n / rate < run.
            Self::Open { per_second, .. } => Some((run.as_secs_f64() * per_second).ceil() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_starts_at_even_steps_whoever_asks() {
        let schedule = Schedule::new(Some(200.0));
        let starts: Vec<_> = (0..4)
            .map(|_| schedule.next_start().unwrap().as_millis())
            .collect();
        assert_eq!(starts, [0, 5, 10, 15]);
    }

    #[test]
    fn planned_counts_the_starts_inside_the_run() {
        for (rate, seconds) in [(200.0, 1.0), (3.0, 1.0), (0.5, 3.0), (7.0, 0.4)] {
            let run = Duration::from_secs_f64(seconds);
            let schedule = Schedule::new(Some(rate));
            let inside = std::iter::from_fn(|| schedule.next_start())
                .take_while(|start| *start < run)
                .count();
            assert_eq!(
                schedule.planned(run),
                Some(inside as u64),
                "{rate} per second for {seconds} s"
            );
        }
    }

    #[test]
    fn a_closed_loop_has_no_schedule() {
        let schedule = Schedule::new(None);
        assert_eq!(
            (schedule.next_start(), schedule.planned(Duration::from_secs(1))),
            (None, None)
        );
    }
}
