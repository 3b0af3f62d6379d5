//! Transfers between accounts of one shard.
//!
//! A transfer reads two accounts and writes both in one batch, under the condition that neither
//! has changed since: if it happens, what was read was one state. Balances are read by a scan.

use anyhow::Context;
use rand::Rng;
use reelkv_client::{Batch, Condition, Error, Record, ScanRange};

use super::Actor;
use crate::history::{Action, Answer};

/// Accounts of a group; there is a group per shard.
pub const ACCOUNTS: u64 = 6;
/// What a group's accounts hold together: the same each in the beginning.
pub const TOTAL: i64 = 600;

pub(super) async fn prepare(actor: Actor) -> anyhow::Result<()> {
    for group in 0..actor.shards {
        let share = (TOTAL / ACCOUNTS as i64).to_be_bytes().to_vec();
        let open = |batch: Batch, account| batch.put(actor.member_key(group, account), share.clone());
        let opened = actor.keyspace.batch((0..ACCOUNTS).fold(Batch::new(), open)).await;
        opened.with_context(|| format!("opening the accounts of group {group}"))?;
    }
    Ok(())
}

pub(super) async fn client(mut actor: Actor) {
    while actor.goes_on().await {
        let group = actor.rng.random_range(0..actor.shards);
        match actor.rng.random_range(0..3) {
            0 => drop(read(&actor, group).await),
            _ => transfer(&mut actor, group).await,
        }
    }
}

pub(super) async fn finish(actor: Actor) -> anyhow::Result<()> {
    for group in 0..actor.shards {
        actor
            .insist(&format!("group {group}"), || read(&actor, group))
            .await?;
    }
    Ok(())
}

async fn transfer(actor: &mut Actor, group: u64) {
    let from = actor.rng.random_range(0..ACCOUNTS);
    let to = (from + actor.rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
    let [from_key, to_key] = [from, to].map(|account| actor.member_key(group, account));
    let payer = actor.keyspace.get(&from_key).await;
    let payee = actor.keyspace.get(&to_key).await;
    let (Ok(Some(payer)), Ok(Some(payee))) = (payer, payee) else {
        return;
    };
    let amount = actor.rng.random_range(1..=20).min(balance(&payer));
    if amount <= 0 {
        return;
    }
    let after = |record: &Record, change: i64| (balance(record) + change).to_be_bytes().to_vec();
    let batch = Batch::new()
        .put_if(
            &from_key,
            after(&payer, -amount),
            Condition::Version(payer.version),
        )
        .put_if(&to_key, after(&payee, amount), Condition::Version(payee.version));
    let call = async {
        let version = actor.keyspace.batch(batch).await?;
        Ok(Answer::Done {
            version: Some(version),
        })
    };
    let action = Action::Transfer {
        group,
        from,
        to,
        amount,
    };
    actor.perform(action, call).await;
}

async fn read(actor: &Actor, group: u64) -> Option<Answer> {
    let call = async {
        let range = ScanRange::prefix(actor.key(group));
        let page = actor.keyspace.scan_page(range).await?;
        let account = |record: &Record| {
            let member = record.key[record.key.len().saturating_sub(8)..].try_into();
            (member.map_or(u64::MAX, u64::from_be_bytes), balance(record))
        };
        Ok::<_, Error>(Answer::Balances(page.records.iter().map(account).collect()))
    };
    actor.perform(Action::ReadBalances { group }, call).await
}

/// What an account holds; what is no amount is one that breaks every total.
fn balance(record: &Record) -> i64 {
    record.value[..]
        .try_into()
        .map_or(i64::MIN / 2, i64::from_be_bytes)
}
