//! The library's list of files (`vN`), as far as we need it: which tables, with which checksums.
//!
//! An archive of named sections, little-endian. Its last 38 bytes are the trailer:
//!
//! ```text
//! "SFA!", u8 1, u8 0, u128 xxh3 of the contents, u64 position of the contents, u64 their length
//! contents:  "TOC!", u32 sections, each { u64 position, u64 length, u16 name length, name }
//! "tables":  u8 levels { u8 runs { u32 tables { u64 id, u8 0, u128 xxh3, u64 number added } } }
//! ```
//!
//! The caller has verified the whole file's checksum; anything unexpected is still an error.

use bytes::Buf;

use crate::storage::TreeError;

const TRAILER_BYTES: usize = 38;

/// Ids and checksums of the tables listed.
pub(super) fn tables(list: &[u8]) -> Result<Vec<(u64, u128)>, TreeError> {
    parse(list).ok_or_else(|| TreeError::damaged("file list", "not of the form expected"))
}

fn parse(list: &[u8]) -> Option<Vec<(u64, u128)>> {
    let mut section = section(list, b"tables")?;
    let mut tables = Vec::new();
    for _level in 0..section.try_get_u8().ok()? {
        for _run in 0..section.try_get_u8().ok()? {
            for _table in 0..section.try_get_u32_le().ok()? {
                let id = section.try_get_u64_le().ok()?;
                let checksum_kind = section.try_get_u8().ok()?;
                let xxh3_128 = section.try_get_u128_le().ok()?;
                let number_added = section.try_get_u64_le().ok()?;
                // We never ingest tables, which is what would shift the numbers inside.
                if checksum_kind != 0 || number_added != 0 {
                    return None;
                }
                tables.push((id, xxh3_128));
            }
        }
    }
    section.is_empty().then_some(tables)
}

fn section<'a>(list: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut trailer = &list[list.len().checked_sub(TRAILER_BYTES)?..];
    if !trailer.starts_with(b"SFA!\x01\x00") {
        return None;
    }
    trailer.advance(6 + 16);
    let contents_at = usize::try_from(trailer.try_get_u64_le().ok()?).ok()?;
    let mut contents = list.get(contents_at..)?.strip_prefix(b"TOC!")?;
    for _ in 0..contents.try_get_u32_le().ok()? {
        let at = usize::try_from(contents.try_get_u64_le().ok()?).ok()?;
        let len = usize::try_from(contents.try_get_u64_le().ok()?).ok()?;
        let name_len = contents.try_get_u16_le().ok()? as usize;
        let name = contents.get(..name_len)?;
        if name == wanted {
            return list.get(at..at.checked_add(len)?);
        }
        contents.advance(name_len);
    }
    None
}
