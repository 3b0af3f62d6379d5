//! Who hears whom: the shapes of partitions.

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use reelkv_proto::v1;

use super::Cluster;

impl Cluster {
    /// The running node that leads the shard of a key of the keyspace, if one says that it does.
    pub fn leader_of(&self, key: &[u8]) -> Option<usize> {
        let stored = self.stored_key(key);
        let holds = |shard: &v1::ShardDescriptor| {
            *shard.start_key <= *stored && (shard.end_key.is_empty() || *stored < *shard.end_key)
        };
        let (position, _) = self.leaders().find(|(_, shard)| holds(shard))?;
        Some(position)
    }

    /// A running node that leads some shard; the more of them it leads, the likelier. The first when
    /// nobody leads.
    pub fn some_leader(&self, rng: &mut SmallRng) -> usize {
        let leaders: Vec<usize> = self.leaders().map(|(position, _)| position).collect();
        leaders.choose(rng).copied().unwrap_or(0)
    }

    /// Who leads what, as the nodes themselves say.
    fn leaders(&self) -> impl Iterator<Item = (usize, v1::ShardDescriptor)> + '_ {
        (0..self.addrs().len()).flat_map(|position| {
            let member = self.node(position).and_then(|node| node.member());
            let replicas = member.map(|member| member.replicas().all()).unwrap_or_default();
            let led = replicas.into_iter().filter(|replica| replica.is_leader());
            led.map(move |replica| (position, replica.descriptor()))
        })
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
