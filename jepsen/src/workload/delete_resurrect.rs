//! Puts and deletes of a few keys, over many checkpoints.

use rand::Rng;

use super::{Actor, register};
use crate::history::{Action, Answer};

const KEYS: u64 = 6;

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        let key = actor.rng.random_range(0..KEYS);
        match actor.rng.random_range(0..10) {
            0..4 => drop(register::read(&actor, key).await),
            4..7 => drop(register::write(&actor, key).await),
            _ => delete(&actor, key).await,
        }
    }
}

async fn delete(actor: &Actor, key: u64) {
    let call = async {
        let version = actor.keyspace.delete(actor.key(key)).await?;
        Ok(Answer::Done {
            version: Some(version),
        })
    };
    actor.perform(Action::Delete { key }, call).await;
}
