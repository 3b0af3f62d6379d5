//! The binary as a script sees it: exit status, what is on which stream.

use std::io::Read;
use std::process::{Command, Output, Stdio};

/// Nothing listens on port 1.
const NOBODY: &str = "127.0.0.1:1";

fn reelkv(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reelkv"));
    command
        .args(args)
        .env("REELKV_ADDR", NOBODY)
        .env_remove("REELKV_LOG")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = reelkv(args).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn help_and_version_are_data_and_fine() {
    for (args, words) in [
        (&["--help"][..], "Exit status"),
        (&["--version"], "reelkv "),
        (&["cluster", "init", "--help"], "--replicas"),
        (&["completion", "fish"], "complete -c reelkv"),
    ] {
        let (status, stdout, stderr) = run(args);
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(stdout.contains(words), "{args:?}: {stdout}");
    }
}

#[test]
fn bad_input_is_2_and_an_unreachable_cluster_1_each_with_nothing_on_stdout() {
    let bad_key = &["get", "-k", "film", "alien"][..];
    let bad_addr = &["shard", "list", "--addr", "nowhere"][..];
    let unreachable = &["get", "-k", "film", "(1)"][..];
    let bad_ttl = &["put", "-k", "film", "(1)", "v", "--ttl", "0s"][..];
    let no_file = &["put", "-k", "film", "(1)", "--file", "/nowhere/x"][..];
    for (args, expected, words) in [
        (bad_key, 2, "--raw-key"),
        (bad_addr, 2, "host:port"),
        (
            bad_ttl,
            2,
            "--ttl \"0s\": a time to live is a whole number and ms, s, m, h or d, from 1ms to 3650d",
        ),
        (unreachable, 1, NOBODY),
        (no_file, 1, "/nowhere/x"),
    ] {
        let (status, stdout, stderr) = run(args);
        assert_eq!(
            (status, stdout.as_str()),
            (Some(expected), ""),
            "{args:?}: {stderr}"
        );
        assert!(
            stderr.starts_with("error: ") && stderr.contains(words),
            "{args:?}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
    // The parser adds the usage to its line.
    let (status, stdout, stderr) = run(&["get", "-k", "film", "(1)", "--colour"]);
    assert_eq!((status, stdout.as_str()), (Some(2), ""));
    assert!(
        stderr.starts_with("error: ") && stderr.contains("--colour"),
        "{stderr}"
    );
}

#[test]
fn whoever_stops_reading_ends_it_quietly() {
    // The reader has gone before anything is written.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut child = reelkv(&["completion", "bash"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut words = String::new();
    let stderr = child.stderr.as_mut().expect("it is piped");
    stderr.read_to_string(&mut words).expect("text");
    let status = child.wait().expect("it ends");
    assert_eq!((status.code(), words.as_str()), (Some(0), ""));
}

#[test]
fn an_error_with_nowhere_to_go_keeps_its_exit_status() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = reelkv(&["get", "-k", "film", "alien"]).stderr(writer).status();
    assert_eq!(status.expect("the binary runs").code(), Some(2));
}
