//! Keys that expire, beside some that do not.
//!
//! Writers go from one window of keys to the next every two seconds; readers look at all of them, so
//! most keys are read before, at and after their time. One clock of the cluster may be wrong by any
//! amount: time is what most of a shard's clocks show.

use std::cell::Cell;
use std::time::Duration;

use anyhow::ensure;
use rand::Rng;
use reelkv_client::Condition;

use super::{Actor, delete_resurrect, number, register, stored};
use crate::history::{Action, Answer};
use crate::sim::EXPIRY_SWEEP_INTERVAL_MS;

/// Keys of a window.
const WINDOW: u64 = 6;
const WINDOWS: u64 = 8;
/// Times to live, in milliseconds.
const TTL_MIN_MS: u64 = 3_000;
const TTL_MAX_MS: u64 = 8_000;
/// Clocks differ by no more, the wrong one apart.
const CLOCKS_DIFFER_MS: u64 = 2_500;

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        let window = actor.recorder.elapsed_us() / 2_000_000 % WINDOWS;
        let key = window * WINDOW + actor.rng.random_range(0..WINDOW);
        let ttl_ms = actor.rng.random_range(TTL_MIN_MS..TTL_MAX_MS);
        match actor.rng.random_range(0..20) {
            0..10 => {
                let any = actor.rng.random_range(0..WINDOWS * WINDOW);
                register::read(&actor, any).await;
            }
            10..15 => write_for(&actor, key, ttl_ms).await,
            15..17 => take(&actor, key).await,
            17..19 => drop(register::write(&actor, key).await),
            _ => delete_resurrect::delete(&actor, key).await,
        }
    }
}

/// Reads everything once all times have come: then nothing is left of what expires.
pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    let past_ms = TTL_MAX_MS + CLOCKS_DIFFER_MS + 2 * EXPIRY_SWEEP_INTERVAL_MS;
    tokio::time::sleep(Duration::from_millis(past_ms)).await;
    for key in 0..WINDOWS * WINDOW {
        let expires = Cell::new(None);
        let reading = || read(&actor, key, &expires);
        actor.insist(&format!("key {key}"), reading).await?;
        ensure!(
            expires.get().is_none(),
            "key {key} is still there {past_ms} ms after the last write"
        );
    }
    Ok(())
}

/// Reads a key, and when it expires.
async fn read(actor: &Actor, key: u64, expires: &Cell<Option<u64>>) -> Option<Answer> {
    let call = async {
        let found = actor.keyspace.get(actor.key(key)).await?;
        expires.set(found.as_ref().and_then(|record| record.expires_at_ms));
        Ok(Answer::Value {
            value: found.as_ref().map_or(0, |record| number(&record.value)),
            version: found.map(|record| record.version),
        })
    };
    actor.perform(Action::Read { key }, call).await
}

async fn write_for(actor: &Actor, key: u64, ttl_ms: u64) {
    let value = actor.recorder.fresh_value();
    let call = async {
        let ttl = Duration::from_millis(ttl_ms);
        let put = actor.keyspace.put_with_ttl(actor.key(key), stored(value), ttl);
        Ok(Answer::Done {
            version: Some(put.await?),
        })
    };
    actor.perform(Action::WriteFor { key, value, ttl_ms }, call).await;
}

/// Writes a key if it is absent, be it that it was deleted or that it has expired.
async fn take(actor: &Actor, key: u64) {
    let new = actor.recorder.fresh_value();
    let call = async {
        let put = actor
            .keyspace
            .put_if(actor.key(key), stored(new), Condition::Absent);
        Ok(Answer::Done {
            version: Some(put.await?),
        })
    };
    let expected = 0;
    actor.perform(Action::WriteIf { key, expected, new }, call).await;
}
