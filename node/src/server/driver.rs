//! The placement driver: looks at the cluster from where the meta shard is led and carries out
//! what `placement` decides. Everything else goes on without it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::types::NodeId;
use reelkv_proto::v1::{self, peer_request};
use tokio_util::sync::CancellationToken;

use super::directory;
use super::member::Member;
use crate::clock::{Instant, now};
use crate::placement::{Missing, Replacement, Sightings, balance_leaders, forgotten};
use crate::raft::PeerNode;

/// A replacement moves a whole replica.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(330);
/// A replica no leader counts may be one that is about to be taken in.
const FORGOTTEN_PATIENCE: Duration = Duration::from_secs(60);
/// Leaders are moved only this long after the driver began, and one at a time.
const BALANCE_PAUSE: Duration = Duration::from_secs(2);

/// What the driver remembers between two looks.
pub(super) struct Driver {
    member: Arc<Member>,
    sightings: Sightings,
    strays: BTreeMap<Missing, Instant>,
    balanced: Instant,
}

pub(super) async fn run(mut driver: Driver, stop: CancellationToken) {
    let interval = Duration::from_millis(driver.member.options.driver_interval_ms);
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(interval) => {}
            () = stop.cancelled() => return,
        }
        if driver.member.leads_meta() {
            tokio::select! {
                biased;
                () = driver.look() => {}
                () = stop.cancelled() => return,
            }
        } else {
            driver.forget();
        }
    }
}

impl Driver {
    pub fn new(member: Arc<Member>) -> Self {
        Self {
            member,
            sightings: Sightings::default(),
            strays: BTreeMap::new(),
            balanced: now(),
        }
    }

    fn forget(&mut self) {
        self.sightings = Sightings::default();
        self.strays.clear();
        self.balanced = now();
    }

    async fn look(&mut self) {
        let statuses = self.member.statuses().await;
        if let Err(error) = self.finish_splits().await {
            tracing::debug!(error = error.message, "a cut is not finished yet");
        }
        if let Err(error) = self.record_members(&statuses).await {
            tracing::debug!(error = error.message, "the directory was not brought up to date");
        }
        self.replace_missing(&statuses);
        self.remove_strays(&statuses).await;
        self.balance(&statuses).await;
    }

    async fn finish_splits(&self) -> Result<(), v1::Error> {
        // Whoever creates a keyspace is at it already.
        let Ok(_reshaping) = self.member.reshaping.try_lock() else {
            return Ok(());
        };
        if self.member.directory.get().pending_splits.is_empty() {
            return Ok(());
        }
        self.member.finish_pending_splits().await
    }

    /// The directory's replicas and leaders, as their leaders report them.
    async fn record_members(&self, statuses: &BTreeMap<NodeId, v1::NodeStatus>) -> Result<(), v1::Error> {
        let mut led: BTreeMap<u64, (u64, NodeId, v1::ShardDescriptor)> = BTreeMap::new();
        for (node, status) in statuses {
            for replica in status.replicas.iter().filter(|replica| replica.is_leader) {
                let newest = led
                    .get(&replica.shard_id)
                    .is_none_or(|(term, ..)| *term < replica.term);
                if let (true, Some(descriptor)) = (newest, &replica.descriptor) {
                    led.insert(replica.shard_id, (replica.term, *node, descriptor.clone()));
                }
            }
        }
        let update = |directory: &mut v1::Directory| {
            for shard in &mut directory.shards {
                let Some((_, leader, reported)) = led.get(&shard.shard_id) else {
                    continue;
                };
                let conf = |shard: &v1::ShardDescriptor| shard.epoch.map(|epoch| epoch.conf_version);
                if !reported.replicas.is_empty() && conf(reported) >= conf(shard) {
                    shard.replicas = reported.replicas.clone();
                    let epoch = shard.epoch.get_or_insert_default();
                    epoch.conf_version = conf(reported).unwrap_or_default();
                }
                shard.leader_node_id = *leader;
            }
        };
        // Nothing is written while nothing has changed.
        let mut changed = (*self.member.directory.get()).clone();
        update(&mut changed);
        if changed == *self.member.directory.get() {
            return Ok(());
        }
        self.member
            .change_directory(|directory| {
                update(directory);
                Ok(())
            })
            .await
    }

    fn replace_missing(&mut self, statuses: &BTreeMap<NodeId, v1::NodeStatus>) {
        let patience = Duration::from_millis(self.member.options.replace_after_ms);
        let known = self.member.directory.get();
        for replacement in self.sightings.look(&known, statuses, now(), patience) {
            let member = self.member.clone();
            tokio::spawn(async move { replace(&member, replacement).await });
        }
    }

    /// Removes replicas that their shard's leader does not count.
    async fn remove_strays(&mut self, statuses: &BTreeMap<NodeId, v1::NodeStatus>) {
        let seen = forgotten(statuses);
        self.strays.retain(|stray, _| seen.contains(stray));
        for stray in seen {
            let since = *self.strays.entry(stray).or_insert_with(now);
            if since.elapsed() < FORGOTTEN_PATIENCE {
                continue;
            }
            let known = self.member.directory.get();
            let Some(node) = directory::node(&known, stray.node_id) else {
                continue;
            };
            let node = PeerNode {
                node_id: node.node_id,
                addr: node.addr.clone(),
            };
            match self
                .member
                .remove_on(&node, stray.shard_id, stray.replica_id)
                .await
            {
                Ok(()) => tracing::info!(?stray, "a replica no longer counted was removed"),
                Err(error) => tracing::debug!(?stray, error = error.message, "a stray replica stays for now"),
            }
        }
    }

    async fn balance(&mut self, statuses: &BTreeMap<NodeId, v1::NodeStatus>) {
        if self.balanced.elapsed() < BALANCE_PAUSE {
            return;
        }
        let Some(wanted) = balance_leaders(statuses) else {
            return;
        };
        self.balanced = now();
        let known = self.member.directory.get();
        let request = v1::TransferLeaderRequest {
            shard_id: wanted.shard_id,
            to_node_id: wanted.to,
        };
        let outcome = match (
            wanted.from == self.member.node_id(),
            directory::node(&known, wanted.from),
        ) {
            (true, _) => match self.member.replicas().get(wanted.shard_id) {
                Some(replica) => replica.transfer_leader(Some(wanted.to)).await,
                None => return,
            },
            (false, Some(node)) => {
                let body = peer_request::Body::TransferLeader(request);
                self.member
                    .ask(&node.addr, body, Duration::from_secs(5))
                    .await
                    .map(|_| ())
            }
            (false, None) => return,
        };
        match outcome {
            Ok(()) => tracing::info!(?wanted, "leadership is being evened out"),
            Err(error) => tracing::debug!(?wanted, error = error.message, "leadership stays for now"),
        }
    }
}

async fn replace(member: &Arc<Member>, replacement: Replacement) {
    let Replacement { missing, to, leader } = replacement;
    let known = member.directory.get();
    let Some(leader) = directory::node(&known, leader) else {
        return;
    };
    let request = v1::ReplaceReplicaRequest {
        shard_id: missing.shard_id,
        old_replica_id: missing.replica_id,
        member: Some(v1::Member {
            replica_id: 0,
            node_id: to.node_id,
            addr: to.addr,
        }),
    };
    let outcome = match leader.node_id == member.node_id() {
        true => member.replace_replica(request).await.map(|_| ()),
        false => {
            let body = peer_request::Body::ReplaceReplica(request);
            member.ask(&leader.addr, body, REPLACE_TIMEOUT).await.map(|_| ())
        }
    };
    if let Err(error) = outcome {
        tracing::info!(?missing, error = error.message, "a replica was not replaced yet");
    }
}
