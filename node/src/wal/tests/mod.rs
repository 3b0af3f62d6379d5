#![allow(clippy::disallowed_methods)]

mod exhaustive;
mod scrub;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::disk::sim::SimDisk;

const DIR: &str = "/data/wal";
const WHO: Identity = Identity {
    cluster_id: [1; 16],
    node_id: 2,
};
const A: GroupId = GroupId {
    shard_id: 1,
    replica_id: 1,
};
const B: GroupId = GroupId {
    shard_id: 2,
    replica_id: 7,
};

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 64 << 10,
        tail_cache_bytes: 1 << 10,
        idle_mark_ms: 5,
    }
}

async fn open(disk: &SimDisk) -> (Wal, Recovery) {
    Wal::open(disk.mount(), PathBuf::from(DIR), config(), WHO)
        .await
        .expect("the log opens")
}

fn entry(term: u64, index: u64, payload: &str) -> WalEntry {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    WalEntry {
        log_id: LogId::new(term, index),
        kind: EntryKind::Normal,
        payload,
    }
}

async fn append(group: &WalGroup, entries: Vec<WalEntry>) -> io::Result<()> {
    let (sender, durable) = tokio::sync::oneshot::channel();
    group.append(entries, Box::new(move |result| drop(sender.send(result))))?;
    durable.await.expect("told")
}

async fn payloads(group: &WalGroup) -> Vec<String> {
    let first = group.purged().map_or(0, |id| id.index + 1);
    let entries = group.read(first, u64::MAX, usize::MAX).await.expect("readable");
    entries
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.payload).into_owned())
        .collect()
}

/// Two replicas with votes, marks and a few entries.
async fn filled(disk: &SimDisk) -> Wal {
    let (wal, _) = open(disk).await;
    for id in [A, B] {
        let group = wal.birth(id, Bytes::from(format!("info of {id}"))).await.unwrap();
        group
            .save_vote(Vote {
                term: 3,
                voted_for: 9,
                committed: true,
            })
            .await
            .unwrap();
        for index in 0..5 {
            append(&group, vec![entry(3, index, &format!("{id} entry {index}"))])
                .await
                .unwrap();
        }
        group
            .put_mark(Bytes::from(format!("mark of {id}")))
            .await
            .unwrap();
    }
    wal
}

#[tokio::test(start_paused = true)]
async fn everything_is_there_after_a_restart() {
    let disk = SimDisk::new(1);
    filled(&disk).await.close().await;
    let (wal, recovery) = open(&disk).await;
    assert!(recovery.damage.is_empty(), "{:?}", recovery.damage);
    assert_eq!(wal.groups(), [A, B]);
    let group = wal.group(B).unwrap();
    assert_eq!(
        group.vote(),
        Some(Vote {
            term: 3,
            voted_for: 9,
            committed: true
        })
    );
    assert_eq!(group.mark().unwrap(), format!("mark of {B}"));
    assert_eq!(group.info(), format!("info of {B}"));
    assert_eq!(group.last(), Some(LogId::new(3, 4)));
    assert_eq!(payloads(&group).await[4], format!("{B} entry 4"));
}

#[tokio::test(start_paused = true)]
async fn entries_can_be_read_before_they_are_durable() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk).await;
    let group = wal.birth(A, Bytes::new()).await.unwrap();
    group.append(vec![entry(1, 0, "x")], Box::new(|_| {})).unwrap();
    assert_eq!(payloads(&group).await, ["x"]);
}

#[tokio::test(start_paused = true)]
async fn one_sync_serves_everybody_who_waits_and_answers_come_in_order() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk).await;
    let groups = [
        wal.birth(A, Bytes::new()).await.unwrap(),
        wal.birth(B, Bytes::new()).await.unwrap(),
    ];
    let before = disk.syncs();
    let order = Arc::new(Mutex::new(Vec::new()));
    for index in 0..100 {
        for (position, group) in groups.iter().enumerate() {
            let order = order.clone();
            let told = move |result: io::Result<()>| {
                result.unwrap();
                order.lock().push((index, position));
            };
            group.append(vec![entry(1, index, "x")], Box::new(told)).unwrap();
        }
    }
    groups[0]
        .save_vote(Vote {
            term: 2,
            voted_for: 1,
            committed: false,
        })
        .await
        .unwrap();
    assert_eq!(
        order.lock().len(),
        200,
        "a durable vote means that everything before is durable"
    );
    assert!(order.lock().is_sorted());
    assert!(disk.syncs() - before <= 3, "{} syncs", disk.syncs() - before);
}

#[tokio::test(start_paused = true)]
async fn a_truncated_tail_stays_away_and_another_takes_its_place() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await;
    let group = wal.group(A).unwrap();
    group.truncate_after(Some(LogId::new(3, 2))).unwrap();
    append(&group, vec![entry(4, 3, "new three")]).await.unwrap();
    disk.crash(5);
    let (wal, _) = open(&disk).await;
    let group = wal.group(A).unwrap();
    assert_eq!(group.last(), Some(LogId::new(4, 3)));
    assert_eq!(payloads(&group).await[3], "new three");
}

#[tokio::test(start_paused = true)]
async fn purged_entries_free_their_segments_and_idle_replicas_do_not_hold_them() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await; // B stays idle from here on
    let group = wal.group(A).unwrap();
    for index in 5..400 {
        append(&group, vec![entry(3, index, &"x".repeat(2_000))])
            .await
            .unwrap();
        if index % 10 == 0 {
            group.purge(LogId::new(3, index - 1)).unwrap();
        }
    }
    assert!(
        wal.disk_bytes() <= 6 * (64 << 10),
        "{} bytes are kept",
        wal.disk_bytes()
    );
    assert!(wal.segments_removed() > 0);
    disk.crash(1);
    let (wal, recovery) = open(&disk).await;
    assert_eq!(wal.segments_removed(), 0, "counted since the start");
    assert!(recovery.damage.is_empty(), "{:?}", recovery.damage);
    let idle = wal.group(B).unwrap();
    assert_eq!(
        idle.vote(),
        Some(Vote {
            term: 3,
            voted_for: 9,
            committed: true
        })
    );
    assert_eq!(idle.mark().unwrap(), format!("mark of {B}"));
    assert_eq!(payloads(&idle).await.len(), 5);
    assert_eq!(wal.group(A).unwrap().purged(), Some(LogId::new(3, 389)));
}

#[tokio::test(start_paused = true)]
async fn an_entry_larger_than_a_segment_gets_a_segment_of_its_own_size() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk).await;
    let group = wal.birth(A, Bytes::new()).await.unwrap();
    append(&group, vec![entry(1, 0, &"y".repeat(300_000))])
        .await
        .unwrap();
    append(&group, vec![entry(1, 1, "z")]).await.unwrap();
    disk.crash(3);
    let (wal, _) = open(&disk).await;
    assert_eq!(payloads(&wal.group(A).unwrap()).await[0].len(), 300_000);
}

#[tokio::test(start_paused = true)]
async fn the_dead_stay_dead() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await;
    wal.death(A).await.unwrap();
    assert!(wal.group(A).is_none());
    assert!(wal.birth(A, Bytes::new()).await.is_err());
    disk.crash(2);
    let (wal, _) = open(&disk).await;
    assert_eq!(wal.groups(), [B]);
    assert!(
        wal.birth(A, Bytes::new()).await.is_err(),
        "not even after a restart"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_sync_nothing_is_accepted_and_nothing_tried_again() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await;
    let group = wal.group(A).unwrap();
    disk.fail_syncs_after(0);
    assert!(append(&group, vec![entry(3, 5, "lost")]).await.is_err());
    assert!(wal.is_poisoned());
    let syncs = disk.syncs();
    assert!(append(&group, vec![entry(3, 6, "later")]).await.is_err());
    assert!(
        group
            .save_vote(Vote {
                term: 9,
                voted_for: 1,
                committed: false
            })
            .await
            .is_err()
    );
    assert_eq!(disk.syncs(), syncs);
    disk.crash(1);
    let (wal, _) = open(&disk).await;
    assert!(
        payloads(&wal.group(A).unwrap()).await.len() >= 5,
        "what was acknowledged is there"
    );
}

#[tokio::test(start_paused = true)]
async fn another_nodes_log_is_refused_and_left_alone() {
    let disk = SimDisk::new(1);
    filled(&disk).await.close().await;
    let before = disk.files();
    let other = Identity { node_id: 3, ..WHO };
    let refused = Wal::open(disk.mount(), PathBuf::from(DIR), config(), other)
        .await
        .err();
    assert!(matches!(refused, Some(WalError::Foreign { .. })), "{refused:?}");
    assert_eq!(disk.files(), before);
}

/// One segment of another node among this node's own is what a lost one is: told, and gone in the end.
#[tokio::test(start_paused = true)]
async fn another_nodes_segment_in_place_of_an_own_one_is_a_lost_segment() {
    let (disk, other) = (SimDisk::new(1), SimDisk::new(2));
    for life in 0..3 {
        let wal = match life {
            0 => filled(&disk).await,
            _ => open(&disk).await.0,
        };
        let vote = Vote {
            term: 4 + life,
            voted_for: 9,
            committed: true,
        };
        wal.group(B).unwrap().save_vote(vote).await.unwrap();
        wal.close().await;
    }
    let stranger = Identity { node_id: 3, ..WHO };
    let strangers = Wal::open(other.mount(), PathBuf::from(DIR), config(), stranger).await;
    let (strangers, _) = strangers.expect("an empty directory");
    strangers.birth(A, Bytes::new()).await.unwrap();
    strangers.close().await;
    let foreign = crate::disk::read_file(&*other.mount(), &segment_path(&other)).unwrap();

    let segments = segment_paths(&disk);
    assert!(segments.len() > 1, "{segments:?}");
    for (at, path) in segments.iter().enumerate() {
        let struck = disk.copy(at as u64);
        crate::disk::write_file_atomically(&*struck.mount(), path, &foreign).unwrap();
        let mut found = owners(&*struck.mount(), Path::new(DIR));
        found.sort_by_key(|owner| owner.node_id);
        assert_eq!(found, [WHO, stranger]);
        let (wal, recovery) = open(&struck).await;
        let name = path.file_name().unwrap().to_string_lossy();
        let told = recovery.damage.iter().find(|damage| damage.segment == name);
        let told = told.unwrap_or_else(|| panic!("segment {at}: {:?}", recovery.damage));
        assert!(told.what.contains("another node's"), "{told:?}");
        for group in &recovery.groups {
            assert!(
                !group.damaged.is_empty(),
                "{group:?} may have lost something with segment {at}"
            );
            wal.death(group.id).await.unwrap();
        }
        // Another replica takes the place of what was lost; nothing holds the old segments any more.
        let next = GroupId { replica_id: 20, ..A };
        wal.birth(next, Bytes::new()).await.unwrap();
        wal.close().await;
        let left = crate::disk::read_file(&*struck.mount(), path);
        assert!(left.is_err(), "segment {at} is still there");
        let (_, recovery) = open(&struck).await;
        assert_eq!(recovery.damage, [], "segment {at}");
    }
}

/// The last batch of a life has no mark that it was synced. A start that finds it whole makes it durable, and says
/// so: from then on it is damage if it is bad, not the end of a write that the power cut tore.
#[tokio::test(start_paused = true)]
async fn a_last_batch_that_a_start_found_whole_is_never_torn_later() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await;
    // Large enough that it stays where it is.
    let payload = "x".repeat(20 << 10);
    append(&wal.group(A).unwrap(), vec![entry(3, 5, &payload)])
        .await
        .unwrap();
    disk.crash(1); // before the log went idle: nothing says that the last batch was synced
    let damage = |disk: &SimDisk| {
        let find = |path: &PathBuf| {
            let bytes = crate::disk::read_file(&*disk.mount(), path).unwrap();
            bytes
                .windows(64)
                .position(|window| window == &payload.as_bytes()[..64])
        };
        let mut places = segment_paths(disk).into_iter();
        let place = places.find_map(|path| find(&path).map(|at| (path, at)));
        let (path, at) = place.expect("the payload");
        assert!(disk.corrupt(&path, at + 100, 1));
    };
    let faulty = |recovery: Recovery| {
        let all = recovery.groups.into_iter().flat_map(|group| group.faulty);
        all.map(|entry| (entry.log_id.index, entry.perhaps_torn))
            .collect::<Vec<_>>()
    };
    let torn = disk.copy(1);
    damage(&torn);
    assert_eq!(faulty(open(&torn).await.1), [(5, true)]);

    let (wal, _) = open(&disk).await;
    append(&wal.group(B).unwrap(), vec![entry(3, 5, "more")])
        .await
        .unwrap();
    wal.close().await;
    disk.crash(2);
    assert_eq!(faulty(open(&disk.copy(2)).await.1), []);
    damage(&disk);
    assert_eq!(faulty(open(&disk).await.1), [(5, false)]);
}

fn segment_paths(disk: &SimDisk) -> Vec<PathBuf> {
    let files = disk.files().into_iter().map(|(path, _)| path);
    let mut segments: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    segments.sort();
    segments
}

fn segment_path(disk: &SimDisk) -> PathBuf {
    let first = segment_paths(disk).into_iter().next();
    first.expect("a segment")
}

/// What a replica answers must be what was written, or damage must be reported for it.
async fn never_wrong(disk: &SimDisk, what: &str) {
    let opened = Wal::open(disk.mount(), PathBuf::from(DIR), config(), WHO).await;
    let (wal, recovery) = match opened {
        Ok(opened) => opened,
        Err(error) => panic!("{what}: {error}"),
    };
    for id in [A, B] {
        let found = recovery.groups.iter().find(|group| group.id == id);
        let Some(found) = found else {
            assert!(
                !recovery.damage.is_empty(),
                "{what}: {id} vanished without a word"
            );
            continue;
        };
        if !found.damaged.is_empty() {
            continue;
        }
        let group = wal.group(id).unwrap();
        assert_eq!(
            group.vote(),
            Some(Vote {
                term: 3,
                voted_for: 9,
                committed: true
            }),
            "{what}: vote of {id}"
        );
        assert_eq!(group.mark().unwrap(), format!("mark of {id}"), "{what}");
        assert_eq!(group.last(), Some(LogId::new(3, 4)), "{what}: {id}");
        for index in 0..5 {
            let faulty = found.faulty.iter().any(|faulty| faulty.log_id.index == index);
            match group.read(index, index + 1, usize::MAX).await {
                Ok(entries) => {
                    assert!(!faulty);
                    assert_eq!(entries[0].payload, format!("{id} entry {index}"), "{what}");
                }
                Err(_) => assert!(faulty, "{what}: {id} entry {index} fails without being reported"),
            }
        }
    }
    wal.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_zeroed_or_missing_segment_is_reported() {
    let disk = SimDisk::new(1);
    filled(&disk).await.close().await;
    let path = segment_path(&disk);
    for len in (0..65_536).step_by(1_021) {
        let copy = disk.copy(len as u64);
        assert!(copy.cut(&path, len));
        never_wrong(&copy, &format!("cut to {len}")).await;
    }
    let copy = disk.copy(1);
    assert!(copy.zero(&path));
    never_wrong(&copy, "zeroed").await;
    let copy = disk.copy(2);
    assert!(copy.lose(&path));
    never_wrong(&copy, "missing").await;
    for manifest in ["manifest.1", "manifest.2"] {
        let copy = disk.copy(3);
        assert!(copy.lose(&Path::new(DIR).join(manifest)));
        never_wrong(&copy, manifest).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_faulty_entry_is_healed_by_its_payload_and_by_no_other() {
    let disk = SimDisk::new(1);
    filled(&disk).await.close().await;
    let wanted = format!("{A} entry 2");
    let find = |path: &PathBuf| {
        let bytes = crate::disk::read_file(&*disk.mount(), path).unwrap();
        bytes
            .windows(wanted.len())
            .position(|window| window == wanted.as_bytes())
            .map(|at| (path.clone(), at))
    };
    let (path, at) = disk
        .files()
        .iter()
        .find_map(|(path, _)| find(path))
        .expect("the payload");
    assert!(disk.corrupt(&path, at, 0x40));
    let (wal, recovery) = open(&disk).await;
    let faulty = recovery.groups[0].faulty[0];
    assert_eq!((faulty.log_id, faulty.perhaps_torn), (LogId::new(3, 2), false));
    let group = wal.group(A).unwrap();
    assert_eq!(group.first_fault(), Some(2));
    assert!(
        group
            .heal(faulty.log_id, Bytes::from_static(b"another"))
            .await
            .is_err()
    );
    group
        .heal(faulty.log_id, Bytes::from(format!("{A} entry 2")))
        .await
        .unwrap();
    assert_eq!(group.first_fault(), None);
    disk.crash(1);
    let (wal, recovery) = open(&disk).await;
    assert!(recovery.groups[0].faulty.is_empty());
    assert_eq!(payloads(&wal.group(A).unwrap()).await[2], format!("{A} entry 2"));
}

/// What one replica's owner was told is durable.
#[derive(Clone, Default, Debug)]
struct Told {
    /// Payload by index, as last acknowledged; everything above was never acknowledged.
    entries: Vec<String>,
    vote: Option<Vote>,
    mark: Option<String>,
    /// Index up to which a purge was asked for.
    purge_asked: u64,
}

/// Runs random operations until the power goes; returns what was acknowledged.
async fn run_until_power_fails(disk: &SimDisk, seed: u64, steps: usize) -> [Told; 2] {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut told = [Told::default(), Told::default()];
    let Ok((wal, _)) = Wal::open(disk.mount(), PathBuf::from(DIR), config(), WHO).await else {
        return told;
    };
    let mut groups = Vec::new();
    for id in [A, B] {
        match wal.birth(id, Bytes::from_static(b"info")).await {
            Ok(group) => groups.push(group),
            Err(_) => return told,
        }
    }
    let mut term = 1;
    for step in 0..steps {
        let which = rng.random_range(0..2);
        let (group, known) = (&groups[which], &mut told[which]);
        let done = match rng.random_range(0..10) {
            0..6 => {
                let count = rng.random_range(1..4);
                let next = known.entries.len() as u64;
                let len = if rng.random_range(0..8) == 0 {
                    9_000
                } else {
                    rng.random_range(0..300)
                };
                let texts: Vec<String> = (0..count)
                    .map(|at| format!("{seed}/{step}/{at}/{}", "p".repeat(len)))
                    .collect();
                let entries = texts
                    .iter()
                    .enumerate()
                    .map(|(at, text)| entry(term, next + at as u64, text));
                let outcome = append(group, entries.collect()).await;
                if outcome.is_ok() {
                    known.entries.extend(texts);
                }
                outcome
            }
            6 => {
                term += 1;
                let vote = Vote {
                    term,
                    voted_for: step as u64,
                    committed: rng.random(),
                };
                let outcome = group.save_vote(vote).await;
                if outcome.is_ok() {
                    known.vote = Some(vote);
                }
                outcome
            }
            7 => {
                let mark = format!("mark {step}");
                let outcome = group.put_mark(Bytes::from(mark.clone())).await;
                if outcome.is_ok() {
                    known.mark = Some(mark);
                }
                outcome
            }
            8 if known.entries.len() as u64 > known.purge_asked + 2 => {
                known.purge_asked = rng.random_range(known.purge_asked..known.entries.len() as u64 - 1);
                match group.log_id(known.purge_asked) {
                    Some(id) => group.purge(id),
                    None => Ok(()),
                }
            }
            _ => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                Ok(())
            }
        };
        if done.is_err() {
            break;
        }
    }
    told
}

/// Recovery must give what was acknowledged, or later.
async fn check_recovery(disk: &SimDisk, told: &[Told; 2], what: &str) {
    let opened = Wal::open(disk.mount(), PathBuf::from(DIR), config(), WHO).await;
    let (wal, recovery) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    for (id, told) in [A, B].into_iter().zip(told) {
        if told.entries.is_empty() && told.vote.is_none() && told.mark.is_none() {
            continue;
        }
        let found = recovery.groups.iter().find(|group| group.id == id);
        let found = found.unwrap_or_else(|| panic!("{what}: {id} is gone"));
        assert!(
            found.damaged.is_empty(),
            "{what}: a power cut is not damage: {:?}",
            found.damaged
        );
        let group = wal.group(id).unwrap();
        let term = |vote: Option<Vote>| vote.map(|vote| vote.term);
        assert!(
            term(group.vote()) >= term(told.vote),
            "{what}: {id} forgot a vote"
        );
        assert!(
            told.mark.is_none() || group.mark().is_some(),
            "{what}: {id} forgot a mark"
        );
        let first = group.purged().map_or(0, |purged| purged.index + 1);
        assert!(
            first <= told.purge_asked + 1,
            "{what}: {id} purged what nobody asked for"
        );
        for index in first..told.entries.len() as u64 {
            let read = group.read(index, index + 1, usize::MAX).await;
            let entries = read.unwrap_or_else(|error| panic!("{what}: {id} entry {index}: {error}"));
            let text = entries
                .first()
                .map(|entry| String::from_utf8_lossy(&entry.payload).into_owned());
            assert_eq!(
                text.as_ref(),
                told.entries.get(index as usize),
                "{what}: {id} entry {index}"
            );
        }
        for faulty in &found.faulty {
            assert!(
                faulty.perhaps_torn && faulty.log_id.index >= told.entries.len() as u64,
                "{what}: {faulty:?}"
            );
        }
    }
    wal.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_operation_loses_nothing_acknowledged() {
    static CASES: AtomicU64 = AtomicU64::new(0);
    for seed in 0..6 {
        let whole = SimDisk::new(seed);
        run_until_power_fails(&whole, seed, 60).await;
        let operations = whole.operations();
        assert!(operations > 100, "seed {seed} did only {operations} operations");
        for cut in 0..operations {
            let what = format!("seed {seed}, power cut at operation {cut}");
            let disk = SimDisk::new(seed);
            disk.power_off_after(cut);
            let told = run_until_power_fails(&disk, seed, 60).await;
            disk.crash(seed ^ cut);
            check_recovery(&disk, &told, &what).await;
            // A second cut right after the restart changes nothing.
            disk.crash(cut);
            check_recovery(&disk, &told, &format!("{what}, and once more")).await;
            CASES.fetch_add(1, Ordering::Relaxed);
        }
    }
    assert!(CASES.load(Ordering::Relaxed) > 600);
}
