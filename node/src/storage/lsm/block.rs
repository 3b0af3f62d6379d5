//! The library's blocks, read without the library, which trusts what it parses.
//!
//! Little-endian; varints are LEB128; nothing is compressed.
//!
//! ```text
//! block:      "LSM\x03", u8 kind (0 is data), u128 xxh3 of the contents, u32 length of the contents,
//!             u32 the same, u32 lowest bits of the xxh3-128 of the 29 bytes before; contents
//! contents of a data block:  items, u8 255, positions of the full keys, hash index, trailer
//! item:       u8 kind (0 value, 1 and 2 deletes), varint number, key, and of a value: varint length, bytes
//! key:        the first of every so many: varint length, bytes;
//!             the rest: varint length shared with the last of the first, varint length, bytes
//! trailer:    u8 so many, u8 and u32 and u32 about the positions, u32 and u32 about the hash index,
//!             u8[9] unused, u32 items
//! ```

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::storage::Stretch;
use crate::storage::record::{read_u32, read_u128};

pub(super) const HEADER_BYTES: usize = 33;
const MAGIC: &[u8] = b"LSM\x03";
const SUMMED_BYTES: usize = 29;
const TRAILER_BYTES: usize = 31;
const END_OF_ITEMS: u8 = 255;
const VALUE: u8 = 0;
const TOMBSTONES: [u8; 2] = [1, 2];

/// What a block says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub is_data: bool,
    pub contents_len: usize,
    xxh3_128: u128,
    sum: u32,
}

impl Header {
    /// Reads a header; `None` when it is none, or damaged.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let sum = read_u32(bytes, SUMMED_BYTES);
        let contents_len = read_u32(bytes, 21);
        let fits = bytes.starts_with(MAGIC)
            && read_u32(bytes, 25) == contents_len
            && xxh3_128(&bytes[..SUMMED_BYTES]) as u32 == sum;
        fits.then_some(Self {
            is_data: bytes[4] == 0,
            contents_len: contents_len as usize,
            xxh3_128: read_u128(bytes, 5),
            sum,
        })
    }

    /// Length with the contents.
    pub(super) fn block_len(&self) -> usize {
        HEADER_BYTES + self.contents_len
    }

    /// Whether these are the contents that were written with it.
    pub(super) fn proves(&self, contents: &[u8]) -> bool {
        contents.len() == self.contents_len && xxh3_128(contents) == self.xxh3_128
    }

    /// The block, as a stretch of its own.
    pub(super) fn stretch(&self) -> Option<Stretch> {
        let bytes = u32::try_from(self.block_len()).ok()?;
        Some(Stretch { bytes, sum: self.sum })
    }
}

/// One version of one of the library's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub key: Bytes,
    pub number: u64,
    /// `None` is a delete.
    pub value: Option<Bytes>,
}

impl Item {
    /// Whether it comes after another in a table: by key, then newest first.
    pub(super) fn follows(&self, other: &Self) -> bool {
        (&self.key, other.number) > (&other.key, self.number)
    }
}

/// All items of a data block, in order; `None` when the contents are not of that form. Values share
/// the memory of `contents`.
pub(super) fn items(contents: &Bytes) -> Option<Vec<Item>> {
    let trailer_at = contents.len().checked_sub(TRAILER_BYTES)?;
    let every = contents[trailer_at];
    let count = read_u32(contents, contents.len() - 4) as usize;
    let mut cursor = Cursor {
        bytes: &contents[..trailer_at],
        at: 0,
    };
    // (An item takes at least four bytes; what a damaged count asks for is not reserved.)
    let mut items: Vec<Item> = Vec::with_capacity(count.min(trailer_at / 4));
    let mut full_key = Bytes::new();
    for place in 0..count {
        let kind = cursor.u8()?;
        let number = cursor.varint()?;
        let key = if place.checked_rem(every.into())? == 0 {
            let len = cursor.length()?;
            full_key = contents.slice(cursor.skip(len)?);
            full_key.clone()
        } else {
            let (shared, len) = (cursor.length()?, cursor.length()?);
            let rest = cursor.skip(len)?;
            [full_key.get(..shared)?, &contents[rest]].concat().into()
        };
        let value = match kind {
            VALUE => {
                let len = cursor.length()?;
                Some(contents.slice(cursor.skip(len)?))
            }
            kind if TOMBSTONES.contains(&kind) => None,
            _ => return None,
        };
        let item = Item { key, number, value };
        if items.last().is_some_and(|last| !item.follows(last)) {
            return None;
        }
        items.push(item);
    }
    (cursor.u8()? == END_OF_ITEMS && !items.is_empty()).then_some(items)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn u8(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.varint()?).ok()
    }

    /// Where the next `len` bytes are.
    fn skip(&mut self, len: usize) -> Option<std::ops::Range<usize>> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len())?;
        let range = self.at..end;
        self.at = end;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use lsm_tree::table::block::BlockType;
    use lsm_tree::table::{Block, DataBlock};
    use lsm_tree::{CompressionType, InternalValue, ValueType};

    use super::*;

    fn written_by_the_library(rows: &[InternalValue]) -> Vec<u8> {
        let mut contents = Vec::new();
        DataBlock::encode_into(&mut contents, rows, 16, 0.0).unwrap();
        let mut block = Vec::new();
        Block::write_into(&mut block, &contents, BlockType::Data, CompressionType::None).unwrap();
        block
    }

    fn rows() -> Vec<InternalValue> {
        let mut rows = Vec::new();
        for number in 0..40_u64 {
            let key = format!("\x01some key {number:03}");
            let long = "v".repeat(number as usize * 7);
            if number % 3 == 0 {
                rows.push(InternalValue::from_components(
                    &*key,
                    "newer",
                    9_000 << 20,
                    ValueType::Value,
                ));
            }
            let kind = match number % 5 {
                0 => ValueType::Tombstone,
                _ => ValueType::Value,
            };
            let value = if kind == ValueType::Value { &*long } else { "" };
            rows.push(InternalValue::from_components(&*key, value, number << 20, kind));
        }
        rows
    }

    #[test]
    fn what_the_library_wrote_is_read_as_the_library_reads_it() {
        let block = Bytes::from(written_by_the_library(&rows()));
        let header = Header::parse(&block).unwrap();
        assert!(header.is_data && header.block_len() == block.len());
        let contents = block.slice(HEADER_BYTES..);
        assert!(header.proves(&contents));
        let expected: Vec<_> = rows()
            .iter()
            .map(|row| Item {
                key: Bytes::copy_from_slice(&row.key.user_key),
                number: row.key.seqno,
                value: (row.key.value_type == ValueType::Value).then(|| Bytes::copy_from_slice(&row.value)),
            })
            .collect();
        assert_eq!(items(&contents), Some(expected));
    }

    #[test]
    fn every_flipped_bit_of_a_block_is_noticed_and_no_bytes_are_too_odd_to_parse() {
        let block = written_by_the_library(&rows()[..20]);
        for bit in 0..block.len() * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let noticed = match Header::parse(&flipped) {
                None => true,
                Some(header) => !header.proves(&flipped[HEADER_BYTES..]),
            };
            assert!(noticed, "bit {bit}");
            let _ = items(&Bytes::from(flipped).slice(HEADER_BYTES..)); // does not panic
        }
        for len in 0..block.len() {
            assert!(Header::parse(&block[..len]).is_none_or(|header| header.block_len() > len));
            let _ = items(&Bytes::copy_from_slice(&block[..len]));
        }
    }
}
