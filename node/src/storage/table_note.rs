//! What a mark tells of each table; see [`super::mark`] for the layout.

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

use super::mark::{get_name, get_short, put_short};
use super::{Stretch, Stretches};

/// Stretches that a mark tells of, over all tables: with one block each, 8 MiB of tables. More
/// tables are told of in longer stretches.
const STRETCHES_MAX: usize = 2_048;
/// Longest key in a mark; a longer one is replaced by a shorter one that lies farther out.
const BOUND_BYTES_MAX: usize = 128;

/// What is known of a table besides its checksum, so that parts of it can be believed without the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableNote {
    /// Path inside the tree's folder.
    pub name: String,
    /// No record's key is less; may be shorter than the least one.
    pub first: Bytes,
    /// No record's key is greater; `None` when no bound is known.
    pub last: Option<Bytes>,
    /// Its data blocks.
    pub stretches: Stretches,
}

impl TableNote {
    /// With keys short enough for a mark.
    pub(crate) fn new(name: String, first: &[u8], last: &[u8], stretches: Stretches) -> Self {
        Self {
            name,
            first: Bytes::copy_from_slice(&first[..first.len().min(BOUND_BYTES_MAX)]),
            last: bound_above(last),
            stretches,
        }
    }
}

/// A key that is not less than `key`, and not too long; `None` when there is none.
fn bound_above(key: &[u8]) -> Option<Bytes> {
    if key.len() <= BOUND_BYTES_MAX {
        return Some(Bytes::copy_from_slice(key));
    }
    let mut above = key[..BOUND_BYTES_MAX].to_vec();
    while above.last() == Some(&u8::MAX) {
        above.pop();
    }
    *above.last_mut()? += 1;
    Some(above.into())
}

/// Tells of the same tables in no more stretches than a mark has room for.
pub(crate) fn fit(mut tables: Vec<TableNote>) -> Vec<TableNote> {
    let count =
        |tables: &[TableNote]| -> usize { tables.iter().map(|table| table.stretches.list.len()).sum() };
    while count(&tables) > STRETCHES_MAX {
        let before = count(&tables);
        for table in &mut tables {
            if let Some(halved) = table.stretches.halved() {
                table.stretches = halved;
            }
        }
        if count(&tables) == before {
            break; // one each
        }
    }
    tables
}

pub(super) fn put_table(out: &mut BytesMut, table: &TableNote) {
    put_short(out, table.name.as_bytes());
    put_short(out, &table.first);
    out.put_u8(table.last.is_some().into());
    put_short(out, table.last.as_deref().unwrap_or_default());
    out.put_u8(table.stretches.blocks_log2);
    out.put_u32_le(table.stretches.list.len() as u32);
    for Stretch { bytes, sum } in &table.stretches.list {
        out.put_u32_le(*bytes);
        out.put_u32_le(*sum);
    }
}

pub(super) fn get_table(body: &mut &[u8]) -> Result<TableNote, TryGetError> {
    let (name, first) = (get_name(body)?, get_short(body)?);
    let has_last = body.try_get_u8()? != 0;
    let last = Some(get_short(body)?).filter(|_| has_last);
    let blocks_log2 = body.try_get_u8()?;
    let mut list = Vec::new();
    for _ in 0..body.try_get_u32_le()? {
        let (bytes, sum) = (body.try_get_u32_le()?, body.try_get_u32_le()?);
        list.push(Stretch { bytes, sum });
    }
    Ok(TableNote {
        name,
        first,
        last,
        stretches: Stretches { blocks_log2, list },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(count: u32) -> Stretches {
        let list = (1..=count).map(|sum| Stretch { bytes: 4_096, sum });
        Stretches::of_blocks(list.collect())
    }

    #[test]
    fn long_keys_are_bounded_from_outside() {
        let long = |fill: u8| vec![fill; 2 * BOUND_BYTES_MAX];
        let note = TableNote::new("tables/1".into(), &long(b'a'), &long(b'z'), stretches(1));
        let last = note.last.unwrap();
        assert!(note.first.len() <= BOUND_BYTES_MAX && *note.first <= *long(b'a'));
        assert!(last.len() <= BOUND_BYTES_MAX && *last >= *long(b'z'));
        assert_eq!(bound_above(&long(u8::MAX)), None);
    }

    #[test]
    fn many_tables_are_told_of_in_longer_stretches() {
        let note = |count| TableNote::new("tables/1".into(), b"a", b"z", stretches(count));
        let fitted = fit(vec![note(1), note(3_000), note(500)]);
        let lens: Vec<_> = fitted.iter().map(|table| table.stretches.list.len()).collect();
        assert_eq!(lens, [1, 1_500, 250]);
        assert_eq!(
            fit(vec![note(1); 3_000]).len(),
            3_000,
            "one stretch each is the least"
        );
    }
}
