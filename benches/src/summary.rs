//! Latencies and errors, gathered per client and summed up once.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies above this are counted as this, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Three digits: a reported percentile is off by at most 0.1 %.
const DIGITS: u8 = 3;

/// What one client saw.
pub struct Tally {
    latencies_us: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    late: u64,
    lag_us_max: u64,
}

/// What all clients saw in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Operations that succeeded.
    pub operations: u64,
    /// Of those, per second of the run.
    pub per_second: f64,
    /// Latencies of successes, in milliseconds.
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Failures by kind; their latencies are not in the percentiles.
    pub errors: BTreeMap<String, u64>,
    /// Open loop only.
    pub schedule: Option<Kept>,
}

/// How well an open loop's schedule was kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// Operations that should have been started in the run.
    pub planned: u64,
    /// Never started: every client was busy.
    pub unsent: u64,
    /// Started late because every client was busy.
    pub late: u64,
    /// The latest start, in milliseconds after its time.
    pub lag_max_ms: f64,
}

impl Kept {
    /// Whether the offered rate was really offered.
    pub fn is_kept(&self) -> bool {
        self.unsent == 0 && self.late * 1_000 <= self.planned
    }
}

impl Tally {
    pub fn new() -> Self {
        let latencies_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS);
        Self {
            latencies_us: latencies_us.expect("constant bounds are valid"),
            errors: BTreeMap::new(),
            late: 0,
            lag_us_max: 0,
        }
    }

    pub fn succeeded(&mut self, latency: Duration) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
        self.latencies_us
            .saturating_record(latency_us.clamp(1, LATENCY_US_MAX));
    }

    pub fn failed(&mut self, kind: &str) {
        *self.errors.entry(kind.to_owned()).or_default() += 1;
    }

    /// An operation was started this long after its time.
    pub fn lagged(&mut self, lag: Duration, tolerance: Duration) {
        let lag_us = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
        self.lag_us_max = self.lag_us_max.max(lag_us);
        self.late += u64::from(lag > tolerance);
    }

    pub fn add(&mut self, other: Self) {
        self.latencies_us
            .add(&other.latencies_us)
            .expect("all have the same bounds");
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.late += other.late;
        self.lag_us_max = self.lag_us_max.max(other.lag_us_max);
    }

    /// Latencies of successes in microseconds, each with how often it was seen.
    pub fn recorded(&self) -> Vec<(u64, u64)> {
        let recorded = self.latencies_us.iter_recorded();
        recorded
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect()
    }

    /// `planned` and started operations of an open loop; `None` for a closed one.
    pub fn summary(&self, ran: Duration, planned: Option<(u64, u64)>) -> Summary {
        let at = |quantile| self.latencies_us.value_at_quantile(quantile) as f64 / 1e3;
        let operations = self.latencies_us.len();
        Summary {
            operations,
            per_second: operations as f64 / ran.as_secs_f64().max(1e-9),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: self.latencies_us.max() as f64 / 1e3,
            errors: self.errors.clone(),
            schedule: planned.map(|(planned, started)| Kept {
                planned,
                unsent: planned.saturating_sub(started),
                late: self.late,
                lag_max_ms: self.lag_us_max as f64 / 1e3,
            }),
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} operations, {:.0} per second",
            self.operations, self.per_second
        )?;
        writeln!(
            f,
            "latency ms: p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}",
            self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms
        )?;
        if self.errors.is_empty() {
            write!(f, "errors: none")?;
        } else {
            let errors: Vec<_> = self
                .errors
                .iter()
                .map(|(kind, count)| format!("{kind} {count}"))
                .collect();
            write!(f, "errors: {}", errors.join(", "))?;
        }
        match &self.schedule {
            Some(kept) if kept.is_kept() => {
                write!(f, "\nschedule: kept, latest start {:.1} ms late", kept.lag_max_ms)
            }
            Some(kept) => write!(
                f,
                "\nschedule: NOT KEPT: of {} operations {} started late and {} never, latest start {:.1} ms late; \
                 add clients or lower the rate",
                kept.planned, kept.late, kept.unsent, kept.lag_max_ms
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_clients_together() {
        let (mut low, mut high) = (Tally::new(), Tally::new());
        (1..=500).for_each(|ms| low.succeeded(Duration::from_millis(ms)));
        (501..=1000).for_each(|ms| high.succeeded(Duration::from_millis(ms)));
        high.failed("busy");
        low.failed("busy");
        low.add(high);
        let summary = low.summary(Duration::from_secs(10), None);
        let is_near = |value: f64, wanted: f64| (value - wanted).abs() <= wanted * 0.002;
        assert_eq!((summary.operations, summary.per_second), (1000, 100.0));
        assert!(
            is_near(summary.p50_ms, 500.0) && is_near(summary.p90_ms, 900.0),
            "{summary}"
        );
        assert!(
            is_near(summary.p99_ms, 990.0) && is_near(summary.max_ms, 1000.0),
            "{summary}"
        );
        assert_eq!(summary.errors["busy"], 2);
    }

    #[test]
    fn nothing_done_is_no_division_by_zero() {
        let summary = Tally::new().summary(Duration::ZERO, None);
        assert_eq!(
            (summary.operations, summary.per_second, summary.max_ms),
            (0, 0.0, 0.0)
        );
    }

    #[test]
    fn latencies_beyond_the_scale_are_kept_at_its_end() {
        let mut tally = Tally::new();
        tally.succeeded(Duration::from_secs(3600));
        tally.succeeded(Duration::ZERO);
        let summary = tally.summary(Duration::from_secs(1), None);
        assert!(summary.operations == 2 && summary.max_ms >= 60_000.0, "{summary}");
    }

    #[test]
    fn a_schedule_that_was_not_kept_is_said_so() {
        let mut tally = Tally::new();
        let tolerance = Duration::from_millis(1);
        tally.lagged(Duration::from_micros(900), tolerance);
        let kept = tally.summary(Duration::from_secs(1), Some((100, 100)));
        assert!(kept.to_string().contains("schedule: kept"), "{kept}");
        tally.lagged(Duration::from_millis(40), tolerance);
        let late = tally.summary(Duration::from_secs(1), Some((100, 100)));
        assert!(
            late.to_string().contains("NOT KEPT") && late.to_string().contains("40.0 ms"),
            "{late}"
        );
        let unsent = Tally::new().summary(Duration::from_secs(1), Some((100, 99)));
        assert_eq!(unsent.schedule.unwrap().unsent, 1);
    }
}
