//! The log as replicas use it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::format::{self, HEADER_LEN, Kind, Record};
use super::recovery::{FaultyEntry, Recovery, recover};
use super::state::{Fault, Place, State, record, truncate_record, vote_record};
use super::writer::{Done, Work, Writer, entry_record, open_files};
use super::{AppendDone, GroupId, Identity, Vote, WalConfig, WalEntry, WalError};
use crate::disk::{SharedDisk, SharedFile, offload};
use crate::mutants::Mutant;
use crate::shard::LogId;

/// What handles and writer share. Locks are held for memory only, never across I/O.
pub(super) struct Shared {
    pub state: Mutex<State>,
    pub files: Mutex<BTreeMap<u64, SharedFile>>,
    pub batch: AtomicU64,
    pub disk_bytes: AtomicU64,
    poison: OnceLock<String>,
    queue: Mutex<Option<mpsc::UnboundedSender<Work>>>,
    disk: SharedDisk,
}

impl Shared {
    pub fn poison(&self, why: &str) {
        let _ = self.poison.set(why.to_owned()); // the first reason stays
    }

    pub fn poisoned_error(&self) -> io::Error {
        let why = self.poison.get().map_or("closed", String::as_str);
        io::Error::other(format!("the log is poisoned: {why}"))
    }

    fn send(&self, work: Work) -> io::Result<()> {
        if self.poison.get().is_some() {
            return Err(self.poisoned_error());
        }
        let queue = self.queue.lock();
        let queue = queue
            .as_ref()
            .ok_or_else(|| io::Error::other("the log is closed"))?;
        queue.send(work).map_err(|_| self.poisoned_error())
    }
}

/// The node's log.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    writer: Arc<tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Wal {
    /// Opens the log of a node, or makes it in an empty directory. Damage is reported, not fatal.
    ///
    /// # Errors
    /// The directory cannot be used, or holds the log of another node or a newer release; nothing
    /// was changed then.
    pub async fn open(
        disk: SharedDisk,
        dir: PathBuf,
        config: WalConfig,
        identity: Identity,
    ) -> Result<(Self, Recovery), WalError> {
        if config.segment_bytes < 64 << 10 || !config.segment_bytes.is_multiple_of(format::BLOCK) {
            return Err(WalError::SegmentSize(config.segment_bytes));
        }
        let io_error = |source: io::Error| WalError::Io {
            path: dir.clone(),
            source,
        };
        let (disk_, dir_) = (disk.clone(), dir.clone());
        let read = move || {
            let io_error = |source: io::Error| WalError::Io {
                path: dir_.clone(),
                source,
            };
            disk_.create_dir_all(&dir_).map_err(io_error)?;
            if let Some(parent) = dir_.parent() {
                disk_.sync_dir(parent).map_err(io_error)?;
            }
            let recovered = recover(&*disk_, &dir_, identity)?;
            let files = open_files(&disk_, &dir_, &recovered.segments).map_err(io_error)?;
            // A process that was killed may have left the last batch in the page cache only; from
            // now on it counts as durable. Only the newest segment was written.
            if let Some((_, newest)) = files.last_key_value() {
                newest.sync_data().map_err(io_error)?;
            }
            Ok((recovered, files))
        };
        let (recovered, files) = offload(&*disk, read).await.map_err(io_error)??;
        let (sender, queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            state: Mutex::new(recovered.state),
            files: Mutex::new(files),
            batch: AtomicU64::new(recovered.recovery.last_whole_batch),
            disk_bytes: AtomicU64::new(recovered.segments.values().sum()),
            poison: OnceLock::new(),
            queue: Mutex::new(Some(sender)),
            disk: disk.clone(),
        });
        let writer = Writer {
            shared: shared.clone(),
            disk,
            dir,
            config,
            identity,
            queue,
            segment: None,
            segments: recovered.segments,
            next_batch: recovered.last_batch + 1,
            synced: recovered.synced,
            previous_records: recovered.last_records,
            newest_segment: recovered.newest_segment,
        };
        let writer = Arc::new(tokio::sync::Mutex::new(Some(tokio::spawn(writer.run()))));
        Ok((Self { shared, writer }, recovered.recovery))
    }

    /// Brings a replica to life, durably. `info` is kept for the caller.
    ///
    /// # Errors
    /// The id lived or died here before, or the log is poisoned.
    pub async fn birth(&self, id: GroupId, info: Bytes) -> io::Result<WalGroup> {
        {
            let mut state = self.shared.state.lock();
            if state.dead.contains(&id) || state.groups.contains_key(&id) {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{id} was here before"),
                ));
            }
            let group = state.groups.entry(id).or_default();
            group.born = true;
            group.info = info.clone();
        }
        self.force(record(Kind::Birth, id, LogId::default(), info))
            .await?;
        Ok(WalGroup {
            id,
            shared: self.shared.clone(),
        })
    }

    /// Ends a replica, durably. Its id never lives again.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn death(&self, id: GroupId) -> io::Result<()> {
        self.shared.state.lock().bury(id);
        self.force(record(Kind::Death, id, LogId::default(), Bytes::new()))
            .await
    }

    async fn force(&self, record: Record) -> io::Result<()> {
        force(&self.shared, vec![record]).await
    }

    /// A living replica's log.
    pub fn group(&self, id: GroupId) -> Option<WalGroup> {
        let lives = self.shared.state.lock().groups.contains_key(&id);
        lives.then(|| WalGroup {
            id,
            shared: self.shared.clone(),
        })
    }

    /// All living replicas.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.state.lock().groups.keys().copied().collect()
    }

    /// Number of the last durable batch.
    pub fn batch(&self) -> u64 {
        self.shared.batch.load(Ordering::Acquire)
    }

    /// Bytes of all segments.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes.load(Ordering::Relaxed)
    }

    /// Whether a write or sync has failed: nothing is accepted any more.
    pub fn is_poisoned(&self) -> bool {
        self.shared.poison.get().is_some()
    }

    /// Writes what is queued and stops.
    pub async fn close(&self) {
        self.shared.queue.lock().take();
        let writer = self.writer.lock().await.take();
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "the log's writer ended badly");
        }
    }
}

async fn force(shared: &Shared, records: Vec<Record>) -> io::Result<()> {
    let (sender, durable) = oneshot::channel();
    let done: Done = Box::new(move |result| {
        let _ = sender.send(result); // the caller may have gone
    });
    shared.send(Work {
        records,
        forced: true,
        done: Some(done),
    })?;
    durable.await.map_err(|_| shared.poisoned_error())?
}

/// One replica's log.
#[derive(Clone)]
pub struct WalGroup {
    id: GroupId,
    shared: Arc<Shared>,
}

impl WalGroup {
    fn with<T: Default>(&self, look: impl FnOnce(&super::state::Group) -> T) -> T {
        self.shared
            .state
            .lock()
            .groups
            .get(&self.id)
            .map(look)
            .unwrap_or_default()
    }

    fn lazily(&self, record: Record) -> io::Result<()> {
        self.shared.send(Work {
            records: vec![record],
            forced: false,
            done: None,
        })
    }

    /// Takes entries; they can be read at once. `done` is called when they, and everything before
    /// them, are durable.
    ///
    /// # Errors
    /// The log is poisoned; `done` is not called.
    pub fn append(&self, entries: Vec<WalEntry>, done: AppendDone) -> io::Result<()> {
        let records = entries.iter().map(|entry| entry_record(self.id, entry)).collect();
        let mut state = self.shared.state.lock();
        for entry in entries {
            state.append(self.id, entry.log_id, entry.kind, entry.payload);
        }
        self.shared.send(Work {
            records,
            forced: true,
            done: Some(done),
        })
    }

    /// Makes a vote durable.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        if let Some(group) = self.shared.state.lock().groups.get_mut(&self.id) {
            group.vote = Some(vote);
        }
        if Mutant::VoteNotPersisted.is_on() {
            return Ok(());
        }
        force(&self.shared, vec![vote_record(self.id, vote)]).await
    }

    /// The vote; `None` before the first.
    pub fn vote(&self) -> Option<Vote> {
        self.with(|group| group.vote)
    }

    /// Remembers what is committed; durable some time later.
    ///
    /// # Errors
    /// The log is poisoned.
    pub fn save_committed(&self, committed: LogId) -> io::Result<()> {
        if let Some(group) = self.shared.state.lock().groups.get_mut(&self.id) {
            group.committed = group.committed.max(Some(committed));
        }
        self.lazily(record(Kind::Committed, self.id, committed, Bytes::new()))
    }

    /// What is known to be committed: perhaps less than what is.
    pub fn committed(&self) -> Option<LogId> {
        self.with(|group| group.committed)
    }

    /// Removes entries after `last` (all of them for `None`); durable before anything later is.
    ///
    /// # Errors
    /// The log is poisoned.
    pub fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        self.shared.state.lock().truncate_after(self.id, last);
        self.lazily(truncate_record(self.id, last))
    }

    /// Removes entries up to `upto`; durable some time later.
    ///
    /// # Errors
    /// The log is poisoned.
    pub fn purge(&self, upto: LogId) -> io::Result<()> {
        self.shared.state.lock().purge(self.id, upto);
        self.lazily(record(Kind::Purge, self.id, upto, Bytes::new()))
    }

    /// The last entry, or the last one purged when there is none.
    pub fn last(&self) -> Option<LogId> {
        self.with(super::state::Group::last)
    }

    /// The last entry purged.
    pub fn purged(&self) -> Option<LogId> {
        self.with(|group| group.purged)
    }

    /// The entry at an index.
    pub fn log_id(&self, index: u64) -> Option<LogId> {
        self.with(|group| group.entries.get(&index).map(|entry| entry.log_id))
    }

    /// Entries from `start` up to, not including, `end`: at least one if there is any, then as
    /// many as fit `max_bytes`.
    ///
    /// # Errors
    /// An entry's payload is not what was written: the replica must stop and have it healed.
    pub async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<WalEntry>> {
        let mut entries = Vec::new();
        let mut missing = Vec::new();
        let mut bytes = 0;
        {
            let state = self.shared.state.lock();
            let Some(group) = state.groups.get(&self.id) else {
                return Ok(entries);
            };
            for entry in group.entries.range(start..end.max(start)).map(|(_, entry)| entry) {
                let len = match (&entry.payload, &entry.place) {
                    (Some(payload), _) => payload.len(),
                    (None, Some(place)) => place.header.payload_len as usize,
                    (None, None) => 0,
                };
                if !entries.is_empty() && bytes + len > max_bytes {
                    break;
                }
                bytes += len;
                if entry.fault.is_some() {
                    return Err(faulty(entry.log_id));
                }
                if entry.payload.is_none() {
                    let place = entry.place.ok_or_else(|| faulty(entry.log_id))?;
                    missing.push((entries.len(), place));
                }
                let payload = entry.payload.clone().unwrap_or_default();
                entries.push(WalEntry {
                    log_id: entry.log_id,
                    kind: entry.kind,
                    payload,
                });
            }
        }
        for (position, payload) in self.read_places(missing).await? {
            entries[position].payload = payload;
        }
        Ok(entries)
    }

    async fn read_places(&self, places: Vec<(usize, Place)>) -> io::Result<Vec<(usize, Bytes)>> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let files = self.shared.files.lock().clone();
        let read = move || {
            let read_one = |(position, place): (usize, Place)| {
                let file = files
                    .get(&place.segment)
                    .ok_or_else(|| (place, io::Error::other("segment is gone")));
                let payload =
                    file.and_then(|file| read_entry(file, &place).map_err(|error| (place, error)))?;
                Ok((position, payload))
            };
            places
                .into_iter()
                .map(read_one)
                .collect::<Result<Vec<_>, (Place, io::Error)>>()
        };
        offload(&*self.shared.disk, read)
            .await?
            .map_err(|(place, error)| {
                let mut state = self.shared.state.lock();
                let entry = state
                    .groups
                    .get_mut(&self.id)
                    .and_then(|group| group.entries.get_mut(&place.header.log_id.index));
                if let Some(entry) = entry.filter(|entry| entry.place == Some(place)) {
                    entry.fault = Some(Fault::Damaged);
                }
                error
            })
    }

    /// Entries whose payloads cannot be read here.
    pub fn faulty(&self) -> Vec<FaultyEntry> {
        self.with(|group| {
            let faulty = group.entries.values().filter_map(|entry| {
                let fault = entry.fault?;
                Some(FaultyEntry {
                    log_id: entry.log_id,
                    payload_crc: entry.place?.header.payload_crc,
                    perhaps_torn: fault == Fault::PerhapsTorn,
                })
            });
            faulty.collect()
        })
    }

    /// The first faulty entry's index: nothing from there on is known to be readable.
    pub fn first_fault(&self) -> Option<u64> {
        self.with(super::state::Group::first_fault)
    }

    /// Puts a faulty entry's payload back, durably, elsewhere in the log.
    ///
    /// # Errors
    /// It is not the payload that was lost, or the log is poisoned.
    pub async fn heal(&self, log_id: LogId, payload: Bytes) -> io::Result<()> {
        let record = {
            let state = self.shared.state.lock();
            let entry = state
                .groups
                .get(&self.id)
                .and_then(|group| group.entries.get(&log_id.index));
            let entry = entry.filter(|entry| entry.log_id == log_id && entry.fault.is_some());
            let place = entry
                .and_then(|entry| entry.place)
                .ok_or_else(|| io::Error::other("no such faulty entry"))?;
            if crc32fast::hash(&payload) != place.header.payload_crc {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "another payload than the one lost",
                ));
            }
            record(place.header.kind, self.id, log_id, payload)
        };
        force(&self.shared, vec![record]).await
    }

    /// Cuts the log from a faulty entry on, durably, after every other voter has said that it
    /// does not have it.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn cut_from(&self, index: u64) -> io::Result<()> {
        let last = match index.checked_sub(1) {
            Some(before) => self.log_id(before).or(self.purged()),
            None => None,
        };
        self.shared.state.lock().truncate_after(self.id, last);
        force(&self.shared, vec![truncate_record(self.id, last)]).await
    }

    /// Makes the replica's mark durable, in place of the last one.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn put_mark(&self, mark: Bytes) -> io::Result<()> {
        if let Some(group) = self.shared.state.lock().groups.get_mut(&self.id) {
            group.mark = Some(mark.clone());
        }
        force(
            &self.shared,
            vec![record(Kind::Mark, self.id, LogId::default(), mark)],
        )
        .await
    }

    /// The replica's last mark.
    pub fn mark(&self) -> Option<Bytes> {
        self.with(|group| group.mark.clone())
    }

    /// What the birth record, or the last `set_info`, says.
    pub fn info(&self) -> Bytes {
        self.with(|group| group.info.clone())
    }

    /// Which replica this is.
    pub fn id(&self) -> GroupId {
        self.id
    }
}

fn faulty(log_id: LogId) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("entry {log_id} is damaged"))
}

/// Reads one record back and checks it.
pub(super) fn read_entry(file: &SharedFile, place: &Place) -> io::Result<Bytes> {
    let mut bytes = vec![0; HEADER_LEN + place.header.payload_len as usize];
    let read = file.read_at(place.header.offset, &mut bytes)?;
    bytes.truncate(read);
    let bytes = Bytes::from(bytes);
    format::check(&bytes, &place.header).ok_or_else(|| faulty(place.header.log_id))
}
