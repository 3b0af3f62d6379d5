//! Finds what checksums bless: records that were lost, are stale, or were wrong before they got one.
//!
//! The leader has a *marker* logged now and then ([`rounds`]). Every replica takes a view as it applies
//! one, cuts it into buckets, tells the others what these come to ([`ask`]) and asks them for theirs.
//! Each judges for itself, by the same rule ([`judge`]): what a majority of all voters holds is right.
//! A replica that holds something else, the leader too, hands its leadership over, believes its own
//! buckets no more and repairs them like any other damage. Without a majority nothing is changed; the
//! leader names the keys.
//!
//! What replicas hold is read through the engine and its cache: whether the device still has it is
//! the scrub's matter.

mod ask;
mod judge;
mod proofs;
mod rounds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use reelkv_proto::types::{KeyRange, ReplicaId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::replica::{Replica, transfer_leadership};
use crate::clock::now;
use crate::health::{Action, Damage, Kind, Structure};
use crate::mutants::Mutant;
use crate::raft::MarkedView;
use crate::shard::Spans;
use crate::storage::{Buckets, TreeError};
use judge::{Decided, Said, Standing};
use proofs::Proofs;
pub use rounds::{Verified, VerifiedVoter};

/// Readings kept for voters that ask a little late.
const READINGS_MAX: usize = 8;

/// What this replica holds at a marker.
struct Reading {
    index: u64,
    start: Bytes,
    said: Said,
    /// Where the next marker goes on; `None` at the end of the shard, or when nothing could be read.
    resume: Option<Bytes>,
    took: Duration,
}

/// What the voters hold at a marker, as this replica knows it.
struct Compared {
    index: u64,
    start: Bytes,
    resume: Option<Bytes>,
    took: Duration,
    decided: Decided,
    /// Buckets that somebody holds and nobody disputes, but too few hold.
    unproven_count: u64,
    /// The voters that answered.
    standings: BTreeMap<ReplicaId, Standing>,
    voters: BTreeSet<ReplicaId>,
}

/// How a replica compares with the others.
pub(super) struct Divergence {
    /// The last ones, oldest first.
    readings: watch::Sender<VecDeque<Arc<Reading>>>,
    compared: watch::Sender<Option<Arc<Compared>>>,
    proofs: Mutex<Proofs>,
    /// Held by the one who walks the shard with markers.
    walking: tokio::sync::Mutex<()>,
}

impl Default for Divergence {
    fn default() -> Self {
        Self {
            readings: watch::Sender::new(VecDeque::new()),
            compared: watch::Sender::new(None),
            proofs: Mutex::default(),
            walking: tokio::sync::Mutex::default(),
        }
    }
}

impl Divergence {
    /// Age of the oldest proof of a range, leaving out what is known to be in doubt; `None` while some
    /// of it was not proven since the start.
    pub fn oldest_proof(&self, range: &KeyRange, doubted: &Spans) -> Option<Duration> {
        self.proofs.lock().oldest(range, doubted)
    }
}

/// Compares this replica with the others at every marker, and has markers logged while it leads.
pub(super) async fn run(replica: Arc<Replica>, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = async { tokio::join!(follow(&replica), rounds::lead(&replica), rounds::catch_up(&replica)); } => {}
        () = stop.cancelled() => {}
    }
}

async fn follow(replica: &Replica) {
    let mut markers = replica.store().watch_marker();
    // The store owns the sender and lives as long as this task.
    while markers.changed().await.is_ok() {
        let Some(marked) = replica.store().marked_view() else {
            continue;
        };
        let replaced = marked.replaced;
        let reading = Arc::new(read(replica, marked).await);
        replica.divergence().readings.send_modify(|readings| {
            readings.push_back(reading.clone());
            readings.drain(..readings.len().saturating_sub(READINGS_MAX));
        });
        let compared = compare(replica, &reading).await;
        if let Err(error) = act(replica, replaced, &reading, &compared).await {
            tracing::error!(id = ?replica.id(), %error, "the log refused to record what was compared");
        }
        replica
            .divergence()
            .compared
            .send_replace(Some(Arc::new(compared)));
    }
}

/// Cuts a view into buckets. A replica that cannot read has nothing to say.
async fn read(replica: &Replica, marked: MarkedView) -> Reading {
    let began = now();
    let buckets = match (marked.view, &marked.range) {
        (Some(view), Some(range)) => {
            let proven = Spans::from(range.clone()).without(&marked.doubts.unproven);
            match view.buckets(range.clone(), proven.iter().collect()).await {
                Ok(buckets) => buckets,
                Err(TreeError::Closed) => Buckets::default(),
                Err(damage) => {
                    replica.store().found(&damage);
                    Buckets::default()
                }
            }
        }
        _ => Buckets::default(),
    };
    Reading {
        index: marked.index,
        start: marked.range.map(|range| range.start).unwrap_or_default(),
        said: Said {
            buckets: buckets.buckets,
            uncompared: marked.doubts.uncompared,
        },
        resume: buckets.resume,
        took: began.elapsed(),
    }
}

async fn compare(replica: &Replica, reading: &Reading) -> Compared {
    let voters: BTreeSet<ReplicaId> = crate::raft::metrics(replica.raft())
        .membership_config
        .membership()
        .voter_ids()
        .collect();
    let mut said = replica.ask_voters(reading.index).await;
    if voters.contains(&replica.id().replica_id) {
        said.insert(replica.id().replica_id, reading.said.clone());
    }
    let decided = judge::decide(&said, voters.len());
    let standings = said.iter().map(|(id, said)| (*id, decided.standing(said)));
    Compared {
        index: reading.index,
        start: reading.start.clone(),
        resume: reading.resume.clone(),
        took: reading.took,
        unproven_count: decided.unproven_count(said.values()),
        standings: standings.collect(),
        decided,
        voters,
    }
}

/// What a comparison means for this replica.
async fn act(
    replica: &Replica,
    replaced: u64,
    reading: &Reading,
    compared: &Compared,
) -> std::io::Result<()> {
    let store = replica.store();
    let own = compared.decided.standing(&reading.said);
    if !own.differs.is_empty() && !Mutant::IgnoreDigestMismatch.is_on() {
        if replica.is_leader() {
            transfer_leadership(replica.raft(), None).await;
        }
        replica.divergence().proofs.lock().void(&own.differs);
        store.distrust(replaced, &own.differs, reading.index).await?;
    }
    if !compared.decided.undecided.is_empty() && replica.is_leader() {
        name_undecided(replica, compared);
    }
    store.agreed(replaced, &own.agreed).await?;
    replica.divergence().proofs.lock().proven(&own.agreed);
    Ok(())
}

/// Told by the leader alone, once: see `server/events.rs`.
fn name_undecided(replica: &Replica, compared: &Compared) {
    let (health, id) = (&replica.context().health, replica.id());
    if health.is_open(id.shard_id, Structure::Digest) {
        return;
    }
    let (keys, index) = (&compared.decided.undecided, compared.index);
    let position = format!("{keys} at entry {index}: no majority of the voters holds the same");
    health.damaged(Damage::of_replica(
        (id.shard_id, id.replica_id),
        Structure::Digest,
        Kind::Differs,
        Action::Decide,
        position,
    ));
}
