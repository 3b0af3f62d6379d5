//! What a client does next.

use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;

/// One operation, on key number n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Get(u64),
    Put(u64),
    /// A key that was not there.
    Insert(u64),
    /// Read, then write.
    Modify(u64),
    /// So many records in key order.
    Scan(u64, u64),
}

/// Chooses for all clients of a run.
pub trait Choose: Send + Sync {
    fn next(&self, rng: &mut SmallRng) -> Step;

    /// A step has ended.
    fn ended(&self, _step: Step) {}
}

/// The same operation all the time, or two in turns of chance, on any of `keys` keys alike.
pub struct Uniform {
    pub keys: u64,
    /// How many of a hundred are puts; the others are gets.
    pub puts_percent: u32,
}

impl Uniform {
    pub fn puts(keys: u64) -> Arc<dyn Choose> {
        Arc::new(Self {
            keys,
            puts_percent: 100,
        })
    }

    pub fn gets(keys: u64) -> Arc<dyn Choose> {
        Arc::new(Self {
            keys,
            puts_percent: 0,
        })
    }
}

impl Choose for Uniform {
    fn next(&self, rng: &mut SmallRng) -> Step {
        let n = rng.random_range(0..self.keys);
        match rng.random_range(0..100) < self.puts_percent {
            true => Step::Put(n),
            false => Step::Get(n),
        }
    }
}

/// Pages of records from any key on.
pub struct Scans {
    pub keys: u64,
    pub records: u64,
}

impl Choose for Scans {
    fn next(&self, rng: &mut SmallRng) -> Step {
        Step::Scan(rng.random_range(0..self.keys), self.records)
    }
}
