//! What goes wrong, and when: crashes, partitions, lossy links, clocks that jump.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::Cluster;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Power lost on one node, restarted later.
    Crash,
    /// Power lost on all nodes at once, restarted together.
    CrashAll,
    /// One node cut off from the others, both ways.
    Isolate,
    /// One node is heard but does not hear.
    OneWay,
    /// Messages are lost now and then.
    Loss,
    /// One wall clock jumps.
    ClockJump,
}

/// Injects faults one after the other, from a seed.
pub struct Nemesis {
    rng: SmallRng,
    /// Faults that took effect, by kind.
    pub injected: BTreeMap<Fault, usize>,
}

impl Nemesis {
    /// A nemesis driven by `rng`.
    pub fn new(rng: SmallRng) -> Self {
        Self {
            rng,
            injected: BTreeMap::new(),
        }
    }

    /// One fault from beginning to end. The first is always a crash.
    ///
    /// # Errors
    /// A node did not start again.
    pub async fn strike(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        const FAULTS: [Fault; 6] = [
            Fault::Crash,
            Fault::CrashAll,
            Fault::Isolate,
            Fault::OneWay,
            Fault::Loss,
            Fault::ClockJump,
        ];
        let fault = match self.injected.is_empty() {
            true => Fault::Crash,
            false => FAULTS[self.rng.random_range(0..FAULTS.len())],
        };
        let victim = self.rng.random_range(0..cluster.addrs().len());
        let lasts = Duration::from_millis(self.rng.random_range(200..5_000));
        tracing::info!(?fault, victim = victim + 1, ?lasts, "fault");
        self.inject(fault, victim, lasts, cluster).await?;
        *self.injected.entry(fault).or_default() += 1;
        Ok(())
    }

    async fn inject(
        &mut self,
        fault: Fault,
        victim: usize,
        lasts: Duration,
        cluster: &mut Cluster,
    ) -> anyhow::Result<()> {
        let addrs = cluster.addrs();
        let others = || {
            addrs
                .iter()
                .enumerate()
                .filter(|(position, _)| *position != victim)
                .map(|(_, addr)| addr)
        };
        match fault {
            Fault::Crash => {
                anyhow::ensure!(cluster.crash(victim), "the victim was off");
                tokio::time::sleep(lasts).await;
                cluster.start_node(victim).await?;
            }
            Fault::CrashAll => {
                for position in 0..addrs.len() {
                    anyhow::ensure!(cluster.crash(position), "a victim was off");
                }
                tokio::time::sleep(lasts).await;
                for position in 0..addrs.len() {
                    cluster.start_node(position).await?;
                }
            }
            Fault::Isolate => {
                for other in others() {
                    cluster.network().cut(&addrs[victim], other);
                    cluster.network().cut(other, &addrs[victim]);
                }
                tokio::time::sleep(lasts).await;
                cluster.network().heal();
            }
            Fault::OneWay => {
                for other in others() {
                    cluster.network().cut(other, &addrs[victim]);
                }
                tokio::time::sleep(lasts).await;
                cluster.network().heal();
            }
            Fault::Loss => {
                cluster.network().lose_per_mille(self.rng.random_range(20..200));
                tokio::time::sleep(lasts).await;
                cluster.network().heal();
            }
            Fault::ClockJump => {
                cluster.jump_clock(victim, self.rng.random_range(-3_600_000..3_600_000));
                tokio::time::sleep(lasts).await;
            }
        }
        Ok(())
    }
}
