//! Goes through the batches that recovery found, in order, and judges each record.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::GroupId;
use super::check::Flaw;
use super::format::{BLOCK, Batch, Found, Header, read};
use super::manifest::{Loaded, Manifest};
use super::recovery::{Damage, FaultyEntry, GroupRecovery, Recovered, Recovery, Scanned, ScannedBatch};
use super::segment::ALL_RECORDS;
use super::state::{Fault, Layout, Place, State, Written, entry_kind};
use crate::mutants::Mutant;
use crate::shard::LogId;

pub(super) struct Replay<'a> {
    scan: &'a [Scanned],
    manifest: Option<Manifest>,
    /// Both copies ought to say it: no crash came between the two.
    manifest_settled: bool,
    /// Segments that are another node's.
    foreign: BTreeMap<u64, u64>,
    state: State,
    damage: Vec<Damage>,
    /// Damage that may concern anybody.
    everybody: Vec<Damage>,
    synced: u64,
    torn_records: usize,
    last_batch: u64,
    last_records: u32,
    /// Every byte of the last batch is there.
    last_is_whole: bool,
}

impl<'a> Replay<'a> {
    pub fn new(scan: &'a [Scanned], loaded: &Loaded) -> Self {
        let marks = scan
            .iter()
            .flat_map(|segment| segment.batches.values())
            .map(|scanned| scanned.batch.synced);
        let headers = scan
            .iter()
            .filter_map(|segment| segment.header.header())
            .map(|header| header.synced);
        let synced = marks.chain(headers).max().unwrap_or(0);
        Self {
            scan,
            manifest: loaded.manifest,
            manifest_settled: loaded.agreed || !loaded.bad.is_empty(),
            foreign: BTreeMap::new(),
            state: State::default(),
            damage: loaded.bad.iter().map(|name| of_copy(name, "bad")).collect(),
            everybody: Vec::new(),
            synced,
            torn_records: 0,
            last_batch: 0,
            last_records: ALL_RECORDS,
            last_is_whole: false,
        }
    }

    /// The same log, with segments of another node where its own ought to be.
    pub fn beside(self, foreign: BTreeMap<u64, u64>) -> Self {
        Self { foreign, ..self }
    }

    /// The same log, with a good copy of its manifest that no crash can have left behind.
    pub fn with_outdated(mut self, copy: Option<&'static str>) -> Self {
        self.manifest_settled |= copy.is_some();
        self.damage.extend(copy.map(|name| of_copy(name, "outdated")));
        self
    }

    pub fn run(mut self) -> Recovered {
        self.find_missing_segments();
        let scan = self.scan;
        let first = scan.first().and_then(|segment| segment.header.header());
        let mut expected = first.map(|header| header.first_batch);
        'segments: for (position, segment) in scan.iter().enumerate() {
            let later = &scan[position + 1..];
            self.check_segment(segment, later);
            for scanned in segment.batches.values() {
                let batch = &scanned.batch;
                let Some(count) = counted(later, batch) else {
                    continue;
                };
                if expected.is_some_and(|expected| batch.number > expected) {
                    self.for_everybody(segment, batch.data_offset, "a batch is missing before this one");
                }
                expected = Some(batch.number + 1);
                self.last_batch = batch.number;
                self.last_records = count;
                self.last_is_whole = count == batch.records && scanned.flaws.is_empty();
                let durable = batch.number <= self.synced && !perhaps_torn(later, batch);
                if !self.replay_batch(segment, scanned, count, durable) {
                    break 'segments;
                }
            }
        }
        if self.last_batch < self.synced {
            let what = format!("batches {} to {} are missing", self.last_batch + 1, self.synced);
            self.everybody.push(Damage {
                group: None,
                segment: String::new(),
                offset: 0,
                what,
                log_id: None,
            });
        }
        self.finish()
    }

    /// Judges what surrounds the batches of a segment.
    fn check_segment(&mut self, segment: &Scanned, later: &[Scanned]) {
        let layout = Layout {
            header: segment.header.header(),
            ..Layout::default()
        };
        self.state.layout.insert(segment.number, layout);
        if layout_is_lost(segment, later) {
            self.for_everybody(segment, segment.file_bytes, "the segment was cut short");
        }
        if segment.header.header().is_none() {
            self.for_everybody(segment, 0, "both copies of the segment's header are bad");
        } else if !segment.header.are_whole() {
            let what = "a copy of the segment's header or its length is bad; nothing is lost";
            let damage = self.at(segment, 0, what.to_owned(), None, None);
            self.damage.push(damage);
        }
    }

    fn find_missing_segments(&mut self) {
        let present: Vec<u64> = self.scan.iter().map(|segment| segment.number).collect();
        let names = || present.iter().chain(self.foreign.keys());
        let (oldest, newest) = match (self.manifest, names().min(), names().max()) {
            (Some(manifest), ..) => (manifest.oldest, manifest.newest),
            (None, Some(first), Some(last)) => (*first, *last),
            (None, ..) => return,
        };
        for number in (oldest..=newest).filter(|number| !present.contains(number)) {
            let segment = super::segment::name(number);
            let what = match self.foreign.contains_key(&number) {
                true => "the segment is missing, another node's is in its place".to_owned(),
                false => "the segment is missing".to_owned(),
            };
            self.everybody.push(Damage {
                group: None,
                segment,
                offset: 0,
                what,
                log_id: None,
            });
        }
    }

    /// Replays what counts of a batch; false when it was cut.
    fn replay_batch(&mut self, segment: &Scanned, scanned: &ScannedBatch, count: u32, durable: bool) -> bool {
        let batch = &scanned.batch;
        self.check_copies(segment, scanned, durable);
        for (ordinal, found) in read(&segment.bytes, batch, scanned.identity_end)
            .into_iter()
            .enumerate()
        {
            if ordinal as u32 >= count {
                break;
            }
            match found {
                Found::Good(header, payload, in_data) => self.good(segment, batch, header, payload, in_data),
                _ if Mutant::TruncateOnBadCrc.is_on() => {
                    self.synced = self.synced.min(batch.number);
                    self.last_records = ordinal as u32;
                    return false;
                }
                Found::Faulty(header) if header.kind.is_entry() => {
                    self.faulty(segment, batch, header, durable)
                }
                _ if !durable => {
                    self.torn_records = batch.records as usize - ordinal;
                    self.last_records = ordinal as u32;
                    return false;
                }
                Found::Faulty(header) => {
                    let what = format!("both copies of a {:?} record are bad", header.kind);
                    let damage = self.at(segment, header.offset, what, Some(header.group), None);
                    self.damage.push(damage);
                }
                Found::Lost => {
                    self.for_everybody(segment, batch.data_offset, "a record and its identity are bad")
                }
            }
        }
        true
    }

    fn good(&mut self, segment: &Scanned, batch: &Batch, header: Header, payload: Bytes, in_data: bool) {
        if !header.kind.is_entry() {
            return self.state.replay(&header, &payload);
        }
        if !self.state.dead.contains(&header.group) {
            let place = Place {
                segment: segment.number,
                batch: batch.number,
                header,
            };
            let payload = (!in_data).then_some(payload);
            self.state
                .recover(header.group, place, entry_kind(header.kind), payload, None);
        }
    }

    fn faulty(&mut self, segment: &Scanned, batch: &Batch, header: Header, durable: bool) {
        // An entry that was carried forward, or healed, is still whole in its former place.
        let group = self.state.groups.get(&header.group);
        let known = group.and_then(|group| group.entries.get(&header.log_id.index));
        let whole = known.is_some_and(|entry| entry.log_id == header.log_id && entry.fault.is_none());
        if whole || self.state.dead.contains(&header.group) {
            return;
        }
        let place = Place {
            segment: segment.number,
            batch: batch.number,
            header,
        };
        // What was whole once, and was damaged before a copy of it was torn, may have been acknowledged.
        let was_damaged =
            known.is_some_and(|entry| entry.log_id == header.log_id && entry.fault == Some(Fault::Damaged));
        let fault = match durable || was_damaged {
            true => Fault::Damaged,
            false => Fault::PerhapsTorn,
        };
        self.state
            .recover(header.group, place, entry_kind(header.kind), None, Some(fault));
    }

    /// Looks at every byte of a batch, and remembers where it lies. Flaws of a batch that may be torn
    /// are no damage.
    fn check_copies(&mut self, segment: &Scanned, scanned: &ScannedBatch, durable: bool) {
        let ScannedBatch {
            batch,
            identity_end,
            flaws,
        } = scanned;
        if let Some(layout) = self.state.layout.get_mut(&segment.number) {
            let written = Written {
                batch: *batch,
                // Where it ought to end, if nobody knows: what is read there has flaws again.
                identity_end: identity_end.unwrap_or(segment.bytes.len() as u64 - BLOCK),
                torn: !durable && !flaws.is_empty(),
            };
            layout.batches.insert(batch.number, written);
        }
        let copy = |flaw: &Flaw| match flaw {
            Flaw::Copy { offset, what } => Some((*offset, *what)),
            Flaw::Payload(_) => None,
        };
        if let Some((offset, what)) = flaws.iter().find_map(copy).filter(|_| durable) {
            let what = format!("{what} is bad in one copy; nothing is lost");
            let damage = self.at(segment, offset, what, None, None);
            self.damage.push(damage);
        }
    }

    fn at(
        &self,
        segment: &Scanned,
        offset: u64,
        what: String,
        group: Option<GroupId>,
        log_id: Option<LogId>,
    ) -> Damage {
        Damage {
            group,
            segment: segment.name.clone(),
            offset,
            what,
            log_id,
        }
    }

    fn for_everybody(&mut self, segment: &Scanned, offset: u64, what: &str) {
        let damage = self.at(segment, offset, what.to_owned(), None, None);
        self.everybody.push(damage);
    }

    fn finish(mut self) -> Recovered {
        let mut groups = Vec::new();
        for (id, group) in &self.state.groups {
            let own = |what: &str| Damage {
                group: Some(*id),
                segment: String::new(),
                offset: 0,
                what: what.to_owned(),
                log_id: None,
            };
            let mut damaged: Vec<Damage> = self
                .damage
                .iter()
                .filter(|damage| damage.group == Some(*id))
                .cloned()
                .collect();
            damaged.extend(self.everybody.iter().map(|damage| Damage {
                group: Some(*id),
                ..damage.clone()
            }));
            if let Some(reason) = &group.lost {
                let reason = String::from_utf8_lossy(reason);
                damaged.push(own(&format!("it was damaged before: {reason}")));
            }
            if !group.born {
                damaged.push(own("its birth record is lost"));
            }
            if group.has_hole() {
                damaged.push(own("an entry is missing"));
            }
            let faulty = group.entries.values().filter_map(|entry| {
                let place = entry.place?;
                Some(FaultyEntry {
                    log_id: entry.log_id,
                    payload_crc: place.header.payload_crc,
                    perhaps_torn: entry.fault? == Fault::PerhapsTorn,
                })
            });
            groups.push(GroupRecovery {
                id: *id,
                info: group.info.clone(),
                damaged,
                faulty: faulty.collect(),
            });
        }
        for group in &groups {
            let own = group
                .damaged
                .iter()
                .filter(|damage| !self.damage.contains(damage))
                .cloned();
            let own: Vec<Damage> = own.collect();
            self.damage.extend(own);
        }
        if groups.is_empty() {
            self.damage.append(&mut self.everybody);
        }
        // What is wrong with a replica is on record from the next segment on, whatever becomes of this one.
        for found in &groups {
            if let (Some(group), Some(damage)) = (self.state.groups.get_mut(&found.id), found.damaged.first())
            {
                group.lost.get_or_insert_with(|| damage.what.clone().into());
            }
        }
        let own = self.scan.iter().map(|segment| segment.number);
        let newest = own.chain(self.foreign.keys().copied()).max().unwrap_or(0);
        Recovered {
            state: self.state,
            recovery: Recovery {
                groups,
                damage: self.damage,
                torn_records: self.torn_records,
                last_whole_batch: match self.torn_records {
                    0 => self.last_batch,
                    _ => self.last_batch.saturating_sub(1),
                },
            },
            segments: self
                .scan
                .iter()
                .map(|segment| (segment.number, segment.bytes.len() as u64))
                .collect(),
            last_batch: self.last_batch.max(self.synced),
            // Whoever opens the log syncs it before it writes: what is whole now is never torn any more, and
            // bad later is damage.
            synced: match self.last_is_whole {
                true => self.last_batch.max(self.synced),
                false => self.synced,
            },
            last_records: self.last_records,
            newest_segment: newest.max(self.manifest.map_or(0, |manifest| manifest.newest)),
            foreign: self.foreign,
            manifest: self.manifest.filter(|_| self.manifest_settled),
        }
    }
}

/// Damage to a copy of the manifest.
fn of_copy(name: &str, how: &str) -> Damage {
    Damage {
        group: None,
        segment: name.to_owned(),
        offset: 0,
        what: format!("a copy of the manifest is {how}; nothing is lost"),
        log_id: None,
    }
}

/// Whether batches may have been cut off a segment without a trace. They may not, if another segment says
/// where it goes on; or if the place where the next one would begin is there and is free.
fn layout_is_lost(segment: &Scanned, later: &[Scanned]) -> bool {
    let is_short = (segment.file_bytes as usize) < segment.bytes.len();
    let ends = segment
        .batches
        .values()
        .map(|scanned| scanned.batch.data_offset + scanned.batch.padded_data_len());
    let next_begins = ends.max().unwrap_or(BLOCK);
    is_short && later.is_empty() && next_begins + BLOCK > segment.file_bytes
}

/// Whether a batch was the last one when the node went down, and not known to be durable.
fn perhaps_torn(later: &[Scanned], batch: &Batch) -> bool {
    let mut headers = later.iter().filter_map(|segment| segment.header.header());
    headers.any(|header| batch.number + 1 == header.first_batch && header.synced < batch.number)
}

/// How many records of a batch count, after what later segments say; `None`: none.
fn counted(later: &[Scanned], batch: &Batch) -> Option<u32> {
    let mut count = batch.records;
    for header in later.iter().filter_map(|segment| segment.header.header()) {
        if batch.number >= header.first_batch {
            return None;
        }
        if batch.number + 1 == header.first_batch && header.previous_records != ALL_RECORDS {
            count = count.min(header.previous_records);
        }
    }
    Some(count)
}
