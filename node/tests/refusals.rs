//! What is refused, by real processes: one clear line, the right exit status, nothing changed.
#![allow(clippy::disallowed_methods)] // tests look at files directly

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Cluster, await_exit, files_below, free_port, reelkv, told};

/// A node that is expected not to run.
fn refused_start(data_dir: &Path, listen: &str, more: &[&str]) -> Output {
    let mut command: Command = reelkv();
    command
        .args([
            "node",
            "start",
            "--listen",
            listen,
            "--join",
            listen,
            "--data-dir",
        ])
        .arg(data_dir)
        .args(more)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    await_exit(&mut child, Duration::from_secs(20));
    child.wait_with_output().expect("it has ended")
}

/// The last line of standard error, which must be the error.
fn error_line(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "one clear line: {}", told(output));
    errors[0].to_owned()
}

fn contents(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let read = |file: std::path::PathBuf| {
        let bytes = std::fs::read(&file).expect("a file");
        (file, bytes)
    };
    files_below(dir).into_iter().map(read).collect()
}

#[test]
fn a_cluster_is_made_once_and_a_directory_belongs_to_one_node() {
    let mut cluster = Cluster::new(2);
    let again = cluster.run(&["cluster", "init", "--shards", "2"]);
    assert_eq!(again.status.code(), Some(1), "{}", told(&again));
    assert!(
        error_line(&again).contains("belongs to cluster"),
        "{}",
        told(&again)
    );

    // Its directory is in use.
    let spare = format!("127.0.0.1:{}", free_port());
    let locked = refused_start(&cluster.nodes[0].data_dir, &spare, &[]);
    assert_eq!(locked.status.code(), Some(1), "{}", told(&locked));
    assert!(
        error_line(&locked).contains("in use by another process"),
        "{}",
        told(&locked)
    );
    // Its port is taken.
    let other = cluster.dir.path().join("other");
    let taken = refused_start(&other, &cluster.nodes[0].addr, &[]);
    assert_eq!(taken.status.code(), Some(1), "{}", told(&taken));
    let line = error_line(&taken);
    assert!(
        line.contains("--listen") && line.contains(&cluster.nodes[0].addr),
        "{line}"
    );
    assert!(!other.exists(), "a port comes before a directory");

    // The log of one node under the identity of another.
    cluster.kill(0);
    cluster.kill(1);
    let mixed = cluster.dir.path().join("mixed");
    copy(&cluster.nodes[0].data_dir, &mixed);
    for name in ["identity.1", "identity.2"] {
        std::fs::copy(cluster.nodes[1].data_dir.join(name), mixed.join(name)).expect("an identity");
    }
    let before = contents(&mixed);
    let foreign = refused_start(&mixed, &cluster.nodes[1].addr, &[]);
    assert_eq!(foreign.status.code(), Some(2), "{}", told(&foreign));
    assert!(
        error_line(&foreign).contains("the log of another node"),
        "{}",
        told(&foreign)
    );
    assert_eq!(contents(&mixed), before, "files are untouched");

    // All of one node's directory in place of another's.
    let before = contents(&cluster.nodes[1].data_dir);
    let moved = refused_start(&cluster.nodes[1].data_dir, &cluster.nodes[0].addr, &[]);
    assert_eq!(moved.status.code(), Some(2), "{}", told(&moved));
    let line = error_line(&moved);
    assert!(
        line.contains(&cluster.nodes[0].addr) && line.contains(&cluster.nodes[1].addr),
        "{line}"
    );
    assert_eq!(
        contents(&cluster.nodes[1].data_dir),
        before,
        "files are untouched"
    );

    // A newer format, as its own release would have written it.
    let newer = cluster.dir.path().join("newer");
    copy(&cluster.nodes[0].data_dir, &newer);
    for name in ["identity.1", "identity.2"] {
        raise_format(&newer.join(name));
    }
    let before = contents(&newer);
    let refused = refused_start(&newer, &cluster.nodes[0].addr, &[]);
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(error_line(&refused).contains("newer"), "{}", told(&refused));
    assert_eq!(contents(&newer), before, "files are untouched");
}

/// Format numbers are written after an 8-byte magic, as 4 bytes, big endian, and covered by the
/// CRC at the end of the file.
fn raise_format(path: &Path) {
    let mut bytes = std::fs::read(path).expect("an identity");
    let format = u32::from_be_bytes(bytes[8..12].try_into().expect("four bytes"));
    bytes[8..12].copy_from_slice(&(format + 1).to_be_bytes());
    let end = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_be_bytes());
    std::fs::write(path, bytes).expect("an identity");
}

fn copy(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).expect("below"));
        std::fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
        std::fs::copy(&file, target).expect("a file");
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Not even root can make a directory below a file.
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let listen = format!("127.0.0.1:{}", free_port());
    let output = refused_start(&file.join("data"), &listen, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(
        error_line(&output).contains("data directory"),
        "{}",
        told(&output)
    );
}

#[test]
fn bad_settings_of_a_node_name_the_flag_with_status_2() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("data");
    let config = dir.path().join("reelkv.toml");
    std::fs::write(&config, "zone = \"a\"\nheartbeat = 5\n").expect("a file");
    let config = config.to_str().expect("text");
    let local = format!("127.0.0.1:{}", free_port());
    let cases: &[(&str, &[&str], &str)] = &[
        ("0.0.0.0:7301", &["--advertise", "10.0.0.1:7301"], "--listen"),
        (&local, &["--http", "0.0.0.0:7401"], "--http"),
        (&local, &["--config", config], "heartbeat"),
        (&local, &["--cache", "64M"], "--cache"),
        (&local, &["--engine", "memory"], "--engine"),
        (&local, &["--colour", "red"], "--colour"),
    ];
    for (listen, more, named) in cases {
        let output = refused_start(&data, listen, more);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", told(&output));
        assert!(error_line(&output).contains(named), "{more:?}: {}", told(&output));
        assert!(!data.exists(), "nothing was changed");
    }
}

#[test]
fn bad_requests_are_refused_and_nothing_is_written() {
    let cluster = Cluster::new(3);
    let made = cluster.run(&["keyspace", "create", "film", "--shards", "3"]);
    assert!(made.status.success(), "{}", told(&made));
    let long_key = "k".repeat(4_097);
    let cases: &[(&[&str], &str)] = &[
        (
            &["put", "--keyspace", "film", "--raw-key", &long_key, "v"],
            "4096",
        ),
        (&["put", "--keyspace", "film", "(1,", "v"], "key"),
        (&["put", "--keyspace", "", "(1)", "v"], "1 to 128 bytes"),
        (&["put", "--keyspace", "actor", "(1)", "v"], "actor"),
        (&["get", "--keyspace", "actor", "(1)"], "actor"),
        (&["keyspace", "create", "film", "--shards", "0"], "--shards"),
    ];
    for (arguments, named) in cases {
        let output = cluster.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", told(&output));
        assert!(
            error_line(&output).contains(named),
            "{arguments:?}: {}",
            told(&output)
        );
    }
    let value = cluster.dir.path().join("value");
    std::fs::write(&value, vec![0; (4 << 20) + 1]).expect("a file");
    let path = value.to_str().expect("text");
    let output = cluster.run(&["put", "--keyspace", "film", "(1)", "--file", path]);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert!(error_line(&output).contains("4194304"), "{}", told(&output));
    let twice = cluster.run(&["keyspace", "create", "film"]);
    assert_eq!(twice.status.code(), Some(1), "{}", told(&twice));
    assert!(error_line(&twice).contains("exists"), "{}", told(&twice));
    let all = cluster.run(&["scan", "--keyspace", "film"]);
    assert!(all.status.success() && all.stdout.is_empty(), "{}", told(&all));
}

/// What the command line cannot send: a value that does not match its checksum, and a batch
/// over two shards.
#[tokio::test]
async fn the_node_itself_refuses_what_a_client_should_not_have_sent() {
    use prost::Message;
    use reelkv_client::v1::{self, kv_client::KvClient};
    let cluster = Cluster::new(3);
    assert!(
        cluster
            .run(&["keyspace", "create", "film", "--shards", "3"])
            .status
            .success()
    );
    let mut client = KvClient::connect(format!("http://{}", cluster.nodes[1].addr))
        .await
        .expect("a node");
    let keyspace = || "film".to_owned();
    let refused = |status: tonic::Status| v1::Error::decode(status.details()).expect("an error").kind;

    let put = v1::PutRequest {
        keyspace: keyspace(),
        key: "a".into(),
        value: "damaged on the way".into(),
        client_crc: Some(1),
        ..Default::default()
    };
    let kind = refused(client.put(put).await.expect_err("a wrong checksum"));
    assert!(matches!(kind, Some(v1::error::Kind::Integrity(at)) if at.r#where == "request"));

    let for_ever = v1::PutRequest {
        keyspace: keyspace(),
        key: "a".into(),
        ttl_ms: 3_650 * 86_400_000 + 1,
        ..Default::default()
    };
    let kind = refused(client.put(for_ever).await.expect_err("too long a time to live"));
    assert!(matches!(kind, Some(v1::error::Kind::InvalidArgument(at)) if at.field == "ttl_ms"));

    let operation = |key: &'static [u8]| v1::BatchOperation {
        key: key.into(),
        kind: Some(v1::batch_operation::Kind::Put(v1::BatchPut {
            value: "v".into(),
            client_crc: None,
            ttl_ms: 0,
        })),
        condition: None,
    };
    let batch = |operations| v1::BatchRequest {
        keyspace: keyspace(),
        operations,
        ..Default::default()
    };
    let across = client
        .batch(batch(vec![operation(b"\x01"), operation(b"\xf0")]))
        .await;
    let kind = refused(across.expect_err("keys of two shards"));
    assert!(matches!(kind, Some(v1::error::Kind::InvalidArgument(at)) if at.field == "batch"));
    let many = (0..1_001_u32).map(|n| v1::BatchOperation {
        key: n.to_be_bytes().to_vec().into(),
        ..operation(b"")
    });
    let kind = refused(client.batch(batch(many.collect())).await.expect_err("too many"));
    assert!(matches!(kind, Some(v1::error::Kind::InvalidArgument(at)) if at.field == "batch"));

    let all = cluster.run(&["scan", "--keyspace", "film"]);
    assert!(all.status.success() && all.stdout.is_empty(), "{}", told(&all));
}
