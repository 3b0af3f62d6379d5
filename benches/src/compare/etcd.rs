//! Three etcd members.

use std::path::Path;

use anyhow::Context;
use rustix::process::Signal;

use super::system::{Kind, Place, Running, System};
use crate::cluster::READY_MAX;
use crate::processes::{Launch, Server, until};
use crate::target::Target;

pub const PROGRAM: &str = "etcd";
/// Connections the load is spread over; one would be the bottleneck.
const CONNECTIONS: usize = 8;
/// etcd stops writing at 2 GiB unless told otherwise.
const QUOTA_BYTES: u64 = 16 << 30;

pub async fn start(place: &Place<'_>) -> anyhow::Result<System> {
    let (client_ports, peer_ports) = place.ports.split_at(3);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let all: Vec<_> = (0..3).map(|n| format!("m{n}={}", url(peer_ports[n]))).collect();
    let mut members = Vec::new();
    for n in 0..3 {
        let (client, peer) = (url(client_ports[n]), url(peer_ports[n]));
        let arguments = [
            ("--name", format!("m{n}")),
            (
                "--data-dir",
                place.directory.join(format!("m{n}")).display().to_string(),
            ),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", all.join(",")),
            ("--initial-cluster-state", "new".to_owned()),
            ("--quota-backend-bytes", QUOTA_BYTES.to_string()),
            // Old revisions go, as where Kubernetes runs it.
            ("--auto-compaction-mode", "periodic".to_owned()),
            ("--auto-compaction-retention", "5m".to_owned()),
        ];
        let arguments: Vec<_> = arguments
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
        members.push(Server::start(&Launch {
            program: Path::new(PROGRAM),
            arguments: &arguments,
            log: &place.directory.join(format!("m{n}.log")),
            owner: None,
            on_drop: Signal::KILL,
        })?);
    }
    // A connection spreads its requests over all members, and fails those to one that is not up yet.
    for (member, port) in members.iter_mut().zip(client_ports) {
        let listens = async || {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", *port)).await;
            stream.map(drop).map_err(|error| error.to_string())
        };
        until("start of etcd", READY_MAX, member, listens).await?;
    }
    let endpoints: Vec<_> = client_ports.iter().map(|port| url(*port)).collect();
    let mut targets = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = etcd_client::Client::connect(&endpoints, None)
            .await
            .context("connect to etcd")?;
        targets.push(Target::Etcd(Box::new(client.kv_client())));
    }
    for target in &targets {
        let answers = async || target.clone().put([0; 16], "ready?".into()).await;
        until("first write to etcd", READY_MAX, &mut members[0], answers).await?;
    }
    Ok(System {
        kind: Kind::Etcd,
        targets,
        running: Running::Servers(members),
    })
}
