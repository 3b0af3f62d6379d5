//! The register workload: a few keys over several shards, read, written and conditionally
//! written by concurrent clients while faults are injected; then judged.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use reelkv::clock::now;
use reelkv_proto::v1::{self, condition, error::Kind, request::Op, response};

use crate::history::{Event, Operation, Outcome, fingerprint};
use crate::linearizable::{Verdict, check};
use crate::sim::{Cluster, Fault, Nemesis, Network, Settings};
use crate::versions;

/// How long a client waits for one operation.
const TIMEOUT_MS: u32 = 3_000;

/// The shape of one run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Everything follows from it.
    pub seed: u64,
    /// Virtual seconds of load.
    pub seconds: u64,
    /// Concurrent clients.
    pub clients: usize,
    /// Keys.
    pub keys: usize,
    /// The cluster.
    pub settings: Settings,
}

impl Run {
    /// The ordinary run of a seed.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            seed,
            seconds: 20,
            clients: 6,
            keys: 6,
            settings: Settings::default(),
        }
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// What clients saw.
    pub history: Vec<Event>,
    /// Faults that took effect.
    pub faults: std::collections::BTreeMap<Fault, usize>,
    /// Hash of the history.
    pub fingerprint: u64,
}

struct Shared {
    network: Network,
    addrs: Vec<String>,
    keyspace_id: u32,
    started: reelkv::clock::Instant,
    history: Mutex<Vec<Event>>,
    next_value: Mutex<u64>,
}

/// Runs one seed from start to verdict.
///
/// # Errors
/// The history is not linearizable (or could not be judged), a node did not start, or the
/// replicas do not agree in the end.
pub async fn run(run: Run) -> anyhow::Result<Report> {
    let mut rng = SmallRng::seed_from_u64(run.seed);
    let mut cluster = Cluster::new(run.settings, rng.next_u64());
    let keyspace = cluster.start("register").await?;
    let shared = Arc::new(Shared {
        network: cluster.network().clone(),
        addrs: cluster.addrs(),
        keyspace_id: keyspace.keyspace_id,
        started: now(),
        history: Mutex::default(),
        next_value: Mutex::new(0),
    });
    let until = now() + Duration::from_secs(run.seconds);
    let clients: Vec<_> = (0..run.clients)
        .map(|client| {
            tokio::spawn(client_loop(
                shared.clone(),
                client,
                run.keys,
                until,
                rng.next_u64(),
            ))
        })
        .collect();
    let mut nemesis = Nemesis::new(SmallRng::seed_from_u64(rng.next_u64()));
    while now() < until {
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..4_000))).await;
        nemesis.strike(&mut cluster).await?;
    }
    cluster.network().heal();
    for client in clients {
        client.await.context("a client ended badly")?;
    }
    cluster
        .agree()
        .await
        .context("after the run the replicas do not agree")?;
    // Everything acknowledged is still there after all nodes lost power at once.
    for position in 0..run.settings.nodes {
        cluster.crash(position);
    }
    for position in 0..run.settings.nodes {
        cluster.start_node(position).await?;
    }
    cluster
        .agree()
        .await
        .context("after the restart the replicas do not agree")?;
    for key in 0..run.keys {
        final_read(&shared, key).await?;
    }
    // No node took its own log for that of another: nothing was forgotten in this run.
    for position in 0..run.settings.nodes {
        let member = cluster.node(position).and_then(|node| node.member());
        let number = member.context("a node is no member at the end")?.node_id();
        anyhow::ensure!(
            number == position as u64 + 1,
            "node {} became node {number}",
            position + 1
        );
    }
    let history = std::mem::take(&mut *shared.history.lock());
    judge(&history, run.keys)?;
    for position in 0..run.settings.nodes {
        cluster.crash(position);
    }
    Ok(Report {
        fingerprint: fingerprint(&history),
        history,
        faults: nemesis.injected,
    })
}

fn judge(history: &[Event], keys: usize) -> anyhow::Result<()> {
    for key in 0..keys {
        let events: Vec<Event> = history.iter().filter(|event| event.key == key).copied().collect();
        if let Err(contradiction) = versions::check(&events) {
            let shown: Vec<_> = [Some(contradiction.event), contradiction.other]
                .into_iter()
                .flatten()
                .collect();
            let shown: Vec<_> = shown.iter().map(|index| events[*index]).collect();
            bail!("key {key} is not linearizable: {contradiction}: {shown:#?}");
        }
        match check(&events) {
            // Given up: the versions have been a witness already.
            Verdict::Linearizable | Verdict::Unknown => {}
            Verdict::Violation { stuck } => {
                let stuck: Vec<_> = stuck.iter().map(|index| events[*index]).collect();
                bail!("key {key} is not linearizable; no place for {stuck:#?}");
            }
        }
    }
    Ok(())
}

async fn client_loop(
    shared: Arc<Shared>,
    client: usize,
    keys: usize,
    until: reelkv::clock::Instant,
    seed: u64,
) {
    let mut rng = SmallRng::seed_from_u64(seed);
    // The last version and value this client saw of each key, for conditional writes.
    let mut seen = vec![None; keys];
    while now() < until {
        let key = rng.random_range(0..keys);
        let operation = match rng.random_range(0..10) {
            0..5 => Operation::Read,
            5..8 => Operation::Write(shared.fresh_value()),
            _ => match seen[key] {
                Some((_, value)) => Operation::WriteIf {
                    expected: value,
                    new: shared.fresh_value(),
                },
                None => Operation::Read,
            },
        };
        let addr = &shared.addrs[rng.random_range(0..shared.addrs.len())];
        if let Some(newest) = shared.perform(client, key, operation, seen[key], addr).await {
            seen[key] = newest;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(1..60))).await;
    }
}

/// After the run every key must be readable.
async fn final_read(shared: &Shared, key: usize) -> anyhow::Result<()> {
    for attempt in 0..40 {
        let addr = &shared.addrs[attempt % shared.addrs.len()];
        if shared
            .perform(usize::MAX, key, Operation::Read, None, addr)
            .await
            .is_some()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bail!("key {key} cannot be read though nothing is wrong any more")
}

type Seen = Option<(u64, u64)>;

impl Shared {
    fn fresh_value(&self) -> u64 {
        let mut next = self.next_value.lock();
        *next += 1;
        *next
    }

    fn elapsed_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Performs an operation and records it. Returns the key's newest version and value where
    /// the answer tells them.
    async fn perform(
        &self,
        client: usize,
        key: usize,
        operation: Operation,
        seen: Seen,
        addr: &str,
    ) -> Option<Seen> {
        let invoked_us = self.elapsed_us();
        let request = self.request(key, operation, seen);
        let limit = Duration::from_millis(u64::from(TIMEOUT_MS) + 500);
        let response = tokio::time::timeout(limit, self.network.request(addr, request)).await;
        let result = response.ok().flatten().and_then(|response| response.result);
        let (outcome, version, newest) = interpret(operation, result);
        let completed_us = if outcome == Outcome::Unknown {
            u64::MAX
        } else {
            self.elapsed_us()
        };
        self.history.lock().push(Event {
            client,
            key,
            operation,
            outcome,
            version,
            invoked_us,
            completed_us,
        });
        newest
    }

    fn request(&self, key: usize, operation: Operation, seen: Seen) -> v1::Request {
        // Keys spread over the first byte, and so over the shards.
        let key = Bytes::copy_from_slice(&[(key * 41 % 256) as u8, key as u8]);
        let keyspace_id = self.keyspace_id;
        let put = |value: u64, condition| {
            let value = Bytes::copy_from_slice(&value.to_be_bytes());
            let crc = reelkv_proto::checksum::client_crc(keyspace_id, &key, &value);
            let key = key.clone();
            Op::Put(v1::PutRequest {
                keyspace_id,
                key,
                value,
                client_crc: Some(crc),
                condition,
                ..Default::default()
            })
        };
        let op = match operation {
            Operation::Read => Op::Get(v1::GetRequest {
                keyspace_id,
                key: key.clone(),
                ..Default::default()
            }),
            Operation::Write(value) => put(value, None),
            Operation::WriteIf { new, .. } => {
                let kind = match seen {
                    Some((version, _)) if version > 0 => condition::Kind::Version(version),
                    _ => condition::Kind::Absent(true),
                };
                put(new, Some(v1::Condition { kind: Some(kind) }))
            }
        };
        v1::Request {
            id: 1,
            timeout_ms: TIMEOUT_MS,
            op: Some(op),
        }
    }
}

/// What the client learned: the outcome, the version the answer named, and the key's newest
/// version and value where the answer tells them.
fn interpret(operation: Operation, result: Option<response::Result>) -> (Outcome, Option<u64>, Option<Seen>) {
    let written = match operation {
        Operation::Write(value) | Operation::WriteIf { new: value, .. } => Some(value),
        Operation::Read => None,
    };
    match (result, written) {
        (Some(response::Result::Get(get)), None) => {
            let Some(record) = get.record else {
                return (Outcome::Value(0), Some(0), Some(Some((0, 0))));
            };
            let value = record.value[..]
                .try_into()
                .map(u64::from_be_bytes)
                .unwrap_or(u64::MAX);
            (
                Outcome::Value(value),
                Some(record.version),
                Some(Some((record.version, value))),
            )
        }
        (Some(response::Result::Write(write)), Some(value)) => (
            Outcome::Done,
            Some(write.version),
            Some(Some((write.version, value))),
        ),
        (Some(response::Result::Error(error)), _) => match error.kind {
            Some(Kind::ConditionFailed(failed)) => (Outcome::Refused, Some(failed.current_version), None),
            Some(Kind::OutcomeUnknown(_) | Kind::Internal(_)) | None => (Outcome::Unknown, None, None),
            _ => (Outcome::Failed, None, None),
        },
        _ => (Outcome::Unknown, None, None),
    }
}
