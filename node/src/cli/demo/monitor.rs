//! What the cluster says about itself, asked again and again while the demo runs.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use reelkv_client::{Admin, Client};
use reelkv_proto::v1;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::nodes::NODES;

const ASK_INTERVAL: Duration = Duration::from_millis(250);
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The latest answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Rounds of asking begun, from 1. What was asked in a later round is not older than the last.
    pub round: u64,
    /// Each node about itself; `None` while it does not answer.
    pub nodes: [Option<v1::NodeStatus>; NODES],
    /// Any node about the cluster.
    pub cluster: Option<v1::ClusterStatus>,
}

impl Seen {
    /// Whether every node answers and the cluster says that all is well.
    pub fn is_whole(&self) -> bool {
        let well = self
            .cluster
            .as_ref()
            .is_some_and(|cluster| cluster.health() == v1::Health::Ok);
        well && self.nodes.iter().all(Option::is_some)
    }

    /// Whether the cluster itself says that something is wrong.
    pub fn is_reported(&self) -> bool {
        self.cluster
            .as_ref()
            .is_some_and(|cluster| cluster.health() != v1::Health::Ok)
    }

    /// The damage a node has found in the tree of a shard since a moment (milliseconds since
    /// 1970): when it was detected, and when all of it was repaired.
    pub fn damage(&self, node: usize, shard_id: u64, since_ms: u64) -> Option<(u64, Option<u64>)> {
        self.found(node, since_ms, |event| {
            event.structure == "tree" && event.shard_id == shard_id
        })
    }

    /// As [`Seen::damage`], of the node's log.
    pub fn log_damage(&self, node: usize, since_ms: u64) -> Option<(u64, Option<u64>)> {
        self.found(node, since_ms, |event| event.structure == "wal")
    }

    fn found(
        &self,
        node: usize,
        since_ms: u64,
        is_wanted: impl Fn(&v1::DamageEvent) -> bool,
    ) -> Option<(u64, Option<u64>)> {
        let events = self.nodes[node].iter().flat_map(|status| &status.damage);
        let wanted = events.filter(|event| event.detected_at_ms >= since_ms && is_wanted(event));
        let events: Vec<_> = wanted.collect();
        let detected = events.iter().map(|event| event.detected_at_ms).min()?;
        let open = events.iter().any(|event| event.repaired_at_ms == 0);
        let repaired = events.iter().map(|event| event.repaired_at_ms).max();
        Some((detected, repaired.filter(|_| !open)))
    }
}

/// Asks until dropped.
pub(super) struct Monitor {
    seen: watch::Receiver<Seen>,
    _asking: AbortOnDropHandle<()>,
}

impl Monitor {
    /// Begins to ask the nodes at `addrs`.
    pub fn start(client: &Client, addrs: Vec<String>) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let asking = tokio::spawn(ask(client.admin(), Arc::new(addrs), sender));
        Self {
            seen,
            _asking: AbortOnDropHandle::new(asking),
        }
    }

    /// The latest answers.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// The latest answers, for as long as the monitor lives.
    pub fn watch(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Waits until answers to questions asked from now on satisfy `wanted`; `None` if they do not in time.
    pub async fn wait(&self, patience: Duration, wanted: impl Fn(&Seen) -> bool) -> Option<Seen> {
        let mut seen = self.seen.clone();
        // The round under way may have asked before now.
        let old = seen.borrow().round + 1;
        let found = seen.wait_for(|seen| seen.round > old && wanted(seen));
        match tokio::time::timeout(patience, found).await {
            Ok(Ok(found)) => Some(found.clone()),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

async fn ask(admin: Admin, addrs: Arc<Vec<String>>, sender: watch::Sender<Seen>) {
    let mut round = 0;
    while !sender.is_closed() {
        round += 1;
        // No answer is an answer: the node is down.
        let of_node = |addr: String| {
            let admin = admin.clone();
            async move {
                tokio::time::timeout(ASK_TIMEOUT, admin.node_status(&addr))
                    .await
                    .ok()?
                    .ok()
            }
        };
        let nodes = join_all(addrs.iter().cloned().map(of_node));
        let cluster = tokio::time::timeout(3 * ASK_TIMEOUT, admin.cluster_status());
        let (nodes, cluster) = tokio::join!(nodes, cluster);
        let mut seen = Seen {
            round,
            cluster: cluster.ok().and_then(Result::ok),
            ..Seen::default()
        };
        seen.nodes
            .iter_mut()
            .zip(nodes)
            .for_each(|(slot, status)| *slot = status);
        sender.send_replace(seen);
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(shard_id: u64, detected_at_ms: u64, repaired_at_ms: u64) -> v1::DamageEvent {
        let structure = "tree".to_owned();
        v1::DamageEvent {
            shard_id,
            structure,
            detected_at_ms,
            repaired_at_ms,
            ..Default::default()
        }
    }

    #[test]
    fn damage_is_repaired_when_every_event_of_the_shard_is_and_older_ones_do_not_count() {
        let damage = vec![
            event(2, 5, 6),
            event(2, 100, 150),
            event(2, 110, 0),
            event(3, 120, 130),
        ];
        let mut seen = Seen::default();
        seen.nodes[1] = Some(v1::NodeStatus {
            damage,
            ..Default::default()
        });
        assert_eq!(seen.damage(1, 2, 50), Some((100, None)));
        assert_eq!(seen.damage(1, 3, 50), Some((120, Some(130))));
        assert_eq!(seen.damage(1, 4, 50), None);
        assert_eq!(seen.damage(0, 2, 50), None);
    }

    #[test]
    fn a_cluster_is_whole_only_if_it_says_so_and_every_node_answers() {
        let ok = v1::ClusterStatus {
            health: v1::Health::Ok.into(),
            ..Default::default()
        };
        let mut seen = Seen {
            cluster: Some(ok),
            ..Seen::default()
        };
        assert!(!seen.is_whole() && !seen.is_reported());
        seen.nodes = std::array::from_fn(|_| Some(v1::NodeStatus::default()));
        assert!(seen.is_whole());
        seen.cluster = None;
        assert!(!seen.is_whole() && !seen.is_reported());
    }
}
