//! Reads the log after a start: what is whole, what is torn, what is damaged.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::format::{BLOCK, Batch, Found, Header, padding_is_zero, read};
use super::manifest::{self, Manifest};
use super::segment::{self, ALL_RECORDS, SegmentHeader};
use super::state::{Fault, Place, State, entry_kind};
use super::{GroupId, Identity, WalError};
use crate::disk::Disk;
use crate::mutants::Mutant;
use crate::shard::LogId;

/// Something in the log is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Whom it concerns; `None`: nobody, or it cannot be told whom.
    pub group: Option<GroupId>,
    /// The segment's name.
    pub segment: String,
    /// Offset in it, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// The entry, if it is one.
    pub log_id: Option<LogId>,
}

/// An entry whose identity is known and whose payload is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultyEntry {
    /// Where it stands.
    pub log_id: LogId,
    /// CRC of the payload that is missing.
    pub payload_crc: u32,
    /// Whether it may be cut once every other voter has said that it has no such entry.
    pub perhaps_torn: bool,
}

/// What was found of one replica.
#[derive(Clone, Debug)]
pub struct GroupRecovery {
    /// Which.
    pub id: GroupId,
    /// What its birth record says.
    pub info: Bytes,
    /// Not empty: it must not be started, but be replaced.
    pub damaged: Vec<Damage>,
    /// Not empty: it must not be started before these are healed or cut.
    pub faulty: Vec<FaultyEntry>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// All living replicas.
    pub groups: Vec<GroupRecovery>,
    /// All damage.
    pub damage: Vec<Damage>,
    /// Records of the last batch that the power cut tore and that were cut.
    pub torn_records: usize,
    /// The last batch that is here whole; 0: none. A log that has shown others a later one is not
    /// the log it was.
    pub last_whole_batch: u64,
}

/// The log as recovery leaves it to the writer.
pub(super) struct Recovered {
    pub state: State,
    pub recovery: Recovery,
    pub segments: BTreeMap<u64, u64>,
    /// The last batch that counts, and how many of its records do.
    pub last_batch: u64,
    pub last_records: u32,
    pub synced: u64,
    pub newest_segment: u64,
}

struct Scanned {
    number: u64,
    name: String,
    bytes: Bytes,
    header: Option<SegmentHeader>,
    batches: BTreeMap<u64, (Batch, Option<u64>)>,
}

/// Reads everything. Nothing is changed.
pub(super) fn recover(disk: &dyn Disk, dir: &Path, identity: Identity) -> Result<Recovered, WalError> {
    let io_error = |source: io::Error| WalError::Io {
        path: dir.to_owned(),
        source,
    };
    let manifest = manifest::load(disk, dir);
    let mut scan = Vec::new();
    for entry in disk.list(dir).map_err(io_error)? {
        let Some(number) = segment::number_of(&entry.name) else {
            continue;
        };
        if manifest.is_some_and(|manifest| number < manifest.oldest || number > manifest.newest) {
            continue; // about to be deleted, or never named: no batch in it counts
        }
        let path = dir.join(&entry.name);
        let bytes = segment::read_whole(disk, &path).map_err(|source| WalError::Io {
            path: path.clone(),
            source,
        })?;
        let header = SegmentHeader::read(&path, &bytes, identity)?;
        let batches = batches_in(&bytes, number);
        scan.push(Scanned {
            number,
            name: entry.name,
            bytes,
            header,
            batches,
        });
    }
    scan.sort_by_key(|segment| segment.number);
    Ok(Replay::new(scan, manifest).run())
}

/// Batches of a segment by number, with the end of their identity frame where it was found.
fn batches_in(bytes: &[u8], segment: u64) -> BTreeMap<u64, (Batch, Option<u64>)> {
    let mut found: BTreeMap<u64, (Batch, Option<u64>)> = BTreeMap::new();
    let len = bytes.len() as u64;
    let mut at = BLOCK;
    while at + BLOCK <= len {
        match Batch::at(bytes, segment, at) {
            Some(batch) => {
                found.insert(batch.number, (batch, None));
                at += batch.padded_data_len().max(BLOCK);
            }
            None => at += BLOCK,
        }
    }
    let mut end = len.saturating_sub(BLOCK) / BLOCK * BLOCK;
    while end > BLOCK {
        match Batch::ending_at(bytes, segment, end) {
            Some(batch) => {
                found.entry(batch.number).or_insert((batch, None)).1 = Some(end);
                end -= u64::from(batch.identity_len).clamp(BLOCK, end);
            }
            None => end -= BLOCK,
        }
    }
    found
}

struct Replay {
    scan: Vec<Scanned>,
    manifest: Option<Manifest>,
    state: State,
    damage: Vec<Damage>,
    /// Damage that may concern anybody.
    everybody: Vec<Damage>,
    synced: u64,
    torn_records: usize,
    last_batch: u64,
    last_records: u32,
}

impl Replay {
    fn new(scan: Vec<Scanned>, manifest: Option<Manifest>) -> Self {
        let marks = scan
            .iter()
            .flat_map(|segment| segment.batches.values())
            .map(|(batch, _)| batch.synced);
        let headers = scan
            .iter()
            .filter_map(|segment| segment.header)
            .map(|header| header.synced);
        let synced = marks.chain(headers).max().unwrap_or(0);
        Self {
            scan,
            manifest,
            state: State::default(),
            damage: Vec::new(),
            everybody: Vec::new(),
            synced,
            torn_records: 0,
            last_batch: 0,
            last_records: ALL_RECORDS,
        }
    }

    fn run(mut self) -> Recovered {
        self.find_missing_segments();
        let scan = std::mem::take(&mut self.scan);
        let mut expected = scan
            .first()
            .and_then(|segment| segment.header)
            .map(|header| header.first_batch);
        'segments: for (position, segment) in scan.iter().enumerate() {
            if segment.header.is_none() {
                self.for_everybody(segment, 0, "both copies of the segment's header are bad");
            }
            for (batch, identity_end) in segment.batches.values() {
                let Some(count) = counted(&scan[position + 1..], batch) else {
                    continue;
                };
                if expected.is_some_and(|expected| batch.number > expected) {
                    self.for_everybody(segment, batch.data_offset, "a batch is missing before this one");
                }
                expected = Some(batch.number + 1);
                self.last_batch = batch.number;
                self.last_records = count;
                let durable = batch.number <= self.synced && !perhaps_torn(&scan[position + 1..], batch);
                if !self.replay_batch(segment, batch, *identity_end, count, durable) {
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
        self.finish(scan)
    }

    fn find_missing_segments(&mut self) {
        let present: Vec<u64> = self.scan.iter().map(|segment| segment.number).collect();
        let (oldest, newest) = match (self.manifest, present.first(), present.last()) {
            (Some(manifest), ..) => (manifest.oldest, manifest.newest),
            (None, Some(first), Some(last)) => (*first, *last),
            (None, ..) => return,
        };
        for number in (oldest..=newest).filter(|number| !present.contains(number)) {
            let segment = format!("{number:08}.wal");
            let what = "the segment is missing".to_owned();
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
    fn replay_batch(
        &mut self,
        segment: &Scanned,
        batch: &Batch,
        identity_end: Option<u64>,
        count: u32,
        durable: bool,
    ) -> bool {
        if durable {
            self.check_copies(segment, batch, identity_end);
        }
        for (ordinal, found) in read(&segment.bytes, batch, identity_end).into_iter().enumerate() {
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
        let fault = if durable {
            Fault::Damaged
        } else {
            Fault::PerhapsTorn
        };
        self.state
            .recover(header.group, place, entry_kind(header.kind), None, Some(fault));
    }

    fn check_copies(&mut self, segment: &Scanned, batch: &Batch, identity_end: Option<u64>) {
        let data_end = batch.data_offset + u64::from(batch.data_len);
        let clean = padding_is_zero(
            &segment.bytes,
            data_end,
            batch.data_offset + batch.padded_data_len(),
        );
        if !clean {
            let damage = self.at(
                segment,
                data_end,
                "padding is not zero; nothing is lost".to_owned(),
                None,
                None,
            );
            self.damage.push(damage);
        }
        if identity_end.is_none() {
            let what = "a batch's second copy is bad; nothing is lost".to_owned();
            let damage = self.at(segment, batch.data_offset, what, None, None);
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

    fn finish(mut self, scan: Vec<Scanned>) -> Recovered {
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
        let newest = scan.last().map_or(0, |segment| segment.number);
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
            segments: scan
                .iter()
                .map(|segment| (segment.number, segment.bytes.len() as u64))
                .collect(),
            last_batch: self.last_batch.max(self.synced),
            synced: self.synced,
            last_records: self.last_records,
            newest_segment: newest.max(self.manifest.map_or(0, |manifest| manifest.newest)),
        }
    }
}

/// Whether a batch was the last one when the node went down, and not known to be durable.
fn perhaps_torn(later: &[Scanned], batch: &Batch) -> bool {
    let mut headers = later.iter().filter_map(|segment| segment.header);
    headers.any(|header| batch.number + 1 == header.first_batch && header.synced < batch.number)
}

/// How many records of a batch count, after what later segments say; `None`: none.
fn counted(later: &[Scanned], batch: &Batch) -> Option<u32> {
    let mut count = batch.records;
    for header in later.iter().filter_map(|segment| segment.header) {
        if batch.number >= header.first_batch {
            return None;
        }
        if batch.number + 1 == header.first_batch && header.previous_records != ALL_RECORDS {
            count = count.min(header.previous_records);
        }
    }
    Some(count)
}
