//! Walks a shard with markers: now and then while there is anything to prove, and on demand.
//!
//! One marker's views are compared up to a bound in bytes; the next marker goes on where the leader's
//! reading ended. So a walk over much data takes many markers, and its reading at most one part in
//! twenty of the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reelkv_proto::types::{KeyRange, ReplicaId, Version};
use reelkv_proto::v1;

use super::Compared;
use super::judge::{Decided, Said};
use crate::clock::{Instant, now};
use crate::error;
use crate::health::Structure;
use crate::raft::Trust;
use crate::replica::senders::verify_at;
use crate::replica::{Replica, hint};
use crate::shard::{Control, Write, WriteKind};

/// A walk whose shard has not changed since begins after so many intervals only.
const IDLE_INTERVALS: u32 = 10;
/// Reading may take one part in so many of a walk that nobody waits for.
const WALK_SHARE: u32 = 20;
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the comparison at one marker may take.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Buckets that were compared.
    pub buckets: u64,
    /// Live records in those that a majority holds the same.
    pub records: u64,
    /// Buckets in which voters differ and no majority holds the same.
    pub undecided: u64,
    /// Buckets that nobody disputes but too few voters hold.
    pub unproven: u64,
    /// All voters.
    pub voters: BTreeMap<ReplicaId, VerifiedVoter>,
}

/// What a walk found of one voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedVoter {
    /// Whether it answered every time.
    pub answered: bool,
    /// Buckets in which it holds what the majority holds.
    pub agreed: u64,
    /// Buckets in which it holds something else.
    pub differing: u64,
}

impl Verified {
    fn add(&mut self, compared: &Compared) {
        let decided = &compared.decided;
        self.buckets += decided.buckets.len() as u64 + decided.undecided_count + compared.unproven_count;
        self.records += decided.records();
        self.undecided += decided.undecided_count;
        self.unproven += compared.unproven_count;
        for id in &compared.voters {
            let voter = self.voters.entry(*id).or_insert(VerifiedVoter {
                answered: true,
                agreed: 0,
                differing: 0,
            });
            match compared.standings.get(id) {
                Some(standing) => {
                    voter.agreed += standing.agreed_count;
                    voter.differing += standing.differing_count;
                }
                None => voter.answered = false,
            }
        }
    }

    /// Whether every voter was found to hold the same of everything.
    fn is_all_proven(&self) -> bool {
        let all = self.buckets;
        all > 0 && self.voters.values().all(|voter| voter.agreed == all)
    }
}

impl Decided {
    /// Buckets that voters say and that nobody disputes, but too few say.
    pub(super) fn unproven_count<'s>(&self, said: impl Iterator<Item = &'s Said>) -> u64 {
        let decided = self.spans();
        let all = said.flat_map(|said| &said.buckets);
        let starts = all.filter(|bucket| {
            let range = bucket.range();
            !decided.intersects(&range) && !self.undecided.intersects(&range)
        });
        starts
            .map(|bucket| &bucket.start)
            .collect::<std::collections::BTreeSet<_>>()
            .len() as u64
    }
}

/// The last walk over everything.
struct LastWalk {
    at: Instant,
    version: Version,
    all_proven: bool,
}

impl LastWalk {
    fn is_enough(&self, replica: &Replica, interval: Duration) -> bool {
        let unchanged = self.version == last_version(replica);
        self.all_proven && unchanged && self.at.elapsed() < interval * IDLE_INTERVALS
    }
}

fn last_version(replica: &Replica) -> Version {
    replica.store().with_control(Control::last_version)
}

/// Walks the shard now and then while this replica leads it.
pub(super) async fn lead(replica: &Arc<Replica>) {
    let interval_ms = replica.context().settings.marker_interval_ms.max(1);
    let interval = Duration::from_millis(interval_ms);
    // Replicas of a node do not all walk at once.
    let phase = replica.context().clock.random_u64() % interval_ms;
    tokio::time::sleep(Duration::from_millis(phase)).await;
    let mut last: Option<LastWalk> = None;
    loop {
        let enough = last
            .as_ref()
            .is_some_and(|last| last.is_enough(replica, interval));
        if replica.is_leader() && !enough {
            let at = now();
            match replica.verify(KeyRange::default(), true).await {
                Ok(found) => {
                    last = Some(LastWalk {
                        at,
                        version: last_version(replica),
                        all_proven: found.is_all_proven(),
                    });
                }
                Err(error) => {
                    let why = error.message;
                    tracing::debug!(id = ?replica.id(), why, "the voters were not all compared this time");
                }
            }
        }
        tokio::time::sleep(interval).await;
    }
}

/// Asks the leader to compare what this replica got from its peers, whenever it has got something.
pub(super) async fn catch_up(replica: &Arc<Replica>) {
    let mut trust = replica.store().watch_trust();
    loop {
        if replica.store().trust() == Trust::Trusted
            && !replica.store().uncompared().is_empty()
            && let Err(error) = ask_to_verify(replica).await
        {
            // The leader's next walk will do.
            let why = error.message;
            tracing::debug!(id = ?replica.id(), why, "what came from peers was not compared at once");
        }
        if trust.changed().await.is_err() {
            return;
        }
    }
}

async fn ask_to_verify(replica: &Replica) -> Result<(), v1::Error> {
    for range in replica.store().uncompared().iter() {
        if replica.is_leader() {
            replica.verify(range, true).await?;
            continue;
        }
        let leader = hint::known_leader(replica.raft());
        let (_, leader) = leader.ok_or_else(|| error::unavailable("no leader is known"))?;
        verify_at(replica.context(), &leader.addr, replica.id().shard_id, range).await?;
    }
    Ok(())
}

impl Replica {
    /// Has the voters of the shard that this replica leads compare all they hold of a range; at leisure,
    /// or as fast as they can.
    ///
    /// # Errors
    /// `NotLeader`, or `Unavailable` when a marker could not be logged or not be compared in time.
    pub async fn verify(&self, range: KeyRange, at_leisure: bool) -> Result<Verified, v1::Error> {
        let _one_at_a_time = self.divergence().walking.lock().await;
        let mut found = Verified::default();
        let mut start = range.start.clone();
        loop {
            let compared = self.mark(start).await?;
            found.add(&compared);
            match &compared.resume {
                Some(resume) if range.end.is_empty() || *resume < range.end => start = resume.clone(),
                Some(_) => break,
                None => {
                    self.walked_to_the_end(&found, &range);
                    break;
                }
            }
            if at_leisure {
                tokio::time::sleep(compared.took * WALK_SHARE).await;
            }
        }
        Ok(found)
    }

    /// Nobody differs any more in what was named.
    fn walked_to_the_end(&self, found: &Verified, range: &KeyRange) {
        if *range == KeyRange::default() && found.undecided == 0 && found.unproven == 0 {
            self.context()
                .health
                .repaired(self.id().shard_id, Structure::Digest);
        }
    }

    /// Has a marker logged and waits until this replica has compared what the voters hold at it.
    async fn mark(&self, start: Bytes) -> Result<Arc<Compared>, v1::Error> {
        let within = self.store().with_control(|control| control.range().clone());
        let start = start.max(within.start);
        let mut compared = self.divergence().compared.subscribe();
        let applied = self.store().with_control(Control::applied);
        let before = applied.map_or(0, |applied| applied.index);
        let marker = Write {
            token: None,
            kind: WriteKind::Marker { start: start.clone() },
        };
        self.write(marker, WRITE_TIMEOUT).await?;
        let is_it = |last: &Option<Arc<Compared>>| {
            last.as_ref()
                .is_some_and(|last| last.index > before && last.start == start)
        };
        let waited = tokio::time::timeout(COMPARE_TIMEOUT, compared.wait_for(is_it)).await;
        let found = waited
            .ok()
            .and_then(Result::ok)
            .and_then(|found| (*found).clone());
        found.ok_or_else(|| {
            let shard_id = self.id().shard_id;
            error::unavailable(format!("shard {shard_id}: the voters were not compared in time"))
        })
    }
}
