//! The last resort for a shard that has lost a majority of its voters for good: makes one replica, in
//! the data directory of a node that does not run, the shard's only voter.
//!
//! [`examine`] changes nothing. It says what this replica has, what would be lost, and refuses whatever
//! would cost data without saying so. [`Examined::carry_out`] then appends to the replica's log, durably:
//!
//! 1. its own committed vote in a new term, far beyond any that was seen: whatever of the old voters comes
//!    back does not outrank it;
//! 2. a membership of this replica alone, and entries that skip versions and replica ids (`entries`): what the lost
//!    voters gave out is not given out again for something else.
//!
//! Nothing already in the log is changed, so for openraft the replica is one that led in that term and
//! was restarted. It elects itself in the next term and commits its whole log, also entries that nobody
//! knows to be committed: each was proposed once, and some may have been acknowledged. Nodes declared
//! lost are noted (`lost_nodes`): this one does not wait for them when it starts, and one that comes back with its old
//! directory is told that it was replaced.

mod entries;
mod lost_nodes;
mod replica;
mod report;
mod survey;

use std::io;
use std::path::PathBuf;

use reelkv_proto::types::ShardId;
use tokio::sync::oneshot;

pub(super) use lost_nodes::{FILE as LOST_NODES_FILE, kept as lost_nodes_file, load as lost_nodes};
pub use report::{Report, VoterReport, VoterState};

use self::entries::SKIPPED_VERSIONS;
use self::replica::{Found, OfflineReplica};
use super::identity::{self, Identity, Loaded};
use crate::clock::SharedClock;
use crate::disk::SharedDisk;
use crate::health::{Action, Damage, Health, Kind, Structure};
use crate::raft::transport::SharedTransport;
use crate::wal::{Vote, Wal, WalConfig};

/// The new term is this much beyond any that is known: what comes back of the old voters holds its
/// elections below it.
const TERMS_SKIPPED: u64 = 1 << 20;

/// Why a shard is not recovered; one line. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    fn because(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// What is to be recovered.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// Of a node that does not run.
    pub data_dir: PathBuf,
    /// The shard.
    pub shard_id: ShardId,
    /// Ask nobody: all other voters are declared lost.
    pub offline: bool,
}

/// A replica that may be made the shard's only voter.
pub struct Examined {
    options: RecoverOptions,
    identity: Identity,
    disk: SharedDisk,
    clock: SharedClock,
    wal: Wal,
    replica: OfflineReplica,
    report: Report,
    _lock: Box<dyn Send + Sync>,
}

/// Looks at a replica and at what is left of its shard. Changes nothing.
///
/// # Errors
/// Why it must not be the shard's only voter.
pub async fn examine(
    options: RecoverOptions,
    disk: SharedDisk,
    clock: SharedClock,
    transport: SharedTransport,
) -> Result<Examined, Refused> {
    let dir = &options.data_dir;
    let (lock, identity) = open_directory(&disk, dir)?;
    let wal_dir = dir.join("wal");
    if !disk.exists(&wal_dir).map_err(Refused::because)? {
        return Err(Refused(format!("{}: the log is missing", dir.display())));
    }
    let wal_identity = crate::wal::Identity {
        cluster_id: identity.cluster_id,
        node_id: identity.node_id,
    };
    let opened = Wal::open(disk.clone(), wal_dir, WalConfig::default(), wal_identity).await;
    let (wal, recovery) = opened.map_err(Refused::because)?;
    let examined = async {
        let replica = Found::find(&wal, &recovery, options.shard_id)?;
        let replica = replica.verify(&disk, dir).await?;
        let known = match options.offline {
            true => survey::Known::default(),
            false => survey::ask(&transport, identity, options.shard_id, &replica.membership).await,
        };
        survey::check_own_log(&known, identity.node_id, recovery.last_whole_batch)?;
        let report = Report::of(identity, &replica, &recovery, &known);
        report.check_quorum(&replica)?;
        Ok((replica, report))
    };
    match examined.await {
        Ok((replica, report)) => Ok(Examined {
            options,
            identity,
            disk,
            clock,
            wal,
            replica,
            report,
            _lock: lock,
        }),
        Err(refused) => {
            wal.close().await;
            Err(refused)
        }
    }
}

fn open_directory(
    disk: &SharedDisk,
    dir: &std::path::Path,
) -> Result<(Box<dyn Send + Sync>, Identity), Refused> {
    let shown = dir.display();
    // Looked at first: taking the lock makes a file.
    let peek = || identity::peek(&**disk, dir).map_err(Refused::because);
    if peek()? == Loaded::None {
        return Err(Refused(format!("{shown}: no node's data directory")));
    }
    let lock = disk.lock_dir(dir).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Refused(format!("{shown}: a node is using it; stop that node first")),
        _ => Refused(format!("{shown}: {error}")),
    })?;
    match peek()? {
        Loaded::Known { identity, .. } => Ok((lock, identity)),
        _ => Err(Refused(format!(
            "{shown}: who its node is cannot be read any more"
        ))),
    }
}

impl Examined {
    /// What would be lost, or is at risk.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Lets go of the directory, unchanged.
    pub async fn close(self) {
        self.wal.close().await;
    }

    /// Makes the replica the shard's only voter, durably. Cut short, it may be done again.
    ///
    /// # Errors
    /// The disk's; what was done until then does no harm.
    pub async fn carry_out(self) -> io::Result<()> {
        let outcome = self.change().await;
        self.wal.close().await;
        outcome
    }

    async fn change(&self) -> io::Result<()> {
        let (replica, dir) = (&self.replica, &self.options.data_dir);
        let health = Health::open(
            self.disk.clone(),
            dir.join("events"),
            self.clock.clone(),
            Some(self.identity.into()),
        );
        let (last, control) = replica.settle(&self.disk, dir, &health).await?;
        let term = self.report.highest_term + TERMS_SKIPPED;
        let own = replica.group.id().replica_id;
        let entries = entries::only_voter(&control, last, term, replica.own_member());
        lost_nodes::add(&*self.disk, dir, &self.report.lost_nodes())?;
        replica
            .group
            .save_vote(Vote {
                term,
                voted_for: own,
                committed: true,
            })
            .await?;
        let (done, durable) = oneshot::channel();
        let tell = Box::new(move |result| {
            let _ = done.send(result); // waited for below
        });
        replica.group.append(entries, tell)?;
        durable.await.map_err(io::Error::other)??;
        health.repaired_at_once(Damage::of_replica(
            (self.options.shard_id, own),
            Structure::Quorum,
            Kind::Lost,
            Action::Recover,
            format!(
                "{} declared lost; only voter from term {term} on, after {}; {SKIPPED_VERSIONS} versions skipped",
                self.report.lost_voters_text(),
                report::entry_text(last),
            ),
        ));
        health.write().await
    }
}

#[cfg(test)]
mod tests;
