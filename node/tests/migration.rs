//! A running PostgreSQL moves into a real cluster, while nodes and the importer itself are killed.
#![allow(clippy::disallowed_methods)] // tests time real processes

mod common;
#[path = "../../client/migrate/tests/common/mod.rs"]
mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{Cluster, await_exit, reelkv, told};
use postgres::{PgServer, load_pagila, pagila_or_skip};
use serde_json::Value;

const IMPORT_MAX: Duration = Duration::from_secs(180);

/// Tables for who has no Pagila: enough rows for several seconds of a throttled import.
const SHOP: &str = "
    CREATE TABLE film (id bigint PRIMARY KEY, title text NOT NULL, price numeric(6, 2));
    INSERT INTO film SELECT i, 'film ' || i, i * 0.01 FROM generate_series(1, 12000) i;
    CREATE TABLE rental (film bigint, at timestamptz, customer int, PRIMARY KEY (film, at));
    INSERT INTO rental SELECT i % 3000, timestamptz '2008-08-11 00:00Z' + i * interval '1 minute', i
        FROM generate_series(1, 12000) i;";

/// A throttled import under way.
fn import(cluster: &Cluster, url: &str, rows_per_second: u32) -> Child {
    reelkv()
        .args([
            "import",
            "postgres",
            "--url",
            url,
            "--max-rows-per-second",
            &rows_per_second.to_string(),
            "--json",
        ])
        .env("REELKV_ADDR", cluster.addrs().join(","))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

/// Says something on the real standard error, which the test harness does not capture.
fn tell(line: &str) {
    if let Ok(mut stderr) = std::fs::OpenOptions::new().append(true).open("/dev/stderr") {
        let _ = writeln!(stderr, "{line}");
    }
}

fn rows_there(cluster: &Cluster) -> u64 {
    let shards = cluster.json(&["shard", "list", "--count"]);
    let shards = shards.as_array().expect("a list");
    shards
        .iter()
        .filter(|shard| shard["shard_id"] != 1)
        .filter_map(|shard| shard["records"].as_u64())
        .sum()
}

fn finished(mut child: Child, cluster: &Cluster) -> Value {
    await_exit(&mut child, IMPORT_MAX);
    let output = child.wait_with_output().expect("it has ended");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}\n{}",
        told(&output),
        cluster.logs()
    );
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", told(&output)))
}

/// Rows by table, as `verify` counted them on both sides; panics unless they are equal.
fn verify(cluster: &Cluster, url: &str) -> BTreeMap<String, u64> {
    let output = cluster.run(&["verify", "postgres", "--url", url, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["clean"], true, "{report:#}");
    let tables = report["tables"].as_array().expect("a list");
    let rows = |table: &Value| {
        (
            table["table"].as_str().expect("a name").to_owned(),
            table["rows"].as_u64().expect("rows"),
        )
    };
    tables.iter().map(rows).collect()
}

/// Kills a node during an import, starts it again, and verifies. Returns the rows by table.
fn import_with_a_kill(cluster: &mut Cluster, url: &str, rows_per_second: u32) -> BTreeMap<String, u64> {
    let importing = import(cluster, url, rows_per_second);
    std::thread::sleep(Duration::from_millis(2_500));
    let done = rows_there(cluster);
    cluster.kill(1);
    tell(&format!("node 2 was killed with about {done} rows imported"));
    assert!(done > 0, "the import had not begun");
    std::thread::sleep(Duration::from_secs(2));
    cluster.start(1);
    let report = finished(importing, cluster);
    let rows: u64 = report["tables"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|table| table["rows"].as_u64())
        .sum();
    assert!(done < rows, "the kill came after the last of {rows} rows");
    cluster.await_healthy();
    verify(cluster, url)
}

fn assert_spread(cluster: &Cluster) {
    let shards = cluster.json(&["shard", "list", "--count"]);
    let shards = shards.as_array().expect("a list");
    let rows = |shard: &Value| {
        if shard["shard_id"] == 1 {
            0
        } else {
            shard["records"].as_u64().unwrap_or(0)
        }
    };
    let total: u64 = shards.iter().map(rows).sum();
    for shard in shards {
        assert!(
            rows(shard) * 10 <= total * 3,
            "one shard holds more than 30 % of {total} rows: {shard:#}"
        );
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let shards = cluster.json(&["shard", "list"]);
        let leaders: BTreeSet<_> = shards
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|shard| shard["leader_node_id"].as_u64())
            .collect();
        if leaders.is_superset(&BTreeSet::from([1, 2, 3])) {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "not every node leads: {leaders:?}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn pagila_moves_in_while_a_node_is_killed() {
    let test = "pagila_moves_in_while_a_node_is_killed";
    let Some(directory) = pagila_or_skip(test) else {
        return;
    };
    let Some(server) = PgServer::start_or_skip(test) else {
        return;
    };
    load_pagila(&server, &directory);
    let url = server.url("pagila");
    let mut cluster = Cluster::new(8);
    let rows = import_with_a_kill(&mut cluster, &url, 6_000);
    assert_eq!(rows, counts_of(&directory), "as Pagila's own list says");
    assert_eq!((rows.len(), rows.values().sum::<u64>()), (15, 49_636));
    assert_spread(&cluster);
    let film = cluster.run(&["get", "--keyspace", "public.film", "(1)"]);
    let film: Value = serde_json::from_slice(&film.stdout).expect("a row as JSON");
    assert_eq!(film["title"], "ACADEMY DINOSAUR", "{film:#}");
}

/// Rows of each table, from the list beside the data; partitions are counted under their root.
fn counts_of(directory: &std::path::Path) -> BTreeMap<String, u64> {
    let list = std::fs::read_to_string(directory.join("COUNTS.txt")).expect("the list");
    let fields = list
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('|').collect::<Vec<_>>());
    let tables =
        fields.filter(|fields| fields.len() == 3 && ["table", "partitioned table"].contains(&fields[1]));
    tables
        .map(|fields| {
            (
                format!("public.{}", fields[0]),
                fields[2].parse().expect("a number"),
            )
        })
        .collect()
}

#[test]
fn any_database_moves_in_while_a_node_is_killed_and_what_differs_afterwards_is_found() {
    let Some(server) = PgServer::start_or_skip("any_database_moves_in") else {
        return;
    };
    server.create_database("shop");
    server.sql("shop", SHOP);
    let url = server.url("shop");
    let mut cluster = Cluster::new(4);
    let rows = import_with_a_kill(&mut cluster, &url, 3_000);
    assert_eq!(
        rows,
        BTreeMap::from([
            ("public.film".to_owned(), 12_000),
            ("public.rental".to_owned(), 12_000)
        ])
    );

    // One row of each kind of difference.
    let row = cluster
        .run(&["get", "--keyspace", "public.film", "(2)", "--raw"])
        .stdout;
    let file = cluster.dir.path().join("row");
    std::fs::write(&file, row).expect("a file");
    let path = file.to_str().expect("text");
    for planted in [
        &["delete", "--keyspace", "public.film", "(1)"][..],
        &["put", "--keyspace", "public.film", "(3)", "--file", path],
        &["put", "--keyspace", "public.film", "(77777)", "--file", path],
    ] {
        let output = cluster.run(planted);
        assert!(output.status.success(), "{}", told(&output));
    }
    let output = cluster.run(&["verify", "postgres", "--url", &url, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let film = &report["tables"][0];
    let found = ["missing", "different", "extra"].map(|kind| film[kind].as_u64());
    assert_eq!(found, [Some(1), Some(1), Some(1)], "{report:#}");
}

#[test]
fn an_importer_that_was_killed_is_run_again_and_finishes() {
    let Some(server) = PgServer::start_or_skip("an_importer_that_was_killed") else {
        return;
    };
    server.create_database("shop");
    server.sql("shop", SHOP);
    let url = server.url("shop");
    let cluster = Cluster::new(4);
    let mut importing = import(&cluster, &url, 4_000);
    std::thread::sleep(Duration::from_secs(3));
    importing.kill().expect("a process of ours");
    importing.wait().expect("it ends");
    let done = rows_there(&cluster);
    assert!(
        done > 0 && done < 24_000,
        "{done} rows were there when it was killed"
    );
    finished(import(&cluster, &url, 1_000_000), &cluster);
    verify(&cluster, &url);
}

#[test]
fn a_database_that_cannot_be_reached_is_said_so_in_one_line() {
    let cluster = Cluster::new(1);
    for url in [
        "postgres://nobody@127.0.0.1:1/shop",
        "postgres://postgres@/shop?host=/nowhere",
    ] {
        let output = cluster.run(&["import", "postgres", "--url", url]);
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            stderr.lines().filter(|line| line.starts_with("error: ")).count(),
            1,
            "{stderr}"
        );
    }
}
