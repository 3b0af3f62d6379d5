//! Damage to stored records is found, read around and repaired in place: the replica keeps its vote and
//! its leadership, and clients notice nothing.
//!
//! Every page is one story in virtual time on a simulated cluster of three nodes, told for several
//! seeds: `REELKV_PAGE_SEEDS=50` sets how many (default 3), `REELKV_SEED=7` runs that one alone.

#[allow(dead_code)] // other pages use other parts of the stage
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use reelkv::clock::now;
use reelkv::storage::TreeId;
use reelkv_proto::types::split_stored_key;
use reelkv_proto::v1::{self, response};
use world::{VICTIM, World, page};

#[test]
fn a_leader_reads_around_a_bad_record_and_leads_on() {
    page(
        "a_leader_reads_around_a_bad_record_and_leads_on",
        |mut world| async move {
            world.settle().await;
            let before = world.leaderships().await?;
            let mut damaged = Vec::new();
            for (shard_id, (position, _)) in &before {
                damaged.push((*position, damage(&world, *position, *shard_id, 0)?));
            }
            for (position, key) in &damaged {
                // One attempt, at the node with the damage.
                let addr = &world.client.addrs[*position];
                let read = world.client.once(addr, world.client.get_op(key)).await;
                let Some(response::Result::Get(read)) = read else {
                    anyhow::bail!("a read of {key:?} was answered by {read:?}");
                };
                let found = read.record.map(|record| record.value);
                ensure!(
                    found.as_ref() == world.acknowledged.get(key),
                    "{key:?} is {found:?}"
                );
            }
            world.write(30).await?;
            world.ends_well().await?;
            let after = world.leaderships().await?;
            ensure!(after == before, "leaders were {before:?} and are {after:?}");
            for position in 0..world.client.addrs.len() {
                told_and_repaired(&world, position, &before).await?;
            }
            Ok(())
        },
    );
}

#[test]
fn different_records_bad_on_every_replica_are_all_repaired() {
    page(
        "different_records_bad_on_every_replica_are_all_repaired",
        |mut world| async move {
            world.settle().await;
            let shards: Vec<u64> = world.leaderships().await?.into_keys().collect();
            let at_rest = world.seed % 2 == 1;
            if at_rest {
                for position in 0..3 {
                    ensure!(world.cluster.crash(position), "it was off");
                }
            }
            for shard_id in shards {
                let mut keys = BTreeSet::new();
                for position in 0..3 {
                    keys.insert(damage(&world, position, shard_id, position as u64)?);
                }
                ensure!(keys.len() == 3, "different records: {keys:?}");
            }
            if at_rest {
                for position in 0..3 {
                    world.cluster.start_node(position).await?;
                }
            }
            world.read_all_through(&world.client.addrs).await?;
            world.ends_well().await
        },
    );
}

/// Nothing is made up for a record that no replica can prove, and nothing else waits for it.
#[test]
fn a_record_bad_on_every_replica_is_waited_for_and_named() {
    page(
        "a_record_bad_on_every_replica_is_waited_for_and_named",
        |mut world| async move {
            world.settle().await;
            let shard_id = *world.leaderships().await?.keys().next().context("a data shard")?;
            let lost = damage_everywhere(&world, shard_id)?;
            for round in 0..40 {
                let addr = &world.client.addrs[round % 3];
                let read = world.client.once(addr, world.client.get_op(&lost)).await;
                ensure!(read.is_none(), "a lost record was answered by {read:?}");
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            let mut others = world.acknowledged.clone();
            others.remove(&lost);
            std::mem::swap(&mut others, &mut world.acknowledged);
            world.read_all_through(&world.client.addrs).await?;
            world.write(20).await?;
            for position in 0..3 {
                let status = world.node_status(position).await?;
                let open: Vec<_> = status
                    .damage
                    .iter()
                    .filter(|event| event.repaired_at_ms == 0)
                    .collect();
                ensure!(
                    open.iter()
                        .any(|event| event.shard_id == shard_id && event.structure == "tree"),
                    "node {position} tells {open:?}"
                );
            }
            Ok(())
        },
    );
}

/// Whoever knows what a lost record should say writes it again, and it is served from then on. Of keys
/// beside it, which may have been lost with it, still nothing is made up.
#[test]
fn a_record_bad_on_every_replica_is_served_once_it_is_written_again() {
    page(
        "a_record_bad_on_every_replica_is_served_once_it_is_written_again",
        |mut world| async move {
            world.settle().await;
            let shard_id = *world.leaderships().await?.keys().next().context("a data shard")?;
            let lost = damage_everywhere(&world, shard_id)?;
            let beside = lost.slice(..lost.len() - 1);
            let addrs = world.client.addrs.clone();
            for round in 0..40 {
                for key in [&lost, &beside] {
                    let read = world
                        .client
                        .once(&addrs[round % 3], world.client.get_op(key))
                        .await;
                    ensure!(read.is_none(), "{key:?} was answered by {read:?}");
                }
                // Replicas are at different entries while they ask each other.
                world.write(2).await?;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            let value = Bytes::from_static(b"what it should say");
            let put = world.client.put_op(&lost, &value);
            world.client.insist(&addrs, put, Duration::from_secs(10)).await?;
            world.acknowledged.insert(lost, value);
            world.read_all_through(&addrs).await?;
            // Checkpoints and restarts keep it.
            world.settle().await;
            for position in 0..3 {
                ensure!(world.cluster.crash(position), "it was off");
            }
            for position in 0..3 {
                world.cluster.start_node(position).await?;
            }
            world.read_all_through(&addrs).await?;
            world.write(20).await?;
            for addr in &addrs {
                let read = world.client.once(addr, world.client.get_op(&beside)).await;
                ensure!(read.is_none(), "{beside:?} was answered by {read:?}");
            }
            Ok(())
        },
    );
}

/// Entries go on being applied while another tree is filled, and it holds them in the end.
#[test]
fn a_tree_is_refilled_under_load() {
    page("a_tree_is_refilled_under_load", |mut world| async move {
        world.write(300).await?;
        world.settle().await;
        world.lose_all_trees()?;
        world.write(100).await?;
        world.restart(VICTIM).await?;
        let deadline = now() + Duration::from_secs(60);
        while !world.is_trusted().await? {
            ensure!(now() < deadline, "not refilled while others write");
            world.write(5).await?;
        }
        world.ends_well().await
    });
}

/// Flips a bit in a stored record of a shard's replica; returns the user's key.
fn damage(world: &World, position: usize, shard_id: u64, pick: u64) -> anyhow::Result<Bytes> {
    let device = world.cluster.device(position);
    let of_shard = |tree: &TreeId| tree.shard_id == shard_id;
    let tree = device.trees().into_iter().filter(of_shard).max();
    let stored = device.damage_record(tree.context("the shard has a tree")?, pick);
    let stored = stored.context("it holds records")?;
    let (_, key) = split_stored_key(&stored).context("a stored key")?;
    Ok(Bytes::copy_from_slice(key))
}

/// Flips a bit in the same record of all of a shard's replicas; returns the user's key.
fn damage_everywhere(world: &World, shard_id: u64) -> anyhow::Result<Bytes> {
    let keys: BTreeSet<Bytes> = (0..3)
        .map(|position| damage(world, position, shard_id, 0))
        .collect::<anyhow::Result<_>>()?;
    ensure!(keys.len() == 1, "the same record: {keys:?}");
    keys.first().cloned().context("a key")
}

/// Every damage of a machine's node was told and is repaired; there was some if it led a shard.
async fn told_and_repaired(
    world: &World,
    position: usize,
    leaders: &BTreeMap<u64, (usize, u64)>,
) -> anyhow::Result<()> {
    let damage: Vec<v1::DamageEvent> = world.node_status(position).await?.damage;
    for shard_id in leaders
        .iter()
        .filter(|(_, (leader, _))| *leader == position)
        .map(|(id, _)| *id)
    {
        let told = damage
            .iter()
            .filter(|event| event.shard_id == shard_id && event.structure == "tree");
        ensure!(told.count() > 0, "nothing told of shard {shard_id}: {damage:#?}");
    }
    ensure!(
        damage.iter().all(|event| event.repaired_at_ms > 0),
        "not marked repaired: {damage:#?}"
    );
    Ok(())
}
