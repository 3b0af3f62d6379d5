//! A cluster whose making was cut short is finished by asking again.
//!
//! Every page is told for faults at many moments, in virtual time; a failure says which.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::Front;
use reelkv_jepsen::sim::{self, Cluster, Settings};
use reelkv_proto::v1;

const META_SHARD: u64 = 1;
/// Where `cluster init` is asked for.
const MAKER: usize = 0;
/// A cluster is made within this long; a request that got stuck ends by then.
const PATIENCE: Duration = Duration::from_secs(120);

fn run<T>(what: &str, story: impl Future<Output = anyhow::Result<T>>) -> T {
    let runtime = sim::runtime(0).expect("a runtime");
    let outcome = runtime.block_on(story);
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome.unwrap_or_else(|error| panic!("{what}: {error:?}"))
}

async fn fresh(seed: u64) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(Settings::default(), seed);
    for position in 0..cluster.addrs().len() {
        cluster.start_node(position).await?;
    }
    Ok(cluster)
}

fn request() -> v1::InitClusterRequest {
    v1::InitClusterRequest {
        shards: 3,
        replicas: 3,
    }
}

async fn init(
    cluster: &Cluster,
    position: usize,
    request: v1::InitClusterRequest,
) -> anyhow::Result<v1::InitClusterResponse> {
    let node = cluster.node(position).context("the node runs")?;
    let made = tokio::time::timeout(PATIENCE, Front(node).init_cluster(request)).await;
    made.context("no answer in two minutes")?
        .map_err(|error| anyhow::anyhow!(error.message))
}

/// Asks again until the cluster is made, and shows that it works.
async fn finish(cluster: &Cluster) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match init(cluster, MAKER, request()).await {
            Ok(_) => break,
            // Made by the request that was cut off, after all.
            Err(error) if error.to_string().ends_with("already; nothing was changed") => break,
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
    let front = Front(cluster.node(MAKER).context("the node runs")?);
    loop {
        let status = front.cluster_status().await;
        let status = status.map_err(|error| anyhow::anyhow!(error.message))?;
        if status.health() == v1::Health::Ok {
            ensure!(status.nodes.len() == 3 && status.shards.len() == 4, "{status:#?}");
            break;
        }
        ensure!(tokio::time::Instant::now() < deadline, "{}", status.summary);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let keyspace = v1::CreateKeyspaceRequest {
        name: "film".to_owned(),
        shards: 2,
        ..Default::default()
    };
    let created = front.create_keyspace(keyspace).await;
    created.map_err(|error| anyhow::anyhow!("a keyspace: {}", error.message))?;
    cluster.agree().await?;
    Ok(())
}

/// A machine loses its power `after` the cluster began to be made, and comes back. Returns whether
/// the cluster was made all the same.
async fn interrupted(victim: usize, after: Duration) -> anyhow::Result<bool> {
    let mut cluster = fresh(7).await?;
    let maker = Front(cluster.node(MAKER).context("the node runs")?);
    let making = tokio::spawn(async move { maker.init_cluster(request()).await });
    tokio::time::sleep(after).await;
    ensure!(cluster.crash(victim), "it was off");
    if victim == MAKER {
        making.abort();
    }
    let made = tokio::time::timeout(PATIENCE, making).await?;
    cluster.start_node(victim).await?;
    finish(&cluster).await?;
    Ok(matches!(made, Ok(Ok(_))))
}

/// Tells it for every moment; some come too late to matter, most do not.
fn interrupted_at_any_moment(victim: usize) {
    let node = victim + 1;
    let story = |after| {
        run(
            &format!("node {node} is cut off after {after:?}"),
            interrupted(victim, after),
        )
    };
    let made = moments().map(story).filter(|made| *made).count();
    let all = moments().count();
    assert!(
        0 < made && made < all * 3 / 4,
        "{made} of {all} were not interrupted"
    );
}

/// From the first question to the first leader.
fn moments() -> impl Iterator<Item = Duration> {
    let early = (0..30).map(|step| step * 2);
    early
        .chain([70, 90, 120, 160, 220, 400, 900])
        .map(Duration::from_millis)
}

#[test]
fn a_cluster_is_finished_after_one_of_its_nodes_lost_power_while_it_was_made() {
    interrupted_at_any_moment(2);
}

#[test]
fn a_cluster_is_finished_after_the_node_that_made_it_lost_power() {
    interrupted_at_any_moment(MAKER);
}

#[test]
fn a_cluster_without_a_map_is_finished_by_the_same_request_only() {
    run("the meta shard is silent at first", async {
        let cluster = fresh(11).await?;
        cluster.network().silence_shard(META_SHARD);
        ensure!(
            init(&cluster, MAKER, request()).await.is_err(),
            "the map was written"
        );
        let other = v1::InitClusterRequest {
            shards: 5,
            ..request()
        };
        let Err(refused) = init(&cluster, MAKER, other).await else {
            bail!("a cluster was finished in another shape");
        };
        ensure!(
            refused.to_string().contains("--shards 3 --replicas 3"),
            "{refused}"
        );
        cluster.network().heal();
        // The meta shard works now, and there is no map yet that a keyspace could be in.
        tokio::time::sleep(Duration::from_secs(10)).await;
        for position in 0..3 {
            let front = Front(cluster.node(position).context("the node runs")?);
            let keyspace = v1::CreateKeyspaceRequest {
                name: "early".to_owned(),
                ..Default::default()
            };
            let made = front.create_keyspace(keyspace).await;
            ensure!(made.is_err(), "{made:?}");
        }
        finish(&cluster).await?;
        let Err(refused) = init(&cluster, MAKER, request()).await else {
            bail!("a cluster was made twice");
        };
        ensure!(refused.to_string().contains("already"), "{refused}");
        Ok(())
    });
}

#[test]
fn a_node_outside_a_half_made_cluster_says_where_to_finish_it() {
    run("node 3 is fresh again", async {
        let mut cluster = fresh(13).await?;
        cluster.network().silence_shard(META_SHARD);
        ensure!(
            init(&cluster, MAKER, request()).await.is_err(),
            "the map was written"
        );
        ensure!(cluster.crash(2), "it was off");
        cluster.wipe(2);
        cluster.start_node(2).await?;
        let Err(refused) = init(&cluster, 2, request()).await else {
            bail!("two clusters of the same nodes");
        };
        let told = refused.to_string();
        ensure!(
            told.contains("still being made") && told.contains(&cluster.addrs()[MAKER]),
            "{told}"
        );
        let identity = Path::new("/data/identity.1");
        let files = cluster.disk(2).files();
        ensure!(
            files.iter().all(|(path, _)| path != identity),
            "the refused request changed something: {files:?}"
        );
        cluster.network().heal();
        finish(&cluster).await
    });
}
