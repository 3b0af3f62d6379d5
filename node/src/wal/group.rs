//! One replica's part of the log, as the replica uses it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::format::{self, HEADER_LEN, Kind, Record};
use super::log::{Shared, force};
use super::state::{Place, record, truncate_record, vote_record};
use super::writer::{Work, entry_record};
use super::{AppendDone, GroupId, Vote, WalEntry};
use crate::disk::{SharedFile, offload};
use crate::mutants::Mutant;
use crate::shard::LogId;

/// Times a read begins again because what it reads is moved meanwhile.
const MOVES_MAX: u32 = 8;

/// One replica's log.
#[derive(Clone)]
pub struct WalGroup {
    pub(super) id: GroupId,
    pub(super) shared: Arc<Shared>,
}

impl WalGroup {
    pub(super) fn new(id: GroupId, shared: Arc<Shared>) -> Self {
        Self { id, shared }
    }

    pub(super) fn with<T: Default>(&self, look: impl FnOnce(&super::state::Group) -> T) -> T {
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
            ..Work::default()
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
            ..Work::default()
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

    /// The last entry of each term between two indexes, both included.
    pub fn last_of_each_term(&self, first: u64, last: u64) -> Vec<LogId> {
        self.with(|group| {
            let mut keys: Vec<LogId> = Vec::new();
            for entry in group
                .entries
                .range(first..=last.max(first))
                .map(|(_, entry)| entry)
            {
                match keys.last_mut().filter(|key| key.term == entry.log_id.term) {
                    Some(key) => *key = entry.log_id,
                    None => keys.push(entry.log_id),
                }
            }
            keys
        })
    }

    /// Entries from `start` up to, not including, `end`: at least one if there is any, then as
    /// many as fit `max_bytes`.
    ///
    /// # Errors
    /// An entry's payload is not what was written: the replica must stop and have it healed.
    pub async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<WalEntry>> {
        for _ in 0..MOVES_MAX {
            if let Some(entries) = self.read_once(start, end, max_bytes).await? {
                return Ok(entries);
            }
        }
        Err(io::Error::other("entries are moved faster than they can be read"))
    }

    /// `None` when an entry was moved elsewhere before it was read.
    async fn read_once(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Option<Vec<WalEntry>>> {
        let mut entries = Vec::new();
        let mut missing = Vec::new();
        let mut bytes = 0;
        {
            let state = self.shared.state.lock();
            let Some(group) = state.groups.get(&self.id) else {
                return Ok(Some(entries));
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
                if entry.payload.is_none() {
                    if entry.fault.is_some() {
                        return Err(faulty(entry.log_id));
                    }
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
        let Some(payloads) = self.read_places(missing).await? else {
            return Ok(None);
        };
        for (position, payload) in payloads {
            entries[position].payload = payload;
        }
        Ok(Some(entries))
    }

    async fn read_places(&self, places: Vec<(usize, Place)>) -> io::Result<Option<Vec<(usize, Bytes)>>> {
        if places.is_empty() {
            return Ok(Some(Vec::new()));
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
        match offload(&*self.shared.disk, read).await? {
            Ok(payloads) => Ok(Some(payloads)),
            Err((place, error)) => {
                let mut state = self.shared.state.lock();
                let entry = state.entry(self.id, place.header.log_id);
                if entry.is_none_or(|entry| entry.place != Some(place)) {
                    return Ok(None);
                }
                state.mark_faulty(self.id, place);
                Err(error)
            }
        }
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
