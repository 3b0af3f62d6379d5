//! Damage of several nodes at once, in the simulator: entries of the log whose payloads are bad, and
//! records whose rows are bad, in every combination over three replicas.
//!
//! All nodes lose power, are damaged, and are started. What is intact somewhere must be recovered;
//! what is bad everywhere must be waited for and named, nothing may be made up, and nothing else may
//! wait (P7).

mod image;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reelkv::clock::{Instant, now};
use reelkv_client::Keyspace;
use reelkv_proto::types::ShardId;

use super::case::REPAIRED_WITHIN;
use super::image::client_keyspace;
use super::judge::{self, Model, Probes};
use super::verdict::{Finding, Outcome};
use super::world::NODES;
use super::{Case, Tier, or_failed};
use crate::run::panics;
use crate::sim::{self, Cluster};
pub use image::{Golden, SimImage};

/// Entries of the log, and records, that are damaged.
pub const ITEMS: usize = 4;
/// Combinations of bad copies: one bit for each item on each node.
pub const COMBINATIONS: u16 = 1 << (ITEMS * NODES);
/// Two election timeouts of the simulated cluster.
const AVAILABLE_WITHIN: Duration = Duration::from_millis(2 * 990);
const LATE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// What is bad where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Bit `item * 3 + node`: the payload of this entry is bad in the log of this node.
    pub entries: u16,
    /// The same for records in trees.
    pub records: u16,
    /// A node that lacks the last entries; `None` when all have them.
    pub lagging: Option<usize>,
    /// A node that is off at first.
    pub off: Option<usize>,
}

fn is_bad(mask: u16, item: usize, node: usize) -> bool {
    mask >> (item * NODES + node) & 1 == 1
}

impl Damage {
    /// Chosen by a seed.
    fn random(rng: &mut SmallRng) -> Self {
        let density = [0.1, 0.25, 0.5][rng.random_range(0..3)];
        let mut mask = |density: f64| {
            (0..12)
                .map(|bit| u16::from(rng.random_bool(density)) << bit)
                .sum()
        };
        let (entries, records) = (mask(density), mask(density / 2.0));
        let mut some_node = |chance| rng.random_bool(chance).then(|| rng.random_range(0..NODES));
        Self {
            entries,
            records,
            lagging: some_node(0.4),
            off: some_node(0.4),
        }
    }

    /// Items that no node in `nodes` has intact: entries and records.
    fn lost(&self, golden: &Golden, nodes: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let entry = |item: &usize| {
            let intact = |node: &usize| golden.has_entry(*item, *node) && !is_bad(self.entries, *item, *node);
            !nodes.iter().any(intact)
        };
        let record = |item: &usize| nodes.iter().all(|node| is_bad(self.records, *item, *node));
        (
            (0..ITEMS).filter(entry).collect(),
            (0..ITEMS).filter(record).collect(),
        )
    }
}

/// All combinations of entries, all of records, and some random ones of both.
pub(super) fn cases(random: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    for (structure, of) in [
        ("log entry", (|mask| (mask, 0)) as fn(u16) -> (u16, u16)),
        ("record", |mask| (0, mask)),
    ] {
        for mask in 0..COMBINATIONS {
            let (entries, records) = of(mask);
            let damage = Damage {
                entries,
                records,
                ..Damage::default()
            };
            let everywhere = |item| (0..NODES).all(|node| is_bad(mask, item, node));
            let fault = match (0..ITEMS).any(everywhere) {
                true => "bad-everywhere",
                false => "intact-somewhere",
            };
            let name = structure.replace(' ', "-");
            cases.push(case(structure, fault, format!("/{name}/{mask:03x}"), move |_| {
                damage
            }));
        }
    }
    for number in 0..random {
        cases.push(case(
            "log entry and record",
            "random",
            format!("/{number}"),
            Damage::random,
        ));
    }
    cases
}

fn case(
    structure: &str,
    fault: &str,
    place: String,
    damage: impl Fn(&mut SmallRng) -> Damage + Send + Sync + 'static,
) -> Case {
    Case {
        tier: Tier::T4,
        structure: structure.to_owned(),
        fault: fault.to_owned(),
        role: "any",
        place,
        run: Box::new(move |context, seed, _| {
            or_failed(|| {
                let damage = damage(&mut SmallRng::seed_from_u64(seed));
                run(context.sim()?, damage, seed)
            })
        }),
    }
}

/// Runs a case in a world of its own.
///
/// # Errors
/// The runtime or the damage could not be made.
pub fn run(image: &SimImage, damage: Damage, seed: u64) -> anyhow::Result<Outcome> {
    let panics = panics::watch();
    let runtime = sim::runtime(seed)?;
    let outcome = runtime.block_on(async {
        let golden = image.golden(damage.lagging);
        let cluster = golden.struck(image, &damage, seed)?;
        let mut judge = Judge {
            image,
            golden,
            damage,
            cluster,
            model: golden.model.clone(),
            outcome: Outcome::default(),
            began: now(),
            shard: golden.shard_id,
        };
        judge.judge(seed).await?;
        for position in 0..NODES {
            judge.cluster.crash(position);
        }
        anyhow::Ok(judge.outcome)
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    let mut outcome = outcome?;
    for panic in panics.seen() {
        outcome.find(Finding::degraded(format!("P6: {panic}")));
    }
    Ok(outcome)
}

struct Judge<'a> {
    image: &'a SimImage,
    golden: &'a Golden,
    damage: Damage,
    cluster: Cluster,
    model: Arc<Model>,
    outcome: Outcome,
    began: Instant,
    /// The shard that everything struck is of.
    shard: ShardId,
}

impl Judge<'_> {
    async fn judge(&mut self, seed: u64) -> anyhow::Result<()> {
        let on: Vec<usize> = (0..NODES).filter(|node| self.damage.off != Some(*node)).collect();
        for position in &on {
            self.cluster.start_node(*position).await?;
        }
        let keyspace = client_keyspace(self.cluster.network(), seed).await?;
        let unhurt = self.image.unhurt(self.damage.off.is_some());
        self.spell(&keyspace, &on, unhurt).await;
        if let Some(off) = self.damage.off {
            self.cluster.start_node(off).await?;
            self.began = now();
            let all: Vec<usize> = (0..NODES).collect();
            self.spell(&keyspace, &all, self.image.unhurt(false)).await;
        }
        Ok(())
    }

    /// Judges the cluster as long as the nodes that are on are these.
    async fn spell(&mut self, keyspace: &Keyspace, on: &[usize], unhurt: Duration) {
        let (entries, records) = self.damage.lost(self.golden, on);
        let bar = self.began + unhurt + AVAILABLE_WITHIN;
        let whole_by = self.began + unhurt + REPAIRED_WITHIN;
        let may_wait = |key: &[u8]| {
            let of_shard = !entries.is_empty() && self.golden.is_of_shard(key);
            of_shard || records.iter().any(|record| self.golden.records[*record] == *key)
        };
        let (served, waiting) = self.model.split(may_wait);
        let samples = judge::samples(&served);
        let samples = samples.into_iter().filter(|sample| !sample.is_empty()).collect();
        let served = Arc::new(served);
        let probes = Probes::start(keyspace, &served, &self.model, samples);
        let serves = self.await_service(&probes, bar).await;
        let read = judge::read_all(keyspace, &served, serves).await;
        self.outcome.findings.extend(read);
        let is_whole = on.len() == NODES;
        match (entries.is_empty() && records.is_empty(), is_whole) {
            (true, true) if serves => self.await_ok(whole_by).await,
            (true, _) => {}
            (false, _) => tokio::time::sleep_until(whole_by).await,
        }
        let (findings, longest, own) = probes.finish().await;
        self.outcome.findings.extend(findings);
        if longest > AVAILABLE_WITHIN && serves {
            let finding = format!("P3: a read and a write took {longest:?}, the bar is {AVAILABLE_WITHIN:?}");
            self.outcome.find(Finding::unavailable(finding));
        }
        Arc::make_mut(&mut self.model).unite(own);
        if entries.is_empty() && records.is_empty() {
            if is_whole && serves {
                self.compare_replicas(keyspace, whole_by).await;
            }
        } else {
            self.must_wait(keyspace, &waiting, on, &entries, &records).await;
        }
        self.judge_telling(on, entries.is_empty());
    }

    async fn await_service(&mut self, probes: &Probes, bar: Instant) -> bool {
        loop {
            match probes.answered() {
                Ok(at) => {
                    let took = at.duration_since(self.began).as_millis() as u64;
                    self.outcome.times.available_ms.get_or_insert(took);
                    if at > bar {
                        let late = at - bar;
                        self.outcome
                            .find(Finding::unavailable(format!("P3: served {late:?} too late")));
                    }
                    return true;
                }
                Err(missing) if now() > bar + LATE => {
                    let waited = self.began.elapsed();
                    self.outcome
                        .find(Finding::unavailable(format!("P3: after {waited:?} {missing}")));
                    return false;
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn await_ok(&mut self, by: Instant) {
        let (network, addrs) = (self.cluster.network().clone(), self.cluster.addrs());
        while let Err(said) = judge::all_say_ok(&network, &addrs).await {
            if now() > by + LATE {
                let finding = format!("P4: not repaired: {said:#}");
                return self.outcome.find(Finding::degraded(finding));
            }
            tokio::time::sleep(POLL).await;
        }
        if now() > by {
            let late = now() - by;
            self.outcome
                .find(Finding::degraded(format!("P4: repaired {late:?} too late")));
        }
    }

    async fn compare_replicas(&mut self, keyspace: &Keyspace, by: Instant) {
        let (network, addrs) = (self.cluster.network().clone(), self.cluster.addrs());
        while let Err(difference) = judge::digests_agree(&network, &addrs).await {
            if now() > by + LATE {
                let finding = format!("P4: {difference:#}");
                return self.outcome.find(Finding::degraded(finding));
            }
            tokio::time::sleep(POLL).await;
        }
        let repaired = self.began.elapsed().as_millis() as u64;
        self.outcome.times.repaired_ms = (self.damage.entries | self.damage.records > 0).then_some(repaired);
        let held = judge::every_replica_holds(&network, &addrs, keyspace.id(), &self.model).await;
        if let Err(finding) = held {
            self.outcome.find(finding);
        }
        let read = judge::read_all(keyspace, &self.model, true).await;
        self.outcome.findings.extend(read);
    }

    /// P7: what is gone is waited for and named, and nobody says that all is well.
    async fn must_wait(
        &mut self,
        keyspace: &Keyspace,
        waiting: &Model,
        on: &[usize],
        entries: &[usize],
        records: &[usize],
    ) {
        let read = judge::read_all(keyspace, waiting, false).await;
        // Not to answer is right; to answer wrongly is not.
        let wrong = |finding: &Finding| finding.verdict == super::Verdict::Unsafe;
        self.outcome.findings.extend(read.into_iter().filter(wrong));
        let nodes = on.iter().filter_map(|node| self.cluster.node(*node));
        let events: Vec<_> = nodes.flat_map(|node| judge::ledger(&node)).collect();
        let open = |structure: &str| {
            events
                .iter()
                .filter(|event| {
                    event.shard_id == self.shard && event.structure == structure && event.repaired_at_ms == 0
                })
                .map(|event| event.position.clone())
                .collect::<Vec<_>>()
        };
        let (wal, tree) = (open("wal"), open("tree"));
        let mut unnamed = Vec::new();
        for entry in entries {
            let index = self.golden.entries[*entry].index;
            if !wal.iter().any(|position| names_index(position, index)) {
                unnamed.push(format!("entry {index}"));
            }
        }
        // A shard that waits for entries opens no tree.
        if !records.is_empty() && entries.is_empty() && tree.is_empty() {
            unnamed.push(format!("{} records", records.len()));
        }
        if let Some(first) = unnamed.first() {
            let finding = format!("P7: {first} is gone and no open entry of a ledger names it");
            self.outcome.find(Finding::degraded(finding));
        }
        if judge::all_say_ok(self.cluster.network(), &self.cluster.addrs())
            .await
            .is_ok()
        {
            let finding = "P7: something is gone, and every node says that nothing is wrong";
            self.outcome.find(Finding::degraded(finding));
        }
        if self.outcome.note.is_empty() {
            let index = |entry: &usize| self.golden.entries[*entry].index.to_string();
            let gone: Vec<String> = entries.iter().map(index).collect();
            self.outcome.note = format!(
                "gone on every node that is on: entries [{}] of shard {}, {} records",
                gone.join(" "),
                self.shard,
                records.len()
            );
        }
    }

    /// P5, for each node that is on and was damaged. Trees are opened, and what is wrong with them is met,
    /// once the shard runs.
    fn judge_telling(&mut self, on: &[usize], runs: bool) {
        for node in on {
            let bad = |mask: u16, has: &dyn Fn(usize) -> bool| {
                (0..ITEMS).any(|item| is_bad(mask, item, *node) && has(item))
            };
            let wanted = [
                (
                    "wal",
                    bad(self.damage.entries, &|item| self.golden.has_entry(item, *node)),
                ),
                ("tree", runs && bad(self.damage.records, &|_| true)),
            ];
            let events = self.cluster.node(*node).map(|node| judge::ledger(&node));
            let events = events.unwrap_or_default();
            for (structure, is_struck) in wanted {
                let told = events
                    .iter()
                    .any(|event| event.shard_id == self.shard && event.structure == structure);
                if is_struck && !told {
                    let finding = format!("P5: node {} has not told of its {structure}", node + 1);
                    self.outcome.find(Finding::degraded(finding));
                }
            }
        }
    }
}

/// Whether a position of the ledger names an index of the log: alone, or as part of a range "A to B".
fn names_index(position: &str, index: u64) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let words: Vec<&str> = position
        .split(|c: char| !is_part(c))
        .filter(|word| !word.is_empty())
        .collect();
    let as_index = |word: &str| {
        word.rsplit('.')
            .next()
            .and_then(|digits| digits.parse::<u64>().ok())
    };
    let alone = words.iter().any(|word| as_index(word) == Some(index));
    let within = words.windows(3).any(|range| {
        let ends = (as_index(range[0]), as_index(range[2]));
        range[1] == "to" && matches!(ends, (Some(first), Some(last)) if (first..=last).contains(&index))
    });
    alone || within
}

impl SimImage {
    /// How long a start without any fault takes to serve; longer with a node off.
    fn unhurt(&self, one_off: bool) -> Duration {
        match one_off {
            true => self.unhurt_one_off,
            false => self.unhurt_all,
        }
    }

    /// Measures that: a cluster that does not pass without a fault says nothing about faults.
    fn measure_unhurt(&mut self) -> anyhow::Result<()> {
        (self.unhurt_all, self.unhurt_one_off) = (Duration::from_secs(60), Duration::from_secs(60));
        let mut longest = [Duration::ZERO; 2];
        for (at, off) in [(0, None), (1, Some(0)), (1, Some(1)), (1, Some(2)), (0, None)] {
            let damage = Damage {
                off,
                ..Damage::default()
            };
            let outcome = run(self, damage, at as u64 + 1)?;
            anyhow::ensure!(
                outcome.findings.is_empty(),
                "a simulated cluster without any fault does not pass: {}",
                outcome.why()
            );
            let available = outcome.times.available_ms.context("it never served")?;
            longest[at] = longest[at].max(Duration::from_millis(available));
        }
        (self.unhurt_all, self.unhurt_one_off) = (longest[0], longest[1]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_combinations_as_the_paper_has() {
        let everywhere = |mask: u16| (0..ITEMS).any(|item| (0..NODES).all(|node| is_bad(mask, item, node)));
        let lost = (0..COMBINATIONS).filter(|mask| everywhere(*mask)).count();
        assert_eq!((COMBINATIONS, lost, 4_096 - lost), (4_096, 1_695, 2_401));
    }

    #[test]
    fn positions_name_entries_alone_or_in_ranges() {
        for (position, index, named) in [
            ("payloads of 2 entries, T3.17 to T3.20", 18, true),
            ("payloads of 2 entries, T3.17 to T3.20", 20, true),
            ("payloads of 2 entries, T3.17 to T3.20", 21, false),
            ("entry T1.18 could not be fetched from any voter", 18, true),
            ("entry T1.180 could not be fetched", 18, false),
            ("", 18, false),
        ] {
            assert_eq!(names_index(position, index), named, "{position:?} {index}");
        }
    }
}
