//! From what was written to what a node runs with: defaults, limits, and what must agree.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::addr::{self, host_port};
use super::units::{duration_ms, plain_ms, show_size, size_bytes};
use super::{ConfigError, LogConfig, LogFormat, NodeConfig, Settings, Text};
use crate::logs;
use crate::raft::{self, RaftTimes};
use crate::replica::ReplicaSettings;
use crate::server::NodeOptions;
use crate::storage::{EngineKind, StorageConfig};
use crate::wal::WalConfig;

/// Limits of the caches, in bytes.
const MEMORY_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// Limits of the log, in bytes.
const WAL_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// Limits of one of its segments, in bytes, and what it must be a multiple of.
const SEGMENT_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 30;
const SEGMENT_STEP_BYTES: u64 = 4 << 10;
/// Limits of the time between checkpoints, in milliseconds.
const CHECKPOINT_INTERVAL_MS: RangeInclusive<u64> = 1_000..=3_600_000;
/// Limits of what repairs may copy, in bytes per second.
const REPAIR_BYTES_PER_S: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// Limits of Raft's timers, in milliseconds.
const HEARTBEAT_MS: RangeInclusive<u64> = 10..=10_000;
const ELECTION_TIMEOUT_MS: RangeInclusive<u64> = 50..=100_000;
/// Limits of the patience with a missing replica, in milliseconds.
const REPLACE_AFTER_MS: RangeInclusive<u64> = 1_000..=7 * 86_400_000;
const REPLACE_AFTER_MS_DEFAULT: u64 = 30_000;
/// How often the placement driver looks, in milliseconds. Not a setting: it only has to be well
/// below the patience.
const DRIVER_INTERVAL_MS: u64 = 1_000;
/// Longest zone, in bytes.
const ZONE_BYTES_MAX: usize = 64;

/// Reads a value in its limits; the error does not name the flag yet.
type Reader = fn(&str, &RangeInclusive<u64>) -> Result<u64, String>;

impl Settings {
    /// Checks everything; see [`super::NodeArgs::resolve`].
    pub(super) fn resolve(self) -> Result<NodeConfig, ConfigError> {
        let data_dir = self.data_dir.clone().filter(|dir| !dir.as_os_str().is_empty());
        let data_dir = data_dir.ok_or_else(|| missing("data-dir"))?;
        let addresses = self.addresses()?;
        let replicas = self.replicas()?;
        let config = NodeConfig {
            options: NodeOptions {
                data_dir,
                addr: addresses.advertise,
                http_addr: addresses.http_advertise,
                zone: self.zone()?,
                join: addresses.join,
                wal: self.wal(replicas.wal_bytes_max)?,
                storage: self.storage()?,
                replicas,
                driver_interval_ms: DRIVER_INTERVAL_MS,
                replace_after_ms: number(
                    "replace-after",
                    &self.replace_after,
                    REPLACE_AFTER_MS_DEFAULT,
                    duration_ms,
                    REPLACE_AFTER_MS,
                )?,
            },
            listen: addresses.listen,
            http: addresses.http,
            log: self.log()?,
        };
        Ok(config)
    }

    fn zone(&self) -> Result<String, ConfigError> {
        let zone = self.zone.clone().unwrap_or_else(|| "default".to_owned());
        match (1..=ZONE_BYTES_MAX).contains(&zone.len()) {
            true => Ok(zone),
            false => {
                let message = format!(
                    "a zone has 1 to {ZONE_BYTES_MAX} bytes, this one has {}",
                    zone.len()
                );
                Err(ConfigError::new("zone", message))
            }
        }
    }

    fn storage(&self) -> Result<StorageConfig, ConfigError> {
        let default = StorageConfig::default();
        let engine = match self.engine.as_deref() {
            None => default.engine,
            Some(name) => match name.parse() {
                Ok(engine @ (EngineKind::Lsm | EngineKind::Sled)) => engine,
                Ok(EngineKind::Memory) => {
                    let message =
                        "memory keeps nothing over a restart and is for simulations; use lsm or sled";
                    return Err(ConfigError::new("engine", message));
                }
                Err(_) => {
                    let message = format!("no engine {name:?}; there are lsm and sled");
                    return Err(ConfigError::new("engine", message));
                }
            },
        };
        let memory = |flag, text, default| number(flag, text, default, size_bytes, MEMORY_BYTES);
        Ok(StorageConfig {
            engine,
            cache_bytes: memory("cache", &self.cache, default.cache_bytes)?,
            memtable_budget_bytes: memory(
                "memtable-budget",
                &self.memtable_budget,
                default.memtable_budget_bytes,
            )?,
            ..default
        })
    }

    fn wal(&self, wal_bytes_max: u64) -> Result<WalConfig, ConfigError> {
        let default = WalConfig::default();
        let segment_bytes = number(
            "segment",
            &self.segment,
            default.segment_bytes,
            size_bytes,
            SEGMENT_BYTES,
        )?;
        if !segment_bytes.is_multiple_of(SEGMENT_STEP_BYTES) {
            let message = format!(
                "{segment_bytes} bytes is not a multiple of {}",
                show_size(SEGMENT_STEP_BYTES)
            );
            return Err(ConfigError::new("segment", message));
        }
        // A segment is only given back as a whole, and one is always being written.
        if wal_bytes_max < 2 * segment_bytes {
            let (max, segment) = (show_size(wal_bytes_max), show_size(segment_bytes));
            let message = format!("{max} does not hold two segments of {segment} (--segment)");
            return Err(ConfigError::new("wal-max", message));
        }
        Ok(WalConfig {
            segment_bytes,
            ..default
        })
    }

    fn replicas(&self) -> Result<ReplicaSettings, ConfigError> {
        let default = ReplicaSettings::default();
        Ok(ReplicaSettings {
            times: self.times(default.times)?,
            checkpoint_interval_ms: number(
                "checkpoint-interval",
                &self.checkpoint_interval,
                default.checkpoint_interval_ms,
                duration_ms,
                CHECKPOINT_INTERVAL_MS,
            )?,
            wal_bytes_max: number(
                "wal-max",
                &self.wal_max,
                default.wal_bytes_max,
                size_bytes,
                WAL_BYTES,
            )?,
            repair_bytes_per_s_max: number(
                "repair-max",
                &self.repair_max,
                default.repair_bytes_per_s_max,
                size_bytes,
                REPAIR_BYTES_PER_S,
            )?,
            ..default
        })
    }

    fn times(&self, default: RaftTimes) -> Result<RaftTimes, ConfigError> {
        let ms = |flag, text, default, limits| number(flag, text, default, plain_ms, limits);
        let heartbeat = default.heartbeat_interval_ms;
        let heartbeat = ms("heartbeat-ms", &self.heartbeat_ms, heartbeat, HEARTBEAT_MS)?;
        let election = default.election_timeout_min_ms;
        let election = ms(
            "election-timeout-ms",
            &self.election_timeout_ms,
            election,
            ELECTION_TIMEOUT_MS,
        )?;
        if heartbeat >= election {
            let message = format!("{heartbeat} must be less than --election-timeout-ms, which is {election}");
            return Err(ConfigError::new("heartbeat-ms", message));
        }
        let times = RaftTimes {
            heartbeat_interval_ms: heartbeat,
            election_timeout_min_ms: election,
            // Spread as the defaults are, so that two replicas seldom campaign at once.
            election_timeout_max_ms: election * default.election_timeout_max_ms
                / default.election_timeout_min_ms,
        };
        raft::config(times).map_err(|message| ConfigError::new("election-timeout-ms", message))?;
        Ok(times)
    }

    fn log(&self) -> Result<LogConfig, ConfigError> {
        let default = LogConfig::default();
        let level = self.log_level.clone().unwrap_or(default.level);
        logs::check_level(&level).map_err(|message| ConfigError::new("log-level", message))?;
        let format = match self.log_format.as_deref() {
            None => default.format,
            Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                let message = format!("no format {other:?}; there are text and json");
                return Err(ConfigError::new("log-format", message));
            }
        };
        Ok(LogConfig { level, format })
    }

    fn addresses(&self) -> Result<Addresses, ConfigError> {
        let insecure = self.insecure.unwrap_or(false);
        let listen_text = self.listen.as_deref().ok_or_else(|| missing("listen"))?;
        let listen = own_address("listen", listen_text, insecure)?;
        let http = match self.http.as_deref().unwrap_or("off") {
            "off" => None,
            text => Some(own_address("http", text, insecure)?),
        };
        if http == Some(listen) {
            return Err(ConfigError::new(
                "http",
                format!("{listen} is the address of --listen"),
            ));
        }
        if self.advertise.is_none() && listen.ip().is_unspecified() {
            let message = format!("required, as nobody can call --listen {listen}");
            return Err(ConfigError::new("advertise", message));
        }
        let advertise = self.advertise.as_deref().unwrap_or(listen_text);
        addr::reachable(advertise).map_err(|message| ConfigError::new("advertise", message))?;
        let (host, _) = host_port(advertise).map_err(|message| ConfigError::new("advertise", message))?;
        let http_advertise = match http {
            Some(http) if http.ip().is_unspecified() => format!("{host}:{}", http.port()),
            Some(http) => http.to_string(),
            None => String::new(),
        };
        let join = self.join(advertise)?;
        Ok(Addresses {
            listen,
            http,
            advertise: advertise.to_owned(),
            http_advertise,
            join,
        })
    }

    fn join(&self, advertise: &str) -> Result<Vec<String>, ConfigError> {
        let refused = |message: String| ConfigError::new("join", message);
        let join = self.join.clone().ok_or_else(|| missing("join"))?;
        for (position, address) in join.iter().enumerate() {
            addr::reachable(address).map_err(refused)?;
            if join[..position].contains(address) {
                return Err(refused(format!("{address} is named twice")));
            }
        }
        if !join.iter().any(|address| address == advertise) {
            let message =
                format!("must contain this node's own address, {advertise} (--advertise or --listen)");
            return Err(refused(message));
        }
        Ok(join)
    }
}

/// Invariant: `join` contains `advertise`.
struct Addresses {
    listen: SocketAddr,
    http: Option<SocketAddr>,
    advertise: String,
    /// Empty when off.
    http_advertise: String,
    join: Vec<String>,
}

fn missing(flag: &'static str) -> ConfigError {
    ConfigError::new(flag, "required")
}

fn own_address(flag: &'static str, text: &str, insecure: bool) -> Result<SocketAddr, ConfigError> {
    let address = addr::listen(text).map_err(|message| ConfigError::new(flag, message))?;
    if !insecure && !address.ip().is_loopback() {
        let message = format!(
            "{address} can be reached from other machines, unencrypted and by anyone; TLS comes later, until then add --insecure"
        );
        return Err(ConfigError::new(flag, message));
    }
    Ok(address)
}

fn number(
    flag: &'static str,
    text: &Option<Text>,
    default: u64,
    read: Reader,
    limits: RangeInclusive<u64>,
) -> Result<u64, ConfigError> {
    match text {
        Some(Text(text)) => read(text, &limits).map_err(|message| ConfigError::new(flag, message)),
        None => Ok(default),
    }
}
