//! Unique elements, each a key of its own.

use rand::Rng;
use reelkv_client::{Error, ScanRange, TryStreamExt};

use super::{Actor, number, stored};
use crate::history::{Action, Answer};

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        match actor.rng.random_range(0..20) {
            0 => drop(read(&actor).await),
            _ => insert(&actor).await,
        }
    }
}

pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    actor.insist("the set", || read(&actor)).await?;
    Ok(())
}

async fn insert(actor: &Actor) {
    let element = actor.recorder.fresh_value();
    let call = async {
        let version = actor.keyspace.put(actor.key(element), stored(element)).await?;
        Ok(Answer::Done {
            version: Some(version),
        })
    };
    actor.perform(Action::Insert { element }, call).await;
}

async fn read(actor: &Actor) -> Option<Answer> {
    let call = async {
        let records = actor.keyspace.scan(ScanRange::all());
        let elements = records.map_ok(|record| number(&record.value));
        Ok::<_, Error>(Answer::List(elements.try_collect().await?))
    };
    actor.perform(Action::ReadSet, call).await
}
