//! The suite for every engine: reads and writes.

use super::*;

for_every_engine!(
    what_was_written_is_read_with_all_its_fields,
    an_entry_is_seen_whole_or_not_at_all,
    a_view_stays_as_it_was_through_writes_checkpoints_and_compactions,
    a_deleted_key_is_absent_until_it_is_written_again,
    a_scan_pages_through_live_records_in_key_order,
    what_has_expired_is_left_out_and_found_page_by_page,
    a_transfer_sees_deleted_records_too,
    the_digest_depends_on_the_live_records_alone,
    memory_is_counted_and_the_largest_tree_named,
    a_tree_is_created_once_opened_once_and_removed_when_unused,
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

async fn what_has_expired_is_left_out_and_found_page_by_page(bench: Bench) {
    let tree = bench.storage.create(ID).await.unwrap();
    // Key and time of expiry; "e" is deleted afterwards.
    let rows = [
        ("a", 0),
        ("b", 10),
        ("c", 30),
        ("d", 20),
        ("e", 10),
        ("f", 20),
        ("g", 40),
    ];
    tree.begin_entry(8);
    for (version, (key, expires_at_ms)) in (1..).zip(rows) {
        let record = StoredRecord {
            expires_at_ms,
            ..record(key, version, Some("0123456789"))
        };
        tree.insert(&record).unwrap();
    }
    tree.insert(&record("e", 8, None)).unwrap();
    tree.publish(8);
    checkpoint(&tree, 1).await;
    let view = tree.view();
    let living = |time_ms, max| {
        let page = view.scan_living(b"", b"", max, 1 << 20, time_ms).unwrap();
        let keys: Vec<_> = page.records.iter().map(|record| record.key.clone()).collect();
        (keys, page.resume)
    };
    assert_eq!(living(9, 99).0, ["a", "b", "c", "d", "f", "g"]);
    assert_eq!(living(20, 99), (vec!["a".into(), "c".into(), "g".into()], None));
    assert_eq!(
        living(20, 2).1.as_deref(),
        Some(&b"g"[..]),
        "the expired ones fill no page"
    );
    assert_eq!(living(u64::MAX, 99).0, ["a"]);

    let expired =
        |start: &str, max_keys, max_bytes| view.expired(start.as_bytes(), 20, max_keys, max_bytes).unwrap();
    let found = |keys: &[&'static str], next_ms, resume: Option<&'static str>| Expired {
        keys: keys.iter().map(|key| Bytes::from(*key)).collect(),
        next_ms,
        resume: resume.map(Bytes::from),
    };
    assert_eq!(expired("", 99, 1 << 20), found(&["b", "d", "f"], Some(30), None));
    assert_eq!(expired("", 2, 1 << 20), found(&["b", "d"], Some(30), Some("e")));
    assert_eq!(expired("e", 2, 1 << 20), found(&["f"], Some(40), None));
    assert_eq!(
        expired("", 99, 15),
        found(&["b"], None, Some("c")),
        "bounded in bytes"
    );
    assert_eq!(
        tree.view().digest().await.unwrap().records,
        6,
        "expired records are there until removed"
    );
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
