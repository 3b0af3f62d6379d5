//! T0: every bit of a small file flipped, every byte zeroed, every length cut, one at a time; the node
//! is started on it, alone, and must know what it is, believe nothing wrong, and tell.
//!
//! A case is one file and one way; it makes as many attempts as the file has bits or bytes.
//!
//! The log and a tree have too many bits for that: their own decoders are called without a node. Every bit of a
//! log of two segments with everything in it that a log can hold (entries, hard state, control records,
//! identities, headers, manifests), every length, each file gone ([`reelkv::wal::exhaustive`]); every bit and
//! length of a small tree, its sectors, pages and blocks ([`reelkv::storage::exhaustive`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use reelkv::disk::sim::SimDisk;
use reelkv::raft::transport::PeerHandler;
use reelkv::server::{Node, Peers};
use reelkv::storage::exhaustive;
use reelkv::wal::exhaustive::{Counts, Exhaustive};
use reelkv_proto::v1::{self, peer_request, peer_response};

use super::combos::SimImage;
use super::judge;
use super::verdict::{Finding, Outcome, Verdict};
use super::{Case, Tier, or_failed};
use crate::run::panics;
use crate::sim;

/// Where simulated machines keep their data.
const DATA_DIR: &str = "/data";
/// Files, and what the ledger calls damage to them.
const FILES: [(&str, &str, &str); 6] = [
    ("identity.1", "identity", "identity"),
    ("identity.2", "identity", "identity"),
    ("wal/manifest.1", "wal manifest", "wal"),
    ("wal/manifest.2", "wal manifest", "wal"),
    ("directory", "directory copy", "directory"),
    ("watermarks", "watermarks", "watermarks"),
];
/// Attempts in one runtime: what ended tasks leave behind goes with it.
const ATTEMPTS_PER_RUNTIME: usize = 256;

/// How a file is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bits,
    Bytes,
    Lengths,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Bits => "every-bit-flipped",
            Self::Bytes => "every-byte-zeroed",
            Self::Lengths => "every-length-cut",
        }
    }

    fn attempts(self, len: usize) -> usize {
        match self {
            Self::Bits => len * 8,
            Self::Bytes | Self::Lengths => len,
        }
    }

    /// The file after one attempt; `None` when it is as it was.
    fn change(self, bytes: &[u8], attempt: usize) -> Option<Vec<u8>> {
        let mut changed = bytes.to_vec();
        match self {
            Self::Bits => changed[attempt / 8] ^= 1 << (attempt % 8),
            Self::Bytes => changed[attempt] = 0,
            Self::Lengths => changed.truncate(attempt),
        }
        (changed != bytes).then_some(changed)
    }
}

/// All cases of T0.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (file, structure, told_as) in FILES {
        for way in [Way::Bits, Way::Bytes, Way::Lengths] {
            cases.push(Case {
                tier: Tier::T0,
                structure: structure.to_owned(),
                fault: way.name().to_owned(),
                role: "any",
                place: format!("/{file}"),
                run: Box::new(move |context, seed, _| {
                    or_failed(|| run(context.sim()?, file, told_as, way, seed))
                }),
            });
        }
    }
    cases.extend((0..LOG_PARTS).map(log_case));
    cases.push(Case {
        tier: Tier::T0,
        structure: "tree".to_owned(),
        fault: "every-single-fault".to_owned(),
        role: "any",
        place: "/trees".to_owned(),
        run: Box::new(|_, seed, base| or_failed(|| run_tree(base, seed))),
    });
    cases
}

/// The faults of a log are so many cases.
const LOG_PARTS: usize = 16;
/// So many faults of a log are tried between two looks at what was found.
const LOG_SLICE: usize = 4_096;

fn log_case(part: usize) -> Case {
    Case {
        tier: Tier::T0,
        structure: "wal".to_owned(),
        fault: "every-single-fault".to_owned(),
        role: "any",
        place: format!("/wal/{}-of-{LOG_PARTS}", part + 1),
        run: Box::new(move |_, seed, _| or_failed(|| run_log(part, seed))),
    }
}

/// One part of all single faults of a log.
fn run_log(part: usize, seed: u64) -> anyhow::Result<Outcome> {
    let log = in_runtime(seed, Exhaustive::new())?.context("a whole log")?;
    let (from, to) = (
        log.cases() * part / LOG_PARTS,
        log.cases() * (part + 1) / LOG_PARTS,
    );
    let (mut counts, mut outcome) = (Counts::default(), Outcome::default());
    for at in (from..to).step_by(LOG_SLICE) {
        match log.check(at..to.min(at + LOG_SLICE)) {
            Ok(checked) => counts += checked,
            Err(wrong) => outcome.find(Finding::not_safe(format!("P1: {wrong}"))),
        }
    }
    outcome.note = format!(
        "{} attempts, {} told, {} in bytes that nothing reads",
        counts.cases, counts.detected, counts.harmless
    );
    ensure!(
        counts.cases == to - from || !outcome.findings.is_empty(),
        "not all were tried"
    );
    Ok(outcome)
}

/// All single faults of a tree.
fn run_tree(base: &Path, seed: u64) -> anyhow::Result<Outcome> {
    let tried = in_runtime(seed, exhaustive(base));
    super::files::remove(base);
    let mut outcome = Outcome::default();
    match tried? {
        Ok(tried) => {
            outcome.note = format!(
                "{} attempts, {} put back, {} salvaged",
                tried.cases, tried.healed, tried.salvaged
            );
        }
        Err(wrong) => outcome.find(Finding::not_safe(format!("P1: {wrong}"))),
    }
    Ok(outcome)
}

/// What a node believes of itself and its cluster, as it can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Beliefs {
    node_id: u64,
    cluster_id: Vec<u8>,
    log_batch: u64,
    map_version: u64,
    map: Vec<(u64, u64)>,
    watermarks: BTreeMap<u64, u64>,
}

fn run(
    image: &SimImage,
    file: &'static str,
    told_as: &'static str,
    way: Way,
    seed: u64,
) -> anyhow::Result<Outcome> {
    let panics = panics::watch();
    let path = Path::new(DATA_DIR).join(file);
    let disk = image.disk(seed);
    let contents = disk.contents();
    let bytes = contents.iter().find(|(name, _)| *name == path);
    let bytes = &bytes.with_context(|| format!("{file} is not there"))?.1;
    let unhurt = in_runtime(seed, start(image, None, seed))?.context("the unhurt node does not start")?;
    let attempts: Vec<usize> = (0..way.attempts(bytes.len())).collect();
    let mut found = Found::default();
    for some in attempts.chunks(ATTEMPTS_PER_RUNTIME) {
        in_runtime(seed, async {
            for attempt in some {
                if let Some(changed) = way.change(bytes, *attempt) {
                    found.attempts += 1;
                    let started = start(image, Some((&path, changed)), seed).await;
                    found.judge(*attempt, told_as, &unhurt, started);
                }
            }
        })?;
    }
    ensure!(found.attempts > 0, "nothing was changed");
    let mut outcome = found.outcome(file);
    for panic in panics.seen() {
        outcome.find(Finding::degraded(format!("P6: {panic}")));
    }
    Ok(outcome)
}

fn in_runtime<T>(seed: u64, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = sim::runtime(seed)?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result)
}

/// Starts the first machine with a changed file, alone. What it believes, and what it tells.
async fn start(
    image: &SimImage,
    changed: Option<(&PathBuf, Vec<u8>)>,
    seed: u64,
) -> anyhow::Result<(Beliefs, Vec<v1::DamageEvent>)> {
    let disk = image.disk(seed);
    if let Some((path, bytes)) = changed {
        rewrite(&disk, path, &bytes)?;
    }
    let mut cluster = image.with_disk(disk, seed);
    cluster.start_node(0).await?;
    let node = cluster.node(0).context("it runs")?;
    let beliefs = beliefs(&node).await?;
    let events = judge::ledger(&node);
    cluster.crash(0);
    Ok((beliefs, events))
}

/// Gives a file at rest other bytes, not more than it has.
fn rewrite(disk: &SimDisk, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let contents = disk.contents();
    let file = contents.iter().find(|(name, _)| name == path);
    let before = &file
        .with_context(|| format!("{} is not there", path.display()))?
        .1;
    for (at, (old, new)) in before.iter().zip(bytes).enumerate() {
        ensure!(old == new || disk.corrupt(path, at, old ^ new), "no byte {at}");
    }
    ensure!(disk.cut(path, bytes.len()), "it cannot be cut");
    Ok(())
}

async fn beliefs(node: &std::sync::Arc<Node>) -> anyhow::Result<Beliefs> {
    let member = node.member().context("it does not know that it is a member")?;
    let map = member.directory();
    let request = v1::PeerRequest {
        cluster_id: member.cluster_id(),
        body: Some(peer_request::Body::Watermarks(v1::WatermarksMessage::default())),
        ..Default::default()
    };
    let answer = Peers(node.clone()).handle(request).await;
    let Some(peer_response::Body::Watermarks(remembered)) = &answer.body else {
        anyhow::bail!("it does not tell what it remembers: {:?}", answer.body);
    };
    Ok(Beliefs {
        node_id: member.node_id(),
        cluster_id: member.cluster_id().to_vec(),
        log_batch: answer.wal_batch,
        map_version: map.version,
        map: map
            .shards
            .iter()
            .map(|shard| (shard.shard_id, shard.replicas.len() as u64))
            .collect(),
        watermarks: remembered
            .watermarks
            .iter()
            .map(|mark| (mark.node_id, mark.wal_batch))
            .collect(),
    })
}

#[derive(Default)]
struct Found {
    attempts: usize,
    not_told: Vec<usize>,
    findings: Vec<Finding>,
}

impl Found {
    fn judge(
        &mut self,
        attempt: usize,
        told_as: &str,
        unhurt: &(Beliefs, Vec<v1::DamageEvent>),
        started: anyhow::Result<(Beliefs, Vec<v1::DamageEvent>)>,
    ) {
        let (beliefs, events) = match started {
            Ok(started) => started,
            Err(error) => {
                let finding = format!("P6: attempt {attempt}: {error:#}");
                return self.findings.push(Finding::degraded(finding));
            }
        };
        if let Some(wrong) = wrong_belief(&unhurt.0, &beliefs) {
            let finding = format!("P1: attempt {attempt}: {wrong}");
            self.findings.push(Finding::not_safe(finding));
        }
        if !events.iter().any(|event| event.structure == told_as) {
            self.not_told.push(attempt);
        }
    }

    fn outcome(self, file: &str) -> Outcome {
        let mut outcome = Outcome {
            note: format!("{} attempts", self.attempts),
            ..Outcome::default()
        };
        // One of each kind is enough to be found again.
        for verdict in [Verdict::Unsafe, Verdict::Degraded] {
            let of_kind = self.findings.iter().filter(|finding| finding.verdict == verdict);
            let count = of_kind.clone().count();
            if let Some(first) = of_kind.into_iter().next() {
                outcome.find(Finding {
                    why: format!("{} ({count} attempts alike)", first.why),
                    ..first.clone()
                });
            }
        }
        if let Some(first) = self.not_told.first() {
            let (count, all) = (self.not_told.len(), self.attempts);
            outcome.find(Finding::degraded(format!(
                "P5: damage to {file} was not told in {count} of {all} attempts, first in {first}"
            )));
        }
        outcome
    }
}

/// What a node must not believe: it may have forgotten what others can tell it again, but what it says
/// must be true.
fn wrong_belief(true_ones: &Beliefs, found: &Beliefs) -> Option<String> {
    if (found.node_id, &found.cluster_id) != (true_ones.node_id, &true_ones.cluster_id) {
        return Some(format!("it takes itself for node {}", found.node_id));
    }
    if found.log_batch != true_ones.log_batch {
        let (found, batch) = (found.log_batch, true_ones.log_batch);
        return Some(format!("its log ends with batch {found} instead of {batch}"));
    }
    let knows_map = found.map_version == true_ones.map_version && found.map == true_ones.map;
    if !knows_map && (found.map_version, found.map.is_empty()) != (0, true) {
        return Some(format!("it believes in a map of version {}", found.map_version));
    }
    let mut marks = found.watermarks.iter();
    let made_up = marks.find(|(node, batch)| true_ones.watermarks.get(node) != Some(batch));
    made_up.map(|(node, batch)| format!("it remembers batch {batch} of node {node}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_byte_and_length_is_tried_once() {
        let bytes = [1, 0, 255];
        let tried = |way: Way| {
            (0..way.attempts(3))
                .filter_map(|at| way.change(&bytes, at))
                .count()
        };
        assert_eq!(tried(Way::Bits), 24);
        assert_eq!(tried(Way::Bytes), 2, "one is zero already");
        assert_eq!(tried(Way::Lengths), 3);
    }

    #[test]
    fn a_node_may_forget_and_must_not_believe_what_is_not_so() {
        let truth = Beliefs {
            node_id: 1,
            cluster_id: vec![7; 16],
            log_batch: 90,
            map_version: 4,
            map: vec![(1, 3), (2, 3)],
            watermarks: BTreeMap::from([(2, 80), (3, 70)]),
        };
        let other = |change: fn(&mut Beliefs)| {
            let mut other = truth.clone();
            change(&mut other);
            wrong_belief(&truth, &other)
        };
        assert_eq!(other(|_| ()), None);
        assert_eq!(other(|found| found.watermarks.clear()), None);
        assert_eq!(
            other(|found| (found.map_version, found.map) = (0, Vec::new())),
            None
        );
        assert!(other(|found| found.node_id = 2).is_some());
        assert!(other(|found| found.log_batch = 89).is_some());
        assert!(other(|found| found.map_version = 5).is_some());
        assert!(other(|found| found.map[1].1 = 2).is_some());
        assert!(other(|found| *found.watermarks.get_mut(&2).unwrap() = 81).is_some());
    }
}
