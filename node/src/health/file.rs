//! The ledger on disk: file `events`, lines of text that somebody can read while the node is down.
//!
//! ```text
//! CRC {"cluster_id":"32 hex digits","events":2,"format":1,"node_id":3}
//! CRC {"action":"refill","detected_at_ms":1218412800000,…,"repaired_at_ms":1218412804000,"shard_id":7,…}
//! CRC {"action":"replace replica",…,"node_id":3,"position":"00000003.wal at 8192: …",…}
//! ```
//!
//! CRC: CRC-32 of the JSON that follows it and one blank, in 8 hexadecimal digits. The first line says
//! whose ledger it is (all zeros: nobody's yet) and how many events follow, oldest first. A time
//! of repair of 0 means: not repaired.
//!
//! The file is always replaced as a whole (`write_file_atomically`), so no part of it is ever torn:
//! whatever is not as it was written is damage. It is never a reason not to start. Lines that are
//! whole are kept; the bad file is kept beside as `events.bad`.

use std::io;
use std::path::Path;

use reelkv_proto::v1::DamageEvent;
use serde_json::{Value as Json, json};

use super::Kind;
use super::damage::bounded;
use super::ledger::EVENTS_MAX;
use crate::disk::{Disk, Mode, sync_names};

const FORMAT: u64 = 1;
/// No ledger is longer than this, in bytes: most events times the longest line.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Whose ledger it is; all zeros while the node belongs to no cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The node.
    pub node_id: u64,
}

/// What the file says, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub owner: Owner,
    pub events: Vec<DamageEvent>,
    /// The file's bytes; `None` when there is no file.
    pub content: Option<Vec<u8>>,
    pub damage: Option<(Kind, String)>,
}

impl Loaded {
    fn bad(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            damage: Some((kind, what.into())),
            ..Self::default()
        }
    }
}

/// Reads the ledger. Nothing is changed.
pub(super) fn load(disk: &dyn Disk, path: &Path, owner: Option<Owner>) -> Loaded {
    match read(disk, path) {
        Ok(None) => Loaded::default(),
        Ok(Some(bytes)) => {
            let loaded = decode(&bytes, owner);
            let content = Some(bytes);
            Loaded { content, ..loaded }
        }
        Err(Refused::TooLong(len)) => Loaded::bad(Kind::Foreign, format!("{len} bytes are no ledger")),
        Err(Refused::Io(error)) => Loaded::bad(Kind::Unreadable, error.to_string()),
    }
}

enum Refused {
    TooLong(u64),
    Io(io::Error),
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, Refused> {
    let file = match disk.open(path, Mode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(Refused::Io)?,
    };
    let len = file.len_bytes().map_err(Refused::Io)?;
    if len > FILE_BYTES_MAX {
        return Err(Refused::TooLong(len));
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(0, &mut bytes).map_err(Refused::Io)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// Keeps a bad file for whoever wants to look, in place of an older one.
pub(super) fn set_aside(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let aside = path.with_extension("bad");
    if disk.exists(&aside)? && disk.remove_file(&aside).is_err() {
        disk.remove_dir_all(&aside)?;
    }
    disk.rename(path, &aside)?;
    path.parent().map_or(Ok(()), |dir| sync_names(disk, dir))
}

/// The file's bytes.
pub(super) fn encode<'e>(owner: Owner, events: impl Iterator<Item = &'e DamageEvent>) -> Vec<u8> {
    let events: Vec<String> = events.map(|event| line(&event_json(event))).collect();
    let cluster_id: String = owner
        .cluster_id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut text = line(&json!({
        "format": FORMAT,
        "cluster_id": cluster_id,
        "node_id": owner.node_id,
        "events": events.len(),
    }));
    text.extend(events);
    text.into_bytes()
}

fn line(json: &Json) -> String {
    let json = json.to_string();
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

fn event_json(event: &DamageEvent) -> Json {
    json!({
        "node_id": event.node_id,
        "shard_id": event.shard_id,
        "replica_id": event.replica_id,
        "structure": event.structure,
        "position": event.position,
        "kind": event.kind,
        "action": event.action,
        "detected_at_ms": event.detected_at_ms,
        "repaired_at_ms": event.repaired_at_ms,
    })
}

/// Reads what [`encode`] wrote, as far as it is whole.
fn decode(bytes: &[u8], owner: Option<Owner>) -> Loaded {
    if bytes.is_empty() {
        return Loaded::bad(Kind::Truncated, "the file is empty");
    }
    let mut lines = bytes.split(|byte| *byte == b'\n').map(whole_line);
    let header = lines.next().flatten();
    let format = header.as_ref().and_then(|header| header["format"].as_u64());
    if let Some(format) = format.filter(|format| *format > FORMAT) {
        let what = format!("written in format {format}, this release reads format {FORMAT}");
        return Loaded::bad(Kind::Foreign, what);
    }
    let header = header.as_ref().and_then(header_of);
    if let (Some((theirs, _)), Some(own)) = (header, owner)
        && theirs != Owner::default()
        && theirs != own
    {
        let what = format!(
            "the ledger of node {}; this is node {}",
            theirs.node_id, own.node_id
        );
        return Loaded::bad(Kind::Foreign, what);
    }
    // The last piece is what follows the last newline: nothing.
    let mut bad = usize::from(!bytes.ends_with(b"\n"));
    let mut events = Vec::new();
    let count = bytes
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        .saturating_sub(1);
    for line in lines.take(count) {
        match line.as_ref().and_then(event_of) {
            Some(event) => events.push(event),
            None => bad += 1,
        }
    }
    let found = events.len() + bad;
    events.drain(..events.len().saturating_sub(EVENTS_MAX));
    let damage = match header {
        None if events.is_empty() => Some((Kind::Foreign, "not a ledger of damage".to_owned())),
        None => Some((Kind::Checksum, "its first line is bad".to_owned())),
        Some((_, expected)) if found < expected => {
            let missing = expected - found;
            Some((
                Kind::Truncated,
                format!("{missing} of {expected} events are missing"),
            ))
        }
        Some((_, expected)) if bad > 0 => {
            Some((Kind::Checksum, format!("{bad} of {expected} events are bad")))
        }
        Some((_, expected)) if found > expected => {
            Some((Kind::Checksum, format!("{found} events instead of {expected}")))
        }
        Some(_) => None,
    };
    Loaded {
        owner: header.map_or_else(Owner::default, |(owner, _)| owner),
        content: None,
        events,
        damage,
    }
}

/// A line's JSON, if it is what was written.
fn whole_line(line: &[u8]) -> Option<Json> {
    let (crc, json) = line.split_at_checked(9)?;
    let crc = std::str::from_utf8(crc).ok()?.strip_suffix(' ')?;
    let is_whole = u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json);
    is_whole.then(|| serde_json::from_slice(json).ok()).flatten()
}

fn header_of(json: &Json) -> Option<(Owner, usize)> {
    let digits = json["cluster_id"].as_str().filter(|digits| digits.len() == 32)?;
    let cluster_id = u128::from_str_radix(digits, 16).ok()?.to_be_bytes();
    let node_id = json["node_id"].as_u64()?;
    let owner = Owner { cluster_id, node_id };
    Some((owner, usize::try_from(json["events"].as_u64()?).ok()?))
}

fn event_of(json: &Json) -> Option<DamageEvent> {
    let number = |name: &str| json[name].as_u64();
    let text = |name: &str| Some(bounded(json[name].as_str()?.to_owned()));
    Some(DamageEvent {
        node_id: number("node_id")?,
        shard_id: number("shard_id")?,
        replica_id: number("replica_id")?,
        structure: text("structure")?,
        position: text("position")?,
        kind: text("kind")?,
        action: text("action")?,
        detected_at_ms: number("detected_at_ms")?,
        repaired_at_ms: number("repaired_at_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner {
        cluster_id: [0xab; 16],
        node_id: 3,
    };

    fn event(shard_id: u64) -> DamageEvent {
        DamageEvent {
            node_id: 3,
            shard_id,
            replica_id: 2,
            structure: "tree".to_owned(),
            position: "tables/3 \"quoted\"\nat 4096".to_owned(),
            kind: "checksum".to_owned(),
            action: "refill".to_owned(),
            detected_at_ms: 1_000,
            repaired_at_ms: shard_id % 2 * 2_000,
        }
    }

    fn whole(events: u64) -> Vec<u8> {
        let events: Vec<_> = (0..events).map(event).collect();
        encode(OWNER, events.iter())
    }

    fn events_of(loaded: &Loaded) -> Vec<u64> {
        loaded.events.iter().map(|event| event.shard_id).collect()
    }

    #[test]
    fn what_was_written_is_read_again() {
        for count in [0, 1, 5] {
            let loaded = decode(&whole(count), Some(OWNER));
            assert_eq!(loaded.damage, None);
            assert_eq!(loaded.owner, OWNER);
            assert_eq!(loaded.events, (0..count).map(event).collect::<Vec<_>>());
        }
        let nobody_knows = decode(&whole(1), None);
        assert_eq!((nobody_knows.owner, nobody_knows.damage), (OWNER, None));
    }

    /// Whatever bit flips: it is told, and every other line is kept as it was.
    #[test]
    fn every_flipped_bit_is_told_and_costs_no_other_event() {
        let whole = whole(3);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let loaded = decode(&bytes, Some(OWNER));
                // Digits of a CRC may be written in capitals: nothing is lost then.
                if bytes.eq_ignore_ascii_case(&whole) && loaded.damage.is_none() {
                    continue;
                }
                assert!(loaded.damage.is_some(), "byte {at}, bit {bit}");
                let kept = events_of(&loaded);
                assert!(!kept.is_empty(), "byte {at}, bit {bit}: {kept:?}");
                assert!(
                    loaded.events.iter().all(|kept| *kept == event(kept.shard_id)),
                    "byte {at}, bit {bit}: {:?}",
                    loaded.events
                );
            }
        }
    }

    #[test]
    fn every_length_it_is_cut_to_is_told_and_whole_lines_are_kept() {
        let whole = whole(3);
        for len in 0..whole.len() {
            let loaded = decode(&whole[..len], Some(OWNER));
            assert!(loaded.damage.is_some(), "{len} bytes");
            let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(loaded.events.len(), lines.saturating_sub(1), "{len} bytes");
        }
    }

    #[test]
    fn another_s_ledger_is_foreign_and_one_without_a_place_is_not() {
        let other = Owner { node_id: 4, ..OWNER };
        let loaded = decode(&whole(2), Some(other));
        assert_eq!(loaded.damage.unwrap().0, Kind::Foreign);
        assert!(loaded.events.is_empty());
        let nobodys = encode(Owner::default(), [event(1)].iter());
        let loaded = decode(&nobodys, Some(OWNER));
        assert_eq!((loaded.damage, loaded.events.len()), (None, 1));
        for bytes in [&b"no ledger at all"[..], b"\n\n\n", &[0; 4096], &[0xff; 100]] {
            let loaded = decode(bytes, Some(OWNER));
            assert_eq!(loaded.damage.unwrap().0, Kind::Foreign, "{bytes:?}");
            assert!(loaded.events.is_empty());
        }
    }

    #[test]
    fn a_newer_format_is_not_read() {
        let newer = line(&json!({"format": 2, "what": "ever"}));
        let loaded = decode(newer.as_bytes(), Some(OWNER));
        let (kind, what) = loaded.damage.unwrap();
        assert_eq!(kind, Kind::Foreign);
        assert!(what.contains("format 2"), "{what}");
    }

    #[test]
    fn no_more_than_the_newest_are_kept() {
        let many = EVENTS_MAX as u64 + 7;
        let loaded = decode(&whole(many), Some(OWNER));
        assert_eq!(loaded.events.len(), EVENTS_MAX);
        assert_eq!(loaded.events.last().unwrap().shard_id, many - 1);
    }
}
