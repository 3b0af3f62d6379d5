//! What the log holds, per replica; in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::format::{Batch, Header, Kind, Record};
use super::segment::SegmentHeader;
use super::{EntryKind, GroupId, Vote};
use crate::mutants::Mutant;
use crate::shard::LogId;

/// Where an entry's record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u64,
    pub batch: u64,
    pub header: Header,
}

/// An entry whose payload cannot be read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Acknowledged for sure: it can only be healed.
    Damaged,
    /// Perhaps torn by a power cut: it may also be cut.
    PerhapsTorn,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub log_id: LogId,
    pub kind: EntryKind,
    /// `None` until the batch it is in has been written.
    pub place: Option<Place>,
    /// Where it lay before, if that was good; the segment may be gone since.
    pub former: Option<Place>,
    /// In memory while it is new; always while it has no place.
    pub payload: Option<Bytes>,
    pub fault: Option<Fault>,
    /// Whether somebody took note of its fault.
    pub fault_told: bool,
}

/// A batch that counts, as it lies in its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub batch: Batch,
    pub identity_end: u64,
    /// Cut short by a power cut: only its live entries say something.
    pub torn: bool,
}

/// A segment that counts: what must be found in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// `None` when it was lost.
    pub header: Option<SegmentHeader>,
    pub batches: BTreeMap<u64, Written>,
}

/// One replica's log and control records.
///
/// Invariants: entries are contiguous after `purged` once recovery is done; an entry without a
/// place has its payload in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub born: bool,
    pub info: Bytes,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub mark: Option<Bytes>,
    /// Why this replica must never run again: something of its control records or identities was lost.
    pub lost: Option<Bytes>,
    pub entries: BTreeMap<u64, Entry>,
}

impl Group {
    pub fn last(&self) -> Option<LogId> {
        self.entries
            .values()
            .next_back()
            .map(|entry| entry.log_id)
            .or(self.purged)
    }

    /// Whether an entry between the purged one and the last is missing.
    pub fn has_hole(&self) -> bool {
        let mut expected = self.purged.map_or(0, |id| id.index + 1);
        self.entries.keys().any(|index| {
            let hole = *index != expected;
            expected = index + 1;
            hole
        })
    }

    pub fn first_fault(&self) -> Option<u64> {
        self.entries
            .iter()
            .find(|(_, entry)| entry.fault.is_some())
            .map(|(index, _)| *index)
    }
}

/// Everything the log holds.
#[derive(Default)]
pub(super) struct State {
    pub groups: BTreeMap<GroupId, Group>,
    pub dead: BTreeSet<GroupId>,
    /// Entries that lie in each segment and are still needed.
    pub live: BTreeMap<u64, usize>,
    /// What lies in each segment.
    pub layout: BTreeMap<u64, Layout>,
    /// Segments and batches in which something was found damaged since the scrub looked last.
    pub suspects: Vec<(u64, u64)>,
    /// False if no entry is faulty for sure.
    may_have_faults: bool,
    /// Entries with their payload in memory, oldest first; also some that are gone since.
    cache: VecDeque<(GroupId, LogId)>,
    /// Payloads in memory: how many, and their bytes.
    cached: usize,
    cached_bytes: usize,
}

/// Queue elements of entries that are gone, before they are swept out.
const GONE_MAX: usize = 4_096;

impl State {
    /// Takes an entry that is not written yet.
    pub fn append(&mut self, id: GroupId, log_id: LogId, kind: EntryKind, payload: Bytes) {
        self.keep(&payload);
        self.cache.push_back((id, log_id));
        let entry = Entry {
            log_id,
            kind,
            place: None,
            former: None,
            payload: Some(payload),
            fault: None,
            fault_told: false,
        };
        let group = self.groups.entry(id).or_default();
        let replaced = group.entries.insert(log_id.index, entry);
        self.forget(replaced);
    }

    /// Takes an entry as recovery found it. `payload` is kept if it cannot be read from its place.
    pub fn recover(
        &mut self,
        id: GroupId,
        place: Place,
        kind: EntryKind,
        payload: Option<Bytes>,
        fault: Option<Fault>,
    ) {
        *self.live.entry(place.segment).or_default() += 1;
        let log_id = place.header.log_id;
        self.may_have_faults |= fault.is_some();
        if let Some(payload) = &payload {
            self.keep(payload);
        }
        let group = self.groups.entry(id).or_default();
        let before = group
            .entries
            .get(&log_id.index)
            .filter(|entry| entry.log_id == log_id);
        let entry = Entry {
            log_id,
            kind,
            place: Some(place),
            former: before.and_then(|entry| entry.place.filter(|_| entry.fault.is_none())),
            payload,
            fault,
            fault_told: false,
        };
        let replaced = group.entries.insert(log_id.index, entry);
        self.forget(replaced);
    }

    /// An entry's batch is durable: from now on it can be read from its segment.
    pub fn placed(&mut self, id: GroupId, place: Place) {
        let log_id = place.header.log_id;
        let entry = self
            .groups
            .get_mut(&id)
            .and_then(|group| group.entries.get_mut(&log_id.index));
        let Some(entry) = entry.filter(|entry| entry.log_id == log_id) else {
            return;
        };
        let before = entry.place.replace(place);
        entry.former = before.filter(|_| entry.fault.is_none());
        entry.fault = None;
        entry.fault_told = false;
        *self.live.entry(place.segment).or_default() += 1;
        if let Some(before) = before {
            self.leave(before.segment);
        }
    }

    /// Replicas with faulty entries. Costs nothing while there are none.
    pub fn faulty_groups(&mut self) -> Vec<GroupId> {
        if !self.may_have_faults {
            return Vec::new();
        }
        let faulty = self
            .groups
            .iter()
            .filter(|(_, group)| group.first_fault().is_some());
        let faulty: Vec<GroupId> = faulty.map(|(id, _)| *id).collect();
        self.may_have_faults = !faulty.is_empty();
        faulty
    }

    /// An entry could not be read where it lies. True if that is news.
    pub fn mark_faulty(&mut self, id: GroupId, place: Place) -> bool {
        let entry = self.entry(id, place.header.log_id);
        match entry.filter(|entry| entry.place == Some(place) && entry.fault.is_none()) {
            Some(entry) => {
                entry.fault = Some(Fault::Damaged);
                self.suspects.push((place.segment, place.batch));
                self.may_have_faults = true;
                true
            }
            None => false,
        }
    }

    pub fn truncate_after(&mut self, id: GroupId, last: Option<LogId>) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let removed = group.entries.split_off(&last.map_or(0, |last| last.index + 1));
        removed.into_values().for_each(|entry| self.forget(Some(entry)));
    }

    pub fn purge(&mut self, id: GroupId, upto: LogId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.purged = group.purged.max(Some(upto));
        let kept = group.entries.split_off(&(upto.index + 1));
        let removed = std::mem::replace(&mut group.entries, kept);
        removed.into_values().for_each(|entry| self.forget(Some(entry)));
    }

    pub fn bury(&mut self, id: GroupId) {
        self.dead.insert(id);
        if let Some(group) = self.groups.remove(&id) {
            group
                .entries
                .into_values()
                .for_each(|entry| self.forget(Some(entry)));
        }
    }

    fn forget(&mut self, entry: Option<Entry>) {
        let Some(entry) = entry else { return };
        if let Some(payload) = entry.payload {
            self.release(&payload);
        }
        if let Some(place) = entry.place {
            self.leave(place.segment);
        }
    }

    fn keep(&mut self, payload: &Bytes) {
        self.cached += 1;
        self.cached_bytes += payload.len();
    }

    fn release(&mut self, payload: &Bytes) {
        self.cached -= 1;
        self.cached_bytes -= payload.len();
    }

    fn leave(&mut self, segment: u64) {
        if let Some(count) = self.live.get_mut(&segment) {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&segment);
            }
        }
    }

    /// Drops the oldest payloads from memory until at most `bytes_max` are kept. What is not
    /// written yet stays.
    pub fn trim_cache(&mut self, bytes_max: usize) {
        while let Some((id, log_id)) = self.cache.front().copied() {
            let fits = self.cached_bytes <= bytes_max;
            match self.entry(id, log_id) {
                Some(entry) if fits || entry.place.is_none() => break,
                Some(entry) => {
                    if let Some(payload) = entry.payload.take() {
                        self.release(&payload);
                    }
                }
                None => {}
            }
            self.cache.pop_front();
        }
        // An old entry that stays can hold back many that are gone.
        if self.cache.len() > 2 * self.cached + GONE_MAX {
            let mut cache = std::mem::take(&mut self.cache);
            cache.retain(|(id, log_id)| self.entry(*id, *log_id).is_some());
            self.cache = cache;
        }
    }

    pub fn entry(&mut self, id: GroupId, log_id: LogId) -> Option<&mut Entry> {
        let entry = self.groups.get_mut(&id)?.entries.get_mut(&log_id.index)?;
        (entry.log_id == log_id).then_some(entry)
    }

    /// Control records that say everything but entries.
    pub fn control_records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for id in &self.dead {
            records.push(record(Kind::Death, *id, LogId::default(), Bytes::new()));
        }
        for (id, group) in &self.groups {
            let lost = group.lost.clone();
            records.extend(lost.map(|reason| record(Kind::Lost, *id, LogId::default(), reason)));
        }
        for (id, group) in self.groups.iter().filter(|(_, group)| group.born) {
            records.push(record(Kind::Birth, *id, LogId::default(), group.info.clone()));
            let vote = group.vote.filter(|_| !Mutant::VoteNotPersisted.is_on());
            records.extend(vote.map(|vote| vote_record(*id, vote)));
            records.extend(
                group
                    .purged
                    .map(|purged| record(Kind::Purge, *id, purged, Bytes::new())),
            );
            records.extend(
                group
                    .committed
                    .map(|id_| record(Kind::Committed, *id, id_, Bytes::new())),
            );
            records.extend(
                group
                    .mark
                    .clone()
                    .map(|mark| record(Kind::Mark, *id, LogId::default(), mark)),
            );
        }
        records
    }

    /// Replays one record that is not an entry.
    pub fn replay(&mut self, header: &Header, payload: &Bytes) {
        let id = header.group;
        if self.dead.contains(&id) {
            return;
        }
        match header.kind {
            Kind::Death => return self.bury(id),
            Kind::Truncate => {
                let keep = payload.first().is_some_and(|keep| *keep == 1);
                return self.truncate_after(id, keep.then_some(header.log_id));
            }
            Kind::Purge => {
                self.groups.entry(id).or_default();
                return self.purge(id, header.log_id);
            }
            _ => {}
        }
        let group = self.groups.entry(id).or_default();
        match header.kind {
            Kind::Birth => {
                group.born = true;
                group.info = payload.clone();
            }
            Kind::Info => group.info = payload.clone(),
            Kind::Vote => group.vote = decode_vote(header.log_id.term, payload),
            Kind::Committed => group.committed = group.committed.max(Some(header.log_id)),
            Kind::Mark => group.mark = Some(payload.clone()),
            Kind::Lost => group.lost = Some(payload.clone()),
            Kind::Death | Kind::Truncate | Kind::Purge | Kind::Blank | Kind::Normal | Kind::Membership => {}
        }
    }
}

pub(super) fn record(kind: Kind, group: GroupId, log_id: LogId, payload: Bytes) -> Record {
    Record {
        kind,
        group,
        log_id,
        payload,
    }
}

/// Vote: `log_id.term` is the term; payload: voted for (8 bytes), committed (1 byte).
pub(super) fn vote_record(id: GroupId, vote: Vote) -> Record {
    let mut payload = BytesMut::with_capacity(9);
    payload.put_u64_le(vote.voted_for);
    payload.put_u8(u8::from(vote.committed));
    record(Kind::Vote, id, LogId::new(vote.term, 0), payload.freeze())
}

fn decode_vote(term: u64, mut payload: &[u8]) -> Option<Vote> {
    (payload.len() == 9).then(|| Vote {
        term,
        voted_for: payload.get_u64_le(),
        committed: payload.get_u8() == 1,
    })
}

/// Truncate: payload 1 keeps entries up to the log id, payload 0 keeps none.
pub(super) fn truncate_record(id: GroupId, last: Option<LogId>) -> Record {
    let keep = Bytes::from_static(if last.is_some() { &[1] } else { &[0] });
    record(Kind::Truncate, id, last.unwrap_or_default(), keep)
}

pub(super) fn kind_of(kind: EntryKind) -> Kind {
    match kind {
        EntryKind::Blank => Kind::Blank,
        EntryKind::Normal => Kind::Normal,
        EntryKind::Membership => Kind::Membership,
    }
}

pub(super) fn entry_kind(kind: Kind) -> EntryKind {
    match kind {
        Kind::Membership => EntryKind::Membership,
        Kind::Normal => EntryKind::Normal,
        _ => EntryKind::Blank,
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{Header, Kind};
    use super::*;

    fn place(id: GroupId, index: u64) -> Place {
        let header = Header {
            kind: Kind::Normal,
            group: id,
            log_id: LogId::new(1, index),
            payload_len: 0,
            payload_crc: 0,
            ordinal: 0,
            offset: 0,
        };
        Place {
            segment: 1,
            batch: 1,
            header,
        }
    }

    /// What is in memory is what is counted, whatever comes and goes; old payloads leave first.
    #[test]
    fn the_cache_counts_what_it_holds_and_stays_within_its_bound() {
        let group = |shard_id| GroupId {
            shard_id,
            replica_id: 1,
        };
        let mut state = State::default();
        let counted = |state: &State| {
            let entries = state.groups.values().flat_map(|group| group.entries.values());
            let payloads: Vec<_> = entries.filter_map(|entry| entry.payload.as_ref()).collect();
            (payloads.len(), payloads.iter().map(|payload| payload.len()).sum())
        };
        for index in 0..40_000_u64 {
            for shard in [1, 2] {
                let payload = Bytes::from(vec![7; 10 + index as usize % 50]);
                state.append(group(shard), LogId::new(1, index), EntryKind::Normal, payload);
                state.placed(group(shard), place(group(shard), index));
            }
            state.trim_cache(20_000);
            if index % 100 == 50 {
                // Shard 1 is never purged and holds the oldest entries.
                state.purge(group(2), LogId::new(1, index - 10));
                state.truncate_after(group(2), Some(LogId::new(1, index)));
            }
            if index % 1_000 == 0 {
                assert_eq!(
                    (state.cached, state.cached_bytes),
                    counted(&state),
                    "entry {index}"
                );
                assert!(state.cached_bytes <= 20_000, "{} bytes", state.cached_bytes);
                assert!(
                    state.cache.len() <= 2 * state.cached + GONE_MAX,
                    "{}",
                    state.cache.len()
                );
            }
        }
        let first = &state.groups[&group(1)].entries[&0];
        assert!(first.payload.is_none(), "the oldest left first");
    }
}
