//! One suite for every engine.

use super::*;

macro_rules! for_every_engine {
    ($($test:ident),* $(,)?) => {
        mod lsm { $( #[tokio::test] async fn $test() { super::$test(super::Bench::new(super::EngineKind::Lsm)).await } )* }
        mod memory { $( #[tokio::test] async fn $test() { super::$test(super::Bench::new(super::EngineKind::Memory)).await } )* }
        mod sled { $( #[tokio::test] async fn $test() { super::$test(super::Bench::new(super::EngineKind::Sled)).await } )* }
    };
}

for_every_engine!(
    what_was_written_is_read_with_all_its_fields,
    an_entry_is_seen_whole_or_not_at_all,
    a_view_stays_as_it_was_through_writes_checkpoints_and_compactions,
    a_deleted_key_is_absent_until_it_is_written_again,
    a_scan_pages_through_live_records_in_key_order,
    a_transfer_sees_deleted_records_too,
    the_digest_depends_on_the_live_records_alone,
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
    memory_is_counted_and_the_largest_tree_named,
    a_tree_is_created_once_opened_once_and_removed_when_unused,
    a_filled_tree_takes_versions_in_any_order_of_keys,
    a_sweep_counts_everything_and_finds_nothing_wrong,
    an_effect_outside_its_entry_is_refused,
    a_closed_tree_answers_nothing,
);

async fn what_was_written_is_read_with_all_its_fields(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("")), ("c", None)]);
    let view = tree.view();
    assert_eq!(view.version(), 3);
    assert_eq!(view.get(b"a"), Lookup::Value(record("a", 1, Some("1"))));
    assert_eq!(view.get(b"b"), Lookup::Value(record("b", 2, Some(""))));
    assert_eq!(
        view.get(b"c"),
        Lookup::Absent {
            deleted_version: Some(3)
        }
    );
    assert_eq!(
        view.get(b"d"),
        Lookup::Absent {
            deleted_version: None
        }
    );
}

async fn an_entry_is_seen_whole_or_not_at_all(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("old")), ("b", Some("old"))]);
    tree.begin_entry(4);
    tree.insert(&record("a", 3, Some("new"))).unwrap();
    assert_eq!(
        get(&tree, "a").as_deref(),
        Some("old"),
        "half an entry is not visible"
    );
    tree.insert(&record("b", 4, Some("new"))).unwrap();
    assert_eq!(
        get(&tree, "b").as_deref(),
        Some("old"),
        "an entry is visible once published"
    );
    tree.publish(4);
    assert_eq!(get(&tree, "a").as_deref(), Some("new"));
    assert_eq!(get(&tree, "b").as_deref(), Some("new"));
}

async fn a_view_stays_as_it_was_through_writes_checkpoints_and_compactions(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    let mut views = vec![tree.view()];
    for round in 1..=8 {
        let value = round.to_string();
        apply(
            &tree,
            &[
                ("a", Some(&value)),
                ("b", (round % 2 == 0).then_some(&*value)),
                ("c", Some(&value)),
            ],
        );
        views.push(tree.view());
        if round % 2 == 0 {
            checkpoint(&tree, round).await;
        }
        if round % 4 == 0 {
            while tree.compact().await.unwrap().is_some() {}
            tree.compact_fully().await.unwrap();
        }
    }
    while !views.is_empty() {
        for view in &views {
            let round = view.version() / 3;
            let expected = (round > 0).then(|| round.to_string());
            assert_eq!(value(view.get(b"a")), expected, "a at round {round}");
            assert_eq!(
                value(view.get(b"b")),
                expected.clone().filter(|_| round % 2 == 0),
                "b at round {round}"
            );
            let live = if round == 0 {
                0
            } else {
                2 + u64::from(round % 2 == 0)
            };
            assert_eq!(
                view.digest().await.unwrap().records,
                live,
                "records at round {round}"
            );
        }
        views.remove(0);
        tree.compact_fully().await.unwrap();
        assert!(views.iter().all(|view| view.version() >= tree.floor()));
    }
    assert_eq!(tree.floor(), tree.visible());
    assert_eq!(tree.open_views(), 0);
}

async fn a_deleted_key_is_absent_until_it_is_written_again(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    checkpoint(&tree, 1).await;
    apply(&tree, &[("a", None)]);
    assert_eq!(
        tree.view().get(b"a"),
        Lookup::Absent {
            deleted_version: Some(2)
        }
    );
    checkpoint(&tree, 2).await;
    assert_eq!(
        tree.view().get(b"a"),
        Lookup::Absent {
            deleted_version: Some(2)
        }
    );
    tree.compact_fully().await.unwrap();
    assert_eq!(
        tree.view().get(b"a"),
        Lookup::Absent {
            deleted_version: None
        }
    );
    apply(&tree, &[("a", Some("3"))]);
    assert_eq!(get(&tree, "a").as_deref(), Some("3"));
}

async fn a_scan_pages_through_live_records_in_key_order(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    let keys: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
    for key in &keys {
        apply(&tree, &[(key, Some("0123456789"))]);
    }
    apply(&tree, &[("k3", None), ("k9", None)]);
    checkpoint(&tree, 1).await;
    apply(&tree, &[("k4", None), ("k5", Some("x"))]);
    let view = tree.view();
    let keys_of = |page: &Page| -> Vec<String> {
        page.records
            .iter()
            .map(|record| String::from_utf8(record.key.to_vec()).unwrap())
            .collect()
    };
    let all = view.scan(b"", b"", 100, 1 << 20).unwrap();
    assert_eq!(keys_of(&all), ["k0", "k1", "k2", "k5", "k6", "k7", "k8"]);
    assert_eq!(all.resume, None);
    let first = view.scan(b"k1", b"k8", 2, 1 << 20).unwrap();
    assert_eq!(
        (keys_of(&first), first.resume.as_deref()),
        (vec!["k1".into(), "k2".into()], Some(&b"k5"[..]))
    );
    let rest = view.scan(b"k5", b"k8", 3, 1 << 20).unwrap();
    assert_eq!(
        (keys_of(&rest), rest.resume),
        (vec!["k5".into(), "k6".into(), "k7".into()], None)
    );
    let small = view.scan(b"", b"", 100, 1).unwrap();
    assert_eq!(keys_of(&small), ["k0"], "a page holds at least one record");
    assert_eq!(small.resume.as_deref(), Some(&b"k1"[..]));
    let two = view.scan(b"", b"", 100, 24).unwrap();
    assert_eq!(keys_of(&two), ["k0", "k1"], "a page is bounded in bytes");
    assert_eq!(view.scan(b"k5", b"k5", 9, 9).unwrap(), Page::default());
    assert_eq!(view.scan(b"k8", b"k1", 9, 9).unwrap(), Page::default());
}

async fn a_transfer_sees_deleted_records_too(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("2"))]);
    apply(&tree, &[("a", None), ("b", Some("4")), ("c", Some("5"))]);
    let page = tree.view().scan_all(b"", 1 << 20).unwrap();
    let expected = [
        record("a", 3, None),
        record("b", 4, Some("4")),
        record("c", 5, Some("5")),
    ];
    assert_eq!((&page.records[..], page.resume), (&expected[..], None));
    assert_eq!(
        tree.view().scan_all_in(b"b", b"c", 1 << 20).unwrap().records,
        &expected[1..2]
    );
}

async fn the_digest_depends_on_the_live_records_alone(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(
        &tree,
        &[
            ("a", Some("1")),
            ("b", Some("2")),
            ("gone", Some("3")),
            ("gone", None),
        ],
    );
    let before = tree.view().digest().await.unwrap();
    let mut expected = Digest::default();
    expected.add(&record("b", 2, Some("2")));
    expected.add(&record("a", 1, Some("1")));
    assert_eq!(before, expected);
    checkpoint(&tree, 1).await;
    tree.compact_fully().await.unwrap();
    assert_eq!(
        tree.view().digest().await.unwrap(),
        before,
        "control rows and dropped deletes do not count"
    );
    let part = tree.view().digest_of(b"b", b"").await.unwrap();
    assert_eq!(
        (part.records, part.digest),
        (1, record("b", 2, Some("2")).digest())
    );
}

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

async fn memory_is_counted_and_the_largest_tree_named(bench: Bench) {
    let small = bench.storage.create(ID).await.unwrap();
    let large_id = TreeId { shard_id: 13, ..ID };
    let large = bench.storage.create(large_id).await.unwrap();
    let value = "x".repeat(10_000);
    for _ in 0..2 {
        apply(&small, &[("a", Some(&value))]);
    }
    for _ in 0..3 {
        apply(&large, &[("a", Some(&value))]);
    }
    assert!(small.memtable_bytes() >= 20_000 && large.memtable_bytes() >= 30_000);
    assert_eq!(
        bench.storage.memtable_bytes(),
        small.memtable_bytes() + large.memtable_bytes()
    );
    assert_eq!(bench.storage.over_budget(), None, "64 KiB are allowed");
    apply(&large, &[("b", Some(&value)), ("c", Some(&value))]);
    assert_eq!(bench.storage.over_budget(), Some(large_id));
    let sealed = large.seal(b"", LogId::new(1, 1)).unwrap();
    assert!(sealed.bytes() >= 50_000);
    assert_eq!(
        bench.storage.over_budget(),
        Some(large_id),
        "sealed is not yet durable"
    );
    large.flush(sealed).await.unwrap();
    assert_eq!((bench.storage.over_budget(), large.memtable_bytes()), (None, 0));
    assert!(bench.storage.disk_bytes() > 0);
}

async fn a_tree_is_created_once_opened_once_and_removed_when_unused(bench: Bench) {
    let (storage, other) = (&bench.storage, TreeId { generation: 2, ..ID });
    assert_eq!(
        storage.open(ID, None).await.unwrap_err(),
        TreeError::Missing { tree: ID }
    );
    let tree = storage.create(ID).await.unwrap();
    assert_eq!(
        storage.create(ID).await.unwrap_err(),
        TreeError::InUse { tree: ID }
    );
    assert_eq!(
        storage.open(ID, None).await.unwrap_err(),
        TreeError::InUse { tree: ID }
    );
    storage.create(other).await.unwrap();
    assert_eq!(storage.list().unwrap(), [ID, other]);
    let view = tree.view();
    tree.close().await.unwrap();
    assert_eq!(
        storage.remove(ID).await.unwrap_err(),
        TreeError::InUse { tree: ID }
    );
    drop(view);
    assert_eq!(
        storage.create(ID).await.unwrap_err(),
        TreeError::Exists { tree: ID }
    );
    let opened = storage.open(ID, None).await.unwrap();
    assert_eq!(
        (opened.applied, opened.newer_than_mark),
        (LogId::default(), false)
    );
    drop(opened);
    storage.remove(ID).await.unwrap();
    assert_eq!(
        storage.remove(ID).await.unwrap_err(),
        TreeError::Missing { tree: ID }
    );
    assert_eq!(storage.list().unwrap(), [other]);
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

async fn a_sweep_counts_everything_and_finds_nothing_wrong(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1")), ("b", Some("2")), ("c", None)]);
    checkpoint(&tree, 1).await;
    apply(&tree, &[("d", Some("4"))]);
    let report = tree.sweep().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.version, report.deleted), (4, 1));
    assert_eq!(report.live, tree.view().digest().await.unwrap());
    assert_eq!((report.live.records, report.live.bytes), (3, 6));
}

async fn an_effect_outside_its_entry_is_refused(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    tree.begin_entry(2);
    for version in [0, 3] {
        let refused = tree.insert(&record("a", version, Some("1")));
        assert!(
            matches!(refused, Err(TreeError::Invalid { .. })),
            "version {version}: {refused:?}"
        );
    }
    let long = record(&"k".repeat(40_000), 1, Some("1"));
    assert!(matches!(tree.insert(&long), Err(TreeError::Invalid { .. })));
}

async fn a_closed_tree_answers_nothing(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    apply(&tree, &[("a", Some("1"))]);
    tree.clone().close().await.unwrap();
    assert_eq!(tree.view().get(b"a"), Lookup::Unproven(TreeError::Closed));
    assert_eq!(tree.view().scan(b"", b"", 1, 1).unwrap_err(), TreeError::Closed);
    assert_eq!(tree.seal(b"", LogId::default()).unwrap_err(), TreeError::Closed);
    assert_eq!(tree.sweep().await.unwrap_err(), TreeError::Closed);
}
