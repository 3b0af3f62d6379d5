//! Payloads that a replica's log lost: got back from this node itself or from the other voters, by log id
//! and CRC. Damage to payloads never ends a replica.
//!
//! Before a replica's Raft starts, it waits here for as long as it takes. A faulty entry goes on being asked
//! for until one of these is true, and nothing else is ever discarded because others do not have it:
//!
//! - Its payload was found, and is written again elsewhere.
//! - Another entry is committed in its place: the log is cut from there.
//! - It is at or below the replica's own checkpoint and nobody can deliver it: the tree stands for it, the
//!   log is purged.
//! - A voter's tree stands for it: its view is taken, whole (`view`), and the log purged.
//! - It may be the torn end of a write that was never acknowledged, and **every** other voter has said, twice,
//!   that it has no readable payload for it and never acknowledged it for sure: the log is cut from there.
//!
//! While a replica runs, [`Restorer`] does the first of these for whoever reads the log, within a bounded
//! time, and for the scrub.

mod answer;
mod restore;
mod view;
mod voters;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use reelkv_proto::v1::{self, PayloadState};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::ReplicaContext;
use crate::health::Structure;
use crate::mutants::Mutant;
use crate::raft::ReplicaStore;
use crate::wal::{FaultyEntry, WalGroup};
pub use answer::payload_of;
pub(super) use restore::{Restorer, tell};
use voters::{Answer, Asked, other_voters};

const PAUSE_MIN: Duration = Duration::from_millis(200);
/// A voter that has what is missing may be back at any moment, and the shard waits for that.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What became of a faulty entry in one round of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// It is no longer faulty.
    Resolved,
    /// Nobody could help. All others stay as they were.
    Wait,
}

/// Heals what can be healed and waits for the rest, without end, or until it is cancelled.
///
/// # Errors
/// The log is poisoned, or the replica lost more than payloads: it must be replaced.
pub(super) async fn heal(
    context: &Arc<ReplicaContext>,
    group: WalGroup,
    birth: &v1::CreateReplicaRequest,
    cancelled: &CancellationToken,
) -> io::Result<()> {
    let healer = Healer {
        context,
        group,
        birth,
        store: OnceCell::new(),
    };
    let healed = tokio::select! {
        biased;
        () = cancelled.cancelled() => Ok(()),
        healed = healer.run() => healed,
    };
    // Raft opens it again, as its own.
    if let Some(store) = healer.store.get() {
        store.close().await;
    }
    healed
}

struct Healer<'a> {
    context: &'a Arc<ReplicaContext>,
    group: WalGroup,
    birth: &'a v1::CreateReplicaRequest,
    /// The applied state, once it was needed.
    store: OnceCell<Arc<ReplicaStore>>,
}

impl Healer<'_> {
    async fn run(&self) -> io::Result<()> {
        let id = self.group.id();
        let mut pause = PAUSE_MIN;
        while let Some(first) = self.group.faulty().first().copied() {
            if let Some(reason) = self.group.lost() {
                return Err(io::Error::other(reason));
            }
            tell(self.context, &self.group);
            match self.round().await? {
                Round::Resolved => pause = PAUSE_MIN,
                Round::Wait => {
                    tracing::info!(%id, entry = %first.log_id, "nobody can deliver a damaged entry of the log yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        self.context.health.repaired(id.shard_id, Structure::Wal);
        Ok(())
    }

    /// Asks for every faulty entry once, from the first on.
    async fn round(&self) -> io::Result<Round> {
        let mut round = Round::Wait;
        for faulty in self.group.faulty() {
            // What was done for one may have done for others.
            if !self.group.is_whole(faulty.log_id) && self.resolve(faulty).await? == Round::Resolved {
                round = Round::Resolved;
            }
        }
        Ok(round)
    }

    async fn resolve(&self, faulty: FaultyEntry) -> io::Result<Round> {
        if self.group.heal_from_here(faulty.log_id).await? {
            tracing::info!(id = %self.group.id(), entry = %faulty.log_id, "a log entry was healed from this node");
            return Ok(Round::Resolved);
        }
        let asked = self.ask(faulty).await?;
        if asked.restored {
            return Ok(Round::Resolved);
        }
        if asked
            .answers
            .iter()
            .any(|answer| answer.state == PayloadState::Superseded)
        {
            return self.cut(faulty, "another entry is committed in its place").await;
        }
        if self.purge_to_checkpoint(faulty).await? || self.take_view(faulty, &asked).await? {
            return Ok(Round::Resolved);
        }
        // Asked again after all had answered: at that moment none of them had it, and nobody could
        // send it to one that had answered before.
        let may_be_cut = faulty.perhaps_torn || Mutant::CountDamagedAsDontHave.is_on();
        let nobody = may_be_cut && is_unanimous(&asked);
        match nobody && is_unanimous(&self.ask(faulty).await?) {
            true => self.cut(faulty, "it is torn, and no voter has it").await,
            false => Ok(Round::Wait),
        }
    }

    async fn ask(&self, faulty: FaultyEntry) -> io::Result<Asked> {
        let voters = other_voters(&self.group, faulty.log_id.index).await?;
        voters.restore(self.context, &self.group, faulty).await
    }

    async fn cut(&self, faulty: FaultyEntry, why: &str) -> io::Result<Round> {
        self.group.cut_from(faulty.log_id.index).await?;
        tracing::info!(id = %self.group.id(), entry = %faulty.log_id, why, "the log was cut from a damaged entry on");
        Ok(Round::Resolved)
    }
}

/// Whether every other voter has said that it has no readable payload and never acknowledged the entry
/// for sure. What is damaged may have been acknowledged.
fn is_unanimous(asked: &Asked) -> bool {
    let has_none = |answer: &Answer| matches!(answer.state, PayloadState::None | PayloadState::Torn);
    asked.answers.len() == asked.voters && asked.answers.iter().all(has_none)
}
