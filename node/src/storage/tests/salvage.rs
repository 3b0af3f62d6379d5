//! What is good of a damaged tree goes into a new one; what is not is named, and nothing else.

use std::collections::BTreeMap;

use super::damage::{Contents, answers_hold, filled, write};
use super::*;
use crate::storage::{Salvaged, Stretches, exhaustive};

const NEXT: TreeId = TreeId { generation: 2, ..ID };

/// Fills the bad spans from what a peer has, and makes the new tree durable.
async fn fill(salvaged: &Salvaged, peer: &BTreeMap<Bytes, StoredRecord>) -> Mark {
    for span in &salvaged.bad_spans {
        for record in peer.values().filter(|record| span.holds(&record.key)) {
            salvaged.tree.insert(record).unwrap();
        }
    }
    checkpoint(&salvaged.tree, 3).await
}

/// The newest records of a tree, as a healthy peer has them.
fn records(tree: &Tree) -> BTreeMap<Bytes, StoredRecord> {
    let page = tree.view().scan_all(b"", usize::MAX).unwrap();
    let records = page.records.into_iter();
    records.map(|record| (record.key.clone(), record)).collect()
}

fn lost(salvaged: &Salvaged, contents: &Contents) -> usize {
    let inside = |key: &&String| salvaged.bad_spans.iter().any(|span| span.holds(key.as_bytes()));
    contents.keys().filter(inside).count()
}

fn tables(mark: &Mark) -> impl Iterator<Item = &str> {
    let names = mark.files.iter().map(|file| file.name.as_str());
    names.filter(|name| name.starts_with("tables/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_a_small_tree_nothing_wrong_is_believed() {
    let scratch = tempfile::tempdir().unwrap();
    let tried = exhaustive(scratch.path())
        .await
        .unwrap_or_else(|case| panic!("{case}"));
    println!("{tried:?}");
    assert!(tried.healed > 3_000 && tried.salvaged > 80_000, "{tried:?}");
    assert!(
        (1..=40).contains(&tried.lost_by_a_bit_max),
        "one bit costs the keys of one block, about 35, and its neighbours: {tried:?}"
    );
}

#[tokio::test]
async fn a_salvaged_tree_with_its_spans_filled_is_the_tree_that_was() {
    // (of the last table, at a share of its length)
    for place in [0.0001, 0.1, 0.4, 0.7, 0.99] {
        let mut bench = Bench::new(EngineKind::Lsm);
        let (tree, mark, mut contents) = filled(&bench).await;
        let peer = records(&tree);
        tree.close().await.unwrap();
        for table in tables(&mark) {
            let path = bench.folder().join(table);
            let mut data = std::fs::read(&path).unwrap();
            let at = (data.len() as f64 * place) as usize;
            data[at] ^= 0x10;
            std::fs::write(&path, data).unwrap();
        }
        assert!(bench.reopen(Some(&mark)).await.unwrap_err().sets_tree_aside());
        let salvaged = bench.storage.salvage(ID, &mark, NEXT).await.unwrap();
        let lost = lost(&salvaged, &contents);
        println!("at {place}: {} blocks, {lost} keys", salvaged.lost_blocks);
        assert!(
            salvaged.lost_blocks <= 3 && lost < 400,
            "{lost} keys in {salvaged:?}"
        );
        assert_eq!(salvaged.records as usize, contents.len() - lost);
        // One of its two copies is whole, wherever the damage lies.
        assert_eq!(salvaged.control.as_deref(), Some(&b"control 3"[..]));
        for (key, record) in &peer {
            let inside = salvaged.bad_spans.iter().any(|span| span.holds(key));
            let expected = match inside {
                true => Lookup::Absent {
                    deleted_version: None,
                },
                false => Lookup::Value(record.clone()),
            };
            assert_eq!(salvaged.tree.view().get(key), expected, "{}", key.escape_ascii());
        }
        let new_mark = fill(&salvaged, &peer).await;
        assert_eq!(records(&salvaged.tree), peer);
        // Life goes on, and the old folder may go.
        let tree = salvaged.tree;
        write(&tree, 5, 9, &mut contents);
        assert!(answers_hold(&tree, &contents));
        bench.storage.remove(ID).await.unwrap();
        tree.close().await.unwrap();
        bench.crash();
        let opened = bench.storage.open(NEXT, Some(&new_mark)).await.unwrap();
        assert_eq!(records(&opened.tree), peer, "at its checkpoint");
    }
}

#[tokio::test]
async fn a_missing_table_costs_its_own_keys_and_no_others() {
    let bench = Bench::new(EngineKind::Lsm);
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("1")), ("x", Some("1"))]);
    checkpoint(&tree, 1).await;
    apply(&tree, &[("m", Some("2")), ("n", Some("2"))]);
    let mark = checkpoint(&tree, 2).await;
    tree.close().await.unwrap();
    let [older, newer] = &tables(&mark).collect::<Vec<_>>()[..] else {
        panic!("{mark:?}")
    };
    let (older, newer) = match *mark.note(older).unwrap().first == *b"a" {
        true => (*older, *newer),
        false => (*newer, *older),
    };
    for (gone, kept, control) in [
        (newer, vec!["a", "b", "x"], None),
        (older, vec![], Some(&b"control 2"[..])),
    ] {
        let away = bench.trees().join("away");
        std::fs::rename(bench.folder().join(gone), &away).unwrap();
        let into = TreeId {
            generation: if gone == newer { 5 } else { 6 },
            ..ID
        };
        let salvaged = bench.storage.salvage(ID, &mark, into).await.unwrap();
        let scanned = salvaged.tree.view().scan(b"", b"", 9, 999).unwrap();
        let found: Vec<_> = scanned.records.iter().map(|record| &*record.key).collect();
        // "m" and "n" lie between "a" and "x": of what is between them the missing table may know more.
        let kept: Vec<_> = kept.iter().map(|key| key.as_bytes()).collect();
        assert_eq!(found, kept, "without {gone}");
        assert_eq!(salvaged.control.as_deref(), control);
        assert_eq!(salvaged.bad_spans.len(), 1);
        std::fs::rename(away, bench.folder().join(gone)).unwrap();
    }
}

#[tokio::test]
async fn a_large_table_is_told_of_in_stretches_and_saved_block_by_block() {
    let bench = Bench::new(EngineKind::Lsm);
    let tree = bench.storage.create(ID).await.unwrap();
    let big = "x".repeat(1_000);
    let keys: Vec<String> = (0..8_000).map(|number| format!("k{number:04}")).collect();
    for chunk in keys.chunks(500) {
        let effects: Vec<_> = chunk.iter().map(|key| (key.as_str(), Some(&*big))).collect();
        apply(&tree, &effects);
    }
    let mark = checkpoint(&tree, 1).await;
    tree.close().await.unwrap();
    let [note] = &mark.tables[..] else {
        panic!("{mark:?}")
    };
    let Stretches { blocks_log2, list } = &note.stretches;
    assert!(
        *blocks_log2 > 0 && list.len() > 500,
        "{} of 2^{blocks_log2}",
        list.len()
    );
    assert!(mark.encode().len() < 10_000, "{} bytes", mark.encode().len());
    let each = 1 << blocks_log2;
    let path = bench.folder().join(&note.name);
    let whole = std::fs::read(&path).unwrap();
    let stretch_at: u32 = list[..400].iter().map(|stretch| stretch.bytes).sum();
    // A bad header hides where the next block is and what it must be; bad contents hide nothing.
    for (generation, at, lost_blocks) in [(2, 5, each), (3, 33 + 700, 1)] {
        let mut data = whole.clone();
        data[stretch_at as usize + at] ^= 1;
        std::fs::write(&path, data).unwrap();
        let into = TreeId { generation, ..ID };
        let salvaged = bench.storage.salvage(ID, &mark, into).await.unwrap();
        assert_eq!(salvaged.lost_blocks, lost_blocks);
        let [span] = &salvaged.bad_spans[..] else {
            panic!("{salvaged:?}")
        };
        let lost = keys.iter().filter(|key| span.holds(key.as_bytes())).count() as u64;
        assert!(
            (1..=lost_blocks * 5 + 1).contains(&lost),
            "{lost} keys in {span:?}"
        );
        assert_eq!(salvaged.records + lost, keys.len() as u64);
    }
}

#[tokio::test]
async fn what_was_deleted_stays_deleted() {
    let bench = Bench::new(EngineKind::Lsm);
    let tree = bench.storage.create(ID).await.unwrap();
    let big = "x".repeat(3_000);
    let keys: Vec<String> = (0..40).map(|number| format!("k{number:02}")).collect();
    for key in &keys {
        apply(&tree, &[(key, Some(&big))]);
    }
    checkpoint(&tree, 1).await;
    tree.compact_fully().await.unwrap();
    apply(&tree, &[("k03", None), ("k20", None), ("k39", None)]);
    let mark = checkpoint(&tree, 2).await;
    tree.close().await.unwrap();
    let largest = mark.files.iter().max_by_key(|file| file.len).unwrap();
    let path = bench.folder().join(&largest.name);
    let mut data = std::fs::read(&path).unwrap();
    let middle = data.len() / 4;
    data[middle] ^= 1;
    std::fs::write(path, data).unwrap();
    let salvaged = bench.storage.salvage(ID, &mark, NEXT).await.unwrap();
    let view = salvaged.tree.view();
    let mut inside = 0;
    for key in &keys {
        let deleted = ["k03", "k20", "k39"].contains(&key.as_str());
        if salvaged.bad_spans.iter().any(|span| span.holds(key.as_bytes())) {
            inside += 1;
            continue;
        }
        assert_eq!(value(view.get(key.as_bytes())).is_none(), deleted, "{key}");
    }
    assert!(
        (1..10).contains(&inside),
        "{inside} keys in {:?}",
        salvaged.bad_spans
    );
}

#[tokio::test]
async fn a_mark_of_an_earlier_release_saves_whole_tables_only() {
    let bench = Bench::new(EngineKind::Lsm);
    let (tree, mark, contents) = filled(&bench).await;
    tree.close().await.unwrap();
    let old = Mark {
        contents: Vec::new(),
        tables: Vec::new(),
        ..mark
    };
    let salvaged = bench.storage.salvage(ID, &old, NEXT).await.unwrap();
    assert_eq!(salvaged.bad_spans, [], "nothing is damaged");
    assert!(answers_hold(&salvaged.tree, &contents));
    let table = bench.folder().join(tables(&old).next().unwrap());
    let mut data = std::fs::read(&table).unwrap();
    data[5_000] ^= 1;
    std::fs::write(&table, data).unwrap();
    let into = TreeId { generation: 3, ..ID };
    let salvaged = bench.storage.salvage(ID, &old, into).await.unwrap();
    let [span] = &salvaged.bad_spans[..] else {
        panic!("{salvaged:?}")
    };
    assert_eq!(
        span.range(),
        (Bytes::new(), Bytes::new()),
        "nothing tells where its keys are"
    );
    assert_eq!(salvaged.records, 0);
}

#[tokio::test]
async fn salvage_says_what_it_cannot_do() {
    for engine in EngineKind::ALL {
        let bench = Bench::new(engine);
        let (tree, mark, _) = filled(&bench).await;
        let open = bench.storage.salvage(ID, &mark, NEXT).await.unwrap_err();
        assert_eq!(open, TreeError::InUse { tree: ID });
        tree.close().await.unwrap();
        let other = bench.storage.salvage(NEXT, &mark, ID).await.unwrap_err();
        assert!(matches!(other, TreeError::Invalid { .. }), "{other}");
        let salvaged = bench.storage.salvage(ID, &mark, NEXT).await;
        match engine {
            EngineKind::Lsm => drop(salvaged.unwrap()),
            _ => assert_eq!(salvaged.unwrap_err(), TreeError::NotSalvageable { tree: ID }),
        }
        let again = bench.storage.salvage(ID, &mark, ID).await.unwrap_err();
        assert!(matches!(again, TreeError::Invalid { .. }), "{again}");
    }
}
