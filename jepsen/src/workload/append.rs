//! Lists that grow by reading them and putting them back with one more element.

use rand::Rng;
use reelkv_client::Condition;

use super::{Actor, number};
use crate::history::{Action, Answer};

const LISTS: u64 = 6;

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        let key = actor.rng.random_range(0..LISTS);
        match actor.rng.random_range(0..3) {
            0 => drop(read(&actor, key).await),
            _ => append(&actor, key).await,
        }
    }
}

pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    for key in 0..LISTS {
        actor.insist(&format!("list {key}"), || read(&actor, key)).await?;
    }
    Ok(())
}

async fn append(actor: &Actor, key: u64) {
    let Ok(found) = actor.keyspace.get(actor.key(key)).await else {
        return;
    };
    let element = actor.recorder.fresh_value();
    let condition = match &found {
        Some(record) => Condition::Version(record.version),
        None => Condition::Absent,
    };
    let mut list = found.map_or_else(Vec::new, |record| record.value.to_vec());
    list.extend(element.to_be_bytes());
    let call = async {
        let put = actor.keyspace.put_if(actor.key(key), list, condition);
        Ok(Answer::Done {
            version: Some(put.await?),
        })
    };
    actor.perform(Action::Append { key, element }, call).await;
}

async fn read(actor: &Actor, key: u64) -> Option<Answer> {
    let call = async {
        let found = actor.keyspace.get(actor.key(key)).await?;
        let list = found.map_or_else(Vec::new, |record| record.value.chunks(8).map(number).collect());
        Ok(Answer::List(list))
    };
    actor.perform(Action::ReadList { key }, call).await
}
