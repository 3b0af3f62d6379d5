//! Live entries are taken along to the newest segment, so that the one they lie in can be deleted: what
//! little holds the oldest one back, or all there is up to one in which something was found damaged.

use bytes::Bytes;

use super::GroupId;
use super::format::Record;
use super::group::read_entry;
use super::state::{Place, State, record};
use super::writer::Writer;
use crate::disk::offload;

/// The oldest segment's live entries are carried forward when they fill no more than this share of it.
const CARRY_SHARE: u64 = 4;
/// Entries of segments that are evacuated, in one batch, in bytes.
const MOVED_BYTES_TARGET: u64 = 4 << 20;

/// A readable entry that is still needed.
pub(super) type Live = (GroupId, Place, Option<Bytes>);

impl Writer {
    /// The oldest segment's live entries, if they are few.
    pub(super) async fn carried(&self) -> Vec<Record> {
        let oldest = self.segments.first_key_value();
        let Some((oldest, len)) = oldest.map(|(number, len)| (*number, *len)) else {
            return Vec::new();
        };
        if self.segments.len() < 2 {
            return Vec::new();
        }
        let wanted = live_upto(&self.shared.state.lock(), oldest, u64::MAX);
        match bytes_of(&wanted) > len / CARRY_SHARE {
            true => Vec::new(),
            false => self.read_live(wanted).await,
        }
    }

    /// What the next batch takes along of the segments that are evacuated. Nothing ends the evacuation: what
    /// cannot be read stays where it is, faulty, and holds its segment back.
    pub(super) fn moving(&mut self) -> Vec<Live> {
        let moving = match self.evacuate_upto {
            0 => Vec::new(),
            upto => live_upto(&self.shared.state.lock(), upto, MOVED_BYTES_TARGET),
        };
        if moving.is_empty() {
            self.evacuate_upto = 0;
        }
        moving
    }

    /// Their records, as far as they still count.
    pub(super) async fn moved(&self, mut moving: Vec<Live>) -> Vec<Record> {
        {
            let mut state = self.shared.state.lock();
            let mut counts = |id, place: Place| {
                let entry = state.entry(id, place.header.log_id);
                entry.is_some_and(|entry| entry.place == Some(place) && entry.fault.is_none())
            };
            moving.retain(|(id, place, _)| counts(*id, *place));
        }
        self.read_live(moving).await
    }

    async fn read_live(&self, wanted: Vec<Live>) -> Vec<Record> {
        let files = self.shared.files.lock().clone();
        let read = move || {
            let read_one = |(id, place, payload): Live| {
                let on_disk = || read_entry(files.get(&place.segment)?, &place).ok();
                let payload = payload.or_else(on_disk).ok_or((id, place))?;
                Ok(record(place.header.kind, id, place.header.log_id, payload))
            };
            wanted.into_iter().map(read_one).collect::<Vec<_>>()
        };
        let mut records = Vec::new();
        for read in offload(&*self.disk, read).await.unwrap_or_default() {
            match read {
                Ok(record) => records.push(record),
                Err((id, place)) => drop(self.shared.state.lock().mark_faulty(id, place)),
            }
        }
        records
    }
}

/// Readable entries in segments up to one: as many as fit, at least one.
fn live_upto(state: &State, upto: u64, bytes_max: u64) -> Vec<Live> {
    let entries = state
        .groups
        .iter()
        .flat_map(|(id, group)| group.entries.values().map(move |entry| (*id, entry)));
    let old = entries.filter_map(|(id, entry)| {
        let place = entry
            .place
            .filter(|place| place.segment <= upto && entry.fault.is_none())?;
        Some((id, place, entry.payload.clone()))
    });
    let mut bytes = 0;
    old.take_while(|(_, place, _)| {
        let first = bytes == 0;
        bytes += place.header.footprint();
        first || bytes <= bytes_max
    })
    .collect()
}

pub(super) fn bytes_of(live: &[Live]) -> u64 {
    live.iter().map(|(_, place, _)| place.header.footprint()).sum()
}
