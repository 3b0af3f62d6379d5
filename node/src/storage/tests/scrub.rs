//! Everything on the device is read again, a little at a time.

use super::damage::{answers_hold, filled};
use super::*;
use crate::storage::{ScrubCursor, ScrubStep};

for_every_engine!(
    a_scrub_reads_everything_in_pieces_again_and_again,
    a_scrub_of_an_empty_tree_finishes,
);

/// One pass. Returns bytes, steps and what was bad.
async fn pass(tree: &Tree, max_bytes: u64) -> (u64, usize, Vec<TreeError>) {
    let (mut cursor, mut bytes, mut bad) = (ScrubCursor::default(), 0, Vec::new());
    for steps in 1.. {
        let step = tree.scrub_step(cursor, max_bytes).await.unwrap();
        bytes += step.bytes;
        bad.extend(step.bad);
        cursor = step.cursor;
        if step.finished {
            return (bytes, steps, bad);
        }
    }
    unreachable!("a pass ends")
}

async fn a_scrub_reads_everything_in_pieces_again_and_again(bench: Bench) {
    let (tree, mark, contents) = filled(&bench).await;
    let payload: usize = contents.iter().map(|(key, value)| key.len() + value.len()).sum();
    for _ in 0..2 {
        let (bytes, steps, bad) = pass(&tree, 20_000).await;
        assert_eq!(bad, []);
        assert!(bytes as usize > payload, "{bytes} bytes of {payload}");
        assert!(steps as u64 > bytes / 40_000, "{bytes} bytes in {steps} steps");
        let tables = mark.files.iter().filter(|file| file.name.starts_with("tables/"));
        if bench.engine == EngineKind::Lsm {
            assert_eq!(bytes, tables.map(|file| file.len).sum::<u64>());
        }
    }
    tree.clone().close().await.unwrap();
    let closed = tree.scrub_step(ScrubCursor::default(), 1).await.unwrap_err();
    assert_eq!(closed, TreeError::Closed);
}

async fn a_scrub_of_an_empty_tree_finishes(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    assert_eq!(pass(&tree, 1).await, (0, 1, Vec::new()));
}

#[tokio::test]
async fn a_byte_flipped_under_a_tree_that_has_everything_in_memory_is_seen_where_it_is() {
    let bench = Bench::new(EngineKind::Lsm);
    let (tree, mark, contents) = filled(&bench).await;
    for table in mark.files.iter().filter(|file| file.name.starts_with("tables/")) {
        assert!(answers_hold(&tree, &contents), "every block has been read");
        let path = bench.folder().join(&table.name);
        let whole = std::fs::read(&path).unwrap();
        for at in [40, whole.len() / 2, whole.len() - 60, whole.len() - 1] {
            let mut data = whole.clone();
            data[at] ^= 1;
            std::fs::write(&path, data).unwrap();
            let (_, _, bad) = pass(&tree, 10_000).await;
            let [TreeError::Damaged { what, .. }] = &bad[..] else {
                panic!("byte {at} of {}: {bad:?}", table.name)
            };
            assert_eq!(*what, table.name);
            std::fs::write(&path, &whole).unwrap();
        }
        std::fs::rename(&path, bench.folder().join("away")).unwrap();
        assert!(
            !pass(&tree, 10_000).await.2.is_empty(),
            "a missing table is noticed"
        );
        std::fs::rename(bench.folder().join("away"), &path).unwrap();
    }
    assert_eq!(pass(&tree, 10_000).await.2, []);
}

#[tokio::test]
async fn a_bad_block_is_reported_by_the_step_that_reads_it() {
    let bench = Bench::new(EngineKind::Lsm);
    let (tree, mark, _) = filled(&bench).await;
    let tables = mark.files.iter().filter(|file| file.name.starts_with("tables/"));
    let table = tables.max_by_key(|file| file.len).unwrap();
    let path = bench.folder().join(&table.name);
    let mut data = std::fs::read(&path).unwrap();
    let at = data.len() / 3;
    data[at] ^= 1;
    std::fs::write(&path, data).unwrap();
    let (mut cursor, mut from) = (ScrubCursor::default(), 0_u64);
    let first_bad = loop {
        let ScrubStep {
            cursor: next,
            bytes,
            bad,
            finished,
        } = tree.scrub_step(cursor, 8_192).await.unwrap();
        if !bad.is_empty() {
            break from..from + bytes;
        }
        assert!(!finished, "the flipped byte was not seen");
        from += bytes;
        cursor = next;
    };
    assert!(
        first_bad.end - first_bad.start < 20_000,
        "its table's end was not waited for: {first_bad:?}"
    );
}

#[tokio::test]
async fn small_files_are_part_of_a_pass() {
    let bench = Bench::new(EngineKind::Lsm);
    let (tree, mark, _) = filled(&bench).await;
    for file in &mark.contents {
        let path = bench.folder().join(&file.name);
        for at in [0, file.bytes.len() / 2, file.bytes.len() - 1] {
            let mut data = file.bytes.to_vec();
            data[at] ^= 1;
            std::fs::write(&path, data).unwrap();
            assert_eq!(
                pass(&tree, u64::MAX).await.2.len(),
                1,
                "byte {at} of {}",
                file.name
            );
        }
        std::fs::write(&path, &file.bytes).unwrap();
    }
    assert_eq!(pass(&tree, u64::MAX).await.2, []);
}

#[tokio::test]
async fn checkpoints_and_compactions_go_on_during_a_pass() {
    let bench = Bench::new(EngineKind::Lsm);
    let (tree, mark, mut contents) = filled(&bench).await;
    let expected: u64 = mark
        .files
        .iter()
        .filter(|file| file.name.starts_with("tables/"))
        .map(|file| file.len)
        .sum();
    let mut step = tree.scrub_step(ScrubCursor::default(), 4_096).await.unwrap();
    let mut bytes = step.bytes;
    let mut round = 10;
    while !step.finished {
        if round < 14 {
            super::damage::write(&tree, 3, round, &mut contents);
            checkpoint(&tree, u64::from(round)).await;
            tree.compact_fully().await.unwrap();
            round += 1;
        }
        step = tree.scrub_step(step.cursor, 50_000).await.unwrap();
        assert_eq!(step.bad, []);
        bytes += step.bytes;
    }
    assert_eq!(bytes, expected, "the files of when it began");
    assert!(answers_hold(&tree, &contents));
}

#[tokio::test]
async fn a_scrub_of_the_memory_engine_finds_the_records_that_its_device_has_wrong() {
    let bench = Bench::new(EngineKind::Memory);
    let (tree, _, contents) = filled(&bench).await;
    let damaged = bench.device.damage_record(ID, 7).unwrap();
    let (_, _, bad) = pass(&tree, 3_000).await;
    assert_eq!(bad.len(), 1, "{bad:?}");
    let spans = tree.bad_spans().await.unwrap();
    assert_eq!(spans.len(), 1);
    let inside = contents.keys().filter(|key| spans[0].holds(key.as_bytes()));
    assert_eq!(
        inside.collect::<Vec<_>>(),
        [std::str::from_utf8(&damaged).unwrap()]
    );
}
