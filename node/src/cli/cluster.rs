//! `cluster init` and `cluster status`.

use std::time::Duration;

use clap::{Args, Subcommand};
use reelkv_client::v1::{
    ClusterStatus, DamageEvent, Health, InitClusterResponse, NodeDescriptor, NodeHealth, ShardStatus,
};
use reelkv_client::{Admin, ErrorKind, key};
use reelkv_proto::types::split_stored_key;
use serde_json::{Value as Json, json};

use super::connect::{ConnectArgs, duration};
use super::failure::{Failure, Outcome, Status};
use super::node::damage_json;
use super::output::{
    OutputArgs, Table, hex, human_bytes, human_count, human_ms, one_line, print, print_json, verdict,
};
use super::shard::{is_meta, shard_id, status_json};
use crate::clock::{self, Clock, SystemClock};

/// Making a cluster forms all its shards; that may take longer than other requests.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);
/// While waiting, the cluster is asked this often.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Make a cluster, and see how it is
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    Init(InitArgs),
    Status(StatusArgs),
}

/// Make a cluster of the nodes in a node's join list; once
#[derive(Args, Clone, Debug)]
pub(crate) struct InitArgs {
    /// Data shards to begin with, and of each new keyspace
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    shards: u32,
    /// Replicas of each shard: 1, 3 or 5, at most the number of nodes
    #[arg(long, value_name = "N", default_value = "3", value_parser = replicas)]
    replicas: u32,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Show nodes and shards; exit status 1 while the cluster is degraded
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// Wait up to this long until all is well
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(command: ClusterCommand) -> Outcome {
    match command {
        ClusterCommand::Init(args) => init(args).await,
        ClusterCommand::Status(args) => status(args).await,
    }
}

fn replicas(text: &str) -> Result<u32, String> {
    match text {
        "1" | "3" | "5" => Ok(u32::from(text.as_bytes()[0] - b'0')),
        _ => Err("a shard has 1, 3 or 5 replicas".to_owned()),
    }
}

async fn init(args: InitArgs) -> Outcome {
    let client = args.connect.client_within(INIT_TIMEOUT).await?;
    let made = client.admin().init_cluster(args.shards, args.replicas).await?;
    if args.output.json {
        let nodes: Vec<_> = made.nodes.iter().map(node_json).collect();
        print_json(&json!({"cluster_id": hex(&made.cluster_id), "nodes": nodes}))?;
    } else {
        print(&init_text(&made))?;
    }
    Ok(Status::Fine)
}

fn init_text(made: &InitClusterResponse) -> String {
    let mut table = Table::new(&["#NODE", "ADDRESS", "ZONE"]);
    for node in &made.nodes {
        table.row([node.node_id.to_string(), node.addr.clone(), node.zone.clone()]);
    }
    format!(
        "cluster {} of {} nodes is made\n\n{}",
        hex(&made.cluster_id),
        made.nodes.len(),
        table.text()
    )
}

async fn status(args: StatusArgs) -> Outcome {
    let admin = args.connect.lazy_client().await?.admin();
    let status = match args.wait {
        Some(wait) => healthy_within(&admin, wait).await?,
        None => admin.cluster_status().await?,
    };
    let exit = match status.health() {
        Health::Ok => Status::Fine,
        _ => Status::No,
    };
    let printed = match args.output.json {
        true => print_json(&cluster_json(&status)),
        false => print(&cluster_text(&status, SystemClock.wall_ms())),
    };
    verdict(exit, printed)
}

/// Asks until all is well or the time is over; the last answer.
async fn healthy_within(admin: &Admin, wait: Duration) -> Result<ClusterStatus, Failure> {
    let give_up = clock::now() + wait;
    loop {
        let left = give_up.saturating_duration_since(clock::now());
        let answer = tokio::time::timeout(left.max(ASK_EVERY), admin.cluster_status()).await;
        let answer = answer.unwrap_or_else(|_| Err(no_answer().into()));
        let is_last = clock::now() + ASK_EVERY >= give_up;
        match answer {
            Ok(status) if is_last || status.health() == Health::Ok => return Ok(status),
            // Not even started, perhaps; what is wrong with the request stays wrong.
            Err(error) if is_last || matches!(error.kind(), ErrorKind::InvalidArgument { .. }) => {
                return Err(error.into());
            }
            _ => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

fn no_answer() -> reelkv_client::v1::Error {
    use reelkv_client::v1::error::Kind;
    reelkv_client::v1::Error {
        message: "the cluster did not answer in time".to_owned(),
        kind: Some(Kind::Unavailable(Default::default())),
    }
}

fn health_name(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Unavailable => "unavailable",
        Health::Unspecified => "unknown",
    }
}

fn cluster_text(status: &ClusterStatus, now_ms: u64) -> String {
    let mut nodes = Table::new(&[
        "#NODE",
        "ADDRESS",
        "ZONE",
        "STATE",
        "#REPLICAS",
        "#LEADERS",
        "#DAMAGE",
    ]);
    for health in &status.nodes {
        let node = health.node.clone().unwrap_or_default();
        nodes.row([
            node.node_id.to_string(),
            node.addr.clone(),
            node.zone.clone(),
            node_state(health).to_owned(),
            health.replicas.to_string(),
            health.leaders.to_string(),
            health.open_damage.to_string(),
        ]);
    }
    let mut text = format!(
        "health   {}: {}\ncluster  {}\nshards   {}\nproofs   {}\n\n{}",
        health_name(status.health()),
        status.summary,
        hex(&status.cluster_id),
        shards_summary(status),
        proofs_summary(status),
        nodes.text()
    );
    let details: Vec<_> = status
        .nodes
        .iter()
        .flat_map(|health| damage_lines(health, now_ms))
        .chain(status.shards.iter().flat_map(unproven_lines))
        .collect();
    if !details.is_empty() {
        text.push_str(&format!("\n{}\n", details.join("\n")));
    }
    text
}

/// How old the oldest proof is, and how much is proven too rarely; a dash while no node says so.
fn proofs_summary(status: &ClusterStatus) -> String {
    let ages = || {
        let age = |shard: &ShardStatus| Some((shard.oldest_proof_ms?, shard_id(shard)));
        status.shards.iter().filter_map(age)
    };
    let never = ages().filter(|(age_ms, _)| *age_ms == 0).count();
    let oldest = match (never, ages().max()) {
        (_, None) => return "-".to_owned(),
        (0, Some((age_ms, shard))) => format!("the oldest is {} old, of shard {shard}", human_ms(age_ms)),
        (never, Some(_)) => format!("{never} shards hold something that was never proven"),
    };
    let thin: usize = status
        .shards
        .iter()
        .map(|shard| shard.spans_under_two_copies.len())
        .sum();
    match thin {
        0 => oldest,
        _ => format!("{oldest}; {thin} spans have fewer than two proven copies"),
    }
}

/// A line for each damage that is not repaired yet.
fn damage_lines(health: &NodeHealth, now_ms: u64) -> Vec<String> {
    let line = |event: &DamageEvent| {
        let place = match event.shard_id {
            0 => String::new(),
            shard => format!(", shard {shard}, replica {}", event.replica_id),
        };
        one_line(&format!(
            "damage   node {}{place}: {} {}, {}; told {} ago: {}",
            event.node_id,
            event.structure,
            event.kind,
            event.action,
            human_ms(now_ms.saturating_sub(event.detected_at_ms)),
            event.position,
        ))
    };
    let mut lines: Vec<_> = health.damage.iter().map(line).collect();
    let more = health.open_damage as usize - health.damage.len().min(health.open_damage as usize);
    if more > 0 {
        let node = health.node.as_ref().map_or(0, |node| node.node_id);
        lines.push(format!(
            "damage   node {node}: {more} more; see `reelkv node status`"
        ));
    }
    lines
}

/// A line for each span that too few voters can prove.
fn unproven_lines(shard: &ShardStatus) -> Vec<String> {
    let spans = shard.spans_under_two_copies.iter();
    let line = |span: &reelkv_client::v1::UnprovenSpan| {
        let (id, from) = (shard_id(shard), key_text(&span.start_key, "(start)"));
        let to = key_text(&span.end_key, "(end)");
        one_line(&format!("unproven shard {id}, {from} to {to}: {}", span.reason))
    };
    spans.map(line).collect()
}

fn key_text(stored: &[u8], if_empty: &str) -> String {
    match (stored.is_empty(), split_stored_key(stored)) {
        (true, _) => if_empty.to_owned(),
        (false, Some((keyspace, user_key))) if !user_key.is_empty() => {
            format!("keyspace#{keyspace} {}", key::to_text(user_key))
        }
        (false, Some((keyspace, _))) => format!("keyspace#{keyspace}"),
        (false, None) => format!("x'{}'", hex(stored)),
    }
}

fn node_state(health: &NodeHealth) -> &'static str {
    let is_retired = health.node.as_ref().is_some_and(|node| node.retired);
    match (is_retired, health.reachable) {
        (true, _) => "retired",
        (false, true) => "up",
        (false, false) => "unreachable",
    }
}

fn shards_summary(status: &ClusterStatus) -> String {
    let data = || status.shards.iter().filter(|shard| !is_meta(shard));
    let replicas: usize = status
        .shards
        .iter()
        .filter_map(|shard| Some(shard.descriptor.as_ref()?.replicas.len()))
        .sum();
    let healthy: u64 = status.shards.iter().map(|s| u64::from(s.healthy_replicas)).sum();
    let leaderless = status.shards.iter().filter(|s| s.leader_node_id == 0).count();
    let mut text = format!(
        "{} and the meta shard, {healthy} of {replicas} replicas healthy; about {} records, {}",
        data().count(),
        human_count(data().map(|shard| shard.records).sum()),
        human_bytes(data().map(|shard| shard.data_bytes).sum()),
    );
    if leaderless > 0 {
        text.push_str(&format!("; {leaderless} without a leader"));
    }
    text
}

fn cluster_json(status: &ClusterStatus) -> Json {
    let node = |health: &NodeHealth| {
        let mut json = node_json(&health.node.clone().unwrap_or_default());
        json["reachable"] = health.reachable.into();
        json["replicas"] = health.replicas.into();
        json["leaders"] = health.leaders.into();
        json["open_damage"] = health.open_damage.into();
        json["damage"] = health.damage.iter().map(damage_json).collect();
        json
    };
    json!({
        "health": health_name(status.health()),
        "summary": status.summary,
        "cluster_id": hex(&status.cluster_id),
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "shards": status.shards.iter().map(status_json).collect::<Vec<_>>(),
    })
}

/// A node's place and names.
pub(crate) fn node_json(node: &NodeDescriptor) -> Json {
    json!({
        "node_id": node.node_id,
        "addr": node.addr,
        "http_addr": node.http_addr,
        "zone": node.zone,
        "retired": node.retired,
    })
}

#[cfg(test)]
mod tests {
    use reelkv_client::v1::{ReplicaDescriptor, ShardDescriptor, ShardStatus};

    use super::*;

    fn example() -> ClusterStatus {
        let node = |node_id, reachable| NodeHealth {
            node: Some(NodeDescriptor {
                node_id,
                addr: format!("127.0.0.1:730{node_id}"),
                zone: "a".to_owned(),
                ..Default::default()
            }),
            reachable,
            replicas: 2,
            leaders: 1,
            open_damage: 0,
            damage: Vec::new(),
        };
        let shard = |shard_id, leader_node_id| ShardStatus {
            descriptor: Some(ShardDescriptor {
                shard_id,
                replicas: vec![ReplicaDescriptor::default(); 2],
                ..Default::default()
            }),
            leader_node_id,
            records: 1_500,
            data_bytes: 2_048,
            healthy_replicas: 1,
            ..Default::default()
        };
        ClusterStatus {
            health: Health::Degraded.into(),
            summary: "node 2 does not answer".to_owned(),
            cluster_id: vec![0xab; 2].into(),
            nodes: vec![node(1, true), node(2, false)],
            shards: vec![shard(1, 1), shard(2, 0)],
        }
    }

    #[test]
    fn the_status_is_a_summary_and_a_table_of_nodes() {
        let expected = "\
health   degraded: node 2 does not answer
cluster  abab
shards   1 and the meta shard, 2 of 4 replicas healthy; about 1,500 records, 2.0 KiB; 1 without a leader
proofs   -

NODE  ADDRESS         ZONE  STATE        REPLICAS  LEADERS  DAMAGE
   1  127.0.0.1:7301  a     up                  2        1       0
   2  127.0.0.1:7302  a     unreachable         2        1       0
";
        assert_eq!(cluster_text(&example(), 0), expected);
        let json = cluster_json(&example());
        assert_eq!(json["health"], "degraded");
        assert_eq!(json["nodes"][1]["reachable"], false);
        assert_eq!(json["shards"][1]["leader_node_id"], 0);
    }

    #[test]
    fn open_damage_and_what_is_proven_too_rarely_have_a_line_each() {
        let mut status = example();
        status.nodes[1].open_damage = 3;
        status.nodes[1].damage = vec![DamageEvent {
            node_id: 2,
            shard_id: 7,
            replica_id: 4,
            structure: "tree".to_owned(),
            position: "tables/3\nat 4096".to_owned(),
            kind: "checksum".to_owned(),
            action: "refill".to_owned(),
            detected_at_ms: 1_000,
            repaired_at_ms: 0,
        }];
        status.shards[0].oldest_proof_ms = Some(61_000);
        status.shards[1].oldest_proof_ms = Some(5_000);
        status.shards[1].spans_under_two_copies = vec![reelkv_client::v1::UnprovenSpan {
            start_key: vec![0, 0, 0, 1].into(),
            end_key: Vec::new().into(),
            reason: "1 proven copy".to_owned(),
        }];
        let text = cluster_text(&status, 13_000);
        for expected in [
            "proofs   the oldest is 1 min 1 s old, of shard 1; 1 spans have fewer than two proven copies\n",
            "\ndamage   node 2, shard 7, replica 4: tree checksum, refill; told 12 s ago: tables/3\\nat 4096\n",
            "\ndamage   node 2: 2 more; see `reelkv node status`\n",
            "\nunproven shard 2, keyspace#1 to (end): 1 proven copy\n",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        let json = cluster_json(&status);
        assert_eq!(json["nodes"][1]["damage"][0]["kind"], "checksum");
        assert_eq!(json["shards"][0]["oldest_proof_ms"], 61_000);
        assert_eq!(
            json["shards"][1]["spans_under_two_copies"][0]["start_key_hex"],
            "00000001"
        );
        status.shards[1].oldest_proof_ms = Some(0);
        let never = proofs_summary(&status);
        assert!(
            never.starts_with("1 shards hold something that was never proven"),
            "{never}"
        );
        let json = cluster_json(&example());
        assert_eq!(json["shards"][0]["oldest_proof_ms"], Json::Null);
        assert_eq!(
            json["shards"][0]["spans_under_two_copies"],
            Json::Null,
            "nobody says that there are none"
        );
    }

    #[test]
    fn replicas_are_one_three_or_five() {
        assert_eq!(["1", "3", "5"].map(replicas), [Ok(1), Ok(3), Ok(5)]);
        for text in ["0", "2", "4", "7", "x", ""] {
            assert!(replicas(text).is_err(), "{text}");
        }
    }
}
