//! Three real node processes, started, killed and stopped by tests, and never left behind.
#![allow(clippy::disallowed_methods, dead_code)] // tests look at files directly; each uses a part of this

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a cluster may take to be made, or to become healthy again, on a busy machine.
pub const HEALTHY_MAX: Duration = Duration::from_secs(90);

/// The binary under test.
pub fn reelkv() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reelkv"));
    // What a developer has set must not change a test.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("REELKV_")) {
        command.env_remove(name);
    }
    command
}

/// One node: its place and, while it runs, its process.
pub struct NodeProcess {
    pub addr: String,
    pub http: String,
    pub zone: String,
    pub data_dir: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

/// A cluster of three, in a temporary directory; its processes end with it.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub nodes: Vec<NodeProcess>,
}

/// Ports nobody listens on, below those the system gives to outgoing connections and those the
/// demo takes. None is given twice: its node may be down for now.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(step < 200, "one test file takes more than 200 ports");
        let port = 10_000 + (std::process::id() % 50) as u16 * 200 + step;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Cluster {
    /// Three running nodes that belong to no cluster yet.
    pub fn fresh() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = |at: usize| NodeProcess {
            addr: format!("127.0.0.1:{}", free_port()),
            http: format!("127.0.0.1:{}", free_port()),
            zone: ["a", "b", "c"][at].to_owned(),
            data_dir: dir.path().join(format!("d{}", at + 1)),
            log: dir.path().join(format!("n{}.log", at + 1)),
            child: None,
        };
        let nodes = (0..3).map(node).collect();
        let mut cluster = Self { dir, nodes };
        for at in 0..3 {
            cluster.start(at);
        }
        cluster.await_listening();
        cluster
    }

    /// Waits until every node takes connections.
    pub fn await_listening(&self) {
        let deadline = Instant::now() + HEALTHY_MAX;
        for node in &self.nodes {
            while std::net::TcpStream::connect(&node.addr).is_err() {
                assert!(
                    Instant::now() < deadline,
                    "{} does not listen\n{}",
                    node.addr,
                    self.logs()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// A healthy cluster.
    pub fn new(shards: u32) -> Self {
        let cluster = Self::fresh();
        let init = cluster.run(&["cluster", "init", "--shards", &shards.to_string()]);
        assert!(init.status.success(), "{}", told(&init));
        cluster.await_healthy();
        cluster
    }

    pub fn addrs(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.addr.clone()).collect()
    }

    /// Starts a node.
    pub fn start(&mut self, at: usize) {
        self.start_with(at, &[]);
    }

    /// Starts a node with more flags.
    pub fn start_with(&mut self, at: usize, more: &[&str]) {
        let join = self.addrs().join(",");
        let node = &mut self.nodes[at];
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&node.log)
            .expect("a log file");
        let child = reelkv()
            .args([
                "node", "start", "--listen", &node.addr, "--http", &node.http, "--join", &join,
            ])
            .args(["--zone", &node.zone, "--data-dir"])
            .arg(&node.data_dir)
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        node.child = Some(child);
    }

    /// The process id of a running node.
    pub fn pid(&self, at: usize) -> u32 {
        self.nodes[at].child.as_ref().expect("the node runs").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self, at: usize) {
        let mut child = self.nodes[at].child.take().expect("the node runs");
        child.kill().expect("its process can be killed");
        child.wait().expect("its process ends");
    }

    /// SIGTERM; its exit status and how long it took.
    pub fn terminate(&mut self, at: usize) -> (ExitStatus, Duration) {
        let mut child = self.nodes[at].child.take().expect("the node runs");
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("its process can be signalled");
        let status = child.wait().expect("its process ends");
        (status, begun.elapsed())
    }

    /// A command against all nodes.
    pub fn run(&self, arguments: &[&str]) -> Output {
        reelkv()
            .args(arguments)
            .env("REELKV_ADDR", self.addrs().join(","))
            .output()
            .expect("the binary starts")
    }

    /// The same, with `--json`; panics unless it succeeds.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", told(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", told(&output)))
    }

    /// Waits until `cluster status` says that nothing is wrong.
    pub fn await_healthy(&self) {
        let deadline = Instant::now() + HEALTHY_MAX;
        loop {
            let status = self.run(&["cluster", "status"]);
            if status.status.success() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "still not healthy: {}\n{}",
                told(&status),
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the nodes said, for a failure.
    pub fn logs(&self) -> String {
        let tail = |node: &NodeProcess| {
            let log = std::fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!(
                "--- {}\n{}\n",
                node.log.display(),
                lines[lines.len().saturating_sub(40)..].join("\n")
            )
        };
        self.nodes.iter().map(tail).collect()
    }

    /// The whole log of one node.
    pub fn log(&self, at: usize) -> String {
        std::fs::read_to_string(&self.nodes[at].log).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Everything a command said.
pub fn told(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// Waits for a process, at most this long.
pub fn await_exit(child: &mut Child, longest: Duration) -> ExitStatus {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(status) = child.try_wait().expect("a process of ours") {
            return status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            panic!("the process did not end within {longest:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All regular files below a directory, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
        {
            match entry.is_dir() {
                true => dirs.push(entry),
                false => files.push(entry),
            }
        }
    }
    files.sort();
    files
}
