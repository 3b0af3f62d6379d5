//! Keys that expire, on three real processes and by their real clocks.
#![allow(clippy::disallowed_methods)] // tests look at real processes

mod common;

use std::process::Output;
use std::time::{Duration, Instant};

use common::{Cluster, told};

const KEY: [&str; 3] = ["--keyspace", "film", "(1)"];

fn key(cluster: &Cluster, command: &str, more: &[&str]) -> Output {
    cluster.run(&[&[command], &KEY[..], more].concat())
}

#[test]
fn a_key_lives_as_long_as_it_was_given_and_stays_gone_after_a_kill_of_all_three() {
    let mut cluster = Cluster::new(1);
    let made = cluster.run(&["keyspace", "create", "film"]);
    assert!(made.status.success(), "{}", told(&made));
    let began = Instant::now();
    let put = key(&cluster, "put", &["alien", "--ttl", "3s", "--if-absent"]);
    assert!(put.status.success(), "{}", told(&put));
    let record = cluster.json(&[&["get"], &KEY[..]].concat());
    let lives_ms = record["expires_at_ms"]
        .as_u64()
        .zip(record["logged_time_ms"].as_u64());
    assert_eq!(
        lives_ms.map(|(until, from)| until - from),
        Some(3_000),
        "{record}"
    );
    let again = key(&cluster, "put", &["aliens", "--if-absent"]);
    assert_eq!(again.status.code(), Some(1), "{}", told(&again));

    let gone = loop {
        let got = key(&cluster, "get", &[]);
        match got.status.code() {
            Some(0) => assert!(began.elapsed() < Duration::from_secs(30), "it does not expire"),
            _ => break got,
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "{:?}: {}",
        began.elapsed(),
        told(&gone)
    );
    assert_eq!(gone.status.code(), Some(1), "{}", told(&gone));
    assert!(told(&gone).contains("absent"), "{}", told(&gone));

    for at in 0..3 {
        cluster.kill(at);
    }
    for at in 0..3 {
        cluster.start(at);
    }
    cluster.await_healthy();
    let got = key(&cluster, "get", &[]);
    assert_eq!(got.status.code(), Some(1), "{}", told(&got));
    let put = key(&cluster, "put", &["aliens", "--if-absent"]);
    assert!(put.status.success(), "{}", told(&put));
    let record = cluster.json(&[&["get"], &KEY[..]].concat());
    assert!(record.get("expires_at_ms").is_none(), "{record}");
}
