//! Who hears whom: the shapes of partitions.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::Cluster;

impl Cluster {
    /// The running node that leads most shards; the first if none leads any.
    pub fn leader_of_most(&self) -> usize {
        let led = |position: &usize| {
            let member = self.node(*position).and_then(|node| node.member());
            let replicas = member.map(|member| member.replicas().all()).unwrap_or_default();
            replicas.iter().filter(|replica| replica.is_leader()).count()
        };
        // The first of those that lead equally many.
        (0..self.addrs().len()).rev().max_by_key(led).unwrap_or(0)
    }

    /// A minority of the nodes, as large as may be.
    pub fn minority(&self, rng: &mut SmallRng) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.addrs().len()).collect();
        nodes.shuffle(rng);
        nodes.truncate((nodes.len() - 1) / 2);
        nodes
    }

    /// Cuts some nodes off from the others: both ways, or so that they do not hear.
    pub fn cut_off(&self, nodes: &[usize], both_ways: bool) {
        let addrs = self.addrs();
        let others = (0..addrs.len()).filter(|other| !nodes.contains(other));
        for other in others {
            for node in nodes {
                self.network().cut(&addrs[other], &addrs[*node]);
                if both_ways {
                    self.network().cut(&addrs[*node], &addrs[other]);
                }
            }
        }
    }

    /// Two halves that only one node hears both of.
    pub fn bridge(&self, rng: &mut SmallRng) {
        let mut addrs = self.addrs();
        addrs.shuffle(rng);
        addrs.pop();
        let (one, other) = addrs.split_at(addrs.len() / 2);
        for one in one {
            for other in other {
                self.network().part(one, other);
            }
        }
    }

    /// Every node hears only its neighbours in a ring; of three nodes, where all are neighbours,
    /// each hears only one.
    pub fn ring(&self, rng: &mut SmallRng) {
        let mut addrs = self.addrs();
        addrs.shuffle(rng);
        let count = addrs.len();
        let addr = |position: usize| &addrs[position % count];
        for position in 0..count {
            match count {
                0..=3 => self.network().cut(addr(position + 1), addr(position)),
                _ => (2..count - 1)
                    .for_each(|apart| self.network().part(addr(position), addr(position + apart))),
            }
        }
    }
}
