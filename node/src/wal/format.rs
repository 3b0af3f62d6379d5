//! Bytes to records and back; no files.
//!
//! All numbers are little endian. CRCs are CRC-32 (IEEE), those of headers seeded with segment and
//! batch number, so that a header is valid in one place only.
//!
//! ```text
//! record header, 64 bytes (in data frames "RKVR", in identity frames "RKVI")
//!  0  4  magic
//!  4  1  kind
//!  5  3  zero
//!  8  4  payload length
//! 12  4  payload CRC
//! 16  8  shard
//! 24  8  replica
//! 32  8  term
//! 40  8  index
//! 48  4  ordinal in its batch
//! 52  8  offset in the segment of the record in the data frame
//! 60  4  CRC of bytes 0..60, seeded
//! ```
//! The payload follows (in identity frames only that of control records), zero-padded to 8 bytes.
//!
//! ```text
//! batch header, 64 bytes, first in a data frame ("RKVBATCH"); the same at the end of an identity
//! frame is its footer ("RKVFOOT.")
//!  0  8  magic
//!  8  8  batch number
//! 16  8  synced mark: everything up to this batch was durable
//! 24  8  segment number
//! 32  8  offset of the data frame in the segment
//! 40  4  length of the data frame, before padding
//! 44  4  length of the identity frame, with padding and footer
//! 48  4  number of records
//! 52  8  zero
//! 60  4  CRC of bytes 0..60
//! ```

use bytes::Bytes;

use super::GroupId;
use crate::shard::LogId;

/// Unit of writing.
pub(super) const BLOCK: u64 = 4096;
pub(super) const HEADER_LEN: usize = 64;

pub(super) const DATA_MAGIC: [u8; 4] = *b"RKVR";
pub(super) const IDENTITY_MAGIC: [u8; 4] = *b"RKVI";
pub(super) const BATCH_MAGIC: [u8; 8] = *b"RKVBATCH";
pub(super) const FOOTER_MAGIC: [u8; 8] = *b"RKVFOOT.";

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    Blank = 1,
    Normal = 2,
    Membership = 3,
    Vote = 10,
    Committed = 11,
    Truncate = 12,
    Purge = 13,
    Mark = 14,
    Birth = 15,
    Death = 16,
    Info = 17,
    Lost = 18,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Blank,
        Self::Normal,
        Self::Membership,
        Self::Vote,
        Self::Committed,
        Self::Truncate,
        Self::Purge,
        Self::Mark,
        Self::Birth,
        Self::Death,
        Self::Info,
        Self::Lost,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    pub fn is_entry(self) -> bool {
        matches!(self, Self::Blank | Self::Normal | Self::Membership)
    }

    /// Kept in full in the identity frame as well.
    pub fn is_control(self) -> bool {
        !matches!(self, Self::Blank | Self::Normal)
    }
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub kind: Kind,
    pub group: GroupId,
    pub log_id: LogId,
    pub payload: Bytes,
}

impl Record {
    /// Bytes it takes in both frames together.
    pub fn footprint(&self) -> u64 {
        footprint(self.kind, self.payload.len())
    }
}

fn footprint(kind: Kind, payload_len: usize) -> u64 {
    let (data, identity) = share(kind, payload_len);
    (data + identity) as u64
}

/// Bytes a record takes in the data frame and in the identity frame.
fn share(kind: Kind, payload_len: usize) -> (usize, usize) {
    let payload = align8(payload_len);
    let copy = if kind.is_control() { payload } else { 0 };
    (HEADER_LEN + payload, HEADER_LEN + copy)
}

/// A record's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub group: GroupId,
    pub log_id: LogId,
    pub payload_len: u32,
    pub payload_crc: u32,
    pub ordinal: u32,
    /// Offset of the record in the data frame, in the segment.
    pub offset: u64,
}

/// A frame's header or footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub number: u64,
    pub synced: u64,
    pub segment: u64,
    pub data_offset: u64,
    pub data_len: u32,
    pub identity_len: u32,
    pub records: u32,
}

/// Both frames of a batch, ready to be written.
pub(super) struct Encoded {
    pub batch: Batch,
    /// Padded to whole blocks.
    pub data: Vec<u8>,
    /// Padded to whole blocks.
    pub identity: Vec<u8>,
    /// Each record's identity.
    pub headers: Vec<Header>,
}

pub(super) fn align8(len: usize) -> usize {
    len.next_multiple_of(8)
}

fn seeded_crc(segment: u64, batch: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&batch.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

impl Header {
    /// Bytes the record takes in both frames together.
    pub fn footprint(&self) -> u64 {
        footprint(self.kind, self.payload_len as usize)
    }

    fn encode(&self, magic: [u8; 4], segment: u64, batch: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&magic);
        bytes[4] = self.kind as u8;
        bytes[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.group.shard_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.group.replica_id.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.log_id.term.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.log_id.index.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes[52..60].copy_from_slice(&self.offset.to_le_bytes());
        let crc = seeded_crc(segment, batch, &bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8], magic: [u8; 4], segment: u64, batch: u64) -> Option<Self> {
        let bytes = bytes.get(..HEADER_LEN)?;
        if bytes[0..4] != magic || u32_at(bytes, 60) != seeded_crc(segment, batch, &bytes[..60]) {
            return None;
        }
        Some(Self {
            kind: Kind::from_number(bytes[4])?,
            group: GroupId {
                shard_id: u64_at(bytes, 16),
                replica_id: u64_at(bytes, 24),
            },
            log_id: LogId::new(u64_at(bytes, 32), u64_at(bytes, 40)),
            payload_len: u32_at(bytes, 8),
            payload_crc: u32_at(bytes, 12),
            ordinal: u32_at(bytes, 48),
            offset: u64_at(bytes, 52),
        })
    }
}

impl Batch {
    fn encode(&self, magic: [u8; 8]) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&magic);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.synced.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data_offset.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.data_len.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.identity_len.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.records.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8], magic: [u8; 8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_LEN)?;
        if bytes[0..8] != magic || u32_at(bytes, 60) != crc32fast::hash(&bytes[..60]) {
            return None;
        }
        Some(Self {
            number: u64_at(bytes, 8),
            synced: u64_at(bytes, 16),
            segment: u64_at(bytes, 24),
            data_offset: u64_at(bytes, 32),
            data_len: u32_at(bytes, 40),
            identity_len: u32_at(bytes, 44),
            records: u32_at(bytes, 48),
        })
    }

    /// The batch whose data frame begins at `offset` of a segment's bytes.
    pub fn at(bytes: &[u8], segment: u64, offset: u64) -> Option<Self> {
        let batch = Self::decode(bytes.get(offset as usize..)?, BATCH_MAGIC)?;
        (batch.segment == segment && batch.data_offset == offset).then_some(batch)
    }

    /// The batch whose identity frame ends at `end` of a segment's bytes.
    pub fn ending_at(bytes: &[u8], segment: u64, end: u64) -> Option<Self> {
        let footer = bytes.get((end as usize).checked_sub(HEADER_LEN)?..end as usize)?;
        let batch = Self::decode(footer, FOOTER_MAGIC)?;
        (batch.segment == segment && u64::from(batch.identity_len) <= end).then_some(batch)
    }

    /// Length of the data frame in whole blocks.
    pub fn padded_data_len(&self) -> u64 {
        u64::from(self.data_len).next_multiple_of(BLOCK)
    }
}

/// Lengths of both frames of a batch of these records, in whole blocks: each frame is allocated once.
fn frame_lens(records: &[Record]) -> (usize, usize) {
    let (mut data, mut identity) = (HEADER_LEN, HEADER_LEN);
    for record in records {
        let (in_data, in_identity) = share(record.kind, record.payload.len());
        data += in_data;
        identity += in_identity;
    }
    let block = BLOCK as usize;
    (data.next_multiple_of(block), identity.next_multiple_of(block))
}

/// Lays a batch out.
pub(super) fn encode(
    records: &[Record],
    number: u64,
    synced: u64,
    segment: u64,
    data_offset: u64,
) -> Encoded {
    let (data_len, identity_len) = frame_lens(records);
    let mut data = Vec::with_capacity(data_len);
    data.resize(HEADER_LEN, 0);
    let mut identity = Vec::with_capacity(identity_len);
    let mut headers = Vec::with_capacity(records.len());
    for (ordinal, record) in records.iter().enumerate() {
        let header = Header {
            kind: record.kind,
            group: record.group,
            log_id: record.log_id,
            payload_len: record.payload.len() as u32,
            payload_crc: crc32fast::hash(&record.payload),
            ordinal: ordinal as u32,
            offset: data_offset + data.len() as u64,
        };
        data.extend_from_slice(&header.encode(DATA_MAGIC, segment, number));
        data.extend_from_slice(&record.payload);
        data.resize(align8(data.len()), 0);
        identity.extend_from_slice(&header.encode(IDENTITY_MAGIC, segment, number));
        if record.kind.is_control() {
            identity.extend_from_slice(&record.payload);
            identity.resize(align8(identity.len()), 0);
        }
        headers.push(header);
    }
    let batch = Batch {
        number,
        synced,
        segment,
        data_offset,
        data_len: data.len() as u32,
        identity_len: identity_len as u32,
        records: records.len() as u32,
    };
    data[..HEADER_LEN].copy_from_slice(&batch.encode(BATCH_MAGIC));
    data.resize(data.len().next_multiple_of(BLOCK as usize), 0);
    identity.resize(identity_len - HEADER_LEN, 0);
    identity.extend_from_slice(&batch.encode(FOOTER_MAGIC));
    debug_assert_eq!((data.len(), identity.len()), (data_len, identity_len));
    Encoded {
        batch,
        data,
        identity,
        headers,
    }
}

/// What became of one record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Whole. False: only the copy in the identity frame is.
    Good(Header, Bytes, bool),
    /// Its identity is known, its payload is not.
    Faulty(Header),
    /// Nothing of it is known.
    Lost,
}

/// Reads a batch from both its frames; each may be missing (`None`: its header was not found).
pub(super) fn read(segment: &Bytes, batch: &Batch, identity_end: Option<u64>) -> Vec<Found> {
    let count = batch.records as usize;
    let data_end = (batch.data_offset + u64::from(batch.data_len)).min(segment.len() as u64) as usize;
    let data_start = (batch.data_offset as usize + HEADER_LEN).min(data_end);
    let mut found: Vec<Found> = vec![Found::Lost; count];
    let mut keep = |header: Header, payload: Option<(Bytes, bool)>| {
        let Some(slot) = found.get_mut(header.ordinal as usize) else {
            return;
        };
        match (payload, &slot) {
            (_, Found::Good(_, _, true)) => {}
            (Some((payload, in_data)), _) => *slot = Found::Good(header, payload, in_data),
            (None, Found::Lost) => *slot = Found::Faulty(header),
            (None, _) => {}
        }
    };
    for (at, header) in headers_in(segment, data_start, data_end, DATA_MAGIC, batch) {
        keep(
            header,
            payload_at(segment, at + HEADER_LEN, &header).map(|payload| (payload, true)),
        );
    }
    if let Some(end) = identity_end {
        let start = (end as usize).saturating_sub(batch.identity_len as usize);
        let end = (end as usize - HEADER_LEN).max(start);
        for (at, header) in headers_in(segment, start, end, IDENTITY_MAGIC, batch) {
            let in_data = payload_at(segment, header.offset as usize + HEADER_LEN, &header)
                .map(|payload| (payload, true));
            let inline = || {
                header
                    .kind
                    .is_control()
                    .then(|| payload_at(segment, at + HEADER_LEN, &header))
                    .flatten()
            };
            keep(
                header,
                in_data.or_else(|| inline().map(|payload| (payload, false))),
            );
        }
    }
    found
}

fn payload_at(segment: &Bytes, at: usize, header: &Header) -> Option<Bytes> {
    let end = at.checked_add(header.payload_len as usize)?;
    let payload = segment.get(at..end)?;
    (crc32fast::hash(payload) == header.payload_crc).then(|| segment.slice(at..end))
}

/// Valid record headers between two offsets. After a bad one the next is searched for.
fn headers_in(
    segment: &[u8],
    start: usize,
    end: usize,
    magic: [u8; 4],
    batch: &Batch,
) -> Vec<(usize, Header)> {
    let mut found = Vec::new();
    let mut at = start;
    while at + HEADER_LEN <= end {
        match Header::decode(&segment[at..], magic, batch.segment, batch.number) {
            Some(header) => {
                found.push((at, header));
                let inline = magic == DATA_MAGIC || header.kind.is_control();
                let payload = if inline {
                    align8(header.payload_len as usize)
                } else {
                    0
                };
                at = at.saturating_add(HEADER_LEN).saturating_add(payload);
            }
            None => at += 8,
        }
    }
    found
}

/// The payload of a control record in an identity frame, if it is there and whole.
pub(super) fn inline_payload(identity: &Bytes, batch: &Batch, expected: &Header) -> Option<Bytes> {
    let end = identity.len().saturating_sub(HEADER_LEN);
    let headers = headers_in(identity, 0, end, IDENTITY_MAGIC, batch);
    let (at, _) = headers.into_iter().find(|(_, header)| header == expected)?;
    payload_at(identity, at + HEADER_LEN, expected)
}

/// Checks a record read back from a file against what is known of it.
pub(super) fn check(bytes: &Bytes, expected: &Header) -> Option<Bytes> {
    payload_at(bytes, HEADER_LEN, expected)
}
