//! One stored record, as an engine's value.
//!
//! Little-endian:
//!
//! ```text
//!  0  u8   format, 1; 2 with a time of expiry
//!  1  u8   kind: 1 value, 2 deleted, 3 intent (reserved)
//!  2  u16  zero
//!  4  u32  key length
//!  8  u64  version
//! 16  u64  logged time, milliseconds since 1970
//! 24  u32  client CRC (of keyspace, key and value; computed by the writer, checked by the reader)
//! 28  u32  value length
//! 32  u64  format 2 only: when it expires, in the shard's logged time, milliseconds since 1970
//! ..       key, value
//!     u32  CRC-32 of everything before it
//! ```
//!
//! The record names its own key and version, so a value that an engine returns for another key,
//! or of another time than it should, is recognised.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_128;

use super::TreeError;
use crate::mutants::Mutant;
use crate::shard::has_expired;

const FORMAT: u8 = 1;
/// Only what expires is written in it, so that releases before it can read the rest.
const FORMAT_EXPIRING: u8 = 2;
/// In a fingerprint, in the place of the kind.
const EXPIRING_VALUE: u8 = 0x81;
const KIND_VALUE: u8 = 1;
const KIND_DELETED: u8 = 2;
const KIND_INTENT: u8 = 3;
const HEADER_BYTES: usize = 32;
const EXPIRY_BYTES: usize = 8;
const CRC_BYTES: usize = 4;

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The full stored key (keyspace id and user key).
    pub key: Bytes,
    /// The number of the effect that wrote it, from 1.
    pub version: u64,
    /// What was written; `None` is a delete.
    pub value: Option<Bytes>,
    /// The writer's checksum over keyspace, key and value, carried unchanged.
    pub client_crc: u32,
    /// The logged time of its entry, in milliseconds since 1970.
    pub logged_time_ms: u64,
    /// Absent from this logged time on, in milliseconds since 1970; 0 when it lives until deleted.
    pub expires_at_ms: u64,
}

impl StoredRecord {
    fn kind(&self) -> u8 {
        match self.value {
            Some(_) => KIND_VALUE,
            None => KIND_DELETED,
        }
    }

    /// The record as bytes that prove themselves.
    pub fn encode(&self) -> Bytes {
        let value = self.value.as_deref().unwrap_or_default();
        let mut row = BytesMut::with_capacity(self.encoded_len_bytes());
        let expires = self.expires_at_ms != 0;
        row.put_u8(if expires { FORMAT_EXPIRING } else { FORMAT });
        row.put_u8(self.kind());
        row.put_u16_le(0);
        row.put_u32_le(self.key.len() as u32);
        row.put_u64_le(self.version);
        row.put_u64_le(self.logged_time_ms);
        row.put_u32_le(self.client_crc);
        row.put_u32_le(value.len() as u32);
        if expires {
            row.put_u64_le(self.expires_at_ms);
        }
        row.put_slice(&self.key);
        row.put_slice(value);
        let crc = crc32fast::hash(&row);
        row.put_u32_le(crc);
        row.freeze()
    }

    /// Length of the encoded record.
    pub fn encoded_len_bytes(&self) -> usize {
        let expiry = if self.expires_at_ms != 0 { EXPIRY_BYTES } else { 0 };
        HEADER_BYTES + expiry + self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + CRC_BYTES
    }

    /// Reads a record that was found under `expected_key`; key and value share the memory of `row`.
    ///
    /// # Errors
    /// `Damaged` when any byte differs from what was written or the key is another;
    /// `Unsupported` when a later release wrote it.
    pub fn decode(expected_key: &[u8], row: &Bytes) -> Result<Self, TreeError> {
        Self::parse(expected_key, row, !Mutant::SkipCrcOnRead.is_on())
    }

    /// Reads a record that a peer sent.
    ///
    /// # Errors
    /// As [`StoredRecord::decode`].
    pub fn received(expected_key: &[u8], row: &Bytes) -> Result<Self, TreeError> {
        Self::parse(expected_key, row, !Mutant::InstallUnverifiedChunk.is_on())
    }

    fn parse(expected_key: &[u8], row: &Bytes, verified: bool) -> Result<Self, TreeError> {
        let damaged = |problem: &str| {
            let position = format!("key {}: {problem}", expected_key.escape_ascii());
            Err(TreeError::damaged("record", position))
        };
        if row.len() < HEADER_BYTES + CRC_BYTES {
            return damaged("too short");
        }
        let (body, crc) = row.split_at(row.len() - CRC_BYTES);
        if verified && crc32fast::hash(body) != read_u32(crc, 0) {
            return damaged("checksum mismatch");
        }
        let key_at = match body[0] {
            FORMAT_EXPIRING => HEADER_BYTES + EXPIRY_BYTES,
            _ => HEADER_BYTES,
        };
        if !matches!(body[0], FORMAT | FORMAT_EXPIRING) || body[1] == KIND_INTENT {
            let what = format!("record format {} kind {}", body[0], body[1]);
            return Err(TreeError::Unsupported { what });
        }
        let key_len = read_u32(body, 4) as usize;
        let value_len = read_u32(body, 28) as usize;
        if key_at + key_len + value_len != body.len() {
            return damaged("lengths do not add up");
        }
        let value_at = key_at + key_len;
        if verified && &body[key_at..value_at] != expected_key {
            return damaged("found a record of another key");
        }
        let value = match body[1] {
            KIND_VALUE => Some(row.slice(value_at..value_at + value_len)),
            KIND_DELETED if value_len == 0 => None,
            _ => return damaged("unknown kind"),
        };
        let expires_at_ms = match body[0] {
            FORMAT_EXPIRING => read_u64(body, HEADER_BYTES),
            _ => 0,
        };
        Ok(Self {
            key: row.slice(key_at..value_at),
            version: read_u64(body, 8),
            value,
            client_crc: read_u32(body, 24),
            logged_time_ms: read_u64(body, 16),
            expires_at_ms,
        })
    }

    /// Whether an encoded record claims to be a delete; nothing is verified.
    pub(crate) fn may_be_deleted(row: &[u8]) -> bool {
        row.get(1) == Some(&KIND_DELETED)
    }

    /// Whether it is no value any more at a logged time.
    pub fn has_expired(&self, logged_time_ms: u64) -> bool {
        has_expired(self.expires_at_ms, logged_time_ms)
    }

    /// A fingerprint over key, version, client CRC, kind and time of expiry. The wrapping sum over a set of records
    /// does not depend on their order.
    pub fn digest(&self) -> u128 {
        let mut identity = Vec::with_capacity(self.key.len() + 25);
        identity.extend_from_slice(&self.version.to_le_bytes());
        identity.extend_from_slice(&self.client_crc.to_le_bytes());
        match self.expires_at_ms {
            0 => identity.push(self.kind()),
            expires_at_ms => {
                identity.push(EXPIRING_VALUE);
                identity.extend_from_slice(&expires_at_ms.to_le_bytes());
            }
        }
        identity.extend_from_slice(&self.key); // last: the only part without a fixed length
        xxh3_128(&identity)
    }

    /// Bytes of key and value.
    pub fn payload_bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes[at..at + 4].try_into();
    u32::from_le_bytes(field.expect("the slice is four bytes long"))
}

pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let field = bytes[at..at + 8].try_into();
    u64::from_le_bytes(field.expect("the slice is eight bytes long"))
}

pub(crate) fn read_u128(bytes: &[u8], at: usize) -> u128 {
    let field = bytes[at..at + 16].try_into();
    u128::from_le_bytes(field.expect("the slice is sixteen bytes long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: Option<&'static [u8]>) -> StoredRecord {
        StoredRecord {
            key: Bytes::from_static(b"\0\0\0\x07film/12"),
            version: 41,
            value: value.map(Bytes::from_static),
            client_crc: 0xfeed_beef,
            logged_time_ms: 1_218_412_800_123,
            expires_at_ms: 0,
        }
    }

    fn expiring(value: Option<&'static [u8]>) -> StoredRecord {
        StoredRecord {
            expires_at_ms: 1_218_412_830_123,
            ..record(value)
        }
    }

    #[test]
    fn values_empty_values_and_deletes_come_back() {
        for value in [Some(&b"ACADEMY DINOSAUR"[..]), Some(b""), None] {
            for record in [record(value), expiring(value)] {
                assert_eq!(record.encode().len(), record.encoded_len_bytes());
                assert_eq!(StoredRecord::decode(&record.key, &record.encode()), Ok(record));
            }
        }
    }

    /// Byte for byte what releases before format 2 wrote, and still what is written without an expiry.
    #[test]
    fn the_first_format_is_read_and_written_as_ever() {
        let row = b"\x01\x01\0\0\x0b\0\0\0\x29\0\0\0\0\0\0\0\x7b\xe8\x0f\xaf\x1b\x01\0\0\
            \xef\xbe\xed\xfe\x01\0\0\0\0\0\0\x07film/12x";
        let mut row = row.to_vec();
        row.extend(crc32fast::hash(&row).to_le_bytes());
        let record = record(Some(b"x"));
        assert_eq!(record.encode(), row);
        assert_eq!(StoredRecord::decode(&record.key, &row.into()), Ok(record));
    }

    #[test]
    fn a_later_format_is_unsupported_not_damaged() {
        let record = expiring(Some(b"x"));
        let mut row = record.encode()[..record.encoded_len_bytes() - CRC_BYTES].to_vec();
        row[0] = 3;
        row.extend(crc32fast::hash(&row).to_le_bytes());
        let refused = StoredRecord::decode(&record.key, &row.into());
        assert!(
            matches!(refused, Err(TreeError::Unsupported { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn every_flipped_bit_every_cut_and_another_key_are_refused() {
        every_change_is_refused(&record(Some(b"ACADEMY DINOSAUR")));
        every_change_is_refused(&expiring(Some(b"ACADEMY DINOSAUR")));
    }

    fn every_change_is_refused(record: &StoredRecord) {
        let row = record.encode();
        for bit in 0..row.len() * 8 {
            let mut flipped = row.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                StoredRecord::decode(&record.key, &flipped.into()).is_err(),
                "bit {bit} went unnoticed"
            );
        }
        for len in 0..row.len() {
            assert!(StoredRecord::decode(&record.key, &row.slice(..len)).is_err());
        }
        assert!(StoredRecord::decode(b"\0\0\0\x07film/13", &row).is_err());
    }

    #[test]
    fn the_digest_tells_key_version_crc_expiry_and_kind_apart() {
        let one = record(Some(b"x"));
        let others = [
            StoredRecord {
                key: Bytes::from_static(b"other"),
                ..one.clone()
            },
            StoredRecord {
                version: 42,
                ..one.clone()
            },
            StoredRecord {
                client_crc: 1,
                ..one.clone()
            },
            StoredRecord {
                expires_at_ms: 1,
                ..one.clone()
            },
            StoredRecord {
                value: None,
                ..one.clone()
            },
        ];
        for other in others {
            assert_ne!(one.digest(), other.digest(), "{other:?}");
        }
    }
}
