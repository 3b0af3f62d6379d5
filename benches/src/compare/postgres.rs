//! PostgreSQL: a primary and two streaming standbys, one of which has synced every commit before it is
//! acknowledged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use tokio::process::Command;
use tokio_postgres::NoTls;

use super::system::{Kind, Place, Running, System};
use crate::cluster::READY_MAX;
use crate::processes::{Launch, Server, until};
use crate::target::{PostgresSession, Target};

/// Where Debian puts it.
pub const BINARIES: &str = "/usr/lib/postgresql/15/bin";
/// The superuser, and whom root runs it as: it refuses root.
pub const USER: &str = "postgres";
/// Connections the load is spread over: each is a process of the server.
const CONNECTIONS: usize = 64;
const STANDBYS: [&str; 2] = ["s1", "s2"];
/// How long a copy of the empty database may take.
const COPY_MAX: Duration = Duration::from_secs(120);
/// Memory of each server for pages, as much as a ReelKV node's cache.
const SHARED_BUFFERS: &str = "256MB";
const SCHEMA: &str = "create table kv (k bytea primary key, v bytea not null)";
const PUT: &str = "insert into kv (k, v) values ($1, $2) on conflict (k) do update set v = excluded.v";
const GET: &str = "select v from kv where k = $1";
const SCAN: &str = "select k, v from kv where k >= $1 order by k limit $2";

/// One group of servers being made.
struct Maker<'a> {
    place: &'a Place<'a>,
    /// User and group, if not our own.
    owner: Option<(u32, u32)>,
}

pub async fn start(place: &Place<'_>, owner: Option<(u32, u32)>) -> anyhow::Result<System> {
    if let Some((user, group)) = owner {
        std::os::unix::fs::chown(place.directory, Some(user), Some(group))
            .with_context(|| format!("give {} to user {USER}", place.directory.display()))?;
    }
    let maker = Maker { place, owner };
    let mut servers = vec![maker.primary().await?];
    let admin = connect(place.ports[0]).await?;
    admin.batch_execute(SCHEMA).await.context("make the table")?;
    for n in 0..STANDBYS.len() {
        servers.push(maker.standby(n).await?);
    }
    make_synchronous(&admin, &mut servers[0]).await?;
    let mut targets = Vec::new();
    for _ in 0..CONNECTIONS {
        targets.push(Target::Postgres(Arc::new(session(place.ports[0]).await?)));
    }
    Ok(System {
        kind: Kind::Postgres,
        targets,
        running: Running::Servers(servers),
    })
}

impl Maker<'_> {
    async fn primary(&self) -> anyhow::Result<Server> {
        let data = self.data("primary");
        let arguments = [
            "-D",
            &data,
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ];
        self.run("initdb", &arguments).await?;
        let mut server = self.serve("primary", self.place.ports[0], &[])?;
        let port = self.place.ports[0];
        until(
            "start of the PostgreSQL primary",
            READY_MAX,
            &mut server,
            async || answers(port).await,
        )
        .await?;
        Ok(server)
    }

    /// A copy of the primary that follows it.
    async fn standby(&self, n: usize) -> anyhow::Result<Server> {
        let (name, primary) = (STANDBYS[n], self.place.ports[0]);
        let source = format!("host=127.0.0.1 port={primary} user={USER} application_name={name}");
        let data = self.data(name);
        let arguments = [
            "-D", &data, "-d", &source, "-X", "stream", "-c", "fast", "-R", "-C", "-S", name,
        ];
        self.run("pg_basebackup", &arguments).await?;
        let conninfo = format!("primary_conninfo={source}");
        let port = self.place.ports[n + 1];
        let mut server = self.serve(name, port, &[&conninfo])?;
        until(
            "start of a PostgreSQL standby",
            READY_MAX,
            &mut server,
            async || answers(port).await,
        )
        .await?;
        Ok(server)
    }

    fn serve(&self, name: &str, port: u16, more: &[&str]) -> anyhow::Result<Server> {
        let settings = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=on",
            "full_page_writes=on",
            "synchronous_commit=on",
            "wal_level=replica",
            "max_connections=100",
            &format!("shared_buffers={SHARED_BUFFERS}"),
            &format!("port={port}"),
        ]
        .map(str::to_owned);
        let mut arguments = vec!["-D".to_owned(), self.data(name)];
        let settings = settings
            .into_iter()
            .chain(more.iter().map(|more| (*more).to_owned()));
        arguments.extend(settings.flat_map(|setting| ["-c".to_owned(), setting]));
        Server::start(&Launch {
            program: &binary("postgres"),
            arguments: &arguments,
            log: &self.place.directory.join(format!("{name}.log")),
            owner: self.owner,
            // Stops at once, with the processes it has started.
            on_drop: Signal::QUIT,
        })
    }

    fn data(&self, name: &str) -> String {
        self.place.directory.join(name).display().to_string()
    }

    async fn run(&self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(binary(name));
        command
            .args(arguments)
            .current_dir(self.place.directory)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        if let Some((user, group)) = self.owner {
            command.gid(group).uid(user);
        }
        let Ok(output) = tokio::time::timeout(COPY_MAX, command.output()).await else {
            anyhow::bail!("{name} is not done after {} s", COPY_MAX.as_secs());
        };
        let output = output.with_context(|| format!("run {name}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name} fails: {}", said.trim());
        Ok(())
    }
}

pub fn binary(name: &str) -> PathBuf {
    Path::new(BINARIES).join(name)
}

/// From now on a commit waits for one of the standbys.
async fn make_synchronous(admin: &tokio_postgres::Client, primary: &mut Server) -> anyhow::Result<()> {
    let names = STANDBYS.join(", ");
    let alter = format!("alter system set synchronous_standby_names = 'ANY 1 ({names})'");
    admin.batch_execute(&alter).await.context("name the standbys")?;
    admin.batch_execute("select pg_reload_conf()").await?;
    let count =
        "select count(*) from pg_stat_replication where state = 'streaming' and sync_state = 'quorum'";
    let both_follow = async || {
        let row = admin
            .query_one(count, &[])
            .await
            .map_err(|error| error.to_string())?;
        let following: i64 = row.try_get(0).map_err(|error| error.to_string())?;
        let wanted = STANDBYS.len() as i64;
        (following == wanted)
            .then_some(())
            .ok_or_else(|| format!("{following} of {wanted} standbys follow synchronously"))
    };
    until("replication of PostgreSQL", READY_MAX, primary, both_follow).await
}

/// Whether a server takes connections, or what it says instead.
async fn answers(port: u16) -> Result<(), String> {
    let connected = connect(port).await;
    connected.map(drop).map_err(|error| format!("{error:#}"))
}

async fn connect(port: u16) -> anyhow::Result<tokio_postgres::Client> {
    let address = format!("host=127.0.0.1 port={port} user={USER} dbname=postgres connect_timeout=10");
    let (client, connection) = tokio_postgres::connect(&address, NoTls)
        .await
        .context("connect to PostgreSQL")?;
    // Ends with the client; what it met the client's calls say.
    tokio::spawn(connection);
    Ok(client)
}

async fn session(port: u16) -> anyhow::Result<PostgresSession> {
    let client = connect(port).await?;
    Ok(PostgresSession {
        put: client.prepare(PUT).await?,
        get: client.prepare(GET).await?,
        scan: client.prepare(SCAN).await?,
        client,
    })
}
