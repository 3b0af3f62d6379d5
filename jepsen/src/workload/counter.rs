//! Additions to one counter per shard.

use rand::Rng;

use super::Actor;
use crate::history::{Action, Answer};

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        let key = actor.rng.random_range(0..actor.shards);
        match actor.rng.random_range(0..4) {
            0 => drop(read(&actor, key).await),
            _ => {
                let delta = actor.rng.random_range(1..=5);
                add(&actor, key, delta).await;
            }
        }
    }
}

pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    for key in 0..actor.shards {
        actor
            .insist(&format!("counter {key}"), || read(&actor, key))
            .await?;
    }
    Ok(())
}

async fn add(actor: &Actor, key: u64, delta: i64) {
    let call = async { Ok(Answer::Sum(actor.keyspace.add(actor.key(key), delta).await?)) };
    actor.perform(Action::Add { key, delta }, call).await;
}

async fn read(actor: &Actor, key: u64) -> Option<Answer> {
    let call = async {
        let found = actor.keyspace.get(actor.key(key)).await?;
        let shown = found.map_or(0, |record| super::number(&record.value) as i64);
        Ok(Answer::Sum(shown))
    };
    actor.perform(Action::ReadCounter { key }, call).await
}
