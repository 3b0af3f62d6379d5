//! Server processes on loopback; each ends with its owner.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
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

/// Loopback ports nobody listens on, below those the system gives to outgoing connections, and
/// none given twice by one process: it is free until the server it is for runs.
pub fn free_ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 30_000 + (std::process::id() % 13) as u16 * 200;
    let mut ports = [0; COUNT];
    for port in &mut ports {
        *port = loop {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            anyhow::ensure!(step < 200, "no free port from {first} on");
            if std::net::TcpListener::bind(("127.0.0.1", first + step)).is_ok() {
                break first + step;
            }
        };
    }
    Ok(ports)
}
