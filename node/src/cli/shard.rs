//! `shard list` and `shard transfer`; `shard verify` is in `verify_shard`, `shard recover` in `recover`.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use reelkv_client::v1::{Directory, NodeDescriptor, ReplicaRole, ShardDescriptor, ShardStatus, UnprovenSpan};
use reelkv_client::{Admin, key};
use reelkv_proto::types::{FIRST_USER_KEY, META_SHARD, ShardId, split_stored_key};
use serde_json::{Value as Json, json};

use super::connect::ConnectArgs;
use super::failure::{Failure, Outcome, Status};
use super::output::{OutputArgs, Table, hex, human_bytes, human_count, print, print_json, tell};
use super::recover::{self, RecoverArgs};
use super::verify_shard::{self, VerifyArgs};

/// List shards, move their leaders, compare their replicas, and recover what lost its majority
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ShardCommand {
    List(ListArgs),
    Transfer(TransferArgs),
    Verify(VerifyArgs),
    Recover(RecoverArgs),
}

/// List the shards: ranges, leaders, replicas, sizes
#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    /// Count the records of each shard exactly, by reading its leader's replica; otherwise they are
    /// as the leader's last checkpoint has them
    #[arg(long)]
    count: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Move a shard's leadership to another node
#[derive(Args, Clone, Debug)]
pub(crate) struct TransferArgs {
    /// Number of the shard
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    shard: ShardId,
    /// The node that shall lead: its number or its address; it must hold a caught-up voter
    #[arg(long, value_name = "NODE")]
    to: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(command: ShardCommand) -> Outcome {
    match command {
        ShardCommand::List(args) => list(args).await,
        ShardCommand::Transfer(args) => transfer(args).await,
        ShardCommand::Verify(args) => verify_shard::verify(args).await,
        ShardCommand::Recover(args) => recover::recover(args).await,
    }
}

async fn list(args: ListArgs) -> Outcome {
    let admin = args.connect.client().await?.admin();
    let directory = admin.directory().await?;
    let mut shards = admin.cluster_status().await?.shards;
    if args.count {
        for shard in &mut shards {
            shard.records = count(&admin, &directory, shard).await?;
        }
    }
    let listing = Listing::new(&directory, &shards);
    match args.output.json {
        true => print_json(&listing.json(args.count))?,
        false => print(&listing.text())?,
    }
    Ok(Status::Fine)
}

/// Records of the leader's replica, counted by reading it.
async fn count(admin: &Admin, directory: &Directory, shard: &ShardStatus) -> Result<u64, Failure> {
    let id = shard_id(shard);
    let leader = directory
        .nodes
        .iter()
        .find(|node| node.node_id == shard.leader_node_id);
    let Some(leader) = leader else {
        return Err(Failure::no(format!(
            "shard {id} has no leader that could count its records"
        )));
    };
    Ok(admin.replica_digest(&leader.addr, id).await?.records)
}

async fn transfer(args: TransferArgs) -> Outcome {
    let admin = args.connect.client().await?.admin();
    let directory = admin.directory().await?;
    let to = find_node(&directory, &args.to)?;
    admin.transfer_leader(args.shard, to.node_id).await?;
    tell(&format!(
        "shard {} goes to node {} ({})",
        args.shard, to.node_id, to.addr
    ));
    Ok(Status::Fine)
}

/// The node of that number or address.
pub(crate) fn find_node<'d>(directory: &'d Directory, name: &str) -> Result<&'d NodeDescriptor, Failure> {
    let is_meant = |node: &&NodeDescriptor| node.addr == name || name.parse() == Ok(node.node_id);
    directory.nodes.iter().find(is_meant).ok_or_else(|| {
        let known: Vec<_> = directory
            .nodes
            .iter()
            .map(|node| format!("{} ({})", node.node_id, node.addr))
            .collect();
        Failure::bad_input(format!(
            "there is no node {name:?}; there are: {}",
            known.join(", ")
        ))
    })
}

pub(crate) fn shard_id(shard: &ShardStatus) -> ShardId {
    shard.descriptor.as_ref().map_or(0, |shard| shard.shard_id)
}

pub(crate) fn is_meta(shard: &ShardStatus) -> bool {
    shard_id(shard) == META_SHARD
}

/// All shards, with the names of what they hold and where.
struct Listing<'s> {
    shards: Vec<&'s ShardStatus>,
    keyspaces: HashMap<u32, &'s str>,
    nodes: HashMap<u64, &'s NodeDescriptor>,
    /// Records of all data shards; the meta shard's are the cluster's own.
    records: u64,
}

impl<'s> Listing<'s> {
    fn new(directory: &'s Directory, shards: &'s [ShardStatus]) -> Self {
        let mut ordered: Vec<_> = shards.iter().collect();
        ordered.sort_by_key(|shard| shard.descriptor.as_ref().map(|shard| shard.start_key.clone()));
        let keyspaces = directory.keyspaces.iter();
        Self {
            shards: ordered,
            keyspaces: keyspaces.map(|k| (k.keyspace_id, k.name.as_str())).collect(),
            nodes: directory.nodes.iter().map(|node| (node.node_id, node)).collect(),
            records: shards.iter().filter(|s| !is_meta(s)).map(|s| s.records).sum(),
        }
    }

    fn text(&self) -> String {
        let mut table = Table::new(&[
            "#SHARD", "FROM", "TO", "LEADER", "REPLICAS", "EPOCH", "#RECORDS", "#SHARE", "#BYTES",
        ]);
        for shard in &self.shards {
            let range = shard.descriptor.clone().unwrap_or_default();
            let share = self.share_percent(shard).map(|share| format!("{share:.1} %"));
            table.row([
                range.shard_id.to_string(),
                self.from(&range),
                self.to(&range),
                self.leader(shard),
                self.replicas(&range),
                epoch(&range),
                human_count(shard.records),
                share.unwrap_or_else(|| "-".to_owned()),
                human_bytes(shard.data_bytes),
            ]);
        }
        table.text()
    }

    fn json(&self, is_exact: bool) -> Json {
        let one = |shard: &&ShardStatus| {
            let range = shard.descriptor.clone().unwrap_or_default();
            let mut json = status_json(shard);
            json["from"] = self.from(&range).into();
            json["to"] = self.to(&range).into();
            json["share_percent"] = self.share_percent(shard).into();
            json["records_are_exact"] = is_exact.into();
            json
        };
        self.shards.iter().map(one).collect()
    }

    /// Part of all users' records, in percent; none of the meta shard, nor when there are no records.
    fn share_percent(&self, shard: &ShardStatus) -> Option<f64> {
        let share = shard.records as f64 * 100.0 / self.records as f64;
        (!is_meta(shard) && self.records > 0).then_some(share)
    }

    /// Where a shard begins: keyspace and key, both for people.
    fn from(&self, range: &ShardDescriptor) -> String {
        match range.start_key.is_empty() {
            true => "(start)".to_owned(),
            false => self.key(&range.start_key),
        }
    }

    fn to(&self, range: &ShardDescriptor) -> String {
        match range.end_key.is_empty() {
            true => "(end)".to_owned(),
            false => self.key(&range.end_key),
        }
    }

    fn key(&self, stored: &[u8]) -> String {
        let Some((id, user_key)) = split_stored_key(stored) else {
            return format!("x'{}'", hex(stored));
        };
        let keyspace = match self.keyspaces.get(&id) {
            Some(name) => (*name).to_owned(),
            None if stored == FIRST_USER_KEY => "(users)".to_owned(),
            None if id == 0 => "(system)".to_owned(),
            None => format!("keyspace#{id}"),
        };
        match user_key.is_empty() {
            true => keyspace,
            false => format!("{keyspace} {}", key::to_text(user_key)),
        }
    }

    fn leader(&self, shard: &ShardStatus) -> String {
        match shard.leader_node_id {
            0 => "none".to_owned(),
            id => self.node(id),
        }
    }

    /// Node and zone, e.g. `2/b`.
    fn node(&self, id: u64) -> String {
        match self.nodes.get(&id) {
            Some(node) if !node.zone.is_empty() => format!("{id}/{}", node.zone),
            _ => id.to_string(),
        }
    }

    fn replicas(&self, range: &ShardDescriptor) -> String {
        let replicas = range.replicas.iter().map(|replica| match replica.role() {
            ReplicaRole::Learner => format!("{}(learner)", self.node(replica.node_id)),
            _ => self.node(replica.node_id),
        });
        replicas.collect::<Vec<_>>().join(" ")
    }
}

/// Changes of range, then of membership.
fn epoch(range: &ShardDescriptor) -> String {
    let epoch = range.epoch.unwrap_or_default();
    format!("{}.{}", epoch.range_version, epoch.conf_version)
}

/// The name of a replica's role.
pub(crate) fn role_name(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Voter => "voter",
        ReplicaRole::Learner => "learner",
        ReplicaRole::Unspecified => "unknown",
    }
}

/// Spans in hexadecimal, as they are stored.
pub(crate) fn spans_json(spans: &[UnprovenSpan]) -> Json {
    let span = |span: &UnprovenSpan| {
        json!({
            "start_key_hex": hex(&span.start_key),
            "end_key_hex": hex(&span.end_key),
            "reason": span.reason,
        })
    };
    spans.iter().map(span).collect()
}

/// What the cluster says of a shard; its keys in hexadecimal, as they are stored.
pub(crate) fn status_json(shard: &ShardStatus) -> Json {
    let range = shard.descriptor.clone().unwrap_or_default();
    let epoch = range.epoch.unwrap_or_default();
    let replicas: Vec<_> = range
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "replica_id": replica.replica_id,
                "node_id": replica.node_id,
                "addr": replica.addr,
                "role": role_name(replica.role()),
            })
        })
        .collect();
    json!({
        "shard_id": range.shard_id,
        "start_key_hex": hex(&range.start_key),
        "end_key_hex": hex(&range.end_key),
        "epoch": {"range_version": epoch.range_version, "conf_version": epoch.conf_version},
        "leader_node_id": shard.leader_node_id,
        "term": shard.term,
        "applied_index": shard.applied_index,
        "records": shard.records,
        "data_bytes": shard.data_bytes,
        "healthy_replicas": shard.healthy_replicas,
        "oldest_proof_ms": shard.oldest_proof_ms,
        // While no voter reports proofs, nobody knows of any such span, nor that there is none.
        "spans_under_two_copies": shard.oldest_proof_ms.map(|_| spans_json(&shard.spans_under_two_copies)),
        "replicas": replicas,
    })
}

#[cfg(test)]
mod tests {
    use reelkv_client::v1::{Keyspace, ReplicaDescriptor, ShardEpoch};
    use reelkv_proto::types::stored_key;

    use super::*;

    fn directory() -> Directory {
        let node = |node_id: u64, zone: &str| NodeDescriptor {
            node_id,
            addr: format!("127.0.0.1:730{node_id}"),
            zone: zone.to_owned(),
            ..Default::default()
        };
        Directory {
            nodes: vec![node(1, "a"), node(2, "b")],
            keyspaces: vec![Keyspace {
                keyspace_id: 1,
                name: "public.film".to_owned(),
            }],
            ..Default::default()
        }
    }

    fn shard(shard_id: u64, from: &[u8], to: &[u8], leader: u64, records: u64) -> ShardStatus {
        let replica = |node_id, role: ReplicaRole| ReplicaDescriptor {
            node_id,
            role: role.into(),
            ..Default::default()
        };
        ShardStatus {
            descriptor: Some(ShardDescriptor {
                shard_id,
                start_key: from.to_vec().into(),
                end_key: to.to_vec().into(),
                epoch: Some(ShardEpoch {
                    conf_version: 1,
                    range_version: 4,
                }),
                replicas: vec![replica(1, ReplicaRole::Voter), replica(2, ReplicaRole::Learner)],
                leader_node_id: 0,
            }),
            leader_node_id: leader,
            records,
            data_bytes: 10,
            ..Default::default()
        }
    }

    #[test]
    fn shards_are_listed_in_key_order_with_readable_ranges() {
        let split = stored_key(1, &key::from_text("(500)").unwrap());
        let next = stored_key(2, b"");
        let shards = [
            shard(4, &next, b"", 0, 0),
            shard(1, b"", &FIRST_USER_KEY, 1, 900),
            shard(3, &split, &next, 2, 250),
            shard(2, &FIRST_USER_KEY, &split, 1, 750),
        ];
        let directory = directory();
        let listing = Listing::new(&directory, &shards);
        let expected = "\
SHARD  FROM               TO                 LEADER  REPLICAS          EPOCH  RECORDS   SHARE  BYTES
    1  (start)            public.film        1/a     1/a 2/b(learner)  4.1        900       -   10 B
    2  public.film        public.film (500)  1/a     1/a 2/b(learner)  4.1        750  75.0 %   10 B
    3  public.film (500)  keyspace#2         2/b     1/a 2/b(learner)  4.1        250  25.0 %   10 B
    4  keyspace#2         (end)              none    1/a 2/b(learner)  4.1          0   0.0 %   10 B
";
        assert_eq!(listing.text(), expected);
        let json = listing.json(true);
        assert_eq!(json[1]["share_percent"], 75.0);
        assert_eq!(json[0]["share_percent"], Json::Null);
        assert_eq!(json[1]["to"], "public.film (500)");
        assert_eq!(json[1]["replicas"][1]["role"], "learner");
        assert_eq!(json[1]["records_are_exact"], true);
    }

    #[test]
    fn without_records_nothing_has_a_share() {
        let shards = [shard(2, &FIRST_USER_KEY, b"", 1, 0)];
        let empty = Directory::default();
        let listing = Listing::new(&empty, &shards);
        assert!(listing.text().contains("(users)"));
        assert_eq!(listing.json(false)[0]["share_percent"], Json::Null);
    }

    #[test]
    fn nodes_are_found_by_number_and_by_address() {
        let directory = directory();
        for name in ["2", "127.0.0.1:7302"] {
            assert_eq!(find_node(&directory, name).unwrap().node_id, 2);
        }
        let failure = find_node(&directory, "9").unwrap_err();
        assert_eq!(failure.status, Status::BadInput);
        assert!(failure.message.unwrap().contains("1 (127.0.0.1:7301)"));
    }
}
