//! Every single fault of a kind, one after the other, on a small log: what recovery then says of an entry,
//! a vote or a mark must be exactly what was written, or the damage must be reported. For tests.
//!
//! The log has two segments of 64 KiB with everything in them that a log can hold. It is kept in memory;
//! for each case the one file that was changed is read again, and the log replayed. A case is a number, so
//! that whoever runs them spreads them over cores as it likes.

use std::collections::BTreeMap;
use std::io;
use std::ops::{AddAssign, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::{try_join, try_join3};

use super::format::{self, BLOCK, HEADER_LEN};
use super::manifest::{self, Loaded};
use super::recovery::{Recovered, Scanned};
use super::replay::Replay;
use super::segment;
use super::state::{Entry, Group};
use super::{EntryKind, GroupId, Identity, Vote, Wal, WalConfig, WalEntry, WalGroup};
use crate::disk::sim::SimDisk;
use crate::shard::LogId;

const DIR: &str = "/data/wal";
const WHO: Identity = Identity {
    cluster_id: [1; 16],
    node_id: 2,
};

/// What became of the cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many there were.
    pub cases: usize,
    /// The fault was reported.
    pub detected: usize,
    /// Nothing was reported and nothing was wrong.
    pub harmless: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.cases += other.cases;
        self.detected += other.detected;
        self.harmless += other.harmless;
    }
}

/// A kind of fault of one file, by the number of cases it has.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// One bit flips, of bytes from some offset on.
    SegmentBits { at: usize, from: usize },
    /// The file is cut to each length less than its own.
    SegmentCuts { at: usize },
    /// The file is gone.
    SegmentGone { at: usize },
    /// One bit of a copy flips.
    ManifestBits { copy: usize },
    /// A copy is cut.
    ManifestCuts { copy: usize },
    /// A copy is gone.
    ManifestGone { copy: usize },
}

/// The log, what is true of it, and all cases.
pub struct Exhaustive {
    scan: Vec<Scanned>,
    files: Vec<Bytes>,
    manifests: [Vec<u8>; 2],
    truth: BTreeMap<GroupId, Truth>,
    kinds: Vec<(Kind, usize)>,
}

/// What was written of one replica.
#[derive(Clone, Debug, PartialEq)]
struct Truth {
    info: Bytes,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    mark: Option<Bytes>,
    entries: Vec<(LogId, EntryKind, Bytes)>,
}

impl Exhaustive {
    /// Writes the log.
    ///
    /// # Errors
    /// The log is not as it was written even before anything is done to it.
    pub async fn new() -> io::Result<Self> {
        let (disk, truth) = write_log().await?;
        let mut files = BTreeMap::new();
        let mut manifests = [Vec::new(), Vec::new()];
        for (path, bytes) in disk.contents() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            match (segment::number_of(&name), name.as_str()) {
                (Some(number), _) => drop(files.insert(number, Bytes::from(bytes))),
                (None, "manifest.1") => manifests[0] = bytes,
                (None, _) => manifests[1] = bytes,
            }
        }
        let scan = files
            .iter()
            .map(|(number, bytes)| scanned(*number, bytes.clone()));
        let scan = scan.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let mut cases = Self {
            scan,
            files: files.into_values().collect(),
            manifests,
            truth,
            kinds: Vec::new(),
        };
        cases.kinds = cases.list();
        let untouched = Replay::new(&cases.scan, &cases.loaded(&cases.manifests.clone().map(Some))).run();
        match cases.compare(&cases.scan, &untouched).map_err(io::Error::other)? {
            true => Err(io::Error::other(format!(
                "damage in a whole log: {:?}",
                untouched.recovery
            ))),
            false => Ok(cases),
        }
    }

    /// How many cases there are.
    pub fn cases(&self) -> usize {
        self.kinds.iter().map(|(_, cases)| cases).sum()
    }

    /// Runs some of them.
    ///
    /// # Errors
    /// The first case in which something wrong was accepted, or recovery panicked.
    pub fn check(&self, cases: Range<usize>) -> Result<Counts, String> {
        let mut counts = Counts::default();
        let mut scan = self.scan.clone();
        for case in cases {
            let Some((kind, nth)) = self.find(case) else { break };
            let outcome = catch_unwind(AssertUnwindSafe(|| self.check_one(kind, nth, &mut scan)));
            let outcome = outcome.unwrap_or_else(|_| Err("recovery panicked".to_owned()));
            let detected = outcome.map_err(|wrong| format!("case {case}, {kind:?}, {nth}: {wrong}"))?;
            counts += Counts {
                cases: 1,
                detected: usize::from(detected),
                harmless: usize::from(!detected),
            };
        }
        Ok(counts)
    }

    fn find(&self, case: usize) -> Option<(Kind, usize)> {
        let mut nth = case;
        for (kind, cases) in &self.kinds {
            if nth < *cases {
                return Some((*kind, nth));
            }
            nth -= cases;
        }
        None
    }

    /// All kinds, and how many cases each has. Of the free blocks between the frames only the two at their
    /// ends are flipped.
    fn list(&self) -> Vec<(Kind, usize)> {
        let mut kinds = Vec::new();
        for (at, segment) in self.scan.iter().enumerate() {
            let len = segment.bytes.len();
            let data_ends = segment
                .batches
                .values()
                .map(|scanned| scanned.batch.data_offset + scanned.batch.padded_data_len());
            let identities = segment
                .batches
                .values()
                .filter_map(|scanned| Some(scanned.identity_end? - u64::from(scanned.batch.identity_len)));
            let free_from = (data_ends.max().unwrap_or(BLOCK) + BLOCK).min(len as u64) as usize;
            let free_to = (identities.min().unwrap_or(len as u64) - BLOCK) as usize;
            let (low, high) = (free_from.min(len), free_to.max(free_from));
            kinds.push((Kind::SegmentBits { at, from: 0 }, low * 8));
            kinds.push((Kind::SegmentBits { at, from: high }, (len - high) * 8));
            kinds.push((Kind::SegmentCuts { at }, len));
            kinds.push((Kind::SegmentGone { at }, 1));
        }
        for copy in 0..self.manifests.len() {
            let len = self.manifests[copy].len();
            kinds.push((Kind::ManifestBits { copy }, len * 8));
            kinds.push((Kind::ManifestCuts { copy }, len));
            kinds.push((Kind::ManifestGone { copy }, 1));
        }
        kinds
    }

    /// Whether the fault was reported.
    fn check_one(&self, kind: Kind, nth: usize, scan: &mut Vec<Scanned>) -> Result<bool, String> {
        let mut manifests = self.manifests.clone().map(Some);
        let (at, changed) = match kind {
            Kind::SegmentBits { at, from } => {
                let mut bytes = self.files[at].to_vec();
                bytes[from + nth / 8] ^= 1 << (nth % 8);
                (at, Some(bytes))
            }
            Kind::SegmentCuts { at } => (at, Some(self.files[at][..nth].to_vec())),
            Kind::SegmentGone { at } => (at, None),
            Kind::ManifestBits { copy } => {
                if let Some(bytes) = &mut manifests[copy] {
                    bytes[nth / 8] ^= 1 << (nth % 8);
                }
                return self.replay(scan, &manifests);
            }
            Kind::ManifestCuts { copy } => {
                manifests[copy] = manifests[copy].take().map(|bytes| bytes[..nth].to_vec());
                return self.replay(scan, &manifests);
            }
            Kind::ManifestGone { copy } => {
                manifests[copy] = None;
                return self.replay(scan, &manifests);
            }
        };
        let whole = scan.remove(at);
        let outcome = match changed {
            None => self.replay(scan, &manifests),
            Some(bytes) => match scanned(whole.number, bytes.into()) {
                Ok(damaged) => {
                    scan.insert(at, damaged);
                    let outcome = self.replay(scan, &manifests);
                    scan.remove(at);
                    outcome
                }
                Err(refused) => Err(format!("the whole log is refused: {refused}")),
            },
        };
        scan.insert(at, whole);
        outcome
    }

    fn loaded(&self, manifests: &[Option<Vec<u8>>; 2]) -> Loaded {
        manifest::judge(manifests)
    }

    fn replay(&self, scan: &[Scanned], manifests: &[Option<Vec<u8>>; 2]) -> Result<bool, String> {
        let recovered = Replay::new(scan, &self.loaded(manifests)).run();
        self.compare(scan, &recovered)
    }

    /// Whether damage was reported. An error if what was recovered is neither true nor reported.
    fn compare(&self, scan: &[Scanned], recovered: &Recovered) -> Result<bool, String> {
        let recovery = &recovered.recovery;
        let mut detected = !recovery.damage.is_empty();
        for (id, truth) in &self.truth {
            let Some(found) = recovery.groups.iter().find(|group| group.id == *id) else {
                if recovery.damage.is_empty() {
                    return Err(format!("{id} is gone without a word"));
                }
                continue;
            };
            if !found.damaged.is_empty() {
                continue;
            }
            let group = recovered
                .state
                .groups
                .get(id)
                .ok_or("a replica that is found is not there")?;
            compare_one(scan, group, truth).map_err(|wrong| format!("{id}: {wrong}"))?;
            let faulty = group
                .entries
                .values()
                .filter(|entry| entry.fault.is_some())
                .count();
            if faulty != found.faulty.len() {
                return Err(format!(
                    "{id}: {faulty} entries are faulty, {} are reported",
                    found.faulty.len()
                ));
            }
            detected |= faulty > 0;
        }
        match recovery
            .groups
            .iter()
            .find(|group| !self.truth.contains_key(&group.id))
        {
            Some(stranger) if stranger.damaged.is_empty() => {
                Err(format!("{} never lived, or died", stranger.id))
            }
            _ => Ok(detected),
        }
    }
}

/// Exactly what was written, but for payloads that are known to be lost.
fn compare_one(scan: &[Scanned], group: &Group, truth: &Truth) -> Result<(), String> {
    let payload_of = |entry: &Entry, written: &Bytes| match (entry.fault, &entry.payload) {
        (Some(_), _) => Some(written.clone()), // reported
        (None, Some(payload)) => Some(payload.clone()),
        (None, None) => {
            let place = entry.place?;
            let segment = scan.iter().find(|segment| segment.number == place.segment)?;
            let from = place.header.offset as usize;
            let len = HEADER_LEN + place.header.payload_len as usize;
            let record = segment.bytes.get(from..from + len)?;
            format::check(&Bytes::copy_from_slice(record), &place.header)
        }
    };
    if group.entries.len() != truth.entries.len() {
        return Err(format!(
            "{} entries instead of {}",
            group.entries.len(),
            truth.entries.len()
        ));
    }
    for ((index, entry), (log_id, kind, written)) in group.entries.iter().zip(&truth.entries) {
        if (*index, entry.log_id, entry.kind) != (log_id.index, *log_id, *kind) {
            return Err(format!("entry {} instead of {log_id}", entry.log_id));
        }
        if payload_of(entry, written).as_ref() != Some(written) {
            return Err(format!("entry {log_id} has another payload"));
        }
    }
    let found = Truth {
        info: group.info.clone(),
        vote: group.vote,
        committed: group.committed,
        purged: group.purged,
        mark: group.mark.clone(),
        entries: truth.entries.clone(),
    };
    match found == *truth {
        true => Ok(()),
        false => Err(format!("{found:?} instead of {truth:?}")),
    }
}

fn scanned(number: u64, bytes: Bytes) -> Result<Scanned, super::WalError> {
    Scanned::of(&segment::path(Path::new(DIR), number), number, bytes, WHO)
}

/// A log with all kinds of records, entries that were truncated, replaced, purged and carried along, and a
/// last batch that nothing later says was synced.
async fn write_log() -> io::Result<(SimDisk, BTreeMap<GroupId, Truth>)> {
    let disk = SimDisk::new(1);
    let ids = [(1, 4), (2, 7)].map(|(shard_id, replica_id)| GroupId { shard_id, replica_id });
    let dead = GroupId {
        shard_id: 3,
        replica_id: 1,
    };
    let first = open(&disk).await?;
    let born = try_join3(
        first.birth(ids[0], Bytes::from(format!("birth of {}", ids[0]))),
        first.birth(ids[1], Bytes::from(format!("birth of {}", ids[1]))),
        first.birth(dead, Bytes::from_static(b"short life")),
    );
    let (one, other, _) = born.await?;
    try_join3(first_life(&one), first_life(&other), first.death(dead)).await?;
    first.close().await;
    let second = open(&disk).await?;
    let mut truth = BTreeMap::new();
    for id in ids {
        let group = second
            .group(id)
            .ok_or_else(|| io::Error::other("a replica is gone"))?;
        try_join(
            group.save_vote(vote(3, id)),
            append(&group, entries(id, 3, 8..12)),
        )
        .await?;
        let written = [entries(id, 1, 2..4), entries(id, 2, 4..8), entries(id, 3, 8..12)].concat();
        let known = Truth {
            info: Bytes::from(format!("birth of {id}")),
            vote: Some(vote(3, id)),
            committed: Some(LogId::new(2, 5)),
            purged: Some(LogId::new(1, 1)),
            mark: Some(Bytes::from(format!("mark of {id}"))),
            entries: written
                .into_iter()
                .map(|entry| (entry.log_id, entry.kind, entry.payload))
                .collect(),
        };
        truth.insert(id, known);
    }
    // Now, before the log says of the last batch that it was synced.
    let image = disk.copy(1);
    image.crash(1);
    second.close().await;
    Ok((image, truth))
}

/// What a replica writes before the restart; all of it is queued at once and so in one batch.
async fn first_life(group: &WalGroup) -> io::Result<()> {
    let id = group.id();
    group.append(entries(id, 1, 0..6), Box::new(drop))?;
    let voted = group.save_vote(vote(2, id));
    let marked = async {
        group.truncate_after(Some(LogId::new(1, 3)))?;
        group.append(entries(id, 2, 4..8), Box::new(drop))?;
        group.save_committed(LogId::new(2, 5))?;
        group.purge(LogId::new(1, 1))?;
        group.put_mark(Bytes::from(format!("mark of {id}"))).await
    };
    try_join(voted, marked).await.map(drop)
}

async fn open(disk: &SimDisk) -> io::Result<Wal> {
    let config = WalConfig {
        segment_bytes: 64 << 10,
        tail_cache_bytes: 1 << 10,
        idle_mark_ms: 5,
    };
    let opened = Wal::open(disk.mount(), PathBuf::from(DIR), config, WHO).await;
    opened.map(|(wal, _)| wal).map_err(io::Error::other)
}

fn vote(term: u64, id: GroupId) -> Vote {
    Vote {
        term,
        voted_for: id.replica_id,
        committed: term.is_multiple_of(2),
    }
}

fn entries(id: GroupId, term: u64, indexes: Range<u64>) -> Vec<WalEntry> {
    let entry = |index: u64| {
        let (kind, payload) = match index % 4 {
            0 => (EntryKind::Blank, String::new()),
            1 => (EntryKind::Membership, format!("members of {id} at {index}")),
            _ => (
                EntryKind::Normal,
                format!("{id} entry {index} of term {term} ").repeat(index as usize),
            ),
        };
        WalEntry {
            log_id: LogId::new(term, index),
            kind,
            payload: payload.into(),
        }
    };
    indexes.map(entry).collect()
}

async fn append(group: &WalGroup, entries: Vec<WalEntry>) -> io::Result<()> {
    let (sender, durable) = tokio::sync::oneshot::channel();
    // Whoever waits is told; nobody else does.
    group.append(entries, Box::new(move |result| drop(sender.send(result))))?;
    durable.await.map_err(io::Error::other)?
}
