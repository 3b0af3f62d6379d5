//! A real PostgreSQL of our own, for tests: a fresh cluster in a temporary directory, reachable only through a socket in
//! that directory, gone when dropped (also on panic). Needs nothing but the standard library and `tempfile`.

#![allow(dead_code, clippy::disallowed_methods)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// Whether a test that lacks a tool may be skipped: panics if `REELKV_REQUIRE` names the tool, else says so on the
/// real standard error, which the test harness does not capture.
pub fn skip(test: &str, tool: &str, reason: &str) {
    let required = std::env::var("REELKV_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name.trim() == tool),
        "{test} needs {tool}: {reason}"
    );
    if let Ok(mut stderr) = fs::OpenOptions::new().append(true).open("/dev/stderr") {
        let _ = writeln!(stderr, "SKIPPED {test}: {reason}");
    }
}

/// A running server.
pub struct PgServer {
    postgres: Child,
    binaries: PathBuf,
    owner: Option<(u32, u32)>,
    directory: TempDir,
}

/// The superuser of every cluster.
pub const SUPERUSER: &str = "postgres";

impl PgServer {
    /// Starts a server, or says why the test is skipped.
    pub fn start_or_skip(test: &str) -> Option<PgServer> {
        match PgServer::start(&[]) {
            Ok(server) => Some(server),
            Err(reason) => {
                skip(test, "postgres", &reason);
                None
            }
        }
    }

    /// Starts a server with more settings (`name=value`). The error says what is missing.
    pub fn start(settings: &[&str]) -> Result<PgServer, String> {
        let binaries = find_binaries().ok_or("no PostgreSQL binaries (initdb, postgres) were found")?;
        // The server refuses to run as root.
        let owner = if is_root() {
            Some(user_ids(SUPERUSER).ok_or("root, and no user postgres")?)
        } else {
            None
        };
        let directory = tempfile::Builder::new()
            .prefix("pg")
            .tempdir()
            .map_err(|error| error.to_string())?;
        if let Some((user, group)) = owner {
            chown(directory.path(), Some(user), Some(group)).map_err(|error| error.to_string())?;
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))
            .map_err(|e| e.to_string())?;
        let data = directory.path().join("data");
        let mut initdb = command(&binaries, "initdb", owner, directory.path());
        initdb.arg("-D").arg(&data).args([
            "-U",
            SUPERUSER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "-N",
        ]);
        run(&mut initdb, "")?;
        let mut postgres = command(&binaries, "postgres", owner, directory.path());
        postgres
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .args(["-c", "listen_addresses="]);
        for setting in ["fsync=off", "full_page_writes=off", "max_connections=50"]
            .iter()
            .chain(settings)
        {
            postgres.args(["-c", setting]);
        }
        let log = fs::File::create(directory.path().join("log")).map_err(|error| error.to_string())?;
        let postgres = postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let postgres = postgres.spawn().map_err(|error| error.to_string())?;
        let server = PgServer {
            postgres,
            binaries,
            owner,
            directory,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Where to connect to a database, as the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_of(SUPERUSER, "", database)
    }

    /// Where to connect to a database as someone.
    pub fn url_of(&self, user: &str, password: &str, database: &str) -> String {
        let directory = self.directory.path().display();
        format!("postgres://{user}:{password}@/{database}?host={directory}")
    }

    /// Runs SQL by `psql`; panics if any statement fails.
    pub fn sql(&self, database: &str, sql: &str) {
        self.psql(database, &["-f", "-"], sql);
    }

    /// Runs a query and returns its rows, columns separated by `|`.
    pub fn query(&self, database: &str, sql: &str) -> Vec<String> {
        self.psql(database, &["-A", "-t", "-c", sql], "")
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Runs an SQL file.
    pub fn load(&self, database: &str, file: &Path) {
        let sql = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.sql(database, &sql);
    }

    /// Makes an empty database.
    pub fn create_database(&self, name: &str) {
        self.sql(
            "postgres",
            &format!("CREATE DATABASE \"{name}\" TEMPLATE template0"),
        );
    }

    /// Replaces the lines that say who may connect how, from the next connection on.
    pub fn write_hba(&self, lines: &str) {
        fs::write(self.directory.path().join("data/pg_hba.conf"), lines).expect("writing pg_hba.conf");
        let _ = self.query("postgres", "SELECT pg_reload_conf()");
    }

    fn psql(&self, database: &str, arguments: &[&str], input: &str) -> String {
        let mut psql = command(&self.binaries, "psql", self.owner, self.directory.path());
        psql.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            SUPERUSER,
            "-d",
            database,
            "-h",
        ]);
        psql.arg(self.directory.path()).args(arguments);
        run(&mut psql, input).unwrap_or_else(|error| panic!("psql {database}: {error}"))
    }

    fn wait_until_ready(&self) -> Result<(), String> {
        for _ in 0..600 {
            let mut ready = command(&self.binaries, "pg_isready", self.owner, self.directory.path());
            ready.arg("-q").arg("-h").arg(self.directory.path());
            if ready.status().is_ok_and(|status| status.success()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(fs::read_to_string(self.directory.path().join("log")).unwrap_or_default())
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        // SIGQUIT: stop at once; the data directory goes too.
        let pid = self.postgres.id().to_string();
        let asked = Command::new("kill")
            .args(["-QUIT", &pid])
            .status()
            .is_ok_and(|status| status.success());
        if !asked {
            let _ = self.postgres.kill();
        }
        let _ = self.postgres.wait();
    }
}

fn command(binaries: &Path, name: &str, owner: Option<(u32, u32)>, directory: &Path) -> Command {
    let mut command = Command::new(binaries.join(name));
    command
        .current_dir(directory)
        .env_remove("PGOPTIONS")
        .env("LC_ALL", "C.UTF-8");
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

/// Runs to the end; the error is what it said.
fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (mut stdin, mut stderr) = (
        child.stdin.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    let said = std::thread::scope(|scope| {
        // A child that fails early does not read its input: what it says matters, not the broken pipe.
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        let reader = scope.spawn(move || {
            let mut said = String::new();
            let _ = stderr.read_to_string(&mut said);
            said
        });
        let mut out = String::new();
        let _ = child.stdout.take().expect("piped").read_to_string(&mut out);
        (out, reader.join().expect("reads to the end"))
    });
    match child.wait() {
        Ok(status) if status.success() => Ok(said.0),
        Ok(status) => Err(format!("{status}: {}", said.1)),
        Err(error) => Err(error.to_string()),
    }
}

/// The newest of `/usr/lib/postgresql/*/bin`, else what PATH has.
fn find_binaries() -> Option<PathBuf> {
    let complete = |directory: &PathBuf| {
        ["initdb", "postgres", "psql", "pg_isready"]
            .iter()
            .all(|name| directory.join(name).exists())
    };
    let version = |directory: &PathBuf| -> u32 {
        directory
            .parent()
            .and_then(|p| p.file_name()?.to_str()?.parse().ok())
            .unwrap_or(0)
    };
    let installed = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<PathBuf> = installed
        .map(|entry| entry.path().join("bin"))
        .filter(complete)
        .collect();
    found.sort_by_key(version);
    let path = std::env::var_os("PATH").unwrap_or_default();
    found
        .pop()
        .or_else(|| std::env::split_paths(&path).find(complete))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn user_ids(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2).map(str::parse);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// Pagila's files: `REELKV_PAGILA_DIR`, or `shared/pagila` beside the repository.
pub fn pagila_or_skip(test: &str) -> Option<PathBuf> {
    // This page is a part of tests of several packages, at different depths.
    let beside = || {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here
            .ancestors()
            .find(|dir| dir.join("Cargo.lock").exists())
            .unwrap_or(here);
        root.join("../shared/pagila")
    };
    let directory = std::env::var_os("REELKV_PAGILA_DIR").map_or_else(beside, PathBuf::from);
    if directory.join("pagila-data.sql").exists() {
        return Some(directory);
    }
    skip(
        test,
        "pagila",
        &format!("{} has no pagila-data.sql", directory.display()),
    );
    None
}

/// Loads Pagila into a new database `pagila`.
pub fn load_pagila(server: &PgServer, directory: &Path) {
    server.create_database("pagila");
    server.load("pagila", &directory.join("pagila-schema.sql"));
    server.load("pagila", &directory.join("pagila-data.sql"));
}
