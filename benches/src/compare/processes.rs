//! Server processes on loopback; each ends with its owner.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};

/// How long a cluster may take until it answers.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a server whose output goes to `log`; it is killed, by its own id, when the child is dropped.
pub fn start(program: &Path, arguments: &[String], log: &Path) -> anyhow::Result<Child> {
    #[allow(clippy::disallowed_methods)] // a log of a child, not data of ours
    let output = std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

/// Loopback ports nobody listens on; all are held until all are known, so that they differ.
pub fn free_ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    let mut held = Vec::with_capacity(COUNT);
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a free port")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
