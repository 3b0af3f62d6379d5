//! What is refused, and in which words.

use super::*;

#[test]
fn a_file_is_refused_in_one_line_that_names_it_and_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    #[rustfmt::skip]
    let cases = [
        ("zone = \"a\"\ncachee = \"1GiB\"", "unknown key \"cachee\""),
        ("[node]\nzone = \"a\"", "unknown key \"node\""),
        ("config = \"other.toml\"", "unknown key \"config\""),
        ("memory-device = 1", "unknown key \"memory-device\""),
        ("zone = \"a\"\nzone = \"b\"", "line 2: duplicate key"),
        ("\n\nzone = a", "line 3: "),
        ("\nzone = 1", "line 2: invalid type: integer `1`, expected a string"),
        ("cache = true", "line 1: expected a string or a whole number"),
        ("cache = 1.5", "line 1: expected a string or a whole number"),
        ("join = \"a:1,b:1\"", "line 1: invalid type: string"),
    ];
    for (text, expected) in cases {
        write(&path, text);
        let line = refusal(resolve(&["--config", path.to_str().unwrap()]));
        let begin = format!("--config: {}: ", path.display());
        assert!(
            line.starts_with(&begin) && line.contains(expected),
            "{text:?}: {line}"
        );
    }
    write(&path, [0xff, 0xfe]);
    let line = refusal(resolve(&["--config", path.to_str().unwrap()]));
    assert!(line.ends_with("is not UTF-8 text"), "{line}");
    let line = refusal(resolve(&["--config", "/nowhere/node.toml"]));
    assert!(
        line.starts_with("--config: /nowhere/node.toml: No such file"),
        "{line}"
    );
}

#[test]
fn data_dir_listen_and_join_are_required() {
    let all = ["--data-dir=d", "--listen=127.0.0.1:7301", "--join=127.0.0.1:7301"];
    assert!(resolve(&all).is_ok());
    for left_out in 0..all.len() {
        let flags: Vec<_> = (0..all.len())
            .filter(|at| *at != left_out)
            .map(|at| all[at])
            .collect();
        let flag = all[left_out].split('=').next().unwrap();
        assert_eq!(refusal(resolve(&flags)), format!("{flag}: required"));
    }
    let empty = parse_file(r#"data-dir = """#).unwrap();
    assert_eq!(refusal(empty.resolve()), "--data-dir: required");
}

#[test]
fn every_refused_value_is_answered_with_its_flag_and_the_reason() {
    let long_zone = format!("--zone={}", "z".repeat(65));
    #[rustfmt::skip]
    let cases: &[(&str, &str)] = &[
        ("--zone=", "--zone: a zone has 1 to 64 bytes, this one has 0"),
        (&long_zone, "--zone: a zone has 1 to 64 bytes, this one has 65"),
        ("--engine=memory", "--engine: memory keeps nothing over a restart"),
        ("--engine=rocks", "--engine: no engine \"rocks\"; there are lsm and sled"),
        ("--cache=12", "--cache: 12B is not between 1MiB and 1TiB"),
        ("--cache=lots", "--cache: \"lots\" is not a size"),
        ("--cache=64M", "--cache: \"64M\" is not a size"),
        ("--cache=1.5GiB", "--cache: \"1.5GiB\" is not a size"),
        ("--cache=-1", "--cache: \"-1\" is not a size"),
        ("--cache=", "--cache: \"\" is not a size"),
        ("--cache=99999999999TiB", "--cache: \"99999999999TiB\" is not a size"),
        ("--memtable-budget=2TiB", "--memtable-budget: 2TiB is not between 1MiB and 1TiB"),
        ("--wal-max=1KB", "--wal-max: 1KB is not between 1MiB and 1TiB"),
        ("--wal-max=31MiB", "--wal-max: 31MiB does not hold two segments of 16MiB (--segment)"),
        ("--segment=4KiB", "--segment: 4KiB is not between 64KiB and 1GiB"),
        ("--segment=100KB", "--segment: 100000 bytes is not a multiple of 4KiB"),
        ("--repair-max=fast", "--repair-max: \"fast\" is not a size"),
        ("--repair-max=1KiB", "--repair-max: 1KiB is not between 1MiB and 1TiB"),
        ("--checkpoint-interval=30", "--checkpoint-interval: \"30\" is not a duration"),
        ("--checkpoint-interval=10ms", "--checkpoint-interval: 10ms is not between 1s and 1h"),
        ("--replace-after=8d", "--replace-after: 8d is not between 1s and 7d"),
        ("--replace-after=soon", "--replace-after: \"soon\" is not a duration"),
        ("--heartbeat-ms=5", "--heartbeat-ms: 5 is not between 10 and 10000"),
        ("--heartbeat-ms=30s", "--heartbeat-ms: \"30s\" is not a whole number (of milliseconds)"),
        ("--heartbeat-ms=550", "--heartbeat-ms: 550 must be less than --election-timeout-ms, which is 550"),
        ("--election-timeout-ms=+500", "--election-timeout-ms: \"+500\" is not a whole number"),
        ("--election-timeout-ms=200000", "--election-timeout-ms: 200000 is not between 50 and 100000"),
        ("--log-level=inof", "--log-level: \"inof\" is not a level"),
        ("--log-format=xml", "--log-format: no format \"xml\"; there are text and json"),
        ("--http=127.0.0.1:7301", "--http: 127.0.0.1:7301 is the address of --listen"),
        ("--http=127.0.0.1", "--http: \"127.0.0.1\" is not host:port"),
        ("--http=10.0.0.1:80", "--http: 10.0.0.1:80 can be reached from other machines"),
        ("--advertise=db1", "--advertise: \"db1\" is not host:port"),
        ("--advertise=0.0.0.0:7301", "--advertise: \"0.0.0.0:7301\" is not an address that others can call"),
        ("--advertise=db1:7301", "--join: must contain this node's own address, db1:7301"),
    ];
    for (flag, expected) in cases {
        let line = refusal(started(&[flag]));
        assert!(line.starts_with(expected), "{flag} is answered with {line}");
    }
}

#[test]
fn every_refused_address_is_answered_with_its_flag_and_the_reason() {
    #[rustfmt::skip]
    let cases = [
        ("10.0.0.1:7301", "10.0.0.1:7301", "--listen: 10.0.0.1:7301 can be reached from other machines"),
        ("[::]:7301", "[::1]:7301", "--listen: [::]:7301 can be reached from other machines"),
        ("db1:7301", "db1:7301", "--listen: \"db1:7301\" is not an IP address"),
        ("127.0.0.1:0", "127.0.0.1:0", "--listen: \"127.0.0.1:0\" is not host:port"),
        ("127.0.0.1:65536", "127.0.0.1:1", "--listen: \"127.0.0.1:65536\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:2", "--join: must contain this node's own address, 127.0.0.1:1"),
        ("127.0.0.1:1", "", "--join: \"\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:1,", "--join: \"\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:1,db2", "--join: \"db2\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:1,http://db2:1", "--join: \"http://db2:1\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:1, db2:1", "--join: \" db2:1\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:1,::1:1", "--join: \"::1:1\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:1,db2:01", "--join: \"db2:01\" is not host:port"),
        ("127.0.0.1:1", "127.0.0.1:1,0.0.0.0:1", "--join: \"0.0.0.0:1\" is not an address"),
        ("127.0.0.1:1", "127.0.0.1:1,127.0.0.1:1", "--join: 127.0.0.1:1 is named twice"),
    ];
    for (listen, join, expected) in cases {
        let line = refusal(resolve(&["--data-dir=d", "--listen", listen, "--join", join]));
        assert!(
            line.starts_with(expected),
            "{listen} joining {join} is answered with {line}"
        );
    }
}

#[test]
fn a_wildcard_needs_an_address_to_advertise() {
    let wildcard = [
        "--data-dir=d",
        "--insecure",
        "--listen=0.0.0.0:7301",
        "--join=db1:7301",
    ];
    let line = refusal(resolve(&wildcard));
    assert_eq!(
        line,
        "--advertise: required, as nobody can call --listen 0.0.0.0:7301"
    );
    let config = resolve(&[&wildcard[..], &["--advertise=db1:7301"]].concat()).unwrap();
    assert_eq!(config.options.addr, "db1:7301");
}
