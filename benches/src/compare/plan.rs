//! What is measured, and whether it can be, before anything is started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::system::Kind;
use super::{Options, Peer, etcd, postgres, redis};
use crate::CannotRun;
use crate::cluster::find_binary;
use crate::processes::{free_ports, is_free};
use crate::room;

/// Of one copy, whatever is stored: logs that are kept, files written again.
const COPY_BYTES: u64 = 512 << 20;
const COPY_BYTES_QUICK: u64 = 160 << 20;
/// Bytes a record takes beside its value, in the store that takes most.
const RECORD_BYTES: u64 = 150;
/// Percent of that: a store may hold old and new files at once.
const ROOM_PERCENT: u64 = 130;
/// More puts than any peer does on a small machine; those that keep history keep as many.
const PUTS_PER_SECOND: u64 = 20_000;

/// Everything a run needs.
pub struct Plan {
    /// ReelKV, then the peers, each once.
    pub systems: Vec<Kind>,
    /// The `reelkv` binary.
    pub reelkv: PathBuf,
    /// By system.
    pub ports: Vec<Vec<u16>>,
    /// As whom PostgreSQL runs, if not as ourselves.
    pub postgres_owner: Option<(u32, u32)>,
}

impl Plan {
    /// Refuses, in one line, what could not be done; `directory` is where the systems will run.
    pub fn check(options: &Options, directory: &Path) -> Result<Self, CannotRun> {
        let mut systems = vec![Kind::ReelKv];
        for peer in &options.peers {
            let kind = match peer {
                Peer::Etcd => Kind::Etcd,
                Peer::Postgres => Kind::Postgres,
                Peer::Redis => Kind::Redis,
            };
            if !systems.contains(&kind) {
                systems.push(kind);
            }
        }
        if !options.keys.is_sorted() {
            return Err(CannotRun("--keys: the numbers must rise".to_owned()));
        }
        let reelkv = find_binary(options.reelkv.as_deref())?;
        for kind in &systems {
            is_installed(*kind)?;
        }
        let postgres_owner = match systems.contains(&Kind::Postgres) {
            true => postgres_owner()?,
            false => None,
        };
        let needed_bytes = disk_bytes(options, &systems);
        let advice = "fewer --keys, --rounds or --peers need less";
        room::check("this run", needed_bytes, directory, advice)?;
        let ports = ports(options.first_port, &systems)?;
        Ok(Self {
            systems,
            reelkv,
            ports,
            postgres_owner,
        })
    }
}

/// Names what is missing and the Debian package that has it.
fn is_installed(kind: Kind) -> Result<(), CannotRun> {
    let (program, package) = match kind {
        Kind::ReelKv => return Ok(()),
        Kind::Etcd => (PathBuf::from(etcd::PROGRAM), "etcd-server"),
        Kind::Redis => (PathBuf::from(redis::PROGRAM), "redis-server"),
        Kind::Postgres => {
            let programs = ["postgres", "initdb", "pg_basebackup"].map(postgres::binary);
            let missing = programs.into_iter().find(|program| !program.is_file());
            match missing {
                None => return Ok(()),
                Some(program) => (program, "postgresql-15"),
            }
        }
    };
    if !program.is_absolute() && is_on_path(&program) {
        return Ok(());
    }
    Err(CannotRun(format!(
        "{} is missing: install Debian's package {package}, or leave {} out of --peers",
        program.display(),
        kind.name()
    )))
}

fn is_on_path(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// PostgreSQL refuses to run as root.
fn postgres_owner() -> Result<Option<(u32, u32)>, CannotRun> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    #[allow(clippy::disallowed_methods)] // the system's, no data of ours
    let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
    let ids = user_ids(&String::from_utf8_lossy(&passwd), postgres::USER);
    match ids {
        Some(ids) => Ok(Some(ids)),
        None => Err(CannotRun(format!(
            "PostgreSQL does not run as root, and there is no user {}: run this as another user",
            postgres::USER
        ))),
    }
}

fn user_ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields.into_iter().find(|fields| fields.first() == Some(&name))?;
    Some((found.get(2)?.parse().ok()?, found.get(3)?.parse().ok()?))
}

/// Disk that a run needs, generously.
fn disk_bytes(options: &Options, systems: &[Kind]) -> u64 {
    let keys = options.keys.iter().max().copied().unwrap_or(0);
    let value_bytes = u64::from(options.value_bytes.iter().max().copied().unwrap_or(0));
    let first_value_bytes = u64::from(options.value_bytes.first().copied().unwrap_or(0));
    let copy_bytes = if options.quick {
        COPY_BYTES_QUICK
    } else {
        COPY_BYTES
    };
    let puts = options.seconds * u64::from(options.rounds) * options.clients.len() as u64 * PUTS_PER_SECOND;
    // Loads of large values are as many bytes as a sized part of the run, whatever the size.
    let large_bytes = if value_bytes > first_value_bytes {
        2 << 30
    } else {
        0
    };
    let of_copy = |kind: &Kind| {
        let history = match kind {
            Kind::Etcd => puts * (first_value_bytes + RECORD_BYTES),
            _ => 0,
        };
        copy_bytes + keys * (first_value_bytes + RECORD_BYTES) * ROOM_PERCENT / 100 + history + large_bytes
    };
    systems.iter().map(|kind| kind.copies() * of_copy(kind)).sum()
}

/// Ports by system.
fn ports(first: Option<u16>, systems: &[Kind]) -> Result<Vec<Vec<u16>>, CannotRun> {
    let count: usize = systems.iter().map(|kind| kind.ports()).sum();
    let mut all = match first {
        None => free_ports(count).map_err(|error| CannotRun(error.to_string()))?,
        Some(first) => (first..).take(count).collect(),
    };
    if let Some(busy) = all.iter().find(|port| !is_free(**port)) {
        return Err(CannotRun(format!(
            "--first-port: port {busy} is in use; {count} from {} on are needed",
            all[0]
        )));
    }
    Ok(systems
        .iter()
        .map(|kind| all.drain(..kind.ports()).collect())
        .collect())
}

/// How long a fill may take: slower than any of them is.
pub fn fill_max(keys: u64) -> Duration {
    Duration::from_secs(60) + Duration::from_millis(5) * u32::try_from(keys).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_numbers_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:104:112:x:/var:/bin/sh\n";
        assert_eq!(user_ids(passwd, "postgres"), Some((104, 112)));
        assert_eq!(user_ids(passwd, "post"), None);
    }

    #[test]
    fn a_busy_port_is_named() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused = ports(Some(port), &[Kind::Redis]).unwrap_err().to_string();
        assert!(refused.contains(&format!("port {port} is in use")), "{refused}");
    }

    #[test]
    fn every_system_gets_its_ports() {
        let all = ports(None, &[Kind::ReelKv, Kind::Redis, Kind::Postgres]).unwrap();
        let counts: Vec<_> = all.iter().map(Vec::len).collect();
        assert_eq!(counts, [6, 1, 3]);
    }
}
