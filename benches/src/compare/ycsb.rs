//! The core workloads of YCSB, A to F: which operation, on which key.
//!
//! Keys are chosen by a Zipf distribution with exponent 0.99, the popular ones scattered over the key
//! space; in D the newest are the popular ones. Scans are of 1 to 100 records.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::Rng;
use rand::distr::Distribution;
use rand::rngs::SmallRng;
use rand_distr::Zipf;

use super::Workload;
use crate::choice::{Choose, Step};
use crate::target::mixed;

const EXPONENT: f64 = 0.99;
const SCAN_RECORDS_MAX: u64 = 100;

impl Workload {
    pub fn name(self) -> &'static str {
        ["A", "B", "C", "D", "E", "F"][self as usize]
    }
}

/// One workload on one store.
pub struct Ycsb {
    workload: Workload,
    keys: u64,
    zipf: Zipf<f64>,
    inserts: Inserts,
}

/// Which keys are there: a key is chosen only once its insert is acknowledged.
struct Inserts {
    next: AtomicU64,
    /// All keys below it are there.
    present: AtomicU64,
    outstanding: Mutex<BTreeSet<u64>>,
}

impl Ycsb {
    /// On keys 0 to `keys` - 1, which are there; inserts go on from there.
    pub fn new(workload: Workload, keys: u64) -> anyhow::Result<Self> {
        let zipf = Zipf::new(keys as f64, EXPONENT)?;
        Ok(Self {
            workload,
            keys,
            zipf,
            inserts: Inserts {
                next: AtomicU64::new(keys),
                present: AtomicU64::new(keys),
                outstanding: Mutex::default(),
            },
        })
    }

    /// How many keys are there.
    pub fn present(&self) -> u64 {
        self.inserts.present.load(Ordering::Relaxed)
    }

    /// 0 is the most popular.
    fn rank(&self, rng: &mut SmallRng) -> u64 {
        (self.zipf.sample(rng) as u64).clamp(1, self.keys) - 1
    }

    /// Popular keys are not neighbours: else they would all be one shard's.
    fn scattered(&self, rng: &mut SmallRng) -> u64 {
        mixed(self.rank(rng).wrapping_add(1)) % self.keys
    }

    fn latest(&self, rng: &mut SmallRng) -> u64 {
        self.present() - 1 - self.rank(rng)
    }
}

impl Inserts {
    fn begin(&self) -> u64 {
        let mut outstanding = self
            .outstanding
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        outstanding.insert(n);
        n
    }

    fn end(&self, n: u64) {
        let mut outstanding = self
            .outstanding
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        outstanding.remove(&n);
        let next = self.next.load(Ordering::Relaxed);
        let present = outstanding.first().copied().unwrap_or(next);
        self.present.store(present, Ordering::Relaxed);
    }
}

impl Choose for Ycsb {
    fn next(&self, rng: &mut SmallRng) -> Step {
        let percent = rng.random_range(0..100);
        match self.workload {
            Workload::A if percent < 50 => Step::Put(self.scattered(rng)),
            Workload::B if percent < 5 => Step::Put(self.scattered(rng)),
            Workload::F if percent < 50 => Step::Modify(self.scattered(rng)),
            Workload::D | Workload::E if percent < 5 => Step::Insert(self.inserts.begin()),
            Workload::D => Step::Get(self.latest(rng)),
            Workload::E => Step::Scan(self.scattered(rng), rng.random_range(1..=SCAN_RECORDS_MAX)),
            Workload::A | Workload::B | Workload::C | Workload::F => Step::Get(self.scattered(rng)),
        }
    }

    fn ended(&self, step: Step) {
        if let Step::Insert(n) = step {
            self.inserts.end(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::SeedableRng;

    use super::*;

    const STEPS: usize = 200_000;

    fn steps(workload: Workload, keys: u64) -> Vec<Step> {
        let ycsb = Ycsb::new(workload, keys).unwrap();
        let mut rng = SmallRng::seed_from_u64(7);
        let step = |_| {
            let step = ycsb.next(&mut rng);
            ycsb.ended(step);
            step
        };
        (0..STEPS).map(step).collect()
    }

    fn share(steps: &[Step], is_counted: impl Fn(&Step) -> bool) -> f64 {
        steps.iter().filter(|step| is_counted(step)).count() as f64 / steps.len() as f64
    }

    #[test]
    fn operations_come_in_the_papers_shares() {
        for (workload, wanted) in [
            (Workload::A, 0.5),
            (Workload::B, 0.95),
            (Workload::C, 1.0),
            (Workload::D, 0.95),
            (Workload::E, 0.0),
            (Workload::F, 0.5),
        ] {
            let gets = share(&steps(workload, 1_000), |step| matches!(step, Step::Get(_)));
            assert!((gets - wanted).abs() < 0.01, "{workload:?}: {gets}");
        }
        let scans = share(&steps(Workload::E, 1_000), |step| matches!(step, Step::Scan(..)));
        assert!((scans - 0.95).abs() < 0.01, "{scans}");
    }

    /// The share of rank r is r^-0.99 over the sum of all.
    #[test]
    fn popularity_falls_as_zipf_says() {
        let keys = 10_000;
        let mut counts = HashMap::new();
        for step in steps(Workload::C, keys) {
            if let Step::Get(n) = step {
                *counts.entry(n).or_insert(0_u32) += 1;
            }
        }
        let sum: f64 = (1..=keys).map(|rank| (rank as f64).powf(-EXPONENT)).sum();
        let mut found: Vec<_> = counts
            .values()
            .map(|count| f64::from(*count) / STEPS as f64)
            .collect();
        found.sort_by(|a, b| b.total_cmp(a));
        for rank in [1, 2, 3, 5] {
            let wanted = (rank as f64).powf(-EXPONENT) / sum;
            let share = found[rank - 1];
            // Ranks may share a key, which only adds.
            assert!(
                (0.9..1.3).contains(&(share / wanted)),
                "rank {rank}: {share}, wanted {wanted}"
            );
        }
        let top: f64 = found[..100].iter().sum();
        let wanted: f64 = (1..=100).map(|rank| f64::from(rank).powf(-EXPONENT)).sum::<f64>() / sum;
        assert!((top / wanted - 1.0).abs() < 0.1, "{top}, wanted {wanted}");
    }

    #[test]
    fn popular_keys_are_not_neighbours() {
        let mut counts = HashMap::new();
        for step in steps(Workload::C, 10_000) {
            if let Step::Get(n) = step {
                *counts.entry(n).or_insert(0_u32) += 1;
            }
        }
        let mut keys: Vec<_> = counts.into_iter().collect();
        keys.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let most: Vec<_> = keys[..8].iter().map(|(n, _)| n * 8 / 10_000).collect();
        let distinct: BTreeSet<_> = most.iter().collect();
        assert!(distinct.len() >= 4, "{most:?}");
    }

    #[test]
    fn the_newest_is_read_most_and_never_before_it_is_there() {
        let ycsb = Ycsb::new(Workload::D, 1_000).unwrap();
        let mut rng = SmallRng::seed_from_u64(7);
        let (mut newest, mut gets) = (0, 0);
        let mut unacknowledged = Vec::new();
        for _ in 0..STEPS {
            match ycsb.next(&mut rng) {
                Step::Get(n) => {
                    assert!(!unacknowledged.contains(&n), "{n} is not there yet");
                    gets += 1;
                    newest += u32::from(ycsb.present() - n <= 10);
                }
                Step::Insert(n) => unacknowledged.push(n),
                _ => {}
            }
            // Acknowledged in another order than begun.
            if unacknowledged.len() > 8 {
                let n = unacknowledged.remove(rng.random_range(0..unacknowledged.len()));
                ycsb.ended(Step::Insert(n));
            }
        }
        let share = f64::from(newest) / f64::from(gets);
        assert!(share > 0.35, "ten of a thousand get {share} of the reads");
    }
}
