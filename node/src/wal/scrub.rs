//! Reads the log from the device, again and again, and compares every byte that counts with what must be
//! there.
//!
//! The log is read a batch at a time, in the order in which it was written, each segment's header before its
//! batches and the manifest before the first segment. Only what the writer has synced is read. A batch that
//! seems bad is read once more before it counts as damaged. Where one is damaged, its neighbours come first.
//!
//! - A payload that is bad makes its entry faulty, if anybody still needs it: the replica heals it.
//! - Anything that is kept twice and is bad in one copy, or in both, is still known in memory. Everything
//!   that counts, up to its segment, is written again elsewhere, and the segment deleted: the damage is gone
//!   with it. A manifest is written again in place.

use std::collections::BTreeSet;
use std::io;

use super::check::{Flaw, Frames};
use super::format::BLOCK;
use super::group::read_entry;
use super::log::{Shared, Wal};
use super::recovery::Damage;
use super::segment::{self, SegmentHeader, read_range};
use super::state::{Layout, Place, State, Written};
use super::writer::{Repair, Work};
use super::{GroupId, manifest};
use crate::disk::{SharedFile, offload};

/// Batches on either side of a damaged one that are read next.
const NEIGHBOURS: usize = 4;

/// A part of the log: a segment and a batch in it; batch 0 is the segment's header.
type Unit = (u64, u64);

/// How far a scrub has come in a cycle. The default is the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct ScrubPosition {
    /// The last unit that was read in order.
    after: Option<Unit>,
    /// Units that come before the next in order.
    first: Vec<Unit>,
    /// What was read out of order in this cycle.
    ahead: BTreeSet<Unit>,
    /// Whether anything but a payload was found damaged in this cycle.
    has_flaws: bool,
}

/// What one step of a scrub came to.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Where to go on.
    pub next: ScrubPosition,
    /// Bytes read from the device.
    pub bytes: u64,
    /// What was found and was not known before; each is being repaired, or is to be healed by its replica.
    pub damage: Vec<Damage>,
    /// This step ended a cycle.
    pub cycle_ended: bool,
    /// It did, and in the whole cycle nothing but payloads was damaged.
    pub is_whole: bool,
}

/// What is known of a unit before it is read.
struct Target {
    unit: Unit,
    file: SharedFile,
    header: Option<SegmentHeader>,
    /// `None`: the header itself is to be read.
    written: Option<Written>,
    /// Whether this step reads the segment for the first time: what is cached then says nothing.
    is_first: bool,
}

impl Wal {
    /// Reads on from a position, at most `bytes_max` and what is left of the batch then, at most to the
    /// cycle's end. Nothing may be scrubbed before the log is known to be the newest of this node: repairs
    /// write to it.
    ///
    /// # Errors
    /// The log is poisoned, or the runtime ends.
    pub async fn scrub(&self, mut from: ScrubPosition, bytes_max: u64) -> io::Result<Scrubbed> {
        let mut step = Scrubbed::default();
        if from.after.is_none() && from.first.is_empty() {
            self.check_manifest(&mut from, &mut step).await?;
        }
        let (mut damaged_upto, mut segment) = (0, None);
        while step.bytes < bytes_max {
            let Some(mut target) = next_target(&self.shared, &mut from) else {
                step.cycle_ended = true;
                break;
            };
            let unit = target.unit;
            target.is_first = segment.replace(unit.0) != Some(unit.0);
            let (bytes, found) = self.check(target).await?;
            step.bytes += bytes;
            let flaws = note(&mut self.shared.state.lock(), unit, found, &mut step.damage);
            if flaws {
                from.has_flaws = true;
                damaged_upto = damaged_upto.max(unit.0);
            }
        }
        if damaged_upto > 0 {
            self.repair(Repair::Evacuate(damaged_upto))?;
        }
        match step.cycle_ended {
            true => step.is_whole = !from.has_flaws,
            false => step.next = from,
        }
        Ok(step)
    }

    /// Has the writer write something again; it may take a while.
    fn repair(&self, repair: Repair) -> io::Result<()> {
        self.shared.send(Work {
            forced: true,
            repair: Some(repair),
            ..Work::default()
        })
    }

    async fn check_manifest(&self, from: &mut ScrubPosition, step: &mut Scrubbed) -> io::Result<()> {
        let expected = *self.shared.manifest.lock();
        let Some(expected) = expected else {
            return Ok(()); // being written
        };
        let (disk, dir) = (self.shared.disk.clone(), self.shared.dir.clone());
        let is_whole = move || (0..2).any(|_| manifest::is_whole(&*disk, &dir, expected));
        let is_whole = offload(&*self.shared.disk, is_whole).await?;
        if is_whole || *self.shared.manifest.lock() != Some(expected) {
            return Ok(());
        }
        from.has_flaws = true;
        step.damage.push(Damage {
            group: None,
            segment: manifest::NAME.to_owned(),
            offset: 0,
            what: "a copy of the manifest is bad; nothing is lost".to_owned(),
            log_id: None,
        });
        self.repair(Repair::Manifest)
    }

    /// Reads a unit from the device: how many bytes that were, and what is wrong with it.
    async fn check(&self, target: Target) -> io::Result<(u64, Vec<Found>)> {
        let places = match target.written {
            Some(written) if written.torn => live_places(&self.shared.state.lock(), target.unit),
            _ => Vec::new(),
        };
        let check = move || {
            // What the page cache holds says nothing of the device. If it cannot be dropped, it is read all the
            // same. Not for each batch: what is read ahead would be read again.
            if target.is_first {
                let _ = target.file.drop_cached();
            }
            let first = target.read(&places);
            if first.1.is_empty() {
                return first;
            }
            // Perhaps it was the way from the device, and not the device.
            let _ = target.file.drop_cached();
            (first.0, target.read(&places).1)
        };
        offload(&*self.shared.disk, check).await
    }
}

/// Something that is wrong.
enum Found {
    Copy { offset: u64, what: &'static str },
    Payload(Place),
}

impl Target {
    fn read(&self, live: &[(GroupId, Place)]) -> (u64, Vec<Found>) {
        match (self.written, self.header) {
            (None, None) => (0, Vec::new()),
            (None, Some(header)) => self.read_header(&header),
            (Some(written), _) if written.torn => {
                let bad = live
                    .iter()
                    .filter(|(_, place)| read_entry(&self.file, place).is_err());
                let bytes = live.iter().map(|(_, place)| place.header.footprint()).sum();
                (bytes, bad.map(|(_, place)| Found::Payload(*place)).collect())
            }
            (Some(written), _) => self.read_batch(&written),
        }
    }

    fn read_header(&self, header: &SegmentHeader) -> (u64, Vec<Found>) {
        let expected = header.block();
        let is_bad = |at: &u64| read_range(&self.file, *at, expected.len()) != expected;
        let bad = [0, header.len_bytes - BLOCK].into_iter().find(is_bad);
        let length = self.file.len_bytes();
        let is_long = length.is_ok_and(|len| len != header.len_bytes);
        let wrong = bad.or(is_long.then_some(header.len_bytes));
        let what = "a segment's header or length";
        (
            2 * BLOCK,
            wrong
                .map(|offset| Found::Copy { offset, what })
                .into_iter()
                .collect(),
        )
    }

    fn read_batch(&self, written: &Written) -> (u64, Vec<Found>) {
        let Written {
            batch, identity_end, ..
        } = *written;
        let identity_at = identity_end.saturating_sub(u64::from(batch.identity_len));
        let data = read_range(&self.file, batch.data_offset, batch.padded_data_len() as usize);
        let identity = read_range(&self.file, identity_at, batch.identity_len as usize);
        let frames = Frames {
            batch: &batch,
            data: &data,
            identity: &identity,
            identity_end,
        };
        let found = |flaw| match flaw {
            Flaw::Copy { offset, what } => Found::Copy { offset, what },
            Flaw::Payload(header) => Found::Payload(Place {
                segment: batch.segment,
                batch: batch.number,
                header,
            }),
        };
        let bytes = (data.len() + identity.len()) as u64;
        (bytes, frames.flaws().into_iter().map(found).collect())
    }
}

/// Takes note of what was found in a unit, unless its segment is gone by now. Whether anything but payloads
/// was.
fn note(state: &mut State, unit: Unit, found: Vec<Found>, damage: &mut Vec<Damage>) -> bool {
    if !state.layout.contains_key(&unit.0) {
        return false;
    }
    let name = segment::name(unit.0);
    let mut copies = Vec::new();
    for found in found {
        match found {
            Found::Copy { offset, what } => copies.push((offset, what)),
            Found::Payload(place) if state.mark_faulty(place.header.group, place) => damage.push(Damage {
                group: Some(place.header.group),
                segment: name.clone(),
                offset: place.header.offset,
                what: "a payload is bad".to_owned(),
                log_id: Some(place.header.log_id),
            }),
            Found::Payload(_) => {} // nobody needs it, or it is known
        }
    }
    let Some((offset, what)) = copies.first() else {
        return false;
    };
    state.suspects.push(unit);
    damage.push(Damage {
        group: None,
        segment: name,
        offset: *offset,
        what: format!("{what} is bad in one copy; nothing is lost"),
        log_id: None,
    });
    true
}

/// Live entries of a batch.
fn live_places(state: &State, unit: Unit) -> Vec<(GroupId, Place)> {
    let entries = state
        .groups
        .iter()
        .flat_map(|(id, group)| group.entries.values().map(move |entry| (*id, entry)));
    let here = |place: &Place| (place.segment, place.batch) == unit;
    let live = entries.filter(|(_, entry)| entry.fault.is_none());
    live.filter_map(|(id, entry)| Some((id, entry.place.filter(here)?)))
        .collect()
}

/// The next unit to read; `None` at the cycle's end.
fn next_target(shared: &Shared, from: &mut ScrubPosition) -> Option<Target> {
    let state = &mut *shared.state.lock();
    for suspect in std::mem::take(&mut state.suspects) {
        for neighbour in neighbours(
            &state.layout.get(&suspect.0).cloned().unwrap_or_default(),
            suspect,
        ) {
            if from.ahead.insert(neighbour) {
                from.first.push(neighbour);
            }
        }
    }
    loop {
        let unit = match from.first.pop() {
            Some(unit) => unit,
            None => {
                let next = next_in_order(state, from.after)?;
                from.after = Some(next);
                if from.ahead.contains(&next) {
                    continue;
                }
                next
            }
        };
        let layout = state.layout.get(&unit.0);
        let written = layout.and_then(|layout| layout.batches.get(&unit.1).copied());
        let Some((layout, file)) = layout.zip(shared.file(unit.0)) else {
            continue; // deleted meanwhile
        };
        if unit.1 == 0 || written.is_some() {
            return Some(Target {
                unit,
                file,
                header: layout.header,
                written,
                is_first: true,
            });
        }
    }
}

fn next_in_order(state: &State, after: Option<Unit>) -> Option<Unit> {
    let (segment, batch) = after.unwrap_or((0, 0));
    let within = state.layout.get(&segment).filter(|_| after.is_some());
    let next = within.and_then(|layout| layout.batches.range(batch + 1..).next());
    match next {
        Some((number, _)) => Some((segment, *number)),
        None => {
            let later = state.layout.range(segment + u64::from(after.is_some())..);
            later.map(|(number, _)| (*number, 0)).next()
        }
    }
}

/// The batches around one, nearest last.
fn neighbours(layout: &Layout, (segment, batch): Unit) -> Vec<Unit> {
    let before = layout.batches.range(..batch).rev().take(NEIGHBOURS);
    let after = layout.batches.range(batch + 1..).take(NEIGHBOURS);
    let mut around: Vec<Unit> = before
        .chain(after)
        .map(|(number, _)| (segment, *number))
        .collect();
    around.sort_by_key(|(_, number)| std::cmp::Reverse(number.abs_diff(batch)));
    around
}
