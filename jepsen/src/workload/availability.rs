//! Probes of every shard at a fixed rate, whatever became of the probes before.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use reelkv::clock::now;

use super::{Actor, stored};
use crate::checker::Verdict;
use crate::checker::availability::{Limits, check};
use crate::history::{Action, Answer, Event};

const INTERVAL: Duration = Duration::from_millis(100);
/// How long a probe may take: what fails within it is an error that a service would have shown.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a shard may go without a successful probe while a clean quorum exists: a leader that
/// died is missed for at most twice the lease, its successor is elected and found by the clients.
const STALL_MAX_US: u64 = 5_000_000;

/// One client per shard.
pub(super) async fn client(actor: Actor) {
    let actor = Arc::new(actor.patient(PATIENCE));
    let mut probes = Vec::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    while now() < actor.until {
        ticks.tick().await;
        let actor = actor.clone();
        probes.push(tokio::spawn(async move { probe(&actor).await }));
    }
    join_all(probes).await;
}

pub(super) async fn finish(mut actor: Actor) -> anyhow::Result<()> {
    for shard in 0..actor.shards {
        actor.id = shard;
        actor.insist(&format!("shard {shard}"), || probe(&actor)).await?;
    }
    Ok(())
}

pub(super) fn judge(history: &[Event], clean_us: &[(u64, u64)]) -> Verdict {
    let limits = Limits {
        stall_max_us: STALL_MAX_US,
    };
    check(history, clean_us, limits).0
}

async fn probe(actor: &Actor) -> Option<Answer> {
    let shard = actor.id;
    let call = async {
        let value = actor.recorder.fresh_value();
        let version = actor.keyspace.put(actor.key(shard), stored(value)).await?;
        actor.keyspace.get(actor.key(shard)).await?;
        Ok(Answer::Done {
            version: Some(version),
        })
    };
    actor.perform(Action::Probe { shard }, call).await
}
