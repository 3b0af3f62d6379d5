//! `shard recover`.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgAction, Args};
use reelkv_proto::types::ShardId;
use serde_json::{Value as Json, json};

use super::failure::{Failure, Outcome, Status};
use super::output::{Table, human_count, print, print_json, tell};
use crate::clock::SystemClock;
use crate::disk::RealDisk;
use crate::rpc::GrpcTransport;
use crate::server::recover::{Examined, RecoverOptions, Refused, Report, VoterReport, VoterState, examine};
use crate::shard::LogId;

/// Have one replica serve a shard that lost a majority of its voters for good; the last resort
///
/// Works on the data directory of a node that does not run. Without --unsafe it only says what this
/// replica has and what would be lost.
#[derive(Args, Clone, Debug)]
pub(crate) struct RecoverArgs {
    /// Data directory of the node, which must not run
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Number of the shard
    #[arg(long, value_name = "SHARD", value_parser = clap::value_parser!(u64).range(1..))]
    shard: ShardId,
    /// Make this replica the shard's only voter: what the others acknowledged and this one does not have
    /// is lost. To be given twice for the meta shard
    #[arg(long = "unsafe", action = ArgAction::Count)]
    is_unsafe: u8,
    /// Do not ask for the shard's number to be typed
    #[arg(long, requires = "is_unsafe")]
    yes: bool,
    /// Ask no other node: all other voters are declared lost
    #[arg(long)]
    offline: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::bad_input(refused.to_string())
    }
}

pub(crate) async fn recover(args: RecoverArgs) -> Outcome {
    let options = RecoverOptions {
        data_dir: args.data_dir.clone(),
        shard_id: args.shard,
        offline: args.offline,
    };
    let transport = Arc::new(GrpcTransport::new());
    let examined = examine(options, Arc::new(RealDisk), Arc::new(SystemClock), transport).await?;
    let done = decide(&args, &examined);
    let report = examined.report().clone();
    let recovered = match done {
        Ok(true) => match examined.carry_out().await {
            Ok(()) => true,
            Err(error) => {
                let why = format!("shard {}: not recovered: {error}; run it again", args.shard);
                return Err(Failure::no(why));
            }
        },
        undone => {
            examined.close().await;
            undone?
        }
    };
    if args.json {
        print_json(&report_json(&report, recovered))?;
    }
    if recovered {
        tell(&format!(
            "replica {} is the only voter of shard {}; start its node",
            report.replica_id, report.shard_id
        ));
    }
    Ok(Status::Fine)
}

/// Says what is at stake; whether it is to be done.
fn decide(args: &RecoverArgs, examined: &Examined) -> Result<bool, Failure> {
    let report = examined.report();
    if !args.json {
        print(&report_text(report))?;
    }
    if args.is_unsafe == 0 {
        if !args.json {
            tell("nothing was changed; --unsafe does it");
        }
        return Ok(false);
    }
    if report.is_meta() && args.is_unsafe < 2 {
        return Err(Failure::bad_input(
            "shard 1 is the meta shard, the map of the whole cluster: give --unsafe twice; nothing was changed",
        ));
    }
    if !args.yes {
        confirm(args.shard, &mut io::stdin().lock(), io::stdin().is_terminal())?;
    }
    Ok(true)
}

/// Has the shard's number typed.
fn confirm(shard: ShardId, input: &mut dyn BufRead, is_terminal: bool) -> Result<(), Failure> {
    if is_terminal {
        tell(&format!("type the number of the shard, {shard}, to do it:"));
    }
    let mut line = String::new();
    let read = input.read_line(&mut line);
    match read.is_ok() && line.trim().parse() == Ok(shard) {
        true => Ok(()),
        false => Err(Failure::bad_input(format!(
            "not confirmed: the number of the shard, {shard}, was not typed; nothing was changed"
        ))),
    }
}

fn entry(entry: Option<LogId>) -> String {
    entry.map_or_else(|| "none".to_owned(), |entry| entry.to_string())
}

fn report_text(report: &Report) -> String {
    let name = match report.is_meta() {
        true => " (the meta shard: the map of the cluster)",
        false => "",
    };
    let mut text = format!(
        "shard      {}{name}\n\
         replica    {} on node {}\n\
         last entry {}\n\
         committed  {} or later, as far as this replica knows\n\
         tree       at {}, {} records; what follows is applied from the log\n",
        report.shard_id,
        report.replica_id,
        report.node_id,
        entry(report.last),
        entry(report.committed),
        entry(report.checkpoint),
        human_count(report.records),
    );
    if let Some((count, first)) = report.torn {
        text.push_str(&format!(
            "torn       {count} entries from {first} on cannot be read, perhaps torn by a power cut: they are cut\n"
        ));
    }
    for damage in &report.log_damage {
        text.push_str(&format!("damage     {damage}\n"));
    }
    let mut table = Table::new(&["#VOTER", "#NODE", "ADDRESS", "STATE"]);
    for voter in &report.voters {
        table.row([
            voter.replica_id.to_string(),
            voter.node_id.to_string(),
            voter.addr.clone(),
            voter_text(voter),
        ]);
    }
    text.push_str(&format!("\n{}\n{}", table.text(), at_stake(report)));
    text
}

fn voter_text(voter: &VoterReport) -> String {
    match &voter.state {
        VoterState::This => "this one".to_owned(),
        VoterState::There { state, last } => format!("{state}, last entry {}; left out", entry(*last)),
        VoterState::Gone => "not on its node any more".to_owned(),
        VoterState::Lost { why } => format!("declared lost: {why}"),
    }
}

/// What whoever says --unsafe agrees to.
fn at_stake(report: &Report) -> String {
    let last = entry(report.last);
    let mut text = format!(
        "With --unsafe this replica becomes the only voter of shard {}:\n\
         - writes acknowledged by the others beyond entry {last} are lost, and no one can know how many;\n\
         - entries up to {last} that were never acknowledged may come into effect;\n",
        report.shard_id,
    );
    let nodes = report.lost_nodes();
    if !nodes.is_empty() {
        let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "- nodes {} are declared lost for good, with all they hold, of other shards too: started again with\n  \
               their old directories, they set their data aside and join as new ones. If they cannot reach this node\n  \
               then, and are a majority, they serve another past of the shard: never start them again;\n",
            nodes.join(", ")
        ));
    }
    text.push_str("- until other replicas are added, the shard lives on this disk alone.\n");
    text
}

fn report_json(report: &Report, recovered: bool) -> Json {
    let id = |entry: Option<LogId>| entry.map(|entry| json!({"term": entry.term, "index": entry.index}));
    let voter = |voter: &VoterReport| {
        let (state, last, why) = match &voter.state {
            VoterState::This => ("this", report.last, None),
            VoterState::There { last, .. } => ("there", *last, None),
            VoterState::Gone => ("gone", None, None),
            VoterState::Lost { why } => ("lost", None, Some(why)),
        };
        json!({
            "replica_id": voter.replica_id,
            "node_id": voter.node_id,
            "addr": voter.addr,
            "state": state,
            "last_entry": id(last),
            "why": why,
        })
    };
    json!({
        "outcome": if recovered { "recovered" } else { "reported" },
        "shard_id": report.shard_id,
        "is_meta": report.is_meta(),
        "replica_id": report.replica_id,
        "node_id": report.node_id,
        "last_entry": id(report.last),
        "committed_entry": id(report.committed),
        "checkpoint_entry": id(report.checkpoint),
        "records": report.records,
        "torn_entries": report.torn.map_or(0, |(count, _)| count),
        "log_damage": report.log_damage,
        "voters": report.voters.iter().map(voter).collect::<Vec<_>>(),
        "lost_nodes": report.lost_nodes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let voter = |replica_id, state| VoterReport {
            replica_id,
            node_id: replica_id,
            addr: format!("127.0.0.1:730{replica_id}"),
            state,
        };
        let lost = VoterState::Lost {
            why: "connection refused".to_owned(),
        };
        Report {
            shard_id: 5,
            replica_id: 1,
            node_id: 1,
            last: Some(LogId::new(3, 120)),
            committed: Some(LogId::new(3, 118)),
            checkpoint: Some(LogId::new(3, 100)),
            records: 1_500,
            torn: Some((2, LogId::new(3, 121))),
            log_damage: vec!["00000001.wal at 0: bad".to_owned()],
            voters: vec![
                voter(1, VoterState::This),
                voter(2, lost),
                voter(3, VoterState::Gone),
            ],
            highest_term: 3,
        }
    }

    #[test]
    fn the_report_says_what_is_here_and_what_would_be_lost() {
        let text = report_text(&example());
        for expected in [
            "last entry T3.120\n",
            "committed  T3.118 or later",
            "tree       at T3.100, 1,500 records",
            "torn       2 entries from T3.121 on",
            "declared lost: connection refused",
            "acknowledged by the others beyond entry T3.120 are lost, and no one can know how many",
            "nodes 2 are declared lost for good",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        let json = report_json(&example(), false);
        assert_eq!(json["outcome"], "reported");
        assert_eq!(json["last_entry"]["index"], 120);
        assert_eq!(json["lost_nodes"], json!([2]));
        assert_eq!(json["voters"][2]["state"], "gone");
    }

    #[test]
    fn only_the_number_of_the_shard_confirms() {
        let typed = |line: &str| confirm(5, &mut line.as_bytes(), false);
        assert!(typed("5\n").is_ok());
        assert!(typed(" 5 ").is_ok());
        for line in ["", "\n", "yes\n", "6\n", "5 6\n"] {
            let failure = typed(line).unwrap_err();
            assert_eq!(failure.status, Status::BadInput, "{line:?}");
            assert!(failure.message.unwrap().contains("nothing was changed"));
        }
    }
}
