//! Import from a PostgreSQL that changes meanwhile, and imports that do not end.

#![allow(clippy::disallowed_methods)]

mod common;
mod support;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::PgServer;
use reelkv_migrate::{ImportOptions, MemoryTarget, MigrateError, Progress, import};
use support::{FailingTarget, assert_clean, import_options, rows_of, verified};

/// Two tables of a hundred thousand rows in all: many chunks.
const ORDERS: &str = "
    CREATE TABLE orders (id bigint PRIMARY KEY, customer int, note text);
    INSERT INTO orders SELECT i, i % 77, 'order ' || i FROM generate_series(1, 70000) i;
    CREATE TABLE lines (order_id bigint, line int, amount numeric(8, 2), PRIMARY KEY (order_id, line));
    INSERT INTO lines SELECT i / 5, i % 5, i * 0.01 FROM generate_series(1, 30000) i;";

#[tokio::test(flavor = "multi_thread")]
async fn a_rerun_after_an_aborted_import_gives_the_source_as_it_is_then_and_writes_only_what_differs() {
    let Some(server) = PgServer::start_or_skip("a_rerun_after_an_aborted_import") else {
        return;
    };
    server.create_database("shop");
    server.sql("shop", ORDERS);
    let url = server.url("shop");
    let target = Arc::new(MemoryTarget::new());
    let failing = Arc::new(FailingTarget {
        inner: target.clone(),
        rows_left: AtomicU64::new(60_000),
    });
    let error = import(import_options(url.clone()), failing).await.unwrap_err();
    assert!(matches!(error, MigrateError::Target { .. }), "{error}");
    assert!(error.to_string().contains("the store is gone"));
    let copied = (target.rows("public.orders").len() + target.rows("public.lines").len()) as u64;
    assert!((30_000..60_000).contains(&copied), "{copied}");
    assert!(!verified(&url, &target).await.clean);

    server.sql(
        "shop",
        "
        DELETE FROM orders WHERE id % 1000 = 0;
        UPDATE orders SET note = 'changed' WHERE id % 1000 = 1;
        UPDATE orders SET id = -id WHERE id % 1000 = 2;
        INSERT INTO orders VALUES (1000000, 1, 'new');
        TRUNCATE lines;
        INSERT INTO lines VALUES (5, 5, 5);",
    );
    let report = import(import_options(url.clone()), target.clone()).await.unwrap();
    assert_eq!(report.run, 2);
    let previous = report.previous.clone().unwrap();
    assert!(
        !previous.finished && previous.chunks > 0 && previous.rows > 0,
        "{previous:?}"
    );
    let written: u64 = report.tables.iter().map(|table| table.written).sum();
    assert!(
        written < 100_000 - copied + 500,
        "{written} rows written after {copied}"
    );
    assert_clean(&url, &target).await;

    let report = import(import_options(url.clone()), target.clone()).await.unwrap();
    assert!(report.previous.is_some_and(|previous| previous.finished));
    assert!(
        report
            .tables
            .iter()
            .all(|table| (table.written, table.deleted) == (0, 0)),
        "{:?}",
        report.tables
    );
}

/// Calls a function once, when the import has read the first rows.
fn once_under_way(f: impl FnOnce() + Send + 'static) -> Progress {
    let f = Mutex::new(Some(f));
    Progress::Call(Arc::new(move |event| {
        if event.rows_done > 0
            && let Some(f) = f.lock().unwrap().take()
        {
            f();
        }
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_truncated_or_detached_half_way_is_named_and_a_rerun_works() {
    let Some(server) = PgServer::start_or_skip("a_table_dropped_truncated_or_detached_half_way") else {
        return;
    };
    let server = Arc::new(server);
    for (database, damage) in [
        ("dropped", "DROP TABLE victim"),
        (
            "replaced",
            "DROP TABLE victim; CREATE TABLE victim (id int, p int, PRIMARY KEY (id, p))",
        ),
        ("truncated", "TRUNCATE victim"),
        ("rewritten", "ALTER TABLE victim ALTER p TYPE bigint"),
        ("altered", "ALTER TABLE victim DROP COLUMN note"),
        ("leaf_truncated", "TRUNCATE victim_1"),
        ("detached", "ALTER TABLE victim DETACH PARTITION victim_1"),
    ] {
        server.create_database(database);
        server.sql(database, ORDERS);
        server.sql(
            database,
            "
            CREATE TABLE victim (id int, p int, note text, PRIMARY KEY (id, p)) PARTITION BY RANGE (id);
            CREATE TABLE victim_1 PARTITION OF victim FOR VALUES FROM (0) TO (50);
            CREATE TABLE victim_2 PARTITION OF victim FOR VALUES FROM (50) TO (100);
            INSERT INTO victim SELECT i, i, 'x' FROM generate_series(0, 99) i;",
        );
        let url = server.url(database);
        let target = Arc::new(MemoryTarget::new());
        let other = server.clone();
        // One connection, and the smallest table comes last.
        let options = ImportOptions {
            parallel: 1,
            progress: once_under_way(move || other.sql(database, damage)),
            ..import_options(url.clone())
        };
        let error = import(options, target.clone()).await.unwrap_err();
        let MigrateError::TableVanished { table, .. } = &error else {
            panic!("{damage}: {error}")
        };
        assert_eq!(table, "public.victim", "{damage}");
        import(import_options(url.clone()), target.clone()).await.unwrap();
        if database != "dropped" {
            assert_clean(&url, &target).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_made_meanwhile_and_changed_rows_are_not_seen() {
    let Some(server) = PgServer::start_or_skip("a_partition_made_meanwhile_and_changed_rows_are_not_seen")
    else {
        return;
    };
    let server = Arc::new(server);
    server.create_database("live");
    server.sql("live", ORDERS);
    server.sql(
        "live",
        "
        CREATE TABLE log (day int, id int, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
        CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (1) TO (2);
        INSERT INTO log VALUES (1, 1), (1, 2);",
    );
    let target = Arc::new(MemoryTarget::new());
    let other = server.clone();
    let change = move || {
        other.sql(
            "live",
            "
            CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (2) TO (3);
            INSERT INTO log VALUES (2, 1);
            DELETE FROM log WHERE day = 1;
            DELETE FROM orders WHERE id > 69000;",
        );
    };
    let options = ImportOptions {
        parallel: 1,
        progress: once_under_way(change),
        ..import_options(server.url("live"))
    };
    let report = import(options, target.clone()).await.unwrap();
    assert_eq!(
        (rows_of(&report)["public.log"], rows_of(&report)["public.orders"]),
        (2, 70_000)
    );
    assert_eq!(target.rows("public.log").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_killed_anywhere_while_the_source_changes_end_in_the_last_snapshot() {
    let test = "imports_killed_anywhere_while_the_source_changes_end_in_the_last_snapshot";
    let Some(server) = PgServer::start_or_skip(test) else {
        return;
    };
    server.create_database("shop");
    server.sql("shop", ORDERS);
    let url = server.url("shop");
    let target = Arc::new(MemoryTarget::new());
    let mut killed = 0;
    for round in 0..8u64 {
        // Not by the clock alone: on a busy machine nothing would have begun.
        let (begun, begins) = tokio::sync::oneshot::channel();
        let options = ImportOptions {
            progress: once_under_way(move || begun.send(()).expect("it is waited for")),
            ..import_options(url.clone())
        };
        let running = tokio::spawn(import(options, target.clone()));
        // An error: it has ended before it had read a row.
        let _ = begins.await;
        tokio::time::sleep(Duration::from_millis(40 * round)).await;
        running.abort();
        killed += u64::from(running.await.is_err());
        server.sql(
            "shop",
            &format!(
                "DELETE FROM orders WHERE id % 97 = {round};
                 UPDATE orders SET note = note || '{round}' WHERE id % 89 = {round};
                 UPDATE lines SET order_id = order_id + 100000 WHERE order_id % 101 = {round};
                 INSERT INTO orders SELECT 200000 + {round} * 100 + i, i, 'late' FROM generate_series(0, 99) i;"
            ),
        );
    }
    assert!(killed > 0, "no import was killed");
    let report = import(import_options(url.clone()), target.clone()).await.unwrap();
    assert_eq!(report.run, report.previous.unwrap().run + 1);
    assert_clean(&url, &target).await;
}
