//! Puts and deletes over many checkpoints.
//!
//! Clients go from one window of keys to the next every second and come back after a while: a key that
//! was deleted is left alone long enough for checkpoints to be all that remembers it.

use rand::Rng;

use super::{Actor, register};
use crate::history::{Action, Answer};

/// Keys of a window.
const WINDOW: u64 = 6;
const WINDOWS: u64 = 8;

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        let second = actor.recorder.elapsed_us() / 1_000_000;
        let key = second % WINDOWS * WINDOW + actor.rng.random_range(0..WINDOW);
        match actor.rng.random_range(0..10) {
            0..4 => drop(register::read(&actor, key).await),
            4..7 => drop(register::write(&actor, key).await),
            _ => delete(&actor, key).await,
        }
    }
}

pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    register::read_all(&actor, WINDOWS * WINDOW).await
}

pub(super) async fn delete(actor: &Actor, key: u64) {
    let call = async {
        let version = actor.keyspace.delete(actor.key(key)).await?;
        Ok(Answer::Done {
            version: Some(version),
        })
    };
    actor.perform(Action::Delete { key }, call).await;
}
