//! Compares a batch, as the device gives it back, with what a batch is: every byte of both frames
//! counts.
//!
//! A *flaw* is either a payload that is kept once and is bad, or anything that is kept twice and is
//! bad in one copy or both: headers, identities, control payloads, padding.

use super::format::{
    BATCH_MAGIC, Batch, DATA_MAGIC, FOOTER_MAGIC, HEADER_LEN, Header, IDENTITY_MAGIC, align8,
};

/// What is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// A payload, in all the copies there are of it. Its identity is good.
    Payload(Header),
    /// A copy of something else.
    Copy {
        /// Offset in the segment, in bytes.
        offset: u64,
        /// Which.
        what: &'static str,
    },
}

/// Both frames of a batch, as they were read.
pub(super) struct Frames<'a> {
    pub batch: &'a Batch,
    /// The data frame with its padding.
    pub data: &'a [u8],
    /// The identity frame with padding and footer.
    pub identity: &'a [u8],
    /// Where the identity frame ends in the segment.
    pub identity_end: u64,
}

impl Frames<'_> {
    /// Everything that is wrong with them.
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        self.check_batch_headers(&mut flaws);
        let (mut data_at, mut identity_at) = (HEADER_LEN, 0);
        for ordinal in 0..self.batch.records {
            let in_data = self.header(self.data, data_at, DATA_MAGIC);
            let in_identity = self.header(self.identity, identity_at, IDENTITY_MAGIC);
            let fits = |header: &Header| {
                header.ordinal == ordinal && header.offset == self.batch.data_offset + data_at as u64
            };
            let (in_data, in_identity) = (in_data.filter(fits), in_identity.filter(fits));
            if in_data.is_none() {
                flaws.push(self.in_data(data_at, "a record's header"));
            }
            if in_identity.is_none() {
                flaws.push(self.in_identity(identity_at, "an identity"));
            }
            let Some(header) = in_data.or(in_identity) else {
                return flaws; // nobody knows where the next one begins
            };
            if in_data.zip(in_identity).is_some_and(|(one, other)| one != other) {
                flaws.push(self.in_identity(identity_at, "an identity"));
            }
            self.check_payload(&header, data_at, identity_at, &mut flaws);
            let len = align8(header.payload_len as usize);
            data_at = data_at.saturating_add(HEADER_LEN).saturating_add(len);
            identity_at = identity_at.saturating_add(HEADER_LEN);
            if header.kind.is_control() {
                identity_at = identity_at.saturating_add(len);
            }
        }
        if !is_zero(self.data, data_at, self.data.len()) {
            flaws.push(self.in_data(data_at, "padding"));
        }
        let footer_at = self.identity.len().saturating_sub(HEADER_LEN);
        if !is_zero(self.identity, identity_at, footer_at) {
            flaws.push(self.in_identity(identity_at, "padding"));
        }
        flaws
    }

    fn check_batch_headers(&self, flaws: &mut Vec<Flaw>) {
        let footer_at = self.identity.len().saturating_sub(HEADER_LEN);
        let footer = self.identity.get(footer_at..).unwrap_or_default();
        if Batch::decode(self.data, BATCH_MAGIC).as_ref() != Some(self.batch) {
            flaws.push(self.in_data(0, "a batch's header"));
        }
        if Batch::decode(footer, FOOTER_MAGIC).as_ref() != Some(self.batch) {
            flaws.push(self.in_identity(footer_at, "a batch's footer"));
        }
    }

    /// A control payload is there twice, any other once.
    fn check_payload(&self, header: &Header, data_at: usize, identity_at: usize, flaws: &mut Vec<Flaw>) {
        let in_data = is_payload(self.data, data_at + HEADER_LEN, header);
        if !header.kind.is_control() {
            if !in_data {
                flaws.push(Flaw::Payload(*header));
            }
            return;
        }
        let in_identity = is_payload(self.identity, identity_at + HEADER_LEN, header);
        if !in_data && !in_identity && header.kind.is_entry() {
            flaws.push(Flaw::Payload(*header));
        }
        if !in_data {
            flaws.push(self.in_data(data_at, "a control record"));
        }
        if !in_identity {
            flaws.push(self.in_identity(identity_at, "a control record"));
        }
    }

    fn header(&self, frame: &[u8], at: usize, magic: [u8; 4]) -> Option<Header> {
        Header::decode(frame.get(at..)?, magic, self.batch.segment, self.batch.number)
    }

    fn in_data(&self, at: usize, what: &'static str) -> Flaw {
        let offset = self.batch.data_offset + at as u64;
        Flaw::Copy { offset, what }
    }

    fn in_identity(&self, at: usize, what: &'static str) -> Flaw {
        let offset = self.identity_end - self.identity.len() as u64 + at as u64;
        Flaw::Copy { offset, what }
    }
}

/// Whether a payload is whole, with the zeros that fill it up.
fn is_payload(frame: &[u8], at: usize, header: &Header) -> bool {
    let len = header.payload_len as usize;
    let payload = at.checked_add(len).and_then(|end| frame.get(at..end));
    let whole = payload.is_some_and(|payload| crc32fast::hash(payload) == header.payload_crc);
    whole && is_zero(frame, at + len, at + align8(len))
}

fn is_zero(frame: &[u8], from: usize, to: usize) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    let padding = frame.get(from.min(to)..to);
    padding.is_some_and(|padding| {
        let mut blocks = padding.chunks(ZEROS.len());
        blocks.all(|block| *block == ZEROS[..block.len()])
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::GroupId;
    use super::super::format::{Encoded, Kind, Record, encode};
    use super::*;
    use crate::shard::LogId;

    fn batch() -> Encoded {
        let group = GroupId {
            shard_id: 7,
            replica_id: 3,
        };
        let record = |index: u64, kind, payload: &str| Record {
            kind,
            group,
            log_id: LogId::new(2, index),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        let records = [
            record(1, Kind::Normal, "some effects"),
            record(2, Kind::Membership, "members"),
            record(3, Kind::Blank, ""),
            record(0, Kind::Vote, "a vote"),
            record(4, Kind::Normal, &"x".repeat(4_100)),
            record(0, Kind::Mark, &"m".repeat(300)),
        ];
        encode(&records, 9, 8, 2, 8_192)
    }

    fn flaws(encoded: &Encoded) -> Vec<Flaw> {
        let frames = Frames {
            batch: &encoded.batch,
            data: &encoded.data,
            identity: &encoded.identity,
            identity_end: 61_440,
        };
        frames.flaws()
    }

    #[test]
    fn every_flipped_bit_of_both_frames_is_a_flaw() {
        let mut encoded = batch();
        assert_eq!(flaws(&encoded), []);
        for at in 0..encoded.data.len() * 8 {
            encoded.data[at / 8] ^= 1 << (at % 8);
            assert_ne!(flaws(&encoded), [], "bit {at} of the data frame");
            encoded.data[at / 8] ^= 1 << (at % 8);
        }
        for at in 0..encoded.identity.len() * 8 {
            encoded.identity[at / 8] ^= 1 << (at % 8);
            assert_ne!(flaws(&encoded), [], "bit {at} of the identity frame");
            encoded.identity[at / 8] ^= 1 << (at % 8);
        }
    }

    #[test]
    fn a_bad_payload_and_a_bad_copy_are_told_apart() {
        let mut encoded = batch();
        encoded.data[130] ^= 1;
        let found = flaws(&encoded);
        assert!(
            matches!(found[..], [Flaw::Payload(header)] if header.log_id.index == 1),
            "{found:?}"
        );
        encoded.data[130] ^= 1;
        encoded.identity[70] ^= 1;
        let found = flaws(&encoded);
        assert!(matches!(found[..], [Flaw::Copy { .. }]), "{found:?}");
    }
}
