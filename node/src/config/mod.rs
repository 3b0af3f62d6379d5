//! What a node is started with: flags, environment, a file, defaults.
//!
//! Every setting of `reelkv node start` has one name in three spellings: the flag `--wal-max`, the
//! environment variable `REELKV_WAL_MAX`, the key `wal-max` of the TOML file that `--config`
//! names. The first of these that is given counts; else the default, which stands in
//! `node/docs/reelkv.example.toml` next to the meaning, the unit and the limits.
//!
//! [`Settings`] is what was written, by whichever source; nothing in it was looked at. It becomes
//! a [`NodeConfig`] in `resolve`, which checks every value and holds only what a node can run with.
//! Whatever is refused is refused in one line that begins with the flag, so that the line is
//! right for every source.

mod addr;
mod file;
mod resolve;
#[cfg(test)]
mod tests;
pub(crate) mod units;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use crate::logs::{LogConfig, LogFormat};
use crate::server::NodeOptions;

/// The flags of `reelkv node start`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NodeArgs {
    /// TOML file with settings, named like the flags; a flag or REELKV_* variable wins over it
    #[arg(long, env = "REELKV_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// What one source says; the doc comments of the fields are the help texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Settings {
    /// Directory for everything the node keeps [required]
    #[arg(long, env = "REELKV_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// IP address and port to serve clients and nodes at [required]
    #[arg(long, env = "REELKV_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,
    /// IP address and port for metrics and health checks, or `off` [default: off]
    #[arg(long, env = "REELKV_HTTP", value_name = "HOST:PORT")]
    http: Option<String>,
    /// Address at which others reach this node [default: as --listen]
    #[arg(long, env = "REELKV_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Addresses of nodes of the cluster, this one among them, separated by commas [required]
    #[arg(long, env = "REELKV_JOIN", value_name = "HOST:PORT", value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// Failure domain; replicas are spread over zones [default: default]
    #[arg(long, env = "REELKV_ZONE", value_name = "NAME")]
    zone: Option<String>,
    /// Storage engine, lsm or sled [default: lsm]
    #[arg(long, env = "REELKV_ENGINE", value_name = "NAME")]
    engine: Option<String>,
    /// Memory for writes that are not checkpointed yet [default: 256MiB]
    #[arg(long, env = "REELKV_MEMTABLE_BUDGET", value_name = "SIZE")]
    memtable_budget: Option<Text>,
    /// Memory for blocks read from disk [default: 256MiB]
    #[arg(long, env = "REELKV_CACHE", value_name = "SIZE")]
    cache: Option<Text>,
    /// Log size to stay below: at three quarters of it trees are checkpointed to shorten it [default: 256MiB]
    #[arg(long, env = "REELKV_WAL_MAX", value_name = "SIZE")]
    wal_max: Option<Text>,
    /// Size of one file of the log [default: 16MiB]
    #[arg(long, env = "REELKV_SEGMENT", value_name = "SIZE")]
    segment: Option<Text>,
    /// Longest time between checkpoints of a tree that is written to [default: 30s]
    #[arg(long, env = "REELKV_CHECKPOINT_INTERVAL", value_name = "DURATION")]
    checkpoint_interval: Option<Text>,
    /// Most bytes per second that a node copies to repair or fill its trees [default: 64MiB]
    #[arg(long, env = "REELKV_REPAIR_MAX", value_name = "SIZE")]
    repair_max: Option<Text>,
    /// How often a leader shows that it lives, in milliseconds [default: 200]
    #[arg(long, env = "REELKV_HEARTBEAT_MS", value_name = "MS")]
    heartbeat_ms: Option<Text>,
    /// Shortest silence of a leader before another is elected, in milliseconds [default: 550]
    #[arg(long, env = "REELKV_ELECTION_TIMEOUT_MS", value_name = "MS")]
    election_timeout_ms: Option<Text>,
    /// How long a replica may be missing on a live node before it is replaced [default: 30s]
    #[arg(long, env = "REELKV_REPLACE_AFTER", value_name = "DURATION")]
    replace_after: Option<Text>,
    /// What is logged: a level, then exceptions such as reelkv::raft=debug [default: info]
    #[arg(long, env = "REELKV_LOG_LEVEL", value_name = "FILTER")]
    log_level: Option<String>,
    /// How log lines are written, text or json [default: text]
    #[arg(long, env = "REELKV_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
    /// Serve addresses other machines can reach, without TLS [default: false]
    #[arg(long, env = "REELKV_INSECURE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new())]
    insecure: Option<bool>,
}

/// A value whose unit stands in it (`64MiB`, `30s`) or is plain: in a file it may be written as a
/// string or as a whole number.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(from = "Written")]
struct Text(String);

#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a string or a whole number")]
enum Written {
    Number(i64),
    Text(String),
}

impl From<Written> for Text {
    fn from(written: Written) -> Self {
        match written {
            Written::Number(number) => Self(number.to_string()),
            Written::Text(text) => Self(text),
        }
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Everything `reelkv node start` needs, checked.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node.
    pub options: NodeOptions,
    /// Where it serves gRPC; its port is not 0.
    pub listen: SocketAddr,
    /// Where it serves HTTP, if at all; its port is not 0.
    pub http: Option<SocketAddr>,
    /// Its log lines.
    pub log: LogConfig,
}

/// A setting that is missing or refused, in one line that begins with its flag. The caller exits
/// with status 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {message}")]
pub struct ConfigError {
    flag: &'static str,
    message: String,
}

impl ConfigError {
    fn new(flag: &'static str, message: impl Into<String>) -> Self {
        Self {
            flag,
            message: message.into(),
        }
    }

    /// The flag to correct, without its dashes.
    pub fn flag(&self) -> &'static str {
        self.flag
    }
}

/// What differs between nodes of one process; everything else is as by default.
pub(crate) struct LocalNode {
    pub data_dir: PathBuf,
    pub listen: String,
    pub http: String,
    pub join: Vec<String>,
    pub zone: String,
    pub log_level: String,
}

impl NodeArgs {
    /// The settings of a node that no flags were written for.
    pub(crate) fn of(node: LocalNode) -> Self {
        let settings = Settings {
            data_dir: Some(node.data_dir),
            listen: Some(node.listen),
            http: Some(node.http),
            join: Some(node.join),
            zone: Some(node.zone),
            log_level: Some(node.log_level),
            ..Settings::default()
        };
        Self {
            config: None,
            settings,
        }
    }

    /// Reads the file if one is named, fills up with defaults and checks everything. Blocks for
    /// the file.
    ///
    /// # Errors
    /// The first setting that is missing, malformed, out of its limits or at odds with another.
    pub fn resolve(self) -> Result<NodeConfig, ConfigError> {
        let file = match &self.config {
            Some(path) => file::read(path)?,
            None => Settings::default(),
        };
        merge(self.settings, file).resolve()
    }
}

/// What the flags (and the environment, which clap puts in their place) do not say, the file says.
fn merge(flags: Settings, file: Settings) -> Settings {
    Settings {
        data_dir: flags.data_dir.or(file.data_dir),
        listen: flags.listen.or(file.listen),
        http: flags.http.or(file.http),
        advertise: flags.advertise.or(file.advertise),
        join: flags.join.or(file.join),
        zone: flags.zone.or(file.zone),
        engine: flags.engine.or(file.engine),
        memtable_budget: flags.memtable_budget.or(file.memtable_budget),
        cache: flags.cache.or(file.cache),
        wal_max: flags.wal_max.or(file.wal_max),
        segment: flags.segment.or(file.segment),
        checkpoint_interval: flags.checkpoint_interval.or(file.checkpoint_interval),
        repair_max: flags.repair_max.or(file.repair_max),
        heartbeat_ms: flags.heartbeat_ms.or(file.heartbeat_ms),
        election_timeout_ms: flags.election_timeout_ms.or(file.election_timeout_ms),
        replace_after: flags.replace_after.or(file.replace_after),
        log_level: flags.log_level.or(file.log_level),
        log_format: flags.log_format.or(file.log_format),
        insecure: flags.insecure.or(file.insecure),
    }
}
