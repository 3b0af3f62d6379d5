//! What is asked of a cluster, and what its answers must be.
//!
//! The judge knows what clients were told ([`Model`]), asks through the real client and, replica by
//! replica, through the operator's calls. It uses nothing of the store's own checks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use reelkv::clock::{Instant, now};
use reelkv::raft::transport::PeerHandler;
use reelkv::rpc::handler::AdminHandler;
use reelkv::server::{Front, Node, Peers};
use reelkv_client::{ErrorKind, Keyspace};
use reelkv_proto::types::{KeyRange, META_SHARD, ShardId, stored_key};
use reelkv_proto::v1::{self, peer_request, peer_response};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::verdict::Finding;
use crate::sim::Network;

/// How long a call of a client may take in all.
pub const CALL_MAX: Duration = Duration::from_secs(10);
/// The same where no answer is to be expected.
const SHORT_CALL_MAX: Duration = Duration::from_secs(1);
/// Pause between two probes of a shard.
const PROBE_PAUSE: Duration = Duration::from_millis(10);
/// What the key of a probe ends with.
const PROBE: &[u8] = b" probe";
/// Reads under way at the same time.
const READS: usize = 64;

/// A key, by number: spread over the first byte, and so over the shards.
pub fn key(number: u64) -> Bytes {
    let mut key = vec![(number * 41 % 256) as u8];
    key.extend_from_slice(format!("key {number:05}").as_bytes());
    key.into()
}

/// A value that no other write has.
pub fn value(number: u64, write: u64, len: usize) -> Bytes {
    let mut value = format!("value of {number} by write {write} ").into_bytes();
    // Not all alike: a block that was put elsewhere must not fit by chance.
    value.extend((0..len as u64).map(|at| (at * 31 + number * 7 + write * 13) as u8));
    value.into()
}

/// What clients were told is stored. A write whose outcome nobody learned leaves more than one
/// possibility.
#[derive(Clone, Debug, Default)]
pub struct Model(BTreeMap<Bytes, Vec<Option<Bytes>>>);

impl Model {
    /// Takes in writes that were acknowledged; no value is a delete.
    pub fn extend(&mut self, writes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        self.0
            .extend(writes.into_iter().map(|(key, value)| (key, vec![value])));
    }

    /// Takes in what is known of other keys.
    pub fn unite(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// What is known of the keys that are served, and of those that may wait; keys of probes left out.
    pub fn split(&self, may_wait: impl Fn(&[u8]) -> bool) -> (Self, Self) {
        let all = self.0.clone().into_iter();
        let quiet = all.filter(|(key, _)| !key.ends_with(PROBE));
        let (served, waiting) = quiet.partition(|(key, _)| !may_wait(key));
        (Self(served), Self(waiting))
    }

    /// Keys that were ever written.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.0.keys()
    }

    /// The one value of a key; `None` when it is absent, unknown or not certain.
    pub fn value(&self, key: &[u8]) -> Option<&Bytes> {
        match &self.0.get(key)?[..] {
            [Some(value)] => Some(value),
            _ => None,
        }
    }

    /// Claims that something else was written under one key: for tests of the judge.
    pub fn falsify(&mut self) {
        if let Some(value) = self
            .0
            .values_mut()
            .find(|possible| matches!(&possible[..], [Some(_)]))
        {
            *value = vec![Some(Bytes::from_static(b"what nobody wrote"))];
        }
    }

    /// What is wrong with finding this under a key.
    pub fn refutes(&self, key: &[u8], found: Option<&[u8]>) -> Option<Finding> {
        let none = vec![None];
        let possible = self.0.get(key).unwrap_or(&none);
        if possible.iter().any(|value| value.as_deref() == found) {
            return None;
        }
        let shown = String::from_utf8_lossy(&key[1.min(key.len())..]).into_owned();
        Some(Finding::not_safe(match (found, &possible[..]) {
            (None, _) => format!("P2: {shown:?} was acknowledged and is gone"),
            (Some(_), [None]) => format!("P1: {shown:?} was deleted, or never written, and is there"),
            (Some(_), _) => format!("P1: {shown:?} holds another value than was acknowledged"),
        }))
    }

    fn expects(&self) -> usize {
        self.0.len()
    }
}

/// Reads every key through a client.
pub async fn read_all(keyspace: &Keyspace, model: &Model, patient: bool) -> Vec<Finding> {
    let keyspace = match patient {
        true => keyspace.clone(),
        false => keyspace.with_timeout(SHORT_CALL_MAX),
    };
    let reads = stream::iter(model.keys().cloned()).map(|key| {
        let keyspace = keyspace.clone();
        async move { (keyspace.get(&key).await, key) }
    });
    let mut findings = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    let mut reads = reads.buffer_unordered(READS);
    while let Some((read, key)) = reads.next().await {
        match read {
            Ok(record) => {
                let found = record.as_ref().map(|record| &record.value[..]);
                findings.extend(model.refutes(&key, found));
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    if let Some(error) = failed.first() {
        let (some, all) = (failed.len(), model.expects());
        findings.push(Finding::unavailable(format!(
            "P3: {some} of {all} keys cannot be read: {error}"
        )));
    }
    findings
}

/// How one shard was probed.
#[derive(Debug, Default)]
struct Seen {
    first_ok: Option<Instant>,
    longest: Duration,
    findings: Vec<Finding>,
    /// What the probe's own key may hold: the last value acknowledged, and those of writes whose
    /// outcome nobody learned.
    acknowledged: Vec<Option<Bytes>>,
    unsure: Vec<Option<Bytes>>,
    last_error: String,
}

/// Probes of some shards, which write and read all the time.
pub struct Probes {
    stop: watch::Sender<bool>,
    shards: Vec<(Bytes, Arc<Mutex<Seen>>, JoinHandle<()>)>,
}

impl Probes {
    /// Begins to probe: one probe per sample, which writes a key beside the first of its keys and
    /// reads the others in turn. `before` is what earlier probes left under their keys.
    pub fn start(keyspace: &Keyspace, model: &Arc<Model>, before: &Model, samples: Vec<Vec<Bytes>>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let shards = samples.into_iter().map(|sample| {
            let own = Bytes::from([&sample[0][..], PROBE].concat());
            let seen = Arc::new(Mutex::new(Seen {
                acknowledged: before.0.get(&own).cloned().unwrap_or_else(|| vec![None]),
                ..Seen::default()
            }));
            let probe = Probe {
                keyspace: keyspace.clone(),
                model: model.clone(),
                own: own.clone(),
                sample,
                seen: seen.clone(),
            };
            let task = tokio::spawn(probe.run(stopped.clone()));
            (own, seen, task)
        });
        let shards = shards.collect();
        Self { stop, shards }
    }

    /// When the last of the shards answered for the first time; an error says who has not, and why.
    ///
    /// # Errors
    /// Some shard has not answered yet.
    pub fn answered(&self) -> Result<Instant, String> {
        let mut last = None;
        for (key, seen, _) in &self.shards {
            let seen = seen.lock();
            match seen.first_ok {
                Some(at) => last = last.max(Some(at)),
                None => {
                    return Err(format!(
                        "the shard of {:?} does not answer: {}",
                        String::from_utf8_lossy(key),
                        seen.last_error
                    ));
                }
            }
        }
        last.ok_or_else(|| "nothing is probed".to_owned())
    }

    /// Ends the probes. Returns what they found wrong, the longest that one took, and what their own
    /// keys may hold.
    pub async fn finish(self) -> (Vec<Finding>, Duration, Model) {
        self.stop.send_replace(true);
        let (mut findings, mut longest, mut model) = (Vec::new(), Duration::ZERO, Model::default());
        for (key, seen, task) in self.shards {
            if task.await.is_err() {
                findings.push(Finding::unavailable("P6: a probe panicked"));
            }
            let mut seen = seen.lock();
            findings.append(&mut seen.findings);
            longest = longest.max(seen.longest);
            let mut possible = std::mem::take(&mut seen.acknowledged);
            possible.append(&mut seen.unsure);
            model.0.insert(key, possible);
        }
        (findings, longest, model)
    }
}

struct Probe {
    keyspace: Keyspace,
    model: Arc<Model>,
    own: Bytes,
    sample: Vec<Bytes>,
    seen: Arc<Mutex<Seen>>,
}

impl Probe {
    async fn run(self, mut stopped: watch::Receiver<bool>) {
        for round in 0.. {
            let begun = now();
            let ended = tokio::select! {
                biased;
                well = self.once(round) => Some(well),
                _ = stopped.wait_for(|stopped| *stopped) => None,
            };
            {
                let mut seen = self.seen.lock();
                if seen.first_ok.is_some() {
                    seen.longest = seen.longest.max(begun.elapsed());
                }
                if ended == Some(true) {
                    seen.first_ok.get_or_insert(now());
                }
            }
            if ended.is_none() || *stopped.borrow() {
                return;
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    /// One write and one read. Whether both were done.
    async fn once(&self, round: u64) -> bool {
        let value = value(round, round, 40);
        // If the probe ends meanwhile, nobody learns what became of it.
        self.seen.lock().unsure.push(Some(value.clone()));
        match self.keyspace.put(&self.own, value.clone()).await {
            Ok(_) => {
                let mut seen = self.seen.lock();
                seen.unsure.pop();
                seen.acknowledged = vec![Some(value)];
            }
            Err(error) => {
                let mut seen = self.seen.lock();
                seen.last_error = error.to_string();
                if *error.kind() != ErrorKind::OutcomeUnknown {
                    seen.unsure.pop();
                }
                return false;
            }
        }
        let key = &self.sample[round as usize % self.sample.len()];
        match self.keyspace.get(key).await {
            Ok(record) => {
                let found = record.as_ref().map(|record| &record.value[..]);
                if let Some(finding) = self.model.refutes(key, found) {
                    self.seen.lock().findings.push(finding);
                }
                true
            }
            Err(error) => {
                self.seen.lock().last_error = error.to_string();
                false
            }
        }
    }
}

/// Some keys of each half of the keyspace, which is a shard.
pub fn samples(model: &Model) -> Vec<Vec<Bytes>> {
    let (low, high): (Vec<Bytes>, Vec<Bytes>) = model.keys().cloned().partition(|key| key[0] < 0x80);
    [low, high]
        .map(|keys| keys.into_iter().step_by(7).collect())
        .into()
}

/// Reads the map from the meta shard, linearizably, at whichever node leads it.
///
/// # Errors
/// No node did.
pub async fn read_meta(network: &Network, addrs: &[String]) -> anyhow::Result<()> {
    for addr in addrs {
        let Some(node) = network.node(addr) else { continue };
        let Some(member) = node.member() else { continue };
        let request = v1::PeerRequest {
            cluster_id: member.cluster_id(),
            body: Some(peer_request::Body::Directory(v1::PeerDirectoryRequest {
                newer_than: 0,
                from_meta_shard: true,
            })),
            ..Default::default()
        };
        if let Some(peer_response::Body::Directory(_)) = Peers(node).handle(request).await.body {
            return Ok(());
        }
    }
    bail!("the meta shard does not answer")
}

/// Where a shard is led, by the nodes' own word.
pub fn leader_of(network: &Network, addrs: &[String], shard_id: ShardId) -> Option<usize> {
    addrs.iter().position(|addr| {
        let member = network.node(addr).and_then(|node| node.member());
        let replica = member.and_then(|member| member.replicas().get(shard_id));
        replica.is_some_and(|replica| replica.is_leader())
    })
}

/// The map as a node that runs knows it.
///
/// # Errors
/// No node runs and belongs to a cluster.
pub fn directory(network: &Network, addrs: &[String]) -> anyhow::Result<v1::Directory> {
    let members = addrs.iter().filter_map(|addr| network.node(addr)?.member());
    let newest = members
        .map(|member| member.directory())
        .max_by_key(|map| map.version);
    newest.context("no node belongs to a cluster")
}

/// Whether every node says that nothing is wrong.
///
/// # Errors
/// What one of them says.
pub async fn all_say_ok(network: &Network, addrs: &[String]) -> anyhow::Result<()> {
    for addr in addrs {
        let node = network.node(addr).with_context(|| format!("{addr} is off"))?;
        let told = |error: v1::Error| anyhow::anyhow!("{addr}: {}", error.message);
        let status = Front(node).cluster_status().await.map_err(told)?;
        ensure!(
            status.health() == v1::Health::Ok,
            "{addr} says: {}",
            status.summary
        );
    }
    Ok(())
}

/// Nodes that vote in a shard, by address.
fn voters(shard: &v1::ShardDescriptor) -> Vec<&str> {
    let votes = |replica: &&v1::ReplicaDescriptor| replica.role() == v1::ReplicaRole::Voter;
    let voters = shard.replicas.iter().filter(votes);
    voters.map(|replica| &replica.addr[..]).collect()
}

/// Whether all replicas of every shard have the same digest at the same entry.
///
/// # Errors
/// How two differ, or why one cannot say.
pub async fn digests_agree(network: &Network, addrs: &[String]) -> anyhow::Result<()> {
    for shard in directory(network, addrs)?.shards {
        let mut first: Option<v1::ReplicaDigest> = None;
        let voters = voters(&shard);
        ensure!(
            voters.len() == addrs.len(),
            "shard {} has the voters {voters:?}",
            shard.shard_id
        );
        for addr in voters {
            let node = network.node(addr).with_context(|| format!("{addr} is off"))?;
            let request = v1::GetReplicaDigestRequest {
                shard_id: shard.shard_id,
            };
            let digest = Front(node).replica_digest(request).await;
            let digest = digest.map_err(|error| anyhow::anyhow!("{addr}: {}", error.message))?;
            match &first {
                None => first = Some(digest),
                Some(other) => ensure!(
                    *other == digest,
                    "shard {}: {addr} has {digest:?}, another {other:?}",
                    shard.shard_id
                ),
            }
        }
    }
    Ok(())
}

/// What a replica holds: version and value of each stored key.
type Held = BTreeMap<Bytes, (u64, Bytes)>;

/// How often replicas are read that go on applying entries meanwhile.
const READ_ATTEMPTS: u32 = 20;
const READ_PAUSE: Duration = Duration::from_millis(50);

/// What each voter of a shard holds.
async fn read_voters(network: &Network, shard: &v1::ShardDescriptor) -> anyhow::Result<Vec<(String, Held)>> {
    let mut held = Vec::new();
    for addr in voters(shard) {
        let holds = read_replica(network, addr, shard.shard_id).await?;
        held.push((addr.to_owned(), holds));
    }
    Ok(held)
}

/// The last entry that each voter of a shard has applied.
async fn applied(network: &Network, shard: &v1::ShardDescriptor) -> anyhow::Result<Vec<u64>> {
    let mut applied = Vec::new();
    for addr in voters(shard) {
        let node = network.node(addr).with_context(|| format!("{addr} is off"))?;
        let status = Front(node).node_status().await;
        let status = status.map_err(|error| anyhow::anyhow!("{addr}: {}", error.message))?;
        let of_shard = |replica: &&v1::ReplicaStatus| replica.shard_id == shard.shard_id;
        let replica = status.replicas.iter().find(of_shard);
        applied.push(replica.context("no replica of the shard")?.applied_index);
    }
    Ok(applied)
}

/// Reads everything from every replica and compares it with what clients were told, and the replicas
/// with one another. Returns how many records were read.
///
/// # Errors
/// What is wrong, or why a replica cannot be read.
pub async fn every_replica_holds(
    network: &Network,
    addrs: &[String],
    keyspace: u32,
    model: &Model,
) -> Result<usize, Finding> {
    let cannot = |error: anyhow::Error| Finding::degraded(format!("P4: {error:#}"));
    let mut records = 0;
    for shard in directory(network, addrs).map_err(cannot)?.shards {
        // They are read one after the other, and not all is quiet: the driver goes on writing to the map, and a
        // write whose client gave up may arrive yet. At one entry nothing may differ.
        let mut attempts = READ_ATTEMPTS;
        let held = loop {
            let before = applied(network, &shard).await.map_err(cannot)?;
            let held = read_voters(network, &shard).await.map_err(cannot)?;
            let after = applied(network, &shard).await.map_err(cannot)?;
            let at_one_entry = before == after && after.iter().all(|index| *index == after[0]);
            attempts -= 1;
            let differs = |(_, other): &&(String, Held)| *other != held[0].1;
            match held.iter().find(differs) {
                None => break held,
                Some(_) if attempts > 0 && !at_one_entry => tokio::time::sleep(READ_PAUSE).await,
                Some((addr, _)) => {
                    let id = shard.shard_id;
                    return Err(Finding::not_safe(format!(
                        "P4: shard {id}: {addr} does not hold what another replica does"
                    )));
                }
            }
        };
        for (addr, held) in &held {
            records += held.len();
            if shard.shard_id != META_SHARD {
                compare(held, &shard, keyspace, model, addr)?;
            }
        }
    }
    Ok(records)
}

fn compare(
    held: &Held,
    shard: &v1::ShardDescriptor,
    keyspace: u32,
    model: &Model,
    addr: &str,
) -> Result<(), Finding> {
    let on = |finding: Finding| Finding {
        why: format!("{} (on {addr})", finding.why),
        ..finding
    };
    let range = KeyRange::of(shard);
    for key in model.keys() {
        let stored = stored_key(keyspace, key);
        if range.contains(&stored) {
            let found = held.get(&stored).map(|(_, value)| &value[..]);
            model
                .refutes(key, found)
                .map_or(Ok(()), |finding| Err(on(finding)))?;
        }
    }
    let own = KeyRange::of_keyspace(keyspace);
    for (stored, (_, value)) in held.iter().filter(|(stored, _)| own.contains(stored)) {
        let found = model.refutes(&stored[4..], Some(value));
        found.map_or(Ok(()), |finding| Err(on(finding)))?;
    }
    Ok(())
}

async fn read_replica(network: &Network, addr: &str, shard_id: ShardId) -> anyhow::Result<Held> {
    let told = |error: v1::Error| anyhow::anyhow!("shard {shard_id} on {addr}: {}", error.message);
    let node = network.node(addr).with_context(|| format!("{addr} is off"))?;
    let request = v1::ReadReplicaRequest {
        shard_id,
        ..Default::default()
    };
    let mut pages = Front(node).read_replica(request).await.map_err(told)?;
    let mut held = Held::new();
    while let Some(page) = pages.try_next().await.map_err(told)? {
        let records = page.records.into_iter();
        held.extend(records.map(|record| (record.key, (record.version, record.value))));
    }
    Ok(held)
}

/// The ledger of a node.
pub fn ledger(node: &Arc<Node>) -> Vec<v1::DamageEvent> {
    node.health().events()
}

/// An entry of the ledger, for people.
pub fn show(event: &v1::DamageEvent) -> String {
    let shard = match event.shard_id {
        0 => String::new(),
        shard => format!(" of shard {shard}"),
    };
    format!(
        "{}{shard}: {}, {} ({})",
        event.structure, event.kind, event.position, event.action
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Verdict;

    #[test]
    fn a_model_refutes_what_was_not_written() {
        let (put, deleted, unsure) = (key(1), key(2), key(3));
        let mut model = Model::default();
        model.extend([(put.clone(), Some(value(1, 1, 9))), (deleted.clone(), None)]);
        model.0.insert(unsure.clone(), vec![None, Some(value(3, 1, 9))]);
        let right = value(1, 1, 9);
        let wrong = value(1, 2, 9);
        for (key, found, starts) in [
            (&put, Some(&right), None),
            (&put, Some(&wrong), Some("P1")),
            (&put, None, Some("P2")),
            (&deleted, None, None),
            (&deleted, Some(&right), Some("P1")),
            (&unsure, None, None),
            (&unsure, Some(&value(3, 1, 9)), None),
            (&unsure, Some(&wrong), Some("P1")),
            (&key(9), None, None),
            (&key(9), Some(&wrong), Some("P1")),
        ] {
            let finding = model.refutes(key, found.map(|found| &found[..]));
            let told = finding.as_ref().map(|finding| &finding.why[..2]);
            assert_eq!(told, starts, "{key:?}");
            assert!(finding.is_none_or(|finding| finding.verdict == Verdict::Unsafe));
        }
        assert!(model.refutes(&put, Some(&right)).is_none());
        model.falsify();
        assert!(model.refutes(&put, Some(&right)).is_some());
    }

    #[test]
    fn samples_are_of_both_shards() {
        let mut model = Model::default();
        model.extend((0..100).map(|number| (key(number), None)));
        let samples = samples(&model);
        assert_eq!(samples.len(), 2);
        assert!(samples[0].iter().all(|key| key[0] < 0x80));
        assert!(samples[1].iter().all(|key| key[0] >= 0x80));
        assert!(samples.iter().all(|keys| keys.len() > 5));
    }
}
