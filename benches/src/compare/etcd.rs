//! Three etcd members.

use std::path::Path;

use anyhow::Context;
use tokio::process::Child;
use tokio::time::Instant;

use super::processes::{START_TIMEOUT, free_ports, start};
use crate::target::Target;

/// Connections the load is spread over; one would be the bottleneck.
const CONNECTIONS: usize = 8;

pub struct Etcd {
    pub targets: Vec<Target>,
    _members: Vec<Child>,
}

pub async fn start_cluster(directory: &Path) -> anyhow::Result<Etcd> {
    let ports = free_ports::<6>()?;
    let (client_ports, peer_ports) = ports.split_at(3);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let all: Vec<_> = (0..3).map(|n| format!("m{n}={}", url(peer_ports[n]))).collect();
    let mut members = Vec::new();
    for n in 0..3 {
        let data = directory.join(format!("m{n}")).display().to_string();
        let (client, peer) = (url(client_ports[n]), url(peer_ports[n]));
        let arguments = [
            ("--name", format!("m{n}")),
            ("--data-dir", data),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", all.join(",")),
            ("--initial-cluster-state", "new".to_owned()),
        ];
        let arguments: Vec<_> = arguments
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
        members.push(start(
            Path::new("etcd"),
            &arguments,
            &directory.join(format!("m{n}.log")),
        )?);
    }
    // A connection spreads its requests over all members, and fails those to one that is not up yet.
    let deadline = Instant::now() + START_TIMEOUT;
    for port in client_ports {
        while tokio::net::TcpStream::connect(("127.0.0.1", *port))
            .await
            .is_err()
        {
            anyhow::ensure!(Instant::now() < deadline, "etcd does not listen on port {port}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let endpoints: Vec<_> = client_ports.iter().map(|port| url(*port)).collect();
    let mut targets = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = etcd_client::Client::connect(&endpoints, None)
            .await
            .context("connect to etcd")?;
        targets.push(Target::Etcd(client.kv_client()));
    }
    for target in &targets {
        while let Err(kind) = target.clone().put([0; 8], "ready?".into()).await {
            anyhow::ensure!(Instant::now() < deadline, "etcd does not answer: {kind}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
    Ok(Etcd {
        targets,
        _members: members,
    })
}
