//! Reads the log after a start: what is whole, what is torn, what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::check::{Flaw, Frames};
use super::format::{BLOCK, Batch};
use super::manifest::{self, Manifest};
use super::replay::Replay;
use super::segment::{self, Copies};
use super::state::State;
use super::{GroupId, Identity, WalError};
use crate::disk::Disk;
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
    /// Length of each segment that is another node's.
    pub foreign: BTreeMap<u64, u64>,
    /// What both copies of the manifest ought to say, if that can be told.
    pub manifest: Option<Manifest>,
}

/// One segment's bytes and the batches that were found in them.
#[derive(Clone)]
pub(super) struct Scanned {
    pub number: u64,
    pub name: String,
    /// As long as the header says, whatever the file's length: what is missing is zero.
    pub bytes: Bytes,
    /// Length of the file.
    pub file_bytes: u64,
    pub header: Copies,
    /// By number.
    pub batches: BTreeMap<u64, ScannedBatch>,
}

/// A batch that was found.
#[derive(Clone)]
pub(super) struct ScannedBatch {
    pub batch: Batch,
    /// Where its identity frame ends, as far as that is known.
    pub identity_end: Option<u64>,
    /// What is wrong with its bytes.
    pub flaws: Vec<Flaw>,
}

/// Reads everything. Nothing is changed.
pub(super) fn recover(disk: &dyn Disk, dir: &Path, identity: Identity) -> Result<Recovered, WalError> {
    let io_error = |source: io::Error| WalError::Io {
        path: dir.to_owned(),
        source,
    };
    let loaded = manifest::load(disk, dir);
    let mut scan: Vec<Scanned> = Vec::new();
    let mut foreign = BTreeMap::new();
    let mut refused = None;
    let mut there: BTreeSet<u64> = BTreeSet::new();
    for entry in disk.list(dir).map_err(io_error)? {
        let Some(number) = segment::number_of(&entry.name) else {
            continue;
        };
        there.insert(number);
        if loaded.manifest.is_some_and(|manifest| !manifest.names(number)) {
            continue; // about to be deleted, or never named: no batch in it counts
        }
        let path = dir.join(&entry.name);
        let bytes = segment::read_whole(disk, &path).map_err(|source| WalError::Io {
            path: path.clone(),
            source,
        })?;
        let len_bytes = bytes.len() as u64;
        match Scanned::of(&path, number, bytes, identity) {
            Ok(scanned) => scan.push(scanned),
            Err(error @ WalError::Foreign { .. }) => {
                foreign.insert(number, len_bytes);
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    // One among this node's own took the place of one that is lost. Alone, they are another node's log.
    let is_own = |segment: &Scanned| segment.header.header().is_some();
    if let Some(refused) = refused
        && !scan.iter().any(is_own)
    {
        return Err(refused);
    }
    scan.sort_by_key(|segment| segment.number);
    let has_batches = |number| {
        let segment = scan.iter().find(|segment| segment.number == number);
        segment.is_some_and(|segment| !segment.batches.is_empty())
    };
    let outdated = loaded.outdated(has_batches, |number| there.contains(&number));
    let replay = Replay::new(&scan, &loaded).beside(foreign);
    Ok(replay.with_outdated(outdated).run())
}

/// Whose log is in a directory, as far as the segments that count say: one owner, if nothing is wrong.
pub fn owners(disk: &dyn Disk, dir: &Path) -> Vec<Identity> {
    let mut owners = Vec::new();
    let manifest = manifest::load(disk, dir).manifest;
    for entry in disk.list(dir).unwrap_or_default() {
        let Some(number) = segment::number_of(&entry.name) else {
            continue;
        };
        if manifest.is_none_or(|manifest| manifest.names(number))
            && let Some(owner) = segment::owner(disk, &dir.join(&entry.name))
            && !owners.contains(&owner)
        {
            owners.push(owner);
        }
    }
    owners
}

impl Scanned {
    /// Finds what is in a segment.
    ///
    /// # Errors
    /// It is another node's, or of a newer format.
    pub fn of(path: &Path, number: u64, bytes: Bytes, identity: Identity) -> Result<Self, WalError> {
        let header = Copies::read(path, number, &bytes, identity)?;
        let file_bytes = bytes.len() as u64;
        let len_bytes = header.header().map_or(file_bytes, |header| header.len_bytes);
        let bytes = match len_bytes == file_bytes {
            true => bytes,
            false => {
                let mut bytes = bytes.to_vec();
                bytes.resize(len_bytes as usize, 0);
                bytes.into()
            }
        };
        let mut found = batches_in(&bytes, number);
        find_identities(&mut found, bytes.len() as u64);
        let scanned = |(number, (batch, identity_end)): (u64, (Batch, Option<u64>))| {
            let flaws = flaws(&bytes, &batch, identity_end);
            let scanned = ScannedBatch {
                batch,
                identity_end,
                flaws,
            };
            (number, scanned)
        };
        let batches = found.into_iter().map(scanned).collect();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            number,
            name,
            bytes,
            file_bytes,
            header,
            batches,
        })
    }
}

/// Batches of a segment by number, with the end of their identity frame where its footer is good.
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

/// Identity frames stand one below the other: where one ends whose footer is bad is known from the
/// batch before it.
fn find_identities(batches: &mut BTreeMap<u64, (Batch, Option<u64>)>, len: u64) {
    let mut next: Option<(u64, u64)> = None; // number and end
    for (position, (number, (batch, end))) in batches.iter_mut().enumerate() {
        let expected = match next {
            None if position == 0 && batch.data_offset == BLOCK => Some(len.saturating_sub(BLOCK)),
            Some((expected, at)) if expected == *number => Some(at),
            _ => None,
        };
        let data_end = batch.data_offset + batch.padded_data_len();
        let fits = |end: &u64| end.checked_sub(u64::from(batch.identity_len)) >= Some(data_end);
        *end = end.or(expected.filter(fits));
        next = end.map(|end| (number + 1, end.saturating_sub(u64::from(batch.identity_len))));
    }
}

fn flaws(segment: &[u8], batch: &Batch, identity_end: Option<u64>) -> Vec<Flaw> {
    let data = batch.data_offset as usize..(batch.data_offset + batch.padded_data_len()) as usize;
    let identity_at = |end: u64| end.checked_sub(u64::from(batch.identity_len));
    let identity = identity_end.and_then(|end| segment.get(identity_at(end)? as usize..end as usize));
    let frames = Frames {
        batch,
        data: segment.get(data).unwrap_or_default(),
        identity: identity.unwrap_or_default(),
        identity_end: identity_end.unwrap_or(segment.len() as u64),
    };
    frames.flaws()
}
