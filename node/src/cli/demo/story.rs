//! The story from the first process to the verdict.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use reelkv_client::{Client, ErrorKind};

use super::business::Business;
use super::data::DataSet;
use super::faults;
use super::monitor::{Monitor, Seen};
use super::nodes::{NODES, Nodes};
use super::report::Report;
use super::show::Show;
use super::verify;
use super::workers::{Load, probe_rows};
use super::{DemoArgs, Sabotage};
use crate::clock::now;

/// Data shards to begin with: one for each keyspace; the large ones are cut further.
const SHARDS: u32 = 5;
/// Processes listen, and a new cluster works, within this time.
const START_PATIENCE: Duration = Duration::from_secs(20);
const START_INTERVAL: Duration = Duration::from_millis(100);

/// Runs all of it below `dir`.
///
/// # Errors
/// What keeps the demo itself from going on. Whatever the cluster does wrong is in the report.
pub(super) async fn tell(args: &DemoArgs, dir: &Path) -> anyhow::Result<Report> {
    let started = now();
    let show = Show::new(started);
    let program = std::env::current_exe().context("finding this program")?;
    let mut nodes = Nodes::prepare(&program, dir)?;
    show.phase("starting three nodes");
    for at in 0..NODES {
        let pid = nodes.start(at)?;
        show.event(format!(
            "{} listens on {} (process {pid})",
            nodes.all[at].name, nodes.all[at].addr
        ));
    }
    let client = form_cluster(&mut nodes).await?;
    let monitor = Monitor::start(&client, nodes.addrs());
    let whole = monitor.wait(START_PATIENCE, Seen::is_whole).await;
    whole.with_context(|| {
        format!(
            "the new cluster does not become whole; its logs are in {}",
            dir.display()
        )
    })?;

    let data = DataSet::new(args.seed, args.rows as usize);
    show.phase(&format!(
        "loading {} films, customers, rentals and payments",
        data.len()
    ));
    let business = Arc::new(Business::found(&client, data, started).await?);
    let names = nodes.all.iter().map(|node| node.name.clone()).collect();
    let watched = monitor.watch();
    let drawing = show.follow(business.clone(), names, move || watched.borrow().clone());
    business.load().await?;

    show.phase("the business is open: reads, overwrites, conditional puts, counters");
    let mut report = disturb(args, &mut nodes, &client, &monitor, &business, &show).await?;
    show.phase("reading every acknowledged write from every replica");
    verify_all(args, &client, &business, &mut report).await;
    drop(drawing);
    report.failures.extend(nodes.ended_by_itself()?);
    for at in 0..NODES {
        // One that has ended by itself is in the report already.
        let _ = nodes.kill(at).await;
    }
    Ok(with_books(report, &business).conclude())
}

/// The load, and the faults while it runs.
async fn disturb(
    args: &DemoArgs,
    nodes: &mut Nodes,
    client: &Client,
    monitor: &Monitor,
    business: &Arc<Business>,
    show: &Show,
) -> anyhow::Result<Report> {
    let directory = client.admin().directory().await.context("reading the map")?;
    let probed: Vec<_> = probe_rows(business, &directory)
        .into_iter()
        .map(|(_, row)| row)
        .collect();
    let opened = now();
    let load = Load::start(business, args.workers as usize, args.seed, &probed);
    let inflicted = faults::inflict(nodes, monitor, args, &|what| show.event(what)).await;
    let mut report = Report {
        seed: args.seed,
        ..Report::default()
    };
    match inflicted {
        Ok(faults) => report.faults = faults,
        Err(error) => report.failures.push(format!("{error:#}")),
    }
    tokio::time::sleep(Duration::from_secs(args.seconds).saturating_sub(opened.elapsed())).await;
    load.finish().await?;
    report.longest_stall_ms = business.books.lock().stall.longest_ms(business.elapsed_ms());
    Ok(report)
}

/// Starts a cluster on fresh nodes.
async fn form_cluster(nodes: &mut Nodes) -> anyhow::Result<Client> {
    let deadline = now() + START_PATIENCE;
    loop {
        let Err(error) = try_form_cluster(nodes.addrs()).await else {
            break;
        };
        if let Some(ended) = nodes.ended_by_itself()? {
            anyhow::bail!(ended);
        }
        if now() > deadline {
            return Err(error).context("the nodes do not form a cluster");
        }
        tokio::time::sleep(START_INTERVAL).await;
    }
    // A client of its own for the load: this one has never met a node that was not yet ready.
    Client::builder()
        .addrs(nodes.addrs())
        .build()
        .await
        .context("connecting to the cluster")
}

async fn try_form_cluster(addrs: Vec<String>) -> reelkv_client::Result<()> {
    let client = Client::builder()
        .addrs(addrs)
        .timeout(START_PATIENCE)
        .build()
        .await?;
    match client.admin().init_cluster(SHARDS, NODES as u32).await {
        // An earlier try may have got further than it could tell.
        Err(error) if *error.kind() == ErrorKind::AlreadyExists => Ok(()),
        done => done.map(|_| ()),
    }
}

/// Compares what the replicas hold with each other and with the ledger.
async fn verify_all(args: &DemoArgs, client: &Client, business: &Business, report: &mut Report) {
    let mut swapped = None;
    match args.sabotage {
        Some(Sabotage::LoseAck) => verify::invent_a_write(business),
        Some(Sabotage::StaleReplica) => swapped = verify::previous_value(business),
        Some(Sabotage::PretendDamage) | None => {}
    }
    let admin = client.admin();
    let directory = match admin.directory().await {
        Ok(directory) => directory,
        Err(error) => return report.failures.push(format!("reading the map: {error}")),
    };
    match verify::await_equal_digests(&admin, &directory).await {
        Ok(()) => report.digests_equal = true,
        Err(differing) => report.failures.extend(differing),
    }
    if let Err(error) = verify::read_replicas(&admin, business, &directory, swapped).await {
        report.failures.push(format!("{error:#}"));
    }
    verify::read_sample(business, args.seed).await;
}

fn with_books(mut report: Report, business: &Business) -> Report {
    let books = business.books.lock();
    report.acknowledged_writes = books.ledger.acknowledged_writes();
    report.lost_writes = books.ledger.lost_writes();
    report.wrong_reads = books.ledger.wrong_reads();
    report.failed_requests = books.ledger.failed_requests();
    report.failures.extend(books.ledger.remarks().iter().cloned());
    report
}
