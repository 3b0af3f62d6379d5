//! What a node lost is put back: a tree, an entry of its log, all of it. And what goes on while
//! the meta shard does not.
//!
//! Every page is one story in virtual time on a simulated cluster of three nodes, told for several
//! seeds: `REELKV_PAGE_SEEDS=50` sets how many (default 3), `REELKV_SEED=7` runs that one alone.

#[allow(dead_code)] // other pages use other parts of the stage
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use parking_lot::Mutex;
use reelkv::clock::now;
use reelkv::disk::Mode;
use reelkv::disk::sim::SimDisk;
use reelkv::rpc::handler::AdminHandler;
use reelkv::rpc::http::HttpPage;
use reelkv::wal::{GroupId, Identity, Vote, Wal, WalConfig};
use reelkv_proto::v1::error::Kind;
use reelkv_proto::v1::{self, response};
use world::{Client, VICTIM, World, key, page, value};

/// The shard of the directory.
const META_SHARD: u64 = 1;
const WAL_DIR: &str = "/data/wal";

#[test]
fn lost_trees_are_reported_and_refilled() {
    page("lost_trees_are_reported_and_refilled", |mut world| async move {
        world.settle().await;
        ensure!(world.cluster.crash(VICTIM), "the victim was off");
        let device = world.cluster.device(VICTIM).clone();
        let lost: BTreeSet<u64> = device.trees().into_iter().map(|tree| tree.shard_id).collect();
        ensure!(
            lost.len() > 3 && lost.contains(&META_SHARD),
            "trees of the shards {lost:?} only"
        );
        for tree in device.trees() {
            ensure!(device.lose(tree), "{tree} was there");
        }
        world.write(30).await?;
        world.restart(VICTIM).await?;
        let damage = world.node_status(VICTIM).await?.damage;
        let reported: BTreeSet<u64> = damage
            .iter()
            .filter(|event| event.structure == "tree")
            .map(|event| event.shard_id)
            .collect();
        ensure!(reported == lost, "lost were {lost:?}, reported {reported:?}");
        world.ends_well().await?;
        let damage = world.node_status(VICTIM).await?.damage;
        ensure!(
            damage.iter().all(|event| event.repaired_at_ms > 0),
            "not marked repaired: {damage:#?}"
        );
        ensure!(
            device.trees().len() >= lost.len(),
            "new trees for all that were lost"
        );
        Ok(())
    });
}

/// An old copy of a directory has forgotten what it acknowledged, its votes as well. The others
/// remember how far its log was: before one of them has said so nothing of it runs, and then it
/// comes back as a new node.
#[test]
fn an_old_copy_of_a_directory_neither_votes_nor_answers_and_joins_as_a_new_node() {
    page(
        "an_old_copy_of_a_directory_neither_votes_nor_answers_and_joins_as_a_new_node",
        |mut world| async move {
            world.settle().await;
            let addr = world.client.addrs[VICTIM].clone();
            ensure!(world.cluster.crash(VICTIM), "the victim was off");
            let old = world.cluster.disk(VICTIM).copy(world.seed);
            world.restart(VICTIM).await?;
            world.healthy().await?;
            // As little as a few writes in half of the stories.
            world
                .write(if world.seed.is_multiple_of(2) { 5 } else { 300 })
                .await?;
            let replicas_before = replicas_at(&world, &addr)?;
            let number_before = world.node_number(VICTIM)?;
            ensure!(world.cluster.crash(VICTIM), "the victim was off");
            world.cluster.put_back(VICTIM, old);
            if world.seed % 3 == 2 {
                // What the others remember is on their disks as well.
                for other in [0, 2] {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    ensure!(world.cluster.crash(other), "it was off");
                    world.restart(other).await?;
                }
            }

            let mut others = world.client.addrs.clone();
            others.remove(VICTIM);
            for other in &others {
                world.cluster.network().cut(&addr, other);
            }
            world.cluster.start_node(VICTIM).await?;
            tokio::time::sleep(Duration::from_secs(20)).await;
            let replicas = world.node_status(VICTIM).await?.replicas;
            ensure!(
                replicas.len() > 3 && replicas.iter().all(|replica| replica.state == "starting"),
                "nobody has answered it yet: {replicas:#?}"
            );
            ensure!(world.front(VICTIM)?.ready().is_err(), "it says that it is ready");
            world.write_through(&others, 10).await?;
            world.cluster.network().heal();

            let deadline = now() + Duration::from_secs(60);
            while world
                .node_number(VICTIM)
                .ok()
                .is_none_or(|number| number == number_before)
            {
                ensure!(now() < deadline, "it is still node {number_before}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let damage = world.node_status(VICTIM).await?.damage;
            ensure!(
                damage
                    .iter()
                    .any(|event| event.kind == "outdated" && event.action == "rejoin as a new node"),
                "{damage:#?}"
            );
            replaced(&world, &replicas_before, world.node_number(VICTIM)?).await?;
            world.ends_well().await?;
            let damage = world.node_status(VICTIM).await?.damage;
            ensure!(
                damage.iter().all(|event| event.repaired_at_ms > 0),
                "not marked repaired: {damage:#?}"
            );
            Ok(())
        },
    );
}

#[test]
fn damaged_records_at_rest_are_found_and_refilled() {
    page(
        "damaged_records_at_rest_are_found_and_refilled",
        |mut world| async move {
            world.settle().await;
            ensure!(world.cluster.crash(VICTIM), "the victim was off");
            let device = world.cluster.device(VICTIM).clone();
            let damaged: BTreeSet<u64> = device
                .trees()
                .into_iter()
                .filter(|tree| device.damage_record(*tree, 5).is_some())
                .map(|tree| tree.shard_id)
                .collect();
            ensure!(damaged.len() >= 3, "records of the shards {damaged:?} only");
            world.cluster.start_node(VICTIM).await?;
            // Comparing replicas reads everything: by then at the latest it is found.
            world.ends_well().await?;
            let damage = world.node_status(VICTIM).await?.damage;
            let found: BTreeSet<u64> = damage
                .iter()
                .filter(|event| event.structure == "tree")
                .map(|event| event.shard_id)
                .collect();
            ensure!(damaged == found, "damaged were {damaged:?}, found {damage:#?}");
            ensure!(
                damage.iter().all(|event| event.repaired_at_ms > 0),
                "not marked repaired: {damage:#?}"
            );
            Ok(())
        },
    );
}

#[test]
fn a_node_that_lost_everything_returns_as_a_new_one() {
    page(
        "a_node_that_lost_everything_returns_as_a_new_one",
        |mut world| async move {
            // New replicas are sent the log from its beginning, or a view once that is purged: both.
            if world.seed > 0 {
                world.write(600).await?;
                world.settle().await;
            }
            let purged = purged_shards(&world)?;
            ensure!(
                (world.seed > 0) == (purged >= 3),
                "seed {}: {purged} data shards are purged",
                world.seed
            );
            let addr = world.client.addrs[VICTIM].clone();
            let replicas_before = replicas_at(&world, &addr)?;
            let node_before = world.node_number(VICTIM)?;
            ensure!(world.cluster.crash(VICTIM), "the victim was off");
            world.write(30).await?;
            world.cluster.wipe(VICTIM);
            world.restart(VICTIM).await?;
            let node_after = world.node_number(VICTIM)?;
            ensure!(
                node_after > node_before,
                "node {node_before} came back as {node_after}"
            );
            replaced(&world, &replicas_before, node_after).await?;
            world.ends_well().await
        },
    );
}

/// A node that knows nothing is not waited for, when all start at once.
#[test]
fn a_cold_start_with_one_empty_directory_waits_for_nobody() {
    page(
        "a_cold_start_with_one_empty_directory_waits_for_nobody",
        |mut world| async move {
            for position in 0..3 {
                ensure!(world.cluster.crash(position), "machine {position} was off");
            }
            world.cluster.wipe(VICTIM);
            let began = now();
            for position in 0..3 {
                world.cluster.start_node(position).await?;
            }
            let others: Vec<usize> = (0..3).filter(|position| *position != VICTIM).collect();
            for position in others {
                while !world.member(position).is_ok_and(|member| member.is_started()) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            let took = now() - began;
            ensure!(took < Duration::from_secs(3), "replicas ran after {took:?}");
            world.ends_well().await
        },
    );
}

/// Nobody waits for a learner on a node that is no more.
#[test]
fn a_node_lost_again_while_it_is_being_filled_is_replaced_at_once() {
    page(
        "a_node_lost_again_while_it_is_being_filled_is_replaced_at_once",
        |mut world| async move {
            world.write(600).await?;
            world.settle().await;
            lose_and_return(&mut world).await?;
            let number = world.node_number(VICTIM)?;
            while !fills(&world, number)? {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // The learner gets nothing more.
            world.cluster.cut_off(&[VICTIM], true);
            tokio::time::sleep(Duration::from_millis(500)).await;
            world.cluster.network().join();
            lose_and_return(&mut world).await?;
            let whole = tokio::time::timeout(Duration::from_secs(40), world.healthy());
            whole.await.context("somebody waits for the lost node")??;
            world.ends_well().await
        },
    );
}

/// The victim loses everything and comes back empty.
async fn lose_and_return(world: &mut World) -> anyhow::Result<()> {
    ensure!(world.cluster.crash(VICTIM), "the victim was off");
    world.cluster.wipe(VICTIM);
    world.restart(VICTIM).await
}

/// Whether somebody waits for a learner on this node.
fn fills(world: &World, number: u64) -> anyhow::Result<bool> {
    for position in (0..world.client.addrs.len()).filter(|position| *position != VICTIM) {
        for replica in world.member(position)?.replicas().all() {
            let members = replica.members();
            let learner = |(node, role): &(_, _)| {
                let node: &reelkv::raft::PeerNode = node;
                node.node_id == number && *role == v1::ReplicaRole::Learner
            };
            if members.values().any(learner) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A learner is a copy of the leader, and the leader may have lost something without a trace: a
/// learner becomes a voter only when the voters agree on what there is. While they do not, the shard
/// is named and waits; somebody decides by taking one of the trees away.
#[test]
fn a_learner_of_voters_that_differ_waits_until_they_agree() {
    page(
        "a_learner_of_voters_that_differ_waits_until_they_agree",
        |mut world| async move {
            // The learner is sent the log, or a view of the leader's tree.
            if world.seed > 0 {
                world.write(600).await?;
            }
            world.settle().await;
            ensure!(world.cluster.crash(VICTIM), "the victim was off");
            // A shard with records that node 1 or 3 leads.
            let mut chosen = None;
            for position in [0, 2] {
                let led = leads(&world, position).await?;
                let device = world.cluster.device(position);
                let mut trees = device
                    .trees()
                    .into_iter()
                    .filter(|tree| led.contains(&tree.shard_id));
                let forget = |tree| Some((position, tree, device.forget_record(tree, world.seed)?));
                chosen = chosen.or_else(|| trees.find_map(forget));
            }
            let (leader, tree, forgotten) = chosen.context("a record in a shard that is led")?;
            let device = world.cluster.device(leader).clone();
            let shard_id = tree.shard_id;
            ensure!(forgotten.len() > 4, "{forgotten:?} is no record of a keyspace");
            world.cluster.wipe(VICTIM);
            world.restart(VICTIM).await?;

            let addr = world.client.addrs[VICTIM].clone();
            let deadline = now() + Duration::from_secs(60);
            let named = |status: &v1::NodeStatus| {
                status.damage.iter().any(|event| {
                    event.structure == "digest" && event.shard_id == shard_id && event.repaired_at_ms == 0
                })
            };
            while !named(&world.node_status(0).await?) && !named(&world.node_status(2).await?) {
                ensure!(now() < deadline, "nobody noticed that the voters differ");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
            let number = world.node_number(VICTIM)?;
            let replica = replicas_at(&world, &addr)?.remove(&shard_id);
            let votes = |replica: &v1::ReplicaDescriptor| {
                replica.node_id == number && replica.role() == v1::ReplicaRole::Voter
            };
            ensure!(!replica.as_ref().is_some_and(votes), "it votes: {replica:?}");

            ensure!(world.cluster.crash(leader), "it was off");
            ensure!(device.lose(tree), "the tree is there");
            world.restart(leader).await?;
            world.ends_well().await?;
            let found = world
                .client
                .get(
                    &world.client.addrs,
                    &forgotten.slice(4..),
                    Duration::from_secs(10),
                )
                .await?;
            ensure!(found.is_some(), "the record {forgotten:?} is gone");
            Ok(())
        },
    );
}

/// How many data shards have let the beginning of their log go on node 1.
fn purged_shards(world: &World) -> anyhow::Result<usize> {
    let member = world.member(0)?;
    let replicas = member
        .replicas()
        .all()
        .into_iter()
        .filter(|replica| replica.id().shard_id != META_SHARD);
    Ok(replicas
        .filter(|replica| replica.store().group().purged().is_some())
        .count())
}

/// The replica of each shard at an address, as node 1 knows it.
fn replicas_at(world: &World, addr: &str) -> anyhow::Result<BTreeMap<u64, v1::ReplicaDescriptor>> {
    let directory = world.member(0)?.directory();
    let here = |shard: &v1::ShardDescriptor| {
        let replica = shard.replicas.iter().find(|replica| replica.addr == addr)?;
        Some((shard.shard_id, replica.clone()))
    };
    Ok(directory.shards.iter().filter_map(here).collect())
}

/// Waits until the victim holds a voter under a new id of every shard it held one of.
async fn replaced(
    world: &World,
    before: &BTreeMap<u64, v1::ReplicaDescriptor>,
    node_id: u64,
) -> anyhow::Result<()> {
    ensure!(before.len() > 3, "the victim held {before:?} only");
    let deadline = now() + Duration::from_secs(120);
    loop {
        let after = replicas_at(world, &world.client.addrs[VICTIM])?;
        let is_new = |(shard_id, old): (&u64, &v1::ReplicaDescriptor)| {
            after.get(shard_id).is_some_and(|new| {
                new.replica_id > old.replica_id
                    && new.node_id == node_id
                    && new.role() == v1::ReplicaRole::Voter
            })
        };
        if before.iter().all(is_new) {
            return Ok(());
        }
        ensure!(now() < deadline, "before: {before:#?}, after: {after:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Where the bytes lie in the log at rest, in the order of segments.
fn find_in_log(disk: &SimDisk, wanted: &[u8]) -> anyhow::Result<Vec<(PathBuf, usize)>> {
    let mounted = disk.mount();
    let mut places = Vec::new();
    for (path, len) in disk.files() {
        if path.parent() != Some(Path::new(WAL_DIR))
            || path.extension().is_none_or(|extension| extension != "wal")
        {
            continue;
        }
        let mut bytes = vec![0; len];
        mounted.open(&path, Mode::Read)?.read_at(0, &mut bytes)?;
        let found = bytes
            .windows(wanted.len())
            .enumerate()
            .filter(|(_, window)| *window == wanted);
        places.extend(found.map(|(offset, _)| (path.clone(), offset)));
    }
    Ok(places)
}

/// The log as recovery sees it, without touching the machine's disk.
async fn recover_copy(disk: &SimDisk, identity: Identity) -> anyhow::Result<(Wal, reelkv::wal::Recovery)> {
    let config = WalConfig {
        segment_bytes: 256 << 10,
        ..WalConfig::default()
    };
    Ok(Wal::open(disk.copy(1).mount(), PathBuf::from(WAL_DIR), config, identity).await?)
}

fn votes(wal: &Wal) -> BTreeMap<GroupId, Option<Vote>> {
    wal.groups()
        .into_iter()
        .map(|id| (id, wal.group(id).and_then(|group| group.vote())))
        .collect()
}

#[test]
fn a_damaged_old_payload_of_the_log_is_fetched_again_and_the_vote_kept() {
    page(
        "a_damaged_old_payload_of_the_log_is_fetched_again_and_the_vote_kept",
        |mut world| async move {
            let wanted = value(world.next);
            world.write(1).await?;
            world.write(30).await?; // later batches say that it was synced
            world.settle().await;
            let member = world.member(VICTIM)?;
            let cluster_id = member.cluster_id()[..].try_into().context("16 bytes")?;
            let identity = Identity {
                cluster_id,
                node_id: member.node_id(),
            };
            drop(member);
            ensure!(world.cluster.crash(VICTIM), "the victim was off");

            let disk = world.cluster.disk(VICTIM).clone();
            let before = votes(&recover_copy(&disk, identity).await?.0);
            let places = find_in_log(&disk, &wanted[..])?;
            let (segment, offset) = places.first().context("the value is in the log")?;
            ensure!(disk.corrupt(segment, offset + 9, 0x10), "the byte is there");
            let (wal, recovery) = recover_copy(&disk, identity).await?;
            let faulty: Vec<_> = recovery
                .groups
                .iter()
                .filter(|group| !group.faulty.is_empty())
                .collect();
            ensure!(
                faulty.len() == 1 && faulty[0].faulty.len() == 1,
                "one payload is faulty: {recovery:#?}"
            );
            ensure!(
                !faulty[0].faulty[0].perhaps_torn && faulty[0].damaged.is_empty(),
                "only a payload: {recovery:#?}"
            );
            ensure!(
                votes(&wal) == before && before.values().all(Option::is_some),
                "votes are kept: {before:?}"
            );
            let (id, log_id) = (faulty[0].id, faulty[0].faulty[0].log_id);

            world.write(10).await?;
            world.cluster.start_node(VICTIM).await?;
            world.ends_well().await?;
            let damage = world.node_status(VICTIM).await?.damage;
            ensure!(
                damage
                    .iter()
                    .any(|event| event.structure == "wal" && event.shard_id == id.shard_id),
                "{damage:#?}"
            );
            let member = world.member(VICTIM)?;
            let replica = member
                .replicas()
                .get(id.shard_id)
                .context("the shard's replica runs")?;
            ensure!(
                replica.id() == id,
                "it keeps its id: {} became {}",
                id,
                replica.id()
            );
            let group = replica.store().group();
            ensure!(
                group.vote().map(|vote| vote.term) >= before[&id].map(|vote| vote.term),
                "the vote went back"
            );
            let healed = group.read(log_id.index, log_id.index + 1, usize::MAX).await?;
            let holds = |payload: &Bytes| payload.windows(wanted.len()).any(|window| window == &wanted[..]);
            // It may have been purged since.
            let purged = group.purged().is_some_and(|purged| purged.index >= log_id.index);
            ensure!(
                purged || healed.iter().any(|entry| holds(&entry.payload)),
                "entry {log_id} was not put back"
            );
            ensure!(
                damage.iter().all(|event| event.repaired_at_ms > 0),
                "not marked repaired: {damage:#?}"
            );
            Ok(())
        },
    );
}

#[test]
fn a_node_whose_log_was_zeroed_joins_as_a_new_one() {
    page(
        "a_node_whose_log_was_zeroed_joins_as_a_new_one",
        |mut world| async move {
            world.settle().await;
            let addr = world.client.addrs[VICTIM].clone();
            let replicas_before = replicas_at(&world, &addr)?;
            let node_before = world.node_number(VICTIM)?;
            ensure!(world.cluster.crash(VICTIM), "the victim was off");
            let disk = world.cluster.disk(VICTIM).clone();
            let segments = disk
                .files()
                .into_iter()
                .map(|(path, _)| path)
                .filter(|path| path.starts_with(WAL_DIR));
            let segments: Vec<_> = segments
                .filter(|path| path.extension().is_some_and(|found| found == "wal"))
                .collect();
            ensure!(!segments.is_empty(), "there are segments");
            for segment in &segments {
                ensure!(disk.zero(segment), "{segment:?} is there");
            }
            world.write(10).await?;
            world.restart(VICTIM).await?;
            let node_after = world.node_number(VICTIM)?;
            ensure!(
                node_after > node_before,
                "node {node_before} came back as {node_after}"
            );
            let reported = world.node_status(VICTIM).await?.damage;
            ensure!(
                reported.iter().any(|event| event.structure == "wal"),
                "a zeroed log was not reported: {reported:#?}"
            );
            replaced(&world, &replicas_before, node_after).await?;
            world.ends_well().await
        },
    );
}

#[test]
fn data_shards_are_served_while_the_meta_shard_is_not() {
    page(
        "data_shards_are_served_while_the_meta_shard_is_not",
        |mut world| async move {
            world.settle().await;
            world.cluster.network().silence_shard(META_SHARD);
            tokio::time::sleep(Duration::from_secs(5)).await;
            let silent_since = now();
            let request = v1::CreateKeyspaceRequest {
                name: "refused".to_owned(),
                shards: 1,
                ..Default::default()
            };
            let created = world.front(0)?.create_keyspace(request.clone()).await;
            ensure!(created.is_err(), "the meta shard still answers");

            // Someone who was never here before: a map from any node, then straight to a leader.
            let directory = world
                .front(2)?
                .directory(v1::GetDirectoryRequest { newer_than: 0 })
                .await;
            let directory =
                directory.map_err(|error| anyhow::anyhow!("no map for a fresh client: {}", error.message))?;
            ensure!(directory.shards.len() > 3, "{directory:#?}");
            world.write(20).await?;
            world.read_all_through(&world.client.addrs).await?;

            // A node that leads data shards loses its power: others lead them instead.
            let killed = data_leader(&world).await?;
            let led_before = leads(&world, killed).await?;
            ensure!(world.cluster.crash(killed), "it was off");
            let mut others = world.client.addrs.clone();
            let own = vec![others.remove(killed)];
            world.write_through(&others, 20).await?;
            world.read_all_through(&others).await?;
            let mut led_now = BTreeSet::new();
            for position in (0..world.client.addrs.len()).filter(|position| *position != killed) {
                led_now.extend(leads(&world, position).await?);
            }
            ensure!(
                led_before.is_subset(&led_now),
                "{led_before:?} lost their leader, now led: {led_now:?}"
            );

            // It comes back, meta shard or not.
            world.cluster.start_node(killed).await?;
            world.write_through(&own, 20).await?;
            world.read_all_through(&own).await?;
            let silence = Duration::from_secs(60).saturating_sub(silent_since.elapsed());
            tokio::time::sleep(silence).await;
            world.write(20).await?;
            let created = world.front(0)?.create_keyspace(request).await;
            ensure!(created.is_err(), "the meta shard answered though it was silenced");
            world.cluster.network().heal();
            world.ends_well().await
        },
    );
}

/// A map that is old is no proof that a keyspace does not exist; only the meta shard has that.
#[test]
fn a_node_that_was_off_finds_a_keyspace_that_was_made_meanwhile() {
    page(
        "a_node_that_was_off_finds_a_keyspace_that_was_made_meanwhile",
        |mut world| async move {
            ensure!(world.cluster.crash(VICTIM), "the victim was off");
            let request = v1::CreateKeyspaceRequest {
                name: "second".to_owned(),
                shards: 2,
                ..Default::default()
            };
            let made = world.front(0)?.create_keyspace(request).await;
            let made = made.map_err(|error| anyhow::anyhow!(error.message))?;
            world.cluster.start_node(VICTIM).await?;

            let client = Client {
                keyspace_id: made.keyspace_id,
                ..world.client.clone()
            };
            let put = |client: &Client| v1::Request {
                id: 1,
                timeout_ms: 10_000,
                op: Some(client.put_op(&key(1), &value(1))),
            };
            let addr = world.client.addrs[VICTIM].clone();
            let answer = client.network.request(&addr, put(&client)).await;
            let answer = answer.and_then(|answer| answer.result);
            ensure!(matches!(answer, Some(response::Result::Write(_))), "{answer:?}");

            // One that does not exist is refused; when the meta shard cannot say so, nobody does.
            let nowhere = Client {
                keyspace_id: made.keyspace_id + 100,
                ..client
            };
            let refused = || async {
                let answer = nowhere.network.request(&addr, put(&nowhere)).await;
                match answer.and_then(|answer| answer.result) {
                    Some(response::Result::Error(error)) => Ok(error.kind),
                    other => bail!("{other:?}"),
                }
            };
            let kind = refused().await?;
            ensure!(matches!(kind, Some(Kind::UnknownKeyspace(_))), "{kind:?}");
            world.cluster.network().silence_shard(META_SHARD);
            tokio::time::sleep(Duration::from_secs(5)).await;
            let kind = refused().await?;
            ensure!(matches!(kind, Some(Kind::Unavailable(_))), "{kind:?}");
            world.cluster.network().heal();
            world.ends_well().await
        },
    );
}

/// Data shards a node leads.
async fn leads(world: &World, position: usize) -> anyhow::Result<BTreeSet<u64>> {
    let replicas = world.node_status(position).await?.replicas;
    let led = replicas
        .iter()
        .filter(|replica| replica.is_leader && replica.shard_id != META_SHARD);
    Ok(led.map(|replica| replica.shard_id).collect())
}

/// A node that leads data shards, the one with the most.
async fn data_leader(world: &World) -> anyhow::Result<usize> {
    let mut most = (0, 0);
    for position in 0..world.client.addrs.len() {
        most = most.max((leads(world, position).await?.len(), position));
    }
    ensure!(most.0 > 0, "no node leads a data shard");
    Ok(most.1)
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_of_all_nodes_under_load() {
    page(
        "what_was_acknowledged_survives_a_power_cut_of_all_nodes_under_load",
        |mut world| async move {
            for round in 0..3 {
                let written = Arc::new(Mutex::new(BTreeMap::new()));
                let writers: Vec<_> = (0..8)
                    .map(|writer| {
                        let first = 1_000_000 * (1 + writer + 8 * round);
                        tokio::spawn(write_on(world.client.clone(), first, written.clone()))
                    })
                    .collect();
                tokio::time::sleep(Duration::from_millis(1_500 + 377 * round)).await;
                for position in 0..world.client.addrs.len() {
                    ensure!(world.cluster.crash(position), "node {position} was off");
                }
                for writer in writers {
                    writer.abort();
                    let _ = writer.await; // cut off in mid-write
                }
                let written = std::mem::take(&mut *written.lock());
                ensure!(
                    written.len() > 200,
                    "round {round}: only {} writes were acknowledged",
                    written.len()
                );
                world.acknowledged.extend(written);
                for position in 0..world.client.addrs.len() {
                    world.cluster.start_node(position).await?;
                }
                world
                    .read_all_through(&world.client.addrs)
                    .await
                    .with_context(|| format!("round {round}"))?;
            }
            world.ends_well().await
        },
    );
}

/// Writes one fresh key after the other and remembers what was acknowledged.
async fn write_on(client: Client, first: u64, written: Arc<Mutex<BTreeMap<Bytes, Bytes>>>) {
    for number in first.. {
        let (key, value) = (key(number), value(number));
        let addr = &client.addrs[number as usize % client.addrs.len()];
        if client.once(addr, client.put_op(&key, &value)).await.is_some() {
            written.lock().insert(key, value);
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
