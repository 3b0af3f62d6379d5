//! ReelKV nodes on this machine: real processes, stopped when dropped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use reelkv_client::{Client, ErrorKind, v1};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::CannotRun;
use crate::processes::{Launch, Server, free_ports, until};

/// How long nodes may take until they are a healthy cluster, and a restarted one until it is ready.
pub const READY_MAX: Duration = Duration::from_secs(120);
/// How long a page of a node may take.
const PAGE_MAX: Duration = Duration::from_secs(10);

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The `reelkv` binary; see [`find_binary`].
    pub program: PathBuf,
    /// Where data (`n0`, `n1` …) and logs (`n0.log` …) go; it exists.
    pub directory: PathBuf,
    pub nodes: usize,
    /// Voters of each shard: 1, 3 or 5.
    pub replicas: u32,
    /// Data shards made at the beginning, into which a new keyspace is cut as well unless told otherwise.
    pub shards: u32,
    /// More flags of `reelkv node start`, such as `--wal-max 64MiB`.
    pub flags: Vec<String>,
    /// Two for each node; empty for any that are free.
    pub ports: Vec<u16>,
}

impl Plan {
    /// Three nodes, eight shards, three replicas of each, default settings.
    pub fn new(program: PathBuf, directory: PathBuf) -> Self {
        Self {
            program,
            directory,
            nodes: 3,
            replicas: 3,
            shards: 8,
            flags: Vec::new(),
            ports: Vec::new(),
        }
    }
}

/// The binary named by `--reelkv`, or the one beside the running executable.
pub fn find_binary(named: Option<&Path>) -> Result<PathBuf, CannotRun> {
    let found = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .map_err(|error| CannotRun(format!("where this program lies is not known: {error}")))?
            .with_file_name("reelkv"),
    };
    if found.is_file() {
        return Ok(found);
    }
    let found = found.display();
    Err(CannotRun(format!(
        "there is no {found}: build it with `cargo build --release -p reelkv`, or name another with --reelkv PATH"
    )))
}

struct Node {
    /// `None` while it is killed or stopped.
    server: Option<Server>,
    addr: String,
    http: String,
}

/// A running cluster.
pub struct Cluster {
    plan: Plan,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts the nodes, makes them a cluster and waits until it is healthy.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        let ports = match plan.ports.is_empty() {
            true => free_ports(2 * plan.nodes)?,
            false => plan.ports.clone(),
        };
        anyhow::ensure!(ports.len() == 2 * plan.nodes, "two ports for each node");
        let on_loopback = |port: &u16| format!("127.0.0.1:{port}");
        let nodes = ports.chunks(2).map(|ports| Node {
            server: None,
            addr: on_loopback(&ports[0]),
            http: on_loopback(&ports[1]),
        });
        let mut cluster = Self {
            nodes: nodes.collect(),
            plan,
        };
        for n in 0..cluster.nodes.len() {
            cluster.launch(n)?;
        }
        cluster.form().await?;
        Ok(cluster)
    }

    /// Where clients connect, by node.
    pub fn addrs(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.addr.clone()).collect()
    }

    /// Of the nodes that run.
    pub fn pids(&self) -> Vec<u32> {
        let running = self.nodes.iter().filter_map(|node| node.server.as_ref());
        running.map(Server::pid).collect()
    }

    /// The metrics page of a node.
    pub async fn metrics(&self, n: usize) -> anyhow::Result<String> {
        let addr = &self.nodes[n].http;
        match page(addr, "/metrics").await {
            Ok((200, text)) => Ok(text),
            Ok((status, text)) => anyhow::bail!("metrics of {addr}: status {status}: {}", text.trim()),
            Err(error) => anyhow::bail!("metrics of {addr}: {error}"),
        }
    }

    /// Kills a node (SIGKILL) and waits until the process is gone.
    pub async fn kill(&mut self, n: usize) -> anyhow::Result<()> {
        match self.nodes[n].server.take() {
            Some(server) => server.kill().await,
            None => Ok(()),
        }
    }

    /// Starts a node that was killed or stopped, and waits until it is ready. Returns how long it took.
    pub async fn restart(&mut self, n: usize) -> anyhow::Result<Duration> {
        anyhow::ensure!(self.nodes[n].server.is_none(), "node {n} runs");
        let begun = Instant::now();
        self.launch(n)?;
        self.ready(n).await?;
        Ok(begun.elapsed())
    }

    async fn ready(&mut self, n: usize) -> anyhow::Result<()> {
        let http = self.nodes[n].http.clone();
        let server = self.nodes[n].server.as_mut().context("the node does not run")?;
        let is_ready = async || match page(&http, "/readyz").await {
            Ok((200, _)) => Ok(()),
            Ok((_, why)) => Err(why.trim().to_owned()),
            Err(error) => Err(error.to_string()),
        };
        until("restart of a ReelKV node", READY_MAX, server, is_ready).await
    }

    /// Starts all nodes that do not run, and waits until all are ready: a node that comes back alone may need
    /// the others' answers first.
    pub async fn restart_all(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        for n in 0..self.nodes.len() {
            if self.nodes[n].server.is_none() {
                self.launch(n)?;
            }
        }
        for n in 0..self.nodes.len() {
            self.ready(n).await?;
        }
        Ok(begun.elapsed())
    }

    /// An error if a node has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let mut running = self.nodes.iter_mut().filter_map(|node| node.server.as_mut());
        running.try_for_each(Server::check)
    }

    /// Stops all nodes cleanly, all at once.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let servers: Vec<_> = self
            .nodes
            .iter_mut()
            .filter_map(|node| node.server.take())
            .collect();
        let mut stopping = tokio::task::JoinSet::new();
        for server in servers {
            stopping.spawn(server.stop());
        }
        while let Some(stopped) = stopping.join_next().await {
            let status = stopped??;
            anyhow::ensure!(status.success(), "a node ended with {status} when it was stopped");
        }
        Ok(())
    }

    fn launch(&mut self, n: usize) -> anyhow::Result<()> {
        let directory = &self.plan.directory;
        let node = &self.nodes[n];
        let data = directory.join(format!("n{n}")).display().to_string();
        let (zone, join) = (format!("z{n}"), self.addrs().join(","));
        let flags = [
            ("--data-dir", &data),
            ("--listen", &node.addr),
            ("--http", &node.http),
            ("--join", &join),
            ("--zone", &zone),
        ];
        let mut arguments = vec!["node".to_owned(), "start".to_owned()];
        arguments.extend(
            flags
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value.clone()]),
        );
        arguments.extend(self.plan.flags.iter().cloned());
        let server = Server::start(&Launch {
            program: &self.plan.program,
            arguments: &arguments,
            log: &directory.join(format!("n{n}.log")),
            owner: None,
            on_drop: Signal::KILL,
        })?;
        self.nodes[n].server = Some(server);
        Ok(())
    }

    /// Makes the nodes a cluster.
    async fn form(&mut self) -> anyhow::Result<()> {
        let client = Client::builder().addrs(self.addrs()).lazy().build().await?;
        let (shards, replicas) = (self.plan.shards, self.plan.replicas);
        let admin = client.admin().with_timeout(Duration::from_secs(10));
        let is_healthy = async || {
            match admin.init_cluster(shards, replicas).await {
                Ok(_) => {}
                Err(error) if *error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(format!("making the cluster: {error}")),
            }
            match admin.cluster_status().await {
                Ok(status) if status.health() == v1::Health::Ok => Ok(()),
                Ok(status) => Err(status.summary),
                Err(error) => Err(error.to_string()),
            }
        };
        let first = self.nodes[0].server.as_mut().context("nodes were started")?;
        let formed = until("start of the ReelKV nodes", READY_MAX, first, is_healthy).await;
        // A node that could not start says why better than the first one does.
        self.check()?;
        formed
    }
}

/// The sum over a counter's or gauge's series on a metrics page; `None` if it is not there.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest,
        };
        rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
    });
    values.reduce(|sum, value| sum + value)
}

/// Status and body of a page.
async fn page(addr: &str, path: &str) -> std::io::Result<(u16, String)> {
    let ask = async {
        let mut stream = TcpStream::connect(addr).await?;
        // HTTP/1.0: the answer ends with the connection and comes in one piece.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer: std::io::Result<String> = tokio::time::timeout(PAGE_MAX, ask)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let answer = answer?;
    let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parsed.ok_or_else(|| std::io::Error::other("no HTTP answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_its_series() {
        let page = "# HELP a b\na_total 3\na_total_more 9\nb{shard=\"1\"} 1\nb{shard=\"2 }\"} 2.5\n";
        assert_eq!(metric(page, "a_total"), Some(3.0));
        assert_eq!(metric(page, "b"), Some(3.5));
        assert_eq!(metric(page, "c"), None);
    }

    #[test]
    fn a_binary_that_is_not_there_is_said_with_how_to_build_it() {
        let error = find_binary(Some(Path::new("/nowhere/reelkv"))).unwrap_err();
        assert!(
            error.to_string().contains("cargo build --release -p reelkv"),
            "{error}"
        );
    }
}
