//! Reads, writes and conditional writes of a few keys.

use rand::Rng;
use reelkv_client::Condition;

use super::{Actor, number, stored};
use crate::history::{Action, Answer};

const KEYS: u64 = 6;

/// A key's value and version as a client last saw them; value 0 when it was absent.
pub(super) type Seen = Option<(u64, u64)>;

pub(super) async fn client(mut actor: Actor) {
    let mut seen: [Seen; KEYS as usize] = [None; KEYS as usize];
    while actor.goes_on().await {
        let key = actor.rng.random_range(0..KEYS);
        let last = &mut seen[key as usize];
        let newest = match (actor.rng.random_range(0..10), *last) {
            (5..8, _) => write(&actor, key).await,
            (8..10, Some(last)) => write_if(&actor, key, last).await,
            _ => read(&actor, key).await,
        };
        *last = newest.or(*last);
    }
}

pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    read_all(&actor, KEYS).await
}

/// Reads each of so many keys until it is answered.
pub(super) async fn read_all(actor: &Actor, keys: u64) -> anyhow::Result<()> {
    for key in 0..keys {
        let reading = || read_answer(actor, key);
        actor.insist(&format!("key {key}"), reading).await?;
    }
    Ok(())
}

async fn read_answer(actor: &Actor, key: u64) -> Option<Answer> {
    let call = async {
        let found = actor.keyspace.get(actor.key(key)).await?;
        Ok(Answer::Value {
            value: found.as_ref().map_or(0, |record| number(&record.value)),
            version: found.map(|record| record.version),
        })
    };
    actor.perform(Action::Read { key }, call).await
}

pub(super) async fn read(actor: &Actor, key: u64) -> Seen {
    match read_answer(actor, key).await? {
        Answer::Value { value, version } => Some((value, version.unwrap_or(0))),
        _ => None,
    }
}

pub(super) async fn write(actor: &Actor, key: u64) -> Seen {
    let value = actor.recorder.fresh_value();
    let call = async {
        let version = actor.keyspace.put(actor.key(key), stored(value)).await?;
        Ok(Answer::Done {
            version: Some(version),
        })
    };
    written(value, actor.perform(Action::Write { key, value }, call).await)
}

async fn write_if(actor: &Actor, key: u64, (expected, version): (u64, u64)) -> Seen {
    let new = actor.recorder.fresh_value();
    let condition = match expected {
        0 => Condition::Absent,
        _ => Condition::Version(version),
    };
    let call = async {
        let put = actor.keyspace.put_if(actor.key(key), stored(new), condition);
        Ok(Answer::Done {
            version: Some(put.await?),
        })
    };
    let action = Action::WriteIf { key, expected, new };
    written(new, actor.perform(action, call).await)
}

fn written(value: u64, answer: Option<Answer>) -> Seen {
    match answer? {
        Answer::Done { version } => Some((value, version?)),
        _ => None,
    }
}
