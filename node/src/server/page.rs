//! What the node's HTTP page shows: its status as figures.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures::FutureExt;
use futures::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use reelkv_proto::v1;

use super::admin::Front;
use super::node::Node;
use crate::rpc::http::HttpPage;

type Figure = Gauge<i64>;
type ByShard = Family<ShardLabel, Figure>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabel {
    shard: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DamageLabel {
    structure: String,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    release: String,
    engine: String,
    node_id: u64,
    zone: String,
}

impl HttpPage for Front {
    fn metrics(&self) -> BoxFuture<'static, String> {
        let node = self.0.clone();
        async move {
            let mut registry = Registry::default();
            node.metrics().register(&mut registry);
            if let Ok(status) = node.node_status().await {
                register_status(&mut registry, &status);
            }
            register_damage(&mut registry, &node);
            let mut text = String::new();
            // Writing to a string does not fail.
            let _ = encode(&mut text, &registry);
            text
        }
        .boxed()
    }

    fn alive(&self) -> Result<(), String> {
        match self.0.member() {
            Some(member) if member.is_poisoned() => {
                Err("the log's disk failed a write or a sync; nothing on it is trusted".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.alive()?;
        match self.0.member() {
            None => Err("this node belongs to no cluster yet".to_owned()),
            Some(member) if member.is_stopping() => Err("this node is about to stop".to_owned()),
            Some(_) => Ok(()),
        }
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: u64) {
    let gauge = Figure::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, gauge),
        None => registry.register(name, help, gauge),
    }
}

fn register_status(registry: &mut Registry, status: &v1::NodeStatus) {
    let info = Family::<InfoLabels, Figure>::default();
    info.get_or_create(&InfoLabels {
        release: status.release.clone(),
        engine: status.engine.clone(),
        node_id: status.node.as_ref().map_or(0, |node| node.node_id),
        zone: status
            .node
            .as_ref()
            .map(|node| node.zone.clone())
            .unwrap_or_default(),
    })
    .set(1);
    registry.register("reelkv_node", "This node; always 1", info);
    gauge(
        registry,
        "reelkv_uptime",
        "Time since the node started",
        Some(Unit::Seconds),
        status.uptime_ms / 1_000,
    );
    gauge(
        registry,
        "reelkv_wal",
        "The log on disk",
        Some(Unit::Bytes),
        status.wal_bytes,
    );
    gauge(
        registry,
        "reelkv_tree",
        "The trees on disk",
        Some(Unit::Bytes),
        status.tree_bytes,
    );
    gauge(
        registry,
        "reelkv_memtable",
        "Writes not checkpointed yet",
        Some(Unit::Bytes),
        status.memtable_bytes,
    );
    let budget = status.memtable_budget_bytes;
    gauge(
        registry,
        "reelkv_memtable_budget",
        "What memtables may use together",
        Some(Unit::Bytes),
        budget,
    );
    gauge(
        registry,
        "reelkv_wal_batch",
        "Number of the log's last batch",
        None,
        status.wal_batch,
    );
    let leaders = status.replicas.iter().filter(|replica| replica.is_leader).count();
    gauge(
        registry,
        "reelkv_leaders",
        "Shards this node leads",
        None,
        leaders as u64,
    );
    let states = Family::<StateLabel, Figure>::default();
    for replica in &status.replicas {
        states
            .get_or_create(&StateLabel {
                state: replica.state.clone(),
            })
            .inc();
    }
    registry.register("reelkv_replicas", "Replicas on this node, by state", states);
    by_shard(registry, status);
}

/// A figure of a shard's replica here: name, meaning, unit, where it is found.
type ShardFigure = (
    &'static str,
    &'static str,
    Option<Unit>,
    fn(&v1::ReplicaStatus) -> u64,
);

fn by_shard(registry: &mut Registry, status: &v1::NodeStatus) {
    let figures: [ShardFigure; 6] = [
        (
            "reelkv_shard_applied_index",
            "Last log entry applied",
            None,
            |replica| replica.applied_index,
        ),
        (
            "reelkv_shard_committed_index",
            "Last log entry known as committed",
            None,
            |replica| replica.committed_index,
        ),
        (
            "reelkv_shard_checkpoint_index",
            "Last log entry that is checkpointed",
            None,
            |replica| replica.checkpoint_index,
        ),
        (
            "reelkv_shard_is_leader",
            "1 where the shard is led",
            None,
            |replica| u64::from(replica.is_leader),
        ),
        (
            "reelkv_shard_records",
            "Live records; an estimate",
            None,
            |replica| replica.records,
        ),
        (
            "reelkv_shard_data",
            "Their bytes; an estimate",
            Some(Unit::Bytes),
            |replica| replica.data_bytes,
        ),
    ];
    for (name, help, unit, figure) in figures {
        let family = ByShard::default();
        for replica in &status.replicas {
            let value = i64::try_from(figure(replica)).unwrap_or(i64::MAX);
            family
                .get_or_create(&ShardLabel {
                    shard: replica.shard_id,
                })
                .set(value);
        }
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family),
            None => registry.register(name, help, family),
        }
    }
}

fn register_damage(registry: &mut Registry, node: &Arc<Node>) {
    let found = Family::<DamageLabel, Counter<u64, AtomicU64>>::default();
    for ((structure, kind), count) in node.health().counts() {
        found
            .get_or_create(&DamageLabel { structure, kind })
            .inc_by(count);
    }
    registry.register("reelkv_damage", "Damage found since the node started", found);
    let open = node.health().open_count() as u64;
    gauge(
        registry,
        "reelkv_damage_open",
        "Damage found and not repaired yet",
        None,
        open,
    );
}
