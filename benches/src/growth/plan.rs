//! What is measured, in which order, how long it takes and how much disk it needs. Pure.

use clap::ValueEnum;
use serde::Serialize;

use super::fit;

/// Bytes per value.
pub const VALUE_BYTES: u32 = 256;
/// Key, checksums, versions and index of one stored record, in bytes.
const RECORD_OVERHEAD_BYTES: u64 = 80;
/// Copies of each record.
pub const REPLICAS: u32 = 3;
/// A node's log and everything else it keeps, in bytes.
const NODE_BYTES: u64 = 1 << 30;
/// Files of one empty replica, in bytes.
const REPLICA_BYTES: u64 = 256 << 10;
/// Keys loaded in a second on a slow machine, for the estimate only.
const LOADED_PER_S: u64 = 30_000;

/// What is varied while everything else stays as in [`BASE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    /// Number of keys.
    Data,
    /// Shards of the keyspace; each node has a replica of every one.
    Shards,
    /// Operations at a time.
    Clients,
    /// Nodes of the cluster; every shard has three replicas.
    Nodes,
    /// Replicas per node that nobody asks for anything.
    Idle,
}

impl Factor {
    pub const ALL: [Self; 5] = [Self::Data, Self::Shards, Self::Clients, Self::Nodes, Self::Idle];

    /// As on the command line, and in names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Shards => "shards",
            Self::Clients => "clients",
            Self::Nodes => "nodes",
            Self::Idle => "idle",
        }
    }

    /// What is counted, for columns and axes.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Data => "keys",
            Self::Shards => "shards per node",
            Self::Clients => "clients",
            Self::Nodes => "nodes",
            Self::Idle => "replicas per node",
        }
    }

    /// The step for which its slope is said.
    pub fn step(self) -> fit::Step {
        let (ratio, name) = match self {
            Self::Data => (10.0, "tenfold data"),
            Self::Shards => (10.0, "tenfold shards"),
            Self::Clients => (10.0, "tenfold clients"),
            Self::Nodes => (2.0, "doubling of nodes"),
            Self::Idle => (10.0, "tenfold replicas"),
        };
        fit::Step { ratio, name }
    }

    fn values(self, is_quick: bool) -> &'static [u64] {
        match (self, is_quick) {
            (Self::Data, false) => &[100_000, 1_000_000, 10_000_000],
            (Self::Data, true) => &[10_000, 100_000],
            (Self::Shards, false) => &[1, 8, 64, 512],
            (Self::Shards, true) => &[1, 8],
            (Self::Clients, false) => &[1, 4, 16, 64, 256, 1_024, 4_096],
            (Self::Clients, true) => &[1, 16, 256],
            (Self::Nodes, false) => &[3, 5],
            (Self::Nodes, true) => &[3],
            // The meta shard's replica and one of data: fewer there are not.
            (Self::Idle, false) => &[2, 100, 1_000],
            (Self::Idle, true) => &[2, 50],
        }
    }
}

/// A cluster and its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    pub nodes: u64,
    /// Of the keyspace, a power of two; without a load, all data shards.
    pub shards: u64,
    pub clients: u64,
    pub keys: u64,
}

/// Around which one factor at a time is varied.
pub const BASE: Setup = Setup {
    nodes: 3,
    shards: 8,
    clients: 256,
    keys: 100_000,
};

/// How long things are watched, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Times {
    pub warmup_s: u64,
    /// Of each operation.
    pub measure_s: u64,
    /// From the start of an idle cluster to its first look.
    pub settle_s: u64,
    pub idle_s: u64,
}

impl Times {
    pub fn new(is_quick: bool) -> Self {
        match is_quick {
            false => Self {
                warmup_s: 3,
                measure_s: 8,
                settle_s: 20,
                idle_s: 20,
            },
            true => Self {
                warmup_s: 1,
                measure_s: 2,
                settle_s: 5,
                idle_s: 5,
            },
        }
    }
}

/// One point of one factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub factor: Factor,
    pub value: u64,
    pub setup: Setup,
}

/// All points of the factors, those that can share a cluster one after the other.
pub fn steps(factors: &[Factor], is_quick: bool) -> Vec<Step> {
    let of = |factor: Factor| {
        let values = factor.values(is_quick).iter();
        values.map(move |&value| Step {
            factor,
            value,
            setup: setup(factor, value),
        })
    };
    let wanted = Factor::ALL.into_iter().filter(|factor| factors.contains(factor));
    wanted.flat_map(of).collect()
}

fn setup(factor: Factor, value: u64) -> Setup {
    match factor {
        Factor::Data => Setup { keys: value, ..BASE },
        Factor::Shards => Setup {
            shards: value,
            ..BASE
        },
        Factor::Clients => Setup {
            clients: value,
            ..BASE
        },
        Factor::Nodes => Setup { nodes: value, ..BASE },
        // The meta shard has a replica on each node as well.
        Factor::Idle => Setup {
            shards: value - 1,
            clients: 0,
            keys: 0,
            ..BASE
        },
    }
}

impl Step {
    /// Whether it can go on with the cluster of an earlier step: more keys are added, none taken away.
    pub fn continues(&self, earlier: &Self) -> bool {
        let (new, old) = (&self.setup, &earlier.setup);
        let is_under_load = self.factor != Factor::Idle && earlier.factor != Factor::Idle;
        is_under_load
            && (new.nodes, new.shards) == (old.nodes, old.shards)
            && new.keys >= old.keys
            && old.keys > 0
    }

    /// About how long it takes, in seconds.
    pub fn estimate_s(&self, earlier: Option<&Self>, times: Times) -> u64 {
        let earlier = earlier.filter(|earlier| self.continues(earlier));
        let start_s = match earlier {
            Some(_) => 0,
            None => 5 + 2 * self.setup.nodes + self.setup.shards * self.setup.nodes / 40,
        };
        let loaded = earlier.map_or(0, |earlier| earlier.setup.keys);
        let watched_s = match self.factor {
            Factor::Idle => times.settle_s + times.idle_s,
            _ => 2 * (times.warmup_s + times.measure_s),
        };
        start_s + (self.setup.keys - loaded) / LOADED_PER_S + watched_s
    }

    /// Disk its cluster needs at its fullest, over all nodes: merging has files twice for a while.
    pub fn disk_bytes(&self) -> u64 {
        let record_bytes = u64::from(VALUE_BYTES) + RECORD_OVERHEAD_BYTES;
        let data_bytes = self.setup.keys * record_bytes * u64::from(REPLICAS) * 2;
        let replicas_bytes = self.setup.shards * REPLICA_BYTES * u64::from(REPLICAS);
        data_bytes + replicas_bytes + self.setup.nodes * NODE_BYTES
    }
}

/// About how long steps take from the one at `from` on, in seconds.
pub fn left_s(steps: &[Step], from: usize, times: Times) -> u64 {
    let earlier = |at: usize| at.checked_sub(1).map(|at| &steps[at]);
    (from..steps.len())
        .map(|at| steps[at].estimate_s(earlier(at), times))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_factor_differs_from_the_base_at_a_time() {
        for step in steps(&Factor::ALL, false)
            .iter()
            .filter(|step| step.factor != Factor::Idle)
        {
            let Setup {
                nodes,
                shards,
                clients,
                keys,
            } = step.setup;
            let differs = [
                nodes != BASE.nodes,
                shards != BASE.shards,
                clients != BASE.clients,
                keys != BASE.keys,
            ];
            assert!(
                differs.iter().filter(|differs| **differs).count() <= 1,
                "{step:?}"
            );
        }
    }

    #[test]
    fn shards_are_cut_evenly() {
        let steps = steps(&Factor::ALL, false);
        let loaded = steps.iter().filter(|step| step.factor != Factor::Idle);
        assert!(loaded.clone().all(|step| step.setup.shards.is_power_of_two()));
    }

    #[test]
    fn the_whole_run_is_planned_for_less_than_forty_minutes_and_a_quick_one_for_three() {
        for (is_quick, max_s) in [(false, 40 * 60), (true, 3 * 60)] {
            let planned_s = left_s(&steps(&Factor::ALL, is_quick), 0, Times::new(is_quick));
            assert!(planned_s < max_s, "{planned_s} s");
        }
    }

    #[test]
    fn data_grows_in_one_cluster_and_shards_need_others() {
        let data = steps(&[Factor::Data], false);
        assert!(data[1].continues(&data[0]) && data[2].continues(&data[1]));
        assert!(!data[0].continues(&data[1]), "keys are never taken away");
        let shards = steps(&[Factor::Shards], false);
        assert!(!shards[1].continues(&shards[0]));
        let idle = steps(&[Factor::Idle], false);
        assert!(!idle[1].continues(&idle[0]));
    }

    #[test]
    fn ten_million_keys_in_three_copies_need_about_twenty_gigabytes() {
        let most = steps(&Factor::ALL, false)
            .iter()
            .map(Step::disk_bytes)
            .max()
            .unwrap();
        assert!((20_000_000_000..30_000_000_000).contains(&most), "{most}");
    }

    #[test]
    fn a_node_of_an_idle_cluster_has_as_many_replicas_as_said() {
        let idle = steps(&[Factor::Idle], false);
        for step in idle {
            assert_eq!(step.setup.shards + 1, step.value, "the meta shard is one of them");
        }
    }
}
