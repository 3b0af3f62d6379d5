//! What an operator may write, and what becomes of it.

mod refused;

use std::path::Path;

use clap::{Args, Command, FromArgMatches};

use super::file::parse as parse_file;
use super::*;
use crate::disk::{RealDisk, write_file_atomically};
use crate::storage::EngineKind;

const EXAMPLE: &str = include_str!("../../../docs/reelkv.example.toml");

/// `reelkv node start`, deaf to the environment of whoever runs the tests.
fn command() -> Command {
    NodeArgs::augment_args(Command::new("start")).mut_args(|arg| arg.env(None::<&str>))
}

fn read(command: Command, flags: &[&str]) -> NodeArgs {
    let matches = command
        .try_get_matches_from([&["start"], flags].concat())
        .unwrap();
    NodeArgs::from_arg_matches(&matches).unwrap()
}

fn resolve(flags: &[&str]) -> Result<NodeConfig, ConfigError> {
    read(command(), flags).resolve()
}

/// The least a node is started with, and more.
fn started(more: &[&str]) -> Result<NodeConfig, ConfigError> {
    resolve(
        &[
            &[
                "--data-dir",
                "d",
                "--listen",
                "127.0.0.1:7301",
                "--join",
                "127.0.0.1:7301",
            ],
            more,
        ]
        .concat(),
    )
}

fn refusal(result: Result<NodeConfig, ConfigError>) -> String {
    let line = match result {
        Ok(config) => panic!("accepted as {config:?}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    // PATH stands for the variable: every process has it, so no test has to change the environment.
    let path = std::env::var("PATH").unwrap();
    let with_environment = || command().mut_arg("log_level", |arg| arg.env("PATH"));
    let file = || parse_file(r#"log-level = "warn""#).unwrap();

    let all_four = merge(
        read(with_environment(), &["--log-level", "debug"]).settings,
        file(),
    );
    assert_eq!(all_four.log_level.as_deref(), Some("debug"));
    let without_flag = merge(read(with_environment(), &[]).settings, file());
    assert_eq!(without_flag.log_level, Some(path));
    let without_both = merge(read(command(), &[]).settings, file());
    assert_eq!(without_both.log_level.as_deref(), Some("warn"));
    assert_eq!(started(&[]).unwrap().log.level, "info");
}

#[test]
fn every_setting_is_merged_from_either_source_and_the_flag_wins() {
    let (flags, file) = (uncommented_example(), Settings::default());
    assert_eq!(merge(flags.clone(), file.clone()), flags);
    assert_eq!(merge(file, flags.clone()), flags);
    let mut others: toml::Table = toml::from_str(&uncommented(EXAMPLE)).unwrap();
    for (_, value) in &mut others {
        *value = match value {
            toml::Value::Boolean(value) => (!*value).into(),
            toml::Value::Array(_) => vec!["other"].into(),
            _ => "other".into(),
        };
    }
    let others = parse_file(&others.to_string()).unwrap();
    assert_eq!(merge(flags.clone(), others), flags);
}

#[test]
fn every_flag_has_its_variable_and_its_key() {
    let command = NodeArgs::augment_args(Command::new("start"));
    for arg in command.get_arguments() {
        let flag = arg.get_long().unwrap();
        let variable = format!("REELKV_{}", flag.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env().unwrap(), variable.as_str());
    }
}

#[test]
fn the_description_is_that_of_the_subcommand() {
    #[derive(clap::Subcommand)]
    enum Verb {
        /// Runs a node
        #[allow(dead_code, clippy::large_enum_variant)] // only its description is asked for
        Start(NodeArgs),
    }
    let command = <Verb as clap::Subcommand>::augment_subcommands(Command::new("node"));
    let about = command.find_subcommand("start").unwrap().get_about().unwrap();
    assert_eq!(about.to_string(), "Runs a node");
}

#[test]
fn a_file_gives_all_settings_and_a_flag_still_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    let text = r#"
        data-dir = "/data"
        listen = "0.0.0.0:7301"
        http = "0.0.0.0:8301"
        advertise = "db1.example:7301"
        join = ["db1.example:7301", "db2.example:7301"]
        zone = "north"
        engine = "sled"
        cache = 67108864
        segment = "64KiB"
        wal-max = "2MB"
        checkpoint-interval = "5m"
        repair-max = "8MiB"
        heartbeat-ms = 100
        election-timeout-ms = "500"
        replace-after = "500m"
        log-format = "json"
        insecure = true
    "#;
    write(&path, text);
    let config = resolve(&["--config", path.to_str().unwrap(), "--zone", "south"]).unwrap();
    let options = config.options;
    assert_eq!(options.data_dir, Path::new("/data"));
    assert_eq!(
        (options.addr.as_str(), options.http_addr.as_str()),
        ("db1.example:7301", "db1.example:8301")
    );
    assert_eq!(options.join, ["db1.example:7301", "db2.example:7301"]);
    assert_eq!(options.zone, "south");
    assert_eq!(options.storage.engine, EngineKind::Sled);
    assert_eq!(options.storage.cache_bytes, 64 << 20);
    assert_eq!(
        (options.wal.segment_bytes, options.replicas.wal_bytes_max),
        (64 << 10, 2_000_000)
    );
    assert_eq!(options.replicas.checkpoint_interval_ms, 300_000);
    assert_eq!(options.replicas.repair_bytes_per_s_max, 8 << 20);
    let times = options.replicas.times;
    assert_eq!(
        (times.heartbeat_interval_ms, times.election_timeout_min_ms),
        (100, 500)
    );
    assert_eq!(times.election_timeout_max_ms, 900);
    assert_eq!(options.replace_after_ms, 30_000_000);
    assert_eq!(config.listen, "0.0.0.0:7301".parse().unwrap());
    assert_eq!(config.http, Some("0.0.0.0:8301".parse().unwrap()));
    assert_eq!(
        config.log,
        LogConfig {
            level: "info".to_owned(),
            format: LogFormat::Json
        }
    );
}

#[test]
fn insecure_can_be_taken_back_by_a_flag() {
    let file = parse_file("insecure = true").unwrap();
    for (flags, expected) in [
        (vec![], true),
        (vec!["--insecure"], true),
        (vec!["--insecure=false"], false),
    ] {
        let merged = merge(read(command(), &flags).settings, file.clone());
        assert_eq!(merged.insecure, Some(expected), "{flags:?}");
    }
}

#[test]
fn loopback_in_any_spelling_needs_no_leave() {
    for listen in ["127.0.0.1:7301", "127.9.9.9:7301", "[::1]:7301", "localhost:7301"] {
        let config = resolve(&["--data-dir=d", "--listen", listen, "--join", listen]).unwrap();
        assert!(config.listen.ip().is_loopback());
        assert_eq!(config.options.addr, listen);
        assert_eq!((config.http, config.options.http_addr.as_str()), (None, ""));
    }
}

#[test]
fn sizes_and_durations_as_people_write_them() {
    let any = 0..=u64::MAX;
    let sizes = [
        ("4096", 4_096),
        ("4096B", 4_096),
        ("500KB", 500_000),
        ("3mb", 3_000_000),
        ("2GB", 2_000_000_000),
        ("1TB", 1_000_000_000_000),
        ("1KiB", 1_024),
        ("64MiB", 64 << 20),
        (" 64 mib ", 64 << 20),
        ("1GiB", 1 << 30),
        ("1TiB", 1 << 40),
    ];
    for (text, bytes) in sizes {
        assert_eq!(units::size_bytes(text, &any), Ok(bytes), "{text}");
    }
    let durations = [
        ("500ms", 500),
        ("30s", 30_000),
        ("5m", 300_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
    ];
    for (text, ms) in durations {
        assert_eq!(units::duration_ms(text, &any), Ok(ms), "{text}");
    }
}

#[test]
fn the_example_file_holds_every_flag_at_its_default_and_nothing_else() {
    let table: toml::Table = toml::from_str(&uncommented(EXAMPLE)).unwrap();
    let command = Settings::augment_args(Command::new("start"));
    let flags: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    for key in table.keys() {
        assert!(flags.contains(&key.as_str()), "{key} is no flag");
    }
    for arg in command.get_arguments() {
        let flag = arg.get_long().unwrap();
        let value = table
            .get(flag)
            .unwrap_or_else(|| panic!("{flag} is not in the example file"));
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let default = match flag {
            "data-dir" | "listen" | "join" => "[required]".to_owned(),
            "advertise" => "[default: as --listen]".to_owned(),
            _ => format!("[default: {value}]"),
        };
        let help = arg.get_help().unwrap().to_string();
        assert!(
            help.ends_with(&default),
            "the help of --{flag} should end with {default}: {help}"
        );
    }
    assert_eq!(
        parse_file(EXAMPLE),
        Ok(Settings::default()),
        "everything is commented out"
    );

    let least = Settings {
        data_dir: Some("/var/lib/reelkv".into()),
        listen: Some("127.0.0.1:7301".to_owned()),
        join: Some(vec!["127.0.0.1:7301".to_owned()]),
        ..Settings::default()
    };
    let (written, default) = (uncommented_example().resolve().unwrap(), least.resolve().unwrap());
    assert_eq!(format!("{written:?}"), format!("{default:?}"));
}

fn uncommented_example() -> Settings {
    parse_file(&uncommented(EXAMPLE)).unwrap()
}

/// A commented setting has no space after its `#`, prose has.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|first: char| first.is_ascii_lowercase()) => setting.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    write_file_atomically(&RealDisk, path, text.as_ref()).unwrap();
}
