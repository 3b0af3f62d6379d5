//! `node status`.

use clap::{Args, Subcommand};
use reelkv_client::v1::{DamageEvent, NodeStatus, ReplicaStatus};
use serde_json::{Value as Json, json};

use super::cluster::node_json;
use super::connect::ConnectArgs;
use super::failure::{Failure, Outcome, Status};
use super::output::{OutputArgs, Table, hex, human_bytes, human_count, human_ms, print, print_json};
use super::shard::{find_node, role_name, spans_json};
use crate::clock::{Clock, SystemClock};
use crate::config::NodeArgs;

/// Run one node, and see how it is
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Run one node until SIGTERM or Ctrl-C
    Start(Box<NodeArgs>),
    Status(StatusArgs),
}

/// Show one node: its disk and memory, its replicas, and damage it has seen
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// The node, by number or address [default: the first of --addr]
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(command: NodeCommand) -> Outcome {
    match command {
        NodeCommand::Status(args) => status(args).await,
        NodeCommand::Start(_) => unreachable!("dispatched before"),
    }
}

async fn status(args: StatusArgs) -> Outcome {
    let admin = args.connect.lazy_client().await?.admin();
    let addr = match &args.node {
        Some(node) if node.contains(':') => node.clone(),
        Some(node) => find_node(&admin.directory().await?, node)?.addr.clone(),
        None => {
            let first = args.connect.addr.first().cloned();
            first.ok_or_else(|| Failure::bad_input("no address of a node was given"))?
        }
    };
    let status = admin.node_status(&addr).await?;
    match args.output.json {
        true => print_json(&status_json(&status))?,
        false => print(&status_text(&status, SystemClock.wall_ms()))?,
    }
    Ok(Status::Fine)
}

fn status_text(status: &NodeStatus, now_ms: u64) -> String {
    let node = status.node.clone().unwrap_or_default();
    let cluster = match status.cluster_id.is_empty() {
        true => "none yet".to_owned(),
        false => hex(&status.cluster_id),
    };
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let mut text = format!(
        "node      {} at {}, http {}, zone {}\n\
         cluster   {cluster}\n\
         release   {}, up {}, engine {}\n\
         log       {}, batch {}\n\
         trees     {}\n\
         memtables {} of {}\n\n",
        node.node_id,
        node.addr,
        or_dash(&node.http_addr),
        or_dash(&node.zone),
        status.release,
        human_ms(status.uptime_ms),
        status.engine,
        human_bytes(status.wal_bytes),
        status.wal_batch,
        human_bytes(status.tree_bytes),
        human_bytes(status.memtable_bytes),
        human_bytes(status.memtable_budget_bytes),
    );
    text.push_str(&replicas_table(&status.replicas).text());
    match status.damage.is_empty() {
        true => text.push_str("\nno damage was seen\n"),
        false => {
            text.push('\n');
            text.push_str(&damage_table(&status.damage, now_ms).text());
        }
    }
    text
}

fn replicas_table(replicas: &[ReplicaStatus]) -> Table {
    let mut table = Table::new(&[
        "#SHARD",
        "#REPLICA",
        "ROLE",
        "STATE",
        "LEADER",
        "#TERM",
        "#LAST",
        "#COMMITTED",
        "#APPLIED",
        "#CHECKPOINT",
        "#PROVEN",
        "#RECORDS",
        "#BYTES",
    ]);
    for replica in replicas {
        let leader = match (replica.is_leader, replica.leader_node_id) {
            (true, _) => "this".to_owned(),
            (false, 0) => "unknown".to_owned(),
            (false, node) => node.to_string(),
        };
        table.row([
            replica.shard_id.to_string(),
            replica.replica_id.to_string(),
            role_name(replica.role()).to_owned(),
            replica.state.clone(),
            leader,
            replica.term.to_string(),
            replica.last_log_index.to_string(),
            replica.committed_index.to_string(),
            replica.applied_index.to_string(),
            replica.checkpoint_index.to_string(),
            proven(replica),
            human_count(replica.records),
            human_bytes(replica.data_bytes),
        ]);
    }
    table
}

/// How old the oldest proof is; a dash when the node does not prove.
fn proven(replica: &ReplicaStatus) -> String {
    match replica.oldest_proof_ms {
        None => "-".to_owned(),
        Some(0) => "never".to_owned(),
        Some(age_ms) => format!("{} ago", human_ms(age_ms)),
    }
}

fn damage_table(events: &[DamageEvent], now_ms: u64) -> Table {
    let mut table = Table::new(&[
        "#NODE",
        "#SHARD",
        "STRUCTURE",
        "POSITION",
        "KIND",
        "ACTION",
        "DETECTED",
        "REPAIRED AFTER",
    ]);
    let ago = |ms: u64| format!("{} ago", human_ms(now_ms.saturating_sub(ms)));
    let or_dash = |id: u64| match id {
        0 => "-".to_owned(),
        id => id.to_string(),
    };
    for event in events {
        let repaired = match event.repaired_at_ms {
            0 => "not yet".to_owned(),
            at => human_ms(at.saturating_sub(event.detected_at_ms)),
        };
        table.row([
            or_dash(event.node_id),
            or_dash(event.shard_id),
            event.structure.clone(),
            event.position.clone(),
            event.kind.clone(),
            event.action.clone(),
            ago(event.detected_at_ms),
            repaired,
        ]);
    }
    table
}

fn status_json(status: &NodeStatus) -> Json {
    json!({
        "node": node_json(&status.node.clone().unwrap_or_default()),
        "cluster_id": hex(&status.cluster_id),
        "release": status.release,
        "engine": status.engine,
        "uptime_ms": status.uptime_ms,
        "wal_bytes": status.wal_bytes,
        "wal_batch": status.wal_batch,
        "tree_bytes": status.tree_bytes,
        "memtable_bytes": status.memtable_bytes,
        "memtable_budget_bytes": status.memtable_budget_bytes,
        "replicas": status.replicas.iter().map(replica_json).collect::<Vec<_>>(),
        "damage": status.damage.iter().map(damage_json).collect::<Vec<_>>(),
    })
}

fn replica_json(replica: &ReplicaStatus) -> Json {
    json!({
        "shard_id": replica.shard_id,
        "replica_id": replica.replica_id,
        "role": role_name(replica.role()),
        "state": replica.state,
        "is_leader": replica.is_leader,
        "leader_node_id": replica.leader_node_id,
        "term": replica.term,
        "last_log_index": replica.last_log_index,
        "committed_index": replica.committed_index,
        "applied_index": replica.applied_index,
        "checkpoint_index": replica.checkpoint_index,
        "next_version": replica.next_version,
        "last_log_term": replica.last_log_term,
        "oldest_proof_ms": replica.oldest_proof_ms,
        "unproven_spans": replica.oldest_proof_ms.map(|_| spans_json(&replica.unproven_spans)),
        "records": replica.records,
        "data_bytes": replica.data_bytes,
    })
}

pub(crate) fn damage_json(event: &DamageEvent) -> Json {
    json!({
        "node_id": event.node_id,
        "shard_id": event.shard_id,
        "replica_id": event.replica_id,
        "structure": event.structure,
        "position": event.position,
        "kind": event.kind,
        "action": event.action,
        "detected_at_ms": event.detected_at_ms,
        "repaired_at_ms": (event.repaired_at_ms > 0).then_some(event.repaired_at_ms),
    })
}

#[cfg(test)]
mod tests {
    use reelkv_client::v1::{NodeDescriptor, ReplicaRole};

    use super::*;

    fn example() -> NodeStatus {
        let damage = |shard_id, repaired_at_ms| DamageEvent {
            node_id: 1,
            shard_id,
            structure: "tree".to_owned(),
            position: "tables/3 at 4096".to_owned(),
            kind: "checksum".to_owned(),
            action: "refill".to_owned(),
            detected_at_ms: 1_000,
            repaired_at_ms,
            ..Default::default()
        };
        NodeStatus {
            node: Some(NodeDescriptor {
                node_id: 1,
                addr: "127.0.0.1:7301".to_owned(),
                ..Default::default()
            }),
            release: "0.1.0".to_owned(),
            engine: "lsm".to_owned(),
            replicas: vec![ReplicaStatus {
                shard_id: 2,
                replica_id: 5,
                role: ReplicaRole::Voter.into(),
                state: "trusted".to_owned(),
                leader_node_id: 3,
                ..Default::default()
            }],
            damage: vec![damage(2, 3_500), damage(0, 0)],
            ..Default::default()
        }
    }

    #[test]
    fn replicas_and_damage_are_tables() {
        let text = status_text(&example(), 61_000);
        let cells = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let lines: Vec<_> = text.lines().map(cells).collect();
        for expected in [
            "node 1 at 127.0.0.1:7301, http -, zone -",
            "cluster none yet",
            "2 5 voter trusted 3 0 0 0 0 0 - 0 0 B",
            "NODE SHARD STRUCTURE POSITION KIND ACTION DETECTED REPAIRED AFTER",
            "1 2 tree tables/3 at 4096 checksum refill 1 min 0 s ago 2 s",
            "1 - tree tables/3 at 4096 checksum refill 1 min 0 s ago not yet",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}\n{text}");
        }
        let unharmed = NodeStatus::default();
        assert!(status_text(&unharmed, 0).ends_with("no damage was seen\n"));
    }

    #[test]
    fn what_is_not_repaired_has_no_time_of_repair() {
        let json = status_json(&example());
        assert_eq!(json["damage"][0]["repaired_at_ms"], 3_500);
        assert_eq!(json["damage"][1]["repaired_at_ms"], Json::Null);
        assert_eq!(json["replicas"][0]["state"], "trusted");
        assert_eq!(json["replicas"][0]["oldest_proof_ms"], Json::Null);
    }

    #[test]
    fn what_a_node_does_not_prove_has_no_age() {
        let replica = |oldest_proof_ms| ReplicaStatus {
            oldest_proof_ms,
            ..Default::default()
        };
        let shown = [None, Some(0), Some(65_000)].map(|age| proven(&replica(age)));
        assert_eq!(shown, ["-", "never", "1 min 5 s ago"]);
    }
}
