//! Groups of keys that are always written together, and pages of scans over parts of them.

use rand::Rng;
use reelkv_client::{Batch, Error, ScanRange};

use super::{Actor, number, stored};
use crate::history::{Action, Answer};

/// Keys of a group; there is a group per shard.
const MEMBERS: u64 = 8;
/// Keys a page covers. Page number `MEMBERS / PAGE` covers them all.
const PAGE: u64 = 4;

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        let group = actor.rng.random_range(0..actor.shards);
        match actor.rng.random_range(0..2) {
            0 => write(&actor, group).await,
            _ => {
                let page = actor.rng.random_range(0..=MEMBERS / PAGE);
                drop(read(&actor, group, page).await);
            }
        }
    }
}

pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    for group in 0..actor.shards {
        for page in 0..=MEMBERS / PAGE {
            let what = format!("page {page} of group {group}");
            actor.insist(&what, || read(&actor, group, page)).await?;
        }
    }
    Ok(())
}

async fn write(actor: &Actor, group: u64) {
    let value = actor.recorder.fresh_value();
    let put = |batch: Batch, member| batch.put(actor.member_key(group, member), stored(value));
    let call = async {
        let version = actor.keyspace.batch((0..MEMBERS).fold(Batch::new(), put)).await?;
        Ok(Answer::Done {
            version: Some(version),
        })
    };
    actor.perform(Action::WriteGroup { group, value }, call).await;
}

async fn read(actor: &Actor, group: u64, page: u64) -> Option<Answer> {
    let (first, end) = match page < MEMBERS / PAGE {
        true => (page * PAGE, (page + 1) * PAGE),
        false => (0, MEMBERS),
    };
    let call = async {
        let range = ScanRange::between(actor.member_key(group, first), actor.member_key(group, end));
        let found = actor.keyspace.scan_page(range).await?;
        let values: Vec<u64> = found.records.iter().map(|record| number(&record.value)).collect();
        // Some keys of a group and not the others is no state either.
        let missing = (values.len() as u64..end - first).map(|_| 0);
        let is_whole = values.is_empty() || values.len() as u64 == end - first;
        Ok::<_, Error>(Answer::List(match is_whole {
            true => values,
            false => values.iter().copied().chain(missing).collect(),
        }))
    };
    actor.perform(Action::ReadPage { group, page }, call).await
}
