//! Damage to payloads of the log costs no replica its vote: they are put back where they were lost.
//!
//! Every page is one story in virtual time on a simulated cluster of three nodes, told for several
//! seeds: `REELKV_PAGE_SEEDS=50` sets how many (default 3), `REELKV_SEED=7` runs that one alone.

#[allow(dead_code)] // other pages use other parts of the stage
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use reelkv::clock::now;
use reelkv::disk::sim::SimDisk;
use reelkv::wal::{GroupId, Identity, Recovery, Wal, WalConfig};
use world::{VICTIM, World, key, page, value};

const NODES: usize = 3;
const WAL_DIR: &str = "/data/wal";

/// Where bytes lie in segments of a machine's log.
fn find_in_log(disk: &SimDisk, wanted: &[u8]) -> Vec<(PathBuf, usize)> {
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "wal");
    let segments = disk.contents().into_iter().filter(|(path, _)| is_segment(path));
    let found = segments.flat_map(|(path, bytes)| {
        let windows = bytes.windows(wanted.len()).enumerate();
        let found = windows.filter(|(_, window)| *window == wanted);
        found.map(|(at, _)| (path.clone(), at)).collect::<Vec<_>>()
    });
    found.collect()
}

/// Flips a bit of a value wherever the machine's log holds it. How many times that was.
fn damage_value(disk: &SimDisk, value: &[u8]) -> usize {
    let places = find_in_log(disk, value);
    let hit = places
        .iter()
        .filter(|(path, at)| disk.corrupt(path, at + 9, 0x10));
    hit.count()
}

/// Each node's number, and the replicas that run there.
fn replicas(world: &World) -> anyhow::Result<Vec<(u64, BTreeSet<GroupId>)>> {
    let on_node = |position| {
        let running = world.member(position)?.replicas().all();
        let ids = running.iter().map(|replica| replica.id()).collect();
        Ok((world.node_number(position)?, ids))
    };
    (0..NODES).map(on_node).collect()
}

/// What recovery would say of a machine's log, which is left alone.
async fn recovery_of(world: &World, position: usize, identity: Identity) -> anyhow::Result<Recovery> {
    let config = WalConfig {
        segment_bytes: 256 << 10,
        ..WalConfig::default()
    };
    let copy = world.cluster.disk(position).copy(1);
    let (_, recovery) = Wal::open(copy.mount(), PathBuf::from(WAL_DIR), config, identity).await?;
    Ok(recovery)
}

fn identity_of(world: &World, position: usize) -> anyhow::Result<Identity> {
    let member = world.member(position)?;
    Ok(Identity {
        cluster_id: member.cluster_id()[..].try_into().context("16 bytes")?,
        node_id: member.node_id(),
    })
}

/// Told as damage of the log that is healed, and healed by now.
async fn told_and_healed(world: &World, position: usize) -> anyhow::Result<()> {
    let damage = world.node_status(position).await?.damage;
    let of_log = damage.iter().filter(|event| event.structure == "wal");
    ensure!(
        of_log.clone().count() > 0,
        "node {position} told nothing: {damage:#?}"
    );
    ensure!(
        of_log
            .clone()
            .all(|event| event.action == "heal" && event.repaired_at_ms > 0),
        "node {position}: {damage:#?}"
    );
    Ok(())
}

/// Waits until a node has found damage of a payload and of what is kept twice, and repaired all of it. They
/// need not be found in the same moment.
async fn found_and_repaired(world: &World, position: usize, within: Duration) -> anyhow::Result<()> {
    let deadline = now() + within;
    loop {
        let seen = match told_and_healed(world, position).await {
            Ok(()) => both_were_told(world, position).await,
            not_yet => not_yet,
        };
        match seen {
            Err(not_yet) if now() >= deadline => anyhow::bail!("not within {within:?}: {not_yet}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Ok(()) => return Ok(()),
        }
    }
}

async fn both_were_told(world: &World, position: usize) -> anyhow::Result<()> {
    let damage = world.node_status(position).await?.damage;
    let shards: BTreeSet<u64> = damage.iter().map(|event| event.shard_id).collect();
    ensure!(
        shards.contains(&0) && shards.len() > 1,
        "payloads and a copy were damaged: {damage:#?}"
    );
    Ok(())
}

fn crash(world: &mut World, position: usize) -> anyhow::Result<()> {
    ensure!(world.cluster.crash(position), "node {position} was off");
    Ok(())
}

/// The node that leads the shard of a key.
fn leader_of(world: &World, key: &Bytes) -> anyhow::Result<usize> {
    world.cluster.leader_of(key).context("nobody leads the shard")
}

/// Writes one more value under a key that begins like `like`, so in its shard, through some nodes.
async fn write_near(world: &mut World, like: &Bytes, at: &[usize]) -> anyhow::Result<(Bytes, Bytes)> {
    let addrs: Vec<String> = at
        .iter()
        .map(|position| world.client.addrs[*position].clone())
        .collect();
    let mut near = vec![like[0]];
    near.extend(world.next.to_be_bytes());
    let (near, value) = (Bytes::from(near), value(world.next));
    world.next += 1;
    let op = world.client.put_op(&near, &value);
    world.client.insist(&addrs, op, Duration::from_secs(10)).await?;
    world.acknowledged.insert(near.clone(), value.clone());
    Ok((near, value))
}

#[test]
fn different_damage_on_all_three_nodes_heals_as_each_entry_is_intact_somewhere() {
    page(
        "different_damage_on_all_three_nodes_heals_as_each_entry_is_intact_somewhere",
        |mut world| async move {
            let first = world.next;
            world.write(30).await?;
            let values: Vec<Bytes> = (first..world.next).map(value).collect();
            world.settle().await;
            let before = replicas(&world)?;
            let damaged_nodes = 2 + world.seed as usize % 2;
            for position in 0..NODES {
                crash(&mut world, position)?;
            }
            for position in 0..damaged_nodes {
                let own = values.iter().skip(position).step_by(damaged_nodes);
                let disk = world.cluster.disk(position);
                let hit: usize = own.map(|value| damage_value(disk, value)).sum();
                ensure!(hit >= 5, "node {position}: {hit} payloads only");
            }
            for position in 0..NODES {
                world.cluster.start_node(position).await?;
            }
            world.ends_well().await?;
            ensure!(replicas(&world)? == before, "a replica was replaced");
            for position in 0..damaged_nodes {
                told_and_healed(&world, position).await?;
            }
            Ok(())
        },
    );
}

#[test]
fn damage_in_a_running_node_is_found_within_ten_seconds_and_costs_no_leadership() {
    page(
        "damage_in_a_running_node_is_found_within_ten_seconds_and_costs_no_leadership",
        |mut world| async move {
            // More than the log keeps in memory.
            let large: Vec<(Bytes, Bytes)> = (0..12)
                .map(|number| {
                    let number = world.next + number;
                    (key(number), value(number).repeat(150).into())
                })
                .collect();
            world.next += 12;
            for (key, value) in &large {
                let op = world.client.put_op(key, value);
                world
                    .client
                    .insist(&world.client.addrs, op, Duration::from_secs(10))
                    .await?;
                world.acknowledged.insert(key.clone(), value.clone());
            }
            let (leader, before) = (leader_of(&world, &large[0].0)?, replicas(&world)?);
            let disk = world.cluster.disk(leader).clone();
            let hit = large
                .iter()
                .take(3)
                .map(|(_, value)| damage_value(&disk, value))
                .sum::<usize>();
            ensure!(hit >= 3, "{hit} payloads only");
            let (segment, at) = find_in_log(&disk, b"RKVBATCH").pop().context("a batch")?;
            ensure!(disk.corrupt(&segment, at + 20, 1), "the byte is there");
            found_and_repaired(&world, leader, Duration::from_secs(12)).await?;
            ensure!(leader_of(&world, &large[0].0)? == leader, "leadership was lost");
            world.ends_well().await?;
            // Nothing bad is left on the disk.
            let identity = identity_of(&world, leader)?;
            crash(&mut world, leader)?;
            let recovery = recovery_of(&world, leader, identity).await?;
            ensure!(recovery.damage.is_empty(), "{:#?}", recovery.damage);
            let faulty = recovery.groups.iter().flat_map(|group| &group.faulty);
            ensure!(
                faulty.clone().all(|entry| entry.perhaps_torn),
                "{:?}",
                faulty.collect::<Vec<_>>()
            );
            world.restart(leader).await?;
            world.ends_well().await?;
            ensure!(replicas(&world)? == before, "a replica was replaced");
            Ok(())
        },
    );
}

/// The others do not have the entry any more: it is committed, and in their trees.
#[test]
fn an_entry_that_the_others_have_purged_is_made_good_by_a_view() {
    page(
        "an_entry_that_the_others_have_purged_is_made_good_by_a_view",
        |mut world| async move {
            world.settle().await;
            let like = key(1);
            let before = replicas(&world)?;
            let (_, last_value) = write_near(&mut world, &like, &[0, 1, 2]).await?;
            tokio::time::sleep(Duration::from_millis(60)).await;
            crash(&mut world, VICTIM)?;
            let disk = world.cluster.disk(VICTIM).clone();
            ensure!(damage_value(&disk, &last_value) > 0, "it has the value");
            // Further than a leader keeps its log for one that is behind.
            for _ in 0..4_200 {
                write_near(&mut world, &like, &[0, 2]).await?;
            }
            world.settle().await;
            world.restart(VICTIM).await?;
            world.ends_well().await?;
            told_and_healed(&world, VICTIM).await?;
            ensure!(replicas(&world)? == before, "a replica was replaced");
            Ok(())
        },
    );
}

/// A leader that was cut off wrote an entry that nobody else got.
#[test]
fn a_damaged_entry_that_a_new_leader_has_replaced_is_cut() {
    page(
        "a_damaged_entry_that_a_new_leader_has_replaced_is_cut",
        |mut world| async move {
            world.settle().await;
            let like = key(1);
            let before = replicas(&world)?;
            let leader = leader_of(&world, &like)?;
            world.cluster.cut_off(&[leader], true);
            let never = Bytes::from_static(b"<this is never acknowledged to anybody>");
            let op = world.client.put_op(&like, &never);
            let answer = world.client.once(&world.client.addrs[leader], op).await;
            ensure!(answer.is_none(), "a leader without followers answered {answer:?}");
            crash(&mut world, leader)?;
            let disk = world.cluster.disk(leader).clone();
            ensure!(damage_value(&disk, &never) > 0, "it wrote the entry");
            world.cluster.network().heal();
            let others: Vec<usize> = (0..NODES).filter(|position| *position != leader).collect();
            for _ in 0..10 {
                write_near(&mut world, &like, &others).await?;
            }
            world.restart(leader).await?;
            world.ends_well().await?;
            told_and_healed(&world, leader).await?;
            ensure!(replicas(&world)? == before, "a replica was replaced");
            Ok(())
        },
    );
}

/// Power goes on all three nodes between the writes of a batch and its sync: payloads are torn, some of their
/// identities are there.
#[test]
fn a_power_cut_of_all_nodes_inside_a_batch_leaves_every_shard_available() {
    page(
        "a_power_cut_of_all_nodes_inside_a_batch_leaves_every_shard_available",
        |mut world| async move {
            let before = replicas(&world)?;
            let mut torn = 0;
            for round in 0..8 {
                let identities = (0..NODES).map(|position| identity_of(&world, position));
                let identities = identities.collect::<anyhow::Result<Vec<_>>>()?;
                tokio::time::sleep(Duration::from_millis(900 + 77 * round)).await;
                for position in 0..NODES {
                    world.cluster.disk(position).power_off_after(2);
                }
                let large = value(900 + round).repeat(100);
                let op = world.client.put_op(&key(5_000 + round), &large.into());
                // Nobody will answer, or it was done before the power went.
                let _ = world
                    .client
                    .once(&world.client.addrs[round as usize % NODES], op)
                    .await;
                for (position, identity) in identities.into_iter().enumerate() {
                    crash(&mut world, position)?;
                    let recovery = recovery_of(&world, position, identity).await?;
                    let faulty = recovery.groups.iter().flat_map(|group| &group.faulty);
                    torn += faulty.filter(|entry| entry.perhaps_torn).count();
                }
                for position in 0..NODES {
                    world.cluster.start_node(position).await?;
                }
                world.healthy().await.with_context(|| format!("round {round}"))?;
                world.read_all_through(&world.client.addrs).await?;
                // What the large write came to is not known: it is overwritten.
                let key = key(5_000 + round);
                let op = world.client.put_op(&key, &value(round));
                world
                    .client
                    .insist(&world.client.addrs, op, Duration::from_secs(10))
                    .await?;
                world.acknowledged.insert(key, value(round));
            }
            ensure!(torn > 0, "no entry was torn in eight rounds");
            world.ends_well().await?;
            ensure!(replicas(&world)? == before, "a replica was replaced");
            Ok(())
        },
    );
}

/// Waits, for as long as `patience`, that a node's replica of a key's shard is healing all the time.
async fn waits(world: &World, position: usize, patience: Duration) -> anyhow::Result<()> {
    let until = now() + patience;
    while now() < until {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let states: BTreeMap<u64, String> = world
            .node_status(position)
            .await?
            .replicas
            .into_iter()
            .map(|replica| (replica.shard_id, replica.state))
            .collect();
        ensure!(
            states.values().any(|state| state == "healing"),
            "nothing is healing: {states:?}"
        );
        ensure!(
            states.values().all(|state| state != "lost"),
            "something is lost: {states:?}"
        );
    }
    Ok(())
}

/// A is faulty at its last entry, B is down, C is one entry short: nobody may decide. B has the entry, so
/// it was acknowledged.
#[test]
fn a_damaged_last_entry_waits_for_the_one_voter_that_has_it() {
    page(
        "a_damaged_last_entry_waits_for_the_one_voter_that_has_it",
        |mut world| async move {
            world.settle().await;
            let like = key(1);
            let before = replicas(&world)?;
            let b = leader_of(&world, &like)?;
            let (a, c) = ((b + 1) % NODES, (b + 2) % NODES);
            world.cluster.cut_off(&[c], true);
            let (last_key, last_value) = write_near(&mut world, &like, &[b]).await?;
            crash(&mut world, a)?;
            crash(&mut world, b)?;
            world.cluster.network().heal();
            let disk = world.cluster.disk(a).clone();
            ensure!(damage_value(&disk, &last_value) > 0, "A has the value");
            ensure!(
                damage_value(world.cluster.disk(c), &last_value) == 0,
                "C has no such value"
            );
            world.restart(a).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            waits(&world, a, Duration::from_secs(100)).await?;
            let addrs: Vec<String> = [a, c].map(|position| world.client.addrs[position].clone()).into();
            let read = world.client.once(&addrs[0], world.client.get_op(&last_key)).await;
            ensure!(read.is_none(), "answered without a quorum: {read:?}");
            world.restart(b).await?;
            world.ends_well().await?;
            let found = world
                .client
                .get(&addrs, &last_key, Duration::from_secs(10))
                .await?;
            ensure!(found.as_ref() == Some(&last_value), "{found:?}");
            ensure!(replicas(&world)? == before, "a replica was replaced");
            Ok(())
        },
    );
}

/// The same, but B does not have the entry either: then it was never acknowledged, and all go on without it.
#[test]
fn a_damaged_last_entry_that_nobody_else_ever_had_is_cut_once_all_have_said_so() {
    page(
        "a_damaged_last_entry_that_nobody_else_ever_had_is_cut_once_all_have_said_so",
        |mut world| async move {
            world.settle().await;
            let like = key(1);
            let before = replicas(&world)?;
            let a = leader_of(&world, &like)?;
            let b = (a + 1) % NODES;
            world.cluster.cut_off(&[a], true);
            let never = Bytes::from_static(b"<this is never acknowledged to anybody>");
            let op = world.client.put_op(&like, &never);
            let asked = tokio::spawn({
                let (client, addr) = (world.client.clone(), world.client.addrs[a].clone());
                async move { client.once(&addr, op).await }
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
            crash(&mut world, a)?;
            crash(&mut world, b)?;
            asked.abort();
            world.cluster.network().heal();
            let disk = world.cluster.disk(a).clone();
            ensure!(damage_value(&disk, &never) > 0, "A has the value");
            world.restart(a).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            waits(&world, a, Duration::from_secs(30)).await?;
            world.restart(b).await?;
            world.ends_well().await?;
            let found = world
                .client
                .get(&world.client.addrs, &like, Duration::from_secs(10))
                .await?;
            ensure!(found.as_ref() != Some(&never), "it came back");
            ensure!(replicas(&world)? == before, "a replica was replaced");
            Ok(())
        },
    );
}
