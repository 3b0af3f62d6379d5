//! Reads `COPY … TO STDOUT (FORMAT binary)`.
//!
//! ```text
//! signature   11 bytes  "PGCOPY\n\xff\r\n\0"
//! flags        4 bytes  bit 16: rows carry oids (no server since 12 does); other high bits: unknown to us
//! extension    4 bytes  length of what follows, to be skipped
//! row …        2 bytes  number of fields, then per field 4 bytes length (-1: NULL) and as many bytes
//! trailer      2 bytes  -1
//! ```
//!
//! All integers are big-endian. Where the stream is cut into messages means nothing.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = SIGNATURE.len() + 8;
const CRITICAL_FLAGS: u32 = 0xffff_0000;

/// A row as it arrived: its bytes, and where each field is.
#[derive(Clone, Debug)]
pub(crate) struct RawRow {
    bytes: Bytes,
    fields: Vec<Option<Range<usize>>>,
}

impl RawRow {
    /// A field; none for NULL.
    pub(crate) fn field(&self, index: usize) -> Option<&[u8]> {
        self.fields.get(index)?.clone().map(|range| &self.bytes[range])
    }
}

/// Turns a stream of bytes into rows.
#[derive(Debug)]
pub(crate) struct BinaryCopy {
    columns: usize,
    buffer: BytesMut,
    header_read: bool,
    ended: bool,
}

impl BinaryCopy {
    pub(crate) fn new(columns: usize) -> BinaryCopy {
        BinaryCopy {
            columns,
            buffer: BytesMut::new(),
            header_read: false,
            ended: false,
        }
    }

    /// More of the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next row, or none before more is fed.
    pub(crate) fn next_row(&mut self) -> Result<Option<RawRow>, String> {
        if !self.header_read && !self.read_header()? {
            return Ok(None);
        }
        let Some(count) = read_i16(&self.buffer, 0) else {
            return Ok(None);
        };
        if self.ended {
            return Err("bytes after the trailer".to_owned());
        }
        if count == -1 {
            self.buffer.advance(2);
            self.ended = true;
            return if self.buffer.is_empty() {
                Ok(None)
            } else {
                Err("bytes after the trailer".to_owned())
            };
        }
        if usize::try_from(count) != Ok(self.columns) {
            return Err(format!(
                "a row of {count} fields where {} were asked for",
                self.columns
            ));
        }
        let mut at = 2;
        let mut fields = Vec::with_capacity(self.columns);
        for _ in 0..self.columns {
            let Some(length) = read_i32(&self.buffer, at) else {
                return Ok(None);
            };
            at += 4;
            match usize::try_from(length) {
                Ok(length) if self.buffer.len() - at < length => return Ok(None),
                Ok(length) => {
                    fields.push(Some(at..at + length));
                    at += length;
                }
                Err(_) if length == -1 => fields.push(None),
                Err(_) => return Err(format!("a field of {length} bytes")),
            }
        }
        Ok(Some(RawRow {
            bytes: self.buffer.split_to(at).freeze(),
            fields,
        }))
    }

    /// The stream ended: it must have been whole.
    pub(crate) fn finish(&self) -> Result<(), String> {
        if self.ended {
            Ok(())
        } else {
            Err("the stream ended before its trailer".to_owned())
        }
    }

    fn read_header(&mut self) -> Result<bool, String> {
        let known = self.buffer.len().min(SIGNATURE.len());
        if self.buffer[..known] != SIGNATURE[..known] {
            return Err("this is not a binary copy".to_owned());
        }
        let Some(extension) = read_i32(&self.buffer, HEADER_BYTES - 4) else {
            return Ok(false);
        };
        let flags = read_i32(&self.buffer, SIGNATURE.len()).unwrap_or(0) as u32;
        if flags & CRITICAL_FLAGS != 0 {
            return Err(format!("unknown flags {flags:#x}"));
        }
        let Ok(extension) = usize::try_from(extension) else {
            return Err("a negative header".to_owned());
        };
        if self.buffer.len() < HEADER_BYTES + extension {
            return Ok(false);
        }
        self.buffer.advance(HEADER_BYTES + extension);
        self.header_read = true;
        Ok(true)
    }
}

fn read_i16(bytes: &[u8], at: usize) -> Option<i16> {
    Some(i16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 3, 9, 9, 9]);
        out.extend_from_slice(&[0, 2, 0, 0, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff]);
        out.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 0, 0, 2, b'b', b'c']);
        out.extend_from_slice(&[0xff, 0xff]);
        out
    }

    fn rows(pieces: &[&[u8]]) -> Result<Vec<[Option<Vec<u8>>; 2]>, String> {
        let mut copy = BinaryCopy::new(2);
        let mut rows = Vec::new();
        for piece in pieces {
            copy.feed(piece);
            while let Some(row) = copy.next_row()? {
                rows.push([0, 1].map(|index| row.field(index).map(<[u8]>::to_vec)));
            }
        }
        copy.finish()?;
        Ok(rows)
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_rows() {
        let all = stream();
        let expected = vec![
            [Some(b"a".to_vec()), None],
            [Some(Vec::new()), Some(b"bc".to_vec())],
        ];
        assert_eq!(rows(&[&all]).unwrap(), expected);
        for cut in 0..all.len() {
            assert_eq!(
                rows(&[&all[..cut], &all[cut..]]).unwrap(),
                expected,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_truncated_or_foreign_stream_is_an_error() {
        let all = stream();
        for end in 0..all.len() {
            assert!(rows(&[&all[..end]]).is_err(), "cut at {end}");
        }
        assert!(rows(&[&all, b"xx"]).is_err());
        assert!(rows(&[b"PGCOPX"]).is_err());
    }
}
