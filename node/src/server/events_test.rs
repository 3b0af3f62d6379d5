//! The ledger of damage as operators see it: at once, after restarts, and whatever becomes of its file.

use std::path::Path;
use std::time::Duration;

use reelkv_proto::v1::{self, DamageEvent};

use super::admin::Front;
use super::alone::Alone;
use crate::disk::sim::SimDisk;
use crate::disk::{read_file, write_file_atomically};
use crate::health::{Action, Damage, Kind, Structure};
use crate::rpc::handler::AdminHandler;

const EVENTS: &str = "/node/events";

async fn told(front: &Front) -> Vec<DamageEvent> {
    front.node_status().await.unwrap().damage
}

fn of<'e>(events: &'e [DamageEvent], structure: &str) -> Vec<&'e DamageEvent> {
    let events = events.iter();
    events.filter(|event| event.structure == structure).collect()
}

async fn stop(front: Front) {
    front.0.stop(Duration::from_secs(5)).await;
    drop(front);
    // Tasks that hold the node have ended by then, and its directory is free.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn damage(replica: (u64, u64), structure: Structure) -> Damage {
    Damage::of_replica(
        replica,
        structure,
        Kind::Checksum,
        Action::Refill,
        "tables/3 at 4096",
    )
}

/// A replica of a data shard that runs here, and its state.
async fn a_replica(front: &Front) -> v1::ReplicaStatus {
    let replicas = front.node_status().await.unwrap().replicas;
    let of_data = replicas.into_iter().find(|replica| replica.shard_id != 1);
    of_data.expect("a data shard")
}

#[tokio::test(start_paused = true)]
async fn damage_is_told_within_a_second_and_while_it_is_open_the_cluster_names_it() {
    let front = Alone::on(&SimDisk::new(1)).cluster().await;
    let replica = a_replica(&front).await;
    let found_at = crate::clock::now();
    front
        .0
        .health()
        .damaged(damage((replica.shard_id, replica.replica_id), Structure::Tree));
    let cluster = front.cluster_status().await.unwrap();
    assert!(
        found_at.elapsed() < Duration::from_secs(1),
        "{:?}",
        found_at.elapsed()
    );
    assert_eq!(cluster.health(), v1::Health::Degraded, "{}", cluster.summary);
    let named = &cluster.nodes[0].damage;
    assert_eq!((named.len(), cluster.nodes[0].open_damage), (1, 1));
    let event = &named[0];
    assert_eq!(
        (
            event.node_id,
            event.shard_id,
            event.structure.as_str(),
            event.kind.as_str()
        ),
        (1, replica.shard_id, "tree", "checksum")
    );
    front.0.health().repaired(replica.shard_id, Structure::Tree);
    let cluster = front.cluster_status().await.unwrap();
    assert_eq!(cluster.nodes[0].damage, []);
    assert!(told(&front).await[0].repaired_at_ms > 0, "the history is kept");
}

#[tokio::test(start_paused = true)]
async fn what_was_told_is_told_after_an_orderly_stop_and_after_a_power_cut() {
    let machine = Alone::on(&SimDisk::new(1));
    stop(machine.cluster().await).await;
    assert!(machine.disk.corrupt(Path::new("/node/identity.1"), 20, 1));
    let front = machine.start().await;
    let first = told(&front).await;
    assert_eq!(first.len(), 1, "{first:#?}");
    assert_eq!(
        (
            first[0].structure.as_str(),
            first[0].action.as_str(),
            first[0].node_id
        ),
        ("identity", "heal", 1)
    );
    assert!(first[0].repaired_at_ms >= first[0].detected_at_ms);
    stop(front).await;

    let front = machine.start().await;
    assert_eq!(told(&front).await, first);
    let at_runtime = damage((99, 1), Structure::Record);
    front.0.health().repaired_at_once(at_runtime);
    let second = told(&front).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    front.0.abandon().await;
    machine.trees.crash();
    machine.disk.crash(7);
    drop(front);

    let front = machine.start().await;
    let third = told(&front).await;
    assert_eq!(third, second, "what was found a second before the power went");
    assert!(of(&third, "events").is_empty(), "and its file is whole");
}

#[tokio::test(start_paused = true)]
async fn an_open_event_is_closed_only_when_what_it_names_was_read_whole_or_is_gone() {
    let machine = Alone::on(&SimDisk::new(1));
    let front = machine.cluster().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let replica = a_replica(&front).await;
    let id = (replica.shard_id, replica.replica_id);
    let health = front.0.health().clone();
    health.damaged(damage(id, Structure::Tree));
    health.damaged(damage(id, Structure::Wal));
    health.damaged(damage((99, 7), Structure::Tree));
    health.damaged(Damage::of_node(
        Structure::Wal,
        Kind::Checksum,
        Action::Heal,
        "a segment",
    ));
    stop(front).await;

    // The restart alone closes nothing: the ledger is read before anything else is.
    let before =
        crate::health::Health::open(machine.disk.mount(), EVENTS.into(), machine.clock.clone(), None);
    assert_eq!(before.open_count(), 4, "{:#?}", before.events());

    let front = machine.start().await;
    for _ in 0..50 {
        if front.0.health().open_count() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let events = told(&front).await;
    assert_eq!(events.len(), 4, "{events:#?}");
    assert!(events.iter().all(|event| event.repaired_at_ms > 0), "{events:#?}");
    assert_eq!(a_replica(&front).await.state, "trusted");
}

#[tokio::test(start_paused = true)]
async fn an_open_event_of_a_tree_that_is_not_whole_stays_open() {
    let machine = Alone::on(&SimDisk::new(1));
    let front = machine.cluster().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let replica = a_replica(&front).await;
    assert!(replica.applied_index > 0, "{replica:#?}");
    // A tree that was never checkpointed is filled from the log: there is something to lose then.
    let running = front
        .0
        .member()
        .unwrap()
        .replicas()
        .get(replica.shard_id)
        .unwrap();
    running.checkpoint().await.unwrap();
    drop(running);
    let id = (replica.shard_id, replica.replica_id);
    front.0.health().damaged(damage(id, Structure::Tree));
    stop(front).await;
    let trees = machine.trees.trees();
    let tree = trees.iter().find(|tree| tree.shard_id == replica.shard_id);
    assert!(machine.trees.lose(*tree.expect("its tree")), "{trees:?}");
    let front = machine.start().await;
    // Nobody is there to refill it.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let events = told(&front).await;
    let open: Vec<_> = of(&events, "tree")
        .into_iter()
        .filter(|event| event.repaired_at_ms == 0)
        .map(|event| (event.position.as_str(), event.shard_id))
        .collect();
    assert!(
        open.contains(&("tables/3 at 4096", id.0)),
        "what was open: {events:#?}"
    );
    assert_eq!(open.len(), 2, "and what was found now: {events:#?}");
}

/// One case of a bad file: what is done to it, the kind that is told, and how many events are kept.
type Case = (&'static str, fn(&SimDisk), &'static str, usize);

#[tokio::test(start_paused = true)]
async fn no_bad_ledger_keeps_a_node_from_starting_and_its_good_lines_are_kept() {
    let file = || Path::new(EVENTS);
    let cases: [Case; 6] = [
        (
            "a flipped bit in the last line",
            |disk| {
                let len = disk
                    .files()
                    .iter()
                    .find(|(path, _)| path == Path::new(EVENTS))
                    .unwrap()
                    .1;
                assert!(disk.corrupt(Path::new(EVENTS), len - 5, 4));
            },
            "checksum",
            1,
        ),
        (
            "a flipped bit in the first line",
            |disk| {
                assert!(disk.corrupt(Path::new(EVENTS), 12, 4));
            },
            "checksum",
            2,
        ),
        (
            "cut after the first event",
            |disk| {
                let contents = disk.contents();
                let bytes = &contents
                    .iter()
                    .find(|(path, _)| path == Path::new(EVENTS))
                    .unwrap()
                    .1;
                let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
                let second = ends.map(|(at, _)| at).nth(1).unwrap();
                assert!(disk.cut(Path::new(EVENTS), second + 1));
            },
            "truncated",
            1,
        ),
        (
            "nothing left",
            |disk| assert!(disk.cut(Path::new(EVENTS), 0)),
            "truncated",
            0,
        ),
        (
            "zeros",
            |disk| assert!(disk.zero(Path::new(EVENTS))),
            "foreign",
            0,
        ),
        (
            "another node's",
            |disk| {
                let mount = disk.mount();
                let text =
                    String::from_utf8(crate::disk::read_file(&*mount, Path::new(EVENTS)).unwrap()).unwrap();
                let (first, rest) = text.split_once('\n').unwrap();
                let json = first[9..].replace("\"node_id\":1", "\"node_id\":2");
                let crc = crc32fast::hash(json.as_bytes());
                let bytes = format!("{crc:08x} {json}\n{rest}").into_bytes();
                crate::disk::write_file_atomically(&*mount, Path::new(EVENTS), &bytes).unwrap();
            },
            "foreign",
            0,
        ),
    ];
    for (what, harm, kind, kept) in cases {
        let machine = Alone::on(&SimDisk::new(1));
        let front = machine.cluster().await;
        for shard in [98, 99] {
            front
                .0
                .health()
                .repaired_at_once(damage((shard, 1), Structure::Record));
        }
        stop(front).await;
        harm(&machine.disk);
        let bad = crate::disk::read_file(&*machine.disk.mount(), file()).unwrap();

        let front = machine.start().await;
        let events = told(&front).await;
        assert_eq!(of(&events, "record").len(), kept, "{what}: {events:#?}");
        let own = of(&events, "events");
        assert_eq!(own.len(), 1, "{what}: {events:#?}");
        assert_eq!(
            (own[0].kind.as_str(), own[0].action.as_str()),
            (kind, "set aside"),
            "{what}"
        );
        assert!(own[0].repaired_at_ms > 0, "{what}");
        stop(front).await;
        let aside = crate::disk::read_file(&*machine.disk.mount(), Path::new("/node/events.bad")).unwrap();
        assert!(
            aside == bad,
            "{what}: the bad file is kept for whoever wants to look"
        );

        let again = machine.start().await;
        assert_eq!(told(&again).await, events, "{what}: the file is whole again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_once_and_the_ledger_is_written_when_there_is_room() {
    let machine = Alone::on(&SimDisk::new(1));
    let front = machine.cluster().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    machine.disk.fill_up(true);
    for shard in [98, 99] {
        front
            .0
            .health()
            .repaired_at_once(damage((shard, 1), Structure::Record));
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    let events = told(&front).await;
    let own = of(&events, "events");
    assert_eq!(own.len(), 1, "said once: {events:#?}");
    assert_eq!((own[0].kind.as_str(), own[0].repaired_at_ms), ("unwritable", 0));
    assert_eq!(
        front.0.health().counts()[&(Structure::Events, Kind::Unwritable)],
        1
    );
    machine.disk.fill_up(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let events = told(&front).await;
    assert!(events.iter().all(|event| event.repaired_at_ms > 0), "{events:#?}");
    front.0.abandon().await;
    machine.disk.crash(3);
    machine.trees.crash();
    drop(front);
    let again = machine.start().await;
    assert_eq!(told(&again).await, events, "and it is on disk");
}

#[tokio::test(start_paused = true)]
async fn damaged_copies_of_the_map_and_of_the_memory_of_logs_are_told_and_made_good() {
    let machine = Alone::on(&SimDisk::new(1));
    let front = machine.cluster().await;
    // A node that is alone has no others to remember; the file is there all the same once it was told of one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop(front).await;
    assert!(machine.disk.corrupt(Path::new("/node/directory"), 9, 1));
    let mount = machine.disk.mount();
    crate::disk::write_file_atomically(&*mount, Path::new("/node/watermarks"), b"junk").unwrap();
    let front = machine.start().await;
    let events = told(&front).await;
    for (structure, kind) in [("directory", "checksum"), ("watermarks", "checksum")] {
        let found = of(&events, structure);
        assert_eq!(found.len(), 1, "{structure}: {events:#?}");
        assert_eq!(
            (found[0].kind.as_str(), found[0].action.as_str()),
            (kind, "relearn")
        );
        assert!(found[0].repaired_at_ms > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn neither_a_bad_manifest_nor_odd_names_beside_the_data_keep_a_node_from_starting() {
    let machine = Alone::on(&SimDisk::new(1));
    stop(machine.cluster().await).await;
    let mount = machine.disk.mount();
    for copy in ["manifest.1", "manifest.2"] {
        assert!(machine.disk.zero(&Path::new("/node/wal").join(copy)), "{copy}");
    }
    // Files where folders of set-aside data would be, and the highest name there is.
    for name in ["lost-1", "lost-18446744073709551615", "events.bad", "recovered"] {
        crate::disk::write_file_atomically(&*mount, &Path::new("/node").join(name), b"junk").unwrap();
    }
    let front = machine.start().await;
    for _ in 0..50 {
        if front.0.member().is_some_and(|member| member.is_started()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(a_replica(&front).await.state, "trusted");
    stop(front).await;

    // Nor when there is data to be set aside: both copies of the identity are bad.
    for copy in ["/node/identity.1", "/node/identity.2"] {
        assert!(machine.disk.zero(Path::new(copy)));
    }
    let front = machine.start().await;
    assert!(front.0.member().is_none());
    let names: Vec<_> = machine.disk.files().into_iter().map(|(path, _)| path).collect();
    assert!(names.contains(&"/node/lost-2/identity.1".into()), "{names:?}");
    let events = told(&front).await;
    let open: Vec<_> = events.iter().filter(|event| event.repaired_at_ms == 0).collect();
    assert_eq!(open.len(), 1, "{events:#?}");
    assert_eq!(
        (open[0].structure.as_str(), open[0].action.as_str()),
        ("identity", "rejoin as a new node")
    );
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_the_identity_that_is_another_nodes_is_told_and_written_again() {
    let machine = Alone::on(&SimDisk::new(1));
    stop(machine.cluster().await).await;
    let mount = machine.disk.mount();
    for name in ["identity.1", "identity.2"] {
        let path = Path::new("/node").join(name);
        let own = read_file(&*mount, &path).unwrap();
        // The node's number is the last field before the checksum.
        let mut others = own.clone();
        others[35] += 1;
        let crc = crc32fast::hash(&others[..36]).to_be_bytes();
        others[36..].copy_from_slice(&crc);
        write_file_atomically(&*mount, &path, &others).unwrap();

        let front = machine.start().await;
        let events = told(&front).await;
        let event = of(&events, "identity").pop().expect("it is told");
        assert_eq!((event.kind.as_str(), event.node_id), ("foreign", 1), "{event:?}");
        assert!(event.repaired_at_ms >= event.detected_at_ms);
        assert_eq!(read_file(&*mount, &path).unwrap(), own, "{name} is written again");
        stop(front).await;
        machine.disk.lose(Path::new(EVENTS));
    }
}
