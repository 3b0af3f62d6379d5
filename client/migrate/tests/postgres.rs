//! Import and verify against a real PostgreSQL and a store in memory.

#![allow(clippy::disallowed_methods)]

mod common;
mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{PgServer, load_pagila, pagila_or_skip};
use reelkv_migrate::{
    ImportOptions, ImportReport, MemoryTarget, MigrateError, MismatchKind, Progress, ProgressEvent,
    STATE_KEYSPACE, Target, VerifyOptions, decode_key, import, verify,
};
use serde_json::json;
use support::{assert_clean, import_options, row, rows_of, verified, verify_options};

#[tokio::test(flavor = "multi_thread")]
async fn pagila_arrives_whole_in_balanced_pieces_and_planted_damage_is_found() {
    let test = "pagila_arrives_whole_in_balanced_pieces_and_planted_damage_is_found";
    let Some(directory) = pagila_or_skip(test) else {
        return;
    };
    let Some(server) = PgServer::start_or_skip(test) else {
        return;
    };
    load_pagila(&server, &directory);
    let url = server.url("pagila");
    let target = Arc::new(MemoryTarget::new());
    let report = import(import_options(url.clone()), target.clone()).await.unwrap();

    let counts = std::fs::read_to_string(directory.join("COUNTS.txt")).unwrap();
    let tables = counts
        .lines()
        .filter(|line| line.contains("|table|") || line.contains("|partitioned table|"));
    let expected: BTreeMap<String, u64> = tables
        .map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            (format!("public.{}", fields[0]), fields[2].parse().unwrap())
        })
        .collect();
    assert_eq!(expected.len(), 15);
    assert_eq!(rows_of(&report), expected);
    assert_eq!(report.rows(), 49_636);
    assert_eq!(report.previous, None);
    assert_clean(&url, &target).await;
    assert_balanced(&target, &report, 8);

    let (_, language) = row(&target, "public.language", &json!([1]));
    assert_eq!(language["name"], json!("English             "));
    let (_, film) = row(&target, "public.film", &json!([1]));
    assert_eq!(film["rental_rate"], json!("0.99"));
    assert_eq!(
        film["special_features"],
        json!(["Deleted Scenes", "Behind the Scenes"])
    );

    let (missing, _) = row(&target, "public.actor", &json!([7]));
    target.delete("public.actor", missing).await.unwrap();
    let (_, other) = target.rows("public.film").swap_remove(1);
    let (different, _) = row(&target, "public.film", &json!([1]));
    target
        .put_many("public.film", vec![(different, other)])
        .await
        .unwrap();
    let extra = (
        Bytes::from(foundationdb_tuple::pack(&(7i64, 9_999i64))),
        Bytes::from_static(b"\x01\xa0"),
    );
    target.put_many("public.film_actor", vec![extra]).await.unwrap();
    let report = verified(&url, &target).await;
    assert!(!report.clean);
    for table in &report.tables {
        let found = (table.missing, table.different, table.extra);
        match table.table.as_str() {
            "public.actor" => {
                assert_eq!(found, (1, 0, 0));
                assert_eq!(
                    (&table.mismatches[0].kind, &table.mismatches[0].key),
                    (&MismatchKind::Missing, &json!([7]))
                );
            }
            "public.film" => {
                assert_eq!(found, (0, 1, 0));
                assert_eq!(table.mismatches[0].key, json!([1]));
                assert!(
                    table.mismatches[0]
                        .columns
                        .iter()
                        .any(|column| column.column == "title")
                );
                assert!(
                    table.mismatches[0]
                        .columns
                        .iter()
                        .all(|column| column.column != "language_id")
                );
            }
            "public.film_actor" => {
                assert_eq!(found, (0, 0, 1));
                assert_eq!(table.mismatches[0].key, json!([7, 9_999]));
            }
            _ => assert!(table.is_clean(), "{table:?}"),
        }
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["clean"], json!(false));
    assert_eq!(json["tables"][0]["mismatches"][0]["kind"], json!("missing"));
}

/// No piece of any keyspace has more rows than its share, and a piece begins where the first key element changes.
fn assert_balanced(target: &MemoryTarget, report: &ImportReport, shards: usize) {
    let most = report.rows() as usize / shards;
    let mut split = 0;
    for table in &report.tables {
        let keys: Vec<Bytes> = target
            .rows(&table.table)
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let splits = target.split_keys(&table.table);
        assert_eq!(table.pieces, splits.len() + 1);
        let mut start = 0;
        for bound in splits.iter().map(Some).chain([None]) {
            let end = bound.map_or(keys.len(), |bound| keys.partition_point(|key| key < bound));
            assert!(
                end - start <= most,
                "{}: a piece of {} rows",
                table.table,
                end - start
            );
            assert!(bound.is_none_or(|bound| decode_key(bound).as_array().unwrap().len() == 1));
            start = end;
        }
        split += usize::from(!splits.is_empty());
    }
    assert!(split > 0, "no keyspace was split");
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_cases_of_types_keys_names_and_partitions_survive() {
    let Some(server) = PgServer::start_or_skip("edge_cases_of_types_keys_names_and_partitions_survive")
    else {
        return;
    };
    server.create_database("edge");
    server.sql("edge", include_str!("edge.sql"));
    let url = server.url("edge");
    let target = Arc::new(MemoryTarget::new());
    let report = import(import_options(url.clone()), target.clone()).await.unwrap();
    let rows = rows_of(&report);
    assert_eq!(rows["public.events"], 1000);
    assert_eq!(rows["public.numbers"], 2016);
    assert_eq!(
        (rows["public.parent"], rows["public.child"], rows["public.empty"]),
        (1, 2, 0)
    );
    assert_eq!(rows["\"Odd.Schema\".\"tab\"\"le É\""], 2);
    assert!(
        !rows
            .keys()
            .any(|name| name.contains("a_view") || name.contains("matview") || name.contains("events_"))
    );
    assert_clean(&url, &target).await;
    assert_balanced(&target, &report, 8);

    let (_, float) = row(&target, "public.floats", &json!(["NaN"]));
    assert_eq!(float, json!({"f": "NaN", "g": "NaN"}));
    let (_, arrays) = row(&target, "public.arrays", &json!([5]));
    assert_eq!(
        arrays["ints"],
        json!({"lengths": [2, 2], "lower_bounds": [-1, 2], "elements": [1, 2, 3, 4]})
    );
    let (_, arrays) = row(&target, "public.arrays", &json!([8]));
    assert_eq!(arrays["stamps"], json!(["2021-12-31T22:00:00Z", "-infinity"]));
    assert_eq!(arrays["ranges"], json!(["[1,5)", "empty", null]));
    let (_, times) = row(&target, "public.times", &json!([1]));
    assert_eq!(times["i"], json!("P10M3DT-14706.789S"));
    assert_eq!(times["tz"], json!("10:00:00+05:30"));
    let key = json!([
        "red",
        "a",
        i32::MAX,
        i64::MAX,
        "\\x",
        true,
        "1.5",
        86_400_000_000i64
    ]);
    let (_, composite) = row(&target, "public.composite_keys", &key);
    assert_eq!(composite["tenant"], json!("a       "));
    assert_eq!(composite["share"], json!("1.50"));
    assert_eq!(composite["day"], json!("infinity"));
    let (_, number) = row(&target, "public.numbers", &json!(["1"]));
    assert_eq!(number["n"], json!("1.00"));
    let (_, odd) = row(&target, "\"Odd.Schema\".\"tab\"\"le É\"", &json!([1]));
    assert_eq!(
        odd,
        json!({"Id.1": 1, "select": "x", "a \"quoted\" column": "y", "ü": 2})
    );
}

/// One bit of every table's every stored row is turned, at a place that differs from row to row.
#[tokio::test(flavor = "multi_thread")]
async fn any_turned_bit_of_any_stored_value_is_found() {
    let Some(server) = PgServer::start_or_skip("any_turned_bit_of_any_stored_value_is_found") else {
        return;
    };
    server.create_database("edge");
    server.sql("edge", include_str!("edge.sql"));
    let url = server.url("edge");
    let target = Arc::new(MemoryTarget::new());
    let report = import(import_options(url.clone()), target.clone()).await.unwrap();
    for round in 0..20 {
        for table in &report.tables {
            let turned = target
                .rows(&table.table)
                .into_iter()
                .enumerate()
                .map(|(index, (key, value))| {
                    let mut value = value.to_vec();
                    let bit = (index * 7919 + round * 104_729) % (value.len() * 8);
                    value[bit / 8] ^= 1 << (bit % 8);
                    (key, Bytes::from(value))
                });
            let turned = turned.collect();
            target.put_many(&table.table, turned).await.unwrap();
        }
        let report = verified(&url, &target).await;
        for table in &report.tables {
            let found = (table.missing, table.different, table.extra);
            assert_eq!(found, (0, table.rows, 0), "round {round}: {table:#?}");
        }
        let report = import(import_options(url.clone()), target.clone()).await.unwrap();
        assert!(
            report.tables.iter().all(|table| table.written == table.rows),
            "{:?}",
            report.tables
        );
    }
    assert_clean(&url, &target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_utf8_arrives_in_utf8() {
    let Some(server) = PgServer::start_or_skip("a_database_that_is_not_utf8_arrives_in_utf8") else {
        return;
    };
    server.sql(
        "postgres",
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
    );
    server.sql(
        "latin",
        "SET client_encoding = 'UTF8'; CREATE TABLE t (k text PRIMARY KEY, v text);
        INSERT INTO t VALUES ('é', 'ü'), ('z', 'ß'), ('ÿ', NULL)",
    );
    let target = Arc::new(MemoryTarget::new());
    import(import_options(server.url("latin")), target.clone())
        .await
        .unwrap();
    assert_eq!(
        row(&target, "public.t", &json!(["é"])).1,
        json!({"k": "é", "v": "ü"})
    );
    assert_clean(&server.url("latin"), &target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_obstacle_is_reported_before_anything_is_copied() {
    let Some(server) = PgServer::start_or_skip("every_obstacle_is_reported_before_anything_is_copied") else {
        return;
    };
    server.create_database("bad");
    server.sql(
        "bad",
        "
        CREATE TABLE good (id int PRIMARY KEY);
        INSERT INTO good VALUES (1);
        CREATE TABLE no_key (a int);
        CREATE TYPE mine;
        CREATE FUNCTION mine_in(cstring) RETURNS mine LANGUAGE internal IMMUTABLE STRICT AS 'textin';
        CREATE FUNCTION mine_out(mine) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
        CREATE TYPE mine (INPUT = mine_in, OUTPUT = mine_out, LIKE = text);
        CREATE TABLE odd_columns (id int PRIMARY KEY, m mine, ms mine[], rights aclitem);
        CREATE TABLE \"odd\nname\" (id int PRIMARY KEY);
        CREATE TABLE odd_keys (i interval, n inet, PRIMARY KEY (i, n));
    ",
    );
    let url = server.url("bad");
    let target = Arc::new(MemoryTarget::new());
    let error = import(import_options(url.clone()), target.clone())
        .await
        .unwrap_err();
    let MigrateError::Unsupported(list) = &error else {
        panic!("{error}")
    };
    let found: Vec<_> = list
        .iter()
        .map(|item| (item.table.as_str(), item.column.as_deref()))
        .collect();
    assert_eq!(
        found,
        [
            ("public.no_key", None),
            ("public.odd\nname", None),
            ("public.odd_columns", Some("m")),
            ("public.odd_columns", Some("ms")),
            ("public.odd_columns", Some("rights")),
            ("public.odd_keys", Some("i")),
            ("public.odd_keys", Some("n")),
        ]
    );
    assert!(
        error.to_string().contains("public.no_key: it has no primary key"),
        "{error}"
    );
    assert!(target.keyspaces().is_empty());

    let options = ImportOptions {
        skip_unsupported: true,
        ..import_options(url.clone())
    };
    let report = import(options, target.clone()).await.unwrap();
    assert_eq!(rows_of(&report), BTreeMap::from([("public.good".to_owned(), 1)]));
    assert_eq!(report.skipped.len(), 7);
    assert_eq!(target.keyspaces(), [STATE_KEYSPACE, "public.good"]);
    let error = verify(verify_options(url.clone()), target.clone())
        .await
        .unwrap_err();
    assert!(matches!(error, MigrateError::Unsupported(_)), "{error}");
    let options = VerifyOptions {
        skip_unsupported: true,
        ..verify_options(url)
    };
    let report = verify(options, target).await.unwrap();
    assert!(report.clean && report.skipped.len() == 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_a_wrong_password_and_a_missing_database_are_told_apart() {
    let Some(server) = PgServer::start_or_skip("an_unreachable_server_a_wrong_password") else {
        return;
    };
    server.sql(
        "postgres",
        "CREATE ROLE clerk LOGIN PASSWORD 'right'; CREATE ROLE blind LOGIN",
    );
    server.create_database("guarded");
    server.sql(
        "guarded",
        "CREATE TABLE t (id int PRIMARY KEY); GRANT SELECT ON t TO clerk",
    );
    server.write_hba("local all clerk scram-sha-256\nlocal all all trust\n");
    let target = || Arc::new(MemoryTarget::new());

    let error = import(
        import_options(server.url_of("clerk", "wrong", "guarded")),
        target(),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(&error, MigrateError::Password { user, .. } if user == "clerk"),
        "{error}"
    );
    assert!(
        !error.to_string().contains("wrong"),
        "the password is in: {error}"
    );
    let error = import(import_options(server.url_of("nobody", "", "guarded")), target())
        .await
        .unwrap_err();
    assert!(matches!(error, MigrateError::Password { .. }), "{error}");
    let error = import(import_options(server.url("absent")), target())
        .await
        .unwrap_err();
    assert!(matches!(error, MigrateError::Connection { .. }), "{error}");
    for url in ["postgres://u@127.0.0.1:1/d", "postgres://u@/d?host=/nowhere"] {
        let error = verify(verify_options(url.to_owned()), target())
            .await
            .unwrap_err();
        assert!(matches!(error, MigrateError::Connection { .. }), "{error}");
    }
    let error = import(import_options("mysql://".to_owned()), target())
        .await
        .unwrap_err();
    assert!(matches!(error, MigrateError::InvalidOptions(_)), "{error}");
    let error = import(import_options(server.url_of("blind", "", "guarded")), target())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MigrateError::Source { context, .. } if context == "public.t"),
        "{error}"
    );

    import(
        import_options(server.url_of("clerk", "right", "guarded")),
        target(),
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_keyspace_an_oversized_row_and_a_rate_limit() {
    let Some(server) = PgServer::start_or_skip("a_missing_keyspace_an_oversized_row_and_a_rate_limit") else {
        return;
    };
    server.create_database("misc");
    server.sql(
        "misc",
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 300)",
    );
    let url = server.url("misc");
    let target = Arc::new(MemoryTarget::new());
    let report = verified(&url, &target).await;
    assert_eq!(report.missing_keyspaces, ["public.t"]);
    assert!(!report.clean && report.tables[0].missing == 300);

    let start = tokio::time::Instant::now();
    let events: Arc<Mutex<Vec<ProgressEvent>>> = Arc::default();
    let seen = events.clone();
    let progress = Progress::Call(Arc::new(move |event| seen.lock().unwrap().push(event.clone())));
    let options = ImportOptions {
        max_rows_per_second: Some(600),
        progress,
        ..import_options(url.clone())
    };
    import(options, target.clone()).await.unwrap();
    let events = std::mem::take(&mut *events.lock().unwrap());
    assert!(
        events.len() >= 10 && events.is_sorted_by_key(|event| event.rows_done),
        "{events:?}"
    );
    let last = events.last().unwrap();
    assert_eq!((last.rows_done, last.rows_total, last.finished), (300, 300, true));
    assert!(start.elapsed().as_millis() >= 450, "{:?}", start.elapsed());
    assert_clean(&url, &target).await;

    server.sql(
        "misc",
        "CREATE TABLE wide (k text PRIMARY KEY, v text); INSERT INTO wide VALUES (repeat('k', 5000), '')",
    );
    let error = import(import_options(url.clone()), target.clone())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            MigrateError::RowTooLarge {
                what: "key",
                limit: 4096,
                ..
            }
        ),
        "{error}"
    );
    server.sql("misc", "UPDATE wide SET k = 'k', v = repeat('v', 5000000)");
    let error = import(import_options(url), target).await.unwrap_err();
    assert!(
        matches!(error, MigrateError::RowTooLarge { what: "value", .. }),
        "{error}"
    );
}
