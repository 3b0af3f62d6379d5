//! One replica of a node that does not run.

use std::io;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use reelkv_proto::types::ShardId;
use reelkv_proto::v1;

use super::Refused;
use crate::disk::SharedDisk;
use crate::health::Health;
use crate::raft::{ReplicaMark, ReplicaStore, StoreParts, Trust};
use crate::shard::{Control, LogId};
use crate::storage::{EngineKind, Mark, Storage, StorageConfig};
use crate::wal::{EntryKind, Recovery, Wal, WalGroup};

/// Bytes of the log read at a time.
const READ_BYTES: usize = 4 << 20;

/// A replica whose log and tree were found whole.
pub(super) struct OfflineReplica {
    pub group: WalGroup,
    birth: v1::CreateReplicaRequest,
    pub membership: v1::Membership,
    /// The last entry that can be read, once torn ones are cut.
    pub last: Option<LogId>,
    /// Entries that a power cut may have torn: they and what follows are cut.
    pub torn: Vec<LogId>,
    mark: Option<Mark>,
    /// What the tree stands for; before `verify`, what its record says.
    pub control: Control,
    /// Live records of the tree at its checkpoint.
    pub records: u64,
}

impl OfflineReplica {
    /// This replica as a member.
    pub fn own_member(&self) -> v1::Member {
        let own = self.group.id().replica_id;
        let members = self.membership.members.iter();
        let mut own = members.filter(|member| member.replica_id == own);
        own.next().cloned().unwrap_or_default()
    }

    /// Cuts what is torn, brings record and log in line with the tree, and returns the last entry with the
    /// control state there. The log goes on from that.
    pub async fn settle(
        &self,
        disk: &SharedDisk,
        dir: &Path,
        health: &Arc<Health>,
    ) -> io::Result<(Option<LogId>, Control)> {
        if let Some(first) = self.torn.first() {
            self.group.cut_from(first.index).await?;
        }
        let applied = self.control.applied();
        if applied > self.last {
            // Power was cut before the log was durable, and after the tree was: as when a node starts,
            // the tree is put on record and the log goes on from there.
            let engine = self.mark.as_ref().map(|mark| mark.engine);
            let parts = StoreParts {
                group: self.group.clone(),
                id: self.group.id(),
                storage: open_storage(disk, dir, engine.unwrap_or_default())?,
                health: health.clone(),
            };
            let store = ReplicaStore::open(parts, &self.birth).await?;
            let trust = store.trust();
            store.close().await;
            match (trust, applied) {
                (Trust::Trusted, Some(applied)) => self.group.purge(applied)?,
                _ => return Err(io::Error::other("its tree does not open again")),
            }
        }
        let mut control = self.control.clone();
        let last = self.last.max(applied);
        replay(&self.group, &mut control, last).await?;
        Ok((last, control))
    }
}

/// A replica whose log can be read.
pub(super) struct Found {
    group: WalGroup,
    torn: Vec<LogId>,
}

impl Found {
    /// The shard's replica, as far as the log says.
    pub fn find(wal: &Wal, recovery: &Recovery, shard_id: ShardId) -> Result<Self, Refused> {
        let of_shard: Vec<_> = recovery
            .groups
            .iter()
            .filter(|group| group.id.shard_id == shard_id)
            .collect();
        if of_shard.is_empty() {
            let here: Vec<_> = recovery
                .groups
                .iter()
                .map(|group| group.id.shard_id.to_string())
                .collect();
            let here = match here.is_empty() {
                true => "none".to_owned(),
                false => here.join(", "),
            };
            return Err(Refused(format!(
                "no replica of shard {shard_id} is here; shards here: {here}"
            )));
        }
        let whole: Vec<_> = of_shard.iter().filter(|group| group.damaged.is_empty()).collect();
        let [found] = whole[..] else {
            let why = of_shard.iter().flat_map(|group| &group.damaged).next();
            let why = why.map_or_else(
                || "it has several replicas here".to_owned(),
                |damage| format!("its log is damaged ({})", damage.what),
            );
            return Err(Refused(format!("shard {shard_id}: {why}")));
        };
        if let Some(faulty) = found.faulty.iter().find(|entry| !entry.perhaps_torn) {
            return Err(Refused(format!(
                "{}: entry {} of its log cannot be read",
                found.id, faulty.log_id
            )));
        }
        let group = wal.group(found.id);
        let group = group.ok_or_else(|| Refused(format!("{}: the log does not know it", found.id)))?;
        Ok(Self {
            group,
            torn: found.faulty.iter().map(|entry| entry.log_id).collect(),
        })
    }

    /// Reads log and tree whole.
    ///
    /// # Errors
    /// It must not serve.
    pub async fn verify(self, disk: &SharedDisk, dir: &Path) -> Result<OfflineReplica, Refused> {
        let id = self.group.id();
        let refused = |why: &str| Refused(format!("{id}: {why}"));
        let failed = |error: &dyn std::fmt::Display| Refused(format!("{id}: {error}"));
        let birth = v1::CreateReplicaRequest::decode(self.group.info()).map_err(|error| failed(&error))?;
        let last = match self.torn.first() {
            None => self.group.last(),
            Some(first) => first
                .index
                .checked_sub(1)
                .and_then(|before| self.group.log_id(before))
                .or(self.group.purged()),
        };
        if self.group.committed() > last {
            return Err(refused("entries that are known to be committed cannot be read"));
        }
        let mark = self.group.mark().map(ReplicaMark::decode).transpose();
        let mark = mark.map_err(|error| failed(&error))?;
        let (control, mark, records) = match mark {
            None if self.group.purged().is_some() => {
                return Err(refused(
                    "its log does not begin with the shard, and no tree is on record",
                ));
            }
            None => {
                let began = birth
                    .birth
                    .clone()
                    .ok_or_else(|| refused("its birth record is not whole"))?;
                (Control::new(id.shard_id, began), None, 0)
            }
            Some(ReplicaMark { tree: None, .. }) => {
                return Err(refused(
                    "its tree was set aside and not refilled yet: it does not hold the records",
                ));
            }
            // What most voters did not hold may be whole in every file.
            Some(ReplicaMark { doubts, .. }) if !doubts.unproven.is_empty() => {
                return Err(refused(&format!(
                    "its tree does not prove {}: these records were waiting to be repaired",
                    doubts.unproven
                )));
            }
            Some(ReplicaMark {
                tree: Some(mark),
                control,
                ..
            }) => {
                let (control, records) = verify_tree(disk, dir, &mark, &control)
                    .await
                    .map_err(|why| failed(&format!("its tree is not what was recorded: {why}")))?;
                (control, Some(mark), records)
            }
        };
        let mut replica = OfflineReplica {
            membership: v1::Membership::default(),
            group: self.group,
            birth,
            last,
            torn: self.torn,
            mark,
            control,
            records,
        };
        replica.membership = replica.effective_membership().await?;
        Ok(replica)
    }
}

impl OfflineReplica {
    /// The newest membership, which counts from the moment it is in the log.
    async fn effective_membership(&self) -> Result<v1::Membership, Refused> {
        let id = self.group.id();
        let failed = |error: &dyn std::fmt::Display| Refused(format!("{id}: {error}"));
        let mut control = self.control.clone();
        let last = self.last.max(control.applied());
        replay(&self.group, &mut control, last)
            .await
            .map_err(|error| failed(&error))?;
        let membership = control.membership().membership.clone().unwrap_or_default();
        let is_voter = |config: &v1::membership::ReplicaIds| config.replica_ids.contains(&id.replica_id);
        if membership.configs.is_empty() {
            return Err(failed(&"the shard never had members"));
        }
        if !membership.configs.iter().any(is_voter) {
            return Err(failed(
                &"it is a learner, not a voter: it may lack what was acknowledged",
            ));
        }
        Ok(membership)
    }
}

/// Compares the tree with its record and reads all of it; its control state and its live records.
async fn verify_tree(
    disk: &SharedDisk,
    dir: &Path,
    mark: &Mark,
    recorded: &v1::ControlState,
) -> Result<(Control, u64), String> {
    let storage = open_storage(disk, dir, mark.engine).map_err(|error| error.to_string())?;
    let opened = storage
        .open(mark.tree, Some(mark))
        .await
        .map_err(|error| error.to_string())?;
    let swept = opened.tree.sweep().await;
    let closed = opened.tree.close().await;
    let report = swept.map_err(|error| error.to_string())?;
    closed.map_err(|error| error.to_string())?;
    if !report.is_clean() {
        let bad = report
            .bad_files
            .first()
            .or(report.bad_spans.first().map(|span| &span.error));
        return Err(bad.map_or_else(|| "damaged".to_owned(), ToString::to_string));
    }
    let control = v1::ControlState::decode(&opened.control[..]).map_err(|error| error.to_string())?;
    let control = Control::decode(control);
    match control.applied() >= recorded.applied.map(LogId::from) {
        true => Ok((control, report.live.records)),
        false => Err("its control row is older than the log's record of it".to_owned()),
    }
}

fn open_storage(disk: &SharedDisk, dir: &Path, engine: EngineKind) -> io::Result<Arc<Storage>> {
    let config = StorageConfig {
        engine,
        ..StorageConfig::default()
    };
    Storage::new(disk.clone(), dir.join("trees"), config).map_err(io::Error::other)
}

/// Applies the log to a control state, up to `last`.
async fn replay(group: &WalGroup, control: &mut Control, last: Option<LogId>) -> io::Result<()> {
    let Some(last) = last else { return Ok(()) };
    loop {
        let next = control.applied().map_or(0, |applied| applied.index + 1);
        if next > last.index {
            return Ok(());
        }
        let entries = group.read(next, last.index + 1, READ_BYTES).await?;
        if entries.first().is_none_or(|entry| entry.log_id.index != next) {
            return Err(io::Error::other(format!("entry {next} of the log is missing")));
        }
        for entry in entries {
            match entry.kind {
                EntryKind::Blank => control.apply_blank(entry.log_id),
                EntryKind::Membership => {
                    let membership = v1::Membership::decode(entry.payload).map_err(io::Error::other)?;
                    control.apply_membership(entry.log_id, membership);
                }
                EntryKind::Normal => {
                    let body = v1::EntryBody::decode(entry.payload).map_err(io::Error::other)?;
                    control.apply(entry.log_id, &body).map_err(io::Error::other)?;
                }
            }
        }
    }
}
