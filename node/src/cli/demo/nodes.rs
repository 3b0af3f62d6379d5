//! The three server processes: started, killed, started again, and never left behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

use crate::disk::{Disk, RealDisk};

/// How many nodes there are.
pub(super) const NODES: usize = 3;
/// Ports are looked for from here on, below those the system gives to outgoing connections: one of
/// those could take a node's port while the node is down.
const FIRST_PORT: u16 = 20_000;
/// How many demos that run at once have ports of their own.
const PORT_BLOCKS: u32 = 1_600;

/// A node and, while it runs, its process.
///
/// Dropping it kills the process, by its own id.
#[derive(Debug)]
pub(super) struct NodeProcess {
    /// n1, n2, n3.
    pub name: String,
    /// host:port for requests.
    pub addr: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    http: String,
    zone: String,
    log: PathBuf,
    program: PathBuf,
    child: Option<Child>,
}

/// The nodes of the demo.
#[derive(Debug)]
pub(super) struct Nodes {
    pub all: Vec<NodeProcess>,
}

impl Nodes {
    /// Describes nodes that run `program`, with all they keep below `dir`; none is started yet.
    pub fn prepare(program: &Path, dir: &Path) -> anyhow::Result<Self> {
        let ports = free_ports(std::process::id())?;
        let node = |at: usize| -> io::Result<NodeProcess> {
            let name = format!("n{}", at + 1);
            let data_dir = dir.join(&name);
            RealDisk.create_dir_all(&data_dir)?;
            Ok(NodeProcess {
                addr: format!("127.0.0.1:{}", ports[2 * at]),
                http: format!("127.0.0.1:{}", ports[2 * at + 1]),
                zone: ["a", "b", "c"][at].to_owned(),
                log: dir.join(format!("{name}.log")),
                data_dir,
                name,
                program: program.to_owned(),
                child: None,
            })
        };
        let all = (0..NODES).map(node).collect::<io::Result<_>>();
        Ok(Self {
            all: all.with_context(|| format!("making directories in {}", dir.display()))?,
        })
    }

    /// Where the nodes listen.
    pub fn addrs(&self) -> Vec<String> {
        self.all.iter().map(|node| node.addr.clone()).collect()
    }

    /// Starts a node; returns its process id.
    pub fn start(&mut self, at: usize) -> anyhow::Result<u32> {
        let join = self.addrs().join(",");
        self.all[at].start(&join)
    }

    /// Sends SIGKILL to a node's process and waits for its end; returns its id.
    pub async fn kill(&mut self, at: usize) -> anyhow::Result<u32> {
        let node = &mut self.all[at];
        let Some(mut child) = node.child.take() else {
            bail!("{} is not running", node.name)
        };
        let pid = child
            .id()
            .with_context(|| format!("{} has ended by itself", node.name))?;
        child
            .kill()
            .await
            .with_context(|| format!("killing {} (process {pid})", node.name))?;
        Ok(pid)
    }

    /// A node that has ended although nobody killed it, and the end of its log.
    pub fn ended_by_itself(&mut self) -> anyhow::Result<Option<String>> {
        for node in &mut self.all {
            let Some(child) = &mut node.child else { continue };
            if let Some(status) = child.try_wait()? {
                return Ok(Some(format!(
                    "{} ended by itself ({status}): {}",
                    node.name,
                    node.last_words()
                )));
            }
        }
        Ok(None)
    }
}

impl NodeProcess {
    fn start(&mut self, join: &str) -> anyhow::Result<u32> {
        let log = append_to(&self.log).with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        command.args(["node", "start", "--data-dir"]).arg(&self.data_dir);
        command.args([
            "--listen",
            &self.addr,
            "--http",
            &self.http,
            "--join",
            join,
            "--zone",
            &self.zone,
            // Soon, so that there is a table to damage.
            "--checkpoint-interval",
            "5s",
            // Large, so that what is flipped in the newest is still there when the scrub comes by.
            "--segment",
            "32MiB",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        // A Ctrl-C at the terminal is for the demo, which then ends its nodes itself.
        command.process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        let pid = child
            .id()
            .with_context(|| format!("{} ended at once", self.name))?;
        self.child = Some(child);
        Ok(pid)
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    fn last_words(&self) -> String {
        let log = crate::disk::read_file(&RealDisk, &self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it said nothing")
            .to_owned()
    }
}

#[allow(clippy::disallowed_methods)] // a child's output needs a descriptor, which the door does not give
fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Ports nobody listens on. Each process looks first where no other demo does: a port found free
/// is only taken once the node runs, and another demo must not find it free until then.
fn free_ports(process: u32) -> anyhow::Result<[u16; 2 * NODES]> {
    /// Prime to the number of blocks, so that all are tried, and no neighbour's is the second.
    const STRIDE: u32 = 367;
    let blocks = (0..PORT_BLOCKS).map(|attempt| (process + attempt * STRIDE) % PORT_BLOCKS);
    let mut blocks = blocks.map(|block| {
        let first = FIRST_PORT + block as u16 * (2 * NODES) as u16;
        std::array::from_fn(|at| first + at as u16)
    });
    let free = |ports: &[u16; 2 * NODES]| {
        ports
            .iter()
            .all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
    };
    blocks.find(free).with_context(|| {
        let last = u32::from(FIRST_PORT) + PORT_BLOCKS * 2 * NODES as u32 - 1;
        format!("there are not enough free ports on 127.0.0.1 between {FIRST_PORT} and {last}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that never ends by itself, or at once.
    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("program");
        let file = RealDisk.open(&path, crate::disk::Mode::CreateNew).unwrap();
        file.write_at(0, format!("#!/bin/sh\n{script}\n").as_bytes())
            .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    }

    #[allow(clippy::disallowed_methods)] // the door reads as many bytes as a file has; here that is 0
    async fn await_end(pid: u32) {
        // A zombie has ended too; the runtime reaps it when it gets to it.
        let status = Path::new("/proc").join(pid.to_string()).join("status");
        let ended = || std::fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"));
        for _ in 0..200 {
            if ended() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("process {pid} goes on");
    }

    #[tokio::test]
    async fn processes_end_when_killed_or_dropped_in_a_panic_and_one_that_ends_by_itself_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = Nodes::prepare(&program(dir.path(), "exec sleep 60"), dir.path()).unwrap();
        let pids: Vec<_> = (0..NODES).map(|at| nodes.start(at).unwrap()).collect();
        assert_eq!(nodes.kill(1).await.unwrap(), pids[1]);
        await_end(pids[1]).await;
        assert!(nodes.kill(1).await.is_err(), "it does not run");
        assert_eq!(nodes.ended_by_itself().unwrap(), None);
        let again = nodes.start(1).unwrap();
        let panicked = tokio::spawn(async move {
            let _nodes = nodes;
            std::panic::resume_unwind(Box::new("a panic of the demo"));
        });
        assert!(panicked.await.unwrap_err().is_panic());
        for pid in [pids[0], again, pids[2]] {
            await_end(pid).await;
        }

        // In the same test: a program just written cannot be run while another test forks.
        let dir = tempfile::tempdir().unwrap();
        let script = "echo the port is taken >&2; exit 1";
        let mut nodes = Nodes::prepare(&program(dir.path(), script), dir.path()).unwrap();
        await_end(nodes.start(0).unwrap()).await;
        let ended = nodes.ended_by_itself().unwrap().expect("it has ended");
        assert!(
            ended.contains("n1") && ended.contains("the port is taken"),
            "{ended}"
        );
    }

    #[test]
    fn demos_that_run_at_once_look_for_ports_in_different_places() {
        let ports: Vec<_> = (4_000..4_100)
            .map(|process| free_ports(process).unwrap())
            .collect();
        let mut all = ports.concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 100 * 2 * NODES);

        let taken = ports[0];
        let _listener = TcpListener::bind(("127.0.0.1", taken[3])).unwrap();
        assert!(!free_ports(4_000).unwrap().contains(&taken[3]));
    }
}
