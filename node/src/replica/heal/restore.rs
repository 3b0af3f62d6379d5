//! Puts payloads back while the replica runs.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::super::ReplicaContext;
use super::voters::other_voters;
use crate::health::{Action, Damage, Kind, Structure};
use crate::raft::PayloadSource;
use crate::shard::LogId;
use crate::wal::WalGroup;

/// How long whoever reads the log waits for what it lost.
const RESTORE_TIMEOUT: Duration = Duration::from_millis(2_500);
const PAUSE: Duration = Duration::from_millis(100);

/// Gets payloads of one replica's log back, from this node or from the other voters.
pub struct Restorer {
    /// The node.
    pub context: Arc<ReplicaContext>,
    /// The replica's log.
    pub group: WalGroup,
}

impl PayloadSource for Restorer {
    fn restore(&self, range: Range<u64>) -> BoxFuture<'_, io::Result<()>> {
        async move {
            let missing = || {
                let first = self.group.faulty_in(range.clone()).first().copied();
                let entry = first.map_or(String::new(), |faulty| format!(" {}", faulty.log_id));
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("entry{entry} is damaged and nobody delivers it"),
                )
            };
            let restored = async {
                while !self.try_restore(range.clone()).await? {
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            };
            let in_time = tokio::time::timeout(RESTORE_TIMEOUT, restored).await;
            in_time.unwrap_or_else(|_| Err(missing()))
        }
        .boxed()
    }
}

impl Restorer {
    /// Asks once for every faulty entry of a range. True when none is faulty any more.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn try_restore(&self, range: Range<u64>) -> io::Result<bool> {
        tell(&self.context, &self.group);
        let mut all = true;
        for faulty in self.group.faulty_in(range) {
            if self.group.heal_from_here(faulty.log_id).await? {
                continue;
            }
            let voters = other_voters(&self.group, faulty.log_id.index).await?;
            all &= voters.restore(&self.context, &self.group, faulty).await?.restored;
        }
        if self.group.first_fault().is_none() {
            self.context
                .health
                .repaired(self.group.id().shard_id, Structure::Wal);
        }
        Ok(all)
    }
}

/// Puts entries that were whole once and are not now on record, each once; what a power cut may have torn is
/// no damage.
pub(in crate::replica) fn tell(context: &ReplicaContext, group: &WalGroup) {
    let damaged: Vec<LogId> = group.take_note_of_damage();
    let (Some(first), Some(last)) = (damaged.first(), damaged.last()) else {
        return;
    };
    context.health.damaged(Damage::of_replica(
        (group.id().shard_id, group.id().replica_id),
        Structure::Wal,
        Kind::Checksum,
        Action::Heal,
        format!("payloads of {} entries, {first} to {last}", damaged.len()),
    ));
}
