//! The suite for every engine: checkpoints, stops, crashes and compactions.

use super::*;

for_every_engine!(
    a_restart_finds_exactly_the_last_checkpoint,
    a_crash_leaves_exactly_the_last_checkpoint_or_a_refusal,
    a_checkpoint_whose_mark_was_not_recorded_is_accepted,
    a_tree_older_than_its_mark_is_refused,
    a_seal_without_a_flush_is_not_a_checkpoint,
    one_flush_may_cover_two_seals,
    writes_between_seal_and_flush_are_not_in_the_checkpoint,
    a_version_below_the_floor_is_refused,
    compaction_drops_old_versions_and_deleted_records_and_keeps_the_newest,
    a_delete_that_is_not_durable_survives_compaction_and_crash,
    a_filled_tree_takes_versions_in_any_order_of_keys,
);

async fn a_restart_finds_exactly_the_last_checkpoint(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("2"))]);
    checkpoint(&tree, 7).await;
    apply(&tree, &[("a", Some("3")), ("c", Some("4"))]);
    let mark = checkpoint(&tree, 9).await;
    assert_eq!(
        (mark.tree, mark.applied, mark.last_version),
        (ID, LogId::new(1, 9), 4)
    );
    assert_eq!(tree.durable(), LogId::new(1, 9));
    apply(&tree, &[("a", Some("5")), ("b", None), ("d", Some("7"))]);
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&mark)).await.unwrap();
    assert_eq!(&opened.control[..], b"control 9");
    assert_eq!(
        (opened.applied, opened.newer_than_mark),
        (LogId::new(1, 9), false)
    );
    let tree = opened.tree;
    assert_eq!((tree.visible(), tree.floor()), (4, 4));
    let values: Vec<_> = ["a", "b", "c", "d"].iter().map(|key| get(&tree, key)).collect();
    assert_eq!(
        values,
        [Some("3".into()), Some("2".into()), Some("4".into()), None]
    );
    // The log is applied again, and life goes on.
    apply(&tree, &[("a", Some("5")), ("b", None), ("d", Some("7"))]);
    let mark = checkpoint(&tree, 10).await;
    bench.restart(tree).await;
    let tree = bench.reopen(Some(&mark)).await.unwrap().tree;
    assert_eq!((get(&tree, "a").as_deref(), get(&tree, "b")), (Some("5"), None));
}

async fn a_crash_leaves_exactly_the_last_checkpoint_or_a_refusal(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("2"))]);
    let mark = checkpoint(&tree, 9).await;
    apply(&tree, &[("a", Some("3")), ("b", None)]);
    bench.crash();
    let reopened = bench.reopen(Some(&mark)).await;
    if bench.engine == EngineKind::Sled {
        assert_eq!(reopened.unwrap_err(), TreeError::Unclean { tree: ID });
        return;
    }
    let opened = reopened.unwrap();
    assert_eq!(opened.applied, LogId::new(1, 9));
    assert_eq!(get(&opened.tree, "a").as_deref(), Some("1"));
    assert_eq!(get(&opened.tree, "b").as_deref(), Some("2"));
    if bench.engine == EngineKind::Memory {
        let sealed = tree.seal(b"", LogId::new(1, 10)).unwrap();
        let error = tree.flush(sealed).await.unwrap_err();
        assert_eq!(
            error,
            TreeError::Closed,
            "what was opened before the crash writes nothing after it"
        );
    }
}

async fn a_checkpoint_whose_mark_was_not_recorded_is_accepted(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    let recorded = checkpoint(&tree, 1).await;
    apply(&tree, &[("a", Some("2"))]);
    let unrecorded = checkpoint(&tree, 2).await;
    assert!(unrecorded.version_id > recorded.version_id);
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&recorded)).await.unwrap();
    assert!(opened.newer_than_mark);
    assert_eq!(opened.applied, LogId::new(1, 2));
    assert_eq!(get(&opened.tree, "a").as_deref(), Some("2"));
    let again = opened.tree.mark().await.unwrap();
    assert_eq!(
        again, unrecorded,
        "the mark to record again is the one that was lost"
    );
    bench.restart(opened.tree).await;
    assert!(
        bench.reopen(None).await.unwrap().newer_than_mark,
        "any checkpoint is newer than none"
    );
}

async fn a_tree_older_than_its_mark_is_refused(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    let mark = checkpoint(&tree, 1).await;
    bench.restart(tree).await;
    let later_files = Mark {
        version_id: mark.version_id + 1,
        ..mark.clone()
    };
    let error = bench.reopen(Some(&later_files)).await.unwrap_err();
    assert!(
        matches!(error, TreeError::Damaged { .. }) && error.sets_tree_aside(),
        "{error}"
    );
    if bench.engine != EngineKind::Sled {
        // (sled's proof of a clean stop was taken by the attempt above.)
        let later_entry = Mark {
            applied: LogId::new(1, 2),
            ..mark
        };
        let error = bench.reopen(Some(&later_entry)).await.unwrap_err();
        assert!(matches!(error, TreeError::Damaged { .. }), "{error}");
    }
}

async fn a_seal_without_a_flush_is_not_a_checkpoint(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    let mark = checkpoint(&tree, 1).await;
    apply(&tree, &[("a", Some("2"))]);
    let sealed = tree.seal(b"", LogId::new(1, 2)).unwrap();
    assert_eq!(sealed.applied(), LogId::new(1, 2));
    assert_eq!(get(&tree, "a").as_deref(), Some("2"), "a sealed memtable is read");
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&mark)).await.unwrap();
    assert_eq!(opened.applied, LogId::new(1, 1));
    assert_eq!(get(&opened.tree, "a").as_deref(), Some("1"));
}

async fn one_flush_may_cover_two_seals(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("2"))]);
    let first = tree.seal(b"first", LogId::new(1, 1)).unwrap();
    apply(&tree, &[("a", Some("3"))]);
    let second = tree.seal(b"second", LogId::new(1, 2)).unwrap();
    let mark = tree.flush(first).await.unwrap();
    assert_eq!(mark.applied, LogId::new(1, 2));
    assert_eq!(tree.memtable_bytes(), 0);
    assert_eq!(
        tree.flush(second).await.unwrap(),
        mark,
        "there was nothing left to do"
    );
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&mark)).await.unwrap();
    assert_eq!(
        (&opened.control[..], get(&opened.tree, "a").as_deref()),
        (&b"second"[..], Some("3"))
    );
}

async fn writes_between_seal_and_flush_are_not_in_the_checkpoint(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    let sealed = tree.seal(b"", LogId::new(1, 1)).unwrap();
    apply(&tree, &[("a", Some("2"))]);
    tree.begin_entry(4);
    tree.insert(&record("a", 3, Some("half an entry"))).unwrap();
    let mark = tree.flush(sealed).await.unwrap();
    assert_eq!((mark.applied, mark.last_version), (LogId::new(1, 1), 1));
    assert_eq!(get(&tree, "a").as_deref(), Some("2"));
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&mark)).await.unwrap();
    assert_eq!(
        (opened.tree.visible(), get(&opened.tree, "a").as_deref()),
        (1, Some("1"))
    );
}

async fn a_version_below_the_floor_is_refused(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    apply(&tree, &[("a", Some("2"))]);
    apply(&tree, &[("a", Some("3"))]);
    assert_eq!(tree.floor(), 0);
    let old = tree.view_at(2).unwrap();
    checkpoint(&tree, 1).await;
    assert_eq!(tree.floor(), 2, "an open view keeps the floor down");
    assert_eq!(value(old.get(b"a")).as_deref(), Some("2"));
    assert_eq!(
        tree.view_at(1).unwrap_err(),
        TreeError::BelowFloor { asked: 1, floor: 2 }
    );
    drop(old);
    assert_eq!(
        value(tree.view_at(2).unwrap().get(b"a")).as_deref(),
        Some("2"),
        "not dropped yet"
    );
    apply(&tree, &[("b", Some("4"))]);
    checkpoint(&tree, 2).await;
    assert_eq!(
        tree.view_at(2).unwrap_err(),
        TreeError::BelowFloor { asked: 2, floor: 4 }
    );
    assert_eq!(
        tree.view_at(5).unwrap_err(),
        TreeError::NotVisible { asked: 5, visible: 4 }
    );
}

async fn compaction_drops_old_versions_and_deleted_records_and_keeps_the_newest(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    let big = "x".repeat(1_000);
    for round in 1..=20 {
        apply(
            &tree,
            &[("a", Some(&big)), ("b", Some(&big)), ("gone", Some(&big))],
        );
        checkpoint(&tree, round).await;
        while tree.compact().await.unwrap().is_some() {}
    }
    apply(&tree, &[("gone", None), ("kept", None)]);
    let view = tree.view();
    checkpoint(&tree, 21).await;
    apply(&tree, &[("kept", None)]);
    checkpoint(&tree, 22).await;
    let mark = tree
        .compact_fully()
        .await
        .unwrap()
        .expect("there is something to drop");
    let seen = view.scan_all(b"", 1 << 20).unwrap().records;
    let kept = |record: &StoredRecord| *record.key == *b"kept" && record.version == view.version();
    assert!(
        seen.iter().any(kept),
        "the view still sees the version that it is at"
    );
    let report = tree.sweep().await.unwrap();
    assert_eq!(
        (report.live.records, report.deleted),
        (2, 1),
        "the delete of `gone` is dropped"
    );
    // (sled returns space in segments, some time later.)
    let bytes = tree.disk_bytes();
    assert!(
        bytes < 12_000 || bench.engine == EngineKind::Sled,
        "{bytes} bytes for 2 records of 1,000"
    );
    drop(view);
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&mark)).await.unwrap();
    assert_eq!(opened.applied, LogId::new(1, 22));
    assert_eq!(get(&opened.tree, "a"), Some(big));
    assert_eq!(get(&opened.tree, "gone"), None);
}

async fn a_delete_that_is_not_durable_survives_compaction_and_crash(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    checkpoint(&tree, 1).await;
    apply(&tree, &[("a", None)]);
    tree.compact_fully().await.unwrap();
    let mark = tree.mark().await.unwrap();
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&mark)).await.unwrap();
    assert_eq!(
        get(&opened.tree, "a").as_deref(),
        Some("1"),
        "the checkpoint is from before the delete"
    );
}

async fn a_filled_tree_takes_versions_in_any_order_of_keys(mut bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    tree.begin_entry(100);
    tree.publish(100);
    tree.insert(&record("a", 90, Some("a"))).unwrap();
    tree.insert(&record("b", 3, Some("b"))).unwrap();
    let sealed = tree.seal(b"", LogId::default()).unwrap();
    tree.flush(sealed).await.unwrap(); // a long fill is flushed on the way
    tree.insert(&record("c", 100, None)).unwrap();
    tree.insert(&record("d", 1, Some("d"))).unwrap();
    let mark = checkpoint(&tree, 50).await;
    apply(&tree, &[("b", Some("later"))]);
    assert_eq!(get(&tree, "b").as_deref(), Some("later"));
    bench.restart(tree).await;
    let opened = bench.reopen(Some(&mark)).await.unwrap();
    let values: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|key| get(&opened.tree, key))
        .collect();
    assert_eq!(
        values,
        [Some("a".into()), Some("b".into()), None, Some("d".into())]
    );
    assert_eq!(opened.tree.visible(), 100);
}
