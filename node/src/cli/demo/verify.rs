//! The end of the story: every replica is read whole and compared with the ledger and with the others.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use reelkv_client::Admin;
use reelkv_proto::types::{KeyRange, SYSTEM_KEYSPACE, split_stored_key};
use reelkv_proto::v1;

use super::business::Business;
use super::counter::stored_value;
use super::data::{COUNTERS_LEN, RowIndex};
use super::ledger::Found;

/// Replicas come to rest within this time once nothing is written.
const QUIET_PATIENCE: Duration = Duration::from_secs(15);
const QUIET_INTERVAL: Duration = Duration::from_millis(250);
/// Rows read through the client as well, linearizably.
const SAMPLE: usize = 2_000;
const SAMPLE_AT_A_TIME: usize = 64;

/// What a stored key belongs to.
pub(super) enum Owner {
    Row(RowIndex),
    Counter(usize),
}

/// A record that the verifier is shown in place of the one a replica holds: the comparison must notice.
#[derive(Clone, Debug)]
pub(super) struct Swapped {
    key: Bytes,
    value: Bytes,
    version: u64,
}

/// Waits until all replicas of each shard have the same digest at the same index; names the shards that do not.
pub(super) async fn await_equal_digests(admin: &Admin, directory: &v1::Directory) -> Result<(), Vec<String>> {
    let deadline = crate::clock::now() + QUIET_PATIENCE;
    loop {
        let compared =
            futures::future::join_all(directory.shards.iter().map(|shard| compare(admin, shard))).await;
        let differing: Vec<_> = compared.into_iter().flatten().collect();
        if differing.is_empty() {
            return Ok(());
        }
        if crate::clock::now() > deadline {
            return Err(differing);
        }
        tokio::time::sleep(QUIET_INTERVAL).await;
    }
}

/// What is wrong with a shard's replicas, if anything.
async fn compare(admin: &Admin, shard: &v1::ShardDescriptor) -> Option<String> {
    let asked = shard
        .replicas
        .iter()
        .map(|replica| admin.replica_digest(&replica.addr, shard.shard_id));
    match try_join_all(asked).await {
        Ok(digests) if digests.windows(2).all(|pair| pair[0] == pair[1]) => None,
        Ok(digests) => {
            let seen: Vec<_> = digests
                .iter()
                .map(|digest| (digest.applied_index, digest.records))
                .collect();
            Some(format!(
                "shard {}: digests differ at (applied index, records) {seen:?}",
                shard.shard_id
            ))
        }
        Err(error) => Some(format!("shard {}: {error}", shard.shard_id)),
    }
}

/// Reads every replica of every shard and judges each row on each node.
///
/// `swapped` is shown in place of what the first node holds under its key.
pub(super) async fn read_replicas(
    admin: &Admin,
    business: &Business,
    directory: &v1::Directory,
    mut swapped: Option<Swapped>,
) -> anyhow::Result<()> {
    let owners = owners(business);
    for node in directory.nodes.iter().filter(|node| !node.retired) {
        let mut held = HashMap::new();
        for shard in &directory.shards {
            for replica in shard
                .replicas
                .iter()
                .filter(|replica| replica.node_id == node.node_id)
            {
                let read = read_replica(admin, shard, &replica.addr, &mut held).await;
                read.with_context(|| {
                    format!(
                        "reading the replica of shard {} on {}",
                        shard.shard_id, replica.addr
                    )
                })?;
            }
        }
        if let Some(swapped) = swapped.take() {
            let record = held
                .get_mut(&swapped.key)
                .context("the record to swap is not on the first node")?;
            (record.value, record.version) = (swapped.value, swapped.version);
        }
        judge(business, &node.addr, &owners, held);
    }
    Ok(())
}

async fn read_replica(
    admin: &Admin,
    shard: &v1::ShardDescriptor,
    addr: &str,
    held: &mut HashMap<Bytes, v1::Record>,
) -> anyhow::Result<()> {
    let range = KeyRange::of(shard);
    let mut pages = admin.read_replica(addr, shard.shard_id).await?;
    while let Some(page) = pages.try_next().await? {
        for record in page.records {
            let user = split_stored_key(&record.key).is_some_and(|(keyspace, _)| keyspace != SYSTEM_KEYSPACE);
            if !range.contains(&record.key) {
                anyhow::bail!("it holds a key outside its range");
            }
            if user {
                held.insert(record.key.clone(), record);
            }
        }
    }
    Ok(())
}

/// Every key that may be stored.
pub(super) fn owners(business: &Business) -> HashMap<Bytes, Owner> {
    let rows = (0..business.data.len()).map(|row| (business.stored_key(row), Owner::Row(row)));
    let counters =
        (0..COUNTERS_LEN).map(|counter| (business.stored_counter_key(counter), Owner::Counter(counter)));
    rows.chain(counters).collect()
}

/// Enters into the ledger what one node holds.
pub(super) fn judge(
    business: &Business,
    place: &str,
    owners: &HashMap<Bytes, Owner>,
    mut held: HashMap<Bytes, v1::Record>,
) {
    let mut books = business.books.lock();
    for (key, owner) in owners {
        let record = held.remove(key);
        match owner {
            Owner::Row(row) => {
                let found = record.map_or(Found::Absent, |record| {
                    business.found_value(*row, &record.value, record.version)
                });
                books
                    .ledger
                    .count_final(*row, found, |revision| business.deletes(*row, revision), place);
            }
            Owner::Counter(counter) => {
                let value = record.as_ref().map(|record| &record.value[..]);
                let Some(value) = stored_value(value) else {
                    books
                        .ledger
                        .wrong(format!("{place}: counter {counter} is no integer"));
                    continue;
                };
                let known = books.counters[*counter];
                if known.missing(value) > 0 {
                    let lost = format!("{place}: counter {counter} is {value}, known is {known:?}");
                    books.ledger.lose(business.data.len() + counter, lost);
                } else if known.exceeded_by(value) {
                    books.ledger.wrong(format!(
                        "{place}: counter {counter} is {value}, known is {known:?}"
                    ));
                }
            }
        }
    }
    if !held.is_empty() {
        books
            .ledger
            .wrong(format!("{place}: {} records that nobody wrote", held.len()));
    }
}

/// Reads a sample of the rows through the client.
pub(super) async fn read_sample(business: &Business, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let rows = (0..business.data.len()).choose_multiple(&mut rng, SAMPLE);
    let reads = futures::stream::iter(rows).map(|row| business.read(row));
    reads
        .buffer_unordered(SAMPLE_AT_A_TIME)
        .for_each(|_| async {})
        .await;
}

/// Enters a write that was never sent as acknowledged. For proving that the demo notices a lost write.
pub(super) fn invent_a_write(business: &Business) {
    let mut books = business.books.lock();
    let ledger = &mut books.ledger;
    // The write pretended must not be a deletion, for the row may be absent already.
    let pretended = |row: &RowIndex| {
        let last = ledger.settled(*row)?;
        (!business.deletes(*row, last.revision + 1)).then_some((*row, last))
    };
    let row = (0..business.data.len()).find_map(|row| pretended(&row));
    if let Some((row, last)) = row {
        let revision = ledger.begin_write(row);
        ledger.acknowledge(row, revision, last.version + 1);
    }
}

/// An acknowledged overwrite's previous value, in place of it. For proving that the demo notices a stale replica.
pub(super) fn previous_value(business: &Business) -> Option<Swapped> {
    let books = business.books.lock();
    (0..business.data.len()).find_map(|row| {
        let last = books.ledger.settled(row).filter(|last| last.revision > 0)?;
        // Both must be values: a deletion has no record that could be swapped.
        business.data.value(row, last.revision)?;
        let value = business.data.value(row, last.revision - 1)?;
        Some(Swapped {
            key: business.stored_key(row),
            value,
            version: last.version - 1,
        })
    })
}
