//! Damage in the log of a running node.

use super::*;
use crate::disk::sim::SimDisk;

/// Reads the log once, from the first byte to the last; what was found.
async fn cycle(wal: &Wal) -> (Vec<Damage>, bool) {
    let (mut position, mut found) = (ScrubPosition::default(), Vec::new());
    loop {
        let step = wal
            .scrub(position, 4_096)
            .await
            .expect("a log that is not poisoned");
        found.extend(step.damage);
        if step.cycle_ended {
            return (found, step.is_whole);
        }
        position = step.next;
    }
}

/// Lets the writer finish what it was asked for, and its log go idle.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
}

fn find(disk: &SimDisk, wanted: &[u8]) -> Vec<(PathBuf, usize)> {
    let in_file = |(path, bytes): (PathBuf, Vec<u8>)| {
        let found = bytes
            .windows(wanted.len())
            .enumerate()
            .filter(|(_, window)| *window == wanted);
        found.map(|(at, _)| (path.clone(), at)).collect::<Vec<_>>()
    };
    disk.contents().into_iter().flat_map(in_file).collect()
}

/// Everything is there, and a restart finds nothing wrong.
async fn is_whole_after_a_crash(disk: &SimDisk, what: &str) {
    disk.crash(1);
    let (wal, recovery) = open(disk).await;
    assert!(recovery.damage.is_empty(), "{what}: {:?}", recovery.damage);
    for id in [A, B] {
        let group = wal.group(id).unwrap();
        assert_eq!(group.mark().unwrap(), format!("mark of {id}"), "{what}");
        assert_eq!(group.vote().unwrap().term, 3, "{what}");
        let expected: Vec<_> = (0..5).map(|index| format!("{id} entry {index}")).collect();
        assert_eq!(payloads(&group).await, expected, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_log_is_found_whole_again_and_again() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await;
    for _ in 0..3 {
        assert_eq!(cycle(&wal).await, (Vec::new(), true));
        pause().await;
    }
}

/// Whatever is kept twice is written again elsewhere, whichever copy was hit, or both; the damaged segment goes.
#[tokio::test(start_paused = true)]
async fn anything_kept_twice_that_turns_bad_is_found_and_written_again() {
    let mut whole = Vec::new();
    for at in 0..16 {
        whole.push(("the first segment", vec![at * 4_096 + 8]));
    }
    whole.push(("both headers", vec![8, 15 * 4_096 + 8]));
    for (what, offsets) in whole {
        let disk = SimDisk::new(1);
        let wal = filled(&disk).await;
        pause().await;
        let path = segment_path(&disk);
        let used = disk
            .contents()
            .into_iter()
            .find(|(name, _)| *name == path)
            .unwrap()
            .1;
        for offset in &offsets {
            assert!(disk.corrupt(&path, *offset, 0x10));
        }
        let what = format!("{what} at {offsets:?}");
        let (found, is_whole) = cycle(&wal).await;
        if used[offsets[0]] == 0 && found.is_empty() {
            continue; // a free block
        }
        assert!(
            !is_whole && found.iter().all(|damage| damage.group.is_none()),
            "{what}: {found:?}"
        );
        pause().await;
        assert!(found.iter().all(|damage| wal.is_gone(damage)), "{what}");
        let of_a_living_segment = Damage {
            segment: segment_path(&disk)
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned(),
            ..found[0].clone()
        };
        assert!(!wal.is_gone(&of_a_living_segment), "{what}");
        assert_eq!(cycle(&wal).await, (Vec::new(), true), "{what}");
        assert!(
            !disk.files().iter().any(|(name, _)| *name == path),
            "{what}: it is still there"
        );
        is_whole_after_a_crash(&disk, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_record_bad_in_both_copies_is_written_again_from_memory() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await;
    pause().await;
    let places = find(&disk, format!("mark of {B}").as_bytes());
    assert!(places.len() >= 2, "{places:?}");
    for (path, at) in &places {
        assert!(disk.corrupt(path, *at, 1));
    }
    let (found, _) = cycle(&wal).await;
    assert!(!found.is_empty());
    pause().await;
    assert_eq!(cycle(&wal).await, (Vec::new(), true));
    is_whole_after_a_crash(&disk, "both copies of a mark").await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_manifest_is_found_and_written_again() {
    for damage in 0..4 {
        let disk = SimDisk::new(1);
        let wal = filled(&disk).await;
        let copy = Path::new(DIR).join(["manifest.1", "manifest.2"][damage % 2]);
        match damage {
            0 | 1 => assert!(disk.corrupt(&copy, 9, 1)),
            2 => assert!(disk.lose(&copy)),
            _ => assert!(disk.cut(&copy, 3)),
        }
        let (found, _) = cycle(&wal).await;
        assert_eq!(found.len(), 1, "{found:?}");
        pause().await;
        assert!(!wal.is_gone(&found[0]), "it is written again in its place");
        assert_eq!(cycle(&wal).await, (Vec::new(), true));
        is_whole_after_a_crash(&disk, "a manifest").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_turns_bad_makes_its_entry_faulty_and_is_healed_from_memory() {
    let disk = SimDisk::new(1);
    let wal = filled(&disk).await;
    let group = wal.group(A).unwrap();
    let wanted = format!("{A} entry 3");
    let (path, at) = find(&disk, wanted.as_bytes()).remove(0);
    assert!(disk.corrupt(&path, at, 1));
    let (found, is_whole) = cycle(&wal).await;
    assert!(is_whole, "nothing but a payload");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].group, found[0].log_id),
        (Some(A), Some(LogId::new(3, 3)))
    );
    assert_eq!(wal.faulty_groups(), [A]);
    assert_eq!(cycle(&wal).await.0, [], "it is known");
    assert_eq!(group.take_note_of_damage(), [LogId::new(3, 3)]);
    assert_eq!(group.take_note_of_damage(), []);
    // It is still in memory: readers see nothing of it, and it is healed from there.
    assert_eq!(payloads(&group).await[3], wanted);
    assert!(group.heal_from_here(LogId::new(3, 3)).await.unwrap());
    assert_eq!(wal.faulty_groups(), []);
    is_whole_after_a_crash(&disk, "a payload").await;
}

#[tokio::test(start_paused = true)]
async fn a_membership_whose_first_copy_turns_bad_is_healed_from_its_second() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk).await;
    let group = wal.birth(A, Bytes::new()).await.unwrap();
    let members = WalEntry {
        kind: EntryKind::Membership,
        ..entry(1, 0, "members")
    };
    append(&group, vec![members]).await.unwrap();
    append(&group, vec![entry(1, 1, &"x".repeat(5_000))])
        .await
        .unwrap(); // fills the cache
    let places = find(&disk, b"members");
    assert_eq!(places.len(), 2, "it is kept twice");
    assert!(disk.corrupt(&places[0].0, places[0].1, 1));
    assert!(group.read(0, 1, usize::MAX).await.is_err());
    assert_eq!(group.memberships(), [LogId::new(1, 0)]);
    assert!(group.heal_from_here(LogId::new(1, 0)).await.unwrap());
    assert_eq!(group.read(0, 1, usize::MAX).await.unwrap()[0].payload, "members");
}

/// What was lost of a replica is not forgotten when the segment goes in which it was seen.
#[tokio::test(start_paused = true)]
async fn a_replica_that_lost_its_vote_stays_lost() {
    let disk = SimDisk::new(1);
    filled(&disk).await.close().await;
    let path = segment_path(&disk);
    // Votes are the third batch of a replica: term 3 for 9, committed.
    let vote = [&9_u64.to_le_bytes()[..], &[1]].concat();
    let places: Vec<_> = find(&disk, &vote)
        .into_iter()
        .filter(|(found, _)| *found == path)
        .collect();
    for (path, at) in places.iter().take(1).chain(places.last()) {
        assert!(disk.corrupt(path, *at, 1));
    }
    let (wal, recovery) = open(&disk).await;
    let lost: Vec<_> = recovery
        .groups
        .iter()
        .filter(|group| !group.damaged.is_empty())
        .map(|group| group.id)
        .collect();
    assert_eq!(lost, [A], "{:?}", recovery.damage);
    assert!(wal.group(A).unwrap().lost().is_some());
    assert_eq!(wal.group(B).unwrap().lost(), None);
    // Everything is carried along, and the segment goes.
    let other = wal.group(B).unwrap();
    for index in 5..60 {
        append(&other, vec![entry(3, index, &"x".repeat(2_000))])
            .await
            .unwrap();
    }
    cycle(&wal).await;
    pause().await;
    assert!(
        !disk.files().iter().any(|(name, _)| *name == path),
        "it is still there"
    );
    disk.crash(1);
    let (_, recovery) = open(&disk).await;
    let still: Vec<_> = recovery
        .groups
        .iter()
        .filter(|group| !group.damaged.is_empty())
        .map(|group| group.id)
        .collect();
    assert_eq!(still, [A], "{:?}", recovery.damage);
}

/// An entry that was acknowledged and is damaged does not count as perhaps torn because the copy that
/// was to heal it was.
#[tokio::test(start_paused = true)]
async fn a_damaged_entry_stays_damaged_when_its_healing_is_torn() {
    let mut torn = 0;
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        filled(&disk).await.close().await;
        let wanted = format!("{A} entry 2");
        let (path, at) = find(&disk, wanted.as_bytes()).remove(0);
        assert!(disk.corrupt(&path, at, 1));
        let (wal, _) = open(&disk).await;
        let group = wal.group(A).unwrap();
        disk.power_off_after(seed % 16);
        let healed = group.heal(LogId::new(3, 2), Bytes::from(wanted.clone())).await;
        disk.crash(seed);
        let (wal, recovery) = open(&disk).await;
        let group = wal.group(A).unwrap();
        let faulty = &recovery.groups[0].faulty;
        match faulty.first() {
            Some(faulty) => {
                assert!(healed.is_err(), "seed {seed}: it was healed");
                assert!(!faulty.perhaps_torn, "seed {seed}: {faulty:?}");
                torn += usize::from(recovery.torn_records > 0);
            }
            None => assert_eq!(payloads(&group).await[2], wanted, "seed {seed}"),
        }
    }
    println!("{torn} were torn");
}
