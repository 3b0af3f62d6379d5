//! What checksums bless is found all the same: the voters of a shard compare what they hold, a majority
//! says who is wrong, and that one repairs it.
//!
//! Every page is one story in virtual time on a simulated cluster of three nodes, told for several
//! seeds: `REELKV_PAGE_SEEDS=50` sets how many (default 3), `REELKV_SEED=7` runs that one alone.

#[allow(dead_code)] // other pages use other parts of the stage
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use reelkv::clock::now;
use reelkv::storage::TreeId;
use reelkv_proto::types::{KeyRange, split_stored_key, stored_key};
use reelkv_proto::v1;
use world::{World, page};

/// The voters are compared at least once in this time, without being asked to.
const CYCLE: Duration = Duration::from_secs(130);

#[test]
fn a_record_lost_without_a_trace_is_found_by_itself_and_brought_back() {
    page(
        "a_record_lost_without_a_trace_is_found_by_itself_and_brought_back",
        |mut world| async move {
            world.settle().await;
            let mut lost = Vec::new();
            for (shard_id, leader) in leaders(&world).await? {
                let follower = (leader + 1) % 3;
                lost.push((
                    shard_id,
                    follower,
                    forget(&world, follower, shard_id, world.seed)?,
                ));
            }
            tokio::time::sleep(CYCLE).await;
            for (shard_id, follower, key) in lost {
                told_and_repaired(&world, follower, shard_id).await?;
                ensure!(
                    holds(&world, follower, shard_id, &key).await?,
                    "{key:?} is not back on node {follower}"
                );
            }
            ensure!(world.cluster.told_to_differ(0).await? > 0 || world.cluster.told_to_differ(1).await? > 0);
            world.ends_well().await
        },
    );
}

#[test]
fn a_leader_that_lost_a_record_hands_over_and_repairs_it() {
    page(
        "a_leader_that_lost_a_record_hands_over_and_repairs_it",
        |mut world| async move {
            world.settle().await;
            let before = leaders(&world).await?;
            for (shard_id, leader) in &before {
                let key = forget(&world, *leader, *shard_id, world.seed)?;
                let found = world.cluster.verify(*shard_id, Duration::from_secs(10)).await;
                // It may be cut short by the change of leaders.
                if let Ok(found) = found {
                    ensure!(found.buckets_undecided == 0, "{found:?}");
                }
                let read = world
                    .client
                    .get(&world.client.addrs, &key, Duration::from_secs(10));
                let read = read.await?;
                ensure!(
                    read.as_ref() == world.acknowledged.get(&key),
                    "{key:?} is read as {read:?}"
                );
                let after = leaders(&world).await?;
                ensure!(
                    after.get(shard_id) != Some(leader),
                    "shard {shard_id} is still led by node {leader}"
                );
                world.healthy().await?;
                told_and_repaired(&world, *leader, *shard_id).await?;
            }
            world.ends_well().await
        },
    );
}

/// Three voters, three opinions: nothing is changed, and the operator is told which keys wait.
#[test]
fn without_a_majority_nothing_is_changed_and_the_keys_are_named() {
    page(
        "without_a_majority_nothing_is_changed_and_the_keys_are_named",
        |world| async move {
            world.settle().await;
            let (shard_id, leader) = leaders(&world).await?.pop_first().context("a data shard")?;
            let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
            let lost_by_one = forget(&world, one, shard_id, 0)?;
            let lost_by_other = forget(&world, other, shard_id, 1)?;
            ensure!(lost_by_one != lost_by_other, "the same record was lost twice");
            for _ in 0..2 {
                let found = world.cluster.verify(shard_id, Duration::from_secs(10)).await?;
                ensure!(found.buckets_undecided > 0, "{found:?}");
                ensure!(
                    found.voters.iter().all(|voter| voter.buckets_differing == 0),
                    "{found:?}"
                );
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            ensure!(
                !holds(&world, one, shard_id, &lost_by_one).await?,
                "it was given something"
            );
            ensure!(
                holds(&world, one, shard_id, &lost_by_other).await?,
                "it lost something more"
            );
            let damage = world.node_status(leader).await?.damage;
            let named: Vec<_> = damage
                .iter()
                .filter(|event| event.shard_id == shard_id && event.structure == "digest")
                .collect();
            ensure!(named.len() == 1, "told {damage:#?}");
            ensure!(named[0].repaired_at_ms == 0 && named[0].action == "operator decides");
            Ok(())
        },
    );
}

/// Two copies of one wrong copy are no majority.
#[test]
fn what_came_from_a_peer_has_no_say_until_it_was_compared() {
    page(
        "what_came_from_a_peer_has_no_say_until_it_was_compared",
        |world| async move {
            world.settle().await;
            let (shard_id, right) = leaders(&world).await?.pop_first().context("a data shard")?;
            let (wrong, copy) = ((right + 1) % 3, (right + 2) % 3);
            let key = forget(&world, wrong, shard_id, world.seed)?;
            // One of the two others gives it its records: the wrong one, for some seeds.
            let device = world.cluster.device(copy).clone();
            let tree = tree_of(&world, copy, shard_id)?;
            ensure!(
                device.damage_record(tree, world.seed).is_some(),
                "it holds records"
            );
            let deadline = now() + Duration::from_secs(60);
            while device.trees().contains(&tree) {
                ensure!(now() < deadline, "its tree was not repaired");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(CYCLE).await;
            ensure!(
                holds(&world, right, shard_id, &key).await?,
                "two copies of one wrong copy took {key:?} from the one who held it"
            );
            ensure!(
                world.cluster.told_to_differ(right).await? <= 1,
                "it was told to be wrong"
            );
            Ok(())
        },
    );
}

#[test]
fn verifying_on_demand_says_who_differs_and_then_that_all_agree() {
    page(
        "verifying_on_demand_says_who_differs_and_then_that_all_agree",
        |mut world| async move {
            world.settle().await;
            for (shard_id, leader) in leaders(&world).await? {
                let follower = (leader + 2) % 3;
                forget(&world, follower, shard_id, world.seed)?;
                let found = world.cluster.verify(shard_id, Duration::from_secs(10)).await?;
                let number = world.node_number(follower)?;
                for voter in &found.voters {
                    ensure!(voter.answered, "{found:?}");
                    ensure!(
                        (voter.buckets_differing > 0) == (voter.node_id == number),
                        "{found:?}"
                    );
                }
            }
            world.healthy().await?;
            world.cluster.verify_all().await?;
            // The followers judge for themselves, a moment after the leader.
            let deadline = now() + Duration::from_secs(5);
            while let Some(replica) = not_proven(&world).await? {
                ensure!(now() < deadline, "{replica:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            world.ends_well().await
        },
    );
}

/// A replica that has not proven all it holds.
async fn not_proven(world: &World) -> anyhow::Result<Option<v1::ReplicaStatus>> {
    for position in 0..3 {
        let replicas = world.node_status(position).await?.replicas;
        let is_proven = |replica: &v1::ReplicaStatus| {
            replica.oldest_proof_ms.is_some() && replica.unproven_spans.is_empty()
        };
        if let Some(replica) = replicas.into_iter().find(|replica| !is_proven(replica)) {
            return Ok(Some(replica));
        }
    }
    Ok(None)
}

/// Which machine leads each data shard with records.
async fn leaders(world: &World) -> anyhow::Result<BTreeMap<u64, usize>> {
    let leaderships = world.leaderships().await?.into_iter();
    Ok(leaderships
        .map(|(shard_id, (position, _))| (shard_id, position))
        .collect())
}

fn tree_of(world: &World, position: usize, shard_id: u64) -> anyhow::Result<TreeId> {
    let trees = world.cluster.device(position).trees().into_iter();
    let tree = trees.filter(|tree| tree.shard_id == shard_id).max();
    tree.context("the shard has a tree")
}

/// A replica of a shard loses a record without a trace; returns the user's key.
fn forget(world: &World, position: usize, shard_id: u64, pick: u64) -> anyhow::Result<Bytes> {
    let tree = tree_of(world, position, shard_id)?;
    let stored = world.cluster.device(position).forget_record(tree, pick);
    let stored = stored.context("it holds records")?;
    let (_, key) = split_stored_key(&stored).context("a stored key")?;
    Ok(Bytes::copy_from_slice(key))
}

/// Whether a replica's own tree has a record.
async fn holds(world: &World, position: usize, shard_id: u64, key: &Bytes) -> anyhow::Result<bool> {
    let replica = world
        .member(position)?
        .replicas()
        .get(shard_id)
        .context("it runs")?;
    let stored = stored_key(world.client.keyspace_id, key);
    let after = Bytes::from([&stored[..], &[0]].concat());
    let range = KeyRange {
        start: stored,
        end: after,
    };
    let page = replica.scan_local(range, 1, usize::MAX).await;
    let page = page.map_err(|error| anyhow::anyhow!("{position}: {}", error.message))?;
    Ok(!page.records.is_empty())
}

/// A machine's node told that it holds something else of a shard than the others, and repaired it.
async fn told_and_repaired(world: &World, position: usize, shard_id: u64) -> anyhow::Result<()> {
    let damage = world.node_status(position).await?.damage;
    let told: Vec<_> = damage
        .iter()
        .filter(|event| event.shard_id == shard_id && event.structure == "record")
        .collect();
    ensure!(!told.is_empty(), "nothing told of shard {shard_id}: {damage:#?}");
    for event in told {
        ensure!(event.kind == "differs" && event.repaired_at_ms > 0, "{event:?}");
    }
    Ok(())
}
