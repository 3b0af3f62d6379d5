//! What the node's HTTP page shows: its status in figures.
//!
//! Besides the requests (`crate::metrics`), all read when asked:
//! - `reelkv_info{release,engine,node_id}`, `reelkv_uptime_seconds`
//! - `reelkv_wal_bytes`, `reelkv_tree_bytes`, `reelkv_memtable_bytes`, `reelkv_memtable_budget_bytes`
//! - `reelkv_replicas{state}`, `reelkv_leaders`
//! - `reelkv_shard_applied_index{shard}`, `reelkv_shard_records{shard}`,
//!   `reelkv_shard_data_bytes{shard}`, `reelkv_shard_is_leader{shard}`
//! - `reelkv_checkpoints_total`, `reelkv_wal_segments_removed_total`
//! - `reelkv_damage_total{structure,kind}`, `reelkv_damage_open`, `reelkv_damage_repair_seconds`

use std::collections::BTreeMap;
use std::fmt;

use futures::FutureExt;
use futures::future::BoxFuture;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use reelkv_proto::v1;

use super::admin::Front;
use crate::health::{Kind, Repairs, Structure};
use crate::rpc::http::HttpPage;

/// States a replica can be in (`ReplicaStatus.state`), those that run first.
const RUNNING: [&str; 3] = ["trusted", "refilling", "stopped"];
const NOT_RUNNING: [&str; 3] = ["starting", "healing", "lost"];

impl HttpPage for Front {
    fn metrics(&self) -> BoxFuture<'static, String> {
        let node = self.0.clone();
        async move {
            let status = match node.node_status().await {
                Ok(status) => status,
                Err(error) => {
                    tracing::warn!(error = error.message, "no status to show as figures");
                    v1::NodeStatus::default()
                }
            };
            let upkeep = node.member().map(|member| member.upkeep()).unwrap_or_default();
            let figures = Figures {
                status,
                found: node.health().counts(),
                open: node.health().open_count() as u64,
                repairs: node.health().repairs(),
            };
            let mut registry = Registry::default();
            registry.register_collector(Box::new(figures));
            registry.register_collector(Box::new(upkeep));
            node.metrics().register(&mut registry);
            let mut text = String::new();
            encode(&mut text, &registry).expect("writing to a string does not fail");
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

    /// A replica that is being repaired does not count: its requests are forwarded.
    fn ready(&self) -> Result<(), String> {
        self.alive()?;
        match self.0.member() {
            None => Err("this node belongs to no cluster yet".to_owned()),
            Some(member) if member.is_stopping() => Err("this node is about to stop".to_owned()),
            Some(member) if !member.is_started() => {
                Err("this node's replicas do not run yet: the other nodes must answer first".to_owned())
            }
            Some(_) => Ok(()),
        }
    }
}

/// A node at one moment.
#[derive(Debug)]
struct Figures {
    status: v1::NodeStatus,
    /// Damage ever found, by structure and kind.
    found: BTreeMap<(Structure, Kind), u64>,
    /// Damage not repaired yet.
    open: u64,
    /// How long repairs took.
    repairs: Repairs,
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.node(&mut encoder)?;
        self.replicas(&mut encoder)?;
        self.damage(&mut encoder)
    }
}

impl Figures {
    fn node(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let status = &self.status;
        let node_id = status.node.as_ref().map_or(0, |node| node.node_id).to_string();
        let labels = [
            ("release", &status.release),
            ("engine", &status.engine),
            ("node_id", &node_id),
        ];
        let help = "This node; its number is 0 until it belongs to a cluster";
        encoder
            .encode_descriptor("reelkv", help, None, MetricType::Info)?
            .encode_info(&labels.map(|(name, value)| (name, value.as_str())))?;
        let help = "Time the process has been a member of its cluster; 0 while it belongs to none";
        let uptime = ConstGauge::new(status.uptime_ms as f64 / 1e3);
        uptime.encode(encoder.encode_descriptor(
            "reelkv_uptime",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?)?;
        let sizes = [
            ("reelkv_wal", "The log on disk", status.wal_bytes),
            ("reelkv_tree", "The trees on disk", status.tree_bytes),
            (
                "reelkv_memtable",
                "Writes not yet in trees on disk",
                status.memtable_bytes,
            ),
            (
                "reelkv_memtable_budget",
                "The bound memtables share",
                status.memtable_budget_bytes,
            ),
        ];
        for (name, help, bytes) in sizes {
            gauges(encoder, name, help, Some(Unit::Bytes), [(vec![], bytes)])?;
        }
        Ok(())
    }

    fn replicas(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let replicas = &self.status.replicas;
        // States nothing is in are shown too: what is not there cannot be alerted on.
        let states = RUNNING.into_iter().chain(NOT_RUNNING).map(|state| {
            let count = replicas.iter().filter(|replica| replica.state == state).count();
            (vec![("state", state.to_owned())], count as u64)
        });
        gauges(encoder, "reelkv_replicas", "Replicas on this node", None, states)?;
        let leaders = replicas.iter().filter(|replica| replica.is_leader).count() as u64;
        gauges(
            encoder,
            "reelkv_leaders",
            "Shards this node leads",
            None,
            [(vec![], leaders)],
        )?;

        // A lost replica may lie beside the one that takes its place: only what runs has figures,
        // so that no series is there twice.
        let mut by_shard = |name, help, unit, figure: fn(&v1::ReplicaStatus) -> u64| {
            let running = replicas
                .iter()
                .filter(|replica| !NOT_RUNNING.contains(&replica.state.as_str()));
            let samples =
                running.map(|replica| (vec![("shard", replica.shard_id.to_string())], figure(replica)));
            gauges(encoder, name, help, unit, samples)
        };
        let help = "Index of the last log entry this replica has applied";
        by_shard("reelkv_shard_applied_index", help, None, |replica| {
            replica.applied_index
        })?;
        let help = "Live records at this replica's last checkpoint; an estimate";
        by_shard("reelkv_shard_records", help, None, |replica| replica.records)?;
        let help = "Bytes of live records at this replica's last checkpoint; an estimate";
        by_shard("reelkv_shard_data", help, Some(Unit::Bytes), |replica| {
            replica.data_bytes
        })?;
        let help = "1 where this replica leads its shard";
        by_shard("reelkv_shard_is_leader", help, None, |replica| {
            u64::from(replica.is_leader)
        })
    }

    fn damage(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let help = "Damage found since the process started";
        let mut family = encoder.encode_descriptor("reelkv_damage", help, None, MetricType::Counter)?;
        for ((structure, kind), count) in &self.found {
            let labels = [("structure", structure.word()), ("kind", kind.word())];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        gauges(
            encoder,
            "reelkv_damage_open",
            "Damage found and not yet repaired",
            None,
            [(vec![], self.open)],
        )?;
        let help = "Time from finding damage to its repair, of repairs since the process started";
        let buckets: Vec<_> = self
            .repairs
            .buckets()
            .map(|(bound_ms, count)| (bound_ms.map_or(f64::INFINITY, |ms| ms as f64 / 1e3), count))
            .collect();
        encoder
            .encode_descriptor(
                "reelkv_damage_repair",
                help,
                Some(&Unit::Seconds),
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(
                self.repairs.sum_ms as f64 / 1e3,
                self.repairs.count,
                &buckets,
                None,
            )
    }
}

type Labels = Vec<(&'static str, String)>;

/// Writes a family of gauges, its unit last in its name.
fn gauges(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    for (labels, value) in samples {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        match labels.is_empty() {
            // An empty set of labels would be written as {}.
            true => family.encode_gauge(&value)?,
            false => family.encode_family(&labels)?.encode_gauge(&value)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::alone::Alone;
    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::rpc::handler::{AdminHandler, KvHandler};

    async fn fresh(disk: &SimDisk) -> Front {
        Alone::on(disk).start().await
    }

    async fn cluster_of_one(disk: &SimDisk) -> Front {
        Alone::on(disk).cluster().await
    }

    async fn read_unknown_keyspace(front: &Front) {
        let get = v1::GetRequest {
            keyspace: "none".to_owned(),
            ..Default::default()
        };
        let op = Some(v1::request::Op::Get(get));
        front
            .request(v1::Request {
                id: 1,
                timeout_ms: 100,
                op,
            })
            .await;
    }

    #[track_caller]
    fn value(text: &str, series: &str) -> f64 {
        let found: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .collect();
        assert_eq!(found.len(), 1, "{series} is not there once\n{text}");
        found[0]
            .parse()
            .unwrap_or_else(|_| panic!("{series} is {}", found[0]))
    }

    fn encoded(figures: Figures) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(figures));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_fresh_node_is_alive_but_not_ready_and_shows_figures() {
        let front = fresh(&SimDisk::new(1)).await;
        assert_eq!(front.alive(), Ok(()));
        assert_eq!(
            front.ready(),
            Err("this node belongs to no cluster yet".to_owned())
        );
        let text = front.metrics().await;
        let release = env!("CARGO_PKG_VERSION");
        let info = format!(r#"reelkv_info{{release="{release}",engine="memory",node_id="0"}}"#);
        assert_eq!(value(&text, &info), 1.0);
        assert_eq!(value(&text, "reelkv_uptime_seconds"), 0.0);
        assert_eq!(value(&text, r#"reelkv_replicas{state="trusted"}"#), 0.0);
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_shows_its_replicas_and_what_it_was_asked() {
        let front = cluster_of_one(&SimDisk::new(1)).await;
        assert_eq!(front.ready(), Ok(()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        read_unknown_keyspace(&front).await;
        front.request(v1::Request::default()).await;
        let text = front.metrics().await;
        let shards = value(&text, r#"reelkv_replicas{state="trusted"}"#);
        assert!(shards >= 2.0, "the meta shard and one of data\n{text}");
        assert_eq!(value(&text, "reelkv_leaders"), shards);
        assert_eq!(value(&text, r#"reelkv_shard_is_leader{shard="1"}"#), 1.0);
        assert!(value(&text, r#"reelkv_shard_applied_index{shard="1"}"#) > 0.0);
        assert!(value(&text, "reelkv_uptime_seconds") >= 2.0);
        assert!(value(&text, "reelkv_wal_bytes") > 0.0);
        assert!(value(&text, "reelkv_checkpoints_total") >= 0.0);
        assert_eq!(value(&text, "reelkv_wal_segments_removed_total"), 0.0);
        assert!(value(&text, "reelkv_memtable_budget_bytes") > 0.0);
        assert_eq!(
            value(
                &text,
                r#"reelkv_requests_total{op="get",result="unknown_keyspace"}"#
            ),
            1.0
        );
        assert_eq!(value(&text, r#"reelkv_request_seconds_count{op="get"}"#), 1.0);
        assert_eq!(
            value(
                &text,
                r#"reelkv_requests_total{op="none",result="invalid_argument"}"#
            ),
            1.0
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stops_is_not_ready_but_alive() {
        let front = cluster_of_one(&SimDisk::new(1)).await;
        assert_eq!(front.ready(), Ok(()));
        let member = front.0.member().unwrap();
        member.hand_over_leaders(Duration::from_secs(5)).await;
        assert_eq!(front.ready(), Err("this node is about to stop".to_owned()));
        assert_eq!(front.alive(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_log_cannot_be_trusted_is_neither_alive_nor_ready() {
        let disk = SimDisk::new(1);
        let front = cluster_of_one(&disk).await;
        disk.fail_syncs_after(0);
        let keyspace = v1::CreateKeyspaceRequest {
            name: "rentals".to_owned(),
            ..Default::default()
        };
        let refused = tokio::time::timeout(Duration::from_secs(60), front.create_keyspace(keyspace)).await;
        assert!(
            !matches!(refused, Ok(Ok(_))),
            "a write was answered that no disk has"
        );
        let why = front.alive().unwrap_err();
        assert!(
            why.contains("the log's disk failed") && !why.contains('\n'),
            "{why}"
        );
        assert_eq!(front.ready(), Err(why));
    }

    #[test]
    fn every_family_has_its_meaning_type_and_unit() {
        let families = [
            ("reelkv", "info", ""),
            ("reelkv_uptime_seconds", "gauge", "seconds"),
            ("reelkv_wal_bytes", "gauge", "bytes"),
            ("reelkv_tree_bytes", "gauge", "bytes"),
            ("reelkv_memtable_bytes", "gauge", "bytes"),
            ("reelkv_memtable_budget_bytes", "gauge", "bytes"),
            ("reelkv_replicas", "gauge", ""),
            ("reelkv_leaders", "gauge", ""),
            ("reelkv_shard_applied_index", "gauge", ""),
            ("reelkv_shard_records", "gauge", ""),
            ("reelkv_shard_data_bytes", "gauge", "bytes"),
            ("reelkv_shard_is_leader", "gauge", ""),
            ("reelkv_damage", "counter", ""),
            ("reelkv_damage_open", "gauge", ""),
            ("reelkv_damage_repair_seconds", "histogram", "seconds"),
        ];
        let text = encoded(Figures {
            status: v1::NodeStatus::default(),
            found: BTreeMap::new(),
            open: 0,
            repairs: Repairs::default(),
        });
        for (name, kind, unit) in families {
            assert!(text.contains(&format!("# HELP {name} ")), "{name}\n{text}");
            assert!(
                text.contains(&format!("# TYPE {name} {kind}\n")),
                "{name}\n{text}"
            );
            let units = text.matches(&format!("# UNIT {name} {unit}\n")).count();
            assert_eq!(units, usize::from(!unit.is_empty()), "{name}\n{text}");
        }
        assert_eq!(text.matches("# TYPE ").count(), families.len(), "{text}");
    }

    #[test]
    fn a_lost_replica_beside_its_successor_hides_none_of_its_figures() {
        let replica = |replica_id, state: &str, applied_index| v1::ReplicaStatus {
            shard_id: 7,
            replica_id,
            state: state.to_owned(),
            applied_index,
            ..Default::default()
        };
        let replicas = vec![replica(12, "trusted", 40), replica(3, "lost", 0)];
        let found = BTreeMap::from([((Structure::Wal, Kind::Checksum), 5)]);
        let text = encoded(Figures {
            status: v1::NodeStatus {
                replicas,
                ..Default::default()
            },
            found,
            open: 2,
            repairs: Repairs::default(),
        });
        assert_eq!(value(&text, r#"reelkv_shard_applied_index{shard="7"}"#), 40.0);
        assert_eq!(value(&text, r#"reelkv_replicas{state="trusted"}"#), 1.0);
        assert_eq!(value(&text, r#"reelkv_replicas{state="lost"}"#), 1.0);
        assert_eq!(value(&text, r#"reelkv_replicas{state="healing"}"#), 0.0);
        assert_eq!(
            value(&text, r#"reelkv_damage_total{structure="wal",kind="checksum"}"#),
            5.0
        );
        assert_eq!(value(&text, "reelkv_damage_open"), 2.0);
    }
}
