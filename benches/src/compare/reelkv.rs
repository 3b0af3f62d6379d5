//! Three ReelKV nodes.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use reelkv_client::{Client, CreateKeyspace};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::processes::{START_TIMEOUT, free_ports, start};
use crate::target::Target;

const SHARDS: &str = "8";

pub struct ReelKv {
    pub targets: Vec<Target>,
    _nodes: Vec<Child>,
}

pub async fn start_cluster(program: &Path, directory: &Path) -> anyhow::Result<ReelKv> {
    let ports = free_ports::<6>()?;
    let (listen, http) = ports.split_at(3);
    let addrs: Vec<_> = listen.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let mut nodes = Vec::new();
    for n in 0..3 {
        let arguments = [
            (
                "--data-dir",
                directory.join(format!("n{n}")).display().to_string(),
            ),
            ("--listen", addrs[n].clone()),
            ("--http", format!("127.0.0.1:{}", http[n])),
            ("--join", addrs.join(",")),
            ("--zone", format!("z{n}")),
        ];
        let flags = arguments
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        let arguments: Vec<_> = ["node".to_owned(), "start".to_owned()]
            .into_iter()
            .chain(flags)
            .collect();
        nodes.push(start(program, &arguments, &directory.join(format!("n{n}.log")))?);
    }
    init(program, &addrs[0]).await?;
    let client = Client::connect(addrs).await.context("connect to reelkv")?;
    let keyspace = client.create_keyspace("bench", CreateKeyspace::default()).await?;
    keyspace.with_timeout(START_TIMEOUT).put([0; 8], "ready?").await?;
    Ok(ReelKv {
        targets: vec![Target::ReelKv(keyspace)],
        _nodes: nodes,
    })
}

/// The nodes need a moment before they can be made a cluster.
async fn init(program: &Path, addr: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let arguments = ["cluster", "init", "--addr", addr, "--shards", SHARDS];
        let output = Command::new(program)
            .args(arguments)
            .output()
            .await
            .context("run reelkv cluster init")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::ensure!(Instant::now() < deadline, "reelkv cluster init fails: {said}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
