//! `reelkv demo` with real processes: it passes when nothing is falsified, and fails when something is.
#![allow(clippy::disallowed_methods)] // tests look at files directly

use std::path::Path;
use std::process::{Command, ExitStatus, Output};

use serde_json::Value;

/// Fewer rows and workers than by default, so that a build without optimisation keeps up.
const SMALL: [&str; 6] = ["--rows", "6000", "--workers", "12", "--seconds", "6"];

fn demo(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reelkv"));
    command
        .arg("demo")
        .args(arguments)
        .output()
        .expect("the binary starts")
}

/// Runs a small demo; returns its exit status and its report.
fn small_demo(dir: &Path, seed: &str, more: &[&str]) -> (ExitStatus, Value, String) {
    let report = dir.join("report.json");
    let data = dir.join("data");
    let mut arguments = vec!["--seed", seed, "--report", path(&report), "--keep", path(&data)];
    arguments.extend(SMALL);
    arguments.extend(more);
    let output = demo(&arguments);
    let told = format!(
        "reelkv demo {}\n{}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let json = std::fs::read(&report).unwrap_or_else(|error| panic!("no report ({error}) from {told}"));
    (
        output.status,
        serde_json::from_slice(&json).expect("the report is JSON"),
        told,
    )
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

fn faults<'report>(report: &'report Value, kind: &str) -> Vec<&'report Value> {
    let all = report["faults"].as_array().expect("faults are a list");
    all.iter().filter(|fault| fault["kind"] == kind).collect()
}

/// No process of the demo may outlive it.
fn assert_gone(report: &Value, told: &str) {
    for fault in report["faults"].as_array().expect("faults are a list") {
        let pid = fault["pid"].as_u64().expect("a fault names its process");
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "process {pid} still runs\n{told}"
        );
    }
}

#[test]
fn nothing_is_lost_when_one_node_is_damaged_and_another_killed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (status, report, told) = small_demo(dir.path(), "11", &[]);
    assert_eq!(report["verdict"], "pass", "{told}");
    assert_eq!(status.code(), Some(0), "{told}");
    for none in ["lost_writes", "wrong_reads", "failed_requests"] {
        assert_eq!(report[none], 0, "{none}\n{told}");
    }
    assert!(report["acknowledged_writes"].as_u64() > Some(6_000), "{told}");
    assert!(report["longest_stall_ms"].as_u64() <= Some(5_000), "{told}");

    let (kills, overwrites) = (faults(&report, "kill"), faults(&report, "overwrite"));
    assert_eq!(kills.len(), 2, "{told}");
    assert_ne!(kills[0]["node"], kills[1]["node"], "{told}");
    assert!(!overwrites.is_empty(), "{told}");
    for fault in &overwrites {
        assert_eq!(fault["node"], kills[0]["node"], "{told}");
        assert!(fault["bytes"].as_u64() > Some(0), "{told}");
        assert!(
            fault["detected_ms"].as_u64() <= fault["repaired_ms"].as_u64(),
            "{told}"
        );
        let file = fault["file"].as_str().expect("an overwrite names its file");
        assert!(file.starts_with("trees/s"), "{file}");
    }
    let flips = faults(&report, "flip");
    for place in ["trees/", "wal/"] {
        let in_place = |fault: &&&Value| fault["file"].as_str().is_some_and(|file| file.starts_with(place));
        assert!(flips.iter().any(|fault| in_place(&fault)), "{place}: {told}");
    }
    for fault in &flips {
        assert!(kills.iter().all(|kill| kill["node"] != fault["node"]), "{told}");
        assert!(
            fault["detected_ms"].as_u64() <= fault["repaired_ms"].as_u64(),
            "{told}"
        );
    }
    assert_gone(&report, &told);
    assert!(
        dir.path().join("data/n1.log").exists(),
        "the data is kept\n{told}"
    );
}

#[test]
fn a_write_acknowledged_but_never_made_is_noticed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (status, report, told) = small_demo(dir.path(), "12", &["--sabotage", "lose-ack"]);
    assert_eq!(
        (status.code(), &report["verdict"]),
        (Some(1), &Value::from("fail")),
        "{told}"
    );
    assert_eq!(report["lost_writes"], 1, "{told}");
    assert_eq!(report["failed_requests"], 0, "{told}");
}

#[test]
fn a_replica_that_shows_an_overwritten_value_is_noticed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (status, report, told) = small_demo(dir.path(), "13", &["--sabotage", "stale-replica"]);
    assert_eq!(
        (status.code(), &report["verdict"]),
        (Some(1), &Value::from("fail")),
        "{told}"
    );
    assert_eq!(report["lost_writes"], 1, "{told}");
    assert_eq!(
        (&report["wrong_reads"], &report["failed_requests"]),
        (&0.into(), &0.into()),
        "{told}"
    );
}

#[test]
fn damage_that_nobody_did_is_not_told_and_the_demo_says_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (status, report, told) = small_demo(dir.path(), "14", &["--sabotage", "pretend-damage"]);
    assert_eq!(
        (status.code(), &report["verdict"]),
        (Some(1), &Value::from("fail")),
        "{told}"
    );
    let failures = report["failures"].to_string();
    // By the end the files may be gone; then nothing was done to any that is left.
    let is_noticed = [
        "faults not reported by the cluster",
        "nothing was flipped in a running node's",
    ]
    .iter()
    .any(|complaint| failures.contains(complaint));
    assert!(is_noticed, "{told}");
}

#[test]
fn bad_orders_end_with_status_2_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("something"), "here").expect("a file can be written");
    let orders: [&[&str]; 4] = [
        &["--sabotage", "everything"],
        &["--seconds", "0"],
        &["--keep", path(dir.path())],
        &["--report", "/nonexistent/report.json"],
    ];
    for order in orders {
        let output = demo(order);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{order:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.stderr.is_empty(), "{order:?}");
    }
}
