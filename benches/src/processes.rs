//! Server processes on loopback; each ends with its owner.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a server that was asked to stop may take before it is killed.
const STOP_MAX: Duration = Duration::from_secs(20);
/// The same when its owner is dropped, where waiting stops everything else.
const DROP_MAX: Duration = Duration::from_secs(5);
/// How long one question to a server that is coming up may take.
const ASK_MAX: Duration = Duration::from_secs(15);
/// Lines of a log that an error shows.
const LOG_LINES_SHOWN: usize = 5;
/// Ports looked through, from a start that depends on the process.
const PORTS: u16 = 200;

/// A server that was started, and is stopped when dropped.
pub struct Server {
    child: Child,
    pid: u32,
    log: PathBuf,
    on_drop: Signal,
}

/// What to start. Its output is appended to the log.
pub struct Launch<'a> {
    /// A path, or a name looked up in `PATH`.
    pub program: &'a Path,
    pub arguments: &'a [String],
    pub log: &'a Path,
    /// User and group to run as, if not our own.
    pub owner: Option<(u32, u32)>,
    /// What ends it at once.
    pub on_drop: Signal,
}

impl Server {
    /// Starts it; whether it came up is for the caller to ask.
    pub fn start(launch: &Launch<'_>) -> anyhow::Result<Self> {
        #[allow(clippy::disallowed_methods)] // a log of a child, not data of ours
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(launch.log)
            .with_context(|| format!("create {}", launch.log.display()))?;
        let mut command = Command::new(launch.program);
        command
            .args(launch.arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true);
        if let Some((user, group)) = launch.owner {
            command.gid(group).uid(user);
        }
        let child = command
            .spawn()
            .with_context(|| format!("start {}", launch.program.display()))?;
        let pid = child.id().context("a process that just started has no id")?;
        Ok(Self {
            child,
            pid,
            log: launch.log.to_owned(),
            on_drop: launch.on_drop,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// An error with the end of the log if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("process {} ended with {status}: {}", self.pid, self.last_words()),
        }
    }

    /// The end of its log, in one line.
    pub fn last_words(&self) -> String {
        #[allow(clippy::disallowed_methods)] // a log of a child, not data of ours
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        format!("{} ends with: {}", self.log.display(), shown.join(" | "))
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill a server")
    }

    /// SIGTERM; killed when it takes too long.
    pub async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        match tokio::time::timeout(STOP_MAX, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => {
                self.child.kill().await?;
                anyhow::bail!(
                    "process {} did not stop within {} s of SIGTERM: {}",
                    self.pid,
                    STOP_MAX.as_secs(),
                    self.last_words()
                )
            }
        }
    }

    /// Nothing if it has been waited for: its number may be another's by now.
    fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        if let Some(pid) = id {
            let _ = kill_process(pid, signal); // it may just have ended
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(self.on_drop);
        let deadline = Instant::now() + DROP_MAX;
        // Waited for here, since its directory is removed next.
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                self.signal(Signal::KILL);
                break;
            }
            #[allow(clippy::disallowed_methods)] // a drop cannot await
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Asks until the answer is yes, the server ends, or `max` has passed; the error then names the
/// `step` and shows the server's log.
pub async fn until(
    step: &str,
    max: Duration,
    server: &mut Server,
    mut ask: impl AsyncFnMut() -> Result<(), String>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + max;
    loop {
        server.check().with_context(|| step.to_owned())?;
        let until = deadline.min(Instant::now() + ASK_MAX);
        let said = match tokio::time::timeout_at(until, ask()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(said)) => said,
            Err(_) => "no answer".to_owned(),
        };
        anyhow::ensure!(
            Instant::now() < deadline,
            "{step}: not within {} s: {said}; {}",
            max.as_secs(),
            server.last_words()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Loopback ports nobody listens on, below those the system gives to outgoing connections. One is
/// free until the server it is for runs; no two calls of a process get the same soon.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 30_000 + (std::process::id() % 13) as u16 * PORTS;
    let mut ports = Vec::new();
    for _ in 0..PORTS {
        if ports.len() == count {
            break;
        }
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        if is_free(port) {
            ports.push(port);
        }
    }
    anyhow::ensure!(
        ports.len() == count,
        "fewer than {count} of the ports {first} to {} are free",
        first + PORTS - 1
    );
    Ok(ports)
}

/// Whether nobody listens on a loopback port.
pub fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch<'a>(arguments: &'a [String], log: &'a Path) -> Launch<'a> {
        Launch {
            program: Path::new("sh"),
            arguments,
            log,
            owner: None,
            on_drop: Signal::KILL,
        }
    }

    fn script(text: &str) -> Vec<String> {
        vec!["-c".to_owned(), text.to_owned()]
    }

    fn is_running(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn a_server_ends_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let server = Server::start(&launch(&script("sleep 60"), &log)).unwrap();
        let pid = server.pid();
        assert!(is_running(pid));
        drop(server);
        assert!(!is_running(pid));
    }

    #[tokio::test]
    async fn a_server_that_ends_early_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let words = script("echo cannot bind; exit 3");
        let mut server = Server::start(&launch(&words, &log)).unwrap();
        let never = async || Err("not yet".to_owned());
        let error = until("a step", Duration::from_secs(30), &mut server, never)
            .await
            .unwrap_err();
        let said = format!("{error:#}");
        assert!(
            said.starts_with("a step") && said.contains("cannot bind"),
            "{said}"
        );
    }

    #[test]
    fn ports_are_distinct() {
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
