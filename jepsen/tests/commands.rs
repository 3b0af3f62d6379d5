//! The command line as a user meets it: exit statuses, files, refusals.

#![allow(clippy::disallowed_methods)] // files of the test

use std::path::Path;
use std::process::{Command, Output};

use reelkv_jepsen::checker::Verdict;
use reelkv_jepsen::history::{Answer, Outcome, files};

fn jepsen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reelkv-jepsen"))
        .args(arguments)
        .env_remove("REELKV_MUTANT")
        .output()
        .expect("the program runs")
}

fn refused(arguments: &[&str], words: &[&str]) {
    let output = jepsen(arguments);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
    assert!(
        output.stdout.is_empty(),
        "{arguments:?} said something on standard output"
    );
    for word in words {
        assert!(
            told.contains(word),
            "{arguments:?} does not name {word:?}: {told}"
        );
    }
}

fn kept_run(dir: &Path) -> Output {
    let out = dir.to_str().expect("a name in UTF-8");
    jepsen(&[
        "run",
        "--workload",
        "register",
        "--nemesis",
        "crash,loss",
        "--seconds",
        "10",
        "--seed",
        "5",
        "--out",
        out,
    ])
}

#[test]
fn a_run_is_kept_and_judged_again() {
    let dir = tempfile::tempdir().unwrap();
    let output = kept_run(dir.path());
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("verdict           pass"), "{told}");
    for file in ["history.jsonl", "history.edn", "timeline.jsonl", "verdict.json"] {
        let len = std::fs::metadata(dir.path().join(file)).unwrap().len();
        assert!(len > 0, "{file} is empty");
    }
    let edn = std::fs::read_to_string(dir.path().join("history.edn")).unwrap();
    assert!(
        edn.starts_with("{:index 0, :type :invoke, :process "),
        "{}",
        &edn[..60]
    );
    let again = jepsen(&["check", dir.path().to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&again.stdout).contains("operations: pass"));
}

#[test]
fn a_history_that_lies_falls_and_a_damaged_one_is_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    kept_run(dir.path());
    let file = dir.path().join("history.jsonl");
    let (mut header, mut history) = files::read(&file).unwrap();
    let whole = std::fs::read(&file).unwrap();

    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    refused(
        &["check", dir.path().to_str().unwrap()],
        &["history.jsonl", "line"],
    );
    std::fs::write(&file, &whole[..middle]).unwrap();
    refused(
        &["check", dir.path().to_str().unwrap()],
        &["history.jsonl", "line"],
    );

    // The clients saw nothing wrong; the replicas did not agree.
    let integrity = header.judged.insert(
        "final-integrity".into(),
        Verdict::fail("the replicas do not agree"),
    );
    assert_eq!(integrity, Some(Verdict::Pass));
    files::write(&file, &header, &history).unwrap();
    let judged = jepsen(&["check", dir.path().to_str().unwrap()]);
    assert_eq!(judged.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&judged.stderr).contains("do not agree"));
    header.judged.clear();

    // Somebody read what nobody wrote.
    let read = history.iter_mut().find_map(|event| match &mut event.outcome {
        Outcome::Ok(Answer::Value { value, .. }) if *value > 0 => Some(value),
        _ => None,
    });
    *read.expect("a read that found something") = 1 << 40;
    files::write(&file, &header, &history).unwrap();
    let judged = jepsen(&["check", dir.path().to_str().unwrap()]);
    assert_eq!(judged.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&judged.stderr).contains("not linearizable"));
}

#[test]
fn what_does_not_exist_is_refused_by_name() {
    refused(&["run", "--workload", "savings"], &["savings", "register"]);
    refused(
        &["run", "--workload", "bank", "--nemesis", "crash,fire"],
        &["fire", "crash-leader", "network"],
    );
    refused(&["run", "--workload", "bank", "--nodes", "4"], &["4"]);
    refused(
        &["run", "--workload", "bank", "--world", "moon"],
        &["moon", "sim"],
    );
    refused(&["check", "/nowhere/at/all"], &["/nowhere/at/all"]);
    refused(
        &["run", "--workload", "bank", "--out", "/proc/nothing"],
        &["--out", "/proc/nothing"],
    );
    if !cfg!(feature = "mutants") {
        refused(&["suite", "--mutants"], &["--mutants", "--profile mutants"]);
    }
}

#[test]
fn a_mutant_that_does_not_exist_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_reelkv-jepsen"))
        .args(["list"])
        .env("REELKV_MUTANT", "no_such_bug")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no_such_bug"));
}

#[test]
fn what_there_is_can_be_listed() {
    let output = jepsen(&["list"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0));
    for name in [
        "register",
        "delete-resurrect",
        "crash-at-write",
        "one-way",
        "clock-strobe",
        "old-disk",
    ] {
        assert!(told.contains(name), "{name} is not listed");
    }
    let listed: serde_json::Value = serde_json::from_slice(&jepsen(&["list", "--json"]).stdout).unwrap();
    assert_eq!(
        listed["workloads"].as_array().map(Vec::len),
        Some(reelkv_jepsen::workload::Workload::ALL.len())
    );
}
