//! What goes wrong, and when.
//!
//! [`fault`] names the faults; [`inject`] makes each of them happen to a simulated cluster and
//! end; [`Nemesis`] decides from a seed which comes when, one or two at a time, with quiet
//! spells between. Faults of disks and whole machines always hit the same node of a run: they
//! destroy copies, and a minority is what the store promises to survive.

mod fault;
mod inject;
mod quorum;
mod shared;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use reelkv::clock::{Instant, now};
use serde::{Deserialize, Serialize};

use crate::sim::Cluster;
pub use fault::{Family, Fault, parse};
use inject::Active;
pub use quorum::{Occurrence, clean_spans};

/// One line of a run's timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Microseconds since the load began.
    pub at_us: u64,
    /// The fault.
    pub fault: String,
    /// `begins`, `ends`, or `had no effect`.
    pub what: String,
    /// Whom it hits, or what else there is to say.
    pub detail: String,
}

/// Injects faults from a seed.
pub struct Nemesis {
    faults: Vec<Fault>,
    nodes: usize,
    rng: SmallRng,
    /// The node whose disk is the bad one.
    victim: usize,
    /// The node whose clock is the wrong one; any at any time, if there is none.
    wrong_clock: Option<usize>,
    started: Instant,
    active: Vec<Active>,
    /// Faults that took effect, by kind.
    pub injected: BTreeMap<Fault, usize>,
    /// What happened when.
    pub timeline: Vec<Moment>,
    /// Which nodes were hit when.
    pub occurrences: Vec<Occurrence>,
}

impl Nemesis {
    /// A nemesis that chooses among `faults`, driven by `rng`.
    pub fn new(faults: Vec<Fault>, nodes: usize, mut rng: SmallRng) -> Self {
        Self {
            faults,
            nodes,
            victim: rng.random_range(0..nodes),
            wrong_clock: None,
            rng,
            started: now(),
            active: Vec::new(),
            injected: BTreeMap::new(),
            timeline: Vec::new(),
            occurrences: Vec::new(),
        }
    }

    /// Lets one clock only go wrong, another for every seed.
    pub fn with_one_wrong_clock(mut self) -> Self {
        self.wrong_clock = Some(self.rng.random_range(0..self.nodes));
        self
    }

    /// Injects faults until the time is up, then ends them all.
    ///
    /// # Errors
    /// A node does not start again, or does not become whole again though nothing hinders it.
    pub async fn run(&mut self, cluster: &mut Cluster, until: Instant) -> anyhow::Result<()> {
        self.started = now();
        while now() < until && !self.faults.is_empty() {
            // What stops everything takes a moment to recover from, and a run that does nothing else
            // has to do something.
            let pause_ms = match self.active.is_empty() {
                true => self.rng.random_range(500..3_000),
                false => self.rng.random_range(200..5_000),
            };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            match self.active.len() {
                0 => self.begin(cluster).await?,
                1 if self.rng.random_ratio(1, 3) => self.begin(cluster).await?,
                _ => self.end_oldest(cluster).await?,
            }
        }
        while !self.active.is_empty() {
            self.end_oldest(cluster).await?;
        }
        cluster.heal();
        Ok(())
    }

    /// Each fault has its turn before any has a second.
    fn choose(&mut self) -> Fault {
        let times = |fault: &Fault| self.injected.get(fault).copied().unwrap_or(0);
        let fewest = self.faults.iter().map(times).min().unwrap_or(0);
        let next: Vec<Fault> = self
            .faults
            .iter()
            .copied()
            .filter(|fault| times(fault) == fewest)
            .collect();
        next[self.rng.random_range(0..next.len())]
    }

    async fn begin(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let fault = self.choose();
        if !self.active.is_empty() && !fault.goes_with(self.active.iter().map(|active| active.fault)) {
            return self.end_oldest(cluster).await;
        }
        let node = match fault.family() {
            Family::Disk => Some(self.victim),
            Family::Clock => self.wrong_clock,
            _ => None,
        };
        let node = node.unwrap_or_else(|| self.rng.random_range(0..self.nodes));
        let active = Active::begin(fault, node, cluster, &mut self.rng).await?;
        tracing::info!(fault = fault.name(), hit = %active.detail, "fault begins");
        self.note(fault, "begins", active.detail.clone());
        self.active.push(active);
        Ok(())
    }

    async fn end_oldest(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        // What must become whole before it has ended can do so only when nothing else is wrong.
        let harmless = self.active.iter().position(|active| !active.fault.destroys());
        let at = harmless.unwrap_or(0);
        let active = self.active.remove(at);
        let (fault, hit, began) = (active.fault, active.hit.clone(), active.began);
        let took_effect = active.end(cluster, &mut self.rng).await?;
        tracing::info!(fault = fault.name(), took_effect, "fault ends");
        let micros = |at: Instant| at.duration_since(self.started).as_micros() as u64;
        self.occurrences.push(Occurrence {
            nodes: hit,
            from_us: micros(began),
            until_us: micros(now()),
        });
        match took_effect {
            true => *self.injected.entry(fault).or_default() += 1,
            false => self.note(fault, "had no effect", String::new()),
        }
        self.note(fault, "ends", String::new());
        Ok(())
    }

    fn note(&mut self, fault: Fault, what: &str, detail: String) {
        self.timeline.push(Moment {
            at_us: self.started.elapsed().as_micros() as u64,
            fault: fault.name().to_owned(),
            what: what.to_owned(),
            detail,
        });
    }
}
