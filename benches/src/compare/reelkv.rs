//! Three ReelKV nodes.

use std::path::Path;

use anyhow::Context;
use reelkv_client::{Client, CreateKeyspace};

use super::system::{Kind, Place, Running, System};
use crate::cluster::{Cluster, Plan, READY_MAX};
use crate::target::Target;

/// The keyspace under load.
pub const KEYSPACE: &str = "bench";

pub async fn start(place: &Place<'_>, program: &Path, shards: u32) -> anyhow::Result<System> {
    let cluster = Cluster::start(Plan {
        shards,
        ports: place.ports.to_vec(),
        ..Plan::new(program.to_owned(), place.directory.to_owned())
    })
    .await?;
    let client = Client::connect(cluster.addrs())
        .await
        .context("connect to reelkv")?;
    let keyspace = client
        .create_keyspace(KEYSPACE, CreateKeyspace::default())
        .await
        .context("make a keyspace")?;
    keyspace
        .with_timeout(READY_MAX)
        .put([0; 16], "ready?")
        .await
        .context("first write to reelkv")?;
    Ok(System {
        kind: Kind::ReelKv,
        targets: vec![Target::ReelKv(keyspace)],
        running: Running::Nodes(cluster),
    })
}
