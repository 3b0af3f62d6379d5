//! One Redis that syncs every write before it answers. It has one copy only.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use redis::AsyncConnectionConfig;
use rustix::process::Signal;

use super::system::{Kind, Place, Running, System};
use crate::cluster::READY_MAX;
use crate::processes::{Launch, Server, until};
use crate::target::Target;

pub const PROGRAM: &str = "redis-server";
/// As long as ReelKV's own deadline.
const RESPONSE_MAX: Duration = Duration::from_secs(10);

pub async fn start(place: &Place<'_>) -> anyhow::Result<System> {
    let port = place.ports[0];
    let arguments = [
        ("--port", port.to_string()),
        ("--bind", "127.0.0.1".to_owned()),
        ("--dir", place.directory.display().to_string()),
        ("--appendonly", "yes".to_owned()),
        ("--appendfsync", "always".to_owned()),
        ("--save", String::new()),
        ("--daemonize", "no".to_owned()),
    ];
    let arguments: Vec<_> = arguments
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
    let mut server = Server::start(&Launch {
        program: Path::new(PROGRAM),
        arguments: &arguments,
        log: &place.directory.join("redis.log"),
        owner: None,
        on_drop: Signal::KILL,
    })?;
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).context("address of redis")?;
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESPONSE_MAX))
        .set_connection_timeout(Some(RESPONSE_MAX));
    let mut connection = None;
    let connects = async || {
        let opened = client.get_multiplexed_async_connection_with_config(&config).await;
        connection = Some(opened.map_err(|error| error.to_string())?);
        Ok(())
    };
    until("start of redis", READY_MAX, &mut server, connects).await?;
    // One connection for all: the library gathers what is waiting into one write.
    let connection = connection.context("redis was connected to")?;
    Ok(System {
        kind: Kind::Redis,
        targets: vec![Target::Redis(connection)],
        running: Running::Servers(vec![server]),
    })
}
