//! One run: a cluster, a workload, a nemesis, from one seed to a verdict.
//!
//! Load and faults go on for a while; then everything heals, the replicas must agree, all nodes
//! lose power at once, they must agree again, everything is read again from every replica and
//! through the client, and the judges look at what clients saw.

mod coverage;
pub(crate) mod panics;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use reelkv::clock::{Instant, now};
use reelkv_client::Client;
use serde::Serialize;

use crate::checker::Verdict;
use crate::history::{Event, Recorder, fingerprint};
use crate::nemesis::{Fault, Moment, Nemesis, clean_spans};
use crate::sim::{self, Cluster, Settings, SimConnector};
use crate::workload::{Actor, TIMEOUT, Workload, tally};

/// The judge that looks at what clients saw, and at nothing else.
pub const HISTORY: &str = "history";
/// Data shards of a simulated cluster.
pub const SHARDS: u32 = 3;
/// A simulated node reads everything once more while a run lasts. Five seconds, as real nodes do at this
/// size, cost more than all the rest of a run.
const SCRUB_CYCLE_MS: u64 = 15_000;
/// The voters of a simulated shard are compared a few times while a run lasts.
const MARKER_INTERVAL_MS: u64 = 8_000;

/// What is run. The same plan gives the same history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What clients do.
    pub workload: Workload,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Everything else follows from it.
    pub seed: u64,
    /// Virtual seconds of load.
    pub seconds: u64,
    /// Nodes; every one holds a replica of every shard.
    pub nodes: usize,
    /// How many clients there are and how busy they are.
    pub load: Load,
}

/// How many clients there are and how busy they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Clients at the same time; a workload may need another number.
    pub clients: u64,
    /// How long a client thinks before an operation, in milliseconds, at most.
    pub think_ms: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            clients: 6,
            think_ms: 80,
        }
    }
}

impl Plan {
    /// The one command that runs it again.
    pub fn command(&self) -> String {
        let names: Vec<&str> = self.faults.iter().map(|fault| fault.name()).collect();
        let nemesis = match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(","),
        };
        let (profile, mutant) = match crate::mutants::chosen() {
            Ok(Some(mutant)) => (
                " --profile mutants --features mutants",
                format!("REELKV_MUTANT={mutant} "),
            ),
            _ => (" --release", String::new()),
        };
        let load = match self.load == Load::default() {
            true => String::new(),
            false => format!(
                " --clients {} --think-ms {}",
                self.load.clients, self.load.think_ms
            ),
        };
        format!(
            "{mutant}cargo run{profile} -p reelkv-jepsen -- run --world sim --workload {} --nemesis {nemesis} --seconds {} --seed {} --nodes {}{load}",
            self.workload.name(),
            self.seconds,
            self.seed,
            self.nodes
        )
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was run.
    pub plan: Plan,
    /// What clients saw.
    pub history: Vec<Event>,
    /// Spans in which a clean quorum existed, in microseconds since the load began.
    pub clean_us: Vec<(u64, u64)>,
    /// Faults that took effect.
    pub faults: BTreeMap<Fault, usize>,
    /// What happened when.
    pub timeline: Vec<Moment>,
    /// Records read from replicas one by one in the end.
    pub records_compared: usize,
    /// What each judge says.
    pub verdicts: BTreeMap<&'static str, Verdict>,
}

/// The figures of a report, as it is printed and kept.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// All judges together.
    pub verdict: Verdict,
    /// What each judge says.
    pub verdicts: BTreeMap<&'static str, Verdict>,
    /// Operations that ended well, failed, and of unknown outcome, by kind.
    pub operations: BTreeMap<String, [u64; 3]>,
    /// Faults that took effect, by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Records read from replicas one by one in the end.
    pub records_compared: usize,
    /// Hash of the history, equal for equal histories.
    pub fingerprint: String,
}

impl Report {
    /// All judges together.
    pub fn verdict(&self) -> Verdict {
        let all = self.verdicts.values().cloned();
        all.fold(Verdict::Pass, Verdict::and)
    }

    /// What the judges say who look at more than the history; it cannot be asked again later.
    pub fn judged_elsewhere(&self) -> BTreeMap<String, Verdict> {
        let verdicts = self.verdicts.iter().filter(|(judge, _)| **judge != HISTORY);
        verdicts
            .map(|(judge, verdict)| ((*judge).to_owned(), verdict.clone()))
            .collect()
    }

    /// Hash of the history, equal for equal histories.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(&self.history)
    }

    /// Its figures.
    pub fn summary(&self) -> Summary {
        let faults = self.faults.iter();
        Summary {
            verdict: self.verdict(),
            verdicts: self.verdicts.clone(),
            operations: tally(&self.history),
            faults: faults.map(|(fault, times)| (fault.name(), *times)).collect(),
            records_compared: self.records_compared,
            fingerprint: format!("{:016x}", self.fingerprint()),
        }
    }
}

/// Runs a plan on this thread, in virtual time.
///
/// # Errors
/// The runtime could not be made. What goes wrong in the simulated world is a verdict.
pub fn simulate(plan: &Plan) -> anyhow::Result<Report> {
    let runtime = sim::runtime(plan.seed).context("the simulator has no runtime")?;
    let panics = panics::watch();
    let mut report = runtime.block_on(async {
        BEGAN.set(Some(now()));
        let mut run = Run::new(plan.clone());
        let ended = run.go().await;
        run.report(ended)
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    BEGAN.set(None);
    report.verdicts.insert("no-panic", Verdict::of(panics.seen()));
    Ok(report)
}

thread_local! {
    /// When the simulated world on this thread began.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Seconds since the simulated world on this thread began; 0 outside of one.
pub fn virtual_seconds() -> f64 {
    BEGAN.get().map_or(0.0, |began| began.elapsed().as_secs_f64())
}

struct Run {
    plan: Plan,
    rng: SmallRng,
    cluster: Cluster,
    recorder: Arc<Recorder>,
    nemesis: Nemesis,
    records_compared: usize,
}

impl Run {
    fn new(plan: Plan) -> Self {
        let mut rng = SmallRng::seed_from_u64(plan.seed);
        let settings = Settings {
            nodes: plan.nodes,
            shards: SHARDS,
            replicas: plan.nodes as u32,
            scrub_cycle_ms: SCRUB_CYCLE_MS,
            marker_interval_ms: MARKER_INTERVAL_MS,
            ..Settings::default()
        };
        let cluster = Cluster::new(settings, rng.next_u64());
        let chance = SmallRng::seed_from_u64(rng.next_u64());
        let nemesis = Nemesis::new(plan.faults.clone(), plan.nodes, chance);
        Self {
            nemesis: match plan.workload.needs_most_clocks() {
                true => nemesis.with_one_wrong_clock(),
                false => nemesis,
            },
            plan,
            cluster,
            recorder: Arc::default(),
            records_compared: 0,
            rng,
        }
    }

    /// From the first node's start to the last read.
    async fn go(&mut self) -> anyhow::Result<()> {
        let workload = self.plan.workload;
        self.cluster.start(workload.name()).await?;
        self.cluster.whole(Duration::from_secs(60)).await?;
        let preparer = self.actor(u64::MAX, now()).await?;
        workload.prepare(preparer).await?;

        self.recorder = Arc::new(Recorder::new());
        let until = now() + Duration::from_secs(self.plan.seconds);
        let mut clients = Vec::new();
        for id in 0..self.clients() {
            let actor = self.actor(id, until).await?;
            clients.push(tokio::spawn(workload.client(actor)));
        }
        let harmed = self.nemesis.run(&mut self.cluster, until).await;
        for client in clients {
            client.await.context("a client ended badly")?;
        }
        harmed?;
        self.final_integrity().await
    }

    /// After every run: all replicas hold the same, before and after a power cut of all nodes, and
    /// everything can be read.
    async fn final_integrity(&mut self) -> anyhow::Result<()> {
        self.cluster
            .agree()
            .await
            .context("after the run the replicas do not agree")?;
        self.read_everything().await?;
        for position in 0..self.plan.nodes {
            self.cluster.crash(position);
        }
        for position in 0..self.plan.nodes {
            self.cluster.start_node(position).await?;
        }
        self.cluster
            .agree()
            .await
            .context("after the restart the replicas do not agree")?;
        self.records_compared = self.cluster.read_every_replica().await?;
        self.read_everything().await?;
        self.cluster.verify_all().await?;
        self.nobody_differed().await?;
        self.numbers_kept()
    }

    /// No voter was found to hold something else than the others, unless one was made to.
    async fn nobody_differed(&self) -> anyhow::Result<()> {
        if self.plan.faults.contains(&Fault::RecordLoss) {
            return Ok(());
        }
        for position in 0..self.plan.nodes {
            let told = self.cluster.told_to_differ(position).await?;
            anyhow::ensure!(
                told == 0,
                "node {} was found to hold something else than most voters, {told} times",
                position + 1
            );
        }
        Ok(())
    }

    async fn read_everything(&mut self) -> anyhow::Result<()> {
        let actor = self.actor(self.clients(), now()).await?;
        self.plan.workload.finish(actor).await
    }

    /// No node took its own log for that of another, unless something was forgotten in this run.
    fn numbers_kept(&self) -> anyhow::Result<()> {
        if self.plan.faults.iter().any(|fault| fault.costs_identity()) {
            return Ok(());
        }
        for position in 0..self.plan.nodes {
            let member = self.cluster.node(position).and_then(|node| node.member());
            let number = member.context("a node is no member at the end")?.node_id();
            anyhow::ensure!(
                number == position as u64 + 1,
                "node {} became node {number} though nothing was forgotten",
                position + 1
            );
        }
        Ok(())
    }

    fn clients(&self) -> u64 {
        self.plan.workload.clients(self.plan.load.clients, SHARDS.into())
    }

    async fn actor(&mut self, id: u64, until: Instant) -> anyhow::Result<Actor> {
        let client = Client::builder()
            .addrs(self.cluster.addrs())
            .connector(Arc::new(SimConnector::new(self.cluster.network().clone())))
            .seed(self.rng.next_u64())
            .timeout(TIMEOUT)
            .build()
            .await?;
        Ok(Actor {
            id,
            keyspace: client.keyspace(self.plan.workload.name()).await?,
            recorder: self.recorder.clone(),
            rng: SmallRng::seed_from_u64(self.rng.next_u64()),
            until,
            think_ms: self.plan.load.think_ms,
            shards: SHARDS.into(),
        })
    }

    fn report(mut self, ended: anyhow::Result<()>) -> Report {
        let history = self.recorder.take();
        let end_us = self.plan.seconds * 1_000_000;
        let clean_us = clean_spans(&self.nemesis.occurrences, self.plan.nodes, end_us);
        let integrity = match ended {
            Ok(()) => Verdict::Pass,
            Err(error) => Verdict::fail(format!("{error:#}")),
        };
        let verdicts = BTreeMap::from([
            (HISTORY, self.plan.workload.judge(&history, &clean_us)),
            (
                "coverage",
                coverage::check(&self.plan, &history, &self.nemesis.injected),
            ),
            ("final-integrity", integrity),
        ]);
        for position in 0..self.plan.nodes {
            self.cluster.crash(position);
        }
        Report {
            plan: self.plan,
            history,
            clean_us,
            faults: self.nemesis.injected,
            timeline: self.nemesis.timeline,
            records_compared: self.records_compared,
            verdicts,
        }
    }
}
