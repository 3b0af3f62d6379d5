//! What a replica's log lost, and how it is put back.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::format::{Kind, inline_payload};
use super::group::{WalGroup, read_entry};
use super::log::{Shared, force};
use super::recovery::FaultyEntry;
use super::segment::read_range;
use super::state::{Entry, Fault, Group, Place, record, truncate_record};
use super::writer::{Done, Work};
use crate::disk::{SharedFile, offload};
use crate::shard::LogId;

impl Entry {
    fn as_faulty(&self) -> Option<FaultyEntry> {
        let fault = self.fault?;
        Some(FaultyEntry {
            log_id: self.log_id,
            payload_crc: self.place?.header.payload_crc,
            perhaps_torn: fault == Fault::PerhapsTorn,
        })
    }
}

impl WalGroup {
    /// Entries whose payloads cannot be read here.
    pub fn faulty(&self) -> Vec<FaultyEntry> {
        self.faulty_in(0..u64::MAX)
    }

    /// The same, of a range of indexes.
    pub fn faulty_in(&self, range: Range<u64>) -> Vec<FaultyEntry> {
        let range = range.start..range.end.max(range.start);
        self.with(|group| {
            let entries = group.entries.range(range).map(|(_, entry)| entry);
            entries.filter_map(Entry::as_faulty).collect()
        })
    }

    /// The first faulty entry's index: nothing from there on is known to be readable.
    pub fn first_fault(&self) -> Option<u64> {
        self.with(Group::first_fault)
    }

    /// Entries that were whole once and are not now, of which nobody took note yet; whoever calls this does.
    pub fn take_note_of_damage(&self) -> Vec<LogId> {
        let mut state = self.shared.state.lock();
        let Some(group) = state.groups.get_mut(&self.id) else {
            return Vec::new();
        };
        let news = |entry: &&mut Entry| entry.fault == Some(Fault::Damaged) && !entry.fault_told;
        let news = group.entries.values_mut().filter(news);
        news.map(|entry| {
            entry.fault_told = true;
            entry.log_id
        })
        .collect()
    }

    /// Why this replica must never run again: something of its log that is no payload was lost. What it
    /// does not have proves nothing.
    pub fn lost(&self) -> Option<String> {
        self.with(|group| {
            let reason = group.lost.as_deref();
            reason.map(|reason| String::from_utf8_lossy(reason).into_owned())
        })
    }

    /// The log's membership entries, oldest first.
    pub fn memberships(&self) -> Vec<LogId> {
        self.with(|group| {
            let entries = group.entries.values();
            let memberships = entries.filter(|entry| entry.kind == super::EntryKind::Membership);
            memberships.map(|entry| entry.log_id).collect()
        })
    }

    /// Puts a faulty entry's payload back, durably, elsewhere in the log.
    ///
    /// # Errors
    /// It is not the payload that was lost, the entry is not faulty any more, or the log is poisoned.
    pub async fn heal(&self, log_id: LogId, payload: Bytes) -> io::Result<()> {
        let (sender, durable) = oneshot::channel();
        {
            // Sent under the lock: a truncation or purge that comes now is written later.
            let mut state = self.shared.state.lock();
            let entry = state.entry(self.id, log_id).filter(|entry| entry.fault.is_some());
            let place = entry.and_then(|entry| entry.place);
            let place = place.ok_or_else(|| io::Error::other("no such faulty entry"))?;
            if crc32fast::hash(&payload) != place.header.payload_crc {
                let other = "another payload than the one lost";
                return Err(io::Error::new(io::ErrorKind::InvalidData, other));
            }
            let done: Done = Box::new(move |result| {
                let _ = sender.send(result); // the caller may have gone
            });
            self.shared.send(Work {
                records: vec![record(place.header.kind, self.id, log_id, payload)],
                forced: true,
                done: Some(done),
                ..Work::default()
            })?;
        }
        durable.await.map_err(|_| self.shared.poisoned_error())?
    }

    /// Puts a faulty entry's payload back from what this node has of it: in memory, where it lies if that can
    /// be read after all, in its second copy, where it lay before. False if there is nothing.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn heal_from_here(&self, log_id: LogId) -> io::Result<bool> {
        let (cached, place, former) = {
            let mut state = self.shared.state.lock();
            let entry = state.entry(self.id, log_id).filter(|entry| entry.fault.is_some());
            let Some((entry, place)) = entry.and_then(|entry| Some((&*entry, entry.place?))) else {
                return Ok(false);
            };
            (entry.payload.clone(), place, entry.former)
        };
        let is_whole = |payload: &Bytes| crc32fast::hash(payload) == place.header.payload_crc;
        let payload = match cached.filter(is_whole) {
            Some(payload) => payload,
            None => match self.read_copies(place, former).await?.filter(is_whole) {
                Some(payload) => payload,
                None => return Ok(false),
            },
        };
        match self.heal(log_id, payload).await {
            // Somebody else was quicker, or nobody needs it any more.
            Err(_) if !self.shared.is_poisoned() && self.is_whole(log_id) => Ok(true),
            healed => healed.map(|()| true),
        }
    }

    /// Whether an entry is not faulty, or not there.
    pub fn is_whole(&self, log_id: LogId) -> bool {
        let mut state = self.shared.state.lock();
        let entry = state.entry(self.id, log_id);
        entry.is_none_or(|entry| entry.fault.is_none())
    }

    async fn read_copies(&self, place: Place, former: Option<Place>) -> io::Result<Option<Bytes>> {
        let files = self.shared.files.lock().clone();
        let written = {
            let state = self.shared.state.lock();
            let layout = state.layout.get(&place.segment);
            layout.and_then(|layout| layout.batches.get(&place.batch).copied())
        };
        let read = move || {
            let file = |place: &Place| files.get(&place.segment);
            let own = || read_entry(file(&place)?, &place).ok();
            let second = || {
                let written = written.filter(|_| place.header.kind == Kind::Membership)?;
                let len = written.batch.identity_len;
                let from = written.identity_end.checked_sub(u64::from(len))?;
                let identity = read_range(file(&place)?, from, len as usize);
                inline_payload(&identity.into(), &written.batch, &place.header)
            };
            let before = || {
                let former = former?;
                read_entry(file(&former)?, &former).ok()
            };
            own().or_else(second).or_else(before)
        };
        offload(&*self.shared.disk, read).await
    }

    /// Cuts the log from a faulty entry on, durably, once it is proven that the entry never commits.
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

    /// Purges the log up to an entry whose effects are elsewhere, durably.
    ///
    /// # Errors
    /// The log is poisoned.
    pub async fn purge_now(&self, upto: LogId) -> io::Result<()> {
        self.shared.state.lock().purge(self.id, upto);
        let purge = record(Kind::Purge, self.id, upto, Bytes::new());
        force(&self.shared, vec![purge]).await
    }
}

impl Shared {
    /// An open segment.
    pub fn file(&self, segment: u64) -> Option<SharedFile> {
        self.files.lock().get(&segment).cloned()
    }
}
