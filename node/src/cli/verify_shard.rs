//! `shard verify`: has the voters of shards compare all they hold, now.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reelkv_client::v1::{Directory, NodeDescriptor, VerifyShardResponse, VoterVerification};
use reelkv_client::{Admin, Error};
use reelkv_proto::types::ShardId;
use serde_json::{Value as Json, json};

use super::connect::ConnectArgs;
use super::failure::{Failure, Outcome, Status};
use super::output::{OutputArgs, Table, human_count, print, print_json, tell, verdict};

/// How long comparing one shard may take.
const SHARD_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Have the voters of shards compare all they hold, now
///
/// They do so by themselves every minute while anything changes. Whoever does not hold what a majority
/// holds repairs it. Exit status 0 when all voters of all shards hold the same, else 1.
#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    /// Numbers of the shards; all of them if none is given
    #[arg(value_name = "SHARD", value_parser = clap::value_parser!(u64).range(1..))]
    shards: Vec<ShardId>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn verify(args: VerifyArgs) -> Outcome {
    let admin = args.connect.client().await?.admin().with_timeout(SHARD_TIMEOUT);
    let directory = admin.directory().await?;
    let shards = wanted(&directory, args.shards)?;
    let found = compare(&admin, &shards).await;
    let findings: Vec<Finding> = found.iter().map(|(id, found)| Finding::new(*id, found)).collect();
    let printed = match args.output.json {
        true => print_json(&findings.iter().map(|finding| finding.json(&directory)).collect()),
        false => print(&text(&findings, &directory)),
    };
    match findings.iter().all(Finding::all_agree) {
        true => verdict(Status::Fine, printed),
        false => verdict(Status::No, printed),
    }
}

/// All shards, or those named; refused before anything is compared if one does not exist.
fn wanted(directory: &Directory, named: Vec<ShardId>) -> Result<Vec<ShardId>, Failure> {
    let known: Vec<ShardId> = directory.shards.iter().map(|shard| shard.shard_id).collect();
    if named.is_empty() {
        return Ok(known);
    }
    match named.iter().find(|id| !known.contains(id)) {
        None => Ok(named),
        Some(unknown) => {
            let known: Vec<String> = known.iter().map(ShardId::to_string).collect();
            let known = known.join(", ");
            Err(Failure::bad_input(format!(
                "there is no shard {unknown}; there are: {known}"
            )))
        }
    }
}

/// Compares one shard after the other. One that cannot be compared now is a finding, not the end.
async fn compare(admin: &Admin, shards: &[ShardId]) -> Vec<(ShardId, Result<VerifyShardResponse, Error>)> {
    let bar = std::io::stderr().is_terminal().then(|| bar(shards.len()));
    let mut found = Vec::with_capacity(shards.len());
    for (done, shard_id) in shards.iter().enumerate() {
        match &bar {
            Some(bar) => bar.set_position(done as u64),
            None => tell(&format!(
                "comparing shard {shard_id} ({} of {})",
                done + 1,
                shards.len()
            )),
        }
        found.push((*shard_id, admin.verify_shard(*shard_id).await));
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    found
}

fn bar(shards: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} shards, {elapsed}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(shards as u64).with_style(style)
}

/// What was found of one shard.
struct Finding<'f> {
    shard_id: ShardId,
    found: &'f Result<VerifyShardResponse, Error>,
}

impl<'f> Finding<'f> {
    fn new(shard_id: ShardId, found: &'f Result<VerifyShardResponse, Error>) -> Self {
        Self { shard_id, found }
    }

    fn all_agree(&self) -> bool {
        self.found.as_ref().is_ok_and(|found| {
            let agrees = |voter: &VoterVerification| voter.buckets_agreed == found.buckets;
            found.buckets > 0 && found.voters.iter().all(agrees)
        })
    }

    /// In a few words: who is wrong, or what is missing.
    fn says(&self, directory: &Directory) -> String {
        let found = match self.found {
            Ok(found) => found,
            Err(error) => return format!("not compared: {error}"),
        };
        if self.all_agree() {
            return "all voters hold the same".to_owned();
        }
        let mut parts = Vec::new();
        for voter in &found.voters {
            let name = node_name(directory, voter.node_id);
            if voter.buckets_differing > 0 {
                let (differing, all) = (voter.buckets_differing, found.buckets);
                parts.push(format!(
                    "{name} differs in {differing} of {all} pieces and repairs them"
                ));
            } else if !voter.answered {
                parts.push(format!("{name} did not answer"));
            } else if voter.buckets_agreed < found.buckets && found.buckets_undecided == 0 {
                parts.push(format!("{name} could not be compared in all pieces"));
            }
        }
        if found.buckets_undecided > 0 {
            let undecided = found.buckets_undecided;
            parts.push(format!(
                "in {undecided} pieces no majority holds the same: nothing was changed, see `node status`"
            ));
        }
        if found.buckets_unproven > 0 {
            let unproven = found.buckets_unproven;
            parts.push(format!("in {unproven} pieces too few voters have a say"));
        }
        parts.join("; ")
    }

    fn json(&self, directory: &Directory) -> Json {
        let found = match self.found {
            Ok(found) => found,
            Err(error) => {
                return json!({"shard_id": self.shard_id, "agrees": false, "error": error.to_string()});
            }
        };
        let voters = found.voters.iter().map(|voter| {
            json!({
                "node_id": voter.node_id,
                "addr": node(directory, voter.node_id).map(|node| node.addr.as_str()),
                "replica_id": voter.replica_id,
                "answered": voter.answered,
                "buckets_agreed": voter.buckets_agreed,
                "buckets_differing": voter.buckets_differing,
            })
        });
        json!({
            "shard_id": self.shard_id,
            "agrees": self.all_agree(),
            "records": found.records,
            "buckets": found.buckets,
            "buckets_undecided": found.buckets_undecided,
            "buckets_unproven": found.buckets_unproven,
            "voters": voters.collect::<Vec<_>>(),
        })
    }
}

fn text(findings: &[Finding<'_>], directory: &Directory) -> String {
    let mut table = Table::new(&["#SHARD", "#RECORDS", "#PIECES", "#VOTERS", "RESULT"]);
    for finding in findings {
        let found = finding.found.as_ref().ok();
        let figure = |figure: Option<u64>| figure.map_or("-".to_owned(), human_count);
        table.row([
            finding.shard_id.to_string(),
            figure(found.map(|found| found.records)),
            figure(found.map(|found| found.buckets)),
            figure(found.map(|found| found.voters.len() as u64)),
            finding.says(directory),
        ]);
    }
    table.text()
}

fn node(directory: &Directory, node_id: u64) -> Option<&NodeDescriptor> {
    directory.nodes.iter().find(|node| node.node_id == node_id)
}

fn node_name(directory: &Directory, node_id: u64) -> String {
    match node(directory, node_id) {
        Some(node) => format!("node {node_id} ({})", node.addr),
        None => format!("node {node_id}"),
    }
}

#[cfg(test)]
mod tests {
    use reelkv_client::v1::ShardDescriptor;

    use super::*;

    fn directory() -> Directory {
        let shard = |shard_id| ShardDescriptor {
            shard_id,
            ..Default::default()
        };
        let node = |node_id: u64| NodeDescriptor {
            node_id,
            addr: format!("127.0.0.1:730{node_id}"),
            ..Default::default()
        };
        Directory {
            shards: vec![shard(1), shard(4)],
            nodes: vec![node(1), node(2), node(3)],
            ..Default::default()
        }
    }

    fn voter(node_id: u64, answered: bool, agreed: u64, differing: u64) -> VoterVerification {
        VoterVerification {
            node_id,
            replica_id: node_id,
            answered,
            buckets_agreed: agreed,
            buckets_differing: differing,
        }
    }

    fn says(found: VerifyShardResponse) -> String {
        Finding::new(4, &Ok(found)).says(&directory())
    }

    #[test]
    fn a_shard_that_does_not_exist_is_refused_with_those_that_do() {
        assert_eq!(wanted(&directory(), vec![]).unwrap(), [1, 4]);
        assert_eq!(wanted(&directory(), vec![4]).unwrap(), [4]);
        let refused = wanted(&directory(), vec![4, 9]).unwrap_err();
        assert_eq!(refused.status, Status::BadInput);
        assert_eq!(
            refused.message.as_deref(),
            Some("there is no shard 9; there are: 1, 4")
        );
    }

    #[test]
    fn the_result_says_who_is_wrong_and_what_is_missing() {
        let of_three = |voters: [VoterVerification; 3]| VerifyShardResponse {
            buckets: 5,
            voters: voters.to_vec(),
            ..Default::default()
        };
        let fine = || voter(1, true, 5, 0);
        assert_eq!(
            says(of_three([fine(), fine(), fine()])),
            "all voters hold the same"
        );
        assert_eq!(
            says(of_three([fine(), voter(2, true, 4, 1), fine()])),
            "node 2 (127.0.0.1:7302) differs in 1 of 5 pieces and repairs them"
        );
        assert_eq!(
            says(of_three([fine(), fine(), voter(3, false, 0, 0)])),
            "node 3 (127.0.0.1:7303) did not answer"
        );
        let undecided = VerifyShardResponse {
            buckets_undecided: 1,
            ..of_three([voter(1, true, 4, 0), voter(2, true, 4, 0), voter(3, true, 4, 0)])
        };
        assert!(says(undecided).starts_with("in 1 pieces no majority"));
        let nothing = Finding::new(4, &Ok(VerifyShardResponse::default())).all_agree();
        assert!(!nothing, "comparing nothing proves nothing");
    }
}
